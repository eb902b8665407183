// The tensor-core product: one template for every number format and tile.
//
// A block makes ROWS × COLUMNS sums. Stages of its operands arrive in shared memory by
// asynchronous copies in the format they have in memory; what must be converted is converted on its
// way from shared memory to registers. k may be cut into SLICES, summed by different warps and
// added in order at the end: the cuts depend on k and SLICES alone, so the bits of a sum do not
// depend on the tile. Sums in one slice also have the bits of Hopper's own instruction (compared
// over 250 steps of f16 and bf16 on an H200, 2026-11-21).
#pragma once

#include "gemm.cuh"

// In which format the tensor cores multiply. F32 splits each number into two tf32 and leaves out
// the product of the low parts; its sums are closed every 32 elements of k, because the tensor
// cores round towards zero when they add.
enum class Multiply { F16, BF16, TF32, F32 };

// How weights are stored, where that is not the format of the product. 8-bit weights lie in groups
// of 16 along k: position 4t + j holds k = 2t + j for j < 2 and 2t + 6 + j above, which is what
// lane t of a quad multiplies in one tensor-core product. The scales of 8-bit floats carry a factor
// 256, because their bits decode as f16 numbers that are 256 times smaller.
enum class Stored { AS_MULTIPLIED, INT8, E4M3 };

template <
    Multiply MULTIPLY_, bool CONVERT_X_, Stored STORED_, unsigned ROWS_, unsigned COLUMNS_,
    unsigned WARP_ROWS_, unsigned WARP_COLUMNS_, unsigned SLICES_, unsigned STAGES_,
    unsigned BLOCKS_>
struct Shape {
    static constexpr Multiply MULTIPLY = MULTIPLY_;
    static constexpr Stored STORED = STORED_;
    static constexpr unsigned ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr unsigned WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
    static constexpr unsigned SLICES = SLICES_, STAGES = STAGES_;
    static constexpr unsigned BLOCKS = BLOCKS_; // resident on a multiprocessor, at least
    static constexpr bool WIDE = MULTIPLY == Multiply::TF32 || MULTIPLY == Multiply::F32;
    // X is f32 in memory and multiplied in 16 bits.
    static constexpr bool CONVERT_X = CONVERT_X_;
    static constexpr unsigned X_BYTES = WIDE || CONVERT_X ? 4 : 2;
    static constexpr unsigned W_BYTES = STORED != Stored::AS_MULTIPLIED ? 1 : WIDE ? 4 : 2;
    static constexpr unsigned X_ROW = 128; // bytes of a row of a stage
    static constexpr unsigned DEPTH = X_ROW / X_BYTES;
    static constexpr unsigned W_ROW = DEPTH * W_BYTES;
    static constexpr unsigned STEP = WIDE ? 8 : 16; // k of one tensor-core product
    static constexpr unsigned STEPS = DEPTH / STEP;
    static_assert(STEPS % 2 == 0, "fragments alternate between two buffers");
    static constexpr unsigned SLICE_BYTES = ROWS * X_ROW + COLUMNS * W_ROW;
    static constexpr unsigned STAGE_BYTES = SLICES * SLICE_BYTES;
    static constexpr unsigned WARPS_M = ROWS / WARP_ROWS, WARPS_N = COLUMNS / WARP_COLUMNS;
    static constexpr unsigned THREADS = 32 * WARPS_M * WARPS_N * SLICES;
    static constexpr unsigned TILES_M = WARP_ROWS / 16, TILES_N = WARP_COLUMNS / 8;
    static constexpr unsigned SUM_BYTES = SLICES * ROWS * TILE_STRIDE<COLUMNS> * 4;
    static constexpr unsigned SHARED_BYTES =
        STAGES * STAGE_BYTES > SUM_BYTES ? STAGES * STAGE_BYTES : SUM_BYTES;
};

// k that a slice sums: a multiple of 64, so of every DEPTH.
__device__ __forceinline__ unsigned slice_length(unsigned k, unsigned slices) {
    return ((k + slices - 1) / slices + 63) / 64 * 64;
}

