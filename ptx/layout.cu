// `concat`, `slice`, `gather`, `embedding`, `transpose`, `expand`, `patch`: data movement.
//
// No arithmetic: elements are 32 bits of any type. `reshape` needs no kernel.
//
// Ladder (H200, 2026-11-21, 384 MiB in and out; percent of 4.3 TB/s)
// 1. Work is numbered by the element written, so that writes are contiguous; 16 bytes an item where
//    every run allows it, several items in flight a thread: copies of whole vectors 83-97%.
//    Transposes that change the innermost axis go through a tile of shared memory, 73-80%, but 44%
//    where an axis of 33 fell into tiles of 32 and 1, and 33% for tiles of 672 elements; joins of
//    unaligned parts 30-53%.
// 2. Tiles as long as an axis of up to 64, balanced above: 74% at 33, 73-80% elsewhere. As many
//    rounds as a tile needs, known when the kernel is compiled (an early exit kept loads from being
//    issued together and cost a fifth). Joins find their part in shared memory, by a table where
//    rows are narrow: 75-78%.
// 3. Matrices of less than 1024 elements, copied 58% and 53% a tile each: several a tile, 89-96%.

#include "indexing.cuh"

// The first of a thread's items, which are a block's width apart.
template <int UNROLL> __device__ __forceinline__ u32 first_item() {
    return blockIdx.x * (blockDim.x * UNROLL) + threadIdx.x;
}

template <class T> constexpr int UNROLL = sizeof(T) == 16 ? 2 : 4;

// --- concat, slice -------------------------------------------------------------------------------

constexpr int PARTS_MAX = 16;

// Results of at most this many columns look their part up in a table of the block.
constexpr u32 TABLE_MAX = 256;

struct Part {
    const void *from;
    u64 stride; // units from one row to the next
    u32 start;  // first column of the result
    u32 zero;
};

// Rows made of parts side by side, in units of T.
struct JoinArguments {
    void *y;
    u64 stride; // units from one row of the result to the next
    Divisor width;
    u32 items;
    u32 parts;
    Part part[PARTS_MAX];
};

template <class T> __device__ __forceinline__ void join(const JoinArguments &p) {
    // A parameter at an index that differs from lane to lane is read once for each; shared memory
    // is not.
    __shared__ Part parts[PARTS_MAX];
    __shared__ unsigned char part_of[TABLE_MAX];
    bool has_table = p.parts > 1 && p.width.divisor <= TABLE_MAX;
    if (threadIdx.x < p.parts) parts[threadIdx.x] = p.part[threadIdx.x];
    __syncthreads();
    auto search = [&](u32 column) {
        u32 part = 0;
        while (part + 1 < p.parts && parts[part + 1].start <= column)
            ++part;
        return part;
    };
    if (has_table && threadIdx.x < p.width.divisor)
        part_of[threadIdx.x] = (unsigned char)search(threadIdx.x);
    __syncthreads();
    u32 first = first_item<UNROLL<T>>();
    T v[UNROLL<T>];
    T *to[UNROLL<T>];
#pragma unroll
    for (int u = 0; u < UNROLL<T>; ++u) {
        u32 item = first + u * blockDim.x;
        to[u] = nullptr;
        if (item >= p.items) continue;
        u32 row = item, column = divide(p.width, row);
        Part from = parts[has_table ? part_of[column] : search(column)];
        v[u] = static_cast<const T *>(from.from)[row * from.stride + (column - from.start)];
        to[u] = static_cast<T *>(p.y) + row * p.stride + column;
    }
#pragma unroll
    for (int u = 0; u < UNROLL<T>; ++u)
        if (to[u]) *to[u] = v[u];
}

extern "C" __global__ void __launch_bounds__(256) join_v1(const JoinArguments p) { join<u32>(p); }

extern "C" __global__ void __launch_bounds__(256) join_v4(const JoinArguments p) { join<uint4>(p); }

// --- gather, embedding ---------------------------------------------------------------------------

