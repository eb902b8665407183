// Y[m, n] = residual + activation(X[m, k] · W[n, k]ᵀ + bias) for f16 and bf16 on sm_90a. Not
// 8-bit weights, f32, gates or products side by side: those are gemm.cu's.
//
// A producer thread copies 64-element slices of K of X and W to a ring of stages (bulk tensor
// copies, transaction barriers); warpgroups multiply them (wgmma) and finish their sums in
// registers: bias, activation, residual (which comes through the same ring), then through shared
// memory to Y. Each result is one sum over all of K in order, so its bits depend neither on the
// shape of the tile nor on m: all shapes that were tried gave the same, which the conformance
// cases hold to.
//
// Ladder (H200, 2026-11-21; TFLOP/s at 8192 x 4096 x 4096, 65536 x 2304 x 768, and 65536 x 3072 x
// 768 with GELU; the vendor's library, alternating with them in one process and without GELU, ran
// at 742, 595 and 630; other runs put it at 721 to 796, 593 to 707, 605 to 637):
// 1. Both warpgroups share a tile of 128 x 256: 726, 515, 442. Nothing multiplies while results
//    are written, which with twelve blocks of K is a third of the time.
// 2. Alternating warpgroups, 64 x 256 each: 727, 643, 584. Reads too much of W a product.
// 3. Alternating, 128 x 128 each: 734, 676, 628.
// 4. Blocks in pairs that share W (multicast): 723, 686, 626; but 654 against 540 at 204800 x 4000
//    x 1000. An arrival at a neighbour's barrier with release semantics fences the whole device,
//    and is not needed: wgmma has read when it is waited for. Residuals asked of L2 before the
//    products of their tile: 65536 x 768 x 768 with residual from 209 to 165 us.
// 5. Ships: 4, and for few hundred rows single warpgroups on 64 x 192 or 64 x 64: 512 rows take
//    5.6, 3.4, 7.5 (with GELU) and 8.1 us for (n, k) = (2304, 768), (768, 768), (3072, 768) and
//    (768, 3072); the library 4.9, 3.9, 5.6 (without) and 7.7.
// 6. Ships: 5, but weights are fetched before the kernel ahead has ended, and slim tiles
//    (`gemm_slim_hopper.cuh`) for few hundred rows: transformer_guide of one series on the device,
//    42 kernels, from 258 to 241 us and from 234.5 to 226.7 with 144 columns for (2304, 768), 3 us
//    more with 48 for (768, 768). For (768, 3072) 48 columns are 2 us behind, 64 ship.
// 7. Ships: 6, but products make up for the norms ahead of them (NORMED and STREAM in
//    `gemm_hopper.cuh`), few rows have `gemm_few.cu`, and products with an activation and those of
//    (768, 3072) are slim too: 32 kernels, from 227 to 212 us (predicted 195), 215 with 64 columns
//    for (768, 3072). In a chain that grows, (2304, 768) takes 6.0 us, attention 7.2, (768, 768)
//    4.0, (3072, 768) with GELU 8.5 and (768, 3072) 9.5: what norms took has gone in part to
//    statistics, to a second copy of the stream and to longer ends.
// What did not help then: statistics read beside the first products, nothing; kernels small enough
// to start beside the one ahead (four stages, halves of registers and shared memory such that no
// two of a kind share a multiprocessor), 3 us more for want of stages, and 35 more where two of a
// kind may share one.
// What did not help 512 rows, on that chain: sharing W in clusters of two, 0 to 1.7 us more a
// product, since a block takes in 64 bytes a cycle, shared or not, and pairs start later; clusters
// of four, 6 us more where 32 do not fit at once; for (768, 3072) halves of K in pairs, sums by way
// of distributed shared memory, 8.5 for 8.9 us alone but the chain 3 us slower, quarters in fours
// 15; asking L2 for the next product's weights, nothing.
// Rows that are not multiples of 128 bytes cost up to a third: 204800 x 4000 x 1000 takes 3326 us
// with strides of 1000 and 4000, and 2505 with 1024 and 4032.
#include "gemm_slim_hopper.cuh"

using namespace products;

#define KERNEL(NAME, T, KIND, ...)                                                                 \
    extern "C" __global__ void __launch_bounds__(Shape<__VA_ARGS__>::THREADS, 1)                   \
        NAME(const __grid_constant__ GemmStep p) {                                                 \
        product<T, Shape<__VA_ARGS__>, KIND>(p);                                                   \
    }

// The shapes of `step::gemm_hopper`, in its order.
#define LARGE 2, 128, 2, true, 5, 2
#define WIDE 1, 192, 1, false, 5, 1
#define SMALL 1, 64, 1, false, 8, 1

