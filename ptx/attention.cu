// Softmax attention of queries over keys, never with a T x T matrix in device memory.
//
// `attention_f32_*`: every feature of the op, in f32, keys gathered by a list where some are
// hidden. `attention_mma_*`: one pair of f16 or bf16 queries and keys on tensor cores, for stacks.
// `attention_list`, `attention_prepare` and `attention_ring` are what surrounds them: which keys a
// row sees, rotation and normalisation, and the sliding window's commit. Products are elsewhere.
//
// A row's hidden keys are left out before anything is summed (the list holds the visible ones
// alone), and a tile in which a query sees nothing changes no bit of it. So bits depend neither on
// padding, nor on the batch, nor on the number of queries in a block.
//
// Ladder (H200, 2026-11-21; 16 rows of 512 positions, 12 heads of 64, unless said otherwise):
// - f32, tiles of 16 queries by 64 keys, 4 x 4 a thread: 1,331 us (10 TFLOP/s); ships for few
//   blocks;
// - f32, tiles of 64 by 64: 787 us (16 TFLOP/s, a quarter of what FFMA could); ships;
// - f16, four warps of 16 queries, next tile of keys on its way: 71 us (180 TFLOP/s), 12.0 us for
//   one row; ships for few blocks and heads beyond 64;
// - f16, 32 queries a warp, so that keys are read from shared memory half as often: 58 us
//   (222 TFLOP/s), 425 us for 128 rows (243); ships where there are blocks enough. PyTorch's flash
//   attention takes 53 and 380 us in the same job. Hopper has `attention_hopper.cu` for wide heads.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "attention.cuh"
#include "dependent.cuh"
#include "run.cuh"

// ------------------------------------------------------------------------------------------------
// Which keys each query sees.

// Mirrored by `step::attention::ListArguments`.
struct ListArguments {
    uint64_t header;
    uint64_t mask;           // [batch, keys] f32, or 0
    uint64_t ring_position;  // [slots] f32, or 0
    uint64_t key_rows;       // [batch, capacity] out: own row j, or -1 - (row of the ring)
    uint64_t key_positions;  // [batch, capacity] out
    uint64_t counts;         // [batch] out: keys in the list
    uint64_t olds;           // [batch] out: of these, keys of earlier runs
    uint64_t query_from;     // [batch, queries] out
    uint64_t query_until;    // [batch, queries] out
    uint64_t query_positions; // [batch, queries] out
    uint64_t query_turns;    // [batch, queries] out: positions by which queries are rotated
    uint64_t key_turns;      // [batch, keys] out: the same of this run's keys
    int batch, queries, keys, capacity; // `capacity` of the list
    int ring_rows;           // 0 without a ring
    int causal;
    int skip_masked;
    int pad;
};

// One warp a row of the batch, lanes along time.
extern "C" __global__ void attention_list(const __grid_constant__ ListArguments a) {
    wait_for_earlier();
    const auto* header = reinterpret_cast<const RunHeader*>(a.header);
    const int b = blockIdx.x, lane = threadIdx.x;
    if (a.ring_rows > 0 && b >= (int)header->rows) return; // has no slot
    const auto* mask = reinterpret_cast<const float*>(a.mask);
    int* rows = reinterpret_cast<int*>(a.key_rows) + (size_t)b * a.capacity;
    int* positions = reinterpret_cast<int*>(a.key_positions) + (size_t)b * a.capacity;
    int* from = reinterpret_cast<int*>(a.query_from) + (size_t)b * a.queries;
    int* until = reinterpret_cast<int*>(a.query_until) + (size_t)b * a.queries;
    int* query_positions = reinterpret_cast<int*>(a.query_positions) + (size_t)b * a.queries;
    int* query_turns = reinterpret_cast<int*>(a.query_turns) + (size_t)b * a.queries;
    int* key_turns = reinterpret_cast<int*>(a.key_turns) + (size_t)b * a.keys;
    const bool ring = a.ring_rows > 0;
    int written = 0;
    if (ring) {
        const float at = reinterpret_cast<const float*>(a.ring_position)[header->slots[b]];
        written = max((int)at, 0);
    }
    const int old = min(written, a.ring_rows), first = written - old;
    for (int i = lane; i < old; i += 32) {
        rows[i] = -1 - (first + i) % a.ring_rows;
        positions[i] = first + i;
    }
    const int shift = a.keys - a.queries;
    for (int i = lane; i < min(a.queries, max(-shift, 0)); i += 32) {
        // Queries before the first key.
        from[i] = until[i] = 0;
        query_positions[i] = i + shift;
        query_turns[i] = a.skip_masked ? 0 : i + shift;
    }
    int count = old;
    for (int t0 = 0; t0 < a.keys; t0 += 32) {
        const int t = t0 + lane;
        const bool inside = t < a.keys;
        const bool visible = inside && (!mask || mask[(size_t)b * a.keys + t] != 0.0f);
        const unsigned votes = __ballot_sync(~0u, visible);
        const int at = count + __popc(votes & ((1u << lane) - 1)); // of this row, were it visible
        const int position = ring ? first + at : t;
        const int turn = ring || !a.skip_masked ? position : at - old;
        if (visible) {
            rows[at] = t;
            positions[at] = position;
        }
        if (inside) key_turns[t] = turn;
        const int i = t - shift;
        if (inside && i >= 0) {
            until[i] = at + visible;
            from[i] = ring ? max(position - a.ring_rows + 1 - first, 0) : 0;
            query_positions[i] = position;
            query_turns[i] = turn;
        }
        count += __popc(votes);
    }
    if (!a.causal) {
        __syncwarp();
        for (int i = lane; i < a.queries; i += 32) until[i] = count;
    }
    if (lane == 0) {
        reinterpret_cast<int*>(a.counts)[b] = count;
        reinterpret_cast<int*>(a.olds)[b] = old;
    }
}

