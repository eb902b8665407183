// Wide recurrent stacks for few rows on the whole of a Hopper GPU: all steps of as many layers as
// it holds, in one launch. Device code of `rnn_wide_hopper.cu`. Not for what a cluster holds
// (`rnn_latency.cuh`), nor for sLSTM, projected cells, or weights that exceed the GPU.
//
// A lane is a direction of a layer. It has as many blocks as its units need, each of which keeps
// its slice of W_hh: part in registers, the rest in shared memory. Lanes run beside one another,
// each some steps behind the one below. A block is
// - eight warps that share K of the recurrent product: a warp waits for its part of h of the step
//   before, multiplies it with all rows of the block, and leaves sums in shared memory;
// - of those, a warp for each row of the batch that adds the eight sums, computes the cells and
//   sends h to all blocks of the lane and of the lane above: through the level-2 cache, values
//   beside sequence numbers, so that data says itself whether it is there;
// - four warps that multiply W_ih with h of the lane below, eight columns (rows times steps) at a
//   time, ahead of the others. W_ih streams from level 2, once for every eight columns.
// Further blocks bring the input, which may be in host memory, and multiply the head.
//
// Blocks wait for one another, so all must be resident: the launch is cooperative. Within a pass
// (eight rows) nothing is written twice, so nobody waits for room but in shared memory.
// The order of every sum is fixed by K alone: a row's bits depend on no other row.
#pragma once
#include "rnn_latency.cuh"

constexpr int WIDE_LANES = 8;

// A direction of a layer, on `slices` blocks of which each has G groups of eight units.
struct WideLane {
    unsigned long long w_ih, affine_ih; // packed tiles [slices * G, k_steps, 2, 32] of 16 bytes;
    unsigned long long w_hh, affine_hh; // [slices * G * 8] of {scale[4], bias[4]}
    unsigned long long source[2];       // [steps, columns, words] beside sequence numbers, or 0
    unsigned long long hidden;          // own h, likewise
    unsigned long long last;            // the last h [columns, units] in f32 likewise, or 0
    unsigned steps;   // of this lane
    unsigned reverse; // whether its first step is the last in time
    unsigned k_steps; // of w_ih, a multiple of STAGE_STEPS
    unsigned words;   // 32-bit words of a column of each source, even
    unsigned row;     // of the states: layer and direction
    unsigned side;    // direction
    unsigned top;     // whether its h is the output
    unsigned reserved;
};

struct RnnWide {
    unsigned long long header;
    unsigned long long x;      // f32 [batch, steps, features]
    unsigned long long staged; // x as [steps, columns, words] beside sequence numbers
    unsigned long long y;      // f32 [batch, kept, directions * hidden] or 0
    unsigned long long h0, c0; // initial states [batch or slots, state_rows, hidden] or 0
    unsigned long long h1, c1; // final states [batch, state_rows, hidden] or 0
    unsigned long long h2, c2; // the same again (new states of slots) or 0
    unsigned long long head_weights, head_bias; // f32 [outputs, directions * hidden], [outputs]
    unsigned long long out;                     // f32 [batch, outputs]
    unsigned long long flag;                    // becomes the header's sequence number, or 0
    unsigned long long last;                    // [directions, columns, units], or 0
    unsigned long long epoch;                   // u32 {passes begun, blocks done}
    unsigned long long clocks;                  // measurements, or 0
    unsigned batch, steps, features, hidden;
    unsigned groups;  // of eight units
    unsigned columns; // rows of the batch of this pass, at most 8
    unsigned first_row, cell;
    unsigned kept, directions, state_rows, start;
    unsigned outputs;
    unsigned lanes, slices;
    unsigned extras; // blocks beyond the lanes'
    unsigned stages; // whether they bring the input: the first launch of a pass
    unsigned words;  // of a column of the staged input
    unsigned ends;   // whether this launch ends its pass
    unsigned stage_slots; // of a ring of W_ih
    WideLane lane[WIDE_LANES];
};

constexpr int WARPS = 8;        // that multiply W_hh
constexpr int INPUT_WARPS = 4;  // that multiply W_ih
constexpr int WIDE_THREADS = (WARPS + INPUT_WARPS) * 32;
constexpr int CHUNK_SLOTS = 3;  // chunks of input sums in shared memory
constexpr int CHUNK_BYTES = 8 * 32 * 16;
constexpr int STAGE_STEPS = 4;  // k-steps of a bulk copy of W_ih
constexpr int STAGE_BYTES = STAGE_STEPS * 1024;
constexpr int STAGE_SLOTS_MAX = 4; // a warp
constexpr unsigned HEAD_KEPT = 16384; // weights of the head that are read ahead

