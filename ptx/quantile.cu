// `empirical_quantiles` and `sample`: from samples to quantiles, and from a distribution's
// parameters to samples.
//
// Ladder (H200, 2026-11-21, 9 levels of 128 MiB of samples)
// 1. A block a row: sorted in shared memory (bitonic), rows of 100 at 162 GB/s, of 1000 at 115.
//    Kept for more than 1024 samples. Rows too long for that (over 8192) are searched for each
//    order statistic by counting: 5 GB/s at 100 000.
// 2. Rows of up to 1024 samples: a warp a row, sorted in registers: 685 GB/s at 100, 510 at 1000.

#include "sort.cuh"

// --- empirical quantiles -------------------------------------------------------------------------

constexpr int LEVELS_MAX = 64;

struct Level {
    double fraction; // of the way from the order statistic `below` to `above`
    u32 below;
    u32 above;
};

struct QuantileArguments {
    const float *x; // [rows, samples]
    float *y;       // [rows, row_levels], from the first of these levels on
    u32 samples;
    u32 padded; // the power of two from `samples` on
    u32 row_levels;
    u32 levels;
    u32 rows;
    u32 zero;
    Level level[LEVELS_MAX];
};

__device__ __forceinline__ float between(const Level &level, float below, float above, bool nan) {
    double b = below, a = above;
    return nan ? NAN : (float)(b + (a - b) * level.fraction);
}

// Warps, and so rows, of a block that sorts in registers.
constexpr int WARPS = 4;

// Rows of at most 32 · K samples.
template <int K> __device__ __forceinline__ void quantiles_short(const QuantileArguments &p) {
    __shared__ float rooms[WARPS][SORTED<K>];
    float *room = rooms[threadIdx.x / 32];
    u32 lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= p.rows) return;
    u32 order[K];
    bool unknown = false;
#pragma unroll
    for (int r = 0; r < K; ++r) {
        u32 i = lane + 32 * r;
        float value = i < p.samples ? p.x[(u64)row * p.samples + i] : 0.0f;
        unknown |= value != value;
        order[r] = i < p.samples ? order_of(value) : 0xffffffffu;
    }
    unknown = __any_sync(0xffffffffu, unknown);
    sort_into<K>(order, room);
    for (u32 i = lane; i < p.levels; i += 32) {
        Level level = p.level[i];
        float below = room[sorted_place(level.below)], above = room[sorted_place(level.above)];
        p.y[(u64)row * p.row_levels + i] = between(level, below, above, unknown);
    }
}

#define SHORT(K)                                                                                   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                       \
        quantiles_##K(const QuantileArguments p) {                                                 \
        quantiles_short<K>(p);                                                                     \
    }

