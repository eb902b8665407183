// The product kernel of Hopper's tensor cores as a template: tiles, ring of stages, epilogue. The
// kernels are `gemm_hopper.cu`'s, which says how it works and what was tried.
#pragma once
#include "dependent.cuh"
#include "overlap.cuh"
#include "wgmma.cuh"

// Named: the compiler gives unnamed ones a new name in every build.
namespace products {

// What a product is made of beside its operands. Mirrors `step::gemm_hopper`.
struct GemmStep {
    TensorMap x; // [m, k], boxes of 64 columns by the tile's rows
    TensorMap w; // [n, k], boxes of 64 columns by the tile's columns / CLUSTER
    TensorMap y; // [m, n], boxes of 128 bytes by a warpgroup's rows
    TensorMap residual; // [m, n], boxes of 128 bytes by the tile's rows
    const float *bias;  // [n], or null
    // Activation. LINEAR: max(x, floor). GATED: (scale · x + shift) · sigmoid(...) + offset, the
    // sigmoid as 1 / (1 + 2^-(x (c0 + c1 x² + c2 x⁴))).
    float floor;
    float c0, c1, c2;
    float scale, shift, offset;
    unsigned n;
    unsigned k_blocks;
    unsigned row_tiles; // of CLUSTER tiles
    unsigned column_tiles;
    unsigned group; // row tiles whose products with all of W are made before the next
    unsigned y_f32;
    unsigned residual_bits; // 0 for none, 16 or 32
    // For kernels that write without tensor copies; strides in elements.
    unsigned long long y_at, residual_at;
    unsigned m, y_stride, residual_stride;
    // Of rows whose norm a product makes up for (NORMED), or that it describes (STREAM): for each
    // `group_columns` of a row, of which there are `groups`, mean and squared deviation from it.
    unsigned rms; // no mean is taken off
    unsigned long long statistics;
    unsigned long long h_at; // STREAM: y once more, in 16 bits
    unsigned groups, group_columns;
    float eps;
    unsigned h_stride;
};
static_assert(sizeof(GemmStep) == 640, "as `step::gemm_hopper` has it");

// GELU: as exact as f32 wants it, where GATED's polynomial is for 16 bits.
enum Activation { LINEAR, GATED, GELU };

template <Activation KIND> __device__ __forceinline__ float activate(const GemmStep &p, float x) {
    if constexpr (KIND == LINEAR) {
        float y;
        asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(p.floor));
        return y;
    } else if constexpr (KIND == GELU) {
        // erf to 3e-7 (Abramowitz and Stegun 7.1.28); infinite beyond where it is 1.
        float z = 0.70710678f * fabsf(x), q = fmaf(z, 0.0000430638f, 0.0002765672f), rest;
        q = fmaf(z, fmaf(z, fmaf(z, q, 0.0001520143f), 0.0092705272f), 0.0422820123f);
        q = fmaf(z, fmaf(z, q, 0.0705230784f), 1.0f);
        q *= q, q *= q, q *= q, q *= q;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(rest) : "f"(q));
        return 0.5f * fmaf(fabsf(x), 1.0f - rest, x);
    } else {
        float square = fminf(x * x, 36.0f);
        float exponent = -x * fmaf(fmaf(p.c2, square, p.c1), square, p.c0);
        float power, gate;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(gate) : "f"(1.0f + power));
        return fmaf(fmaf(p.scale, x, p.shift), gate, p.offset);
    }
}

template <typename T> __device__ __forceinline__ unsigned pack(float low, float high);
template <> __device__ __forceinline__ unsigned pack<__half>(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<unsigned *>(&pair);
}
template <> __device__ __forceinline__ unsigned pack<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&pair);
}

template <typename T> __device__ __forceinline__ float2 unpack(unsigned bits);
template <> __device__ __forceinline__ float2 unpack<__half>(unsigned bits) {
    return __half22float2(*reinterpret_cast<__half2 *>(&bits));
}
template <> __device__ __forceinline__ float2 unpack<__nv_bfloat16>(unsigned bits) {
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162 *>(&bits));
}

