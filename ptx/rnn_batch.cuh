// LSTM and GRU stacks over many rows on Hopper: all steps of all layers in one launch. Not for few
// rows (`rnn_latency.cuh`), nor for other cells (`rnn_stack.cu`). A GRU is an LSTM to the products:
// reset, update, and the candidate's two parts, each with zeros for half of its weights.
//
// The recurrence as a flow of tiles. A task is (lane, step, 64 rows, slice of units), a lane being
// a direction of a layer: gates[64, N] = [x_t | h_{t-1}] · [W_ih | W_hh]^T by wgmma, then the cell
// in registers (columns are ordered so that a thread's fragment holds all gates of its units), then
// h_t in the layout in which the next product reads it. A task waits until every slice of
// (lane, step - 1, rows) and (lane below, step, rows) is done: counters in device memory, no
// barrier among blocks, so layers overlap as a wavefront and no step waits for the slowest block.
// All blocks are resident (cooperative launch), which the waiting needs.
// A block has two consumer warpgroups, each with tasks of its own, so one's products overlap the
// other's cells, and producer warps that bring operands by bulk copies. Weights that fit stay in
// shared memory (a block keeps to one slice of one lane); others stream, shared by both warpgroups.
//
// Ladder: f16, microseconds on an H200, 2026-11-21, inputs as f32 and outputs on the device, with
// the conversion of inputs (176, 460, 25, 25, 225 of them); names and batches of the workloads.
//                                             lstm_a  lstm_b  128     256     lstm_c
//                                             16384   8192    4096    4096    2048
// 1 this design                               1,847   7,211   2,061
// 2 announcements by a warp of their own      1,663   6,549   1,894   4,478   24,023
// 3 cells without a branch a unit, so that
//   their chains overlap (7,800 to 2,800
//   cycles a task)                            1,092   4,918   1,135   3,128   21,501
// 4 products in straight lines; in a loop the
//   compiler drains the tensor cores at each
//   stage                                     1,008   3,947   1,146   2,746   21,684
// 5 warpgroups multiply in turns where
//   products are short                          943   3,947   1,015   2,746   21,684
// cuDNN 9.19 with CUDA graphs                21,668  12,630   3,403   8,916   35,341
// 5 ships. Bounds of a task: products K·N·64 / 2048 cycles, special functions 5·64·(N/4) / 16, A
// from L2 at about 25 bytes a cycle a multiprocessor. In sum, in microseconds at 1.755 GHz:
//   lstm_a   products 320, special functions 230, bytes of the conversion 120
//   lstm_b   products 1,980 on the 120 multiprocessors that 15 slices use, A from L2 1,900,
//            conversion 290; the gap is that products (K 464) and L2 are equally short
//   128      products 300; one task a warpgroup and step, so 200 steps of about 8,300 cycles of
//            latency: awaiting, copying, products, cells, announcing
//   256      products 1,250, then as above
//   lstm_c   products 12,400 at the data sheet's rate (15,600 at what big products reach); weights
//            and rows through L2 141 GB, which it passes at 6.7 TB/s: that is the bound. Pairs of
//            blocks that share weights by multicast would halve most of it: not tried.
// Other formats, same order: bf16 958, 4,173, 1,058, 2,828, 20,037; tf32 1,551, 6,505, 1,845,
// 4,038, 35,096; f32 (three tf32 products) 3,289, 16,093, 2,811, 9,308, 97,457. Errors against f64
// at the end of a window: f16 6e-5, bf16 5e-4, tf32 6e-5, f32 6e-7. GRUs were not timed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "rnn_batch_mma.cuh"
#include "run.cuh"

typedef unsigned long long Address;

enum {
    ROWS = 64,          // of a tile
    STRIP = ROWS * 16,  // bytes of a strip of a tile
    CHUNK = 8,          // strips of a stage
    STAGE = CHUNK * STRIP,
    LANES = 8,
    SIGNALS = 2, // tasks of a warpgroup that may be done and not yet announced
    THREADS = 384,
};

