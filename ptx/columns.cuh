// Reductions over the middle axis of `[rows, time, channels]`.
//
// A block has a tile of neighbouring channels and `slots` threads for each: thread i has channel
// i % tile and the times slot, slot + slots, slot + 2·slots, …, so that neighbours read neighbours.
// The order of every sum depends on the lengths of the two axes alone.
#pragma once

#include "indexing.cuh"

// Most channels of a tile, and most threads of a block.
constexpr int TILE_CHANNELS = 32;
constexpr int COLUMN_THREADS = 512;

// A thread's place in its block.
struct Place {
    u32 tile;  // channels
    u32 slots; // threads of a channel
    u32 slot;  // its own; at least `slots` for a thread without work
    u32 channel;
};

__device__ __forceinline__ Place place(u32 tile, u32 slots) {
    return Place{tile, slots, threadIdx.x / tile, threadIdx.x % tile};
}

// `f` of the values of all threads of a channel, for every thread of it. `room` has a place for
// every thread of the block.
template <class T, class F>
__device__ __forceinline__ T across(const Place &at, T *room, const T &value, F f) {
    __syncthreads(); // a reduction before this has been read
    room[threadIdx.x] = value;
    __syncthreads();
    u32 live = at.slots;
    while (live > 1) {
        u32 half = (live + 1) / 2;
        if (at.slot + half < live)
            room[threadIdx.x] = f(room[threadIdx.x], room[threadIdx.x + half * at.tile]);
        __syncthreads();
        live = half;
    }
    return room[at.channel];
}

// f32 as an integer of the same order: -∞ … -0, +0 … ∞.
__device__ __forceinline__ u32 order_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float of_order(u32 order) {
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

// The element of a rank (0 is the smallest) among those that `each` hands to its argument, in every
// thread of the channel: 2 bits of it a pass, by counting. `counts` holds 4 numbers a channel.
template <class Each>
__device__ __forceinline__ float select_rank(const Place &at, u32 *counts, u32 rank, Each each) {
    u32 prefix = 0, known = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < 4 * at.tile; i += blockDim.x)
            counts[i] = 0;
        __syncthreads();
        u32 own[4] = {};
        each([&](float x) {
            u32 order = order_of(x);
            if ((order & known) != prefix) return;
            u32 digit = order >> shift & 3;
#pragma unroll
            for (int d = 0; d < 4; ++d)
                own[d] += digit == d;
        });
#pragma unroll
        for (int d = 0; d < 4; ++d)
            if (own[d] > 0) atomicAdd(&counts[4 * at.channel + d], own[d]);
        __syncthreads();
        u32 digit = 0;
        while (digit < 3 && rank >= counts[4 * at.channel + digit])
            rank -= counts[4 * at.channel + digit++];
        prefix |= digit << shift;
        known |= 3u << shift;
    }
    return of_order(prefix);
}
