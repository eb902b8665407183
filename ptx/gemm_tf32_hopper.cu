// `gemm_hopper.cu`'s products for f32 that is multiplied as tf32: the same tiles and bytes, half
// the numbers.
//
// The tensor cores look at the first 19 bits of a number. Tensor maps of tf32 make the copies round
// to nearest on their way to shared memory, for nothing: with maps of f32, which cut, results come
// out smaller by 2e-4 to 4e-4 of themselves, and twice as far off (2.0e-3 for 0.9e-3 of 1).
//
// Ladder (H200, 2026-11-21; TFLOP/s at 8192 x 4096 x 4096, 65536 x 2304 x 768, 65536 x 768 x 3072
// with residual; predicted: half of f16's, 361, 343, 320; cuBLAS in tf32, the bare products, same
// job: 343, 383, 396):
// 1. `gemm.cu`: 176 at the first.
// 2. Ships: wgmma: 368, 379, 334; 512 rows take 10.0, 6.2, 11.1 (GELU) and 14.7 us for (n, k) =
//    (2304, 768), (768, 768), (3072, 768) and (768, 3072); cuBLAS 16 each.
#include "gemm_hopper.cuh"

using namespace products;

#define KERNEL(NAME, KIND, ...)                                                                    \
    extern "C" __global__ void __launch_bounds__(Shape<__VA_ARGS__>::THREADS, 1)                   \
        NAME(const __grid_constant__ GemmStep p) {                                                 \
        product<float, Shape<__VA_ARGS__>, KIND>(p);                                               \
    }

// The shapes of `step::gemm_hopper`, in its order.
#define LARGE 2, 128, 2, true, 5, 2
#define WIDE 1, 192, 1, false, 5, 1
#define SMALL 1, 64, 1, false, 8, 1

KERNEL(gemm_large_linear_tf32, LINEAR, LARGE)
KERNEL(gemm_large_gated_tf32, GATED, LARGE)
KERNEL(gemm_wide_linear_tf32, LINEAR, WIDE)
KERNEL(gemm_wide_gated_tf32, GATED, WIDE)
KERNEL(gemm_small_linear_tf32, LINEAR, SMALL)
KERNEL(gemm_small_gated_tf32, GATED, SMALL)