// What a product does beside itself. NORMED: X is normalised, without that anyone writes the
// result: W's rows are scaled by the norm's weights, `bias` has what its shifts come to, and behind
// that the sums of W's rows, by which the mean is taken off; rows are scaled last. STREAM: Y is the
// residual stream, written in f32 and in 16 bits, and described for a NORMED product.
enum Side { PLAIN, NORMED, STREAM };

// A normalised row is scale · x + shift.
struct RowNorm {
    float scale, shift;
};

constexpr int QUAD_GROUPS = 8; // of columns, that a thread looks at

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// The norms of rows that the threads of a quad have in common, from their groups' statistics.
template <int ROWS> __device__ __forceinline__ void row_norms(
    RowNorm (&norms)[ROWS], const GemmStep &p, const unsigned (&rows)[ROWS]
) {
    const float2 *from = reinterpret_cast<const float2 *>(p.statistics) + threadIdx.x % 4;
    float2 part[ROWS][QUAD_GROUPS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < QUAD_GROUPS; j++) {
            part[i][j] = make_float2(0.0f, 0.0f);
            if (threadIdx.x % 4 + 4 * j < p.groups && rows[i] < p.m)
                part[i][j] = __ldcg(from + rows[i] * size_t(p.groups) + 4 * j);
        }
    const float columns = p.group_columns, share = __frcp_rn(float(p.groups));
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float sum = 0.0f, square = 0.0f;
#pragma unroll
        for (int j = 0; j < QUAD_GROUPS; j++)
            sum += part[i][j].x;
        const float mean = __fmul_rn(quad_sum(sum), share); // rounded, in every kernel
#pragma unroll
        for (int j = 0; j < QUAD_GROUPS; j++) {
            const float apart = part[i][j].x - mean;
            if (threadIdx.x % 4 + 4 * j < p.groups)
                square += fmaf(apart * apart, columns, part[i][j].y);
        }
        const float variance = quad_sum(square) * share / columns;
        norms[i].scale = rsqrtf((p.rms ? fmaf(mean, mean, variance) : variance) + p.eps);
        norms[i].shift = p.rms ? 0.0f : -mean * norms[i].scale;
    }
}

// Two sums of a row, normalised, with their biases.
__device__ __forceinline__ void normalise(float2 &y, RowNorm norm, float2 w_sum, float2 bias) {
    y.x = fmaf(norm.scale, y.x, fmaf(norm.shift, w_sum.x, bias.x));
    y.y = fmaf(norm.scale, y.y, fmaf(norm.shift, w_sum.y, bias.y));
}

constexpr int ROW_BYTES = 128;   // of a stage, of a panel

// f32 as two numbers of tf32, the second what the first leaves. W comes as both, 32 numbers of the
// first and then 32 of the second; X is split on its way to the tensor cores.
struct Split {
    float x;
};
template <typename T> constexpr bool IS_SPLIT = false;
template <> constexpr bool IS_SPLIT<Split> = true;

// Elements of K in a stage: one swizzled row.
template <typename T> constexpr int K_BLOCK = ROW_BYTES / sizeof(T);

// The shape of a block's work. A warpgroup multiplies 64·BLOCKS rows by COLUMNS columns.
// ALTERNATE: each warpgroup has tiles of its own, so that one multiplies while the other writes;
// else the warpgroups share a tile, one below the other.
// W_PARTS: rows of W for one of K.
template <
    int BLOCKS_, int COLUMNS_, int GROUPS_, bool ALTERNATE_, int STAGES_, int CLUSTER_,
    int W_PARTS_ = 1>
