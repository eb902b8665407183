// `norm`: layer, RMS, batch (eval) and group normalisation of rows, in f32.
//
// Not the scaling of series (`normalize`).
//
// Ladder (H200, 2026-11-21, 384 MiB in and out; percent of 4.3 TB/s)
// 1. A row in the registers of up to 32 lanes, mean and variance in two passes over them, one
//    reading and one writing of memory: 86-97% for widths that are multiples of 4 up to 1024, but
//    25% at 33 and 52% at 130, where every instruction of a warp served one row of one or two
//    elements a lane. Rows over 1024 elements: a block a row, which reads it again from the
//    first-level cache: 64-88%.
// 2. About five single elements a lane, so that a warp has several rows: 60% at 33, 61% at 130,
//    71-80% from 257 to 511, 41% at 7. Rows in registers up to 2048 elements: 92% there.

#include "rows.cuh"

enum NormKind : u32 { LAYER = 0, RMS = 1 };

struct NormArguments {
    const float *x;
    float *y;
    const float *weight; // [groups, width] or absent
    const float *bias;   // [groups, width] or absent
    Divisor groups;      // rows that share no weights; 1 unless a group norm
    u32 rows;
    u32 width;
    u32 lanes; // of a team; 0 for a block a row
    u32 kind;
    float eps;
    float weight_offset;
};

// Rows of at most lanes · V · PER elements. An RMS norm subtracts nothing.
template <int V, int PER> __device__ __forceinline__ void norm(const NormArguments &p) {
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    u32 row = thread / p.lanes, lane = thread % p.lanes;
    bool exists = row < p.rows;
    u32 rest = row, group = divide(p.groups, rest);
    const float *x = p.x + (u64)row * p.width;
    float *y = p.y + (u64)row * p.width;
    Vector<V> v[PER];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        u32 at = (lane + i * p.lanes) * V;
        v[i] = {};
        if (exists && at < p.width) v[i] = load<V>(x + at);
    }
    float mean = 0.0f;
    if (p.kind == LAYER) {
#pragma unroll
        for (int i = 0; i < PER; ++i)
#pragma unroll
            for (int j = 0; j < V; ++j)
                sum += v[i].at[j];
        mean = __fdiv_rn(reduce_team<Sum>(sum, p.lanes), (float)p.width);
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        bool inside = (lane + i * p.lanes) * V < p.width;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            v[i].at[j] -= mean;
            if (inside) squares = __fmaf_rn(v[i].at[j], v[i].at[j], squares);
        }
    }
    squares = reduce_team<Sum>(squares, p.lanes);
    float factor = __frcp_rn(__fsqrt_rn(__fdiv_rn(squares, (float)p.width) + p.eps));
    const float *weight = p.weight + (u64)group * p.width, *bias = p.bias + (u64)group * p.width;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        u32 at = (lane + i * p.lanes) * V;
        if (!exists || at >= p.width) continue;
        Vector<V> w, b;
        if (p.weight) w = load<V>(weight + at);
        if (p.bias) b = load<V>(bias + at);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            float scale = p.weight ? w.at[j] + p.weight_offset : 1.0f;
            float shift = p.bias ? b.at[j] : 0.0f;
            v[i].at[j] = __fmaf_rn(v[i].at[j] * factor, scale, shift);
        }
        store<V>(y + at, v[i]);
    }
}

template <int V> __device__ __forceinline__ void norm_long(const NormArguments &p) {
    u32 rest = blockIdx.x, group = divide(p.groups, rest);
    const float *x = p.x + (u64)blockIdx.x * p.width;
    float *y = p.y + (u64)blockIdx.x * p.width;
    float mean = 0.0f, squares = 0.0f;
    if (p.kind == LAYER) {
        float sum = 0.0f;
        for (u32 at = threadIdx.x * V; at < p.width; at += LONG_THREADS * V) {
            Vector<V> v = load<V>(x + at);
#pragma unroll
            for (int j = 0; j < V; ++j)
                sum += v.at[j];
        }
        mean = __fdiv_rn(reduce_block<Sum>(sum), (float)p.width);
    }
    for (u32 at = threadIdx.x * V; at < p.width; at += LONG_THREADS * V) {
        Vector<V> v = load<V>(x + at);
#pragma unroll
        for (int j = 0; j < V; ++j)
            squares = __fmaf_rn(v.at[j] - mean, v.at[j] - mean, squares);
    }
    squares = reduce_block<Sum>(squares);
    float factor = __frcp_rn(__fsqrt_rn(__fdiv_rn(squares, (float)p.width) + p.eps));
    const float *weight = p.weight + (u64)group * p.width, *bias = p.bias + (u64)group * p.width;
    for (u32 at = threadIdx.x * V; at < p.width; at += LONG_THREADS * V) {
        Vector<V> v = load<V>(x + at), w, b;
        if (p.weight) w = load<V>(weight + at);
        if (p.bias) b = load<V>(bias + at);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            float scale = p.weight ? w.at[j] + p.weight_offset : 1.0f;
            float shift = p.bias ? b.at[j] : 0.0f;
            v.at[j] = __fmaf_rn((v.at[j] - mean) * factor, scale, shift);
        }
        store<V>(y + at, v);
    }
}

#define NORM(V, PER)                                                                               \
    extern "C" __global__ void __launch_bounds__(128) norm_v##V##_##PER(const NormArguments p) {   \
        norm<V, PER>(p);                                                                           \
    }

NORM(1, 1)
NORM(1, 2)
NORM(1, 3)
NORM(1, 4)
NORM(1, 5)
NORM(1, 6)
NORM(1, 8)
NORM(1, 10)
NORM(1, 12)
NORM(1, 16)
NORM(1, 24)
NORM(1, 32)
NORM(4, 1)
NORM(4, 2)
NORM(4, 4)
NORM(4, 8)
NORM(4, 16)

extern "C" __global__ void __launch_bounds__(LONG_THREADS) norm_v1_long(const NormArguments p) {
    norm_long<1>(p);
}

extern "C" __global__ void __launch_bounds__(LONG_THREADS) norm_v4_long(const NormArguments p) {
    norm_long<4>(p);
}

// --- batch ---------------------------------------------------------------------------------------

// Trained statistics: `(x − mean) · scale + shift` per feature.
struct BatchNormArguments {
    const float *x;
    float *y;
    const float *trained; // mean, scale and shift, each [width]
    u32 items;            // vectors
    u32 width;
    Divisor vectors; // of a row
};

template <int V> __device__ __forceinline__ void batch_norm(const BatchNormArguments &p) {
    constexpr int UNROLL = V == 4 ? 2 : 4;
    u32 first = blockIdx.x * (blockDim.x * UNROLL) + threadIdx.x;
    Vector<V> v[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 i = first + u * blockDim.x;
        if (i < p.items) v[u] = load<V>(p.x + (u64)i * V);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 i = first + u * blockDim.x;
        if (i >= p.items) continue;
        u32 row = i, feature = divide(p.vectors, row) * V;
        Vector<V> mean = load<V>(p.trained + feature);
        Vector<V> scale = load<V>(p.trained + p.width + feature);
        Vector<V> shift = load<V>(p.trained + 2ull * p.width + feature);
#pragma unroll
        for (int j = 0; j < V; ++j)
            v[u].at[j] = __fmaf_rn(v[u].at[j] - mean.at[j], scale.at[j], shift.at[j]);
        store<V>(p.y + (u64)i * V, v[u]);
    }
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_v1(const BatchNormArguments p) {
    batch_norm<1>(p);
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_v4(const BatchNormArguments p) {
    batch_norm<4>(p);
}
