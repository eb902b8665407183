// A whole encoder of small layers in one launch: the kernel's body, for encoder_small.cu and
// encoder_small_hopper.cu. Not for widths above 256 or rows of more than 128 tokens, and without
// rotary positions, score biases, groups or cross attention: `step/encoder_stack.rs` has those.
//
// A block owns MT tiles of 16 tokens through all layers; the blocks of a cluster own the tiles of
// one row. Eight warps split the columns of every product. Everything that passes between warps is
// in the fragment order of mma.sync.m16n8k16 (16 bytes a lane), so that no transposition happens:
// a result's fragment is the next product's operand in the same lane. Values are computed as
// their transpose (weights as the left operand), which makes them the right operand of P·V.
//
// Weights: each warp reads its own contiguous stream, in the order in which it multiplies, through
// a ring of cp.async copies in which a lane reads only what the same lane has copied: no barrier,
// and the ring runs ahead over phases and layers from the kernel's first instruction on.
//
// The residual stays in f32 registers. Sums over K run in one order whatever MT and the cluster,
// so the bits of a row depend on neither.
//
// Ladder: transformer_small (T 64, d 128, 8 heads, ff 256, 3 layers, the last position kept) on an
// H200, 2026-11-21, f16. B 1: window in host memory to outputs and flag there, graph of one node,
// p50. B 1,024 and 8,192: device time.
//                                                              B 1     B 1,024     B 8,192
//   groups of two fragments, vectors read from global memory   40.3 us   572 us    4,454 us
//   groups of eight, vectors in shared memory, straight softmax 32.4     347       2,695
//   keys sent without a membar (it waits for the ring's copies) 30.5     340       2,584
//   instances for plain stacks: a third of the code            25.6      265       2,033
//   keys sent in bulk, queries meanwhile; window in bulk       24.5      264       2,012
//   one tile: weights held in registers                        22.9      -         -
//   the same on another machine, p50 and p99                   23.7, 30.2
//   and the launch lingers (`linger.cuh`; predicted 18.9)      22.0, 25.9
// B 32 is 33.8 us by clusters of two blocks with two tiles each; no clusters 43, of four 41 (the
// driver places 30 of them at once, 32 are wanted).
//
// What is left. B 8,192 executes 348 GFLOP (the last layer's other positions are keys and values
// only), so 173 TFLOP/s of the 600 that mma.sync reaches: two warps a scheduler wait for shared
// memory, for fixed latencies and, before the plain instances 36% of the time, for instructions.
// A block reads 786 KB of weights a row from L2: 6.4 GB, 1.2 ms at 5.5 TB/s, the next bound.
// B 1, by the clock inside the kernel: 2.2 us until the window is embedded, 15 us of layers (of
// which the weights' way from L2 into one multiprocessor, 64 bytes a clock, is 7), 1.1 us head and
// flag; the rest is the launch. The columns of a layer would have to be split among more blocks to
// go below; each exchange costs about 0.25 us, five a layer.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "activation.cuh"
#include "linger.cuh"
#include "run.cuh"