// A strip is 16 bytes of every row: 8 columns of halves, or 4 of f32. `Split` keeps 16 columns of
// f32 as four strips of numbers rounded to tf32 and four of what that left, for three products that
// together are as good as f32's. Sequences are [slot][tile][strip][64 rows][16 bytes].
struct Lane {
    Address w;        // [slice][strip][N][16 bytes]
    Address bias;     // [slice][N] f32
    Address in[2];    // sequences below: one, or one a direction
    Address h;        // own sequence; step i is in slot (i + 1) % h_depth, the initial h in slot 0
    Address c;        // [tile][slice][N / 16][128 threads][2] f32
    Address y;        // of this direction: [batch, y_steps, y_width] f32, or 0
    Address end_h[2]; // [batch] rows of `state_stride` f32, in two places; or 0
    Address end_c[2];
    unsigned in_strips[2]; // even; 0 for none
    unsigned in_depth[2];
    unsigned in_first[2];   // slot of step 0
    unsigned in_reverse[2]; // whether its steps run from the end
    int in_lane[2];         // lane of this launch that writes it, or -1
    unsigned h_strips, h_depth;
    int reader;       // lane of this launch that reads h and must not be overrun, or -1
    unsigned reverse; // whether steps run from the end
    unsigned steps;
    unsigned offset;  // wave of step 0
    unsigned initial; // whether slot 0 of h, and c, hold an initial state; else zeros
    unsigned reserved;
};

struct BatchArguments {
    Lane lanes[LANES];
    Address done; // [lanes][tiles] u32: slices done of all steps; zero before the launch
    unsigned lane_count, slices;
    unsigned blocks; // of a slice of a lane where weights stay; 0 where they stream
    unsigned tiles;  // even where weights stream
    unsigned batch, time, hidden;
    unsigned y_steps, y_width, state_stride;
    unsigned stages_a, stages_b; // stages_b: strips of the weights where they stay
    unsigned ordered; // whether the warpgroups of a block multiply in turns
    unsigned gru;     // a GRU, whose f32 h is in `c`; else an LSTM
};

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void barrier_init(unsigned barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
        "r"(bytes)
        : "memory");
}
__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
__device__ __forceinline__ bool barrier_test(unsigned barrier, unsigned parity) {
    unsigned passed;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(passed)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return passed;
}
__device__ __forceinline__ void copy_bulk(
    unsigned to, Address from, unsigned bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}
// Until so many slices are done; what they wrote may then be read by bulk copies.
__device__ __forceinline__ void await(const unsigned* counter, unsigned count) {
    unsigned found;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
    } while (found < count);
    asm volatile("fence.proxy.async;" ::: "memory");
}
__device__ __forceinline__ float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
struct Split;

__device__ __forceinline__ unsigned pack(float a, float b, __half) {
    __half2 v = __floats2half2_rn(a, b);
    return *(unsigned*)&v;
}
__device__ __forceinline__ unsigned pack(float a, float b, __nv_bfloat16) {
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(unsigned*)&v;
}
__device__ __forceinline__ float round_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return __uint_as_float(y);
}

// How a format keeps numbers: columns of two strips, and where column `k` of a row lies.
template <class T> struct Format {
    typedef T Product;
    enum { COLUMNS = 16, EXACT = 0 };
    // Two neighbouring columns, the first even.
    static __device__ __forceinline__ void put(char* row, unsigned k, float a, float b) {
        *(unsigned*)(row + k / 8 * STRIP + k % 8 * 2) = pack(a, b, T());
    }
    static __device__ __forceinline__ void put(char* row, unsigned k, float a) {
        unsigned both = pack(a, 0.0f, T());
        *(unsigned short*)(row + k / 8 * STRIP + k % 8 * 2) = (unsigned short)both;
    }
    // Eight columns from `k`, a multiple of 8.
    static __device__ __forceinline__ void put(char* row, unsigned k, const float (&v)[8]) {
        *(uint4*)(row + k / 8 * STRIP) = make_uint4(pack(v[0], v[1], T()), pack(v[2], v[3], T()),
            pack(v[4], v[5], T()), pack(v[6], v[7], T()));
    }
};
template <> struct Format<Tf32> {
    typedef Tf32 Product;
    enum { COLUMNS = 8, EXACT = 0 };
    static __device__ __forceinline__ void put(char* row, unsigned k, float a, float b) {
        *(float2*)(row + k / 4 * STRIP + k % 4 * 4) = make_float2(round_tf32(a), round_tf32(b));
    }
    static __device__ __forceinline__ void put(char* row, unsigned k, float a) {
        *(float*)(row + k / 4 * STRIP + k % 4 * 4) = round_tf32(a);
    }
    static __device__ __forceinline__ void put(char* row, unsigned k, const float (&v)[8]) {
        for (unsigned i = 0; i < 8; i += 4)
            *(float4*)(row + (k + i) / 4 * STRIP) = make_float4(round_tf32(v[i]),
                round_tf32(v[i + 1]), round_tf32(v[i + 2]), round_tf32(v[i + 3]));
    }
};
template <> struct Format<Split> {
    typedef Tf32 Product;
    enum { COLUMNS = 4, EXACT = 1 };
    static __device__ __forceinline__ char* at(char* row, unsigned k) {
        return row + (k / 16 * 8 + k % 16 / 4) * STRIP + k % 4 * 4;
    }
    static __device__ __forceinline__ void put(char* row, unsigned k, float a, float b) {
        float2 high = make_float2(round_tf32(a), round_tf32(b));
        *(float2*)at(row, k) = high;
        *(float2*)(at(row, k) + 4 * STRIP) =
            make_float2(round_tf32(a - high.x), round_tf32(b - high.y));
    }
    static __device__ __forceinline__ void put(char* row, unsigned k, float a) {
        float high = round_tf32(a);
        *(float*)at(row, k) = high;
        *(float*)(at(row, k) + 4 * STRIP) = round_tf32(a - high);
    }
    static __device__ __forceinline__ void put(char* row, unsigned k, const float (&v)[8]) {
        for (unsigned i = 0; i < 8; i += 2) put(row, k + i, v[i], v[i + 1]);
    }
};