struct Shape {
    static constexpr int BLOCKS = BLOCKS_, COLUMNS = COLUMNS_, GROUPS = GROUPS_;
    static constexpr bool ALTERNATE = ALTERNATE_;
    static constexpr int STAGES = STAGES_, CLUSTER = CLUSTER_, W_PARTS = W_PARTS_;
    static constexpr int GROUP_ROWS = 64 * BLOCKS;
    static constexpr int ROWS = ALTERNATE ? GROUP_ROWS : GROUP_ROWS * GROUPS;
    static constexpr int X_BYTES = ROWS * ROW_BYTES, W_BYTES = COLUMNS * ROW_BYTES;
    static constexpr int STAGE_BYTES = X_BYTES + W_PARTS * W_BYTES;
    static constexpr int STAGE_PANELS = (ROWS + COLUMNS) / ROWS; // of a residual, in a stage
    static constexpr int PANEL_BYTES = GROUP_ROWS * ROW_BYTES;
    static constexpr int SHARED_BYTES =
        STAGES * STAGE_BYTES + GROUPS * (2 * PANEL_BYTES + COLUMNS * 4) + STAGES * 16;
    static_assert(SHARED_BYTES <= 232448, "more shared memory than a block may have");
    // Warps that release a stage, in all blocks that write it.
    static constexpr int RELEASES = (ALTERNATE ? 4 : 4 * GROUPS) * CLUSTER;
    static constexpr int LOADERS = GROUPS > 1 ? 128 : 32;
    static constexpr int THREADS = GROUPS * 128 + LOADERS;
};

struct Tile {
    unsigned row, column;
};

// Tiles in the order in which they are made: `group` rows of tiles, column by column.
__device__ __forceinline__ Tile tile_at(const GemmStep &p, unsigned index) {
    unsigned per_group = p.group * p.column_tiles;
    unsigned first = index / per_group * p.group;
    unsigned rows = min(p.row_tiles - first, p.group);
    unsigned inside = index % per_group;
    return {first + inside % rows, inside / rows};
}

// A place in the ring of stages.
template <int STAGES> struct Ring {
    unsigned stage = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ void skip(unsigned places) {
        unsigned at = stage + places;
        parity ^= (at / STAGES) & 1;
        stage = at % STAGES;
    }
};

template <typename S> struct Places {
    unsigned stages, panels, bias, full, empty;
    unsigned w_sums; // of W's rows, NORMED
    __device__ __forceinline__ Places(unsigned base) {
        stages = base;
        panels = stages + S::STAGES * S::STAGE_BYTES;
        bias = panels + S::GROUPS * 2 * S::PANEL_BYTES;
        full = bias + S::GROUPS * S::COLUMNS * 4;
        empty = full + S::STAGES * 8;
        w_sums = empty + S::STAGES * 8;
    }
};

// A slice of K of W's rows: a block's share, for all blocks of its cluster.
template <typename T, typename S>
__device__ __forceinline__ void load_weights(
    const GemmStep &p, unsigned x, unsigned full, unsigned k, int column, unsigned rank
) {
#pragma unroll
    for (unsigned part = 0; part < S::W_PARTS; part++) {
        const unsigned to = x + S::X_BYTES + part * S::W_BYTES;
        const unsigned from = (k * S::W_PARTS + part) * K_BLOCK<T>;
        if constexpr (S::CLUSTER == 1) {
            tensor_load(to, &p.w, full, from, column);
        } else {
            constexpr int SHARE = S::COLUMNS / S::CLUSTER;
            tensor_load_multicast(
                to + rank * SHARE * ROW_BYTES, &p.w, full, from, column + rank * SHARE,
                (1 << S::CLUSTER) - 1
            );
        }
    }
}

