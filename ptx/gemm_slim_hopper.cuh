// Products of a few hundred rows, in tiles that suit the number of multiprocessors rather than what
// tensor copies can store: 64 rows by 48 to 192 columns, a tile a block.
//
// Same operands and bits as `gemm_hopper.cuh`: one sum over all of K in order. What bounds these
// products is what a multiprocessor can take in, 64 bytes a cycle; shared operands arrive in each
// block all the same. So every multiprocessor should have a tile, and none two. Results go straight
// to memory.
#pragma once
#include "gemm_hopper.cuh"

#define PLACES_24 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23"

#define PLACES_72 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
    "%64,%65,%66,%67,%68,%69,%70,%71"

#define SUMS_OF_48 SUMS_16(d, 0), SUMS_8(d, 16)
#define SUMS_OF_144 SUMS_64(d, 0), SUMS_8(d, 64)
PRODUCT(__half, "f16", 48, PLACES_24, SUMS_OF_48, "%24", "%25", "%26")
PRODUCT(__nv_bfloat16, "bf16", 48, PLACES_24, SUMS_OF_48, "%24", "%25", "%26")
PRODUCT(__half, "f16", 144, PLACES_72, SUMS_OF_144, "%72", "%73", "%74")
PRODUCT(__nv_bfloat16, "bf16", 144, PLACES_72, SUMS_OF_144, "%72", "%73", "%74")

namespace products {

template <int COLUMNS_, int STAGES_, Side SIDE_ = PLAIN> struct Slim {
    static constexpr int ROWS = 64, COLUMNS = COLUMNS_, STAGES = STAGES_;
    static constexpr int X_BYTES = ROWS * ROW_BYTES, W_BYTES = COLUMNS * ROW_BYTES;
    static constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr int GROUPS = COLUMNS / 8;           // of columns: four sums of each thread
    static constexpr int LINE_BYTES = COLUMNS * 2 + 16;  // of 16-bit results, banks apart
    static constexpr Side SIDE = SIDE_;
    static constexpr int SHARED_BYTES =
        STAGES * STAGE_BYTES + STAGES * 16 + (SIDE == NORMED ? COLUMNS * 8 : 0);
    static constexpr int THREADS = 160;
    static_assert(SHARED_BYTES <= 232448, "more shared memory than a block may have");
    static_assert(ROWS * LINE_BYTES <= STAGES * STAGE_BYTES, "results are brought together there");
};

template <typename T, typename S> __device__ __forceinline__ void slim_load(
    const GemmStep &p, unsigned stages, unsigned full, unsigned empty, int row, int column
) {
    const unsigned early = min(p.k_blocks, unsigned(S::STAGES));
    for (unsigned k = 0; k < early; k++) {
        barrier_arrive_expect(full + 8 * k, S::STAGE_BYTES);
        tensor_load(
            stages + k * S::STAGE_BYTES + S::X_BYTES, &p.w, full + 8 * k, k * K_BLOCK<T>, column
        );
    }
    earlier_have_ended();
    Ring<S::STAGES> ring;
    for (unsigned k = 0; k < p.k_blocks; k++) {
        const unsigned at = full + 8 * ring.stage, x = stages + ring.stage * S::STAGE_BYTES;
        if (k >= early) {
            barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
            barrier_arrive_expect(at, S::STAGE_BYTES);
            tensor_load(x + S::X_BYTES, &p.w, at, k * K_BLOCK<T>, column);
        }
        tensor_load(x, &p.x, at, k * K_BLOCK<T>, row);
        ring.advance();
    }
}

// Two numbers of a row.
template <typename T>
__device__ __forceinline__ float2 pair_at(unsigned long long from, size_t at, unsigned bits) {
    if (bits == 32)
        return *reinterpret_cast<const float2 *>(from + at * 4);
    return unpack<T>(*reinterpret_cast<const unsigned *>(from + at * 2));
}

// Biases of a tile's columns to shared memory, and behind them the sums of W's rows.
template <typename S>
__device__ __forceinline__ void slim_biases(const GemmStep &p, unsigned to, unsigned column) {
    for (unsigned i = threadIdx.x; i < 2 * S::COLUMNS; i += 128) {
        const unsigned at = i < S::COLUMNS ? column + i : p.n + column + i - S::COLUMNS;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + i * 4), "f"(__ldg(p.bias + at))
                     : "memory");
    }
    named_barrier(2, 128);
}

__device__ __forceinline__ float2 shared_pair(unsigned address) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address));
    return pair;
}

// Mean of a row's columns in a tile, and the sum of their squared deviations. In this order also
// `encoder_statistics` sums.
template <int GROUPS>
__device__ __forceinline__ float2 row_statistics(const float (&sums)[GROUPS * 4], int half) {
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        sum += sums[4 * g + 2 * half] + sums[4 * g + 2 * half + 1];
    const float mean = __fmul_rn(quad_sum(sum), 1.0f / (GROUPS * 8));
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const float x = sums[4 * g + 2 * half] - mean, y = sums[4 * g + 2 * half + 1] - mean;
        square = fmaf(x, x, fmaf(y, y, square));
    }
    return make_float2(mean, quad_sum(square));
}

