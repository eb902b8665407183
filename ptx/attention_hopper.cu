// Softmax attention of 16-bit queries and keys of width 64 or 128 on Hopper's warpgroup products.
//
// The plain case of `attention.cu` (causality, a list of visible keys); the same sums in another
// order, so a GPU uses one of the two for a width. Queries are held in registers, keys and values
// come through a ring of tiles that one warpgroup fills for the others, across the borders of a
// block's units of work: the loads of the next unit pass under the end of the last.
//
// Ladder (H200, 2026-11-21; f16, 512 positions, 12 heads of 64; us for 1, 16 and 128 rows):
// - `attention.cu`, mma.sync: 12.0, 58, 425 (243 TFLOP/s);
// - a warpgroup of 64 queries: 7.4, 68, 507; ships (`g1`) where two would leave the GPU empty;
// - two warpgroups over the same keys: 9.6, 45.8, 339; the compiler had put the wait for values
//   before the softmax, and moving it behind changed nothing by itself;
// - the two taking turns at the tensor cores, maxima and sums in shorter chains: 8.9, 45.1, 327;
// - fewer instructions between units: 8.5, 43.8, 321 (321 TFLOP/s); ships (`g2`). Heads of 128:
//   46.4 for 16 rows of 8 heads (370 TFLOP/s). In the same kind of job cuDNN takes 9.0, 37.6 and
//   257, PyTorch's flash attention 11.5, 53 and 380. Tensor cores and exponentials are each busy a
//   third of the time; what is left is latency between dependent instructions of two warps a
//   scheduler, and a quarter of a unit before its first and after its last tile;
// - two warpgroups with the same queries, every other tile each, joined at the end: 7.0, 59, 459;
//   not worth bits of its own.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "attention.cuh"
#include "dependent.cuh"
#include "wgmma.cuh"

// Named: the compiler gives unnamed ones a new name in every build.
namespace attention {

constexpr int KEYS_TILE = 128;
constexpr int ROW = 128; // bytes of a row of a panel: 64 columns

// d += a · b for 64 rows of `a` in registers: [64, 16] by [16, N]. TRANSPOSED: b lies as [16, N],
// else as [N, 16].
template <typename T, int N, int TRANSPOSED> struct HeldProduct;

#define HELD_PRODUCT(TYPE, NAME, N, TRANSPOSED, PLACES, SUMS, A0, A1, A2, A3, B, ADD)              \
    template <> struct HeldProduct<TYPE, N, TRANSPOSED> {                                          \
        static __device__ __forceinline__ void run(                                                \
            float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int add               \
        ) {                                                                                        \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                          \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME           \
                         " {" PLACES "}, {" A0 "," A1 "," A2 "," A3 "}, " B                        \
                         ", p, 1, 1, " #TRANSPOSED ";\n}"                                          \
                         : SUMS                                                                    \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));          \
        }                                                                                          \
    };
#define HELD_PRODUCTS(TYPE, NAME)                                                                  \
    HELD_PRODUCT(TYPE, NAME, 64, 1, PLACES_32, SUMS_OF_64, "%32", "%33", "%34", "%35", "%36",      \
                 "%37")                                                                            \
    HELD_PRODUCT(TYPE, NAME, 128, 0, PLACES_64, SUMS_OF_128, "%64", "%65", "%66", "%67", "%68",    \
                 "%69")                                                                            \
    HELD_PRODUCT(TYPE, NAME, 128, 1, PLACES_64, SUMS_OF_128, "%64", "%65", "%66", "%67", "%68",    \
                 "%69")
HELD_PRODUCTS(__half, "f16")
HELD_PRODUCTS(__nv_bfloat16, "bf16")

// Descriptor of values as [16 keys, columns]: eight keys are 1024 bytes, the next 64 columns a
// panel further.
__device__ __forceinline__ unsigned long long value_operand(unsigned address) {
    return (static_cast<unsigned long long>((address & 0x3FFFF) >> 4)) |
           (static_cast<unsigned long long>(KEYS_TILE * ROW >> 4) << 16) | (64ull << 32) |
           (1ull << 62);
}

template <int WIDTH> struct Shared {
    static constexpr int PANELS = WIDTH / 64;
    static constexpr int STAGES = WIDTH == 64 ? 4 : 3;
    static constexpr int TILE = KEYS_TILE * ROW * PANELS; // of keys, or of values
};