template <typename T, typename S>
__device__ __forceinline__ void load_tiles(const GemmStep &p, const Places<S> &at, unsigned rank) {
    unsigned tiles = p.row_tiles * p.column_tiles;
    unsigned panels = p.residual_bits * S::COLUMNS / 8 / ROW_BYTES;
    const unsigned panel_columns = p.residual_bits == 32 ? ROW_BYTES / 4 : ROW_BYTES / 2;
    const unsigned first = blockIdx.x / S::CLUSTER;
    // Weights depend on no earlier kernel: as many as there are stages for are fetched while the
    // one ahead still runs.
    unsigned early = 0;
    if (first < tiles) {
        int column = tile_at(p, first).column * S::COLUMNS;
        for (early = 0; early < min(p.k_blocks, unsigned(S::STAGES)); early++) {
            barrier_arrive_expect(at.full + 8 * early, S::STAGE_BYTES);
            load_weights<T, S>(
                p, at.stages + early * S::STAGE_BYTES, at.full + 8 * early, early, column, rank
            );
        }
    }
    earlier_have_ended();
    Ring<S::STAGES> ring;
    for (unsigned t = first; t < tiles; t += gridDim.x / S::CLUSTER) {
        Tile tile = tile_at(p, t);
        int row = (tile.row * S::CLUSTER + rank) * S::ROWS;
        int column = tile.column * S::COLUMNS;
        // Read last, from far away: asked for first.
        for (unsigned panel = 0; panel < panels; panel++)
            tensor_prefetch_l2(&p.residual, column + panel * panel_columns, row);
        for (unsigned k = 0; k < p.k_blocks; k++) {
            unsigned full = at.full + 8 * ring.stage;
            unsigned x = at.stages + ring.stage * S::STAGE_BYTES;
            if (early > 0) {
                early--;
            } else {
                barrier_wait(at.empty + 8 * ring.stage, ring.parity ^ 1);
                barrier_arrive_expect(full, S::STAGE_BYTES);
                load_weights<T, S>(p, x, full, k, column, rank);
            }
            tensor_load(x, &p.x, full, k * K_BLOCK<T>, row);
            ring.advance();
        }
        for (unsigned panel = 0; panel < panels; panel += S::STAGE_PANELS) {
            barrier_wait(at.empty + 8 * ring.stage, ring.parity ^ 1);
            unsigned full = at.full + 8 * ring.stage;
            unsigned to = at.stages + ring.stage * S::STAGE_BYTES;
            unsigned count = min(panels - panel, unsigned(S::STAGE_PANELS));
            barrier_arrive_expect(full, count * S::X_BYTES);
            for (unsigned i = 0; i < count; i++)
                tensor_load(
                    to + i * S::X_BYTES, &p.residual, full,
                    column + (panel + i) * panel_columns, row
                );
            ring.advance();
        }
    }
}

// A warp no longer reads a stage.
template <typename S> __device__ __forceinline__ void release(unsigned empty, unsigned lane) {
    if constexpr (S::CLUSTER == 1) {
        if (lane == 0)
            barrier_arrive(empty);
    } else {
        if (lane < S::CLUSTER)
            barrier_arrive_at(empty, lane);
    }
}

// `after` is called when all products are on their way, before they are done.
template <typename T, typename S, typename F>
__device__ __forceinline__ void multiply(
    float (&sums)[S::BLOCKS][S::COLUMNS / 2], const Places<S> &at, Ring<S::STAGES> &ring,
    unsigned k_blocks, unsigned row_offset, unsigned lane, F after
) {
    unsigned previous = 0;
    for (unsigned k = 0; k < k_blocks; k++) {
        barrier_wait(at.full + 8 * ring.stage, ring.parity);
        unsigned x = at.stages + ring.stage * S::STAGE_BYTES;
        unsigned long long a = operand(x + row_offset * ROW_BYTES), b = operand(x + S::X_BYTES);
        products_begin();
#pragma unroll
        for (int part = 0; part < ROW_BYTES / 32; part++)
#pragma unroll
            for (int block = 0; block < S::BLOCKS; block++)
                Product<T, S::COLUMNS>::run(
                    sums[block], a + 2 * part + 512 * block, b + 2 * part, part > 0 || k > 0
                );
        products_commit();
        if (k > 0) {
            products_wait<1>();
            release<S>(previous, lane);
        }
        previous = at.empty + 8 * ring.stage;
        ring.advance();
    }
    after();
    products_wait<0>();
    release<S>(previous, lane);
}