namespace encoder_small {

#ifndef MARK
#define MARKS // a harness records the clock here
#define MARK(place)
#endif

constexpr int WARPS = 8;
constexpr unsigned ALL = 0xffffffffu;

// Mirrored by `Arguments` of step/encoder_small.rs.
struct Arguments {
    const float* x;        // [batch, time, width], or [batch, time, features] where `whole`
    float* y;              // [batch, keep, width], or [batch, keep, outputs] where `whole`
    const RunHeader* header;
    const float* mask;     // [batch, time] or null
    const uint4* stream;   // weights: 8 warps × `groups` × 1024 bytes
    const float* vectors;  // norms and biases, see `Layer`
    unsigned* flag;        // where `whole`: becomes the sequence number
    unsigned* counter;     // where `whole`: zero between runs; and a place for the sequence number
    unsigned* left;        // where a launch of one cluster lingers (`linger.cuh`), else null
    unsigned time, keep, layers, width;
    unsigned heads, head_tiles, attention_tiles, inner_tiles;
    unsigned tiles, rows_per_block, groups, options;
    unsigned features, feature_tiles, outputs, output_tiles;
    unsigned batch, key_tiles;
    float inverse_heads, inverse_tiles, inverse_width;
    unsigned reserved;
};

enum Option : unsigned { CAUSAL = 1, GATED = 2, WHOLE = 4, FINAL_NORM = 8, ALIAS = 16 };
enum NormKind : unsigned { NONE = 0, LAYER = 1, RMS = 2, AFFINE = 3 };

// A layer's vectors in shared memory, in floats; D, W and I are the padded widths of the model, of
// all heads and of the feed-forward sublayer. The first 16 are: kinds of the four norms (before and
// after attention, before and after the feed-forward), their eps, activation, slope.
struct Layer {
    const float* base;
    int d, w, i;
    __device__ unsigned kind(int norm) const { return __float_as_uint(base[norm]); }
    __device__ float eps(int norm) const { return base[4 + norm]; }
    __device__ unsigned activation() const { return __float_as_uint(base[8]); }
    __device__ float slope() const { return base[9]; }
    __device__ const float* norm(int norm) const { return base + 16 + norm * 2 * d; }
    __device__ const float* query() const { return base + 16 + 8 * d; }
    __device__ const float* key() const { return query() + w; }
    __device__ const float* value() const { return key() + w; }
    __device__ const float* output() const { return value() + w; }
    __device__ const float* up() const { return output() + d; }
    __device__ const float* gate() const { return up() + i; }
    __device__ const float* down() const { return gate() + i; }
};

struct Half {
    static __device__ __forceinline__ unsigned pack(float a, float b) {
        __half2 h = __floats2half2_rn(a, b);
        return *reinterpret_cast<unsigned*>(&h);
    }
    static __device__ __forceinline__ void mma(float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
            "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    }
};

struct Bfloat {
    static __device__ __forceinline__ unsigned pack(float a, float b) {
        __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
        return *reinterpret_cast<unsigned*>(&h);
    }
    static __device__ __forceinline__ void mma(float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
            "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    }
};

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL, x, 1);
    return x + __shfl_xor_sync(ALL, x, 2);
}

template <int N> __device__ __forceinline__ void quad_sums(float (&x)[N][2]) {
#pragma unroll
    for (int by = 1; by < 4; by *= 2) {
        float other[N][2];
#pragma unroll
        for (int m = 0; m < N; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) other[m][h] = __shfl_xor_sync(ALL, x[m][h], by);
#pragma unroll
        for (int m = 0; m < N; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) x[m][h] += other[m][h];
    }
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// x·Φ(x) with Φ(x) = ½ + ½·tanh(x·p(x²)), p fitted to atanh(erf(x/√2))/x: 2.5e-5 from the exact
// value, to which the approximate tanh adds at most |x|·2.5e-4.
__device__ __forceinline__ float gelu_fast(float x) {
    float s = fminf(x * x, 16.0f);
    float p = fmaf(fmaf(-3.5151871e-4f, s, 3.7005660e-2f), s, 0.79750787f);
    float h = 0.5f * x;
    return fmaf(h, tanh_fast(x * p), h);
}

// Activations other than GELU and ReLU, once in the program: they would be most of its code.
__device__ __noinline__ float activate_rarely(unsigned kind, float slope, float x) {
    return activate(kind, slope, x);
}

// A warp's weights: DEPTH groups of KU fragments in flight or in use.
template <int DEPTH, int KU> struct Ring {
    const uint4* from; // of this lane
    uint4* slots;      // of this lane
    unsigned left;     // groups not yet asked for
    unsigned slot;     // of the next group to use

    __device__ __forceinline__ uint4* at(unsigned ahead) const {
        unsigned n = slot + ahead;
        return slots + (n >= DEPTH ? n - DEPTH : n) * (KU * 32);
    }
    __device__ __forceinline__ void issue(unsigned to) {
        if (left > 0) {
#pragma unroll
            for (int i = 0; i < KU; i++)
                asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
                    :: "r"(to + i * 512), "l"(from + i * 32) : "memory");
            from += KU * 32;
            left--;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    __device__ __forceinline__ void start(const uint4* stream, unsigned groups, void* shared) {
        int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
        from = stream + size_t(warp) * groups * (KU * 32) + lane;
        slots = static_cast<uint4*>(shared) + warp * DEPTH * KU * 32 + lane;
        left = groups;
        slot = 0;
        for (int i = 0; i < DEPTH; i++) issue(shared_address(slots + i * KU * 32));
    }
    // The next N groups are there: `at(0)` to `at(N - 1)`.
    template <int N> __device__ __forceinline__ void wait() {
        asm volatile("cp.async.wait_group %0;" :: "n"(DEPTH - N) : "memory");
    }
    // They have been read; others take their place.
    template <int N> __device__ __forceinline__ void release() {
#pragma unroll
        for (int i = 0; i < N; i++) {
            issue(shared_address(slots + slot * (KU * 32)));
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
        }
    }
};

// The same, in registers: four groups, where each slot is known when the code is compiled. Spares
// shared memory two passes over the weights, which is what a single tile of tokens waits for.
template <int KU> struct Registers {
    const uint4* from; // of this lane
    unsigned left;
    uint4 slots[4][KU];

    template <int SLOT> __device__ __forceinline__ void issue() {
        if (left > 0) {
#pragma unroll
            for (int i = 0; i < KU; i++)
                asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                    : "=r"(slots[SLOT][i].x), "=r"(slots[SLOT][i].y), "=r"(slots[SLOT][i].z),
                    "=r"(slots[SLOT][i].w) : "l"(from + i * 32));
            from += KU * 32;
            left--;
        }
    }
    // The group before the first four is for the last slot.
    __device__ __forceinline__ void start(const uint4* stream, unsigned groups, bool before) {
        from = stream + size_t(threadIdx.x >> 5) * groups * (KU * 32) + (threadIdx.x & 31);
        left = groups;
        if (before) issue<3>();
        issue<0>(), issue<1>(), issue<2>();
        if (!before) issue<3>();
    }
};

__device__ __forceinline__ void barrier_init(unsigned barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(barrier) : "memory");
}

// Copies 16·n bytes into shared memory, and has the barrier complete a phase when they are there.
__device__ __forceinline__ void bulk_copy(
    unsigned to, const void* from, unsigned bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1], %2, [%3];" :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

__device__ __forceinline__ void expect(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
        :: "r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
    asm volatile("{ .reg .pred p;\n"
        "WAIT_%=: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra WAIT_%=; }" :: "r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_arrive_release() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Copies from this block's shared memory to the same place in another block of the cluster, whose
// barrier counts the bytes.
__device__ __forceinline__ void push(
    unsigned address, unsigned bytes, unsigned barrier, unsigned rank) {
    asm volatile("{ .reg .b32 a, b; mapa.shared::cluster.u32 a, %0, %3;\n"
        "mapa.shared::cluster.u32 b, %2, %3;\n"
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
        "[a], [%0], %1, [b]; }"
        :: "r"(address), "r"(bytes), "r"(barrier), "r"(rank) : "memory");
}

// Writes to the same place in another block of the cluster.
__device__ __forceinline__ void tell(unsigned address, unsigned value, unsigned rank) {
    asm volatile("{ .reg .b32 a; mapa.shared::cluster.u32 a, %0, %2;\n"
        "st.shared::cluster.u32 [a], %1; }" :: "r"(address), "r"(value), "r"(rank) : "memory");
}

// N tiles of 16 tokens by the columns of one fragment tile, in result order.
template <int N> using Tiles = float[N][2][4];

template <int N> __device__ __forceinline__ void fill(Tiles<N>& c, const float* bias, int q) {
    float2 lo = *reinterpret_cast<const float2*>(bias + 2 * q);
    float2 hi = *reinterpret_cast<const float2*>(bias + 8 + 2 * q);
#pragma unroll
    for (int m = 0; m < N; m++) {
        c[m][0][0] = c[m][0][2] = lo.x, c[m][0][1] = c[m][0][3] = lo.y;
        c[m][1][0] = c[m][1][2] = hi.x, c[m][1][1] = c[m][1][3] = hi.y;
    }
}

template <class F> __device__ __forceinline__ uint4 operand(const float (&c)[2][4]) {
    return make_uint4(F::pack(c[0][0], c[0][1]), F::pack(c[0][2], c[0][3]),
        F::pack(c[1][0], c[1][1]), F::pack(c[1][2], c[1][3]));
}

// As the right operand of the next product where the tile was computed transposed.
template <class F> __device__ __forceinline__ uint4 right_operand(const float (&c)[2][4]) {
    return make_uint4(F::pack(c[0][0], c[0][1]), F::pack(c[1][0], c[1][1]),
        F::pack(c[0][2], c[0][3]), F::pack(c[1][2], c[1][3]));
}

template <class F, int D, int MT, bool CLUSTER, int DEPTH, bool PLAIN> struct Block {
    static constexpr int D16 = D / 16;
    static constexpr int KU = D16 < 8 ? D16 : 8;         // fragments of a group of weights
    static constexpr int NT = (D16 + WARPS - 1) / WARPS; // tiles of the residual a warp owns
    static constexpr int PITCH = D16 + 2;                // of a row's statistics
    // Steps of K that are unrolled: a layer's code should stay in the instruction cache.
    static constexpr int ROLL = MT > 1 ? 2 : KU;
    using Residual = float[NT][MT][2][4];

    const Arguments& p;
    // Weights in registers, for which only one tile of a plain stack leaves room.
    static constexpr bool HELD = PLAIN && MT == 1;
    Ring<DEPTH, KU> ring;
    Registers<KU> held;
    int warp, lane, g, q;
    int rank;              // of the block in its cluster
    int first_row;         // batch row of the block's first tile
    uint4* input;          // [MT][D16][32]: operand of queries, keys, values and up
    uint4* inner;          // [MT][W16][32]: queries, then heads' results
    uint4* active;         // [MT][I16][32]: activations; in place of `inner` or of `keys`
    uint4* keys;           // [buffers][rows][key tiles][W16][2][32]
    float2* statistics;    // [2][MT·16][PITCH]
    float2* moments;       // [2][MT·16]
    int parity;            // of the statistics

    __device__ Block(const Arguments& arguments) : p(arguments) {}

    // What a plain stack fixes when it is compiled: heads of 16, twice the width inside, layer
    // norms before the sublayers, GELU, rows of 64 tokens, all visible. Less than half the code,
    // which is what a single forecast waits for.
    __device__ __forceinline__ int w16() const { return PLAIN ? D16 : int(p.attention_tiles); }
    __device__ __forceinline__ int i16() const { return PLAIN ? 2 * D16 : int(p.inner_tiles); }
    __device__ __forceinline__ int tiles() const { return PLAIN ? 4 : int(p.tiles); }
    __device__ __forceinline__ int key_tiles() const { return PLAIN ? 4 : int(p.key_tiles); }
    __device__ __forceinline__ int time() const { return PLAIN ? 64 : int(p.time); }
    __device__ __forceinline__ int heads() const { return PLAIN ? D16 : int(p.heads); }
    __device__ __forceinline__ int head_tiles() const { return PLAIN ? 1 : int(p.head_tiles); }
    __device__ __forceinline__ int rows() const { return PLAIN ? MT / 4 : int(p.rows_per_block); }
    __device__ __forceinline__ int width() const { return PLAIN ? D : int(p.width); }
    __device__ __forceinline__ bool full() const { return PLAIN || p.width == D; }
    __device__ __forceinline__ bool hiding() const {
        return !PLAIN && ((p.options & CAUSAL) || p.mask);
    }
    __device__ __forceinline__ bool gated() const { return !PLAIN && (p.options & GATED); }
    __device__ __forceinline__ unsigned kind(const Layer& layer, int norm) const {
        return PLAIN ? (norm % 2 ? NONE : LAYER) : layer.kind(norm);
    }

    __device__ __forceinline__ int tile_count() const {
        return CLUSTER ? min(tiles() - rank * MT, MT) : rows() * tiles();
    }

    // Columns of tile n that exist.
    __device__ __forceinline__ float columns(int n) const {
        return float(max(0, min(width() - n * 16, 16)));
    }

    // Sums and squared deviations of each row over each tile of 16 columns; after a barrier they
    // are combined (Chan's way: stable, and in one order): mean and 1/√(variance + eps).
    template <int N>
    __device__ __forceinline__ void statistics_of(
        const Residual& x, unsigned kind, float eps, float (&mean)[N][2], float (&scale)[N][2]) {
        float2* at = statistics + parity * (MT * 16 * PITCH);
        float2* of = moments + parity * (MT * 16);
        parity ^= 1;
        const bool full = this->full();
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int n = warp + WARPS * i;
            if (D16 % WARPS != 0 && n >= D16) break;
            float count = columns(n);
            float inverse = full ? 0.0625f : count > 0.0f ? __fdividef(1.0f, count) : 0.0f;
            // All rows step by step, so that their shuffles overlap.
            float s[N][2], v[N][2];
#pragma unroll
            for (int m = 0; m < N; m++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    s[m][h] = (x[i][m][0][2 * h] + x[i][m][0][2 * h + 1])
                        + (x[i][m][1][2 * h] + x[i][m][1][2 * h + 1]);
            if (PLAIN || kind == LAYER) {
                quad_sums<N>(s);
            } else {
#pragma unroll
                for (int m = 0; m < N; m++) s[m][0] = s[m][1] = 0.0f;
            }
#pragma unroll
            for (int m = 0; m < N; m++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float u = s[m][h] * inverse, off[4];
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        off[e] = x[i][m][e / 2][2 * h + e % 2] - u;
                        if (!full && 2 * q + e / 2 * 8 + e % 2 >= int(count)) off[e] = 0.0f;
                    }
                    v[m][h] = (off[0] * off[0] + off[1] * off[1])
                        + (off[2] * off[2] + off[3] * off[3]);
                }
            }
            quad_sums<N>(v);
#pragma unroll
            for (int m = 0; m < N; m++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    if (q == 0)
                        at[(m * 16 + h * 8 + g) * PITCH + n] = make_float2(s[m][h], v[m][h]);
        }
        __syncthreads();
        if (N == 1) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float2 both = combine(at + (h * 8 + g) * PITCH, kind, eps, full);
                mean[0][h] = both.x, scale[0][h] = both.y;
            }
            return;
        }
        if (threadIdx.x < N * 16)
            of[threadIdx.x] = combine(at + threadIdx.x * PITCH, kind, eps, full);
        __syncthreads();
#pragma unroll
        for (int m = 0; m < N; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float2 both = of[m * 16 + h * 8 + g];
                mean[m][h] = both.x, scale[m][h] = both.y;
            }
    }