// ------------------------------------------------------------------------------------------------
// Queries and keys rotated, normalised, scaled by dimension.

// Mirrored by `step::attention::PrepareArguments`.
struct PrepareArguments {
    uint64_t x;     // row (b, t) starts `stride` floats after the one before
    uint64_t y;     // [batch, time, heads * head] out
    uint64_t turns; // [batch, time], or 0: then time + first
    uint64_t norm;  // [head], or 0
    uint64_t scale; // [head], or 0
    double frequency_log2; // of the base, negative: pair j turns by 2^(frequency_log2 * j / head)
    int batch, time, heads, head, stride, first;
    int rotate;
    float eps;
};

// One warp a head of a row. Angles in f64: positions reach thousands, and f32 would leave 1e-4.
extern "C" __global__ void attention_prepare(const __grid_constant__ PrepareArguments a) {
    wait_for_earlier();
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const long long unit = (long long)blockIdx.x * (blockDim.x >> 5) + warp;
    const long long row = unit / a.heads;
    const int h = unit % a.heads, b = row / a.time, t = row % a.time;
    if (b >= a.batch) return;
    const float* x = reinterpret_cast<const float*>(a.x) + row * a.stride + h * a.head;
    float* y = reinterpret_cast<float*>(a.y) + (row * a.heads + h) * a.head;
    const auto* norm = reinterpret_cast<const float*>(a.norm);
    const auto* scale = reinterpret_cast<const float*>(a.scale);
    const int turn = a.turns ? reinterpret_cast<const int*>(a.turns)[row] : t + a.first;
    const int half = a.head / 2;
    float square = 0.0f;
    if (a.rotate) {
        for (int j = lane; j < half; j += 32) {
            const double angle = turn * exp2(a.frequency_log2 * j / a.head);
            const double turns = angle * 0.15915494309189535;
            const float rest = (float)((turns - rint(turns)) * 6.283185307179586);
            float sin, cos;
            sincosf(rest, &sin, &cos);
            const float p = x[j], q = x[j + half];
            const float u = p * cos - q * sin, v = q * cos + p * sin;
            y[j] = u;
            y[j + half] = v;
            square += u * u + v * v;
        }
    } else {
        for (int j = lane; j < a.head; j += 32) {
            const float u = x[j];
            y[j] = u;
            square += u * u;
        }
    }
    if (!norm && !scale) return;
    for (int step = 16; step; step >>= 1) square += __shfl_xor_sync(~0u, square, step);
    const float root = norm ? rsqrtf(square / a.head + a.eps) : 1.0f;
    __syncwarp();
    for (int j = lane; j < a.head; j += 32) {
        float u = y[j] * root;
        if (norm) u *= norm[j];
        if (scale) u *= scale[j];
        y[j] = u;
    }
}