// Three products of tf32 for one of f32. The tensor cores cut off what they add to a sum, so sums
// of 32 numbers are closed, the small products first.
template <typename S>
__device__ __forceinline__ void multiply_split(
    float (&totals)[S::COLUMNS / 2], const Places<S> &at, Ring<S::STAGES> &ring, unsigned k_blocks,
    unsigned row_offset, unsigned lane
) {
    constexpr int PARTS = ROW_BYTES / 32;
    const unsigned warp = threadIdx.x % 128 / 32;
    const unsigned line = (row_offset + warp * 16 + lane % 16) * ROW_BYTES;
#pragma unroll
    for (int i = 0; i < S::COLUMNS / 2; i++)
        totals[i] = 0.0f;
    struct Parts {
        unsigned high[PARTS][4], low[PARTS][4];
    };
    const auto load = [&](Parts &of, const Ring<S::STAGES> &from) {
        barrier_wait(at.full + 8 * from.stage, from.parity);
        const unsigned x = at.stages + from.stage * S::STAGE_BYTES + line;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            matrix_load(of.high[part], x + ((2 * part + lane / 16) ^ (lane % 8)) * 16);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float whole = __uint_as_float(of.high[part][i]);
                of.high[part][i] = (of.high[part][i] + 0x1000u) & 0xffffe000u;
                of.low[part][i] = __float_as_uint(whole - __uint_as_float(of.high[part][i]));
            }
        }
    };
    // Multiplies a stage, meanwhile splitting X of the next one.
    const auto run = [&](const Parts &of, Parts &next, bool more) {
        const unsigned w = at.stages + ring.stage * S::STAGE_BYTES + S::X_BYTES;
        const unsigned long long b = operand(w), b_low = operand(w + S::W_BYTES);
        float sums[S::COLUMNS / 2];
        products_begin();
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            ProductOfRegisters<S::COLUMNS>::run(sums, of.low[part], b + 2 * part, part > 0);
            ProductOfRegisters<S::COLUMNS>::run(sums, of.high[part], b_low + 2 * part, 1);
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++)
            ProductOfRegisters<S::COLUMNS>::run(sums, of.high[part], b + 2 * part, 1);
        products_commit();
        const unsigned empty = at.empty + 8 * ring.stage;
        ring.advance();
        if (more)
            load(next, ring);
        products_wait<0>();
        pin(sums);
        release<S>(empty, lane);
#pragma unroll
        for (int i = 0; i < S::COLUMNS / 2; i++)
            totals[i] += sums[i];
    };
    // One warpgroup splits ahead. Two fill one another's gaps, and would only hold more stages.
    if constexpr (S::GROUPS == 1) {
        Parts even, odd;
        load(even, ring);
        for (unsigned k = 0; k < k_blocks; k += 2) {
            run(even, odd, k + 1 < k_blocks);
            if (k + 1 < k_blocks)
                run(odd, even, k + 2 < k_blocks);
        }
    } else {
        Parts parts;
        for (unsigned k = 0; k < k_blocks; k++) {
            load(parts, ring);
            run(parts, parts, false);
        }
    }
}

