// Products of a few rows with 16-bit weights as soon as possible:
// Y = residual + activation(X · Wᵀ + bias). Not gates, products side by side or other formats:
// those are `gemm.cu`'s.
//
// A block makes 16 rows by 8 columns; its warps divide K. Every thread asks for all of its weights,
// which depend on no earlier kernel, before it waits for that: when the kernel ahead has ended
// there are the rows to read, a handful of products, and a sum by way of shared memory.
//
// Ladder (H200, 2026-11-21; f16, one row, of a chain of kernels):
// - `gemm.cu`, 16 x 16 tiles whose rings begin before the wait: 768 to 768 5.3 us, 768 to 3072 3.1,
//   3072 to 768 6.5;
// - ships: 1.6, 1.5 and 2.8.
#include "gemm.cuh"
#include "overlap.cuh"

// Named: the compiler gives unnamed ones a new name in every build.
namespace few {

constexpr unsigned WARPS = 8, ROWS = 16, COLUMNS = 8, STEP = 32; // of K, a warp's products

template <typename T> __device__ __forceinline__ void multiply(
    float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1
);
#define FEW_PRODUCT(TYPE, NAME)                                                                    \
    template <> __device__ __forceinline__ void multiply<TYPE>(                                    \
        float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,            \
        unsigned b1                                                                                \
    ) {                                                                                            \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32"                 \
                     " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                      \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                              \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                      \
    }
FEW_PRODUCT(__half, "f16")
FEW_PRODUCT(__nv_bfloat16, "bf16")

// Eight neighbouring elements, or zeros.
__device__ __forceinline__ uint4 eight(const void* from, bool there) {
    return there ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
}

// STEPS: of K that a warp makes at most. A lane has eight neighbouring elements of a step, of a row
// of W and of two of X; two products take them in that order, the same of both.
template <typename T, unsigned STEPS>
__device__ __forceinline__ void product(const GemmArguments& a) {
    __shared__ __align__(16) float sums[WARPS][ROWS][COLUMNS];
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, line = lane / 4;
    const unsigned n0 = blockIdx.x * COLUMNS, row0 = blockIdx.y * ROWS;
    const unsigned k0 = warp * STEP + lane % 4 * 8;
    const T* w = (const T*)a.w + (size_t)(n0 + line) * a.w_stride + k0;
    uint4 weights[STEPS];
#pragma unroll
    for (unsigned i = 0; i < STEPS; i++)
        weights[i] = eight(w + i * WARPS * STEP, k0 + i * WARPS * STEP < a.k);
    let_later_start();
    // The four results that this thread finishes, if it is of the first warp.
    const unsigned own = lane / 2, row = row0 + own, n = n0 + lane % 2 * 4;
    const bool finishes = warp == 0 && row < a.m;
    Columns columns;
    if (finishes) columns = load_columns(a, 0, n, n, 4);
    earlier_have_ended();
    float4 old = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (finishes && a.residual)
        old = load_four(a.residual, row * a.residual_outer + n, a.residual_element);
    const T* x = (const T*)a.x + (row0 + line) * a.x_row + k0;
    const bool here = row0 + line < a.m, below = row0 + line + 8 < a.m;
    float d[4] = {};
#pragma unroll
    for (unsigned i = 0; i < STEPS; i++) {
        const unsigned k = i * WARPS * STEP;
        const bool inside = k0 + k < a.k;
        const uint4 u = eight(x + k, here && inside);
        const uint4 v = eight(x + 8 * a.x_row + k, below && inside);
        multiply<T>(d, u.x, v.x, u.y, v.y, weights[i].x, weights[i].y);
        multiply<T>(d, u.z, v.z, u.w, v.w, weights[i].z, weights[i].w);
    }
    *(float2*)&sums[warp][line][lane % 4 * 2] = make_float2(d[0], d[1]);
    *(float2*)&sums[warp][line + 8][lane % 4 * 2] = make_float2(d[2], d[3]);
    __syncthreads();
    if (!finishes) return;
    const float4 y =
        finish_four<WARPS, ROWS * COLUMNS>(a, columns, &sums[0][own][lane % 2 * 4]);
    store_four(a.y, row * a.y_outer + n, a.y_element, add(y, old));
}

} // namespace few

#define FEW(NAME, T, STEPS, BLOCKS)                                                                \
    extern "C" __global__ void __launch_bounds__(32 * few::WARPS, BLOCKS)                          \
        NAME(const __grid_constant__ GemmArguments a) {                                            \
        few::product<T, STEPS>(a);                                                                 \
    }
#define FEW_FORMATS(STEPS, BLOCKS)                                                                 \
    FEW(gemm_few##STEPS##_f16, __half, STEPS, BLOCKS)                                              \
    FEW(gemm_few##STEPS##_bf16, __nv_bfloat16, STEPS, BLOCKS)
FEW_FORMATS(3, 3)
FEW_FORMATS(6, 2)
FEW_FORMATS(12, 1)
