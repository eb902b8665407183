// `gemm_hopper.cu`'s products for f32, as three products of tf32: high · high and, before it, the
// two of a high and a low part. Weights come split; X is split in registers, from where the tensor
// cores read it.
//
// Ladder (H200, 2026-11-21; TFLOP/s at 8192 x 4096 x 4096, 65536 x 2304 x 768, 65536 x 768 x 3072
// with residual; a third of the tensor cores' tf32 is 165; cuBLAS without tf32, the bare products,
// another job: 51, 49, 49; errors 4e-7 to 9e-7 of 1, cuBLAS 1e-6 to 2e-6):
// 1. `gemm.cu`: 63 at the first.
// 2. Wgmma, two warpgroups of 64 x 128, predicted 130 to 140: 144, 137, 138. Tiles of 64 x 64 for
//    few rows: 512 rows take 26.7, 12.4, 26.9 and 38.6 us for (n, k) = (2304, 768), (768, 768),
//    (3072, 768) and (768, 3072); cuBLAS 56, 24, 67, 66.
// 3. Ships: 2, with X of the next stage split while one is multiplied in the tiles of 64 x 64
//    (predicted 0.29 us a stage for 0.39, found 0.34): 29.2, 11.0, 30.1, 33.5 by these; tiles of
//    two warpgroups 30.1 and 31.2 for the first and third in the same job. In theirs the same took
//    a tenth more: each holds a stage more, of four.
#include "gemm_hopper.cuh"

using namespace products;

#define KERNEL(NAME, KIND, ...)                                                                    \
    extern "C" __global__ void __launch_bounds__(Shape<__VA_ARGS__>::THREADS, 1)                   \
        NAME(const __grid_constant__ GemmStep p) {                                                 \
        product<Split, Shape<__VA_ARGS__>, KIND>(p);                                               \
    }
#define KERNELS(NAME, ...)                                                                         \
    KERNEL(gemm_##NAME##_linear_f32, LINEAR, __VA_ARGS__)                                          \
    KERNEL(gemm_##NAME##_gated_f32, GATED, __VA_ARGS__)                                            \
    KERNEL(gemm_##NAME##_gelu_f32, GELU, __VA_ARGS__)

// The shapes of `step::gemm_hopper`, in its order.
#define PAIR_F32 1, 128, 2, false, 4, 1, 2
#define SMALL_F32 1, 64, 1, false, 8, 1, 2

KERNELS(pair, PAIR_F32)
KERNELS(small, SMALL_F32)
