// What the tensor-core attention kernels share: parameters, who sees what, number formats.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define INFINITE __int_as_float(0x7f800000)

// Mirrored by `step::attention::FlashArguments`. All rows and heads begin at multiples of 16 bytes.
struct FlashArguments {
    uint64_t q;           // query i of row b starts b * q_batch + i * q_stride elements on
    uint64_t k, v;        // key j of row b: (b * keys + j) * kv_stride elements on
    uint64_t y;           // result i of row b: (b * queries + i) * y_stride elements on
    uint64_t key_rows;    // [batch, keys] i32: the visible keys, or 0 for all
    uint64_t counts;      // [batch] i32: how many they are
    uint64_t query_until; // [batch, queries] i32: how many of them a query sees
    uint64_t q_batch;
    int batch, queries, keys, heads, head;
    int q_stride, kv_stride, y_stride;
    int causal;
    int tiles;            // of queries
    float scale_log2;     // of the scores, positive, times log2(e)
    int pad;
};

// Which keys the queries of a row see: the first `until` of the list.
struct Visible {
    const int *rows, *untils;
    int count, shift, causal;

    __device__ __forceinline__ Visible(const FlashArguments& a, int b) {
        const bool list = a.key_rows != 0;
        rows = list ? reinterpret_cast<const int*>(a.key_rows) + (size_t)b * a.keys : nullptr;
        untils = list && a.causal
            ? reinterpret_cast<const int*>(a.query_until) + (size_t)b * a.queries : nullptr;
        count = list ? reinterpret_cast<const int*>(a.counts)[b] : a.keys;
        shift = a.keys - a.queries;
        causal = a.causal;
    }

    // Never falls from one query to the next.
    __device__ __forceinline__ int until(int q) const {
        if (untils) return untils[q];
        return causal ? max(min(q + shift + 1, count), 0) : count;
    }

    __device__ __forceinline__ int row(int n) const { return rows ? rows[n] : n; }
};

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers as 16 bits each, the first below.
__device__ __forceinline__ unsigned packed(float a, float b, __half) {
    const __half2 pair = __floats2half2_rn(a, b);
    return *reinterpret_cast<const unsigned*>(&pair);
}

__device__ __forceinline__ unsigned packed(float a, float b, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const unsigned*>(&pair);
}

// One 16-byte copy into shared memory behind the processor's back; zeros where not `valid`.
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0));
}

__device__ __forceinline__ void fragments(unsigned (&r)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}