// A place in the ring; slots alternate between keys and values.
template <int STAGES> struct Place {
    unsigned stage = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// A unit of work: so many queries of one head of one row.
struct Unit {
    int b, h, q0, last, tiles;
    __device__ __forceinline__ Unit(const FlashArguments& a, unsigned index, int queries) {
        const unsigned of = index / (unsigned)a.tiles, tile = index - of * a.tiles;
        b = of / (unsigned)a.heads;
        h = of - b * a.heads;
        q0 = tile * queries;
        last = min(q0 + queries, a.queries) - 1;
    }
};

template <int WIDTH, int GROUPS, typename T>
__device__ __forceinline__ void load_keys(const FlashArguments& a, unsigned ring, unsigned full,
                                          unsigned empty) {
    using S = Shared<WIDTH>;
    constexpr int CHUNKS = WIDTH / 8;
    constexpr int ROWS = 128 / 8; // rows at a time, eight lanes (a panel's row) each
    const int tid = threadIdx.x & 127, lane = tid & 31;
    const int units = a.batch * a.heads * a.tiles;
    Place<S::STAGES> at, ready;
    int ready_part = 0, pending = 0;
    // What was copied before the last so many copies is in place.
    auto announce = [&] {
        async_fence();
        __syncwarp();
        if (lane == 0) barrier_arrive(full + 8 * (ready.stage * 2 + ready_part));
        if (ready_part) ready.advance();
        ready_part ^= 1;
        pending--;
    };
    const int chunk = tid & 7, row0 = tid >> 3;
    for (int index = blockIdx.x; index < units; index += gridDim.x) {
        const Unit unit(a, index, 64 * GROUPS);
        const Visible see(a, unit.b);
        const int until = see.until(unit.last);
        const size_t offset = (size_t)unit.b * a.keys * a.kv_stride + unit.h * a.head;
        for (int n0 = 0; n0 < until; n0 += KEYS_TILE) {
            // Offsets of the rows that this thread copies, of keys and of values alike.
            long long from[KEYS_TILE / ROWS];
#pragma unroll
            for (int i = 0; i < KEYS_TILE / ROWS; i++) {
                const int n = n0 + i * ROWS + row0;
                from[i] = n < until ? (long long)see.row(n) * a.kv_stride : -1;
            }
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const T* x = reinterpret_cast<const T*>(part ? a.v : a.k) + offset;
                const unsigned slot = at.stage * 2 + part;
                barrier_wait(empty + 8 * slot, at.parity ^ 1);
#pragma unroll
                for (int panel = 0; panel < S::PANELS; panel++) {
                    const unsigned to = ring + slot * S::TILE + panel * KEYS_TILE * ROW;
                    const int column = panel * 64 + chunk * 8;
#pragma unroll
                    for (int i = 0; i < KEYS_TILE / ROWS; i++) {
                        const int r = i * ROWS + row0;
                        const bool valid = from[i] >= 0 && column < a.head;
                        const T* source = valid ? x + from[i] + column : x;
                        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                                         to + r * ROW + ((chunk ^ (r & 7)) << 4)),
                                     "l"(source), "r"(valid ? 16 : 0)
                                     : "memory");
                    }
                }
                asm volatile("cp.async.commit_group;" ::: "memory");
                if (++pending > 2) {
                    asm volatile("cp.async.wait_group 2;" ::: "memory");
                    announce();
                }
            }
            at.advance();
        }
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    while (pending) announce();
    (void)CHUNKS;
}

// A lane's part of 64 rows of queries as a product's first operand.
template <int WIDTH, typename T>
__device__ __forceinline__ void load_queries(unsigned (&q)[WIDTH / 16][4], const FlashArguments& a,
                                             const Unit& unit, int row) {
    const int t = threadIdx.x & 3, first = unit.q0 + row;
    const T* x = reinterpret_cast<const T*>(a.q) + (size_t)unit.b * a.q_batch + unit.h * a.head +
        (size_t)first * a.q_stride + t * 2;
    const T* below = x + (size_t)8 * a.q_stride;
    const bool here = first < a.queries, there = first + 8 < a.queries;
#pragma unroll
    for (int k = 0; k < WIDTH / 8; k++) {
        // Heads are multiples of eight columns.
        const bool inside = k * 8 < a.head;
        unsigned p = 0, q_below = 0;
        if (here && inside) p = *reinterpret_cast<const unsigned*>(x + k * 8);
        if (there && inside) q_below = *reinterpret_cast<const unsigned*>(below + k * 8);
        q[k / 2][k % 2 * 2] = p;
        q[k / 2][k % 2 * 2 + 1] = q_below;
    }
}