__device__ __forceinline__ void copy16(unsigned to, const void* from, unsigned bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void copy4(unsigned to, const void* from, unsigned bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void copies_issued() { asm volatile("cp.async.commit_group;"); }

template <unsigned LEFT> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ void load_matrices4(unsigned from, unsigned* r) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

__device__ __forceinline__ void load_matrices2(unsigned from, unsigned* r) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from));
}

template <Multiply MULTIPLY>
__device__ __forceinline__ void multiply(float* c, const unsigned* a, const unsigned* b) {
    if constexpr (MULTIPLY == Multiply::F16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else if constexpr (MULTIPLY == Multiply::BF16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

__device__ __forceinline__ unsigned to_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

// Splits x into a rounded tf32 and the rest, of which the tensor cores read the leading 11 bits: 23
// of its 24 bits in all. By integers, because the conversion takes four instructions. What is not
// finite leaves a rest that is not a number.
__device__ __forceinline__ void split(unsigned& x, unsigned& low) {
    const float whole = __uint_as_float(x);
    x = (x + 0x1000u) & 0xffffe000u;
    low = __float_as_uint(whole - __uint_as_float(x));
}

template <Multiply MULTIPLY> __device__ __forceinline__ unsigned pack_pair(float2 v) {
    unsigned r;
    if constexpr (MULTIPLY == Multiply::F16) {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(v.y), "f"(v.x));
    } else {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(v.y), "f"(v.x));
    }
    return r;
}

// Four 8-bit weights as two pairs of f16. Exact.
template <Stored STORED>
__device__ __forceinline__ void decode(unsigned v, unsigned& first, unsigned& second) {
    if constexpr (STORED == Stored::INT8) {
        v ^= 0x80808080u; // 128 more, as bytes of f16 numbers from 1024 on
        const __half2 offset = __half2half2(__ushort_as_half(0x6480)); // 1152
        unsigned low = __byte_perm(v, 0x64646464u, 0x4140);
        unsigned high = __byte_perm(v, 0x64646464u, 0x4342);
        *(__half2*)&first = __hsub2(*(__half2*)&low, offset);
        *(__half2*)&second = __hsub2(*(__half2*)&high, offset);
    } else {
        unsigned low = __byte_perm(v, 0, 0x1404), high = __byte_perm(v, 0, 0x3424);
        first = (low & 0x80008000u) | ((low & 0x7f007f00u) >> 1);
        second = (high & 0x80008000u) | ((high & 0x7f007f00u) >> 1);
    }
}

// Where a 16-byte chunk of a row of weights lies: eight rows read at one chunk touch all banks.
template <unsigned W_ROW>
__device__ __forceinline__ unsigned swizzled(unsigned row, unsigned chunk) {
    if constexpr (W_ROW == 128) return row * 128 + ((chunk ^ (row & 7)) << 4);
    if constexpr (W_ROW == 64) return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4);
    return row * 32 + ((chunk ^ ((row >> 2) & 1)) << 4);
}

// The halves of `wait_for_earlier`: weights may be read before the first, and the next kernel takes
// the room that this one leaves. Were it started at once, its blocks would gather on the
// multiprocessors that have none of this kernel's: 34 us for 24 (512 x 768 x 3072, H200,
// 2026-11-21).
__device__ __forceinline__ void wait_for_results() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void start_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// How the threads of a block copy a tile of so many rows, each of so many 16-byte chunks, of every
// slice: in passes of whole rows. What does not change from stage to stage is computed once.
template <unsigned SLICES, unsigned ROWS, unsigned CHUNKS, unsigned THREADS, unsigned SLICE_BYTES>
struct Passes {
    static constexpr unsigned RANK = THREADS / CHUNKS; // rows of a pass
    static constexpr unsigned TOTAL = SLICES * ROWS;
    static constexpr unsigned COUNT = (TOTAL + RANK - 1) / RANK;
    static_assert(RANK % 8 == 0, "a pass must not disturb the swizzle");
    static_assert(ROWS % RANK == 0 || RANK % ROWS == 0, "slices and passes nest");