    __device__ __forceinline__ float2 combine(
        const float2* row, unsigned kind, float eps, bool full) const {
        const float4* pairs = reinterpret_cast<const float4*>(row);
        float4 parts[D16 / 2];
        float sum = 0.0f, square = 0.0f;
#pragma unroll
        for (int i = 0; i < D16 / 2; i++) {
            parts[i] = pairs[i];
            sum += parts[i].x + parts[i].z;
            square += parts[i].y + parts[i].w;
        }
        float width = PLAIN ? 1.0f / D : p.inverse_width, mean = sum * width, off = 0.0f;
        if (kind == LAYER && full) {
            // count·(mean of the tile − mean)²
#pragma unroll
            for (int i = 0; i < D16 / 2; i++) {
                float a = fmaf(-16.0f, mean, parts[i].x), b = fmaf(-16.0f, mean, parts[i].z);
                off += a * a + b * b;
            }
            square = fmaf(off, 0.0625f, square);
        } else if (kind == LAYER) {
#pragma unroll 1
            for (int i = 0; i < D16; i++) {
                float count = columns(i), a = fmaf(-count, mean, row[i].x);
                square += count > 0.0f ? __fdividef(a * a, count) : 0.0f;
            }
        }
        return make_float2(mean, rsqrtf(fmaf(square, width, eps)));
    }

    template <int N>
    __device__ __forceinline__ void normalise(
        const Residual& x, Residual& y, unsigned kind, float eps, const float* vectors) {
        float mean[N][2], scale[N][2];
        float2 weight[NT][2], shift[NT][2];
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int n = warp + WARPS * i;
            if (D16 % WARPS != 0 && n >= D16) break;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float* at = vectors + n * 16 + j * 8 + 2 * q;
                weight[i][j] = *reinterpret_cast<const float2*>(at);
                shift[i][j] = *reinterpret_cast<const float2*>(at + D);
            }
        }
        if (kind == AFFINE) {
#pragma unroll
            for (int m = 0; m < N; m++) mean[m][0] = mean[m][1] = 0.0f,
                scale[m][0] = scale[m][1] = 1.0f;
        } else {
            statistics_of<N>(x, kind, eps, mean, scale);
        }