#ifdef RNN_WIDE_CLOCKS
#define WIDE_CLOCK(at) \
    if (threadIdx.x % 32 == 0) { \
        long long now; \
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); \
        ((long long*)p.clocks)[blockIdx.x * 16 + (at)] = now; \
    }
#define WIDE_STAMP(at) \
    if (threadIdx.x == 0 && s >= 48 && s < 52) { \
        long long now; \
        asm volatile("mov.u64 %0, %%clock64;" : "=l"(now) :: "memory"); \
        ((long long*)p.clocks)[gridDim.x * 16 + blockIdx.x * 32 + (s - 48) * 8 + (at)] = now; \
    }
#else
#define WIDE_CLOCK(at)
#define WIDE_STAMP(at)
#endif

// ---- memory --------------------------------------------------------------------------------

// Two words, each beside its sequence number.
__device__ __forceinline__ uint4 load_words(const unsigned long long* at) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
    return v;
}
__device__ __forceinline__ uint4 load_shared(const uint4* at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(shared_address(at)));
    return v;
}
__device__ __forceinline__ void wide_barrier_init(unsigned barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void wide_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
__device__ __forceinline__ void wide_wait(unsigned barrier, unsigned parity) {
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" :: "r"(barrier), "r"(parity) : "memory");
}
// What is read again and again stays in the level-2 cache, what is read once does not.
__device__ __forceinline__ unsigned long long stays() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ unsigned long long passes_by() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ uint4 load_once(const uint4* at, unsigned long long policy) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at), "l"(policy));
    return v;
}
__device__ __forceinline__ void copy_once(unsigned to, const void* from,
                                          unsigned long long policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(from), "l"(policy) : "memory");
}
__device__ __forceinline__ void wide_copy(unsigned to, const void* from, unsigned bytes,
                                          unsigned barrier, unsigned long long policy) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(barrier), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
}
template <int ID> __device__ __forceinline__ void join(unsigned threads) {
    asm volatile("bar.sync %0, %1;" :: "n"(ID), "r"(threads) : "memory");
}
__device__ __forceinline__ void join(unsigned id, unsigned threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass_by(unsigned id, unsigned threads) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// Shared memory of a block of a lane, in bytes from its beginning.
template <int G, int KW, int R> struct WideLayout {
    static constexpr int TILES = 2 * G;
    static constexpr int KEPT = TILES * KW - R; // fragments of a warp in shared memory
    // Fragment f is tile f % TILES of k-step f / TILES. Of every second k-step they are in shared
    // memory, until there are KEPT, so that its loads go beside products from registers.
    static constexpr __host__ __device__ int in_shared(int f) {
        const int at = f / TILES / 2 * TILES + f % TILES;
        return f / TILES % 2 == 0 && at < KEPT ? at : -1;
    }
    static constexpr __host__ __device__ int in_registers(int f) {
        const int even = f / TILES % 2 == 0 ? f % TILES : 0;
        const int before = (f / TILES + 1) / 2 * TILES + even;
        return f - (before < KEPT ? before : KEPT);
    }
    // Of them, k-steps' loads that go ahead of products: as many as there are registers for.
    static constexpr int EARLY = R <= 32 ? TILES : R <= 36 && TILES == 8 ? 4 : 0;
    static constexpr int AFFINE = 256; // after barriers: chunks full and empty, stages brought
    static constexpr int CHUNKS = AFFINE + 2 * 32 * 16;
    static constexpr int FRAGMENTS = CHUNKS + CHUNK_SLOTS * CHUNK_BYTES;
    static constexpr int PARTIAL = FRAGMENTS + WARPS * KEPT * 512;
    // [2][WARPS][columns][32] float4 of partial sums; then stages, [INPUT_WARPS][stage_slots]; then
    // the columns of the inputs.
    static __device__ unsigned stages(unsigned columns) {
        return PARTIAL + 2 * WARPS * columns * 512;
    }
};

// ---- recurrence ----------------------------------------------------------------------------

// Warp w of eight multiplies k-steps w * KW to (w + 1) * KW - 1 of all units of the block; a warp a
// column adds the eight sums, in order, and computes the cells.
// Lane 4 g + i of sums and cells is unit g of group i.
template <class N, int G, int KW, int R, bool ONE>
__device__ __forceinline__ void wide_recurrence(const RnnWide& p, const WideLane& role,
                                                unsigned slice, char* shared, unsigned sequence) {
    using L = WideLayout<G, KW, R>;
    constexpr int TILES = L::TILES, KEPT = L::KEPT;
    constexpr int WORD_UNITS = 4 / N::BYTES;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const unsigned columns = ONE ? 1 : p.columns, steps = role.steps;
    const unsigned words = p.groups * 8 / WORD_UNITS;
    const unsigned first = slice * G;

    uint4 a[R];
    const unsigned long long once = passes_by();
    const uint4* const packed =
        (const uint4*)role.w_hh + (first * (WARPS * KW) + warp * KW) * 64ull + lane;
    uint4* const kept = (uint4*)(shared + L::FRAGMENTS) + warp * KEPT * 32 + lane;
    auto place = [&](int f) {
        return packed + (f % TILES / 2 * (WARPS * KW) + f / TILES) * 64 + f % 2 * 32;
    };
#pragma unroll
    for (int f = 0; f < TILES * KW; ++f) {
        if (L::in_shared(f) >= 0)
            copy_once(shared_address(kept + L::in_shared(f) * 32), place(f), once);
        else a[L::in_registers(f) % R] = load_once(place(f), once);
    }

    // The cells of this warp.
    const bool cells = warp < columns;
    const unsigned unit = (first + q) * 8 + g, row = p.first_row + warp;
    const bool own = cells && q < G;
    float state = 0.0f, value = 0.0f;
    const bool real = own && unit < p.hidden && row < p.batch;
    float4* const affine = (float4*)(shared + L::AFFINE) + lane;
    if (warp == 0) {
        const float4* const from = (const float4*)role.affine_hh;
        affine[0] = q < G ? from[unit * 2] : make_float4(1, 1, 1, 1);
        affine[32] = q < G ? from[unit * 2 + 1] : make_float4(0, 0, 0, 0);
    }
    const unsigned slot_row =
        p.start == SLOTS && row < p.batch ? ((const RunHeader*)p.header)->slots[row] : row;
    if (p.start != ZERO && real)
        state = ((const float*)(p.cell == LSTM ? p.c0 : p.h0))[
            (slot_row * (unsigned long long)p.state_rows + role.row) * p.hidden + unit];

    // h of a step is [columns, words].
    const unsigned long long step_words = columns * (unsigned long long)words;
    const long long to_next = role.reverse ? -(long long)step_words : (long long)step_words;
    unsigned long long* const begin =
        (unsigned long long*)role.hidden + (role.reverse ? (p.steps - 1) * step_words : 0);
    const unsigned from_word = warp * KW * 8;
    const unsigned long long* before = begin; // of the step before
    unsigned long long* mine = begin + warp * words + unit / WORD_UNITS; // of this step
    const bool sends = own && unit < p.groups * 8 && (WORD_UNITS == 1 || g % 2 == 0);
    float4* const partial = (float4*)(shared + L::PARTIAL);
    const unsigned full = shared_address(shared), empty = full + 8 * CHUNK_SLOTS;
    const unsigned per_chunk = 8 / columns;
    unsigned slot = 0, parity = 0, in_chunk = 0;
    for (unsigned i = threadIdx.x; i < 2 * WARPS * columns * 32; i += WARPS * 32)
        partial[i] = make_float4(0, 0, 0, 0);
    copies_done();
    join<4>(WARPS * 32);
    WIDE_CLOCK(2)
    // A warp without h to wait for would run ahead, and has nothing to add.
    const unsigned warps = max((words + KW * 8 - 1) / (KW * 8), columns);
    if (warp >= warps) return;

    // h before step 0.
    auto initial = [&](unsigned column, unsigned word) {
        unsigned v = 0;
        const unsigned at = p.first_row + column, k = word * WORD_UNITS;
        if (column < columns && at < p.batch) {
            const unsigned s =
                p.start == SLOTS ? ((const RunHeader*)p.header)->slots[at] : at;
            const float* h = (const float*)p.h0 +
                (s * (unsigned long long)p.state_rows + role.row) * p.hidden;
            const float low = k < p.hidden ? h[k] : 0.0f;
            if constexpr (WORD_UNITS == 1) v = N::one(low);
            else v = N::pair(low, k + 1 < p.hidden ? h[k + 1] : 0.0f);
        }
        return v;
    };
    for (unsigned s = 0; s < steps; ++s) {
        WIDE_STAMP(0)
        float4 x = make_float4(0, 0, 0, 0);
        float d[TILES][4];
#pragma unroll
        for (int i = 0; i < TILES * 4; ++i) d[i / 4][i % 4] = 0.0f;
        const bool product = s > 0 || p.start != ZERO;
        constexpr int EARLY = L::EARLY;
        uint4 early[EARLY + 1];
        auto load_early = [&](int k_step) __attribute__((always_inline)) {
#pragma unroll
            for (int t = 0; t < EARLY; ++t) {
                const int at = L::in_shared(k_step * TILES + t);
                if (k_step < KW && at >= 0) early[t] = load_shared(kept + at * 32);
            }
        };
        auto fragment = [&](int f) __attribute__((always_inline)) {
            const int at = L::in_shared(f);
            if (at < 0) return a[L::in_registers(f) % R];
            return f % TILES < EARLY ? early[f % TILES] : kept[at * 32];
        };
        if constexpr (ONE) {
            constexpr int POLLS = KW / 8;
            uint4 v[POLLS];
#pragma unroll
            for (int r = 0; r < POLLS; ++r) {
                const unsigned word = from_word + r * 64 + 2 * lane;
                v[r] = make_uint4(0, sequence, 0, sequence);
                if (s == 0) {
                    if (product) v[r].x = initial(0, word), v[r].z = initial(0, word + 1);
                } else if (word < words) {
                    v[r].y = sequence + 1;
                }
            }
            auto late = [&]() __attribute__((always_inline)) {
#pragma unroll
                for (int r = 0; r < POLLS; ++r)
                    if (v[r].y != sequence || v[r].w != sequence)
                        v[r] = load_words(before + from_word + r * 64 + 2 * lane);
                bool any = false;
#pragma unroll
                for (int r = 0; r < POLLS; ++r) any |= v[r].y != sequence || v[r].w != sequence;
                return __any_sync(~0u, any);
            };
            // Not before the cells have read their sums.
            if (cells) load_early(0);
            bool again = late();
            if (!cells) load_early(0);
            while (again) {
                again = late();
            }
            WIDE_STAMP(1)
            if (product) {
#pragma unroll
                for (int j = 0; j < KW; ++j) {
                    const unsigned from = j % 8 / 2 * 8 + 2 * q + j % 2;
                    const unsigned b0 = __shfl_sync(~0u, v[j / 8].x, from);
                    const unsigned b1 = __shfl_sync(~0u, v[j / 8].z, from);
#pragma unroll
                    for (int t = 0; t < TILES; ++t) {
                        N::multiply(d[t], fragment(j * TILES + t), b0, b1);
                    }
                    if (j % 2 == 0) load_early(j + 2);
                }
            }
            // All columns are the same; lane q takes group q.
            float4 sum;
            auto pick = [&](int tile, int at) {
                float r = d[tile][at];
#pragma unroll
                for (int i = 1; i < G; ++i) r = q == i ? d[(2 * i + tile) % TILES][at] : r;
                return r;
            };
            sum.x = pick(0, 0), sum.y = pick(0, 2), sum.z = pick(1, 0), sum.w = pick(1, 2);
            partial[(s % 2 * WARPS + warp) * 32 + lane] = sum;
        } else {
            load_early(0);
#pragma unroll
            for (int j = 0; j < KW; j += 4) {
                uint4 v[4];
                const unsigned word = from_word + j * 8 + q * 4;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const unsigned at = word + i / 2 * 16 + i % 2 * 2;
                    v[i] = make_uint4(0, sequence, 0, sequence);
                    if (s == 0) {
                        if (product) v[i].x = initial(g, at), v[i].z = initial(g, at + 1);
                    } else if (g < columns && at < words) {
                        v[i].y = sequence + 1;
                    }
                }
                while (true) {
                    bool late = false;
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (v[i].y != sequence || v[i].w != sequence)
                            v[i] = load_words(before + g * words + word + i / 2 * 16 + i % 2 * 2);
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        late |= v[i].y != sequence || v[i].w != sequence;
                    if (!__any_sync(~0u, late)) break;
                }
                if (product) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
#pragma unroll
                        for (int t = 0; t < TILES; ++t) {
                            const int f = (j + i) * TILES + t;
                            N::multiply(d[t], fragment(f), v[i].x, v[i].z);
                        }
                        if (i % 2 == 0) load_early(j + i + 2);
                    }
                }
            }
            // Columns 2q and 2q + 1 are this thread's.
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                if (2 * q + c >= columns) continue;
                float4* const to =
                    partial + ((s % 2 * WARPS + warp) * columns + 2 * q + c) * 32 + 4 * g;
#pragma unroll
                for (int i = 0; i < G; ++i)
                    to[i] = make_float4(d[2 * i][c], d[2 * i][2 + c], d[2 * i + 1][c],
                                        d[2 * i + 1][2 + c]);
            }
        }
        if (s > 0) before += to_next;
        WIDE_STAMP(2)
        // Barriers in turns: who arrives for step s + 1 has h of step s from some block, which
        // needed h of step s - 1 from all, so this block's barrier of s - 1 is over, that of s not.
        const unsigned id = 1 + s % 2;
        if (!cells) {
            pass_by(id, warps * 32);
            continue;
        }
        if (in_chunk == 0) wide_wait(full + 8 * slot, parity);