    static __device__ __forceinline__ unsigned chunk() { return threadIdx.x % CHUNKS; }
    // Row and slice of a thread in pass 0, and what pass i adds to them.
    static __device__ __forceinline__ unsigned row() { return threadIdx.x / CHUNKS % ROWS; }
    static __device__ __forceinline__ unsigned slice() { return threadIdx.x / CHUNKS / ROWS; }
    static __device__ __forceinline__ constexpr unsigned row_of(unsigned i) {
        return i * RANK % ROWS;
    }
    static __device__ __forceinline__ constexpr unsigned slice_of(unsigned i) {
        return i * RANK / ROWS;
    }
    // Whether a thread has a row in a pass at all.
    static __device__ __forceinline__ bool takes_part(unsigned i) {
        return TOTAL % RANK == 0 || i * RANK + threadIdx.x / CHUNKS < TOTAL;
    }
    // Bytes from the last pass of a slice to the first of the next.
    static __device__ __forceinline__ size_t next_slice(size_t row_bytes, size_t slice_bytes) {
        constexpr unsigned SLICES_PER_PASS = RANK > ROWS ? RANK / ROWS : 1;
        constexpr unsigned PASSES_PER_SLICE = RANK < ROWS ? ROWS / RANK : 1;
        return SLICES_PER_PASS * slice_bytes - (PASSES_PER_SLICE - 1) * RANK * row_bytes;
    }
    static __device__ __forceinline__ constexpr unsigned to(unsigned i, unsigned row_bytes) {
        return slice_of(i) * SLICE_BYTES + row_of(i) * row_bytes;
    }
};

// Copies X, a stage at a time: rows past the end and k past the end become zeros.
template <class S> struct CopyX {
    using P = Passes<S::SLICES, S::ROWS, 8, S::THREADS, S::SLICE_BYTES>;
    static constexpr unsigned PER_CHUNK = 16 / S::X_BYTES;
    const char* from;   // of pass 0
    size_t row_bytes;   // from one row of X to the next
    size_t next_rows, next_slice; // from a pass to the next, in a slice and into the next
    unsigned to;        // in a stage, of pass 0
    unsigned k;         // of pass 0
    unsigned end, length;
    unsigned rows;      // bit i: pass i has a row of X
    bool aligned;

    __device__ __forceinline__ CopyX(
        const GemmArguments& a, unsigned batch, unsigned row0, unsigned length)
        : length(length) {
        const unsigned swizzle = S::CONVERT_X ? (P::row() & 3) << 1 : P::row() & 7;
        const char* x = (const char*)a.x + (size_t)batch * a.x_batch * S::X_BYTES;
        row_bytes = a.x_row * S::X_BYTES;
        aligned = ((size_t)x | row_bytes) % 16 == 0;
        to = P::slice() * S::SLICE_BYTES + P::row() * S::X_ROW + ((P::chunk() ^ swizzle) << 4);
        k = P::slice() * length + P::chunk() * PER_CHUNK;
        end = a.k;
        next_rows = P::RANK * row_bytes;
        next_slice = P::next_slice(row_bytes, length * S::X_BYTES);
        from = x + (row0 + P::row()) * row_bytes + (size_t)k * S::X_BYTES;
        rows = 0;
#pragma unroll
        for (unsigned i = 0; i < P::COUNT; i++)
            rows |= (P::takes_part(i) && row0 + P::row() + P::row_of(i) < a.m) << i;
    }

    __device__ __forceinline__ void copy(unsigned stage) {
        if (aligned) {
            const char* p = from;
#pragma unroll
            for (unsigned i = 0; i < P::COUNT; i++) {
                if (i > 0) p += P::row_of(i) == 0 ? next_slice : next_rows;
                if (P::takes_part(i))
                    copy16(stage + to + P::to(i, S::X_ROW), p, valid(i) * S::X_BYTES);
            }
        } else {
#pragma unroll 1
            for (unsigned i = 0; i < P::COUNT; i++) copy_unaligned(i, stage);
        }
        from += S::DEPTH * S::X_BYTES;
        k += S::DEPTH;
    }

    __device__ __forceinline__ unsigned valid(unsigned i) const {
        const int left = (int)(end - k) - (int)(P::slice_of(i) * length);
        return rows >> i & 1 ? (unsigned)max(0, min(left, (int)PER_CHUNK)) : 0;
    }

    __device__ __forceinline__ const char* place(unsigned i) const {
        return from + P::row_of(i) * row_bytes + (size_t)(P::slice_of(i) * length) * S::X_BYTES;
    }

    __device__ __forceinline__ void copy_unaligned(unsigned i, unsigned stage) const {
        if (!P::takes_part(i)) return;
        const unsigned count = valid(i), at = stage + to + P::to(i, S::X_ROW);
        const char* p = place(i);
        const int bytes = (int)(count * S::X_BYTES);
        if (S::X_BYTES == 4 || ((size_t)from | row_bytes) % 4 == 0) {
#pragma unroll
            for (int e = 0; e < 16; e += 4)
                copy4(at + e, p + e, (unsigned)max(0, min(bytes - e, 4)));
        } else {
#pragma unroll 1
            for (unsigned e = 0; e < 8; e++) {
                const unsigned short v = e < count ? ((const unsigned short*)p)[e] : 0;
                asm volatile("st.shared.b16 [%0], %1;" ::"r"(at + 2 * e), "h"(v));
            }
        }
    }
};

