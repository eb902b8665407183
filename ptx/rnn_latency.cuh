// A stack of recurrences in one launch, for one forecast as soon as possible. Device code shared by
// `rnn_latency.cu` (one block a layer) and `rnn_latency_hopper.cu` (a cluster of blocks a layer).
// Does not hold sLSTM or projected cells, nor widths whose recurrent weights exceed a cluster.
//
// A launch is a set of roles; a block has one, found by its index:
// - STAGE brings the input, which may be in host memory, to where all others read it, once;
// - INPUTS multiplies W_ih by the inputs of a layer, ahead of time, and leaves the gate sums;
// - RECURRENCE holds a slice of W_hh of one layer and direction in registers and runs all steps;
// - HEAD multiplies the last h by the head's weights, writes the outputs and the run's flag.
// Roles meet in memory through data that says itself whether it is there: gate sums are never +0
// (the reader puts the zero back), values of h travel beside the run's sequence number. No fence,
// no barrier between blocks. A block waits only for blocks of a lower index (or of its own
// cluster), and blocks are dispatched in the order of their index, so whatever the grid's size the
// lowest unfinished block is resident and waits for nobody: no deadlock.
//
// Products are m16n8k16 (m16n8k8 for 32-bit numbers) with weights as A and up to eight columns
// (rows of the batch; in INPUTS rows times steps) as B: a column's bits depend on no other.
// The 16 rows of two tiles are the four gates of eight units, so that one thread ends with all the
// gates of its unit. The order over K is fixed by K alone: four chains (two up to 4 k-steps), added
// in pairs.
// A launch that lingers (`linger.cuh`) keeps its weights and does all that again for the next run;
// all of its blocks are resident then. The head's block conducts.
#pragma once
#include "linger.cuh"
#include "run.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum Kind : unsigned { INPUTS = 0, RECURRENCE = 1, HEAD = 2, STAGE = 3 };
enum CellKind : unsigned { LSTM = 0, GRU = 1, RNN_TANH = 2, RNN_RELU = 3 };
enum Start : unsigned { ZERO = 0, VALUES = 1, SLOTS = 2 };

struct Role {
    unsigned long long weights;   // packed tiles [groups, k_steps, 2, 32] of 16 bytes
    unsigned long long affine;    // [groups * 8] of {scale[4], bias[4]}
    unsigned long long source[2]; // INPUTS: h of the layer below, or what STAGE wrote; STAGE: x
    unsigned long long sums;      // gate sums [row groups, steps, groups, columns, 8] of f32x4
    unsigned long long hidden;    // h [row groups, steps, columns, words] beside sequence numbers
    unsigned long long last;      // the last h [row groups, directions, columns, units] in f32
    unsigned kind;
    unsigned steps;   // of this role
    unsigned reverse; // whether its first step is the last in time
    unsigned slices;  // blocks among which the units are split
    unsigned phases;  // INPUTS: blocks among which the steps are split; STAGE: blocks
    unsigned k_steps; // INPUTS: of the packed weights
    unsigned words;   // INPUTS: 32-bit words of a column from each source; STAGE: that it writes
    unsigned row;     // of the states: layer and direction
    unsigned side;    // direction
    unsigned outwards; // INPUTS: whether the steps are taken from the middle outwards
    unsigned keep;    // INPUTS: whether weights are kept in shared memory
    unsigned extra;   // RECURRENCE: k-steps kept in shared memory rather than in registers
    unsigned chunk;   // INPUTS: steps at a time, at most 8 / columns
    unsigned unused;
};

constexpr int ROLES_MAX = 32;

struct RnnLatency {
    unsigned long long header;
    unsigned long long y;      // f32 [batch, kept, directions * hidden] or 0
    unsigned long long h0, c0; // initial states [batch or slots, state_rows, hidden] or 0
    unsigned long long h1, c1; // final states [batch, state_rows, hidden] or 0
    unsigned long long h2, c2; // the same again (new states of slots) or 0
    unsigned long long head_weights, head_bias; // f32 [outputs, directions * hidden], [outputs]
    unsigned long long out;                     // f32 [batch, outputs]
    unsigned long long flag;                    // becomes the sequence number
    unsigned long long arrivals;                // u32, zero between runs
    unsigned long long epoch;                   // u32, launches before this one, or 0
    unsigned long long clocks;                  // measurements, or 0
    unsigned long long turn;                    // where a launch lingers, else 0
    unsigned long long left;                    // becomes the launch's number when it leaves
    unsigned batch, steps, features, hidden;
    unsigned groups;     // of eight units
    unsigned columns;    // rows of the batch in a row group, at most 8
    unsigned row_groups, cell;
    unsigned kept, directions, state_rows, start;
    unsigned outputs, roles;
    unsigned first_group;  // of the row groups of the bucket
    unsigned passes, pass; // launches of a run, and which one this is
    unsigned others; // blocks that have a part, but for the head's
    unsigned first[ROLES_MAX]; // block of each role; the largest number beyond the last
    Role role[ROLES_MAX];
};

#ifdef RNN_LATENCY_CLOCKS
#define CLOCK(at) \
    if (threadIdx.x == 0) { \
        long long now; \
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); \
        ((long long*)p.clocks)[blockIdx.x * 8 + (at)] = now; \
    }
#define STAMP(at) \
    if (threadIdx.x == 0 && s >= 24 && s < 26) { \
        long long now; \
        asm volatile("mov.u64 %0, %%clock64;" : "=l"(now) :: "memory"); \
        ((long long*)p.clocks)[gridDim.x * 8 + blockIdx.x * 16 + (s - 24) * 8 + (at)] = now; \
    }
#else
#define CLOCK(at)
#define STAMP(at)
#endif

// ---- numbers -------------------------------------------------------------------------------

struct F16 {
    static constexpr int BYTES = 2;
    static constexpr bool FAST = true;
    static __device__ unsigned pair(float a, float b) {
        __half2 v = __floats2half2_rn(a, b);
        return *(unsigned*)&v;
    }
    static __device__ void multiply(float (&d)[4], const uint4& a, unsigned b0, unsigned b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    }
};