SHORT(1)
SHORT(2)
SHORT(4)
SHORT(8)
SHORT(16)
SHORT(32)

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    quantiles_sorted(const QuantileArguments p) {
    extern __shared__ u32 sorted[];
    const float *x = p.x + (u64)blockIdx.x * p.samples;
    bool unknown = false;
    for (u32 i = threadIdx.x; i < p.padded; i += blockDim.x) {
        float value = i < p.samples ? x[i] : 0.0f;
        unknown |= value != value;
        sorted[i] = i < p.samples ? order_of(value) : 0xffffffffu;
    }
    unknown = __syncthreads_or(unknown);
    for (u32 run = 2; run <= p.padded; run *= 2)
        for (u32 distance = run / 2; distance > 0; distance /= 2) {
            for (u32 i = threadIdx.x; i < p.padded / 2; i += blockDim.x) {
                u32 a = 2 * i - (i & (distance - 1)), b = a + distance;
                u32 at_a = sorted[a], at_b = sorted[b];
                bool rises = (a & run) == 0;
                if ((at_a > at_b) == rises) sorted[a] = at_b, sorted[b] = at_a;
            }
            __syncthreads();
        }
    for (u32 i = threadIdx.x; i < p.levels; i += blockDim.x) {
        float below = of_order(sorted[p.level[i].below]);
        float above = of_order(sorted[p.level[i].above]);
        p.y[(u64)blockIdx.x * p.row_levels + i] = between(p.level[i], below, above, unknown);
    }
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    quantiles_counted(const QuantileArguments p) {
    __shared__ u32 counts[4];
    const float *x = p.x + (u64)blockIdx.x * p.samples;
    Place at = place(1, blockDim.x);
    bool unknown = false;
    auto each = [&](auto visit) {
        for (u32 i = threadIdx.x; i < p.samples; i += blockDim.x)
            visit(x[i]);
    };
    each([&](float value) { unknown |= value != value; });
    unknown = __syncthreads_or(unknown);
    for (u32 i = 0; i < p.levels; ++i) {
        Level level = p.level[i];
        float below = select_rank(at, counts, level.below, each), above = below;
        if (level.above != level.below) above = select_rank(at, counts, level.above, each);
        if (threadIdx.x == 0)
            p.y[(u64)blockIdx.x * p.row_levels + i] = between(level, below, above, unknown);
    }
}

// --- sample --------------------------------------------------------------------------------------

struct Words {
    u32 at[4];
};

// Philox 4x32-10 (Salmon et al., 2011): four random words of a counter and a key.
__device__ __forceinline__ Words philox(Words c, u32 key0, u32 key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        if (round > 0) key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
        u64 a = (u64)c.at[0] * 0xD2511F53u, b = (u64)c.at[2] * 0xCD9E8D57u;
        c = {{(u32)(b >> 32) ^ c.at[1] ^ key0, (u32)b, (u32)(a >> 32) ^ c.at[3] ^ key1, (u32)a}};
    }
    return c;
}

// A word as a number in (0, 1): its upper 23 bits and a half, divided by 2^23. Exact.
__device__ __forceinline__ float uniform(u32 word) {
    return ((float)(word >> 9) + 0.5f) * 0x1p-23f;
}

struct SampleArguments {
    const float *parameters; // [batch, steps, 2 or 3]
    const int *seed;         // [batch, 2]
    float *y;                // [batch, steps, count]
    u32 items;
    u32 zero;
    Divisor count;
    Divisor steps;
};

struct Draw {
    const float *parameters;
    float u;
    float v;
};

__device__ __forceinline__ Draw draw(const SampleArguments &p, u32 item, u32 width) {
    u32 row = item, s = divide(p.count, row);
    Draw d;
    d.parameters = p.parameters + (u64)row * width;
    u32 step = divide(p.steps, row);
    Words words = philox({{s, step, 0, 0}}, p.seed[2ull * row], p.seed[2ull * row + 1]);
    d.u = uniform(words.at[0]);
    d.v = uniform(words.at[1]);
    return d;
}

// √(−2 ln u) · cos(2πv) times the deviation, plus the mean.
extern "C" __global__ void __launch_bounds__(256) sample_normal(const SampleArguments p) {
    u32 item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.items) return;
    Draw d = draw(p, item, 2);
    float radius = __fsqrt_rn(-2.0f * logf(d.u));
    p.y[item] = __fmaf_rn(d.parameters[1], radius * cospif(2.0f * d.v), d.parameters[0]);
}

// √(ν (u^(−2/ν) − 1)) · cos(2πv) times the scale, plus the location. In f64: the power amplifies
// what the logarithm is off by.
extern "C" __global__ void __launch_bounds__(256) sample_student_t(const SampleArguments p) {
    u32 item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.items) return;
    Draw d = draw(p, item, 3);
    double freedom = d.parameters[0];
    double radius = sqrt(freedom * expm1(-2.0 / freedom * log((double)d.u)));
    double turn = cospif(2.0f * d.v);
    p.y[item] = (float)((double)d.parameters[1] + (double)d.parameters[2] * radius * turn);
}