// tanh and the sigmoid of twice the argument, to about 1e-7 where products are.
template <bool EXACT> __device__ __forceinline__ float tanh_of(float x) {
    return EXACT ? 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x)) : tanh_fast(x);
}
template <bool EXACT> __device__ __forceinline__ float sigmoid_of_twice(float x) {
    return EXACT ? __fdividef(1.0f, 1.0f + __expf(-2.0f * x)) : fmaf(tanh_fast(x), 0.5f, 0.5f);
}

// The tasks of a warpgroup in order; the same for everyone who serves it.
struct Walk {
    unsigned lane, slice, tile, step;
    unsigned first, wave_task; // first tile of the block; running number where weights stream
    __device__ __forceinline__ bool begin(const BatchArguments& p, unsigned group) {
        if (p.blocks) {
            unsigned g = blockIdx.x / p.blocks;
            lane = g / p.slices, slice = g % p.slices, step = 0;
            first = tile = blockIdx.x % p.blocks * 2 + group;
            return lane < p.lane_count && tile < p.tiles;
        }
        wave_task = blockIdx.x, first = group;
        return find(p);
    }
    __device__ __forceinline__ bool next(const BatchArguments& p) {
        if (p.blocks) {
            tile += 2 * p.blocks;
            if (tile >= p.tiles) tile = first, step++;
            return step < p.lanes[lane].steps;
        }
        wave_task += gridDim.x;
        return find(p);
    }
    __device__ __forceinline__ bool find(const BatchArguments& p) {
        const unsigned pairs = p.tiles / 2, of_lane = pairs * p.slices;
        const unsigned of_wave = of_lane * p.lane_count;
        for (;; wave_task += gridDim.x) {
            unsigned wave = wave_task / of_wave, rest = wave_task % of_wave;
            if (wave >= p.time + p.lane_count) return false;
            lane = rest / of_lane, rest %= of_lane;
            slice = rest / pairs, tile = rest % pairs * 2 + first;
            step = wave - p.lanes[lane].offset;
            if (wave >= p.lanes[lane].offset && step < p.lanes[lane].steps) return true;
        }
    }
    // Segments of K: inputs, then the own h unless it is zero.
    __device__ __forceinline__ unsigned strips(const BatchArguments& p, unsigned segment) const {
        const Lane& l = p.lanes[lane];
        if (segment < 2) return l.in_strips[segment];
        return step || l.initial ? l.h_strips : 0;
    }
};