// 32 columns of the residual, in the places of the sums: [block][row or row + 8][8 columns]. Waits
// for their stage before the first and releases it after the last.
template <typename T, typename S>
__device__ __forceinline__ void read_residual(
    float2 (&extra)[S::BLOCKS][2][4], unsigned bits, int slice, const Places<S> &at,
    Ring<S::STAGES> &ring, unsigned row_offset
) {
    const unsigned thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const unsigned r = warp * 16 + lane / 4, turn = lane / 4;
    const bool f32 = sizeof(T) == 4 || bits == 32;
    const int panel = f32 ? slice : slice / 2;
    const int stage_slices = f32 ? S::STAGE_PANELS : 2 * S::STAGE_PANELS;
    if (slice % stage_slices == 0)
        barrier_wait(at.full + 8 * ring.stage, ring.parity);
    const unsigned from = at.stages + ring.stage * S::STAGE_BYTES +
                          panel % S::STAGE_PANELS * S::X_BYTES + row_offset * ROW_BYTES;
    if (f32) {
#pragma unroll
        for (int i = 0; i < S::BLOCKS * 8; i++) {
            float2 &to = extra[i / 8][i / 4 % 2][i % 4];
            unsigned line = from + (i / 8 * 64 + r + i / 4 % 2 * 8) * ROW_BYTES;
            unsigned chunk = (2 * (i % 4) + lane % 4 / 2) ^ turn;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                         : "=f"(to.x), "=f"(to.y)
                         : "r"(line + chunk * 16 + lane % 2 * 8));
        }
    } else if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < S::BLOCKS * 8; i++) {
            unsigned line = from + (i / 8 * 64 + r + i / 4 % 2 * 8) * ROW_BYTES;
            unsigned chunk = (slice % 2 * 4 + i % 4) ^ turn, pair;
            asm volatile("ld.shared.b32 %0, [%1];"
                         : "=r"(pair)
                         : "r"(line + chunk * 16 + lane % 4 * 4));
            extra[i / 8][i / 4 % 2][i % 4] = unpack<T>(pair);
        }
    }
    if (slice + 1 == S::COLUMNS / 32 || (slice + 1) % stage_slices == 0) {
        // Loads are over before copies may write there: an arrival overtakes those on their way
        // (65,536 x 768 x 768 in tf32: three results in a thousand were wrong).
        async_fence();
        __syncwarp();
        release<S>(at.empty + 8 * ring.stage, lane);
        ring.advance();
    }
}

// The bias of a thread's columns among 32.
__device__ __forceinline__ void read_bias(float2 (&b)[4], unsigned bias, int slice) {
#pragma unroll
    for (int j = 0; j < 4; j++)
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(b[j].x), "=f"(b[j].y)
                     : "r"(bias + (slice * 32 + j * 8 + threadIdx.x % 4 * 2) * 4));
}

template <typename T, typename S, Activation KIND, Side SIDE>
__device__ __forceinline__ void finish(
    const GemmStep &p, float (&sums)[S::BLOCKS][S::COLUMNS / 2],
    const RowNorm (&norms)[S::BLOCKS * 2], const Places<S> &at, Ring<S::STAGES> &ring,
    unsigned &buffer, unsigned group, unsigned row_offset, int row, int column
) {
    const unsigned thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const unsigned bias = at.bias + group * S::COLUMNS * 4;
    const unsigned panels = at.panels + group * 2 * S::PANEL_BYTES;
    // Of this thread's sums: row in 64, and the same modulo 8, by which panels are swizzled.
    const unsigned r = warp * 16 + lane / 4, turn = lane / 4;
    const bool y_f32 = sizeof(T) == 4 || p.y_f32;
#pragma unroll
    for (int slice = 0; slice < S::COLUMNS / 32; slice++) {
        const int panel = y_f32 ? slice : slice / 2;
        const unsigned to = panels + buffer * S::PANEL_BYTES;
        if (y_f32 || slice % 2 == 0) {
            if (thread == 0)
                bulk_wait_read<1>();
            named_barrier(1 + group, 128);
        }
        float2 extra[S::BLOCKS][2][4];
        if (p.residual_bits != 0)
            read_residual<T, S>(extra, p.residual_bits, slice, at, ring, row_offset);
        float2 b[4];
        read_bias(b, bias, slice);
        float2 w_sum[4] = {};
        if constexpr (SIDE == NORMED)
            read_bias(w_sum, at.w_sums + group * S::COLUMNS * 4, slice);
#pragma unroll
        for (int block = 0; block < S::BLOCKS; block++) {
            float2 y[2][4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int i = (slice * 4 + j) * 4 + half * 2;
                    y[half][j] = make_float2(sums[block][i], sums[block][i + 1]);
                    if constexpr (SIDE == NORMED) {
                        normalise(y[half][j], norms[2 * block + half], w_sum[j], b[j]);
                    } else {
                        y[half][j].x += b[j].x;
                        y[half][j].y += b[j].y;
                    }
                    y[half][j].x = activate<KIND>(p, y[half][j].x);
                    y[half][j].y = activate<KIND>(p, y[half][j].y);
                    if (p.residual_bits != 0) {
                        y[half][j].x += extra[block][half][j].x;
                        y[half][j].y += extra[block][half][j].y;
                    }
                }
            }
            if (y_f32) {
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        unsigned chunk = (2 * j + lane % 4 / 2) ^ turn;
                        unsigned line = to + (block * 64 + r + 8 * half) * ROW_BYTES;
                        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(
                                         line + chunk * 16 + lane % 2 * 8
                                     ),
                                     "f"(y[half][j].x), "f"(y[half][j].y)
                                     : "memory");
                    }
            } else if constexpr (sizeof(T) == 2) {
#pragma unroll
                for (int j = 0; j < 4; j += 2) {
                    unsigned line = to + (block * 64 + warp * 16 + lane % 16) * ROW_BYTES;
                    unsigned chunk = (slice % 2 * 4 + j + lane / 16) ^ (lane % 8);
                    matrix_store(
                        line + chunk * 16, pack<T>(y[0][j].x, y[0][j].y),
                        pack<T>(y[1][j].x, y[1][j].y), pack<T>(y[0][j + 1].x, y[0][j + 1].y),
                        pack<T>(y[1][j + 1].x, y[1][j + 1].y)
                    );
                }
            }
        }
        if (y_f32 || slice % 2 == 1) {
            async_fence();
            named_barrier(1 + group, 128);
            const int first = column + panel * (y_f32 ? 32 : 64);
            if (thread == 0) {
                if (first < p.n)
                    tensor_store(&p.y, to, first, row);
                bulk_commit();
            }
            buffer ^= 1;
        }
    }
}