struct Bf16 {
    static constexpr int BYTES = 2;
    static constexpr bool FAST = true;
    static __device__ unsigned pair(float a, float b) {
        __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
        return *(unsigned*)&v;
    }
    static __device__ void multiply(float (&d)[4], const uint4& a, unsigned b0, unsigned b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    }
};

struct Tf32 {
    static constexpr int BYTES = 4;
    static constexpr bool FAST = false;
    static __device__ unsigned one(float a) {
        unsigned r;
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(a));
        return r;
    }
    static __device__ void product(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                   unsigned a3, unsigned b0, unsigned b1) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
    static __device__ void multiply(float (&d)[4], const uint4& a, unsigned b0, unsigned b1) {
        product(d, a.x, a.y, a.z, a.w, b0, b1);
    }
};

// Each factor is two tf32 numbers; of the four products the smallest is left out.
struct F32 {
    static constexpr int BYTES = 4;
    static constexpr bool FAST = false;
    static __device__ unsigned one(float a) { return __float_as_uint(a); }
    static __device__ unsigned high(unsigned a) { return a & 0xffffe000u; }
    static __device__ unsigned low(unsigned a) {
        return __float_as_uint(__uint_as_float(a) - __uint_as_float(high(a)));
    }
    static __device__ void multiply(float (&d)[4], const uint4& whole, unsigned b0, unsigned b1) {
        // Opaque, or the parts are kept in registers from step to step.
        uint4 a = whole;
        asm volatile("" : "+r"(a.x), "+r"(a.y), "+r"(a.z), "+r"(a.w));
        Tf32::product(d, low(a.x), low(a.y), low(a.z), low(a.w), high(b0), high(b1));
        Tf32::product(d, high(a.x), high(a.y), high(a.z), high(a.w), low(b0), low(b1));
        Tf32::product(d, high(a.x), high(a.y), high(a.z), high(a.w), high(b0), high(b1));
    }
};

template <bool FAST> __device__ __forceinline__ float tanh_of(float x) {
    if (FAST) {
        float y;
        asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }
    return tanhf(x);
}

template <bool FAST> __device__ __forceinline__ float sigmoid_of(float x) {
    if (FAST) return fmaf(0.5f, tanh_of<true>(0.5f * x), 0.5f);
    return 1.0f / (1.0f + expf(-x));
}

// One unit of one row: x and h are the two sums of each gate; `state` is c (LSTM) or h.
template <bool FAST>
__device__ __forceinline__ float step_of(unsigned cell, const float4& x, const float4& h,
                                         float& state) {
    if (cell == LSTM) {
        float i = sigmoid_of<FAST>(x.x + h.x), f = sigmoid_of<FAST>(x.y + h.y);
        float g = tanh_of<FAST>(x.z + h.z), o = sigmoid_of<FAST>(x.w + h.w);
        state = fmaf(f, state, i * g);
        return o * tanh_of<FAST>(state);
    }
    if (cell == GRU) {
        float r = sigmoid_of<FAST>(x.x + h.x), z = sigmoid_of<FAST>(x.y + h.y);
        float n = tanh_of<FAST>(fmaf(r, h.z, x.z));
        return state = fmaf(z, state, (1.0f - z) * n);
    }
    float a = x.x + h.x;
    return state = cell == RNN_TANH ? tanh_of<FAST>(a) : (a < 0.0f ? 0.0f : a);
}

// ---- memory --------------------------------------------------------------------------------

__device__ __forceinline__ float4 load_now(const float4* at) {
    float4 v;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(at) : "memory");
    return v;
}

__device__ __forceinline__ void store_now(float4* at, const float4& v) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1,%2,%3,%4};"
                 :: "l"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// The same where `now`, without a branch.
__device__ __forceinline__ void load_now_if(bool now, float4& v, const float4* at) {
    asm volatile("{\n.reg .pred now;\nsetp.ne.u32 now, %5, 0;\n"
                 "@now ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];\n}"
                 : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w)
                 : "l"(at), "r"((unsigned)now) : "memory");
}

__device__ __forceinline__ void clear_if(bool now, float4* at) {
    asm volatile("{\n.reg .pred now;\nsetp.ne.u32 now, %1, 0;\n"
                 "@now st.relaxed.gpu.global.v4.f32 [%0], {%2,%2,%2,%2};\n}"
                 :: "l"(at), "r"((unsigned)now), "f"(0.0f) : "memory");
}

__device__ __forceinline__ void store_now_if(bool now, unsigned long long* at, unsigned value,
                                             unsigned sequence) {
    asm volatile("{\n.reg .pred now;\nsetp.ne.u32 now, %3, 0;\n"
                 "@now st.relaxed.gpu.global.v2.u32 [%0], {%1,%2};\n}"
                 :: "l"(at), "r"(value), "r"(sequence), "r"((unsigned)now) : "memory");
}

// Numbers of an input that may be in host memory, which changes from run to run of a launch.
__device__ __forceinline__ float load_fresh(const float* at) {
    float v;
    asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory");
    return v;
}

__device__ __forceinline__ void load_fresh(float& a, float& b, const float* at) {
    asm volatile("ld.relaxed.sys.global.v2.f32 {%0,%1}, [%2];"
                 : "=f"(a), "=f"(b) : "l"(at) : "memory");
}

// 16 bytes to shared memory, on their own.
__device__ __forceinline__ void copy_ahead(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copies_done() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ unsigned long long load_now(const unsigned long long* at) {
    unsigned long long v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(at) : "memory");
    return v;
}

__device__ __forceinline__ void store_now(unsigned long long* at, unsigned value,
                                          unsigned sequence) {
    unsigned long long v = (unsigned long long)sequence << 32 | value;
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" :: "l"(at), "l"(v) : "memory");
}

// Never +0, the mark of what is not there yet.
__device__ __forceinline__ float present(float v) {
    return __float_as_uint(v) == 0 ? -0.0f : v;
}