struct Ring {
    unsigned stage, parity;
    __device__ __forceinline__ void advance(unsigned stages) {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

// Brings the A operand of one warpgroup's tasks.
__device__ __forceinline__ void bring_rows(
    const BatchArguments& p, unsigned group, unsigned ring_at, unsigned full, unsigned empty) {
    const unsigned* done = (const unsigned*)p.done;
    Ring ring{0, 1};
    Walk walk;
    for (bool any = walk.begin(p, group); any; any = walk.next(p)) {
        const Lane& l = p.lanes[walk.lane];
        const unsigned step = walk.step, tile = walk.tile;
        const unsigned t = l.reverse ? p.time - 1 - step : step;
        if (l.reader >= 0 && step >= l.h_depth)
            await(done + l.reader * p.tiles + tile, p.slices * (step - l.h_depth + 1));
        for (unsigned s = 0; s < 3; s++) {
            const unsigned strips = walk.strips(p, s);
            if (!strips) continue;
            Address from;
            if (s < 2) {
                if (l.in_lane[s] >= 0)
                    await(done + l.in_lane[s] * p.tiles + tile, p.slices * (t + 1));
                unsigned slot = (l.in_reverse[s] ? p.time - 1 - t : t) + l.in_first[s];
                from = l.in[s] + ((size_t)(slot % l.in_depth[s]) * p.tiles + tile) * strips * STRIP;
            } else {
                if (step) await(done + walk.lane * p.tiles + tile, p.slices * step);
                from = l.h + ((size_t)(step % l.h_depth) * p.tiles + tile) * strips * STRIP;
            }
            for (unsigned o = 0; o < strips; o += CHUNK) {
                unsigned bytes = min(strips - o, (unsigned)CHUNK) * STRIP;
                barrier_wait(empty + 8 * ring.stage, ring.parity);
                barrier_expect(full + 8 * ring.stage, bytes);
                copy_bulk(ring_at + ring.stage * STAGE, from + o * STRIP, bytes,
                    full + 8 * ring.stage);
                ring.advance(p.stages_a);
            }
        }
    }
}

// Brings weights: all of the block's slice once, or the tasks' as they are needed.
template <int N>
__device__ __forceinline__ void bring_weights(
    const BatchArguments& p, unsigned ring_at, unsigned full, unsigned empty) {
    Walk walk;
    bool any = walk.begin(p, 0);
    if (p.blocks) {
        if (!any) return;
        const unsigned strips = p.stages_b;
        const Lane& l = p.lanes[walk.lane];
        const unsigned own = l.in_strips[0] + l.in_strips[1] + l.h_strips;
        barrier_expect(full, own * N * 16);
        for (unsigned o = 0; o < own && o < strips; o += CHUNK) {
            unsigned bytes = min(own - o, (unsigned)CHUNK) * N * 16;
            copy_bulk(ring_at + o * N * 16, l.w + ((size_t)walk.slice * own + o) * N * 16, bytes,
                full);
        }
        return;
    }
    Ring ring{0, 1};
    for (; any; any = walk.next(p)) {
        const Lane& l = p.lanes[walk.lane];
        const unsigned own = l.in_strips[0] + l.in_strips[1] + l.h_strips;
        Address from = l.w + (size_t)walk.slice * own * N * 16;
        for (unsigned s = 0; s < 3; s++) {
            const unsigned strips = walk.strips(p, s);
            for (unsigned o = 0; o < strips; o += CHUNK) {
                unsigned bytes = min(strips - o, (unsigned)CHUNK) * N * 16;
                barrier_wait(empty + 8 * ring.stage, ring.parity);
                barrier_expect(full + 8 * ring.stage, bytes);
                copy_bulk(ring_at + ring.stage * CHUNK * N * 16, from, bytes,
                    full + 8 * ring.stage);
                from += bytes;
                ring.advance(p.stages_b);
            }
        }
    }
}

// The cell of a task's fragment: new c in place, h to its sequence and into `acc[8 g + 2 r]`.
// Without branches, so that the units' chains of dependent operations overlap.
template <class T, int N, bool GRU>
__device__ __forceinline__ void cells(const BatchArguments& p, const Walk& walk, unsigned thread,
    float (&acc)[N / 2], float2 (&c)[N / 16]) {
    constexpr unsigned GROUPS = N / 16, UNITS = N / 4;
    const Lane& l = p.lanes[walk.lane];
    const unsigned quad = thread % 4, row = thread / 32 * 16 + thread % 32 / 4;
    const float* bias = (const float*)l.bias + walk.slice * N + 2 * quad;
    char* out = (char*)l.h +
        ((size_t)((walk.step + 1) % l.h_depth) * p.tiles + walk.tile) * l.h_strips * STRIP +
        row * 16;
    const unsigned padded = l.h_strips / 2 * Format<T>::COLUMNS;
    constexpr bool EXACT = Format<T>::EXACT;
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++) {
        const float2 b0 = __ldg((const float2*)(bias + g * 16));
        const float2 b1 = __ldg((const float2*)(bias + g * 16 + 8));
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float& state = r ? c[g].y : c[g].x;
            // Sigmoids' columns of the weights and biases are halved already.
            if (GRU) {
                float reset = sigmoid_of_twice<EXACT>(acc[8 * g + 2 * r] + b0.x);
                float update = sigmoid_of_twice<EXACT>(acc[8 * g + 2 * r + 1] + b0.y);
                float below = acc[8 * g + 4 + 2 * r] + b1.x, own = acc[8 * g + 5 + 2 * r] + b1.y;
                float candidate = tanh_of<EXACT>(fmaf(reset, own, below));
                state = fmaf(update, state - candidate, candidate);
                acc[8 * g + 2 * r] = state;
                continue;
            }
            float i = sigmoid_of_twice<EXACT>(acc[8 * g + 2 * r] + b0.x);
            float f = sigmoid_of_twice<EXACT>(acc[8 * g + 2 * r + 1] + b0.y);
            float z = tanh_of<EXACT>(acc[8 * g + 4 + 2 * r] + b1.x);
            float o = sigmoid_of_twice<EXACT>(acc[8 * g + 5 + 2 * r] + b1.y);
            state = fmaf(f, state, i * z);
            acc[8 * g + 2 * r] = o * tanh_of<EXACT>(state);
        }
    }
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g += 2) {
        const bool paired = g + 1 < GROUPS;
        const unsigned unit = walk.slice * UNITS + (paired ? g * 4 + 2 * quad : g * 4 + quad);
        if (unit >= padded) continue;
        // The second row of a thread is 8 below the first.
        if (paired) {
            Format<T>::put(out, unit, acc[8 * g], acc[8 * g + 8]);
            Format<T>::put(out + 128, unit, acc[8 * g + 2], acc[8 * g + 10]);
        } else {
            Format<T>::put(out, unit, acc[8 * g]);
            Format<T>::put(out + 128, unit, acc[8 * g + 2]);
        }
    }
}

