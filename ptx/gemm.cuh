// Products with everything fused to them: the parameter struct, element formats and the epilogue,
// shared by the kernels of `gemm.cu`. Mirrors `step/gemm.rs`.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "activation.cuh"

// Of activations, residuals and results.
enum Element : unsigned { ELEMENT_F32 = 0, ELEMENT_F16 = 1, ELEMENT_BF16 = 2 };

struct GemmArguments {
    unsigned long long x;
    unsigned long long w;
    unsigned long long scales;   // of weight rows, or 0
    unsigned long long bias;     // f32 [batches * n], or 0
    unsigned long long gate_bias;
    unsigned long long residual; // as y, or 0
    unsigned long long y;
    unsigned long long x_row; // elements from one row to the next
    // Row r of y begins at (r / inner) * y_outer + (r % inner) * y_inner, its results are y_n
    // apart; the residual likewise.
    unsigned long long y_outer;
    unsigned long long y_inner;
    unsigned long long y_n;
    unsigned long long residual_outer; // residual_inner and _n are those of y
    unsigned m;
    unsigned n; // results of a row; with a gate the weights have twice as many rows, in
                // alternating groups of 8: values, gates, values, gates, ...
    unsigned k;
    unsigned inner;
    unsigned w_stride;  // elements
    unsigned x_batch;   // elements of X from one batch to the next; weights follow one another
    unsigned y_batch;   // elements of y
    unsigned w_rows;    // weight rows of a batch
    unsigned residual_element;
    unsigned y_element;
    unsigned activation;
    unsigned gate_activation;
    float slope;
    float gate_slope;
    unsigned gated;
    unsigned fast; // activations accurate to f16 are enough
};

__device__ __forceinline__ float load_element(unsigned long long base, size_t i, unsigned element) {
    if (element == ELEMENT_F32) return ((const float*)base)[i];
    if (element == ELEMENT_F16) return __half2float(((const __half*)base)[i]);
    return __bfloat162float(((const __nv_bfloat16*)base)[i]);
}

__device__ __forceinline__ void store_element(
    unsigned long long base, size_t i, unsigned element, float v) {
    if (element == ELEMENT_F32) ((float*)base)[i] = v;
    else if (element == ELEMENT_F16) ((__half*)base)[i] = __float2half_rn(v);
    else ((__nv_bfloat16*)base)[i] = __float2bfloat16_rn(v);
}

// For f16 and narrower, activations need an absolute error of 1e-6 of the larger of 1 and |x|.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// erf to 3e-7 (Abramowitz and Stegun 7.1.28): one reciprocal, no exponential.
__device__ __forceinline__ float erf_fast(float x) {
    float z = fabsf(x);
    float p = fmaf(z, 0.0000430638f, 0.0002765672f);
    p = fmaf(z, p, 0.0001520143f);
    p = fmaf(z, p, 0.0092705272f);
    p = fmaf(z, p, 0.0422820123f);
    p = fmaf(z, p, 0.0705230784f);
    p = fmaf(z, p, 1.0f);
    p *= p, p *= p, p *= p, p *= p; // infinite beyond where erf is 1, and 1/inf is 0
    return copysignf(1.0f - reciprocal_fast(p), x);
}

__device__ __forceinline__ float sigmoid_fast(float x) {
    return reciprocal_fast(1.0f + exp2_fast(-1.4426950408889634f * x));
}

// Called, not inlined, and rolled where speed is no matter: the switches would be most of the code.
__device__ __noinline__ float4 activate4(unsigned kind, unsigned fast, float slope, float4 v) {
    float* x = &v.x;
    if (fast && kind == RELU) {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = x[i] < 0.0f ? 0.0f : x[i];
    } else if (fast && kind == GELU) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[i] = 0.5f * x[i] * (1.0f + erf_fast(0.7071067811865476f * x[i]));
    } else if (fast && kind >= GELU_TANH && kind <= TANH) {
        // All are a factor times a sigmoid.
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float z = x[i];
            if (kind == GELU_TANH) z = 1.5957691216057308f * (z + 0.044715f * z * z * z);
            if (kind == TANH) z = 2.0f * z;
            float s = sigmoid_fast(z);
            x[i] = kind == SIGMOID ? s : kind == TANH ? 2.0f * s - 1.0f : x[i] * s;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 4; i++) {
            float y = activate(kind, slope, v.x);
            v.x = v.y, v.y = v.z, v.z = v.w, v.w = y;
        }
    }
    return v;
}