#ifndef KERNELS
#define KERNELS(T, SUFFIX)                                                                         \
    KERNEL(gemm_large_linear_##SUFFIX, T, LINEAR, LARGE)                                           \
    KERNEL(gemm_large_gated_##SUFFIX, T, GATED, LARGE)                                             \
    KERNEL(gemm_wide_linear_##SUFFIX, T, LINEAR, WIDE)                                             \
    KERNEL(gemm_wide_gated_##SUFFIX, T, GATED, WIDE)                                               \
    KERNEL(gemm_small_linear_##SUFFIX, T, LINEAR, SMALL)                                           \
    KERNEL(gemm_small_gated_##SUFFIX, T, GATED, SMALL)
#endif

KERNELS(__half, f16)
KERNELS(__nv_bfloat16, bf16)

#define SLIM(NAME, T, ...)                                                                         \
    extern "C" __global__ void __launch_bounds__(Slim<__VA_ARGS__>::THREADS, 1)                    \
        NAME(const __grid_constant__ GemmStep p) {                                                 \
        slim_product<T, Slim<__VA_ARGS__>>(p);                                                     \
    }
SLIM(gemm_slim48_f16, __half, 48, 10)
SLIM(gemm_slim48_bf16, __nv_bfloat16, 48, 10)
SLIM(gemm_slim144_f16, __half, 144, 7)
SLIM(gemm_slim144_bf16, __nv_bfloat16, 144, 7)

// Between them the norms of an encoder have no kernels of their own.
#define NORMED_SLIM(NAME, T, KIND, ...)                                                            \
    extern "C" __global__ void __launch_bounds__(Slim<__VA_ARGS__>::THREADS, 1)                    \
        NAME(const __grid_constant__ GemmStep p) {                                                 \
        slim_product<T, Slim<__VA_ARGS__>, KIND>(p);                                               \
    }
#define NORMED_LARGE(NAME, T, KIND)                                                                \
    extern "C" __global__ void __launch_bounds__(Shape<LARGE>::THREADS, 1)                         \
        NAME(const __grid_constant__ GemmStep p) {                                                 \
        product<T, Shape<LARGE>, KIND, NORMED>(p);                                                 \
    }
#define NORMED_KERNELS(T, SUFFIX)                                                                  \
    NORMED_LARGE(gemm_normed_large_linear_##SUFFIX, T, LINEAR)                                     \
    NORMED_LARGE(gemm_normed_large_gated_##SUFFIX, T, GATED)                                       \
    NORMED_SLIM(gemm_normed144_linear_##SUFFIX, T, LINEAR, 144, 8, NORMED)                         \
    NORMED_SLIM(gemm_normed144_gated_##SUFFIX, T, GATED, 144, 8, NORMED)                           \
    NORMED_SLIM(gemm_normed192_linear_##SUFFIX, T, LINEAR, 192, 7, NORMED)                         \
    NORMED_SLIM(gemm_normed192_gated_##SUFFIX, T, GATED, 192, 7, NORMED)                           \
    SLIM(gemm_stream48_##SUFFIX, T, 48, 12, STREAM)                                                \
    SLIM(gemm_stream64_##SUFFIX, T, 64, 12, STREAM)
NORMED_KERNELS(__half, f16)
NORMED_KERNELS(__nv_bfloat16, bf16)

namespace products {

// f32 rows in 16 bits, for products that read them as such.
struct NarrowRows {
    const float *from;
    void *to;
    unsigned long long from_stride;
    unsigned rows, columns;
    unsigned to_stride; // a multiple of 8; what is beyond the columns becomes zeros
    unsigned reserved;
};

// A thread, 8 columns of a row: 32 bytes in, 16 out.
template <typename T> __device__ __forceinline__ void narrow(const NarrowRows &p) {
    wait_for_earlier();
    const unsigned groups = p.to_stride / 8;
    const unsigned long long index = blockIdx.x * 256ull + threadIdx.x;
    const unsigned row = index / groups, column = index % groups * 8;
    if (row >= p.rows)
        return;
    const float *from = p.from + row * p.from_stride + column;
    float x[8];
    if (column + 8 <= p.columns && reinterpret_cast<unsigned long long>(from) % 16 == 0) {
        const float4 low = reinterpret_cast<const float4 *>(from)[0];
        const float4 high = reinterpret_cast<const float4 *>(from)[1];
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = column + i < p.columns ? from[i] : 0.0f;
    }
    uint4 packed = {
        pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])
    };
    T *to = static_cast<T *>(p.to) + static_cast<unsigned long long>(row) * p.to_stride + column;
    *reinterpret_cast<uint4 *>(to) = packed;
}

} // namespace products

extern "C" __global__ void __launch_bounds__(256) narrow_f16(const __grid_constant__ NarrowRows p) {
    narrow<__half>(p);
}
extern "C" __global__ void __launch_bounds__(256)
    narrow_bf16(const __grid_constant__ NarrowRows p) {
    narrow<__nv_bfloat16>(p);
}