// Copies the weights, a stage at a time; their rows are padded with zeros.
template <class S> struct CopyW {
    using P = Passes<S::SLICES, S::COLUMNS, S::W_ROW / 16, S::THREADS, S::SLICE_BYTES>;
    const char* from;
    size_t next_rows, next_slice;
    unsigned to, k, end, length, rows;

    __device__ __forceinline__ CopyW(
        const GemmArguments& a, unsigned batch, unsigned col0, unsigned length)
        : length(length) {
        const size_t row_bytes = (size_t)a.w_stride * S::W_BYTES;
        next_rows = P::RANK * row_bytes;
        next_slice = P::next_slice(row_bytes, length * S::W_BYTES);
        to = P::slice() * S::SLICE_BYTES + S::ROWS * S::X_ROW
            + swizzled<S::W_ROW>(P::row(), P::chunk());
        k = P::slice() * length + P::chunk() * (16 / S::W_BYTES);
        end = a.w_stride;
        from = (const char*)a.w + ((size_t)batch * a.w_rows + col0 + P::row()) * row_bytes
            + (size_t)k * S::W_BYTES;
        rows = 0;
#pragma unroll
        for (unsigned i = 0; i < P::COUNT; i++)
            rows |= (P::takes_part(i) && col0 + P::row() + P::row_of(i) < a.w_rows) << i;
    }

    __device__ __forceinline__ void copy(unsigned stage) {
        const char* p = from;
#pragma unroll
        for (unsigned i = 0; i < P::COUNT; i++) {
            if (i > 0) p += P::row_of(i) == 0 ? next_slice : next_rows;
            const bool inside = rows >> i & 1 && k + P::slice_of(i) * length < end;
            if (P::takes_part(i)) copy16(stage + to + P::to(i, S::W_ROW), p, inside ? 16 : 0);
        }
        from += S::DEPTH * S::W_BYTES;
        k += S::DEPTH;
    }
};

// The numbers of one step that a warp multiplies.
template <class S> struct Fragments {
    unsigned x[S::TILES_M][4];
    unsigned w[S::TILES_N][2];
};