// What few steps give: outputs, and the states after the last step.
template <int N>
__device__ __forceinline__ void keep_outputs(const BatchArguments& p, const Walk& walk,
    unsigned thread, const float (&acc)[N / 2], const float2 (&c)[N / 16]) {
    const Lane& l = p.lanes[walk.lane];
    const bool last = walk.step + 1 == l.steps;
    const int position = (int)(l.reverse ? p.time - 1 - walk.step : walk.step) -
        (int)(p.time - p.y_steps);
    const bool kept = l.y && position >= 0;
    if (!kept && !last) return;
    const unsigned quad = thread % 4, row = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (unsigned g = 0; g < N / 16; g++) {
        const bool paired = (g | 1) < N / 16;
        const unsigned unit =
            walk.slice * (N / 4) + (paired ? g / 2 * 8 + 2 * quad + g % 2 : g * 4 + quad);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const unsigned b = walk.tile * ROWS + row + 8 * r;
            if (unit >= p.hidden || b >= p.batch) continue;
            const float h = acc[8 * g + 2 * r];
            if (kept) ((float*)l.y)[((size_t)b * p.y_steps + position) * p.y_width + unit] = h;
            const size_t at = (size_t)b * p.state_stride + unit;
            for (int place = 0; place < 2; place++) {
                if (last && l.end_h[place]) ((float*)l.end_h[place])[at] = h;
                if (last && l.end_c[place]) ((float*)l.end_c[place])[at] = r ? c[g].y : c[g].x;
            }
        }
    }
}