template <int WIDTH, int GROUPS, typename T>
__device__ __forceinline__ void attend(const FlashArguments& a, unsigned ring, unsigned full,
                                       unsigned empty, char* staging) {
    using S = Shared<WIDTH>;
    const int group = threadIdx.x >> 7, warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31;
    const int row = group * 64 + warp * 16 + lane / 4; // the lane's first, eight above its second
    const int units = a.batch * a.heads * a.tiles;
    Place<S::STAGES> keys, values;
    unsigned query[WIDTH / 16][4];
    if ((int)blockIdx.x < units) {
        load_queries<WIDTH, T>(query, a, Unit(a, blockIdx.x, 64 * GROUPS), row);
    }
    auto release = [&](unsigned slot) {
        if (lane == 0) barrier_arrive(empty + 8 * slot);
    };
    // Two groups take turns at the tensor cores, so that one's softmax passes while the other's
    // products are made; left alone they fall into step, and wait for one another's units.
    auto take_turn = [&] {
        if constexpr (GROUPS == 2) named_barrier(1 + group, 256);
    };
    auto give_turn = [&] {
        if constexpr (GROUPS == 2) {
            asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
        }
    };
    if (group == 1) give_turn();
    for (int index = blockIdx.x; index < units; index += gridDim.x) {
        const Unit unit(a, index, 64 * GROUPS);
        const Visible see(a, unit.b);
        const int block_until = see.until(unit.last);
        // Of the block, not of the warpgroup: products in flight across a branch that the compiler
        // takes for divergent are waited for.
        const int all_see = see.until(unit.q0);
        int until[2];
        until[0] = see.until(min(unit.q0 + row, unit.last));
        until[1] = see.until(min(unit.q0 + row + 8, unit.last));
        const int tiles = (block_until + KEYS_TILE - 1) / KEYS_TILE;
        float score[KEYS_TILE / 2], out[WIDTH / 2];
        float most[2] = {__int_as_float(0xff800000), __int_as_float(0xff800000)}, sum[2] = {};
        unsigned weight[KEYS_TILE / 16][4];
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) out[i] = 0.0f;

        auto multiply_keys = [&] {
            const unsigned tile = ring + keys.stage * 2 * S::TILE;
            barrier_wait(full + 8 * (keys.stage * 2), keys.parity);
            products_begin();
#pragma unroll
            for (int k = 0; k < WIDTH / 16; k++) {
                const unsigned panel = tile + k / 4 * KEYS_TILE * ROW;
                HeldProduct<T, KEYS_TILE, 0>::run(score, query[k], operand(panel) + k % 4 * 2,
                                                  k > 0);
            }
            products_commit();
        };
        auto multiply_values = [&] {
            const unsigned tile = ring + (values.stage * 2 + 1) * S::TILE;
            barrier_wait(full + 8 * (values.stage * 2 + 1), values.parity);
            products_begin();
#pragma unroll
            for (int k = 0; k < KEYS_TILE / 16; k++) {
                HeldProduct<T, WIDTH, 1>::run(out, weight[k], value_operand(tile) + k * 128, 1);
            }
            products_commit();
        };
        // Scores become weights; says by what earlier results are multiplied.
        auto soften = [&](int n0, float (&scaled)[2]) {
            if (n0 + KEYS_TILE > all_see) {
#pragma unroll
                for (int i = 0; i < KEYS_TILE / 2; i++) {
                    const int n = n0 + i / 4 * 8 + lane % 4 * 2 + (i & 1);
                    if (n >= until[i >> 1 & 1]) score[i] = __int_as_float(0xff800000);
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float chains[4]; // shorter than one
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    chains[i] = fmaxf(score[4 * i + 2 * r], score[4 * i + 2 * r + 1]);
                }
#pragma unroll
                for (int i = 4; i < KEYS_TILE / 8; i++) {
                    const float two = fmaxf(score[4 * i + 2 * r], score[4 * i + 2 * r + 1]);
                    chains[i % 4] = fmaxf(chains[i % 4], two);
                }
                float highest = fmaxf(fmaxf(chains[0], chains[1]), fmaxf(chains[2], chains[3]));
                highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
                const float now = fmaxf(most[r], __fmul_rn(highest, a.scale_log2));
                const float base = now == __int_as_float(0xff800000) ? 0.0f : now;
                scaled[r] = exp2_fast(most[r] - base); // 1 where nothing is new
                most[r] = now;
                float part[2] = {};
#pragma unroll
                for (int i = 0; i < KEYS_TILE / 8; i++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& x = score[4 * i + 2 * r + e];
                        x = exp2_fast(fmaf(x, a.scale_log2, -base));
                        part[e] += x;
                    }
                sum[r] = fmaf(sum[r], scaled[r], part[0] + part[1]);
            }
        };
        auto pack_weights = [&] {
#pragma unroll
            for (int k = 0; k < KEYS_TILE / 16; k++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    weight[k][e] = packed(score[8 * k + 2 * e], score[8 * k + 2 * e + 1], T());
                }
        };

        if (tiles > 0) {
            float scaled[2];
            take_turn();
            multiply_keys();
            give_turn();
            products_wait<0>();
            pin(score);
            release(keys.stage * 2);
            keys.advance();
            soften(0, scaled);
            pack_weights();
            for (int tile = 1; tile < tiles; tile++) {
                take_turn();
                multiply_keys();
                multiply_values();
                give_turn();
                products_wait<1>();
                pin(score);
                release(keys.stage * 2);
                keys.advance();
                soften(tile * KEYS_TILE, scaled);
                // Never so; but keeps the wait below behind the softmax, which passes while values
                // are multiplied.
                if (__any_sync(~0u, sum[0] + sum[1] < 0.0f)) continue;
                products_wait<0>();
                pin(out);
                release(values.stage * 2 + 1);
                values.advance();
#pragma unroll
                for (int i = 0; i < WIDTH / 2; i++) out[i] *= scaled[i >> 1 & 1];
                pack_weights();
            }
            multiply_values();
        }
        const int next = index + gridDim.x;
        if (next < units) load_queries<WIDTH, T>(query, a, Unit(a, next, 64 * GROUPS), row);
        products_wait<0>();
        pin(out);
        if (tiles > 0) {
            release(values.stage * 2 + 1);
            values.advance();
        }

        // By way of the warp's own place in shared memory into whole chunks.
        char* place = staging + (group * 4 + warp) * 16 * WIDTH * 2;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float all = sum[r] + __shfl_xor_sync(~0u, sum[r], 1);
            all += __shfl_xor_sync(~0u, all, 2);
            const float share = until[r] > 0 ? __fdividef(1.0f, all) : 0.0f;
            const int at = lane / 4 + r * 8;
#pragma unroll
            for (int c = 0; c < WIDTH / 8; c++) {
                const unsigned pair =
                    packed(out[4 * c + 2 * r] * share, out[4 * c + 2 * r + 1] * share, T());
                *reinterpret_cast<unsigned*>(place + at * WIDTH * 2 + ((c ^ (at & 7)) << 4) +
                                             lane % 4 * 4) = pair;
            }
        }
        __syncwarp();
        constexpr int CHUNKS = WIDTH / 8, ROWS = 32 / CHUNKS; // stored at a time
        const int r0 = lane / CHUNKS, c = lane % CHUNKS;
        const int first = unit.q0 + group * 64 + warp * 16 + r0;
        T* y = reinterpret_cast<T*>(a.y) + ((size_t)unit.b * a.queries + first) * a.y_stride +
            unit.h * a.head + c * 8;
        if (c * 8 < a.head) {
#pragma unroll
            for (int i = 0; i < 16 / ROWS; i++) {
                const int r = r0 + i * ROWS;
                const uint4 chunk =
                    *reinterpret_cast<uint4*>(place + r * WIDTH * 2 + ((c ^ (r & 7)) << 4));
                if (first + i * ROWS < a.queries) *reinterpret_cast<uint4*>(y) = chunk;
                y += (size_t)ROWS * a.y_stride;
            }
        }
        __syncwarp();
    }
}