__device__ __forceinline__ bool is_present(const float4& v) {
    return __float_as_uint(v.x) != 0 && __float_as_uint(v.y) != 0 && __float_as_uint(v.z) != 0 &&
           __float_as_uint(v.w) != 0;
}

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return (unsigned)__cvta_generic_to_shared(at);
}

__device__ __forceinline__ void named_barrier(unsigned threads) {
    asm volatile("bar.sync 1, %0;" :: "r"(threads) : "memory");
}

// Bytes between columns of B in shared memory for so many k-steps (32 bytes a column each): a
// quarter of a warp, two columns, reads all banks.
__host__ __device__ constexpr unsigned column_stride(unsigned k_steps) {
    return ((k_steps * 32 + 64 + 127) & ~127u) - 64;
}

// ---- clusters ------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define CLUSTERS 1
#else
#define CLUSTERS 0
#endif

#if CLUSTERS
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ unsigned at_rank(unsigned address, unsigned rank) {
    unsigned r;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
    return r;
}
__device__ __forceinline__ void send(unsigned address, unsigned value, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 :: "r"(address), "r"(value), "r"(barrier) : "memory");
}
__device__ __forceinline__ void send4(unsigned address, const uint4& v, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], "
                 "{%1,%2,%3,%4}, [%5];"
                 :: "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_init(unsigned barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(barrier), "r"(bytes) : "memory");
}
// For data in this block's shared memory. Of the scope `.cluster` the compiler would make, besides,
// an invalidation of level 1 (CCTL.IVALL), which waits for loads on their way and which nothing
// needs: what peers store goes to shared memory itself, and all else is read past level 1.
__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" :: "r"(barrier), "r"(parity) : "memory");
}
#endif

// A number of this launch, other than those of the launches before it. Where the header is in host
// memory, which serves one reader after another, it is counted on the device: the last block adds
// one when all others have what they need.
__device__ __forceinline__ unsigned sequence_of(const RnnLatency& p) {
    if (!p.epoch) return ((const RunHeader*)p.header)->sequence * p.passes + p.pass;
    unsigned launches;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(launches) : "l"(p.epoch) : "memory");
    return launches + 1;
}

// ---- recurrence ----------------------------------------------------------------------------

// Which row of the batch a column is, and whether there is such a row.
__device__ __forceinline__ unsigned row_of(const RnnLatency& p, unsigned row_group,
                                           unsigned column) {
    return (p.first_group + row_group) * 8 + column;
}

// The loop over time of one warp, which owns eight units.
// LSTM_CELL: the cell is an LSTM, else `p.cell` says. ONE: there is one column. ALONE: the block
// holds all units, so that peers are warps behind a barrier; else they are blocks of the cluster.
// `a`, `scale`, `bias`: the warp's weights. `flip`: of the two barriers, whether an odd number of
// phases has passed before.
template <class N, int KS, bool LSTM_CELL, bool ONE, bool ALONE>
__device__ __forceinline__ void recur(const RnnLatency& p, const Role& role, unsigned row_group,
                                      unsigned group, unsigned groups, char* h_shared,
                                      unsigned barriers, unsigned* gather,
                                      const uint4 (&a)[KS][2], const uint4* extra,
                                      const float4& scale, const float4& bias, unsigned sequence,
                                      unsigned flip) {
    constexpr int CHAINS = KS > 4 ? 4 : 2;
    constexpr int WORD_UNITS = 4 / N::BYTES; // units of a word
    constexpr int COLUMNS = ONE ? 1 : 2;     // of a thread
    constexpr int WORDS = !ONE && N::BYTES == 4 ? 2 : 1; // that a thread passes on
    constexpr int GROUP_WORDS = 8 / WORD_UNITS;          // of a column
    // Whether this step's input sums are looked at before the products rather than after them.
    constexpr bool SUMS_FIRST = ALONE || (ONE && KS > 8);
    const unsigned lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const unsigned stride = column_stride(KS + role.extra);
    const unsigned columns = ONE ? 1 : p.columns, steps = role.steps;
    const unsigned unit = group * 8 + g;

    // Columns 2q and 2q + 1 are this thread's.
    bool has[COLUMNS];
    float state[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        has[j] = 2 * q + j < columns;
        state[j] = 0.0f;
        const unsigned row = row_of(p, row_group, 2 * q + j);
        if (p.start != ZERO && has[j] && row < p.batch && unit < p.hidden) {
            const unsigned slot = p.start == SLOTS ? ((const RunHeader*)p.header)->slots[row] : row;
            const float* from = (const float*)(p.cell == LSTM ? p.c0 : p.h0);
            state[j] = from[(slot * (unsigned long long)p.state_rows + role.row) * p.hidden + unit];
        }
    }
    float4* sums = (float4*)role.sums +
        ((row_group * (unsigned long long)steps * p.groups + group) * columns + 2 * q) * 8 + g;
    const unsigned sums_step = p.groups * columns * 8;

    // The words of h that this thread passes on: which units and column, and to which peers.
    unsigned place[WORDS], column[WORDS], rank = 0;
    bool passes[WORDS];
    if constexpr (ONE) {
        place[0] = lane % GROUP_WORDS;
        column[0] = 0;
        passes[0] = lane < GROUP_WORDS;
        rank = lane / GROUP_WORDS;
    } else if constexpr (N::BYTES == 2) {
        // Even lanes of a pair take column 2q of both units, odd lanes column 2q + 1.
        place[0] = g / 2;
        column[0] = 2 * q + (g & 1);
        passes[0] = column[0] < columns;
    } else {
#pragma unroll
        for (int j = 0; j < WORDS; ++j) {
            place[j] = g;
            column[j] = 2 * q + j;
            passes[j] = has[j % COLUMNS];
        }
    }
#pragma unroll
    for (int j = 0; j < WORDS; ++j) place[j] += group * GROUP_WORDS;
    const unsigned words = p.groups * GROUP_WORDS;
    unsigned long long* hidden = nullptr;
    long long hidden_step = (long long)columns * words;
    if (role.hidden) {
        hidden = (unsigned long long*)role.hidden +
            row_group * (unsigned long long)p.steps * columns * words;
        if (role.reverse) {
            hidden += (p.steps - 1ull) * columns * words;
            hidden_step = -hidden_step;
        }
    }
    const char* const from = h_shared + (g < columns ? g : 0) * stride + q * 16;
    unsigned word[WORDS];
    float v[COLUMNS];
    // Input sums are read when those of so many steps before have been used.
    constexpr int AHEAD_STEPS = ONE ? 4 : ALONE ? 2 : KS > 8 ? 3 : 4;
    float4 ring[AHEAD_STEPS][COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int i = 0; i < AHEAD_STEPS; ++i) {
            ring[i][j] = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
            load_now_if(has[j] && steps > 0, ring[i][j], sums + i * sums_step + 8 * j);
        }
        v[j] = 0.0f;
    }
    const bool goes_up = role.hidden != 0, writes_y = p.y != 0;
