// What lies between the products of an encoder stack: norms, with the conversion to the format
// that the next product reads and the residual of a sandwich in the same pass.
//
// The products are in `gemm.cu`, the attention in `attention.cu`.
//
// Ladder (H200, 2026-11-21):
// - a warp a row held in registers, one kernel for all norms, widths and formats: 65,536 rows of
//   768 in 76 us (4.0 TB/s), but 6 us for one row;
// - ships: a kernel a format and size, scale and shift fetched with the row. Where products make up
//   for norms, the first rows are described by a quad for 48 or 64 of their columns: 1.6 us of 512
//   rows of 768, in a chain.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "dependent.cuh"
#include "overlap.cuh"

enum NormKind : unsigned { NORM_NONE = 0, NORM_LAYER = 1, NORM_RMS = 2, NORM_BATCH = 3 };
enum Element : unsigned { ELEMENT_F32 = 0, ELEMENT_F16 = 1, ELEMENT_BF16 = 2 };

// Mirrored by `step::encoder_stack::NormArguments`. Row r is row r % per of batch row r / per.
struct NormArguments {
    uint64_t x;
    uint64_t residual;       // added to the norm, or 0
    uint64_t weight, bias;   // [width], or 0 for ones and zeros
    uint64_t mean, variance; // [width] for NORM_BATCH
    uint64_t y;              // f32 out, rows `width` apart, or 0; may be `x` or `residual`
    uint64_t h;              // out in `element`, rows `h_stride` elements apart, or 0
    uint64_t x_outer, x_inner;               // floats from one batch row, from one row to the next
    uint64_t residual_outer, residual_inner; // the same
    unsigned rows, per, width, h_stride;
    unsigned kind, element;
    float offset, eps;       // of the weight; inside the root
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

__device__ __forceinline__ float affine(const NormArguments& a, unsigned d, float x) {
    const auto* weight = reinterpret_cast<const float*>(a.weight);
    const auto* bias = reinterpret_cast<const float*>(a.bias);
    if (a.kind == NORM_BATCH) {
        const float mean = reinterpret_cast<const float*>(a.mean)[d];
        x = (x - mean) / sqrtf(reinterpret_cast<const float*>(a.variance)[d] + a.eps);
    }
    if (weight) x *= weight[d] + a.offset;
    if (bias) x += bias[d];
    return x;
}

__device__ __forceinline__ void store_one(const NormArguments& a, size_t row, unsigned d, float x) {
    if (a.y) reinterpret_cast<float*>(a.y)[row * a.width + d] = x;
    if (!a.h) return;
    const size_t at = row * a.h_stride + d;
    if (a.element == ELEMENT_F16) {
        reinterpret_cast<__half*>(a.h)[at] = __float2half_rn(x);
    } else if (a.element == ELEMENT_BF16) {
        reinterpret_cast<__nv_bfloat16*>(a.h)[at] = __float2bfloat16_rn(x);
    } else {
        reinterpret_cast<float*>(a.h)[at] = x;
    }
}

__device__ __forceinline__ const float* row_of(
    uint64_t at, uint64_t outer, uint64_t inner, unsigned b, unsigned i) {
    return reinterpret_cast<const float*>(at) + b * outer + i * inner;
}

template <unsigned ELEMENT>
__device__ __forceinline__ void store_four(uint64_t to, size_t at, float4 x) {
    if (ELEMENT == ELEMENT_F16) {
        const __half2 pair[2] = {__floats2half2_rn(x.x, x.y), __floats2half2_rn(x.z, x.w)};
        *reinterpret_cast<uint2*>(reinterpret_cast<__half*>(to) + at) =
            *reinterpret_cast<const uint2*>(pair);
    } else if (ELEMENT == ELEMENT_BF16) {
        const __nv_bfloat162 pair[2] = {
            __floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
        *reinterpret_cast<uint2*>(reinterpret_cast<__nv_bfloat16*>(to) + at) =
            *reinterpret_cast<const uint2*>(pair);
    } else {
        *reinterpret_cast<float4*>(reinterpret_cast<float*>(to) + at) = x;
    }
}

// Layer or RMS norm, a warp a row of at most 128 * HELD numbers, a multiple of four, all rows at
// multiples of 16 bytes. Little code, because of few rows fetching it is what takes longest; scale
// and shift, which no kernel writes, are fetched while the one ahead still runs.
template <unsigned HELD, unsigned ELEMENT>
__device__ __forceinline__ void norm_held(const NormArguments& a) {
    const unsigned lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5);
    if (row >= a.rows) return;
    const unsigned b = row / a.per, i = row - b * a.per;
    const float* from = row_of(a.x, a.x_outer, a.x_inner, b, i) + lane * 4;
    const float* weight = reinterpret_cast<const float*>(a.weight) + lane * 4;
    const float* bias = reinterpret_cast<const float*>(a.bias) + lane * 4;
    float4 x[HELD], w[HELD], v[HELD];
#pragma unroll
    for (unsigned j = 0; j < HELD; j++) {
        const bool inside = j * 128 + lane * 4 < a.width;
        v[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        w[j] = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        if (inside && a.weight) w[j] = *reinterpret_cast<const float4*>(weight + j * 128);
        if (inside && a.bias) v[j] = *reinterpret_cast<const float4*>(bias + j * 128);
    }
    earlier_have_ended();
#pragma unroll
    for (unsigned j = 0; j < HELD; j++) {
        const bool inside = j * 128 + lane * 4 < a.width;
        x[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (inside) x[j] = *reinterpret_cast<const float4*>(from + j * 128);
    }
    const float offset = a.weight ? a.offset : 0.0f, share = __frcp_rn((float)a.width);
    float mean = 0.0f, square = 0.0f;
    if (a.kind == NORM_LAYER) {
        float sum = 0.0f;
#pragma unroll
        for (unsigned j = 0; j < HELD; j++) sum += (x[j].x + x[j].y) + (x[j].z + x[j].w);
        mean = warp_sum(sum) * share;
    }
#pragma unroll
    for (unsigned j = 0; j < HELD; j++) {
        x[j].x -= mean, x[j].y -= mean, x[j].z -= mean, x[j].w -= mean;
        const float of_four = (x[j].x * x[j].x + x[j].y * x[j].y) +
            (x[j].z * x[j].z + x[j].w * x[j].w);
        square += j * 128 + lane * 4 < a.width ? of_four : 0.0f;
    }
    const float scale = rsqrtf(fmaf(warp_sum(square), share, a.eps));
#pragma unroll
    for (unsigned j = 0; j < HELD; j++) {
        x[j].x = fmaf(x[j].x * scale, w[j].x + offset, v[j].x);
        x[j].y = fmaf(x[j].y * scale, w[j].y + offset, v[j].y);
        x[j].z = fmaf(x[j].z * scale, w[j].z + offset, v[j].z);
        x[j].w = fmaf(x[j].w * scale, w[j].w + offset, v[j].w);
    }
    if (a.residual) {
        const float* r =
            row_of(a.residual, a.residual_outer, a.residual_inner, b, i) + lane * 4;
#pragma unroll
        for (unsigned j = 0; j < HELD; j++) {
            if (j * 128 + lane * 4 >= a.width) continue;
            const float4 more = *reinterpret_cast<const float4*>(r + j * 128);
            x[j].x += more.x, x[j].y += more.y, x[j].z += more.z, x[j].w += more.w;
        }
    }
    if (a.y) {
#pragma unroll
        for (unsigned j = 0; j < HELD; j++) {
            const unsigned d = j * 128 + lane * 4;
            if (d < a.width) store_four<ELEMENT_F32>(a.y, (size_t)row * a.width + d, x[j]);
        }
    }
    if (a.h) {
#pragma unroll
        for (unsigned j = 0; j < HELD; j++) {
            const unsigned d = j * 128 + lane * 4;
            if (d < a.width) store_four<ELEMENT>(a.h, (size_t)row * a.h_stride + d, x[j]);
        }
    }
}

#define NORM_HELD(HELD, NAME, ELEMENT)                                                             \
    extern "C" __global__ void __launch_bounds__(128)                                              \
        encoder_norm_h##HELD##_##NAME(const __grid_constant__ NormArguments a) {                   \
        let_later_start();                                                                         \
        norm_held<HELD, ELEMENT>(a);                                                               \
    }
#define NORM_ELEMENTS(HELD)                                                                        \
    NORM_HELD(HELD, f32, ELEMENT_F32)                                                              \
    NORM_HELD(HELD, f16, ELEMENT_F16)                                                              \
    NORM_HELD(HELD, bf16, ELEMENT_BF16)
NORM_ELEMENTS(2)
NORM_ELEMENTS(4)
NORM_ELEMENTS(6)
NORM_ELEMENTS(8)

// A warp a row of any width, any norm or none.
extern "C" __global__ void __launch_bounds__(128)
    encoder_norm_any(const __grid_constant__ NormArguments a) {
    wait_for_earlier();
    const unsigned lane = threadIdx.x & 31;
    const unsigned row = blockIdx.x * 4 + (threadIdx.x >> 5);
    if (row >= a.rows) return;
    const unsigned b = row / a.per, i = row - b * a.per;
    const float* x = row_of(a.x, a.x_outer, a.x_inner, b, i);
    const float* residual = row_of(a.residual, a.residual_outer, a.residual_inner, b, i);
    float scale = 1.0f, mean = 0.0f;
    if (a.kind == NORM_LAYER) {
        float sum = 0.0f;
        for (unsigned d = lane; d < a.width; d += 32) sum += x[d];
        mean = warp_sum(sum) / a.width;
    }
    if (a.kind == NORM_LAYER || a.kind == NORM_RMS) {
        float square = 0.0f;
        for (unsigned d = lane; d < a.width; d += 32) square += (x[d] - mean) * (x[d] - mean);
        scale = 1.0f / sqrtf(warp_sum(square) / a.width + a.eps);
    }
    for (unsigned d = lane; d < a.width; d += 32) {
        float y = a.kind == NORM_NONE ? x[d] : affine(a, d, (x[d] - mean) * scale);
        if (a.residual) y += residual[d];
        store_one(a, row, d, y);
    }
}

// Mirrored by `step::gemm_normed::StatisticsArguments`.
struct StatisticsArguments {
    uint64_t x;          // f32, rows `x_stride` floats apart
    uint64_t h;          // out: the same in 16 bits, rows `h_stride` elements apart
    uint64_t statistics; // out, [rows, groups]: mean, squared deviation from it
    unsigned rows, x_stride, h_stride, groups;
};

// A quad for so many columns of a row, summed in the order of `row_statistics` in
// `gemm_slim_hopper.cuh`, so that a row has the same bits from here and from there.
template <unsigned COLUMNS, unsigned ELEMENT>
__device__ __forceinline__ void statistics_of(const StatisticsArguments& a) {
    wait_for_earlier();
    constexpr unsigned PAIRS = COLUMNS / 8;
    const unsigned index = (blockIdx.x * 256 + threadIdx.x) / 4;
    const unsigned last = a.rows * a.groups - 1, at = min(index, last);
    const unsigned row = at / a.groups, group = at - row * a.groups;
    const unsigned column = group * COLUMNS + threadIdx.x % 4 * 2;
    const float* from = reinterpret_cast<const float*>(a.x) + (size_t)row * a.x_stride + column;
    float2 x[PAIRS];
#pragma unroll
    for (unsigned i = 0; i < PAIRS; i++) x[i] = *reinterpret_cast<const float2*>(from + 8 * i);
    auto quad = [](float s) {
        s += __shfl_xor_sync(~0u, s, 1);
        return s + __shfl_xor_sync(~0u, s, 2);
    };
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < PAIRS; i++) sum += x[i].x + x[i].y;
    const float mean = __fmul_rn(quad(sum), 1.0f / COLUMNS);
#pragma unroll
    for (unsigned i = 0; i < PAIRS; i++) {
        const float u = x[i].x - mean, v = x[i].y - mean;
        square = fmaf(u, u, fmaf(v, v, square));
    }
    square = quad(square);
    if (index > last) return;
    if (threadIdx.x % 4 == 0) {
        reinterpret_cast<float2*>(a.statistics)[index] = make_float2(mean, square);
    }
    const size_t to = (size_t)row * a.h_stride + column;
#pragma unroll
    for (unsigned i = 0; i < PAIRS; i++) {
        if (ELEMENT == ELEMENT_F16) {
            const __half2 pair = __floats2half2_rn(x[i].x, x[i].y);
            *reinterpret_cast<__half2*>(reinterpret_cast<__half*>(a.h) + to + 8 * i) = pair;
        } else {
            const __nv_bfloat162 pair = __floats2bfloat162_rn(x[i].x, x[i].y);
            *reinterpret_cast<__nv_bfloat162*>(
                reinterpret_cast<__nv_bfloat16*>(a.h) + to + 8 * i) = pair;
        }
    }
}

#define STATISTICS(COLUMNS, NAME, ELEMENT)                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        encoder_statistics##COLUMNS##_##NAME(const __grid_constant__ StatisticsArguments a) {      \
        statistics_of<COLUMNS, ELEMENT>(a);                                                        \
    }
STATISTICS(48, f16, ELEMENT_F16)
STATISTICS(48, bf16, ELEMENT_BF16)
STATISTICS(64, f16, ELEMENT_F16)
STATISTICS(64, bf16, ELEMENT_BF16)