// Adds so many products of two strips, and waits for those before them.
template <class T, int N, int PRODUCTS>
__device__ __forceinline__ void multiply(float (&acc)[N / 2], Address a, Address b, int keep) {
    typedef WarpgroupProduct<typename Format<T>::Product, N> Product;
    constexpr int A_STEP = 2 * STRIP >> 4, B_STEP = 2 * N;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    if (Format<T>::EXACT) {
        // The largest last.
#pragma unroll
        for (int k = 0; k < 2; k++) {
            Product::add(acc, a + (k + 2) * A_STEP, b + k * B_STEP, k ? 1 : keep);
            Product::add(acc, a + k * A_STEP, b + (k + 2) * B_STEP, 1);
        }
#pragma unroll
        for (int k = 0; k < 2; k++) Product::add(acc, a + k * A_STEP, b + k * B_STEP, 1);
    } else {
#pragma unroll
        for (int k = 0; k < PRODUCTS; k++)
            Product::add(acc, a + k * A_STEP, b + k * B_STEP, k ? 1 : keep);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}

template <class T, int N>
__device__ __forceinline__ void consume(const BatchArguments& p, unsigned group, unsigned a_at,
    unsigned b_at, unsigned full_a, unsigned empty_a, unsigned full_b, unsigned empty_b,
    unsigned said_at, unsigned heard) {
    constexpr unsigned GROUPS = N / 16;
    const unsigned thread = threadIdx.x % 128;
    const Address a_form = (Address)(STRIP >> 4) << 16 | (Address)(128 >> 4) << 32;
    const Address b_form = (Address)(N * 16 >> 4) << 16 | (Address)(128 >> 4) << 32;
    Ring ring{0, 0}, ring_b{0, 0}, said{0, 0};
    Walk walk;
    bool any = walk.begin(p, group);
    if (any && p.blocks) barrier_wait(full_b, 0);
    const bool started = any;
    if (p.ordered && any && group == 1) asm volatile("bar.arrive 1, 256;" ::: "memory");
    float acc[N / 2];
    float2 c[GROUPS];
    for (; any; any = walk.next(p)) {
        const Lane& l = p.lanes[walk.lane];
        float2* c_at = (float2*)l.c +
            ((size_t)walk.tile * p.slices + walk.slice) * GROUPS * 128 + thread;
        const bool fresh = walk.step == 0 && !l.initial;
        int keep = 0;
        bool loaded = false;
        if (p.ordered) asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
        unsigned release = ~0u, release_b = ~0u, strip = 0;
        for (unsigned s = 0; s < 3; s++) {
            const unsigned strips = walk.strips(p, s);
            for (unsigned o = 0; o < strips; o += CHUNK) {
                const unsigned products = min(strips - o, (unsigned)CHUNK) / 2;
                unsigned b_chunk = b_at + strip * N * 16;
                if (!p.blocks) {
                    barrier_wait(full_b + 8 * ring_b.stage, ring_b.parity);
                    b_chunk = b_at + ring_b.stage * CHUNK * N * 16;
                }
                barrier_wait(full_a + 8 * ring.stage, ring.parity);
                // Where weights stream, another block wrote c: it is there once the own h is.
                if (!loaded && (fresh || p.blocks || s == 2)) {
                    loaded = true;
#pragma unroll
                    for (unsigned g = 0; g < GROUPS; g++)
                        c[g] = fresh ? make_float2(0.0f, 0.0f) : __ldcg(c_at + g * 128);
                }
                Address a = a_form | (a_at + ring.stage * STAGE) >> 4;
                Address b = b_form | b_chunk >> 4;
                // Straight lines, so that the compiler sees which product ends a group.
                if (Format<T>::EXACT || products == 4) multiply<T, N, 4>(acc, a, b, keep);
                else if (products == 3) multiply<T, N, 3>(acc, a, b, keep);
                else if (products == 2) multiply<T, N, 2>(acc, a, b, keep);
                else multiply<T, N, 1>(acc, a, b, keep);
                keep = 1;
                if (release != ~0u && thread % 32 == 0) {
                    barrier_arrive(empty_a + 8 * release);
                    if (!p.blocks) barrier_arrive(empty_b + 8 * release_b);
                }
                release = ring.stage, release_b = ring_b.stage;
                ring.advance(p.stages_a);
                if (!p.blocks) ring_b.advance(p.stages_b);
                strip += CHUNK;
            }
            strip = s == 0 ? l.in_strips[0] : l.in_strips[0] + l.in_strips[1];
        }
        if (p.ordered) asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (thread % 32 == 0) {
            barrier_arrive(empty_a + 8 * release);
            if (!p.blocks) barrier_arrive(empty_b + 8 * release_b);
        }
        if (p.gru) cells<T, N, true>(p, walk, thread, acc, c);
        else cells<T, N, false>(p, walk, thread, acc, c);
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) __stcg(c_at + g * 128, c[g]);
        // Waiting in one lane alone would make the compiler serialize the products.
        barrier_wait(heard + 8 * said.stage, said.parity ^ 1);
        __syncwarp();
        if (thread % 32 == 0) barrier_arrive(said_at + 8 * said.stage);
        said.advance(SIGNALS);
        keep_outputs<N>(p, walk, thread, acc, c);
    }
    if (p.ordered && started && group == 0) asm volatile("bar.sync 1, 256;" ::: "memory");
}

