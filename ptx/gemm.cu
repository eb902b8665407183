// Y = residual + activation(X · Wᵀ + bias) ⊙ gate(X · W_gᵀ + bias_g), for all formats and shapes.
// Not attention's products, and not Hopper's own instructions (`gemm_hopper.cu`).
//
// Ladder, in TFLOP/s of 8192 x 4096 x 4096 in f16 (H200, 2026-11-21; the tensor cores' older
// instruction does 634 in registers, cuBLAS with Hopper's own 766):
//  1. f32 multiply-adds, 64 x 64 tiles, guarded loads of every layout: 17.
//  2. mma.sync on 128 x 128 tiles from three stages of asynchronous copies: 315. Half of the
//     instructions are addresses.
//  3. Running pointers, bounds as bits, fragments of the next step read ahead, also across the
//     stages' barrier: 363.
//  4. Results leave through shared memory, each thread with its own columns, so that biases are
//     read once (12 us of a tile were waits for them): 395, and 128 x 256 tiles where many.
// In f32 the same with three tf32 products for one: 48 with the conversion instruction, 63 with
// integer rounding and rounds that do not wait for one another (multiply-adds do 65 in registers,
// cuBLAS 50); tf32 176, int8 376, fp8 324.
// Few rows (1 x 2304 x 768): 3.2 us, with the weights requested before the kernel ahead has ended
// 2.8 (cuBLAS 3.4).

#include "dependent.cuh"
#include "gemm_mma.cuh"

struct TransposeArguments {
    unsigned long long from; // f32 [outer, k, channels]
    unsigned long long to;   // [outer * channels, to_row]
    unsigned outer;
    unsigned k;
    unsigned channels;
    unsigned to_row;  // elements, at least k
    unsigned element; // of `to`
    unsigned reserved;
};

// Puts the axis before the last one last, for products over time. A block moves 32 by 32 numbers.
extern "C" __global__ void __launch_bounds__(256) gemm_transpose(const TransposeArguments a) {
    __shared__ float tile[32][33];
    wait_for_earlier();
    const unsigned tiles_k = (a.k + 31) / 32, tiles_c = (a.channels + 31) / 32;
    const unsigned outer = blockIdx.x / (tiles_k * tiles_c);
    const unsigned k0 = blockIdx.x / tiles_c % tiles_k * 32, c0 = blockIdx.x % tiles_c * 32;
    const unsigned x = threadIdx.x % 32, y = threadIdx.x / 32;
    const float* from = (const float*)a.from + (size_t)outer * a.k * a.channels;
#pragma unroll
    for (unsigned i = 0; i < 32; i += 8) {
        const unsigned k = k0 + y + i, c = c0 + x;
        if (k < a.k && c < a.channels) tile[y + i][x] = from[(size_t)k * a.channels + c];
    }
    __syncthreads();
#pragma unroll
    for (unsigned i = 0; i < 32; i += 8) {
        const unsigned k = k0 + x, c = c0 + y + i;
        if (k >= a.k || c >= a.channels) continue;
        const size_t row = (size_t)outer * a.channels + c;
        store_element(a.to, row * a.to_row + k, a.element, tile[x][y + i]);
    }
}

// One kernel a format and a tile. Names end in the tile and the slices of k.
#define KERNEL(NAME, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS, SLICES, STAGES, BLOCKS, ...)          \
    using NAME##_shape = Shape<                                                                    \
        __VA_ARGS__, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS, SLICES, STAGES, BLOCKS>;              \
    extern "C" __global__ void __launch_bounds__(NAME##_shape::THREADS, BLOCKS)                    \
        NAME(const __grid_constant__ GemmArguments a) {                                            \
        gemm_mma<NAME##_shape>(a);                                                                 \
    }

// Tiles of the throughput class: k in one piece.
#define THROUGHPUT(NAME, ...)                                                                      \
    KERNEL(NAME##_128x256, 128, 256, 64, 64, 1, 3, 1, __VA_ARGS__)                                 \
    KERNEL(NAME##_128x128, 128, 128, 64, 64, 1, 3, 2, __VA_ARGS__)                                 \
    KERNEL(NAME##_64x64, 64, 64, 32, 32, 1, 4, 2, __VA_ARGS__)                                     \
    KERNEL(NAME##_16x64, 16, 64, 16, 16, 1, 6, 2, __VA_ARGS__)
// Tiles of the latency class: k in four.
#define LATENCY(NAME, ...)                                                                         \
    KERNEL(NAME##_64x64x4, 64, 64, 32, 32, 4, 3, 1, __VA_ARGS__)                                   \
    KERNEL(NAME##_32x32x4, 32, 32, 16, 16, 4, 3, 1, __VA_ARGS__)                                   \
    KERNEL(NAME##_16x16x4, 16, 16, 16, 16, 4, 4, 1, __VA_ARGS__)
#define FORMAT(NAME, ...) THROUGHPUT(NAME, __VA_ARGS__) LATENCY(NAME, __VA_ARGS__)

FORMAT(gemm_f16, Multiply::F16, false, Stored::AS_MULTIPLIED)
FORMAT(gemm_f16_from_f32, Multiply::F16, true, Stored::AS_MULTIPLIED)
FORMAT(gemm_bf16, Multiply::BF16, false, Stored::AS_MULTIPLIED)
FORMAT(gemm_bf16_from_f32, Multiply::BF16, true, Stored::AS_MULTIPLIED)
FORMAT(gemm_int8, Multiply::F16, false, Stored::INT8)
FORMAT(gemm_int8_from_f32, Multiply::F16, true, Stored::INT8)
FORMAT(gemm_fp8, Multiply::F16, false, Stored::E4M3)
FORMAT(gemm_fp8_from_f32, Multiply::F16, true, Stored::E4M3)
FORMAT(gemm_tf32, Multiply::TF32, false, Stored::AS_MULTIPLIED)

// Three products for one: half as many sums fit in a thread.
KERNEL(gemm_f32_128x128, 128, 128, 64, 32, 1, 3, 1, Multiply::F32, false, Stored::AS_MULTIPLIED)
KERNEL(gemm_f32_64x64, 64, 64, 32, 32, 1, 4, 2, Multiply::F32, false, Stored::AS_MULTIPLIED)
KERNEL(gemm_f32_16x64, 16, 64, 16, 16, 1, 6, 2, Multiply::F32, false, Stored::AS_MULTIPLIED)
LATENCY(gemm_f32, Multiply::F32, false, Stored::AS_MULTIPLIED)