#ifdef RNN_WIDE_CLOCKS
        if (s == 0) WIDE_CLOCK(3)
#endif
        x = ((const float4*)(shared + L::CHUNKS + slot * CHUNK_BYTES))[
            (in_chunk * columns + warp) * 32 + lane];
        join(id, warps * 32);
        WIDE_STAMP(3)
        float4 sums[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; ++w)
            sums[w] = partial[((s % 2 * WARPS + w) * columns + warp) * 32 + lane];
#pragma unroll
        for (int w = 1; w < WARPS; w *= 2) {
#pragma unroll
            for (int i = 0; i + w < WARPS; i += 2 * w) {
                sums[i].x += sums[i + w].x, sums[i].y += sums[i + w].y;
                sums[i].z += sums[i + w].z, sums[i].w += sums[i + w].w;
            }
        }
        const float4 scale = affine[0], bias = affine[32];
        const float4 h = make_float4(
            fmaf(sums[0].x, scale.x, bias.x), fmaf(sums[0].y, scale.y, bias.y),
            fmaf(sums[0].z, scale.z, bias.z), fmaf(sums[0].w, scale.w, bias.w));
        value = step_of<N::FAST>(p.cell, x, h, state);
        unsigned word;
        if constexpr (WORD_UNITS == 2) word = N::pair(value, __shfl_down_sync(~0u, value, 4));
        else word = N::one(value);
        store_now_if(sends, mine, word, sequence);
        WIDE_STAMP(4)
        mine += to_next;
        if (++in_chunk == per_chunk || s + 1 == steps) {
            __syncwarp();
            if (lane == 0) wide_arrive(empty + 8 * slot);
            in_chunk = 0;
            if (++slot == CHUNK_SLOTS) slot = 0, parity ^= 1;
        }
        const unsigned t = role.reverse ? p.steps - 1 - s : s;
        if (role.top && p.y && real && t + p.kept >= p.steps)
            ((float*)p.y)[((row * (unsigned long long)p.kept + t + p.kept - p.steps) *
                           p.directions + role.side) * p.hidden + unit] = value;
    }
    WIDE_CLOCK(4)
    if (own && role.last && unit < p.groups * 8)
        store_now((unsigned long long*)role.last + warp * (p.groups * 8ull) + unit,
                  __float_as_uint(value), sequence);
    if (real) {
        const unsigned long long at =
            (row * (unsigned long long)p.state_rows + role.row) * p.hidden + unit;
        if (p.h1) ((float*)p.h1)[at] = value;
        if (p.h2) ((float*)p.h2)[at] = value;
        if (p.c1) ((float*)p.c1)[at] = state;
        if (p.c2) ((float*)p.c2)[at] = state;
    }
}