template <typename T, typename S, Activation KIND, Side SIDE>
__device__ __forceinline__ void compute_tiles(
    const GemmStep &p, const Places<S> &at, unsigned rank, unsigned group
) {
    const unsigned thread = threadIdx.x % 128, lane = thread % 32;
    const unsigned row_offset = S::ALTERNATE ? 0 : group * S::GROUP_ROWS;
    const unsigned tiles = p.row_tiles * p.column_tiles;
    const unsigned step = gridDim.x / S::CLUSTER;
    const unsigned panels = p.residual_bits * S::COLUMNS / 8 / ROW_BYTES;
    const unsigned residual_places = (panels + S::STAGE_PANELS - 1) / S::STAGE_PANELS;
    const unsigned places = p.k_blocks + residual_places;
    Ring<S::STAGES> ring;
    unsigned buffer = 0;
    unsigned first = blockIdx.x / S::CLUSTER;
    if (S::ALTERNATE && group == 1) {
        ring.skip(places);
        first += step;
        named_arrive(3, 256);
    }
    for (unsigned t = first; t < tiles; t += S::ALTERNATE ? S::GROUPS * step : step) {
        Tile tile = tile_at(p, t);
        int row = (tile.row * S::CLUSTER + rank) * S::ROWS + row_offset;
        int column = tile.column * S::COLUMNS;
        float bias[(S::COLUMNS + 127) / 128], w_sum[(S::COLUMNS + 127) / 128];
#pragma unroll
        for (int i = 0; i < (S::COLUMNS + 127) / 128; i++) {
            unsigned c = column + thread + 128 * i;
            bias[i] = p.bias != nullptr && c < p.n ? __ldg(p.bias + c) : 0.0f;
            if constexpr (SIDE == NORMED)
                w_sum[i] = c < p.n ? __ldg(p.bias + p.n + c) : 0.0f;
        }
        RowNorm norms[S::BLOCKS * 2];
        if constexpr (SIDE == NORMED) {
            unsigned rows[S::BLOCKS * 2];
#pragma unroll
            for (int i = 0; i < S::BLOCKS * 2; i++)
                rows[i] = row + i / 2 * 64 + thread / 32 * 16 + lane / 4 + i % 2 * 8;
            row_norms(norms, p, rows);
        }
        float sums[S::BLOCKS][S::COLUMNS / 2];
        // Warpgroups that alternate wait for their turn: the parity of a stage tells its next use
        // from the last, not from the one before, so nobody may look further ahead. The turn ends
        // when all stages of the tile have been seen full.
        if (S::ALTERNATE)
            named_barrier(3 + group, 256);
        if constexpr (IS_SPLIT<T>) {
            static_assert(S::BLOCKS == 1 && !S::ALTERNATE, "sums and totals of one block");
            multiply_split<S>(sums[0], at, ring, p.k_blocks, row_offset, lane);
        } else {
            multiply<T, S>(sums, at, ring, p.k_blocks, row_offset, lane, [&] {
                if (S::ALTERNATE) {
                    Ring<S::STAGES> ahead = ring;
                    for (unsigned i = 0; i < residual_places; i++) {
                        barrier_wait(at.full + 8 * ahead.stage, ahead.parity);
                        ahead.advance();
                    }
                    named_arrive(4 - group, 256);
                }
            });
        }
#pragma unroll
        for (int i = 0; i < S::BLOCKS; i++)
            pin(sums[i]);
#pragma unroll
        for (int i = 0; i < (S::COLUMNS + 127) / 128; i++)
            if (S::COLUMNS % 128 == 0 || thread + 128 * i < S::COLUMNS)
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(
                                 at.bias + (group * S::COLUMNS + thread + 128 * i) * 4
                             ),
                             "f"(bias[i])
                             : "memory");
        if constexpr (SIDE == NORMED) {
            const unsigned to = at.w_sums + (group * S::COLUMNS + thread) * 4;
#pragma unroll
            for (int i = 0; i < (S::COLUMNS + 127) / 128; i++)
                if (S::COLUMNS % 128 == 0 || thread + 128 * i < S::COLUMNS)
                    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + 512 * i), "f"(w_sum[i])
                                 : "memory");
        }
        finish<T, S, KIND, SIDE>(p, sums, norms, at, ring, buffer, group, row_offset, row, column);
        if (S::ALTERNATE && S::GROUPS == 2)
            ring.skip(places);
    }
    if (thread == 0)
        bulk_wait_read<0>();
}