// Four neighbouring numbers of an array whose addresses are then multiples of four elements.
__device__ __forceinline__ float4 load_four(unsigned long long base, size_t i, unsigned element) {
    if (element == ELEMENT_F32) return *(const float4*)((const float*)base + i);
    uint2 bits = *(const uint2*)((const unsigned short*)base + i);
    float2 low, high;
    if (element == ELEMENT_F16) {
        low = __half22float2(*(__half2*)&bits.x);
        high = __half22float2(*(__half2*)&bits.y);
    } else {
        low = __bfloat1622float2(*(__nv_bfloat162*)&bits.x);
        high = __bfloat1622float2(*(__nv_bfloat162*)&bits.y);
    }
    return make_float4(low.x, low.y, high.x, high.y);
}

__device__ __forceinline__ void store_four(
    unsigned long long base, size_t i, unsigned element, float4 v) {
    if (element == ELEMENT_F32) {
        *(float4*)((float*)base + i) = v;
        return;
    }
    uint2 bits;
    if (element == ELEMENT_F16) {
        *(__half2*)&bits.x = __floats2half2_rn(v.x, v.y);
        *(__half2*)&bits.y = __floats2half2_rn(v.z, v.w);
    } else {
        *(__nv_bfloat162*)&bits.x = __floats2bfloat162_rn(v.x, v.y);
        *(__nv_bfloat162*)&bits.y = __floats2bfloat162_rn(v.z, v.w);
    }
    *(uint2*)((unsigned short*)base + i) = bits;
}

// Columns from one row of a tile of sums to the next: two lanes of a quad row never share a bank.
template <unsigned COLUMNS> constexpr unsigned TILE_STRIDE = COLUMNS + 8;

// What four neighbouring results need besides their sums.
struct Columns {
    float4 scale, gate_scale, bias, gate_bias;
};

// Up to four numbers, zeros after them.
__device__ __forceinline__ float4 load_up_to_four(const float* from, unsigned count) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (count > 0) v.x = from[0];
    if (count > 1) v.y = from[1];
    if (count > 2) v.z = from[2];
    if (count > 3) v.w = from[3];
    return v;
}

// `n` counts results, `row` weight rows of the batch; `count` of the four exist.
__device__ __forceinline__ Columns load_columns(
    const GemmArguments& a, unsigned batch, unsigned n, unsigned row, unsigned count) {
    Columns v;
    const size_t scale = (size_t)batch * a.w_rows + row, output = (size_t)batch * a.n + n;
    v.scale = v.gate_scale = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    v.bias = v.gate_bias = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (a.scales) v.scale = load_up_to_four((const float*)a.scales + scale, count);
    if (a.bias) v.bias = load_up_to_four((const float*)a.bias + output, count);
    if (a.gated) {
        if (a.scales) v.gate_scale = load_up_to_four((const float*)a.scales + scale + 8, count);
        if (a.gate_bias) v.gate_bias = load_up_to_four((const float*)a.gate_bias + output, count);
    }
    return v;
}

__device__ __forceinline__ float4 scale_and_shift(float4 v, float4 scale, float4 shift) {
    return make_float4(
        fmaf(v.x, scale.x, shift.x), fmaf(v.y, scale.y, shift.y), fmaf(v.z, scale.z, shift.z),
        fmaf(v.w, scale.w, shift.w));
}

__device__ __forceinline__ float4 add(float4 u, float4 v) {
    return make_float4(u.x + v.x, u.y + v.y, u.z + v.z, u.w + v.w);
}

// Four results, without the residual, from their sums at `tile`.
template <unsigned SLICES, unsigned SLICE_FLOATS>
__device__ __forceinline__ float4 finish_four(
    const GemmArguments& a, const Columns& columns, const float* tile) {
    float4 sum = *(const float4*)tile;
#pragma unroll
    for (unsigned slice = 1; slice < SLICES; slice++)
        sum = add(sum, *(const float4*)(tile + slice * SLICE_FLOATS));
    sum = scale_and_shift(sum, columns.scale, columns.bias);
    if (a.activation != IDENTITY) sum = activate4(a.activation, a.fast, a.slope, sum);
    if (a.gated) {
        float4 gate = *(const float4*)(tile + 8);
#pragma unroll
        for (unsigned slice = 1; slice < SLICES; slice++)
            gate = add(gate, *(const float4*)(tile + slice * SLICE_FLOATS + 8));
        gate = scale_and_shift(gate, columns.gate_scale, columns.gate_bias);
        gate = activate4(a.gate_activation, a.fast, a.gate_slope, gate);
        sum.x *= gate.x, sum.y *= gate.y, sum.z *= gate.z, sum.w *= gate.w;
    }
    return sum;
}