// ------------------------------------------------------------------------------------------------
// The window after a run.

// Mirrored by `step::attention::RingArguments`.
struct RingArguments {
    uint64_t header;
    uint64_t old_keys, old_values, old_positions; // stores [slots, rows, width], [slots]
    uint64_t new_keys, new_values, new_positions; // [batch, rows, width], [batch]
    uint64_t keys, values;                        // this run's, prepared
    uint64_t key_rows, counts, olds;              // the list
    int batch, time, capacity, rows; // `capacity` of the list, `rows` of the ring
    int key_width, value_width, key_stride, value_stride;
};

// Block (row of the ring, row of the batch).
extern "C" __global__ void attention_ring(const __grid_constant__ RingArguments a) {
    wait_for_earlier();
    const auto* header = reinterpret_cast<const RunHeader*>(a.header);
    const int r = blockIdx.x, b = blockIdx.y;
    if (b >= min((int)header->rows, a.batch)) return;
    const unsigned slot = header->slots[b];
    const int count = reinterpret_cast<const int*>(a.counts)[b];
    const int old = reinterpret_cast<const int*>(a.olds)[b];
    const float at = reinterpret_cast<const float*>(a.old_positions)[slot];
    const int written = max((int)at, 0);
    const int ahead = ((r - written) % a.rows + a.rows) % a.rows; // of the first new key
    const bool fresh = ahead < count - old;
    int own = 0;
    if (fresh) {
        own = reinterpret_cast<const int*>(a.key_rows)[(size_t)b * a.capacity + old + ahead];
    }
    auto copy = [&](uint64_t to, uint64_t store, uint64_t now, int width, int stride) {
        const float* source = fresh
            ? reinterpret_cast<const float*>(now) + ((size_t)b * a.time + own) * stride
            : reinterpret_cast<const float*>(store) + ((size_t)slot * a.rows + r) * width;
        float* target = reinterpret_cast<float*>(to) + ((size_t)b * a.rows + r) * width;
        for (int i = threadIdx.x; i < width; i += blockDim.x) target[i] = source[i];
    };
    copy(a.new_keys, a.old_keys, a.keys, a.key_width, a.key_stride);
    copy(a.new_values, a.old_values, a.values, a.value_width, a.value_stride);
    if (r == 0 && threadIdx.x == 0) {
        reinterpret_cast<float*>(a.new_positions)[b] = (float)(written + count - old);
    }
}

// ------------------------------------------------------------------------------------------------
// Everything in f32.

constexpr int PAIRS_MAX = 64;

// Queries with the keys that their scores are sums of products with.
struct Pair {
    uint64_t queries, keys; // row (b, t) starts (b * T + t) * stride floats on
    int query_stride, key_stride;
    float scale;
    int aligned; // all rows and heads start at multiples of 16 bytes
};

// Mirrored by `step::attention::F32Arguments`.
struct F32Arguments {
    uint64_t header;
    uint64_t values;
    uint64_t y;
    uint64_t key_rows, key_positions;                // the list, or 0
    uint64_t counts, query_from, query_until, query_positions;
    uint64_t ring_keys, ring_values;                 // stores, or 0
    uint64_t groups, group_mask;                     // [batch] i32, [batch, time] f32, or 0
    uint64_t bias;                                   // by distance or as a matrix, or 0
    int batch, queries, keys, heads, head, head_v;   // `head_v` of one head
    int value_stride, y_stride;
    int values_aligned;
    int capacity;   // of the list
    int ring_rows;
    int causal;
    int mean_heads;
    int pairs;
    int distances, origin; // of a bias by distance; 0 for a matrix
    int bias_heads;        // of a matrix
    int tiles;             // of queries
    int slices;            // of a value head's width
    int row_factor;        // rows of the batch for each of the header's
    Pair pair[PAIRS_MAX];
};

constexpr int KEYS = 64;  // of a tile
constexpr int DEPTH = 32; // of queries and keys at a time

// Four floats at `p`, those from `valid` on zero.
__device__ __forceinline__ float4 four(const float* p, int valid, bool aligned) {
    if (aligned && valid >= 4) return *reinterpret_cast<const float4*>(p);
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (valid > 0) x.x = p[0];
    if (valid > 1) x.y = p[1];
    if (valid > 2) x.z = p[2];
    if (valid > 3) x.w = p[3];
    return x;
}