#if CLUSTERS
    const unsigned bytes = p.groups * 8 * N::BYTES * columns;
    // One column: a thread passes a word to a peer a round. More
    // columns: it passes eight units of one column, gathered through shared memory.
    constexpr int PEERS = 32 / GROUP_WORDS;
    // A cluster's size is a power of two.
    const unsigned local = shared_address(h_shared), size = role.slices;
    const unsigned size_bits = 31 - __clz(size);
    constexpr int ROUNDS = 16 / PEERS;
    unsigned to_peer[ROUNDS], peer_barrier[ROUNDS];
    bool sends[ROUNDS];
    if constexpr (!ALONE) {
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i) {
            const unsigned r = ONE ? rank + i * PEERS : 0;
            sends[i] = r < size;
            to_peer[i] = at_rank(local, sends[i] ? r : 0) + place[0] * 4;
            peer_barrier[i] = at_rank(barriers, sends[i] ? r : 0);
        }
    }
#endif

    // What can wait until the next step's h is being read: h for the layer above, the sums of the
    // last step given back, those of a later one asked for (beyond the last they are anything).
    auto afterwards = [&](float4 (&x)[COLUMNS]) __attribute__((always_inline)) {
#pragma unroll
        for (int j = 0; j < WORDS; ++j)
            store_now_if(passes[j] && goes_up, hidden + column[j] * words + place[j], word[j],
                         sequence);
        hidden += hidden_step;
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            clear_if(has[j], sums - sums_step + 8 * j);
            load_now_if(has[j], x[j], sums + (AHEAD_STEPS - 1) * sums_step + 8 * j);
        }
    };
    // Waits for this step's input sums.
    auto arrive = [&](float4 (&x)[COLUMNS]) __attribute__((always_inline)) {
        bool late = false;
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) late |= !is_present(x[j]);
        while (__any_sync(~0u, late)) {
            late = false;
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                load_now_if(has[j], x[j], sums + 8 * j);
                late |= !is_present(x[j]);
            }
        }
        sums += sums_step;
    };
    auto write_y = [&](unsigned s) __attribute__((always_inline)) {
        const unsigned t = role.reverse ? p.steps - 1 - s : s;
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            const unsigned row = row_of(p, row_group, 2 * q + j);
            if (has[j] && t + p.kept >= p.steps && row < p.batch && unit < p.hidden)
                ((float*)p.y)[((row * (unsigned long long)p.kept + t + p.kept - p.steps) *
                               p.directions + role.side) * p.hidden + unit] = v[j];
        }
    };
    auto step = [&](bool start, unsigned s, float4 (&x)[COLUMNS], float4 (&used)[COLUMNS])
        __attribute__((always_inline)) {
        const unsigned before = (s + 1) & 1, now = s & 1;
        float4 h[COLUMNS];
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) h[j] = bias;
        if (!start || p.start != ZERO) {
            if (!start) {
                if constexpr (ALONE) {
                    named_barrier(groups * 32);
                } else {
#if CLUSTERS
                    barrier_wait(barriers + before * 8, ((s - 1) >> 1 ^ flip >> before) & 1);
#endif
                }
            }
            STAMP(0)
            float d[CHAINS][2][4];
#pragma unroll
            for (int i = 0; i < CHAINS * 8; ++i) d[i / 8][i / 4 % 2][i % 4] = 0.0f;
            const char* b = from + before * 8 * stride;
            // The first loads go ahead of what can wait.
            constexpr int AHEAD = !ONE || N::BYTES == 4 ? 1 : KS / 2 < 4 ? KS / 2 : 4;
            uint4 early[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) early[k] = *(const uint4*)(b + k * 64);
#if CLUSTERS
            if (!ALONE && !start && threadIdx.x == 0) barrier_expect(barriers + before * 8, bytes);
#endif
            if (!start) afterwards(used);
            STAMP(1)
            if (SUMS_FIRST) arrive(x);
            STAMP(2)
#pragma unroll
            for (int k = 0; k < KS; k += 2) {
                if (k + 1 < KS) {
                    const uint4 w =
                        k / 2 < AHEAD ? early[k / 2 % AHEAD] : *(const uint4*)(b + k * 32);
                    N::multiply(d[k % CHAINS][0], a[k][0], w.x, w.y);
                    N::multiply(d[k % CHAINS][1], a[k][1], w.x, w.y);
                    N::multiply(d[(k + 1) % CHAINS][0], a[(k + 1) % KS][0], w.z, w.w);
                    N::multiply(d[(k + 1) % CHAINS][1], a[(k + 1) % KS][1], w.z, w.w);
                } else {
                    const uint2 w = *(const uint2*)(b + k * 32 - q * 8);
                    N::multiply(d[k % CHAINS][0], a[k][0], w.x, w.y);
                    N::multiply(d[k % CHAINS][1], a[k][1], w.x, w.y);
                }
            }
            if (KS == 16) {
#pragma unroll 2
                for (unsigned k = 0; k < role.extra; k += 2) {
                    const uint4 w = *(const uint4*)(b + (KS + k) * 32);
                    N::multiply(d[0][0], extra[k * 64], w.x, w.y);
                    N::multiply(d[0][1], extra[k * 64 + 32], w.x, w.y);
                    N::multiply(d[1][0], extra[k * 64 + 64], w.z, w.w);
                    N::multiply(d[1][1], extra[k * 64 + 96], w.z, w.w);
                }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float& total = d[0][i / 4][i % 4];
                total += d[1][i / 4][i % 4];
                if (CHAINS == 4)
                    total += d[CHAINS - 2][i / 4][i % 4] + d[CHAINS - 1][i / 4][i % 4];
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                h[j].x = fmaf(d[0][0][j], scale.x, bias.x);
                h[j].y = fmaf(d[0][0][2 + j], scale.y, bias.y);
                h[j].z = fmaf(d[0][1][j], scale.z, bias.z);
                h[j].w = fmaf(d[0][1][2 + j], scale.w, bias.w);
            }
            if (!SUMS_FIRST) arrive(x);
        } else {
            arrive(x);
        }
