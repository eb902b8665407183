// Softmax attention of one f32 query, key and value a position on tensor cores, for stacks: the
// plain case alone, as `attention_mma_*` of `attention.cu` is for 16 bits, and its loop.
// `attention_tf32_*` multiplies in tf32, `attention_split_*` in f32 by three products of tf32.
//
// In tf32 keys and values are rounded to nearest once, where they lie in shared memory; the
// softmax's weights are cut off, and summed as they then are. The columns of a product's second
// operand and its terms may come in any order, as long as the first and the results keep it: so
// sums of scores are weights as they lie in registers, and a lane reads four columns of values at a
// time and writes four of the result.
//
// Ladder (H200, 2026-11-21; 128, 16 and 1 rows of 512 positions, 12 heads of 64; us):
// - `attention_f32_*` of `attention.cu`, multiply-adds: 6,300, 787, 150. PyTorch's in f32: 3,011,
//   403, 59;
// - tf32, four warps of 16 queries: 1,300, 173, 24.2; for few blocks. Of 32 queries, so that
//   keys are read from shared memory half as often: 968, 131, 33.6 (106 TFLOP/s; predicted 1,030);
// - the rounding's reads before its writes, and by a multiply-add: 1,187, 157, 21.5 and 886, 121,
//   31.6 (116 TFLOP/s); ships. Eight warps on the same keys: 856, 116, 38.5;
// - f32, four warps of 16 queries: 1,867, 248, 28.5, error 2.2e-6 of 1 (predicted 400 for the
//   second); ships. The tensor cores cut off what they add, so they sum 64 keys at a time.
#include "attention.cuh"
#include "dependent.cuh"

namespace attention_tf32 {

constexpr int KEYS = 64; // of a tile

// What the tensor cores cut off to the nearest tf32. NaN stays NaN, as it would not by integers.
__device__ __forceinline__ float nearest_tf32(float x) {
    return fmaf(2.0f, x, -__uint_as_float(__float_as_uint(x) & 0xffffe000u));
}

__device__ __forceinline__ void multiply(
    float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Byte of chunk `c` (four numbers) of row `r` in a tile of queries or keys: eight rows of one chunk
// are in eight different groups of banks.
template <int WIDTH> __device__ __forceinline__ unsigned by_rows(int r, int c) {
    constexpr int CHUNKS = WIDTH / 4, ROWS = CHUNKS < 8 ? 8 / CHUNKS : 1;
    return ((r * CHUNKS + c) ^ (r / ROWS & 7)) * 16;
}

// The same in a tile of values: two chunks of every other of eight rows are.
template <int WIDTH> __device__ __forceinline__ unsigned by_columns(int r, int c) {
    return ((r * (WIDTH / 4) + c) ^ (r / 2 & 3) * 2) * 16;
}

__device__ __forceinline__ float4 read_chunk(unsigned at) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at));
    return x;
}

__device__ __forceinline__ void write_rounded(unsigned at, float4 x) {
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at), "f"(nearest_tf32(x.x)),
                 "f"(nearest_tf32(x.y)), "f"(nearest_tf32(x.z)), "f"(nearest_tf32(x.w))
                 : "memory");
}

// `COUNT` (2 or 4) numbers of a chunk.
template <int COUNT>
__device__ __forceinline__ void read_values(unsigned (&to)[COUNT], unsigned from) {
    if constexpr (COUNT == 4) {
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
    } else {
        asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(from));
    }
}

// A number of f32 as two of tf32, of which the tensor cores cut off the second: 23 bits of 24.
__device__ __forceinline__ void split(unsigned x, unsigned& high, unsigned& low) {
    high = (x + 0x1000u) & 0xffffe000u;
    low = __float_as_uint(__uint_as_float(x) - __uint_as_float(high));
}