// A block: `QUERIES` queries of one head of one sequence, 16 threads for every four queries. A
// sequence is a row of the batch, or a position where attention runs over the batch.
template <int QUERIES, int WIDTH>
__device__ __forceinline__ void attention_f32(const F32Arguments& a) {
    constexpr int THREADS = QUERIES * 4;
    constexpr int COLUMNS = WIDTH / 16; // of the output, a thread
    constexpr int QS = QUERIES + 4, KS = KEYS + 4, VS = WIDTH + 4;
    extern __shared__ float4 shared[];
    float* qs = reinterpret_cast<float*>(shared); // [DEPTH][QS]
    float* ks = qs + DEPTH * QS;                  // [DEPTH][KS]
    float* ps = ks + DEPTH * KS;                  // [KEYS][QS]
    float* vs = ps + KEYS * QS;                   // [KEYS][VS]
    __shared__ int codes[KEYS], places[KEYS], teams[KEYS];
    __shared__ int4 query[QUERIES];

    const auto* header = reinterpret_cast<const RunHeader*>(a.header);
    const bool grouped = a.groups != 0;
    // Rows that are not in use have no slot, and must not be seen from those that are.
    const bool coupled = grouped || a.ring_rows > 0;
    const int used = coupled ? min((int)header->rows * a.row_factor, a.batch) : a.batch;
    const int tile = blockIdx.x % a.tiles, sequence = blockIdx.x / a.tiles;
    const int q0 = tile * QUERIES;
    if (grouped ? q0 >= used : sequence >= used) return;
    const int queries = grouped ? used : a.queries;
    const int slice = blockIdx.y % a.slices, v0 = slice * WIDTH;
    const int v_width = min(WIDTH, a.head_v - v0);
    const int first_head = a.mean_heads ? 0 : blockIdx.y / a.slices;
    const int last_head = a.mean_heads ? a.heads : first_head + 1;
    const int tid = threadIdx.x, tx = tid & 15, ty = tid >> 4;
    const auto* key_rows = reinterpret_cast<const int*>(a.key_rows);
    const auto* key_positions = reinterpret_cast<const int*>(a.key_positions);
    const auto* groups = reinterpret_cast<const int*>(a.groups);
    const auto* group_mask = reinterpret_cast<const float*>(a.group_mask);
    const auto* bias = reinterpret_cast<const float*>(a.bias);
    const unsigned slot = a.ring_rows ? header->slots[sequence] : 0;
    const size_t list = (size_t)sequence * a.capacity;
    const int shift = a.keys - a.queries;

    // What the queries see: keys `from .. until`, of their own team in groups.
    for (int i = tid; i < QUERIES; i += THREADS) {
        const int q = q0 + i;
        int f = 0, u = 0, p = 0, g = 0;
        if (q < queries) {
            p = q + shift;
            u = grouped ? used : a.causal ? min(max(p + 1, 0), a.keys) : a.keys;
            if (key_rows) {
                const size_t at = (size_t)sequence * queries + q;
                f = reinterpret_cast<const int*>(a.query_from)[at];
                u = reinterpret_cast<const int*>(a.query_until)[at];
                p = reinterpret_cast<const int*>(a.query_positions)[at];
            }
            if (grouped) g = groups[q];
        }
        query[i] = make_int4(f, u, p, g);
    }
    __syncthreads();
    int block_from = 0x7fffffff, block_until = 0;
    for (int i = 0; i < QUERIES; i++) {
        const int4 q = query[i];
        if (q.y > q.x) {
            block_from = min(block_from, q.x);
            block_until = max(block_until, q.y);
        }
    }

    float total[4][COLUMNS] = {};
    for (int h = first_head; h < last_head; h++) {
        float sum[4] = {}, most[4] = {-INFINITE, -INFINITE, -INFINITE, -INFINITE};
        float out[4][COLUMNS] = {};
        bool seen[4] = {};
        // Tiles begin at multiples of their width, whatever the block sees first.
        for (int n0 = block_from / KEYS * KEYS; n0 < block_until; n0 += KEYS) {
            __syncthreads();
            for (int n = tid; n < KEYS; n += THREADS) {
                const int at = n0 + n;
                int code = at, place = at, of = 0;
                if (at >= block_until) {
                    code = 0x7fffffff;
                } else if (key_rows) {
                    code = key_rows[list + at];
                    place = key_positions[list + at];
                } else if (grouped) {
                    of = groups[at];
                    if (group_mask && group_mask[(size_t)at * a.keys + sequence] == 0.0f) {
                        code = 0x7fffffff;
                    }
                }
                codes[n] = code;
                places[n] = place;
                teams[n] = of;
            }
            __syncthreads();
            float score[4][4] = {};
            for (int p = 0; p < a.pairs; p++) {
                const Pair& pair = a.pair[p];
                float product[4][4] = {};
                for (int d0 = 0; d0 < a.head; d0 += DEPTH) {
                    __syncthreads();
#pragma unroll 2
                    for (int i = tid; i < QUERIES * (DEPTH / 4); i += THREADS) {
                        const int r = i % QUERIES, d = i / QUERIES * 4, q = q0 + r;
                        const size_t row = grouped ? (size_t)q * a.keys + sequence
                                                   : (size_t)sequence * a.queries + q;
                        const float* at = reinterpret_cast<const float*>(pair.queries) +
                            row * pair.query_stride + h * a.head + d0 + d;
                        const int valid = q < queries ? a.head - d0 - d : 0;
                        const float4 x = four(at, valid, pair.aligned);
                        qs[d * QS + r] = x.x;
                        qs[(d + 1) * QS + r] = x.y;
                        qs[(d + 2) * QS + r] = x.z;
                        qs[(d + 3) * QS + r] = x.w;
                    }
#pragma unroll 2
                    for (int i = tid; i < KEYS * (DEPTH / 4); i += THREADS) {
                        const int n = i % KEYS, d = i / KEYS * 4, code = codes[n];
                        const float* at;
                        if (code < 0) {
                            at = reinterpret_cast<const float*>(a.ring_keys) +
                                ((size_t)slot * a.ring_rows + (-1 - code)) * (a.heads * a.head);
                        } else {
                            const size_t row = grouped ? (size_t)code * a.keys + sequence
                                                       : (size_t)sequence * a.keys + code;
                            at = reinterpret_cast<const float*>(pair.keys) + row * pair.key_stride;
                        }
                        const int valid = code == 0x7fffffff ? 0 : a.head - d0 - d;
                        const float4 x = four(at + h * a.head + d0 + d, valid, pair.aligned);
                        ks[d * KS + n] = x.x;
                        ks[(d + 1) * KS + n] = x.y;
                        ks[(d + 2) * KS + n] = x.z;
                        ks[(d + 3) * KS + n] = x.w;
                    }
                    __syncthreads();
                    const int depth = min(DEPTH, (a.head - d0 + 3) & ~3);
#pragma unroll 4
                    for (int d = 0; d < depth; d++) {
                        const float4 q = *reinterpret_cast<float4*>(&qs[d * QS + ty * 4]);
                        const float4 k = *reinterpret_cast<float4*>(&ks[d * KS + tx * 4]);
                        const float qa[4] = {q.x, q.y, q.z, q.w}, ka[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
                        for (int i = 0; i < 4; i++)
#pragma unroll
                            for (int j = 0; j < 4; j++)
                                product[i][j] = fmaf(qa[i], ka[j], product[i][j]);
                    }
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        score[i][j] = fmaf(pair.scale, product[i][j], score[i][j]);
            }
            // Values on their way while the softmax is computed.
#pragma unroll 2
            for (int i = tid; i < KEYS * (WIDTH / 4); i += THREADS) {
                const int n = i / (WIDTH / 4), d = i % (WIDTH / 4) * 4, code = codes[n];
                const float* at;
                if (code < 0) {
                    const int width = a.mean_heads ? a.head_v : a.heads * a.head_v;
                    at = reinterpret_cast<const float*>(a.ring_values) +
                        ((size_t)slot * a.ring_rows + (-1 - code)) * width;
                } else {
                    const size_t row = grouped ? (size_t)code * a.keys + sequence
                                               : (size_t)sequence * a.keys + code;
                    at = reinterpret_cast<const float*>(a.values) + row * a.value_stride;
                }
                const int head = a.mean_heads ? 0 : h * a.head_v;
                const int valid = code == 0x7fffffff ? 0 : v_width - d;
                const float4 x = four(at + head + v0 + d, valid, a.values_aligned);
                *reinterpret_cast<float4*>(&vs[n * VS + d]) = x;
            }
            float scaled[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float highest = -INFINITE;
                bool visible[4], any = false;
                const int4 own = query[ty * 4 + i];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int n = tx * 4 + j, at = n0 + n;
                    visible[j] = at >= own.x && at < own.y && codes[n] != 0x7fffffff;
                    if (grouped) visible[j] = visible[j] && teams[n] == own.w;
                    if (bias && visible[j]) {
                        if (a.distances) {
                            int d = places[n] - own.z + a.origin;
                            d = min(max(d, 0), a.distances - 1);
                            score[i][j] += bias[(size_t)h * a.distances + d];
                        } else {
                            const int of = a.bias_heads == 1 ? 0 : h, q = q0 + ty * 4 + i;
                            const size_t row = (size_t)of * a.queries + q;
                            score[i][j] += bias[row * a.keys + codes[n]];
                        }
                    }
                    if (visible[j]) highest = fmaxf(highest, score[i][j]);
                    any = any || visible[j];
                }
#pragma unroll
                for (int step = 8; step; step >>= 1) {
                    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
                }
                seen[i] = seen[i] || any;
                const float now = fmaxf(most[i], highest);
                const float base = now == -INFINITE ? 0.0f : now;
                scaled[i] = most[i] == now ? 1.0f : exp2f((most[i] - base) * 1.4426950408889634f);
                most[i] = now;
                float part = 0.0f;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float p = exp2f((score[i][j] - base) * 1.4426950408889634f);
                    part += visible[j] ? p : 0.0f;
                    // Below zero: hidden, whatever its value is (0 times NaN would be NaN).
                    ps[(tx * 4 + j) * QS + ty * 4 + i] = visible[j] ? p : -1.0f;
                }
#pragma unroll
                for (int step = 8; step; step >>= 1) part += __shfl_xor_sync(~0u, part, step);
                sum[i] = fmaf(sum[i], scaled[i], part);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) out[i][c] *= scaled[i];
            __syncthreads();
            const int some = min(KEYS, block_until - n0);
#pragma unroll 4
            for (int n = 0; n < some; n++) {
                const float4 p = *reinterpret_cast<float4*>(&ps[n * QS + ty * 4]);
                const float pa[4] = {p.x, p.y, p.z, p.w};
                float v[COLUMNS];
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    // Four (or two) columns together, 64 apart.
                    constexpr int SIDE = COLUMNS < 4 ? COLUMNS : 4;
                    v[c] = vs[n * VS + c / SIDE * 16 * SIDE + tx * SIDE + c % SIDE];
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (!(pa[i] < 0.0f)) {
#pragma unroll
                        for (int c = 0; c < COLUMNS; c++) out[i][c] = fmaf(pa[i], v[c], out[i][c]);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // Scores of minus infinity alone are not the same as no key: the sum of theirs is 0.
            unsigned any = __ballot_sync(~0u, seen[i]);
            any = (threadIdx.x & 16) ? any >> 16 : any & 0xffff;
            const float share = a.mean_heads ? 1.0f / a.heads : 1.0f;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const float y = any ? out[i][c] / sum[i] : 0.0f;
                total[i][c] = a.mean_heads ? fmaf(y, share, total[i][c]) : y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int q = q0 + ty * 4 + i;
        if (q >= queries) continue;
        const size_t row = grouped ? (size_t)q * a.keys + sequence
                                   : (size_t)sequence * a.queries + q;
        const int head = a.mean_heads ? 0 : first_head * a.head_v;
        float* y = reinterpret_cast<float*>(a.y) + row * a.y_stride + head + v0;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            constexpr int SIDE = COLUMNS < 4 ? COLUMNS : 4;
            const int column = c / SIDE * 16 * SIDE + tx * SIDE + c % SIDE;
            if (column < v_width) y[column] = total[i][c];
        }
    }
}

#define ATTENTION_F32(Q, W)                                                                        \
    extern "C" __global__ void __launch_bounds__(Q * 4)                                            \
        attention_f32_q##Q##_v##W(const __grid_constant__ F32Arguments a) {                        \
        wait_for_earlier();                                                                        \
        attention_f32<Q, W>(a);                                                                    \
    }
ATTENTION_F32(16, 32)
ATTENTION_F32(16, 64)
ATTENTION_F32(16, 128)
ATTENTION_F32(64, 32)
ATTENTION_F32(64, 64)
ATTENTION_F32(64, 128)

// ------------------------------------------------------------------------------------------------
// One pair of 16-bit queries and keys, on tensor cores.

__device__ __forceinline__ void fragments_transposed(unsigned (&r)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

__device__ __forceinline__ void multiply(
    float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(
    float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Elements from one row of a tile to the next: powers of two alone scatter without collisions.
__host__ __device__ constexpr int pitch(int width) { return width == 96 ? 128 : width; }

// Byte of chunk `c` (16 bytes) of row `r` in a tile of rows of WIDTH 16-bit elements, scattered
// such that eight rows of one chunk are in eight different groups of banks.
template <int WIDTH>
__device__ __forceinline__ unsigned scattered(int r, int c) {
    constexpr int CHUNKS = pitch(WIDTH) / 8;
    constexpr int ROWS = CHUNKS < 8 ? 8 / CHUNKS : 1; // rows of a bank line
    const int chunk = r * CHUNKS + c;
    return (chunk ^ (r / ROWS & 7)) * 16;
}

// A block: four warps, 64 * PARTS queries of one head of one row; keys by tiles of 64, the next
// tile on its way while one is multiplied.
template <int WIDTH, int PARTS, typename T>
__device__ __forceinline__ void attention_mma(const FlashArguments& a) {
    constexpr int QUERIES = 64 * PARTS, CHUNKS = WIDTH / 8, TILE = KEYS * pitch(WIDTH) * 2;
    extern __shared__ float4 shared[];
    const int tile = blockIdx.x % a.tiles, unit = blockIdx.x / a.tiles;
    const int h = unit % a.heads, b = unit / a.heads;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int q0 = tile * QUERIES, last = min(q0 + QUERIES, a.queries) - 1;
    const Visible see(a, b);
    const int block_until = see.until(last), all_see = see.until(q0);

    const unsigned q_at = (unsigned)__cvta_generic_to_shared(shared);
    const unsigned kv_at = q_at + QUERIES * pitch(WIDTH) * 2;
    const T* k = reinterpret_cast<const T*>(a.k) + (size_t)b * a.keys * a.kv_stride + h * a.head;
    const T* v = reinterpret_cast<const T*>(a.v) + (size_t)b * a.keys * a.kv_stride + h * a.head;
    const T* q = reinterpret_cast<const T*>(a.q) + (size_t)b * a.q_batch + h * a.head;
    for (int i = tid; i < QUERIES * CHUNKS; i += 128) {
        const int r = i / CHUNKS, c = i % CHUNKS;
        const bool valid = q0 + r < a.queries && c * 8 < a.head;
        const T* from = valid ? q + (size_t)(q0 + r) * a.q_stride + c * 8 : q;
        copy_async(q_at + scattered<WIDTH>(r, c), from, valid);
    }
    auto load = [&](int n0, int stage) {
        const unsigned to = kv_at + stage * 2 * TILE;
#pragma unroll
        for (int i = tid; i < KEYS * CHUNKS; i += 128) {
            const int r = i / CHUNKS, c = i % CHUNKS, n = n0 + r;
            const bool valid = n < block_until && c * 8 < a.head;
            const size_t at = valid ? (size_t)see.row(n) * a.kv_stride + c * 8 : 0;
            copy_async(to + scattered<WIDTH>(r, c), k + at, valid);
            copy_async(to + TILE + scattered<WIDTH>(r, c), v + at, valid);
        }
        asm volatile("cp.async.commit_group;");
    };
    load(0, 0);

    float out[PARTS][CHUNKS][4] = {}, most[PARTS][2], sum[PARTS][2] = {};
    int until[PARTS][2];
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            most[p][r] = -INFINITE;
            until[p][r] = see.until(min(q0 + (warp * PARTS + p) * 16 + r * 8 + lane / 4, last));
        }
    unsigned query[PARTS][WIDTH / 16][4];
    for (int n0 = 0, stage = 0; n0 < block_until; n0 += KEYS, stage ^= 1) {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        if (n0 + KEYS < block_until) load(n0 + KEYS, stage ^ 1);
        if (n0 == 0) {
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int d = 0; d < WIDTH / 16; d++) {
                    const int r = (warp * PARTS + p) * 16 + (lane & 15);
                    fragments(query[p][d], q_at + scattered<WIDTH>(r, d * 2 + (lane >> 4)));
                }
        }
        const unsigned ks = kv_at + stage * 2 * TILE, vs = ks + TILE;
        float score[PARTS][KEYS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < WIDTH / 16; d++)
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                unsigned key[4];
                const int r = n * 16 + (lane & 7) + (lane >> 4) * 8;
                fragments(key, ks + scattered<WIDTH>(r, d * 2 + (lane >> 3 & 1)));
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    multiply(score[p][2 * n], query[p][d], key[0], key[1], T());
                    multiply(score[p][2 * n + 1], query[p][d], key[2], key[3], T());
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
                        score[p][n][e] = exp2_fast(fmaf(score[p][n][e], a.scale_log2, -base));
                        part += score[p][n][e];
                    }
                sum[p][r] = fmaf(sum[p][r], scaled, part);
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
                    out[p][c][2 * r] *= scaled;
                    out[p][c][2 * r + 1] *= scaled;
                }
            }
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            unsigned weight[PARTS][4];
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                weight[p][0] = packed(score[p][2 * n][0], score[p][2 * n][1], T());
                weight[p][1] = packed(score[p][2 * n][2], score[p][2 * n][3], T());
                weight[p][2] = packed(score[p][2 * n + 1][0], score[p][2 * n + 1][1], T());
                weight[p][3] = packed(score[p][2 * n + 1][2], score[p][2 * n + 1][3], T());
            }