// Where a lane reads: byte offsets in a slice of a stage.
template <class S> struct Reader {
    unsigned x, w;

    __device__ __forceinline__ Reader(unsigned warp_m, unsigned warp_n, unsigned lane) {
        const unsigned row = warp_m * S::WARP_ROWS;
        if constexpr (S::CONVERT_X) {
            x = (row + lane / 4) * 128 + (((lane / 4) & 3) << 5) + (lane % 4) * 8;
        } else {
            x = (row + lane % 16) * 128 + (((lane / 16) ^ (lane & 7)) << 4);
        }
        unsigned column = warp_n * S::WARP_COLUMNS;
        unsigned chunk = 0;
        if constexpr (S::STORED == Stored::AS_MULTIPLIED) {
            column += lane / 16 * 8 + lane % 8;
            chunk = lane / 8 % 2;
        } else {
            column += S::TILES_N >= 4 ? lane : lane % 16;
        }
        w = S::ROWS * S::X_ROW + swizzled<S::W_ROW>(column, chunk);
    }

    __device__ __forceinline__ void read(
        Fragments<S>& f, unsigned slice, const char* slice_bytes, unsigned step) const {
#pragma unroll
        for (unsigned i = 0; i < S::TILES_M; i++) {
            if constexpr (S::CONVERT_X) {
                const char* p = slice_bytes + i * 2048;
                const unsigned near = x ^ step * 64, far = x ^ (step * 64 + 32);
                f.x[i][0] = pack_pair<S::MULTIPLY>(*(const float2*)(p + near));
                f.x[i][1] = pack_pair<S::MULTIPLY>(*(const float2*)(p + near + 1024));
                f.x[i][2] = pack_pair<S::MULTIPLY>(*(const float2*)(p + far));
                f.x[i][3] = pack_pair<S::MULTIPLY>(*(const float2*)(p + far + 1024));
            } else {
                load_matrices4(slice + (x ^ step * 32) + i * 2048, f.x[i]);
            }
        }
        if constexpr (S::STORED == Stored::AS_MULTIPLIED) {
#pragma unroll
            for (unsigned j = 0; j < S::TILES_N; j += 2)
                load_matrices4(slice + (w ^ step * 32) + j * 8 * S::W_ROW, f.w[j]);
        } else if constexpr (S::TILES_N >= 4) {
#pragma unroll
            for (unsigned j = 0; j < S::TILES_N; j += 4) {
                unsigned raw[4];
                load_matrices4(slice + (w ^ step * 16) + j * 8 * S::W_ROW, raw);
#pragma unroll
                for (unsigned i = 0; i < 4; i++)
                    decode<S::STORED>(raw[i], f.w[j + i][0], f.w[j + i][1]);
            }
        } else {
            unsigned raw[2];
            load_matrices2(slice + (w ^ step * 16), raw);
            decode<S::STORED>(raw[0], f.w[0][0], f.w[0][1]);
            decode<S::STORED>(raw[1], f.w[1][0], f.w[1][1]);
        }
    }
};

template <class S> using Sums = float[S::TILES_M][S::TILES_N][4];

// Adds the products of one step. F32 adds to sums that its caller closes.
template <class S>
__device__ __forceinline__ void multiply_step(Sums<S>& sums, Fragments<S>& f) {
    if constexpr (S::MULTIPLY == Multiply::F32) {
        Fragments<S> low;
#pragma unroll
        for (unsigned i = 0; i < S::TILES_M; i++)
#pragma unroll
            for (unsigned e = 0; e < 4; e++) split(f.x[i][e], low.x[i][e]);
#pragma unroll
        for (unsigned j = 0; j < S::TILES_N; j++)
#pragma unroll
            for (unsigned e = 0; e < 2; e++) split(f.w[j][e], low.w[j][e]);
        // In three rounds, so that products of one sum do not wait for one another.
        const unsigned(*const x[3])[4] = {low.x, f.x, f.x};
        const unsigned(*const w[3])[2] = {f.w, low.w, f.w};
#pragma unroll
        for (unsigned round = 0; round < 3; round++)
#pragma unroll
            for (unsigned i = 0; i < S::TILES_M; i++)
#pragma unroll
                for (unsigned j = 0; j < S::TILES_N; j++)
                    multiply<S::MULTIPLY>(sums[i][j], x[round][i], w[round][j]);
        return;
    }
    if constexpr (S::MULTIPLY == Multiply::TF32) {
#pragma unroll
        for (unsigned i = 0; i < S::TILES_M; i++)
#pragma unroll
            for (unsigned e = 0; e < 4; e++) f.x[i][e] = to_tf32(__uint_as_float(f.x[i][e]));
#pragma unroll
        for (unsigned j = 0; j < S::TILES_N; j++)
#pragma unroll
            for (unsigned e = 0; e < 2; e++) f.w[j][e] = to_tf32(__uint_as_float(f.w[j][e]));
    }
#pragma unroll
    for (unsigned i = 0; i < S::TILES_M; i++)
#pragma unroll
        for (unsigned j = 0; j < S::TILES_N; j++)
            multiply<S::MULTIPLY>(sums[i][j], f.x[i], f.w[j]);
}