template <typename T, typename S, Activation KIND, Side SIDE = PLAIN>
__device__ __forceinline__ void product(const GemmStep &p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    Places<S> at(shared_address(shared));
    const unsigned group = __shfl_sync(~0u, threadIdx.x / 128, 0); // uniform, for the compiler
    const unsigned rank = S::CLUSTER == 1 ? 0 : cluster_rank();
    if (threadIdx.x == S::GROUPS * 128) {
        tensor_prefetch(&p.x);
        tensor_prefetch(&p.w);
        tensor_prefetch(&p.y);
        if (p.residual_bits != 0)
            tensor_prefetch(&p.residual);
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(at.full + 8 * i, 1);
            barrier_init(at.empty + 8 * i, S::RELEASES);
        }
        barrier_init_fence();
        async_fence();
    }
    // Only the thread that loads waits for earlier kernels: all that the others read of them comes
    // through it, and what they write, they write after.
    let_later_start();
    if constexpr (S::CLUSTER == 1) {
        __syncthreads();
    } else {
        cluster_arrive();
        cluster_wait();
    }
    if (group == S::GROUPS) {
        if constexpr (S::GROUPS > 1)
            registers_shrink<40>();
        if (threadIdx.x == S::GROUPS * 128)
            load_tiles<T, S>(p, at, rank);
    } else {
        if constexpr (S::GROUPS > 1)
            registers_grow<232>();
        if constexpr (SIDE == NORMED)
            earlier_have_ended(); // statistics are read past the loader
        compute_tiles<T, S, KIND, SIDE>(p, at, rank, group);
    }
    if constexpr (S::CLUSTER > 1) {
        // A block's shared memory lives until its neighbours have written their last to it.
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
}

} // namespace products