#ifdef RNN_LATENCY_CLOCKS
        asm volatile("" :: "f"(h[0].x), "f"(h[0].y), "f"(h[0].z), "f"(h[0].w) : "memory");
#endif
        STAMP(3)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
            v[j] = step_of<N::FAST>(LSTM_CELL ? LSTM : p.cell, x[j], h[j], state[j]);
#ifdef RNN_LATENCY_CLOCKS
        asm volatile("" :: "f"(v[0]) : "memory");
#endif
        STAMP(4)
        if constexpr (ONE && N::BYTES == 2) {
            const float low = __shfl_sync(~0u, v[0], (lane % 4) * 8);
            word[0] = N::pair(low, __shfl_sync(~0u, v[0], (lane % 4) * 8 + 4));
        } else if constexpr (ONE) {
            word[0] = N::one(__shfl_sync(~0u, v[0], (lane % 8) * 4));
        } else if constexpr (N::BYTES == 2) {
            const bool odd = g & 1;
            const float other = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 4);
            word[0] = odd ? N::pair(other, v[1]) : N::pair(v[0], other);
        } else {
            word[0] = N::one(v[0]);
            word[WORDS - 1] = N::one(v[1]);
        }
        if constexpr (ALONE) {
#pragma unroll
            for (int j = 0; j < WORDS; ++j)
                if (passes[j])
                    *(unsigned*)(h_shared + (now * 8 + column[j]) * stride + place[j] * 4) =
                        word[j];
        } else {
#if CLUSTERS
            const bool more = s + 1 < steps;
            if constexpr (ONE) {
#pragma unroll
                for (int i = 0; i < ROUNDS; ++i)
                    if (sends[i] && more)
                        send(to_peer[i] + now * 8 * stride, word[0], peer_barrier[i] + now * 8);
            } else {
                // Eight units of eight columns, 16 or 32 bytes a column.
                unsigned* const mine = gather + (N::BYTES == 2 ? 4 : 8) * 8 * (threadIdx.x / 32);
#pragma unroll
                for (int j = 0; j < WORDS; ++j)
                    mine[column[j] * GROUP_WORDS + place[j] - group * GROUP_WORDS] = word[j];
                __syncwarp();
                constexpr int PARTS = GROUP_WORDS / 4; // of 16 bytes, of a column
                const unsigned target = local + now * 8 * stride + group * GROUP_WORDS * 4;
                for (unsigned i = lane; i < size * columns * PARTS && more; i += 32) {
                    const unsigned r = i & (size - 1), at = i >> size_bits;
                    const uint4 part = ((const uint4*)mine)[at];
                    send4(at_rank(target + at / PARTS * stride + at % PARTS * 16, r), part,
                          at_rank(barriers + now * 8, r));
                }
                __syncwarp();
            }
#endif
        }
        STAMP(5)
        if (writes_y) write_y(s);
    };
    CLOCK(1)
    if (steps > 0) step(true, 0, ring[0], ring[0]);
    CLOCK(2)
    for (unsigned s = 1; s < steps; s += AHEAD_STEPS) {
#pragma unroll
        for (int i = 0; i < AHEAD_STEPS; ++i)
            if (s + i < steps) step(false, s + i, ring[(i + 1) % AHEAD_STEPS], ring[i]);
    }
    CLOCK(3)
    if (steps > 0) afterwards(ring[0]);
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        if (!has[j]) continue;
        if (role.last)
            store_now((unsigned long long*)role.last +
                ((row_group * p.directions + role.side) * columns + 2 * q + j) *
                (p.groups * 8ull) + unit, __float_as_uint(v[j]), sequence);
        const unsigned row = row_of(p, row_group, 2 * q + j);
        if (row >= p.batch || unit >= p.hidden) continue;
        const unsigned long long at =
            (row * (unsigned long long)p.state_rows + role.row) * p.hidden + unit;
        if (p.h1) ((float*)p.h1)[at] = v[j];
        if (p.h2) ((float*)p.h2)[at] = v[j];
        if (p.c1) ((float*)p.c1)[at] = state[j];
        if (p.c2) ((float*)p.c2)[at] = state[j];
    }
}

// `recur` for a run, and for those that follow where the launch lingers.
template <class N, int KS, bool LSTM_CELL, bool ONE, bool ALONE>
__device__ __forceinline__ void recur_all(const RnnLatency& p, const Role& role,
                                          unsigned row_group, unsigned first, unsigned warp,
                                          unsigned groups, char* h_shared, unsigned barriers,
                                          const uint4* packed, const uint4* extra, unsigned* word,
                                          unsigned sequence) {
    const unsigned lane = threadIdx.x % 32, unit = (first + warp) * 8 + lane / 4;
    const uint4* const mine = packed + warp * (KS + role.extra) * 64ull + lane;
    uint4 a[KS][2];
#pragma unroll
    for (int k = 0; k < KS; ++k) {
        a[k][0] = mine[k * 64];
        a[k][1] = mine[k * 64 + 32];
    }
    const float4 scale = ((const float4*)role.affine)[unit * 2];
    const float4 bias = ((const float4*)role.affine)[unit * 2 + 1];
    unsigned* const gather = (unsigned*)(extra + groups * role.extra * 64);
    unsigned flip = 0;
    while (true) {
        recur<N, KS, LSTM_CELL, ONE, ALONE>(p, role, row_group, first + warp, groups, h_shared,
                                            barriers, gather, a,
                                            extra + warp * role.extra * 64 + lane, scale, bias,
                                            sequence, flip);
        if (!p.turn || !follows((Turn*)p.turn, sequence, word)) return;
        ++sequence;
        // Phases of a run: `steps / 2` and `(steps - 1) / 2`.
        flip ^= (role.steps / 2 & 1) | ((role.steps - 1) / 2 & 1) << 1;
    }
}