// A block: WARPS warps, 16 * WARPS * PARTS queries of one head of one row; keys by tiles of 64, the
// next tile on its way while one is multiplied. SPLIT: f32 by three products of tf32.
template <int WIDTH, int PARTS, int WARPS, bool SPLIT>
__device__ __forceinline__ void attend(const FlashArguments& a) {
    constexpr int THREADS = 32 * WARPS, QUERIES = 16 * WARPS * PARTS;
    constexpr int CHUNKS = WIDTH / 4, TILE = KEYS * WIDTH * 4;
    constexpr int SIDE = WIDTH >= 32 ? 4 : 2;  // columns of a lane that lie side by side
    constexpr int GROUPS = WIDTH / (8 * SIDE); // of SIDE products of eight columns
    extern __shared__ float4 shared[];
    const int tile = blockIdx.x % a.tiles, unit = blockIdx.x / a.tiles;
    const int h = unit % a.heads, b = unit / a.heads;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int q0 = tile * QUERIES, last = min(q0 + QUERIES, a.queries) - 1;
    const Visible see(a, b);
    const int block_until = see.until(last), all_see = see.until(q0);

    const unsigned q_at = (unsigned)__cvta_generic_to_shared(shared);
    const unsigned kv_at = q_at + QUERIES * WIDTH * 4;
    const size_t first = (size_t)b * a.keys * a.kv_stride + h * a.head;
    const float* k = reinterpret_cast<const float*>(a.k) + first;
    const float* v = reinterpret_cast<const float*>(a.v) + first;
    const float* q = reinterpret_cast<const float*>(a.q) + (size_t)b * a.q_batch + h * a.head;
#pragma unroll
    for (int i = tid; i < QUERIES * CHUNKS; i += THREADS) {
        const int r = i / CHUNKS, c = i % CHUNKS;
        const bool valid = q0 + r < a.queries && c * 4 < a.head;
        const float* from = valid ? q + (size_t)(q0 + r) * a.q_stride + c * 4 : q;
        copy_async(q_at + by_rows<WIDTH>(r, c), from, valid);
    }
    auto load = [&](int n0, int stage) {
        const unsigned to = kv_at + stage * 2 * TILE;
#pragma unroll
        for (int i = tid; i < KEYS * CHUNKS; i += THREADS) {
            const int r = i / CHUNKS, c = i % CHUNKS, n = n0 + r;
            const bool valid = n < block_until && c * 4 < a.head;
            const size_t at = valid ? (size_t)see.row(n) * a.kv_stride + c * 4 : 0;
            copy_async(to + by_rows<WIDTH>(r, c), k + at, valid);
            copy_async(to + TILE + by_columns<WIDTH>(r, c), v + at, valid);
        }
        asm volatile("cp.async.commit_group;");
    };
    load(0, 0);

    float out[PARTS][GROUPS][SIDE][4] = {}, most[PARTS][2], sum[PARTS][2] = {};
    int until[PARTS][2];
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            most[p][r] = -INFINITE;
            until[p][r] = see.until(min(q0 + (warp * PARTS + p) * 16 + r * 8 + lane / 4, last));
        }
    unsigned query[PARTS][WIDTH / 8][4], query_low[PARTS][SPLIT ? WIDTH / 8 : 1][4];
    for (int n0 = 0, stage = 0; n0 < block_until; n0 += KEYS, stage ^= 1) {
        const unsigned ks = kv_at + stage * 2 * TILE, vs = ks + TILE;
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        // What this thread copied, it sees before the others do.
        if constexpr (!SPLIT) {
            constexpr int EACH = KEYS * CHUNKS / THREADS, BATCH = EACH < 4 ? EACH : 4;
#pragma unroll
            for (int first = 0; first < EACH; first += BATCH) {
                float4 key[BATCH], value[BATCH];
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    const int i = tid + (first + j) * THREADS, r = i / CHUNKS, c = i % CHUNKS;
                    key[j] = read_chunk(ks + by_rows<WIDTH>(r, c));
                    value[j] = read_chunk(vs + by_columns<WIDTH>(r, c));
                }
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    const int i = tid + (first + j) * THREADS, r = i / CHUNKS, c = i % CHUNKS;
                    write_rounded(ks + by_rows<WIDTH>(r, c), key[j]);
                    write_rounded(vs + by_columns<WIDTH>(r, c), value[j]);
                }
            }
        }
        __syncthreads();
        if (n0 + KEYS < block_until) load(n0 + KEYS, stage ^ 1);
        if (n0 == 0) {
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int d = 0; d < WIDTH / 8; d++) {
                    const int r = (warp * PARTS + p) * 16 + (lane & 15);
                    fragments(query[p][d], q_at + by_rows<WIDTH>(r, d * 2 + (lane >> 4)));
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        unsigned& x = query[p][d][i];
                        if constexpr (SPLIT)
                            split(x, x, query_low[p][d][i]);
                        else
                            x = __float_as_uint(nearest_tf32(__uint_as_float(x)));
                    }
                }
        }
        float score[PARTS][KEYS / 8][4] = {}, fading[PARTS][2];
#pragma unroll
        for (int d = 0; d < WIDTH / 8; d++)
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                unsigned key[4];
                const int r = n * 16 + (lane & 7) + (lane >> 4) * 8;
                fragments(key, ks + by_rows<WIDTH>(r, d * 2 + (lane >> 3 & 1)));
                if constexpr (SPLIT) {
                    unsigned low[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) split(key[i], key[i], low[i]);
#pragma unroll
                    for (int p = 0; p < PARTS; p++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float(&to)[4] = score[p][2 * n + i];
                            multiply(to, query_low[p][d], key[2 * i], key[2 * i + 1]);
                            multiply(to, query[p][d], low[2 * i], low[2 * i + 1]);
                        }
                }
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    multiply(score[p][2 * n], query[p][d], key[0], key[1]);
                    multiply(score[p][2 * n + 1], query[p][d], key[2], key[3]);
                }
            }
        if (n0 + KEYS > all_see) {
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int at = n0 + n * 8 + lane % 4 * 2 + (e & 1);
                        if (at >= until[p][e >> 1]) score[p][n][e] = -INFINITE;
                    }
        }
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float highest = -INFINITE;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
                    highest = fmaxf(highest, fmaxf(score[p][n][2 * r], score[p][n][2 * r + 1]));
                }
                highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
                const float now = fmaxf(most[p][r], __fmul_rn(highest, a.scale_log2));
                const float base = now == -INFINITE ? 0.0f : now;
                const float scaled = exp2_fast(most[p][r] - base); // 1 where nothing is new
                most[p][r] = now;
                float part = 0.0f;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 2 * r; e < 2 * r + 2; e++) {
                        const float x = exp2_fast(fmaf(score[p][n][e], a.scale_log2, -base));
                        const unsigned cut = __float_as_uint(x) & 0xffffe000u;
                        score[p][n][e] = SPLIT ? x : __uint_as_float(cut);
                        part += score[p][n][e];
                    }
                sum[p][r] = fmaf(sum[p][r], scaled, part);
                fading[p][r] = scaled;
            }
        // Tensor cores cut off what they add: with SPLIT they sum a tile at a time.
        float sums[PARTS][GROUPS][SIDE][4];
        auto& to = SPLIT ? sums : out;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int g = 0; g < GROUPS; g++)