// ---- inputs --------------------------------------------------------------------------------

// A warp a group: sums of eight columns (rows times steps) at a time into shared memory, W_ih
// through a ring of stages of its own.
template <class N, int G, int KW, int R>
__device__ __forceinline__ void wide_inputs(const RnnWide& p, const WideLane& role, unsigned slice,
                                            char* shared, unsigned sequence) {
    using L = WideLayout<G, KW, R>;
    const unsigned thread = threadIdx.x - WARPS * 32;
    const unsigned warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
    const unsigned columns = p.columns, per_chunk = 8 / columns, k_steps = role.k_steps;
    const unsigned stride = column_stride(k_steps), steps = role.steps;
    const unsigned slots = p.stage_slots;
    char* const stages = shared + L::stages(columns) + warp * slots * STAGE_BYTES;
    char* const b_shared = shared + L::stages(columns) + INPUT_WARPS * slots * STAGE_BYTES;
    const unsigned full = shared_address(shared), empty = full + 8 * CHUNK_SLOTS;
    const unsigned brought = full + 16 * CHUNK_SLOTS + warp * 8 * STAGE_SLOTS_MAX;
    const unsigned per_pass = k_steps / STAGE_STEPS;
    const unsigned chunks = (steps + per_chunk - 1) / per_chunk;
    const unsigned all = chunks * per_pass;
    const bool multiplies = warp < G;
    const unsigned long long policy = stays();
    const char* const packed =
        (const char*)role.w_ih + (slice * G + warp) * (unsigned long long)k_steps * 1024;
    unsigned asked = 0, ask_at = 0; // stages asked for, and where in the weights the next is
    auto ask = [&](unsigned at) __attribute__((always_inline)) {
        if (asked < all && multiplies) {
            if (lane == 0)
                wide_copy(shared_address(stages + at * STAGE_BYTES),
                          packed + ask_at * (unsigned long long)STAGE_BYTES, STAGE_BYTES,
                          brought + 8 * at, policy);
            ++asked;
            if (++ask_at == per_pass) ask_at = 0;
        }
    };
    for (unsigned i = 0; i < slots; ++i) ask(i);
    for (unsigned i = thread; i < 8 * stride / 4; i += INPUT_WARPS * 32)
        ((unsigned*)b_shared)[i] = 0;
    float4 scale = make_float4(1, 1, 1, 1), bias = make_float4(0, 0, 0, 0);
    if (multiplies) {
        const float4* affine = (const float4*)role.affine_ih + ((slice * G + warp) * 8 + g) * 2;
        scale = affine[0], bias = affine[1];
    }
    const unsigned words = role.words, pairs = words / 2;
    const unsigned sources = role.source[1] ? 2 : 1;
    unsigned stage = 0, stage_parity = 0, slot = 0, parity = 1;
    join<3>(INPUT_WARPS * 32);
    for (unsigned chunk = 0; chunk < chunks; ++chunk) {
        const unsigned s = chunk * per_chunk, count = min(per_chunk, steps - s);
        // Columns of the source, as they come.
        for (unsigned i = 0; i < count; ++i) {
            const unsigned t = role.reverse ? p.steps - 1 - s - i : s + i;
            for (unsigned c = 0; c < columns; ++c) {
                for (unsigned from = 0; from < sources; ++from) {
                    const unsigned long long* const source =
                        (const unsigned long long*)role.source[from] +
                        (t * (unsigned long long)columns + c) * words;
                    unsigned* const to =
                        (unsigned*)(b_shared + (i * columns + c) * stride) + from * words;
                    for (unsigned k = thread; k < pairs; k += 2 * INPUT_WARPS * 32) {
                        const unsigned k1 = k + INPUT_WARPS * 32;
                        const bool two = k1 < pairs;
                        uint4 v0, v1 = make_uint4(0, sequence, 0, sequence);
                        do {
                            v0 = load_words(source + 2 * k);
                            if (two) v1 = load_words(source + 2 * k1);
                        } while (v0.y != sequence || v0.w != sequence || v1.y != sequence ||
                                 v1.w != sequence);
                        *(uint2*)(to + 2 * k) = make_uint2(v0.x, v0.z);
                        if (two) *(uint2*)(to + 2 * k1) = make_uint2(v1.x, v1.z);
                    }
                }
            }
        }
        join<3>(INPUT_WARPS * 32);
#ifdef RNN_WIDE_CLOCKS
        if (chunk == 0) WIDE_CLOCK(5)
        if (chunk == 5) WIDE_CLOCK(7)
#endif
        if (multiplies) {
            float d[2][2][4];
#pragma unroll
            for (int i = 0; i < 16; ++i) d[i / 8][i / 4 % 2][i % 4] = 0.0f;
            const char* b = b_shared + g * stride + q * 16;
            for (unsigned k = 0; k < per_pass; ++k, b += STAGE_STEPS * 32) {
                wide_wait(brought + 8 * stage, stage_parity);
                const char* const w = stages + stage * STAGE_BYTES + lane * 16;
#pragma unroll
                for (int j = 0; j < STAGE_STEPS; j += 2) {
                    const uint4 v = *(const uint4*)(b + j * 32);
                    N::multiply(d[0][0], *(const uint4*)(w + j * 1024), v.x, v.y);
                    N::multiply(d[0][1], *(const uint4*)(w + j * 1024 + 512), v.x, v.y);
                    N::multiply(d[1][0], *(const uint4*)(w + j * 1024 + 1024), v.z, v.w);
                    N::multiply(d[1][1], *(const uint4*)(w + j * 1024 + 1536), v.z, v.w);
                }
                __syncwarp();
                ask(stage);
                if (++stage == slots) stage = 0, stage_parity ^= 1;
            }
#ifdef RNN_WIDE_CLOCKS
            if (chunk == 0) WIDE_CLOCK(6)
            if (chunk == 5) WIDE_CLOCK(8)
#endif
            wide_wait(empty + 8 * slot, parity);
            float4* const to = (float4*)(shared + L::CHUNKS + slot * CHUNK_BYTES) + 4 * g + warp;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                auto sum = [&](int tile, int at) { return d[0][tile][at] + d[1][tile][at]; };
                to[(2 * q + j) * 32] = make_float4(
                    fmaf(sum(0, j), scale.x, bias.x), fmaf(sum(0, 2 + j), scale.y, bias.y),
                    fmaf(sum(1, j), scale.z, bias.z), fmaf(sum(1, 2 + j), scale.w, bias.w));
            }
            __syncwarp();
            if (lane == 0) wide_arrive(full + 8 * slot);
            if (++slot == CHUNK_SLOTS) slot = 0, parity ^= 1;
        }
        join<3>(INPUT_WARPS * 32);
    }
}

