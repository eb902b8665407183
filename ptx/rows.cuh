// Reductions over rows. The order in which a row is summed depends on its length alone.
//
// A short row belongs to a team of `lanes` (a power of two up to 32) neighbours of a warp, which
// hold it in registers: lane l has the vectors l, l + lanes, l + 2·lanes, … A long row belongs to a
// block, which reads it again for every pass; the second reading comes from the first-level cache.
// All threads take part in every reduction, also those of rows that do not exist.
#pragma once

#include "indexing.cuh"

// Threads of a block that has one row.
constexpr int LONG_THREADS = 512;

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};

// Ignores NaN, as the reference's maximum does; the sum after it does not.
struct Maximum {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

template <class F> __device__ __forceinline__ float reduce_team(float x, u32 lanes) {
    for (u32 distance = lanes / 2; distance > 0; distance /= 2)
        x = F::of(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// Over the block, for every thread of it.
template <class F> __device__ __forceinline__ float reduce_block(float x) {
    __shared__ float partial[LONG_THREADS / 32];
    x = reduce_team<F>(x, 32);
    __syncthreads(); // the partial results of a reduction before this have been read
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return reduce_team<F>(partial[threadIdx.x % (LONG_THREADS / 32)], LONG_THREADS / 32);
}

// `V` neighbouring elements, read and written at once.
template <int V> struct Vector {
    float at[V];
};

template <int V> __device__ __forceinline__ Vector<V> load(const float *x) {
    Vector<V> v;
    if constexpr (V == 4) {
        float4 four = *reinterpret_cast<const float4 *>(x);
        v.at[0] = four.x, v.at[1] = four.y, v.at[2] = four.z, v.at[3] = four.w;
    } else {
        v.at[0] = *x;
    }
    return v;
}

template <int V> __device__ __forceinline__ void store(float *y, const Vector<V> &v) {
    if constexpr (V == 4)
        *reinterpret_cast<float4 *>(y) = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
    else
        *y = v.at[0];
}