// A slice of the units of one layer and direction, all steps.
// KS: k-steps whose weights are in registers; `role.extra` more are in shared memory.
template <class N, int KS, bool ALONE>
__device__ __forceinline__ void recurrence(const RnnLatency& p, const Role& role, unsigned block,
                                           char* shared) {
    const unsigned warp = threadIdx.x / 32;
    const unsigned row_group = block / role.slices, slice = block % role.slices;
    const unsigned first = p.groups * slice / role.slices;
    const unsigned groups = p.groups * (slice + 1) / role.slices - first;
    const unsigned stride = column_stride(KS + role.extra);
    char* const h_shared = shared + 64;
    uint4* const extra = (uint4*)(h_shared + 2 * 8 * stride);
    const unsigned barriers = shared_address(shared);

    for (unsigned i = threadIdx.x; i < 2 * 8 * stride / 4; i += blockDim.x)
        ((unsigned*)h_shared)[i] = 0;
    const uint4* packed = (const uint4*)role.weights + first * (KS + role.extra) * 64ull;
    for (unsigned i = threadIdx.x; i < groups * role.extra * 64; i += blockDim.x) {
        unsigned group = i / (role.extra * 64), at = i % (role.extra * 64);
        copy_ahead(shared_address(extra + i),
                   packed + group * (KS + role.extra) * 64ull + KS * 64 + at);
    }
#if CLUSTERS
    if (threadIdx.x == 0 && !ALONE) {
        const unsigned bytes = p.groups * 8 * N::BYTES * p.columns;
        barrier_init(barriers);
        barrier_init(barriers + 8);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        barrier_expect(barriers, bytes);
        barrier_expect(barriers + 8, bytes);
    }
#endif
    __syncthreads();
    for (unsigned i = threadIdx.x; p.start != ZERO && i < p.columns * p.hidden; i += blockDim.x) {
        const unsigned column = i / p.hidden, k = i % p.hidden;
        const unsigned row = row_of(p, row_group, column);
        if (row >= p.batch) continue;
        const unsigned slot = p.start == SLOTS ? ((const RunHeader*)p.header)->slots[row] : row;
        const float h = ((const float*)p.h0)[
            (slot * (unsigned long long)p.state_rows + role.row) * p.hidden + k];
        // The state before step 0 is in the buffer of step -1.
        char* at = h_shared + (8 + column) * stride + k * N::BYTES;
        if constexpr (N::BYTES == 2) *(unsigned short*)at = (unsigned short)N::pair(h, 0.0f);
        else *(unsigned*)at = N::one(h);
    }
    copies_done();
    __syncthreads();
#if CLUSTERS
    if (!ALONE) {
        cluster_arrive();
        cluster_wait();
    }
#endif
    unsigned* const word = (unsigned*)shared + 12;
    unsigned sequence = sequence_of(p);
    if (warp < groups) {
#define RECUR(lstm, one) \
    recur_all<N, KS, lstm, one, ALONE>(p, role, row_group, first, warp, groups, h_shared, \
                                       barriers, packed, extra, word, sequence)
        if (p.cell != LSTM) RECUR(false, false);
        else if (p.columns > 1) RECUR(true, false);
        else RECUR(true, true);
#undef RECUR
    } else {
        while (p.turn && follows((Turn*)p.turn, sequence, word)) ++sequence;
    }
#if CLUSTERS
    // What peers send must find this block's shared memory alive.
    if (!ALONE) {
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
#endif
}

// ---- inputs --------------------------------------------------------------------------------

// The sums of all gates of a slice of units, eight columns (rows times steps) at a time.
template <class N>
__device__ __forceinline__ void inputs(const RnnLatency& p, const Role& given, unsigned block,
                                       char* shared) {
    const Role role = given; // in registers: the loop is short
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const unsigned warps = blockDim.x / 32;
    const unsigned slice = block / role.phases, phase = block % role.phases;
    const unsigned first = p.groups * slice / role.slices;
    const unsigned groups = p.groups * (slice + 1) / role.slices - first;
    const unsigned columns = p.columns, k_steps = role.k_steps;
    const unsigned stride = column_stride(k_steps);
    char* const b_shared = shared + 64;
    uint4* const kept = (uint4*)(b_shared + 8 * stride);
    const uint4* const packed = (const uint4*)role.weights + first * k_steps * 64ull;
    const uint4* const weights = role.keep ? kept : packed;
    unsigned sequence = sequence_of(p);

    if (role.keep)
        for (unsigned i = threadIdx.x; i < groups * k_steps * 64; i += blockDim.x)
            copy_ahead(shared_address(kept + i), packed + i);
    for (unsigned i = threadIdx.x; i < 8 * stride / 4; i += blockDim.x)
        ((unsigned*)b_shared)[i] = 0;

    // What a warp loads: (part of) a column.
    const unsigned column = warp % 8, part = warp / 8 * 32 + lane, parts = warps / 8 * 32;
    const unsigned ahead = column / columns;
    unsigned* const to = (unsigned*)(b_shared + column * stride);
    const unsigned words = role.words;
    const long long step_words = (role.reverse ? -1ll : 1ll) * columns * words;
    const long long origin =
        ((role.reverse ? p.steps - 1ll : 0) * columns + column % columns) * words +
        ahead * step_words;
    // Into shared memory as it comes; reads go out four together.
    auto load = [&](const unsigned long long* from, unsigned* into) {
        for (unsigned i = part; i < words; i += 4 * parts) {
            unsigned long long v[4];
            unsigned missing;
            do {
                missing = 0;
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (i + j * parts < words) v[j] = load_now(from + i + j * parts);
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (i + j * parts < words) missing |= (unsigned)(v[j] >> 32) ^ sequence;
            } while (missing);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (i + j * parts < words) into[i + j * parts] = (unsigned)v[j];
        }
    };
    // What a thread leaves: its unit of two columns.
    unsigned delay[2];
    float4* out[2];
    const unsigned long long out_step = p.groups * columns * 8ull;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        delay[j] = (2 * q + j) / columns;
        out[j] = (float4*)role.sums + delay[j] * out_step +
                 (first * columns + (2 * q + j) % columns) * 8 + g;
    }
    const float4* const affine = (const float4*)role.affine + (first * 8 + g) * 2;
    const unsigned own = warp < groups ? warp : 0;
    const float4 own_scale = affine[own * 16], own_bias = affine[own * 16 + 1];
    const char* const b = b_shared + g * stride + q * 16;
    __syncthreads();

    const unsigned chunks = (role.steps + role.chunk - 1) / role.chunk;
    while (true) {
        for (unsigned item = phase; item < chunks * p.row_groups; item += role.phases) {
            const unsigned row_group = item % p.row_groups, turn = item / p.row_groups;
            // From the middle outwards: chunks / 2, the one before, the one after, and so on.
            const unsigned at = !role.outwards ? turn
                : turn % 2                     ? chunks / 2 - (turn + 1) / 2
                                               : chunks / 2 + turn / 2;
            const unsigned s = at * role.chunk, count = min(role.chunk, role.steps - s);
            if (ahead < count && part < parts) {
                const long long from = origin + row_group * (long long)p.steps * columns * words +
                                       s * step_words;
                load((const unsigned long long*)role.source[0] + from, to);
                if (role.source[1])
                    load((const unsigned long long*)role.source[1] + from, to + words);
            }
            copies_done(); // weights, which come meanwhile
            __syncthreads();
            const unsigned long long out_at = (row_group * (unsigned long long)role.steps + s) *
                                              out_step;
            for (unsigned group = warp; group < groups; group += warps) {
                float d[4][2][4];
#pragma unroll
                for (int i = 0; i < 32; ++i) d[i / 8][i / 4 % 2][i % 4] = 0.0f;
                const uint4* a = weights + group * k_steps * 64 + lane;
                unsigned k = 0;
#pragma unroll 2
                for (; k + 4 <= k_steps; k += 4) {
#pragma unroll
                    for (int j = 0; j < 4; j += 2) {
                        const uint4 v = *(const uint4*)(b + (k + j) * 32);
                        N::multiply(d[j][0], a[(k + j) * 64], v.x, v.y);
                        N::multiply(d[j][1], a[(k + j) * 64 + 32], v.x, v.y);
                        N::multiply(d[j + 1][0], a[(k + j) * 64 + 64], v.z, v.w);
                        N::multiply(d[j + 1][1], a[(k + j) * 64 + 96], v.z, v.w);
                    }
                }
                if (k + 2 <= k_steps) {
                    const uint4 v = *(const uint4*)(b + k * 32);
                    N::multiply(d[0][0], a[k * 64], v.x, v.y);
                    N::multiply(d[0][1], a[k * 64 + 32], v.x, v.y);
                    N::multiply(d[1][0], a[k * 64 + 64], v.z, v.w);
                    N::multiply(d[1][1], a[k * 64 + 96], v.z, v.w);
                    k += 2;
                }
                if (k < k_steps) {
                    const uint2 v = *(const uint2*)(b + k * 32 - q * 8);
                    N::multiply(d[2][0], a[k * 64], v.x, v.y);
                    N::multiply(d[2][1], a[k * 64 + 32], v.x, v.y);
                }
                float4 scale = own_scale, bias = own_bias;
                if (group != warp) scale = affine[group * 16], bias = affine[group * 16 + 1];
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    auto sum = [&](int tile, int at) {
                        return (d[0][tile][at] + d[1][tile][at]) +
                               (d[2][tile][at] + d[3][tile][at]);
                    };
                    const float4 v = make_float4(present(fmaf(sum(0, j), scale.x, bias.x)),
                                                 present(fmaf(sum(0, 2 + j), scale.y, bias.y)),
                                                 present(fmaf(sum(1, j), scale.z, bias.z)),
                                                 present(fmaf(sum(1, 2 + j), scale.w, bias.w)));
                    if (delay[j] < count)
                        store_now(out[j] + out_at + group * columns * 8, v);
                }
            }
            __syncthreads();
        }
        if (!p.turn || !follows((Turn*)p.turn, sequence, (unsigned*)shared + 12)) return;
        ++sequence;
    }
}