#pragma unroll
        for (int i = 0; i < NT; i++) {
            if (D16 % WARPS != 0 && warp + WARPS * i >= D16) break;
#pragma unroll
            for (int m = 0; m < N; m++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        float w = e % 2 ? weight[i][j].y : weight[i][j].x;
                        float b = e % 2 ? shift[i][j].y : shift[i][j].x;
                        float v = (x[i][m][j][e] - mean[m][e / 2]) * scale[m][e / 2];
                        y[i][m][j][e] = fmaf(v, w, b);
                    }
                }
            }
        }
    }

    // The residual, normalised, as the next products' operand. Ends with a barrier.
    template <int N>
    __device__ __forceinline__ void make_input(
        const Residual& x, unsigned kind, float eps, const float* vectors, int first) {
        if (kind == NONE) {
            write_input<N>(x, first);
        } else {
            Residual y;
            normalise<N>(x, y, kind, eps, vectors);
            write_input<N>(y, first);
        }
        __syncthreads();
    }

    template <int N> __device__ __forceinline__ void write_input(const Residual& x, int first) {
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int n = warp + WARPS * i;
            if (D16 % WARPS != 0 && n >= D16) break;
#pragma unroll
            for (int m = 0; m < N; m++)
                input[((first + m) * D16 + n) * 32 + lane] = operand<F>(x[i][m]);
        }
    }

    // x += A·Wᵀ + bias, for the warp's columns; even and odd steps of K in two chains.
    template <int N>
    __device__ __forceinline__ void project(
        Residual& x, const uint4* a, int pitch, int k16, const float* bias, int first) {
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int n = warp + WARPS * i;
            if (D16 % WARPS != 0 && n >= D16) break;
            Tiles<N> even, odd;
            fill<N>(even, bias + n * 16, q);
#pragma unroll
            for (int m = 0; m < N; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) odd[m][0][e] = odd[m][1][e] = 0.0f;
            for (int k = 0; k < k16; k += KU) {
                ring.template wait<1>();
                const uint4* w = ring.at(0);
                const uint4* at = a + (first * pitch + k) * 32 + lane;
#pragma unroll ROLL
                for (int j = 0; j < KU; j++) {
                    uint4 b = w[j * 32];
#pragma unroll
                    for (int m = 0; m < N; m++) {
                        uint4 left = at[(m * pitch + j) * 32];
                        F::mma((j % 2 ? odd : even)[m][0], left, b.x, b.y);
                        F::mma((j % 2 ? odd : even)[m][1], left, b.z, b.w);
                    }
                }
                ring.template release<1>();
            }
#pragma unroll
            for (int m = 0; m < N; m++)
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) x[i][m][j][e] += even[m][j][e] + odd[m][j][e];
        }
    }

    // `project` with weights in registers: groups of the slots from FIRST on.
    template <int FIRST, int GROUPS>
    __device__ __forceinline__ void project_held(Residual& x, const uint4* a, const float* bias) {
        Tiles<1> even, odd;
        fill<1>(even, bias + warp * 16, q);
#pragma unroll
        for (int e = 0; e < 4; e++) odd[0][0][e] = odd[0][1][e] = 0.0f;
#pragma unroll
        for (int k = 0; k < GROUPS; k++) {
#pragma unroll
            for (int j = 0; j < KU; j++) {
                uint4 b = held.slots[FIRST + k][j], left = a[(k * KU + j) * 32 + lane];
                F::mma((j % 2 ? odd : even)[0][0], left, b.x, b.y);
                F::mma((j % 2 ? odd : even)[0][1], left, b.z, b.w);
            }
            if (k == 0) held.template issue<FIRST>();
            else held.template issue<(FIRST + 1) % 4>();
        }
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[0][0][j][e] += even[0][j][e] + odd[0][j][e];
    }

    // Keys, values and queries of the warp's head with weights in registers.
    __device__ __forceinline__ void queries_keys_values_held(
        const Layer& layer, uint4* keys, unsigned barrier, bool starting) {
        Tiles<1> qs, ks, vs;
        fill<1>(qs, layer.query() + warp * 16, q);
        fill<1>(ks, layer.key() + warp * 16, q);
        float v0 = layer.value()[warp * 16 + g], v1 = layer.value()[warp * 16 + 8 + g];
#pragma unroll
        for (int j = 0; j < 2; j++) vs[0][j][0] = vs[0][j][1] = v0, vs[0][j][2] = vs[0][j][3] = v1;
        uint4 a[KU];
#pragma unroll
        for (int j = 0; j < KU; j++) {
            a[j] = input[j * 32 + lane];
            uint4 bk = held.slots[0][j], bv = held.slots[1][j];
            uint4 left = make_uint4(bv.x, bv.z, bv.y, bv.w);
            F::mma(ks[0][0], a[j], bk.x, bk.y);
            F::mma(ks[0][1], a[j], bk.z, bk.w);
            F::mma(vs[0][0], left, a[j].x, a[j].z);
            F::mma(vs[0][1], left, a[j].y, a[j].w);
        }
        held.template issue<0>(), held.template issue<1>();
        if (starting) cluster_wait(); // all blocks have started
        uint4* to = keys + (rank * D16 + warp) * 64 + lane;
        to[0] = make_uint4(F::pack(ks[0][0][0], ks[0][0][1]), F::pack(ks[0][1][0], ks[0][1][1]),
            F::pack(ks[0][0][2], ks[0][0][3]), F::pack(ks[0][1][2], ks[0][1][3]));
        to[32] = right_operand<F>(vs[0]);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (lane < tiles() && lane != rank) push(shared_address(to - lane), 1024, barrier, lane);
        __syncwarp();
        // Queries while keys and values are on their way.
#pragma unroll
        for (int j = 0; j < KU; j++) {
            uint4 bq = held.slots[2][j];
            F::mma(qs[0][0], a[j], bq.x, bq.y);
            F::mma(qs[0][1], a[j], bq.z, bq.w);
        }
        held.template issue<2>();
        inner[warp * 32 + lane] = operand<F>(qs[0]);
    }

    __device__ __forceinline__ void up_held(const Layer& layer) {
        Tiles<1> c[2];
        fill<1>(c[0], layer.up() + warp * 16, q);
        fill<1>(c[1], layer.up() + (warp + WARPS) * 16, q);
#pragma unroll
        for (int j = 0; j < KU; j++) {
            uint4 a = input[j * 32 + lane], b0 = held.slots[0][j], b1 = held.slots[1][j];
            F::mma(c[0][0][0], a, b0.x, b0.y);
            F::mma(c[0][0][1], a, b0.z, b0.w);
            F::mma(c[1][0][0], a, b1.x, b1.y);
            F::mma(c[1][0][1], a, b1.z, b1.w);
        }
        held.template issue<0>(), held.template issue<1>();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            apply<1>(c[i], GELU, 0.0f);
            active[(warp + WARPS * i) * 32 + lane] = operand<F>(c[i][0]);
        }
    }

    // Queries into `inner`, keys and values into `keys` of every block of the cluster.
    __device__ __forceinline__ void queries_keys_values(
        const Layer& layer, uint4* keys, unsigned barrier, bool starting) {
        const int w16 = this->w16(), count = tile_count();
        for (int n = warp; n < w16; n += WARPS) {
            Tiles<MT> qs, ks, vs;
            fill<MT>(qs, layer.query() + n * 16, q);
            fill<MT>(ks, layer.key() + n * 16, q);
            float v0 = layer.value()[n * 16 + g], v1 = layer.value()[n * 16 + 8 + g];
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    vs[m][j][0] = vs[m][j][1] = v0, vs[m][j][2] = vs[m][j][3] = v1;
            for (int k = 0; k < D16; k += KU) {
                ring.template wait<3>();
                const uint4 *wk = ring.at(0), *wv = ring.at(1), *wq = ring.at(2);
                const uint4* at = input + k * 32 + lane;
#pragma unroll ROLL
                for (int j = 0; j < KU; j++) {
                    uint4 bk = wk[j * 32], bv = wv[j * 32], bq = wq[j * 32];
                    uint4 left = make_uint4(bv.x, bv.z, bv.y, bv.w);
#pragma unroll
                    for (int m = 0; m < MT; m++) {
                        uint4 a = at[(m * D16 + j) * 32];
                        F::mma(ks[m][0], a, bk.x, bk.y);
                        F::mma(ks[m][1], a, bk.z, bk.w);
                        F::mma(vs[m][0], left, a.x, a.z);
                        F::mma(vs[m][1], left, a.y, a.w);
                        if (MT == 1 && D16 == KU) continue;
                        F::mma(qs[m][0], a, bq.x, bq.y);
                        F::mma(qs[m][1], a, bq.z, bq.w);
                    }
                }
                if (MT > 1 || D16 != KU) ring.template release<3>();
            }
            if (CLUSTER && starting) cluster_wait(); // all blocks have started
            starting = false;
#pragma unroll
            for (int m = 0; m < MT; m++) {
                if (m >= count) continue;
                uint4 k = make_uint4(F::pack(ks[m][0][0], ks[m][0][1]),
                    F::pack(ks[m][1][0], ks[m][1][1]), F::pack(ks[m][0][2], ks[m][0][3]),
                    F::pack(ks[m][1][2], ks[m][1][3]));
                uint4 v = right_operand<F>(vs[m]);
                uint4* to = keys + (key_tile(m) * w16 + n) * 64 + lane;
                to[0] = k, to[32] = v;
            }
            if (CLUSTER) {
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                __syncwarp();
                if (lane < int(tiles() + MT - 1) / MT && lane != rank) {
                    for (int m = 0; m < count; m++)
                        push(shared_address(keys + (key_tile(m) * w16 + n) * 64), 1024, barrier,
                            lane);
                }
                __syncwarp();
            }
            if (MT == 1 && D16 == KU) {
                // Queries while keys and values are on their way.
                const uint4* wq = ring.at(2);
#pragma unroll
                for (int j = 0; j < KU; j++) {
                    uint4 bq = wq[j * 32], a = input[j * 32 + lane];
                    F::mma(qs[0][0], a, bq.x, bq.y);
                    F::mma(qs[0][1], a, bq.z, bq.w);
                }
                ring.template release<3>();
            }
#pragma unroll
            for (int m = 0; m < MT; m++) inner[(m * w16 + n) * 32 + lane] = operand<F>(qs[m]);
        }
        if (CLUSTER && starting) cluster_wait();
    }

    // Where keys of the block's tile m are.
    __device__ __forceinline__ int key_tile(int m) const {
        return CLUSTER ? rank * MT + m : m / tiles() * key_tiles() + m % tiles();
    }

    // One head of one tile of queries over all keys, which are KT tiles (those that do not exist
    // are hidden); the result replaces the query.
    template <int KT>
    __device__ __forceinline__ void attend(const uint4* keys, int head, int m, int row, int tile) {
        const int w16 = this->w16(), ht = head_tiles();
        uint4* query = inner + (m * w16 + head * ht) * 32 + lane;
        const uint4* from = keys + (row * KT * w16 + head * ht) * 64 + lane;
        float s[2 * KT][4];
#pragma unroll
        for (int t = 0; t < KT; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[2 * t][e] = s[2 * t + 1][e] = 0.0f;
        for (int i = 0; i < ht; i++) {
            uint4 a = query[i * 32];
#pragma unroll
            for (int t = 0; t < KT; t++) {
                uint4 k = from[(t * w16 + i) * 64];
                F::mma(s[2 * t], a, k.x, k.y);
                F::mma(s[2 * t + 1], a, k.z, k.w);
            }
        }
        if (KT * 16 != time() || hiding()) {
#pragma unroll
            for (int t = 0; t < KT; t++) hide(s[2 * t], s[2 * t + 1], row, tile, t);
        }
        float high[2], sum[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            high[h] = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
            for (int t = 1; t < 2 * KT; t++)
                high[h] = fmaxf(high[h], fmaxf(s[t][2 * h], s[t][2 * h + 1]));
            high[h] = quad_max(high[h]);
            if (high[h] == -INFINITY) high[h] = 0.0f; // no visible key
            sum[h] = 0.0f;
        }
        uint4 weights[KT];
#pragma unroll
        for (int t = 0; t < KT; t++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float(&v)[4] = s[2 * t + j];
#pragma unroll
                for (int e = 0; e < 4; e++) v[e] = exp2_fast(v[e] - high[e / 2]);
                sum[0] += v[0] + v[1];
                sum[1] += v[2] + v[3];
            }
            weights[t] = make_uint4(F::pack(s[2 * t][0], s[2 * t][1]),
                F::pack(s[2 * t][2], s[2 * t][3]), F::pack(s[2 * t + 1][0], s[2 * t + 1][1]),
                F::pack(s[2 * t + 1][2], s[2 * t + 1][3]));
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] = quad_sum(sum[h]);
            sum[h] = sum[h] == 0.0f ? 0.0f : __fdividef(1.0f, sum[h]); // no visible key: zero
        }
        for (int i = 0; i < ht; i++) {
            float o[2][4];
#pragma unroll
            for (int e = 0; e < 4; e++) o[0][e] = o[1][e] = 0.0f;
#pragma unroll
            for (int t = 0; t < KT; t++) {
                uint4 v = from[(t * w16 + i) * 64 + 32];
                F::mma(o[0], weights[t], v.x, v.y);
                F::mma(o[1], weights[t], v.z, v.w);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) o[0][e] *= sum[e / 2], o[1][e] *= sum[e / 2];
            query[i * 32] = operand<F>(o);
        }
    }

    // Scores of keys that do not exist or may not be seen.
    __device__ __forceinline__ void hide(
        float (&lo)[4], float (&hi)[4], int row, int tile, int key_tile) {
        int seen[2]; // how many keys a row of queries sees
#pragma unroll
        for (int h = 0; h < 2; h++)
            seen[h] = p.options & CAUSAL ? min(time(), tile * 16 + h * 8 + g + 1) : time();
#pragma unroll
        for (int j = 0; j < 2; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int key = key_tile * 16 + j * 8 + 2 * q + e;
                bool masked = false;
                if (p.mask && key < time())
                    masked = __ldg(p.mask + size_t(first_row + row) * time() + key) == 0.0f;
                float* at = j ? hi : lo;
                if (masked || key >= seen[0]) at[e] = -INFINITY;
                if (masked || key >= seen[1]) at[2 + e] = -INFINITY;
            }
        }
    }

    template <int N> __device__ __forceinline__ void attention(const uint4* keys, int first) {
        const int units = (N == 1 ? 1 : tile_count()) * heads();
        if (PLAIN) {
            for (int u = warp; u < units; u += WARPS) {
                int m = first + u / D16;
                attend<4>(keys, u % D16, m, 0, CLUSTER ? rank * MT + m : m);
            }
            return;
        }
        const float inverse_heads = p.inverse_heads, inverse_tiles = p.inverse_tiles;
        for (int u = warp; u < units; u += WARPS) {
            // u / heads and m / tiles, of small numbers.
            int m = int((float(u) + 0.5f) * inverse_heads), head = u - m * heads();
            m += first;
            int row = CLUSTER ? 0 : int((float(m) + 0.5f) * inverse_tiles);
            int tile = CLUSTER ? rank * MT + m : m - row * tiles();
            if (key_tiles() == 4) attend<4>(keys, head, m, row, tile);
            else if (key_tiles() == 1) attend<1>(keys, head, m, row, tile);
            else if (key_tiles() == 2) attend<2>(keys, head, m, row, tile);
            else if (CLUSTER) attend<8>(keys, head, m, row, tile);
        }
    }

    // activation(input·Wᵀ + bias), gated or not, into `active`.
    template <int N>
    __device__ __forceinline__ void up(const Layer& layer, int first) {
        const int i16 = this->i16();
        const bool gated = this->gated();
        const unsigned activation = PLAIN ? unsigned(GELU) : layer.activation();
        const float slope = layer.slope();
        for (int n = warp; n < i16; n += gated ? WARPS : 2 * WARPS) {
            Tiles<N> c[2];
            bool two = gated || n + WARPS < i16;
            int other = gated ? n : n + WARPS;
            fill<N>(c[0], layer.up() + n * 16, q);
            if (two) {
                fill<N>(c[1], (gated ? layer.gate() : layer.up()) + other * 16, q);
                for (int k = 0; k < D16; k += KU) {
                    ring.template wait<2>();
                    const uint4 *w0 = ring.at(0), *w1 = ring.at(1);
                    const uint4* at = input + (first * D16 + k) * 32 + lane;
#pragma unroll ROLL
                    for (int j = 0; j < KU; j++) {
                        uint4 b0 = w0[j * 32], b1 = w1[j * 32];
#pragma unroll
                        for (int m = 0; m < N; m++) {
                            uint4 a = at[(m * D16 + j) * 32];
                            F::mma(c[0][m][0], a, b0.x, b0.y);
                            F::mma(c[0][m][1], a, b0.z, b0.w);
                            F::mma(c[1][m][0], a, b1.x, b1.y);
                            F::mma(c[1][m][1], a, b1.z, b1.w);
                        }
                    }
                    ring.template release<2>();
                }
            } else {
                single<N>(c[0], first);
            }
            if (gated) {
                apply<N>(c[1], activation, slope);
#pragma unroll
                for (int m = 0; m < N; m++)
#pragma unroll
                    for (int j = 0; j < 2; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++) c[0][m][j][e] *= c[1][m][j][e];
            } else {
                apply<N>(c[0], activation, slope);
                if (two) apply<N>(c[1], activation, slope);
            }
#pragma unroll
            for (int m = 0; m < N; m++) {
                uint4* to = active + (first + m) * i16 * 32 + lane;
                to[n * 32] = operand<F>(c[0][m]);
                if (two && !gated) to[other * 32] = operand<F>(c[1][m]);
            }
        }
    }

    // c += input·Wᵀ for one tile of columns.
    template <int N> __device__ __forceinline__ void single(Tiles<N>& c, int first) {
        for (int k = 0; k < D16; k += KU) {
            ring.template wait<1>();
            const uint4* w = ring.at(0);
            const uint4* at = input + (first * D16 + k) * 32 + lane;
#pragma unroll ROLL
            for (int j = 0; j < KU; j++) {
                uint4 b = w[j * 32];
#pragma unroll
                for (int m = 0; m < N; m++) {
                    uint4 a = at[(m * D16 + j) * 32];
                    F::mma(c[m][0], a, b.x, b.y);
                    F::mma(c[m][1], a, b.z, b.w);
                }
            }
            ring.template release<1>();
        }
    }

    template <int N>
    static __device__ __forceinline__ void apply(Tiles<N>& c, unsigned activation, float slope) {
        if (activation == GELU) {
#pragma unroll
            for (int m = 0; m < N; m++)
#pragma unroll
                for (int e = 0; e < 8; e++) c[m][e / 4][e % 4] = gelu_fast(c[m][e / 4][e % 4]);
        } else if (activation == RELU) {
#pragma unroll
            for (int m = 0; m < N; m++)
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    float v = c[m][e / 4][e % 4];
                    c[m][e / 4][e % 4] = v < 0.0f ? 0.0f : v;
                }
        } else {
#pragma unroll
            for (int m = 0; m < N; m++)
#pragma unroll
                for (int e = 0; e < 8; e++)
                    c[m][e / 4][e % 4] = activate_rarely(activation, slope, c[m][e / 4][e % 4]);
        }
    }

    template <int N> __device__ __forceinline__ void after(Residual& x, const Layer& l, int norm) {
        unsigned kind = this->kind(l, norm);
        if (kind != NONE) normalise<N>(x, x, kind, l.eps(norm), l.norm(norm));
    }

    // The token of tile m's row g or g + 8, and the batch row it belongs to.
    __device__ __forceinline__ void locate(int m, int half, int& row, int& token) const {
        row = CLUSTER ? 0 : m / tiles();
        token = ((CLUSTER ? rank * MT + m : m % tiles()) * 2 + half) * 8 + g;
    }

    __device__ __forceinline__ void load(Residual& x) {
        int count = tile_count();
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row, token;
                locate(m, h, row, token);
                bool there = m < count && token < time() && first_row + row < int(p.batch);
                const float* from =
                    p.x + (size_t(first_row + row) * time() + token) * width() + 2 * q;
#pragma unroll
                for (int i = 0; i < NT; i++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        int column = (warp + WARPS * i) * 16 + j * 8 + 2 * q;
                        float2 v = make_float2(0.0f, 0.0f);
                        const float* at = from + (column - 2 * q);
                        if (there && width() % 2 == 0) {
                            if (column < width())
                                v = __ldg(reinterpret_cast<const float2*>(at));
                        } else if (there) {
                            if (column < width()) v.x = __ldg(at);
                            if (column + 1 < width()) v.y = __ldg(at + 1);
                        }
                        x[i][m][j][2 * h] = v.x, x[i][m][j][2 * h + 1] = v.y;
                    }
                }
            }
        }
    }

    __device__ __forceinline__ int tokens_of_a_row() const {
        return CLUSTER ? min(time() - rank * MT * 16, MT * 16) : time();
    }
    __device__ __forceinline__ int rows_there() const {
        return CLUSTER ? 1 : min(rows(), int(p.batch) - first_row);
    }
    __device__ __forceinline__ const float* window() const {
        size_t token = size_t(first_row) * time() + (CLUSTER ? rank * MT * 16 : 0);
        return p.x + token * p.features;
    }
    // Whether the window can be copied in bulk.
    __device__ __forceinline__ bool bulky() const { return p.features % 4 == 0; }
    __device__ __forceinline__ unsigned window_bytes() const {
        return tokens_of_a_row() * rows_there() * p.features * 4;
    }

    // The input of a whole forecast, through shared memory into operands of the embedding.
    __device__ __forceinline__ void embed(Residual& x, const float* bias, bool copied) {
        int features = p.features, f16 = p.feature_tiles, count = tile_count();
        float* staged = reinterpret_cast<float*>(keys);
        int per_row = tokens_of_a_row(), there = rows_there();
        if (!copied) {
            // The host may have changed what an earlier run of this launch has read.
            const float* from = window();
            for (int i = threadIdx.x; i < per_row * there * features; i += WARPS * 32)
                asm volatile("ld.relaxed.sys.global.f32 %0, [%1];"
                    : "=f"(staged[i]) : "l"(from + i) : "memory");
            __syncthreads();
        }
        for (int u = warp; u < MT * f16; u += WARPS) {
            int m = u / f16, k = u % f16;
            float c[2][4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row, token;
                locate(m, h, row, token);
                if (CLUSTER) token -= rank * MT * 16;
                bool used = m < count && row < there && token < per_row;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int column = k * 16 + (e / 2) * 8 + 2 * q + e % 2;
                    c[e / 2][2 * h + e % 2] = used && column < features
                        ? staged[(row * per_row + token) * features + column] : 0.0f;
                }
            }
            inner[(m * f16 + k) * 32 + lane] = operand<F>(c);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int e = 0; e < 8; e++) x[i][m][e / 4][e % 4] = 0.0f;
        if constexpr (HELD) project_held<3, 1>(x, inner, bias);
        else project<MT>(x, inner, f16, f16, bias, 0);
        // Tokens that do not exist are zero, so that nothing but numbers is computed of them.
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row, token;
                locate(m, h, row, token);
                if (m < count && token < time() && row < there) continue;