// Tells everyone of tasks that are done, for both warpgroups: the fence takes about a microsecond,
// which would otherwise be the warpgroup's.
__device__ __forceinline__ void announce(const BatchArguments& p, unsigned said, unsigned heard) {
    Walk walk[2];
    Ring ring[2] = {{0, 0}, {0, 0}};
    bool any[2];
    for (int g = 0; g < 2; g++) any[g] = walk[g].begin(p, g);
    while (any[0] || any[1]) {
#pragma unroll
        for (int g = 0; g < 2; g++) {
            const unsigned at = 8 * (g * SIGNALS + ring[g].stage);
            if (!any[g] || !barrier_test(said + at, ring[g].parity)) continue;
            barrier_arrive(heard + at);
            unsigned* done = (unsigned*)p.done + walk[g].lane * p.tiles + walk[g].tile;
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(done) : "memory");
            ring[g].advance(SIGNALS);
            any[g] = walk[g].next(p);
        }
    }
}

template <class T, int N> __device__ __forceinline__ void batch(const BatchArguments& p) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ __align__(8) unsigned long long barriers[64];
    const unsigned b_at = shared_address(shared);
    const unsigned a_at = b_at + p.stages_b * (p.blocks ? N * 16 : CHUNK * N * 16);
    const unsigned at = shared_address(barriers);
    const unsigned full_b = at, empty_b = at + 64, full_a = at + 128, empty_a = at + 256;
    const unsigned said = at + 384, heard = at + 416;
    if (threadIdx.x == 0) {
        for (unsigned i = 0; i < 8; i++) barrier_init(full_b + 8 * i, 1);
        for (unsigned i = 0; i < 8; i++) barrier_init(empty_b + 8 * i, 8);
        for (unsigned i = 0; i < 16; i++) barrier_init(full_a + 8 * i, 1);
        for (unsigned i = 0; i < 16; i++) barrier_init(empty_a + 8 * i, 4);
        for (unsigned i = 0; i < 2 * SIGNALS; i++) barrier_init(said + 8 * i, 4);
        for (unsigned i = 0; i < 2 * SIGNALS; i++) barrier_init(heard + 8 * i, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    // From lane 0, so that the compiler knows it to be the same in a warp.
    const unsigned group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const unsigned warp = threadIdx.x % 128 / 32;
        if (threadIdx.x % 32 == 0) {
            if (warp < 2)
                bring_rows(p, warp, a_at + warp * p.stages_a * STAGE, full_a + 64 * warp,
                    empty_a + 64 * warp);
            else if (warp == 2)
                bring_weights<N>(p, b_at, full_b, empty_b);
            else
                announce(p, said, heard);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<T, N>(p, group, a_at + group * p.stages_a * STAGE, b_at, full_a + 64 * group,
            empty_a + 64 * group, full_b, empty_b, said + 8 * SIGNALS * group,
            heard + 8 * SIGNALS * group);
    }
}

#define BATCH(NAME, T, N)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) batch_##NAME##_##N(                   \
        const __grid_constant__ BatchArguments p) {                                                \
        batch<T, N>(p);                                                                            \
    }
#define BATCHES(NAME, T)                                                                           \
    BATCH(NAME, T, 64)                                                                             \
    BATCH(NAME, T, 112)                                                                            \
    BATCH(NAME, T, 128)                                                                            \
    BATCH(NAME, T, 160)                                                                            \
    BATCH(NAME, T, 208)                                                                            \
    BATCH(NAME, T, 256)

// Inputs on their way to the tiles' layout, and zeros.
struct PrepareArguments {
    Address x;     // [batch, time, width] f32
    Address tiled; // [time, tiles, strips, 64, 16 bytes]
    unsigned batch, time, width, strips, tiles, reserved;
};

