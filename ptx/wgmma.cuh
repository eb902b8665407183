// The Hopper instructions that the matrix products are made of: warpgroup products (wgmma), bulk
// tensor copies, transaction barriers. One function an instruction; knows no tile.
//
// Wgmma operands are 128-byte K-major rows in shared memory: 64 elements of 16 bits, 32 of f32.
// They have the 128-byte swizzle, 1024-byte aligned in groups of eight rows, as the bulk tensor
// copy writes them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A CUtensorMap, encoded by the host.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

__device__ __forceinline__ unsigned shared_address(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// --- transaction barriers -------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(unsigned barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the barrier at the same address in block `rank` of the cluster. Orders nothing but
// reads by wgmma that are over: a release at cluster scope costs a fence of the whole device.
__device__ __forceinline__ void barrier_arrive_at(unsigned barrier, unsigned rank) {
    asm volatile("{\n.reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}"
                 :
                 : "r"(barrier), "r"(rank)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive_expect(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Waits until the phase of that parity is over.
__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra.uni over;\n"
                 "bra.uni again;\n"
                 "over:\n}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// --- clusters and named barriers ------------------------------------------------------------

__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Orders no memory: for barriers and lifetimes alone.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void named_barrier(unsigned id, unsigned threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts towards a named barrier that others wait at.
__device__ __forceinline__ void named_arrive(unsigned id, unsigned threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int REGISTERS> __device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> __device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// --- bulk tensor copies ---------------------------------------------------------------------

__device__ __forceinline__ void tensor_prefetch(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A box at (column, row) to shared memory.
__device__ __forceinline__ void tensor_load(
    unsigned to, const TensorMap *map, unsigned barrier, int column, int row
) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}

// A box at (column, row) to level-2 cache.
__device__ __forceinline__ void tensor_prefetch_l2(const TensorMap *map, int column, int row) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];"
                 :
                 : "l"(map), "r"(column), "r"(row)
                 : "memory");
}

// A box to the same place in every block of the cluster whose bit is set.
__device__ __forceinline__ void tensor_load_multicast(
    unsigned to, const TensorMap *map, unsigned barrier, int column, int row, unsigned short blocks
) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
                 : "memory");
}

// What lies outside of the tensor is not written.
__device__ __forceinline__ void tensor_store(
    const TensorMap *map, unsigned from, int column, int row
) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                 :
                 : "l"(map), "r"(from), "r"(column), "r"(row)
                 : "memory");
}

__device__ __forceinline__ void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all but the last `PENDING` groups have read their shared memory.
template <int PENDING> __device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Makes what this thread wrote to shared memory visible to bulk copies and wgmma, and its loads
// from there precede their writes.
__device__ __forceinline__ void async_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Four 8 x 8 matrices of 16-bit elements from a warp's registers to shared memory; the address is
// that of row `lane % 8` of matrix `lane / 8`.
__device__ __forceinline__ void matrix_store(
    unsigned address, unsigned a, unsigned b, unsigned c, unsigned d
) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// Four 8 x 16-byte matrices to a warp's registers; the address is that of row `lane % 8` of matrix
// `lane / 8`.
__device__ __forceinline__ void matrix_load(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// --- warpgroup products ---------------------------------------------------------------------

// Descriptor of a K-major operand with the 128-byte swizzle: address and stride of eight rows
// (1024 bytes) in units of 16 bytes. 32 bytes of K further, a product's share, is 2 more.
__device__ __forceinline__ unsigned long long operand(unsigned address) {
    return (static_cast<unsigned long long>((address & 0x3FFFF) >> 4)) | (1ull << 16) |
           (64ull << 32) | (1ull << 62);
}

__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of a sum across the instructions above.
template <int N> __device__ __forceinline__ void pin(float (&sums)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(sums[i])::"memory");
}

#define SUMS_8(d, i)                                                                               \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_16(d, i) SUMS_8(d, i), SUMS_8(d, i + 8)
#define SUMS_32(d, i) SUMS_16(d, i), SUMS_16(d, i + 16)
#define SUMS_64(d, i) SUMS_32(d, i), SUMS_32(d, i + 32)