#pragma unroll
                for (int i = 0; i < NT; i++)
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        x[i][m][j][2 * h] = x[i][m][j][2 * h + 1] = 0.0f;
            }
    }

    // Where position `token` of a row is in the output, or a negative number.
    __device__ __forceinline__ int kept(int token) const {
        return token < time() ? token - (time() - int(p.keep)) : -1;
    }

    template <int N>
    __device__ __forceinline__ void store(const Residual& x, int first, unsigned rows) {
        int count = tile_count();
#pragma unroll
        for (int m = 0; m < N; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row, token;
                locate(first + m, h, row, token);
                int at = kept(token);
                if (first + m >= count || at < 0 || first_row + row >= int(rows)) continue;
                float* to = p.y + (size_t(first_row + row) * p.keep + at) * width();
#pragma unroll
                for (int i = 0; i < NT; i++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int column = (warp + WARPS * i) * 16 + (e / 2) * 8 + 2 * q + e % 2;
                        if (column < width()) to[column] = x[i][m][e / 2][2 * h + e % 2];
                    }
                }
            }
        }
    }

    // The head of a whole forecast, on N tiles from `first`.
    template <int N>
    __device__ __forceinline__ void head(
        const Residual& x, const float* bias, int first, unsigned rows) {
        write_input<N>(x, first);
        __syncthreads();
        int count = tile_count();
        for (int n = warp; n < int(p.output_tiles); n += WARPS) {
            Tiles<N> c;
            fill<N>(c, bias + n * 16, q);
            if constexpr (HELD) {
#pragma unroll
                for (int j = 0; j < KU; j++) {
                    uint4 a = input[j * 32 + lane], w = held.slots[0][j];
                    F::mma(c[0][0], a, w.x, w.y);
                    F::mma(c[0][1], a, w.z, w.w);
                }
            } else {
                single<N>(c, first);
            }
#pragma unroll
            for (int m = 0; m < N; m++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int row, token;
                    locate(first + m, h, row, token);
                    int at = kept(token);
                    if (first + m >= count || at < 0 || first_row + row >= int(rows)) continue;
                    float* to = p.y + (size_t(first_row + row) * p.keep + at) * p.outputs;
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int column = n * 16 + (e / 2) * 8 + 2 * q + e % 2;
                        if (column < int(p.outputs)) to[column] = c[m][e / 2][2 * h + e % 2];
                    }
                }
            }
        }
    }

    template <int N>
    __device__ __forceinline__ void write(
        Residual& x, const float* ends, int first, unsigned rows) {
        if (p.options & FINAL_NORM) {
            unsigned kind = __float_as_uint(ends[0]);
            normalise<N>(x, x, kind, ends[4], ends + 16);
        }
        if (p.options & WHOLE) head<N>(x, ends + 16 + 3 * D, first, rows);
        else store<N>(x, first, rows);
    }

    __device__ __forceinline__ bool reads_header() const {
        int kept = CLUSTER ? (time() - int(p.keep)) / (16 * MT) : 0;
        return first_row == 0 && rank == kept;
    }

    // Says that the outputs are written, once all blocks that write some have said so.
    // The header is read over the bus by the first block that writes, for all of them: reads of
    // one line are served one after another.
    __device__ __forceinline__ void finish(unsigned sequence) const {
        __syncthreads();
        if (threadIdx.x != 0) return;
        unsigned writers;
        if (CLUSTER) {
            unsigned blocks = (tiles() + MT - 1) / MT;
            writers = p.batch * (blocks - (time() - int(p.keep)) / (16 * MT));
        } else {
            writers = (p.batch + rows() - 1) / rows();
        }
        if (writers > 1) {
            unsigned before;
            if (reads_header()) p.counter[1] = sequence;
            asm volatile("fence.acq_rel.sys;" ::: "memory");
            asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                : "=r"(before) : "l"(p.counter) : "memory");
            if (before + 1 != writers) return;
            *p.counter = 0;
            sequence = p.counter[1];
        }
        asm volatile("st.release.sys.global.u32 [%0], %1;"
            :: "l"(p.flag), "r"(sequence) : "memory");
    }
};