template <typename T, typename S, Activation KIND = LINEAR>
__device__ __forceinline__ void slim_product(const GemmStep &p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const unsigned stages = shared_address(shared);
    const unsigned full = stages + S::STAGES * S::STAGE_BYTES, empty = full + S::STAGES * 8;
    const int row = blockIdx.x % p.row_tiles * S::ROWS;
    const int column = blockIdx.x / p.row_tiles * S::COLUMNS;
    if (threadIdx.x == 128) {
        tensor_prefetch(&p.x);
        tensor_prefetch(&p.w);
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 4);
        }
        barrier_init_fence();
        async_fence();
    }
    let_later_start();
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x == 128)
            slim_load<T, S>(p, stages, full, empty, row, column);
        return;
    }
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // This thread's results: rows r and r + 8, two columns of each group from c on.
    const unsigned r = row + warp * 16 + lane / 4, c = column + lane % 4 * 2;
    float2 bias[S::GROUPS], extra[S::GROUPS][2];
    const unsigned biases = empty + S::STAGES * 8;
    if constexpr (S::SIDE == NORMED) {
        slim_biases<S>(p, biases, column);
    } else {
#pragma unroll
        for (int g = 0; g < S::GROUPS; g++)
            bias[g] = p.bias != nullptr ? *reinterpret_cast<const float2 *>(p.bias + c + 8 * g)
                                        : make_float2(0.0f, 0.0f);
    }
    earlier_have_ended();
    RowNorm norms[2];
    if constexpr (S::SIDE == NORMED) {
        row_norms<2>(norms, p, {r, r + 8});
    } else {
#pragma unroll
        for (int g = 0; g < S::GROUPS; g++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                extra[g][half] = make_float2(0.0f, 0.0f);
                const size_t at = (r + 8 * half) * size_t(p.residual_stride) + c + 8 * g;
                if (p.residual_bits != 0 && r + 8 * half < p.m)
                    extra[g][half] = pair_at<T>(p.residual_at, at, p.residual_bits);
            }
    }
    float sums[S::COLUMNS / 2];
    Ring<S::STAGES> ring;
    unsigned previous = 0;
    for (unsigned k = 0; k < p.k_blocks; k++) {
        barrier_wait(full + 8 * ring.stage, ring.parity);
        const unsigned x = stages + ring.stage * S::STAGE_BYTES;
        const unsigned long long a = operand(x), b = operand(x + S::X_BYTES);
        products_begin();
#pragma unroll
        for (int part = 0; part < K_BLOCK<T> / 16; part++)
            Product<T, S::COLUMNS>::run(sums, a + 2 * part, b + 2 * part, part > 0 || k > 0);
        products_commit();
        if (k > 0) {
            products_wait<1>();
            if (lane == 0)
                barrier_arrive(previous);
        }
        previous = empty + 8 * ring.stage;
        ring.advance();
    }
    products_wait<0>();
    pin(sums);
#pragma unroll
    for (int g = 0; g < S::GROUPS; g++) {
        float2 w_sum;
        if constexpr (S::SIDE == NORMED) {
            const unsigned from = biases + (lane % 4 * 2 + 8 * g) * 4;
            bias[g] = shared_pair(from);
            w_sum = shared_pair(from + S::COLUMNS * 4);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float &x = sums[4 * g + 2 * half], &y = sums[4 * g + 2 * half + 1];
            float2 both = {x, y};
            if constexpr (S::SIDE == NORMED)
                normalise(both, norms[half], w_sum, bias[g]);
            else
                both.x += bias[g].x, both.y += bias[g].y;
            x = activate<KIND>(p, both.x);
            y = activate<KIND>(p, both.y);
            if (S::SIDE != NORMED && p.residual_bits != 0)
                x += extra[g][half].x, y += extra[g][half].y;
        }
    }
    if (S::SIDE == STREAM || S::SIDE == PLAIN && p.y_f32) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float *y = reinterpret_cast<float *>(p.y_at) + (r + 8 * half) * size_t(p.y_stride) + c;
            if (r + 8 * half >= p.m)
                continue;
#pragma unroll
            for (int g = 0; g < S::GROUPS; g++)
                *reinterpret_cast<float2 *>(y + 8 * g) =
                    make_float2(sums[4 * g + 2 * half], sums[4 * g + 2 * half + 1]);
        }
        if (S::SIDE == PLAIN)
            return;
    }
    if constexpr (S::SIDE == STREAM) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float2 found = row_statistics<S::GROUPS>(sums, half);
            const unsigned y_row = r + 8 * half, group = column / S::COLUMNS;
            if (lane % 4 == 0 && y_row < p.m)
                reinterpret_cast<float2 *>(p.statistics)[y_row * size_t(p.groups) + group] = found;
        }
    }
    const unsigned long long to = S::SIDE == STREAM ? p.h_at : p.y_at;
    const size_t to_stride = S::SIDE == STREAM ? p.h_stride : p.y_stride;
    // A warp's 16 rows in whole chunks, by way of the stages: all warps have read them.
    named_barrier(1, 128);
    const unsigned lines = stages + warp * 16 * S::LINE_BYTES;
#pragma unroll
    for (int g = 0; g < S::GROUPS; g += 2)
        matrix_store(
            lines + lane % 16 * S::LINE_BYTES + (g + lane / 16) * 16,
            pack<T>(sums[4 * g], sums[4 * g + 1]), pack<T>(sums[4 * g + 2], sums[4 * g + 3]),
            pack<T>(sums[4 * g + 4], sums[4 * g + 5]), pack<T>(sums[4 * g + 6], sums[4 * g + 7])
        );
    __syncwarp();
    static_assert(S::GROUPS % 2 == 0 && 16 * S::GROUPS % 32 == 0, "whole chunks for all lanes");
#pragma unroll
    for (int i = 0; i < S::GROUPS / 2; i++) {
        const unsigned chunk = i * 32 + lane, line = chunk / S::GROUPS, at = chunk % S::GROUPS;
        const unsigned y_row = row + warp * 16 + line;
        uint4 eight;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
                     : "r"(lines + line * S::LINE_BYTES + at * 16));
        T *y = reinterpret_cast<T *>(to) + y_row * to_stride + column + at * 8;
        if (y_row < p.m)
            *reinterpret_cast<uint4 *>(y) = eight;
    }
}

} // namespace products