template <class S> __device__ __forceinline__ void gemm_mma(const GemmArguments& a) {
    extern __shared__ __align__(128) char shared[];
    const unsigned stages = (unsigned)__cvta_generic_to_shared(shared);
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned warp_n = warp % S::WARPS_N, warp_m = warp / S::WARPS_N % S::WARPS_M;
    const unsigned slice = warp / (S::WARPS_N * S::WARPS_M);
    const unsigned batch = blockIdx.z, row0 = blockIdx.y * S::ROWS, col0 = blockIdx.x * S::COLUMNS;
    const unsigned length = slice_length(a.k, S::SLICES);
    const unsigned count = (min(length, a.k) + S::DEPTH - 1) / S::DEPTH;
    CopyX<S> copy_x(a, batch, row0, length);
    CopyW<S> copy_w(a, batch, col0, length);
    const Reader<S> reader(warp_m, warp_n, lane);
    Sums<S> sums = {};

    unsigned next = 0, filling = 0; // the stage to copy, and where it goes
    auto advance = [&]() {
        next++;
        filling += S::STAGE_BYTES;
        if (filling == S::STAGES * S::STAGE_BYTES) filling = 0;
    };
    auto copy = [&]() {
        if (next < count) {
            copy_x.copy(stages + filling);
            copy_w.copy(stages + filling);
        }
        copies_issued();
        advance();
    };
    // Weights never change, so they need not wait for the launch ahead.
    const unsigned first = min(count, S::STAGES - 1);
#pragma unroll 1
    for (unsigned i = 0; i < first; i++) copy_w.copy(stages + i * S::STAGE_BYTES);
    wait_for_results();
#pragma unroll 1
    for (unsigned i = 0; i < S::STAGES - 1; i++) {
        if (i < first) copy_x.copy(stages + filling);
        copies_issued();
        advance();
    }
    unsigned offset = slice * S::SLICE_BYTES; // of the stage being read
    Fragments<S> f[2];
    wait_copies<S::STAGES - 2>();
    __syncthreads();
    reader.read(f[0], stages + offset, shared + offset, 0);
#pragma unroll 1
    for (unsigned i = 0; i < count; i++) {
        Sums<S> part = {};
#pragma unroll
        for (unsigned step = 0; step < S::STEPS; step++) {
            // The next step's numbers are on their way while this step's are multiplied. Behind the
            // last of its stage everyone has read that stage, and the next one has arrived.
            if (step + 1 == S::STEPS) {
                offset += S::STAGE_BYTES;
                if (offset >= S::STAGES * S::STAGE_BYTES) offset -= S::STAGES * S::STAGE_BYTES;
                wait_copies<S::STAGES - 2>();
                __syncthreads();
            }
            const unsigned ahead = (step + 1) % S::STEPS;
            reader.read(f[(step + 1) % 2], stages + offset, shared + offset, ahead);
            if (step == 0) copy();
            multiply_step<S>(S::MULTIPLY == Multiply::F32 ? part : sums, f[step % 2]);
        }
        if constexpr (S::MULTIPLY == Multiply::F32) {
#pragma unroll
            for (unsigned i = 0; i < S::TILES_M; i++)
#pragma unroll
                for (unsigned j = 0; j < S::TILES_N; j++)
#pragma unroll
                    for (unsigned e = 0; e < 4; e++) sums[i][j][e] += part[i][j][e];
        }
    }
    wait_copies<0>();
    start_next();
    __syncthreads();
    float* tile = (float*)shared;
    constexpr unsigned STRIDE = TILE_STRIDE<S::COLUMNS>;
#pragma unroll
    for (unsigned i = 0; i < S::TILES_M; i++)
#pragma unroll
        for (unsigned j = 0; j < S::TILES_N; j++) {
            const unsigned row = warp_m * S::WARP_ROWS + i * 16 + lane / 4;
            const unsigned column = warp_n * S::WARP_COLUMNS + j * 8 + lane % 4 * 2;
            float* to = tile + (slice * S::ROWS + row) * STRIDE + column;
            *(float2*)to = make_float2(sums[i][j][0], sums[i][j][1]);
            *(float2*)(to + 8 * STRIDE) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
    __syncthreads();
    write_tile<S::ROWS, S::COLUMNS, S::SLICES, S::THREADS>(a, batch, row0, col0, tile);
}