// Bytes of shared memory are those of `shared_bytes` in step/encoder_small.rs.
template <class F, int D, int MT, bool CLUSTER, int DEPTH, bool PLAIN>
__device__ __forceinline__ void run(const Arguments& p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    using B = Block<F, D, MT, CLUSTER, DEPTH, PLAIN>;
    B b(p);
    MARKS
    MARK(0);
    b.warp = threadIdx.x >> 5, b.lane = threadIdx.x & 31, b.g = b.lane >> 2, b.q = b.lane & 3;
    b.parity = 0;
    const int blocks = CLUSTER ? (b.tiles() + MT - 1) / MT : 1;
    b.rank = CLUSTER ? blockIdx.x % blocks : 0;
    b.first_row = CLUSTER ? blockIdx.x / blocks : blockIdx.x * b.rows();
    const bool whole = p.options & WHOLE;
    const unsigned rows = whole ? p.batch : p.header->rows;
    unsigned sequence = 0;
    if (whole && threadIdx.x == 0 && b.reads_header()) sequence = p.header->sequence;
    const int w16 = b.w16(), i16 = b.i16(), tiles = b.tiles(), key_tiles = b.key_tiles();
    uint4* at = reinterpret_cast<uint4*>(shared + WARPS * DEPTH * B::KU * 512);
    b.input = at, at += MT * B::D16 * 32;
    const bool alias = PLAIN ? !CLUSTER : bool(p.options & ALIAS);
    b.inner = at, at += MT * max(max(w16, int(p.feature_tiles)), alias ? 0 : i16) * 32;
    b.statistics = reinterpret_cast<float2*>(at), at += MT * 16 * B::PITCH;
    b.moments = reinterpret_cast<float2*>(at), at += MT * 16;
    const int key_size = (CLUSTER ? 1 : b.rows()) * key_tiles * w16 * 64;
    b.keys = at, at += alias ? max(key_size, MT * i16 * 32) : (CLUSTER ? 2 : 1) * key_size;
    b.active = alias ? b.keys : b.inner;
    // Vectors: of what surrounds the layers, and of a layer and the next.
    const int layer_size = 16 + 10 * D + 48 * w16 + 32 * i16;
    const int ends_size = 16 + 3 * D + p.output_tiles * 16;
    float* ends = reinterpret_cast<float*>(at);
    float* vectors = ends + ends_size;
    const unsigned barrier = shared_address(vectors + 2 * layer_size);
    // Whether another run follows, where the launch lingers.
    unsigned* const following = reinterpret_cast<unsigned*>(vectors + 2 * layer_size) + 8;
    const unsigned launch = sequence;
    const unsigned long long begun = B::HELD && p.left ? nanoseconds() : 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 4; i++) barrier_init(barrier + 8 * i);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        // Over the bus first: one block's read takes as long as everything before its use.
        const unsigned window = whole && b.bulky() ? b.window_bytes() : 0;
        expect(barrier, window + (ends_size + layer_size) * 4);
        if (window > 0) bulk_copy(shared_address(b.keys), b.window(), window, barrier);
        bulk_copy(shared_address(ends), p.vectors, ends_size * 4, barrier);
        bulk_copy(shared_address(vectors), p.vectors + ends_size, layer_size * 4, barrier);
    }
    if constexpr (B::HELD) b.held.start(p.stream, p.groups, whole);
    else b.ring.start(p.stream, p.groups, shared);
    __syncthreads();
    MARK(1);

    bool again = false;  // not the first run of the launch
    unsigned flip = 0;   // of two barriers, whether an odd number of phases has passed before
    while (true) {
        typename B::Residual x;
        if (whole) {
            barrier_wait(barrier, flip & 1);
            b.embed(x, ends + 16 + 2 * D, !again && b.bulky());
        } else {
            b.load(x);
            barrier_wait(barrier, 0);
        }
        if (key_tiles != tiles) {
            // Keys and values that do not exist are hidden, but must be numbers.
            const int row = key_tiles * w16 * 64, there = tiles * w16 * 64;
            for (int at = 0; at < key_size * (CLUSTER ? 2 : 1); at += row)
                for (int i = there + threadIdx.x; i < row; i += WARPS * 32)
                    b.keys[at + i] = make_uint4(0, 0, 0, 0);
        }
        if (CLUSTER) cluster_arrive(); // from now on others may write here
        MARK(2);
        if (b.first_row < int(rows)) {
            // The only tile that has positions to write, if there is but one.
            const int first_kept = (b.time() - int(p.keep)) / 16;
            const bool one = MT > 1 && first_kept == tiles - 1
                && (CLUSTER || b.rows() == 1);
            const int first = CLUSTER ? first_kept - b.rank * MT : first_kept;
            const bool writes = !CLUSTER || first < MT;
            const int sublayers = 2 * p.layers;
            Layer layer{vectors, D, w16 * 16, i16 * 16};
            uint4* keys = b.keys;
            for (int l = 0; B::HELD && l < int(p.layers); l++) {
                layer.base = vectors + (l & 1) * layer_size;
                const unsigned phase = (l >> 1 ^ flip >> (l & 1)) & 1;
                if (l > 0) barrier_wait(barrier + (l & 1) * 8, phase);
                b.template make_input<1>(x, LAYER, layer.eps(0), layer.norm(0), 0);
                MARK(3);
                keys = b.keys + (l & 1) * key_size;
                const unsigned arrived = barrier + 16 + (l & 1) * 8;
                if (threadIdx.x == 0) {
                    expect(arrived, (tiles - 1) * w16 * 1024);
                    if (l + 1 < int(p.layers)) {
                        // All warps have passed the last layer, whose place this is.
                        unsigned next = (l + 1) & 1;
                        expect(barrier + next * 8, layer_size * 4);
                        bulk_copy(shared_address(vectors + next * layer_size),
                            p.vectors + ends_size + (l + 1) * layer_size, layer_size * 4,
                            barrier + next * 8);
                    }
                }
                b.queries_keys_values_held(layer, keys, arrived, l == 0);
                MARK(4);
                __syncthreads();
                barrier_wait(arrived, phase);
                MARK(5);
                if (l + 1 == int(p.layers)) cluster_arrive();
                if (l + 1 == int(p.layers) && !writes) break;
                b.template attention<1>(keys, 0);
                MARK(6);
                __syncthreads();
                b.template project_held<3, 1>(x, b.inner, layer.output());
                MARK(7);
                b.template make_input<1>(x, LAYER, layer.eps(2), layer.norm(2), 0);
                MARK(13);
                b.up_held(layer);
                MARK(14);
                __syncthreads();
                b.template project_held<2, 2>(x, b.active, layer.down());
                MARK(17);
            }
            for (int s = 0; !B::HELD && s < sublayers; s++) {
                const int feed = s & 1, norm = 2 * feed, l = s >> 1;
                if (!feed && l > 0) {
                    layer.base = vectors + (l & 1) * layer_size;
                    barrier_wait(barrier + (l & 1) * 8, l >> 1 & 1);
                }
                b.template make_input<MT>(
                    x, b.kind(layer, norm), layer.eps(norm), layer.norm(norm), 0);
                MARK(3 + 10 * feed);
                if (!feed && threadIdx.x == 0 && l + 1 < int(p.layers)) {
                    // All warps have passed the last layer, whose place this is.
                    unsigned next = (l + 1) & 1;
                    expect(barrier + next * 8, layer_size * 4);
                    bulk_copy(shared_address(vectors + next * layer_size),
                        p.vectors + ends_size + (l + 1) * layer_size, layer_size * 4,
                        barrier + next * 8);
                }
                if (feed) {
                    b.template up<MT>(layer, 0);
                    MARK(14);
                } else {
                    keys = b.keys + (CLUSTER && s & 2 ? key_size : 0);
                    const unsigned arrived = barrier + 16 + (l & 1) * 8;
                    if (CLUSTER && threadIdx.x == 0)
                        expect(arrived, (tiles - b.tile_count()) * w16 * 1024);
                    b.queries_keys_values(layer, keys, arrived, s == 0);
                    MARK(4);
                    __syncthreads();
                    // A block that sends keys of this layer has finished with those of the layer
                    // before the last: two places are enough.
                    if (CLUSTER) barrier_wait(arrived, l >> 1 & 1);
                    MARK(5);
                    if (CLUSTER && s + 2 == sublayers) cluster_arrive();
                    if (s + 2 == sublayers && (one || !writes)) break;
                    b.template attention<MT>(keys, 0);
                    MARK(6);
                }
                __syncthreads();
                const float* bias = feed ? layer.down() : layer.output();
                b.template project<MT>(
                    x, feed ? b.active : b.inner, feed ? i16 : w16, feed ? i16 : w16, bias, 0);
                b.template after<MT>(x, layer, norm + 1);
                MARK(7 + 10 * feed);
            }
            if (one && writes) {
                // Of the last layer, only that tile.
#pragma unroll
                for (int i = 0; i < B::NT; i++)
#pragma unroll
                    for (int m = 1; m < MT; m++)
#pragma unroll
                        for (int e = 0; e < 8; e++)
                            if (m == first) x[i][0][e / 4][e % 4] = x[i][m][e / 4][e % 4];
                for (int feed = 0; feed < 2; feed++) {
                    if (feed) {
                        b.template make_input<1>(
                            x, b.kind(layer, 2), layer.eps(2), layer.norm(2), first);
                        b.template up<1>(layer, first);
                    } else {
                        b.template attention<1>(keys, first);
                    }
                    __syncthreads();
                    const float* bias = feed ? layer.down() : layer.output();
                    b.template project<1>(x, feed ? b.active : b.inner, feed ? i16 : w16,
                        feed ? i16 : w16, bias, first);
                    b.template after<1>(x, layer, 2 * feed + 1);
                }
                b.template write<1>(x, ends, first, rows);
            } else if (writes) {
                b.template write<MT>(x, ends, 0, rows);
            }
            MARK(11);
            if (whole && writes) b.finish(sequence);
            MARK(12);
            if (CLUSTER) cluster_wait(); // nobody reads here any more
        }
        if constexpr (!B::HELD) {
            break;
        } else {
            if (!p.left) break;
            again = true;
            flip ^= (p.layers + 1) / 2 & 1 | (p.layers / 2 & 1) << 1;
            // What the next run begins with comes while it is waited for.
            b.held.start(p.stream, p.groups, true);
            if (threadIdx.x == 0) {
                expect(barrier, layer_size * 4);
                bulk_copy(shared_address(vectors), p.vectors + ends_size, layer_size * 4, barrier);
                if (b.reads_header()) {
                    sequence = next_run(p.header, p.left, launch, sequence, begun);
                    for (int rank = 0; rank < blocks; rank++)
                        tell(shared_address(following), sequence, rank);
                }
            }
            __syncwarp();
            cluster_arrive_release();
            cluster_wait();
            if (*following == 0) {
                barrier_wait(barrier, flip & 1);
                break;
            }
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

} // namespace encoder_small

#define ENCODER_SMALL_KERNEL(NAME, FORMAT, D, MT, CLUSTER, DEPTH, PLAIN) \
    extern "C" __global__ void __launch_bounds__(256, 1) \
        NAME(const __grid_constant__ encoder_small::Arguments p) { \
        encoder_small::run<encoder_small::FORMAT, D, MT, CLUSTER, DEPTH, PLAIN>(p); \
    }

#define ENCODER_SMALL(NAME, FORMAT) \
    ENCODER_SMALL_KERNEL(encoder_small_##NAME##_d64_t1c, FORMAT, 64, 1, true, 4, false) \
    ENCODER_SMALL_KERNEL(encoder_small_##NAME##_d64_t4, FORMAT, 64, 4, false, 4, false) \
    ENCODER_SMALL_KERNEL(encoder_small_##NAME##_d128_t1c, FORMAT, 128, 1, true, 4, false) \
    ENCODER_SMALL_KERNEL(encoder_small_##NAME##_d128_t4, FORMAT, 128, 4, false, 4, false) \
    ENCODER_SMALL_KERNEL(encoder_small_##NAME##_plain_t1c, FORMAT, 128, 1, true, 4, true) \
    ENCODER_SMALL_KERNEL(encoder_small_##NAME##_plain_t4, FORMAT, 128, 4, false, 4, true) \
    ENCODER_SMALL_KERNEL(encoder_small_##NAME##_plain_t2c, FORMAT, 128, 2, true, 3, true)