template <class T> __device__ __forceinline__ void tile_rows(const PrepareArguments& p) {
    const unsigned row = threadIdx.x % ROWS;
    const unsigned tile = blockIdx.x % p.tiles, t = blockIdx.x / p.tiles;
    const unsigned b = tile * ROWS + row;
    const float* from = (const float*)p.x + ((size_t)b * p.time + t) * p.width;
    char* to = (char*)p.tiled + (size_t)blockIdx.x * p.strips * STRIP + row * 16;
    const unsigned columns = p.strips / 2 * Format<T>::COLUMNS;
    for (unsigned k = threadIdx.x / ROWS * 8; k < columns; k += blockDim.x / ROWS * 8) {
        float v[8];
        if (b < p.batch && k + 8 <= p.width && p.width % 4 == 0) {
            *(float4*)v = __ldg((const float4*)(from + k));
            *(float4*)(v + 4) = __ldg((const float4*)(from + k + 4));
        } else if (b < p.batch && k + 8 <= p.width && p.width % 2 == 0) {
#pragma unroll
            for (int i = 0; i < 8; i += 2)
                *(float2*)(v + i) = __ldg((const float2*)(from + k + i));
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = b < p.batch && k + i < p.width ? from[k + i] : 0.0f;
        }
        Format<T>::put(to, k, v);
    }
}

#define TILE(NAME, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(256) batch_tile_##NAME(                           \
        const __grid_constant__ PrepareArguments p) {                                              \
        tile_rows<T>(p);                                                                           \
    }

// Initial states on their way to the tiles' layouts.
struct StatesArguments {
    Address from_h, from_c; // of this lane: [batch or slots] rows of `stride` f32
    Address header;         // of the run, where `slots` is set
    Address h;              // slot 0 of the lane's sequence
    Address c;
    unsigned batch, hidden, tiles, slices, groups, strips;
    unsigned stride, slots, row, reserved;
};

// A thread has a row and a unit; units that pad a slice are zero.
template <class T> __device__ __forceinline__ void tile_states(const StatesArguments& p) {
    const unsigned units = p.slices * p.groups * 4;
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = at % ROWS, unit = at / ROWS % units, tile = at / ROWS / units;
    if (tile >= p.tiles) return;
    const unsigned b = tile * ROWS + row;
    float h = 0.0f, c = 0.0f;
    const RunHeader* header = (const RunHeader*)p.header;
    // Rows that are not in use have no slot.
    if (b < p.batch && unit < p.hidden && (!p.slots || p.row + b < header->rows)) {
        const size_t from = (size_t)(p.slots ? header->slots[p.row + b] : b) * p.stride + unit;
        h = ((const float*)p.from_h)[from], c = ((const float*)p.from_c)[from];
    }
    if (unit < p.strips / 2 * Format<T>::COLUMNS)
        Format<T>::put((char*)p.h + (size_t)tile * p.strips * STRIP + row * 16, unit, h);
    const unsigned of_slice = unit % (p.groups * 4), slice = unit / (p.groups * 4);
    const bool paired = of_slice / 8 * 2 + 1 < p.groups;
    const unsigned g = paired ? of_slice / 8 * 2 + of_slice % 2 : p.groups - 1;
    const unsigned quad = paired ? of_slice % 8 / 2 : of_slice % 4;
    const unsigned thread = row / 16 * 32 + row % 8 * 4 + quad;
    const size_t to = (((size_t)tile * p.slices + slice) * p.groups + g) * 128 + thread;
    ((float*)p.c)[to * 2 + row % 16 / 8] = c;
}

#define STATES(NAME, T)                                                                            \
    extern "C" __global__ void __launch_bounds__(256) batch_states_##NAME(                         \
        const __grid_constant__ StatesArguments p) {                                               \
        tile_states<T>(p);                                                                         \
    }

// Zeros: counters, and columns of h that no unit writes.
struct ZeroArguments {
    Address to;
    Address words; // of 16 bytes
};
__device__ __forceinline__ void write_zeros(const ZeroArguments& p) {
    for (Address i = (Address)blockIdx.x * blockDim.x + threadIdx.x; i < p.words;
         i += (Address)gridDim.x * blockDim.x)
        ((uint4*)p.to)[i] = make_uint4(0, 0, 0, 0);
}

#define ZERO                                                                                       \
    extern "C" __global__ void batch_zero(const __grid_constant__ ZeroArguments p) {               \
        write_zeros(p);                                                                            \
    }