// ---- stage ---------------------------------------------------------------------------------

// The f32 input [batch, steps, features] as words of eight columns beside sequence numbers.
template <class N>
__device__ __forceinline__ void stage(const RnnLatency& p, const Role& role, unsigned block,
                                      unsigned* word_shared) {
    constexpr int WORD_UNITS = 4 / N::BYTES;
    const unsigned per_step = p.columns * role.words;
    const unsigned long long total = (unsigned long long)p.row_groups * p.steps * per_step;
    const unsigned long long stride = (unsigned long long)role.phases * blockDim.x;
    const float* const x = (const float*)role.source[0];
    unsigned sequence = 0;
    bool known = false;
    while (true) {
        for (unsigned long long i = (unsigned long long)block * blockDim.x + threadIdx.x;
             i < total; i += 4 * stride) {
            float v[4][2];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const unsigned long long at = i + j * stride;
                v[j][0] = v[j][1] = 0.0f;
                if (at >= total) continue;
                const unsigned word = at % role.words, column = at / role.words % p.columns;
                const unsigned step = at / per_step % p.steps, row_group = at / per_step / p.steps;
                const unsigned row = min(row_of(p, row_group, column), p.batch - 1);
                const unsigned k = word * WORD_UNITS;
                const float* from = x + (row * (unsigned long long)p.steps + step) * p.features + k;
                // Host memory serves two reads of a line one after the other.
                if (WORD_UNITS == 2 && p.features % 2 == 0 && k < p.features) {
                    load_fresh(v[j][0], v[j][1], from);
                    continue;
                }
                if (k < p.features) v[j][0] = load_fresh(from);
                if (WORD_UNITS == 2 && k + 1 < p.features) v[j][1] = load_fresh(from + 1);
            }
            if (!known) sequence = sequence_of(p);
            known = true;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const unsigned long long at = i + j * stride;
                if (at >= total) continue;
                unsigned word;
                if constexpr (N::BYTES == 2) word = N::pair(v[j][0], v[j][1]);
                else word = N::one(v[j][0]);
                store_now((unsigned long long*)role.hidden + at, word, sequence);
            }
        }
        if (!p.turn) return;
        if (!known) sequence = sequence_of(p);
        known = true;
        if (!follows((Turn*)p.turn, sequence, word_shared)) return;
        ++sequence;
    }
}

