// Sorting in the registers of a warp.
#pragma once

#include "columns.cuh"

// Sorts 32 · K numbers (bitonic). The numbers are handed in in any order; afterwards lane l has
// those at the positions l · K to l · K + K − 1.
template <int K> __device__ __forceinline__ void sort_warp(u32 (&v)[K]) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int run = 2; run <= 32 * K; run *= 2)
#pragma unroll
        for (int distance = run / 2; distance > 0; distance /= 2)
#pragma unroll
            for (int r = 0; r < K; ++r) {
                bool rises = run >= K ? (lane & (run / K)) == 0 : (r & run) == 0;
                if (distance >= K) {
                    u32 other = __shfl_xor_sync(0xffffffffu, v[r], distance / K);
                    bool lower = (lane & (distance / K)) == 0;
                    v[r] = rises == lower ? min(v[r], other) : max(v[r], other);
                } else if ((r & distance) == 0) {
                    u32 a = v[r], b = v[r + distance];
                    v[r] = rises ? min(a, b) : max(a, b);
                    v[r + distance] = rises ? max(a, b) : min(a, b);
                }
            }
}

// Floats of shared memory in which a warp keeps its sorted numbers: one more every 32, so that
// lanes that are K apart meet different banks.
template <int K> constexpr int SORTED = 33 * K;

__device__ __forceinline__ u32 sorted_place(u32 position) { return position + position / 32; }

// Sorts, and puts the numbers into `room`.
template <int K> __device__ __forceinline__ void sort_into(u32 (&v)[K], float *room) {
    sort_warp<K>(v);
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < K; ++r)
        room[sorted_place(lane * K + r)] = of_order(v[r]);
    __syncwarp();
}