// ---- ends ----------------------------------------------------------------------------------

// The f32 input [batch, steps, features] as words of the columns beside sequence numbers.
template <class N>
__device__ __forceinline__ void wide_stage(const RnnWide& p, unsigned block, unsigned sequence) {
    constexpr int WORD_UNITS = 4 / N::BYTES;
    const unsigned per_step = p.columns * p.words;
    const unsigned long long total = (unsigned long long)p.steps * per_step;
    const unsigned long long stride = (unsigned long long)p.extras * blockDim.x;
    const float* const x = (const float*)p.x;
    // Host memory is read sector by sector, and nothing keeps what two loads share.
    const bool pairs = p.features % 2 == 0 && p.x % 8 == 0;
    for (unsigned long long i = (unsigned long long)block * blockDim.x + threadIdx.x; i < total;
         i += 4 * stride) {
        float v[4][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const unsigned long long at = i + j * stride;
            v[j][0] = v[j][1] = 0.0f;
            if (at >= total) continue;
            const unsigned word = at % p.words, column = at / p.words % p.columns;
            const unsigned step = at / per_step;
            const unsigned row = min(p.first_row + column, p.batch - 1);
            const unsigned k = word * WORD_UNITS;
            const float* from = x + (row * (unsigned long long)p.steps + step) * p.features + k;
            if (WORD_UNITS == 2 && pairs && k < p.features) {
                const float2 both = *(const float2*)from;
                v[j][0] = both.x, v[j][1] = both.y;
            } else {
                if (k < p.features) v[j][0] = from[0];
                if (WORD_UNITS == 2 && k + 1 < p.features) v[j][1] = from[1];
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const unsigned long long at = i + j * stride;
            if (at >= total) continue;
            unsigned word;
            if constexpr (WORD_UNITS == 2) word = N::pair(v[j][0], v[j][1]);
            else word = N::one(v[j][0]);
            store_now((unsigned long long*)p.staged + at, word, sequence);
        }
    }
}

__device__ __forceinline__ void wide_head(const RnnWide& p, char* shared, unsigned sequence) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const unsigned units = p.groups * 8, width = p.directions * p.hidden;
    float* const h = (float*)(shared + 64);
    float* const kept = h + p.columns * width;
    const float* weights = (const float*)p.head_weights;
    unsigned announced = 0;
    if (threadIdx.x == 0 && p.flag) announced = ((const RunHeader*)p.header)->sequence;
    if (p.outputs * (unsigned long long)width <= HEAD_KEPT) {
        for (unsigned i = threadIdx.x; i < p.outputs * width; i += blockDim.x) kept[i] = weights[i];
        weights = kept;
    }
    for (unsigned i = threadIdx.x; i < p.columns * width; i += blockDim.x) {
        const unsigned column = i / width, side = i % width / p.hidden, unit = i % p.hidden;
        const unsigned long long* at = (const unsigned long long*)p.last +
            (side * p.columns + column) * (unsigned long long)units + unit;
        unsigned long long v;
        do {
            v = load_now(at);
        } while ((unsigned)(v >> 32) != sequence);
        h[i] = __uint_as_float((unsigned)v);
    }
    __syncthreads();
    for (unsigned i = warp; i < p.columns * p.outputs; i += warps) {
        const unsigned column = i / p.outputs, n = i % p.outputs, row = p.first_row + column;
        float sum = 0.0f;
        for (unsigned k = lane; k < width; k += 32)
            sum = fmaf(weights[n * (unsigned long long)width + k], h[column * width + k], sum);
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane == 0 && row < p.batch)
            ((float*)p.out)[row * (unsigned long long)p.outputs + n] =
                sum + (p.head_bias ? ((const float*)p.head_bias)[n] : 0.0f);
    }
    __syncthreads();
    if (threadIdx.x == 0 && p.flag)
        asm volatile("fence.acq_rel.sys; st.relaxed.sys.global.u32 [%0], %1;"
                     :: "l"(p.flag), "r"(announced) : "memory");
}