#pragma unroll
            for (int c = 0; c < WIDTH / 16; c++) {
                unsigned value[4];
                const int r = n * 16 + (lane & 15);
                fragments_transposed(value, vs + scattered<WIDTH>(r, c * 2 + (lane >> 4)));
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    multiply(out[p][2 * c], weight[p], value[0], value[1], T());
                    multiply(out[p][2 * c + 1], weight[p], value[2], value[3], T());
                }
            }
        }
    }
    // The warp's own rows of the queries' place turn the results into whole chunks.
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    T* y = reinterpret_cast<T*>(a.y) + (size_t)b * a.queries * a.y_stride + h * a.head;
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float all = sum[p][r] + __shfl_xor_sync(~0u, sum[p][r], 1);
            all += __shfl_xor_sync(~0u, all, 2);
            const float share = until[p][r] > 0 ? 1.0f / all : 0.0f;
            const int row = (warp * PARTS + p) * 16 + r * 8 + lane / 4;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                const unsigned pair =
                    packed(out[p][c][2 * r] * share, out[p][c][2 * r + 1] * share, T());
                const unsigned at = scattered<WIDTH>(row, c) + lane % 4 * 4;
                *reinterpret_cast<unsigned*>(reinterpret_cast<char*>(shared) + at) = pair;
            }
        }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * PARTS * CHUNKS; i += 32) {
        const int r = warp * PARTS * 16 + i / CHUNKS, c = i % CHUNKS;
        if (q0 + r >= a.queries || c * 8 >= a.head) continue;
        const unsigned at = scattered<WIDTH>(r, c);
        *reinterpret_cast<uint4*>(y + (size_t)(q0 + r) * a.y_stride + c * 8) =
            *reinterpret_cast<uint4*>(reinterpret_cast<char*>(shared) + at);
    }
}

#define ATTENTION_MMA(W, P, NAME, T)                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                              \
        attention_mma_##NAME##_w##W##_p##P(const __grid_constant__ FlashArguments a) {             \
        wait_for_earlier();                                                                        \
        attention_mma<W, P, T>(a);                                                                 \
    }
#define ATTENTION_MMA_WIDTHS(NAME, T)                                                              \
    ATTENTION_MMA(16, 1, NAME, T)                                                                  \
    ATTENTION_MMA(16, 2, NAME, T)                                                                  \
    ATTENTION_MMA(32, 1, NAME, T)                                                                  \
    ATTENTION_MMA(32, 2, NAME, T)                                                                  \
    ATTENTION_MMA(64, 1, NAME, T)                                                                  \
    ATTENTION_MMA(64, 2, NAME, T)                                                                  \
    ATTENTION_MMA(96, 1, NAME, T)                                                                  \
    ATTENTION_MMA(128, 1, NAME, T)
ATTENTION_MMA_WIDTHS(f16, __half)
ATTENTION_MMA_WIDTHS(bf16, __nv_bfloat16)