struct GatherArguments {
    const void *x; // [outer, n, inner]
    const int *indices;
    void *y; // [outer, m, inner]
    u32 items;
    u32 n;
    Divisor inner;
    Divisor m;
};

template <class T> __device__ __forceinline__ void gather(const GatherArguments &p) {
    u32 first = first_item<UNROLL<T>>();
    T v[UNROLL<T>];
#pragma unroll
    for (int u = 0; u < UNROLL<T>; ++u) {
        u32 item = first + u * blockDim.x;
        if (item >= p.items) continue;
        u32 rest = item, i = divide(p.inner, rest), position = divide(p.m, rest);
        int index = p.indices[position];
        index = min(max(index, 0), (int)p.n - 1);
        u64 row = (u64)rest * p.n + index;
        v[u] = static_cast<const T *>(p.x)[row * p.inner.divisor + i];
    }
#pragma unroll
    for (int u = 0; u < UNROLL<T>; ++u) {
        u32 item = first + u * blockDim.x;
        if (item < p.items) static_cast<T *>(p.y)[item] = v[u];
    }
}

extern "C" __global__ void __launch_bounds__(256) gather_v1(const GatherArguments p) {
    gather<u32>(p);
}

extern "C" __global__ void __launch_bounds__(256) gather_v4(const GatherArguments p) {
    gather<uint4>(p);
}

// --- transpose, expand ---------------------------------------------------------------------------

struct CopyArguments {
    const void *x;
    void *y;
    u32 items;
    u32 zero;
    Axes from; // of the result, with the distances in `x`, in units of T
};

template <class T> __device__ __forceinline__ void copy(const CopyArguments &p) {
    u32 first = first_item<UNROLL<T>>();
    T v[UNROLL<T>];
#pragma unroll
    for (int u = 0; u < UNROLL<T>; ++u) {
        u32 item = first + u * blockDim.x;
        if (item < p.items) v[u] = static_cast<const T *>(p.x)[offset(p.from, item)];
    }
#pragma unroll
    for (int u = 0; u < UNROLL<T>; ++u) {
        u32 item = first + u * blockDim.x;
        if (item < p.items) static_cast<T *>(p.y)[item] = v[u];
    }
}

extern "C" __global__ void __launch_bounds__(256) copy_v1(const CopyArguments p) { copy<u32>(p); }

extern "C" __global__ void __launch_bounds__(256) copy_v4(const CopyArguments p) { copy<uint4>(p); }

// Elements of a tile, and threads that move it.
constexpr int TILE = 2048;
constexpr int TILE_SIDE_MAX = 1024;
constexpr int TILE_THREADS = 256;

// Turns the axis that is innermost in `x` (a) into one that is not, and another (z) into the
// innermost of the result.
struct TurnArguments {
    const u32 *x;
    u32 *y;
    u64 from_z; // elements from one z to the next in `x`, where an a is 1
    u64 to_a;   // elements from one a to the next in the result, where a z is 1
    u32 size_a;
    u32 size_z;
    Divisor tile_a; // at most TILE_SIDE_MAX, tile_a · tile_z at most TILE
    Divisor tile_z;
    Divisor tiles_a;
    Divisor tiles_z;
    Axes from; // the other axes
    Axes to;
};