#define PLACES_32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"

#define PLACES_64 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

#define PLACES_96 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
    "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"

#define PLACES_128 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
    "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
    "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// d += a · bᵀ, or d = a · bᵀ where `add` is 0: [64, 16] by [N, 16], of f32 [64, 8] by [N, 8], which
// is multiplied as tf32: the last 13 bits of a number are not looked at.
template <typename T, int N> struct Product;

#define PRODUCT(TYPE, NAME, N, PLACES, SUMS, A, B, ADD)                                            \
    template <> struct Product<TYPE, N> {                                                          \
        static __device__ __forceinline__ void run(                                                \
            float (&d)[N / 2], unsigned long long a, unsigned long long b, int add                 \
        ) {                                                                                        \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                          \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME           \
                         " {" PLACES "}, " A ", " B ", p, 1, 1, 0, 0;\n}"                          \
                         : SUMS                                                                    \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
    };

#define PRODUCT_TF32(N, PLACES, SUMS, A, B, ADD)                                                   \
    template <> struct Product<float, N> {                                                         \
        static __device__ __forceinline__ void run(                                                \
            float (&d)[N / 2], unsigned long long a, unsigned long long b, int add                 \
        ) {                                                                                        \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                          \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32"                 \
                         " {" PLACES "}, " A ", " B ", p, 1, 1;\n}"                                \
                         : SUMS                                                                    \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
    };

#define SUMS_OF_64 SUMS_32(d, 0)
#define SUMS_OF_128 SUMS_64(d, 0)
#define SUMS_OF_192 SUMS_64(d, 0), SUMS_32(d, 64)
#define SUMS_OF_256 SUMS_64(d, 0), SUMS_64(d, 64)
PRODUCT(__half, "f16", 64, PLACES_32, SUMS_OF_64, "%32", "%33", "%34")
PRODUCT(__nv_bfloat16, "bf16", 64, PLACES_32, SUMS_OF_64, "%32", "%33", "%34")
PRODUCT(__half, "f16", 128, PLACES_64, SUMS_OF_128, "%64", "%65", "%66")
PRODUCT(__nv_bfloat16, "bf16", 128, PLACES_64, SUMS_OF_128, "%64", "%65", "%66")
PRODUCT(__half, "f16", 192, PLACES_96, SUMS_OF_192, "%96", "%97", "%98")
PRODUCT(__nv_bfloat16, "bf16", 192, PLACES_96, SUMS_OF_192, "%96", "%97", "%98")
PRODUCT(__half, "f16", 256, PLACES_128, SUMS_OF_256, "%128", "%129", "%130")
PRODUCT(__nv_bfloat16, "bf16", 256, PLACES_128, SUMS_OF_256, "%128", "%129", "%130")
PRODUCT_TF32(64, PLACES_32, SUMS_OF_64, "%32", "%33", "%34")
PRODUCT_TF32(128, PLACES_64, SUMS_OF_128, "%64", "%65", "%66")
PRODUCT_TF32(192, PLACES_96, SUMS_OF_192, "%96", "%97", "%98")
PRODUCT_TF32(256, PLACES_128, SUMS_OF_256, "%128", "%129", "%130")

// The same for tf32 with the 16 rows of `a` that a warp has in registers.
template <int N> struct ProductOfRegisters;

#define PRODUCT_OF_REGISTERS(N, PLACES, SUMS, A, B, ADD)                                           \
    template <> struct ProductOfRegisters<N> {                                                     \
        static __device__ __forceinline__ void run(                                                \
            float (&d)[N / 2], const unsigned (&a)[4], unsigned long long b, int add               \
        ) {                                                                                        \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                          \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32"                 \
                         " {" PLACES "}, {" A "}, " B ", p, 1, 1;\n}"                              \
                         : SUMS                                                                    \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));          \
        }                                                                                          \
    };

PRODUCT_OF_REGISTERS(64, PLACES_32, SUMS_OF_64, "%32, %33, %34, %35", "%36", "%37")
PRODUCT_OF_REGISTERS(128, PLACES_64, SUMS_OF_128, "%64, %65, %66, %67", "%68", "%69")