#pragma unroll
                for (int j = 0; j < SIDE; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        to[p][g][j][e] = SPLIT ? 0.0f : out[p][g][j][e] * fading[p][e / 2];
        // Terms t and t + 4 of a product are keys 2t and 2t + 1, whose weights lane t has.
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            unsigned weight[PARTS][4], weight_low[PARTS][4];
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    weight[p][i] = __float_as_uint(score[p][n][i / 2 + i % 2 * 2]);
                    if constexpr (SPLIT) split(weight[p][i], weight[p][i], weight_low[p][i]);
                }
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                unsigned even[SIDE], odd[SIDE];
                const int r = n * 8 + lane % 4 * 2, column = (g * 8 + lane / 4) * SIDE;
                const unsigned in_chunk = column % 4 * 4;
                read_values<SIDE>(even, vs + by_columns<WIDTH>(r, column / 4) + in_chunk);
                read_values<SIDE>(odd, vs + by_columns<WIDTH>(r + 1, column / 4) + in_chunk);
#pragma unroll
                for (int j = 0; j < SIDE; j++) {
                    if constexpr (SPLIT) {
                        unsigned even_low, odd_low;
                        split(even[j], even[j], even_low);
                        split(odd[j], odd[j], odd_low);
#pragma unroll
                        for (int p = 0; p < PARTS; p++) {
                            multiply(to[p][g][j], weight_low[p], even[j], odd[j]);
                            multiply(to[p][g][j], weight[p], even_low, odd_low);
                        }
                    }
#pragma unroll
                    for (int p = 0; p < PARTS; p++)
                        multiply(to[p][g][j], weight[p], even[j], odd[j]);
                }
            }
        }
        if constexpr (SPLIT) {
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int g = 0; g < GROUPS; g++)
#pragma unroll
                    for (int j = 0; j < SIDE; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            out[p][g][j][e] =
                                fmaf(out[p][g][j][e], fading[p][e / 2], sums[p][g][j][e]);
        }
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    float* y = reinterpret_cast<float*>(a.y) + (size_t)b * a.queries * a.y_stride + h * a.head;
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float all = sum[p][r] + __shfl_xor_sync(~0u, sum[p][r], 1);
            all += __shfl_xor_sync(~0u, all, 2);
            const float share = until[p][r] > 0 ? 1.0f / all : 0.0f;
            const int row = q0 + (warp * PARTS + p) * 16 + r * 8 + lane / 4;
            if (row >= a.queries) continue;
            float* to = y + (size_t)row * a.y_stride;
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                const int column = (g * 8 + lane % 4 * 2) * SIDE;
                if (column >= a.head) continue;
                const auto& from = out[p][g];
#pragma unroll
                for (int i = 0; i < 2 * SIDE; i += 4) {
                    float4 four;
                    float* x = &four.x;
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        x[j] = from[(i + j) % SIDE][2 * r + (i + j) / SIDE] * share;
                    *reinterpret_cast<float4*>(to + column + i) = four;
                }
            }
        }
}

} // namespace attention_tf32

#define ATTENTION(NAME, WARPS, ...)                                                                \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                       \
        NAME(const __grid_constant__ FlashArguments a) {                                           \
        wait_for_earlier();                                                                        \
        attention_tf32::attend<__VA_ARGS__>(a);                                                    \
    }
#define ATTENTION_TF32(W, P) ATTENTION(attention_tf32_w##W##_p##P, 4, W, P, 4, false)
#define ATTENTION_F32(W) ATTENTION(attention_split_w##W##_p1, 4, W, 1, 4, true)
ATTENTION_TF32(16, 1)
ATTENTION_TF32(16, 2)
ATTENTION_TF32(32, 1)
ATTENTION_TF32(32, 2)
ATTENTION_TF32(64, 1)
ATTENTION_TF32(64, 2)
ATTENTION_TF32(128, 1)
ATTENTION_F32(16)
ATTENTION_F32(32)
ATTENTION_F32(64)
ATTENTION_F32(128)