// GROUPS warpgroups of 64 queries each, and one that loads.
template <int WIDTH, int GROUPS, typename T>
__device__ __forceinline__ void attention_wgmma(const FlashArguments& a) {
    using S = Shared<WIDTH>;
    constexpr int SLOTS = 2 * S::STAGES;
    extern __shared__ __align__(1024) char shared[];
    __shared__ unsigned long long barriers[2 * SLOTS];
    const unsigned ring = shared_address(shared);
    const unsigned full = shared_address(barriers), empty = full + 8 * SLOTS;
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) {
            barrier_init(full + 8 * i, 4);
            barrier_init(empty + 8 * i, 4 * GROUPS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    wait_for_earlier();
    if (threadIdx.x >= GROUPS * 128) {
        registers_shrink<56>();
        load_keys<WIDTH, GROUPS, T>(a, ring, full, empty);
    } else {
        registers_grow<224>();
        attend<WIDTH, GROUPS, T>(a, ring, full, empty, shared + SLOTS * S::TILE);
    }
}

} // namespace attention
using namespace attention;

#define ATTENTION_WGMMA(W, G, NAME, T)                                                             \
    extern "C" __global__ void __launch_bounds__(128 * G + 128, 1)                                 \
        attention_wgmma_##NAME##_w##W##_g##G(const __grid_constant__ FlashArguments a) {           \
        attention_wgmma<W, G, T>(a);                                                               \
    }
ATTENTION_WGMMA(64, 1, f16, __half)
ATTENTION_WGMMA(64, 2, f16, __half)
ATTENTION_WGMMA(128, 1, f16, __half)
ATTENTION_WGMMA(128, 2, f16, __half)
ATTENTION_WGMMA(64, 1, bf16, __nv_bfloat16)
ATTENTION_WGMMA(64, 2, bf16, __nv_bfloat16)
ATTENTION_WGMMA(128, 1, bf16, __nv_bfloat16)
ATTENTION_WGMMA(128, 2, bf16, __nv_bfloat16)