// G: groups of a block. KW: k-steps of a warp. R: fragments of W_hh in registers. ONE: one column.
template <class N, int G, int KW, int R, bool ONE>
__device__ __forceinline__ void rnn_wide(const RnnWide& p) {
    extern __shared__ __align__(128) char shared[];
    WIDE_CLOCK(0)
    if (threadIdx.x == 0) {
        const unsigned full = shared_address(shared);
        for (int i = 0; i < CHUNK_SLOTS; ++i) {
            wide_barrier_init(full + 8 * i, G);
            wide_barrier_init(full + 8 * (CHUNK_SLOTS + i), ONE ? 1 : p.columns);
        }
        for (int i = 0; i < INPUT_WARPS * STAGE_SLOTS_MAX; ++i)
            wide_barrier_init(full + 8 * (2 * CHUNK_SLOTS + i), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    // The number of this pass. Its first launch counts it when all of its blocks have read it, so
    // that what a run that was stopped in between has left is not taken for the next one's.
    unsigned sequence;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(sequence) : "l"(p.epoch));
    sequence += p.stages;
    __syncthreads();
    const unsigned which = blockIdx.x / p.slices, slice = blockIdx.x % p.slices;
    // From lane 0, so that the compiler knows it to be the same in a warp.
    const unsigned part = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (which >= p.lanes) {
        const unsigned block = blockIdx.x - p.lanes * p.slices;
        if (p.stages) wide_stage<N>(p, block, sequence);
        if (block == 0 && p.last && p.ends) wide_head(p, shared, sequence);
    } else if (part == WARPS / 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        wide_inputs<N, G, KW, R>(p, p.lane[which], slice, shared, sequence);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        wide_recurrence<N, G, KW, R, ONE>(p, p.lane[which], slice, shared, sequence);
    }
    __syncthreads();
    if (threadIdx.x == 0 && p.stages) {
        unsigned* const epoch = (unsigned*)p.epoch;
        if (atomicAdd(epoch + 1, 1u) == gridDim.x - 1) {
            atomicExch(epoch + 1, 0u);
            atomicExch(epoch, sequence);
        }
    }
    WIDE_CLOCK(1)
}

#define RNN_WIDE(number, name, groups, k_steps, registers_one, registers) \
    extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 1) \
        rnn_wide_##name##_##k_steps##_one(const __grid_constant__ RnnWide p) { \
        rnn_wide<number, groups, k_steps, registers_one, true>(p); \
    } \
    extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 1) \
        rnn_wide_##name##_##k_steps(const __grid_constant__ RnnWide p) { \
        rnn_wide<number, groups, k_steps, registers, false>(p); \
    }