// ---- head ----------------------------------------------------------------------------------

__device__ __forceinline__ void head(const RnnLatency& p, const Role& role, unsigned row_group,
                                     char* shared) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const unsigned units = p.groups * 8, width = p.directions * p.hidden;
    float* const h = (float*)(shared + 64);
    float* const kept = h + p.columns * width;
    const float* weights = (const float*)p.head_weights;
    unsigned* const word = (unsigned*)shared + 12;
    unsigned sequence = sequence_of(p);
    unsigned run = 0; // what the host knows this run by
    if (threadIdx.x == 0 && p.flag)
        asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(run) : "l"(p.header) : "memory");
    unsigned arrivals = 0;
    const unsigned launch = run;
    const unsigned long long begun = p.turn ? nanoseconds() : 0;
    if (role.keep) {
        for (unsigned i = threadIdx.x; i < p.outputs * width; i += blockDim.x) kept[i] = weights[i];
        weights = kept;
    }
    while (true) {
        for (unsigned i = threadIdx.x; i < p.columns * width; i += blockDim.x) {
            const unsigned column = i / width, side = i % width / p.hidden, unit = i % p.hidden;
            const unsigned long long* at = (const unsigned long long*)role.last +
                ((row_group * p.directions + side) * p.columns + column) *
                (unsigned long long)units + unit;
            unsigned long long v;
            do v = load_now(at);
            while ((unsigned)(v >> 32) != sequence);
            h[i] = __uint_as_float((unsigned)v);
        }
        __syncthreads();
        CLOCK(2)
        for (unsigned i = warp; i < p.columns * p.outputs; i += warps) {
            const unsigned column = i / p.outputs, n = i % p.outputs;
            const unsigned row = row_of(p, row_group, column);
            float sum = 0.0f;
            for (unsigned k = lane; k < width; k += 32)
                sum = fmaf(weights[n * width + k], h[column * width + k], sum);
#pragma unroll
            for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
            if (lane == 0 && row < p.batch)
                ((float*)p.out)[row * (unsigned long long)p.outputs + n] =
                    sum + (p.head_bias ? ((const float*)p.head_bias)[n] : 0.0f);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            bool final = true;
            if (p.row_groups > 1) {
                __threadfence_system();
                final = atomicAdd((unsigned*)p.arrivals, 1u) == p.row_groups - 1;
                if (final) atomicExch((unsigned*)p.arrivals, 0u);
            }
            if (final && p.epoch) *(unsigned*)p.epoch = sequence;
            if (final && p.flag)
                asm volatile("fence.acq_rel.sys; st.relaxed.sys.global.u32 [%0], %1;"
                             :: "l"(p.flag), "r"(run) : "memory");
        }
        CLOCK(3)
        if (!p.turn) return;
        if (threadIdx.x == 0) {
            // The only row group's head, the last block of the launch, conducts.
            arrivals += p.others;
            all_have_arrived((Turn*)p.turn, arrivals);
            run = next_run((const RunHeader*)p.header, (unsigned*)p.left, launch, run, begun);
            conduct((Turn*)p.turn, sequence, run != 0);
            *word = run;
        }
        __syncthreads();
        if (*word == 0) return;
        ++sequence;
    }
}

template <class N, int KS, bool ALONE>
__device__ __forceinline__ void rnn_latency(const RnnLatency& p) {
    extern __shared__ __align__(128) char shared[];
    const unsigned mine = p.first[threadIdx.x % 32] <= blockIdx.x;
    const unsigned r = __popc(__ballot_sync(~0u, mine)) - 1;
    const Role& role = p.role[r];
    const unsigned block = blockIdx.x - p.first[r];
    CLOCK(0)
    if (role.kind == INPUTS) {
        if (block < role.slices * role.phases) inputs<N>(p, role, block, shared);
    } else if (role.kind == RECURRENCE) {
        if (block < role.slices * p.row_groups) recurrence<N, KS, ALONE>(p, role, block, shared);
    } else if (role.kind == STAGE) {
        if (block < role.phases) stage<N>(p, role, block, (unsigned*)shared + 12);
    } else if (block < p.row_groups) {
        head(p, role, block, shared);
    }
    CLOCK(4)
}

#define RNN_LATENCY_ALONE(number, name, k_steps, threads) \
    extern "C" __global__ void __launch_bounds__(threads, 1) \
        rnn_latency_##name##_##k_steps(const __grid_constant__ RnnLatency p) { \
        rnn_latency<number, k_steps, true>(p); \
    }

#define RNN_LATENCY_CLUSTER(number, name, k_steps) \
    extern "C" __global__ void __launch_bounds__(256, 1) \
        rnn_latency_cluster_##name##_##k_steps(const __grid_constant__ RnnLatency p) { \
        rnn_latency<number, k_steps, false>(p); \
    }