// Writes the results of a tile of sums in shared memory, `[SLICES][ROWS][TILE_STRIDE<COLUMNS>]`:
// slices are added in order. Columns are weight rows, so pairs of 8 with a gate. A thread makes
// four neighbouring results at a time, and keeps its columns from row to row.
template <unsigned ROWS, unsigned COLUMNS, unsigned SLICES, unsigned THREADS>
__device__ __forceinline__ void write_tile(
    const GemmArguments& a, unsigned batch, unsigned row0, unsigned col0, const float* tile) {
    constexpr unsigned STRIDE = TILE_STRIDE<COLUMNS>;
    const unsigned groups = (a.gated ? COLUMNS / 2 : COLUMNS) / 4;
    const unsigned n0 = a.gated ? col0 / 2 : col0;
    const bool vectors = a.y_n == 1 && (a.n | a.y_outer | a.y_inner | a.y_batch) % 4 == 0
        && a.residual_outer % 4 == 0 && (a.y | a.residual) % 16 == 0;
    if (vectors) {
        const unsigned c = threadIdx.x % groups * 4, n = n0 + c;
        if (n >= a.n) return;
        const unsigned column = a.gated ? c / 8 * 16 + c % 8 : c;
        const Columns columns = load_columns(a, batch, n, col0 + column, 4);
        const size_t offset = (size_t)batch * a.y_batch + n;
        const unsigned step = THREADS / groups;
        constexpr unsigned AHEAD = 4; // residuals on their way
        for (unsigned r = threadIdx.x / groups; r < ROWS; r += AHEAD * step) {
            float4 old[AHEAD];
#pragma unroll
            for (unsigned i = 0; i < AHEAD; i++) {
                const unsigned row = row0 + r + i * step;
                old[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (a.residual && r + i * step < ROWS && row < a.m) {
                    const size_t from = (row / a.inner) * a.residual_outer
                        + (row % a.inner) * a.y_inner + offset;
                    old[i] = load_four(a.residual, from, a.residual_element);
                }
            }
#pragma unroll
            for (unsigned i = 0; i < AHEAD; i++) {
                const unsigned in_tile = r + i * step, row = row0 + in_tile;
                if (in_tile >= ROWS || row >= a.m) break;
                float4 v = finish_four<SLICES, ROWS * STRIDE>(
                    a, columns, tile + in_tile * STRIDE + column);
                const size_t to =
                    (row / a.inner) * a.y_outer + (row % a.inner) * a.y_inner + offset;
                store_four(a.y, to, a.y_element, add(v, old[i]));
            }
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < ROWS * groups; i += THREADS) {
        // Neighbouring threads write neighbouring addresses.
        const unsigned r = a.y_n == 1 ? i / groups : i % ROWS;
        const unsigned c = (a.y_n == 1 ? i % groups : i / ROWS) * 4;
        const unsigned row = row0 + r, n = n0 + c;
        if (row >= a.m || n >= a.n) continue;
        const unsigned column = a.gated ? c / 8 * 16 + c % 8 : c;
        const unsigned count = min(a.n - n, 4u);
        const Columns columns = load_columns(a, batch, n, col0 + column, count);
        float4 v = finish_four<SLICES, ROWS * STRIDE>(a, columns, tile + r * STRIDE + column);
        const size_t offset =
            (size_t)batch * a.y_batch + (row % a.inner) * a.y_inner + n * a.y_n;
        const size_t from = (row / a.inner) * a.residual_outer + offset;
        const size_t to = (row / a.inner) * a.y_outer + offset;
#pragma unroll 1
        for (unsigned j = 0; j < count; j++) {
            float x = v.x;
            v.x = v.y, v.y = v.z, v.z = v.w;
            if (a.residual) x += load_element(a.residual, from + j * a.y_n, a.residual_element);
            store_element(a.y, to + j * a.y_n, a.y_element, x);
        }
    }
}