// Tiles of at most ROUNDS · TILE_THREADS elements.
template <int ROUNDS> __device__ __forceinline__ void turn(const TurnArguments &p) {
    __shared__ u32 tile[TILE + TILE_SIDE_MAX];
    u32 rest = blockIdx.x;
    u32 first_a = divide(p.tiles_a, rest) * p.tile_a.divisor;
    u32 first_z = divide(p.tiles_z, rest) * p.tile_z.divisor;
    u32 elements = p.tile_a.divisor * p.tile_z.divisor;
    u32 pitch = p.tile_a.divisor | 1; // odd, so that a column meets every bank
    const u32 *x = p.x + offset(p.from, rest) + first_z * p.from_z + first_a;
    u32 *y = p.y + offset(p.to, rest) + first_a * p.to_a + first_z;
    u32 v[ROUNDS];
#pragma unroll
    for (int r = 0; r < ROUNDS; ++r) {
        u32 i = threadIdx.x + r * TILE_THREADS;
        u32 z = i, a = divide(p.tile_a, z);
        bool inside = i < elements && first_a + a < p.size_a && first_z + z < p.size_z;
        if (inside) v[r] = x[z * p.from_z + a];
    }
#pragma unroll
    for (int r = 0; r < ROUNDS; ++r) {
        u32 i = threadIdx.x + r * TILE_THREADS;
        u32 z = i, a = divide(p.tile_a, z);
        if (i < elements) tile[z * pitch + a] = v[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROUNDS; ++r) {
        u32 i = threadIdx.x + r * TILE_THREADS;
        u32 a = i, z = divide(p.tile_z, a);
        bool inside = i < elements && first_a + a < p.size_a && first_z + z < p.size_z;
        if (inside) y[a * p.to_a + z] = tile[z * pitch + a];
    }
}

#define TURN(ROUNDS)                                                                               \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                     \
        turn_##ROUNDS(const TurnArguments p) {                                                     \
        turn<ROUNDS>(p);                                                                           \
    }

TURN(2)
TURN(4)
TURN(8)

// Transposes dense matrices [z, a], as many whole ones a block as fit into a tile.
struct TurnSmallArguments {
    const u32 *x;
    u32 *y;
    u64 elements; // of all matrices
    u32 chunk;    // of the matrices of a block, at most TILE
    u32 zero;
    Divisor a;
    Divisor z;
};

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    turn_small(const TurnSmallArguments p) {
    __shared__ u32 tile[TILE + TILE_SIDE_MAX];
    constexpr int ROUNDS = TILE / TILE_THREADS;
    u64 start = (u64)blockIdx.x * p.chunk;
    u32 elements = (u32)min((u64)p.chunk, p.elements - start);
    u32 pitch = p.a.divisor | 1;
    u32 v[ROUNDS];
#pragma unroll
    for (int r = 0; r < ROUNDS; ++r) {
        u32 i = threadIdx.x + r * TILE_THREADS;
        if (i < elements) v[r] = p.x[start + i];
    }
#pragma unroll
    for (int r = 0; r < ROUNDS; ++r) {
        u32 i = threadIdx.x + r * TILE_THREADS;
        u32 row = i, a = divide(p.a, row);
        if (i < elements) tile[row * pitch + a] = v[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROUNDS; ++r) {
        u32 i = threadIdx.x + r * TILE_THREADS;
        u32 matrix = i, z = divide(p.z, matrix), a = divide(p.a, matrix);
        if (i < elements) p.y[start + i] = tile[(matrix * p.z.divisor + z) * pitch + a];
    }
}

// --- patch ---------------------------------------------------------------------------------------

struct PatchArguments {
    const u32 *x; // [rows, time]
    u32 *y;       // [rows, windows, length]
    long long first; // position of the first window's first element; negative where zeros precede
    u64 time;
    u64 stride;
    u32 items;
    u32 zero;
    Divisor length;
    Divisor windows;
};

extern "C" __global__ void __launch_bounds__(256) patch(const PatchArguments p) {
    constexpr int EACH = 4;
    u32 first = first_item<EACH>();
    u32 v[EACH];
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        u32 item = first + u * blockDim.x;
        if (item >= p.items) continue;
        u32 row = item, i = divide(p.length, row), window = divide(p.windows, row);
        long long at = p.first + (long long)(window * p.stride + i);
        // Behind the end the last step repeats.
        u64 inside = min((u64)max(at, 0ll), p.time - 1);
        v[u] = at < 0 ? 0 : p.x[row * p.time + inside];
    }
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        u32 item = first + u * blockDim.x;
        if (item < p.items) p.y[item] = v[u];
    }
}
