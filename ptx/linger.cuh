// Kernels that stay on their multiprocessors for a while after they have answered, and serve the
// next runs of their program without a launch. The host's half is `program/linger.rs`.
//
// Words in host memory: the run header (`RunHeader`; its reserved words are here `leave`, and
// `linger_ns`, how long a launch waits for the next run after it has answered), the flag and
// `left`. A run is asked for by its number in `header.sequence`, which is written last; it is
// answered when the flag has that number. A launch is known by the number of the run that it was
// launched for.
// One thread of a launch, the conductor, raises the flag, and looks for what comes next. It either
// - finds that it is asked to leave (`leave` is the launch), or that time is up. It then
//   writes the launch's number to `left`, and never looks at the header again; or
// - finds another number in the header, and has the launch serve that run.
// So at most one of the two happens after an answer, decided by one thread. The host writes a
// number n and then looks for `flag == n` and `left == launch`:
// - No run is lost: if the conductor does not find n, then it leaves, the host sees that the flag
//   is not n although the kernel has left, and launches.
// - No run is served twice: the host launches for n only when it has seen `left` and, after that, a
//   flag other than n; `left` is written (with release) after the flag of the last run that was
//   served, so n was not served and, the conductor having left, will not be.
// A launch lives for a bounded time whatever is asked of it: calls of the driver that wait for the
// device (allocations among them) must not wait for ever.
//
// All blocks must be resident at once, because those that came first do not make room: one cluster,
// or a cooperative launch. Between two runs they meet: the conductor goes on when all others have
// done their part, and they when it says so (`Turn`). What a run wrote happens before the next, as
// between two launches.
#pragma once
#include "run.cuh"

// Between the conductor and the other blocks; in device memory, zero before the first launch.
struct Turn {
    unsigned arrived; // blocks that have done their part, of all runs of this launch
    unsigned elsewhere[31];
    unsigned go; // twice the number of the next run on the device, or one more than of the last
};

constexpr unsigned long long LINGER_LIFE_NS = 10'000'000;

__device__ __forceinline__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// The conductor's way to find out what comes after run `run` of the launch `first`, which began at
// `begun`: the number of the next run, or 0 to leave.
__device__ __forceinline__ unsigned next_run(const RunHeader* header, unsigned* left,
                                             unsigned first, unsigned run,
                                             unsigned long long begun) {
    const unsigned long long since = nanoseconds();
    while (true) {
        uint4 now;
        asm volatile("ld.acquire.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(now.x), "=r"(now.y), "=r"(now.z), "=r"(now.w)
                     : "l"(header) : "memory");
        const unsigned long long time = nanoseconds();
        // Also where the next run is asked for: those who wait for the device must get it.
        if (now.z == first || time - begun >= LINGER_LIFE_NS) break;
        if (now.x != run) return now.x;
        if (time - since >= now.w) break;
    }
    asm volatile("st.release.sys.global.u32 [%0], %1;" :: "l"(left), "r"(first) : "memory");
    return 0;
}

// The conductor waits until so many blocks have done their part.
__device__ __forceinline__ void all_have_arrived(Turn* turn, unsigned arrivals) {
    unsigned arrived;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                    : "=r"(arrived) : "l"(&turn->arrived) : "memory");
    while (arrived != arrivals);
}

// The conductor tells all others whether there is a run after that of this number on the device.
__device__ __forceinline__ void conduct(Turn* turn, unsigned number, bool more) {
    if (!more) turn->arrived = 0;
    asm volatile("st.release.gpu.global.u32 [%0], %1;"
                 :: "l"(&turn->go), "r"(2 * number + (more ? 2 : 1)) : "memory");
}

// All threads of another block, when they have done their part of the run of this number on the
// device: whether there is a next one. `word` is in shared memory.
__device__ __forceinline__ bool follows(Turn* turn, unsigned number, unsigned* word) {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned go;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(&turn->arrived) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                        : "=r"(go) : "l"(&turn->go) : "memory");
        while (go - (2 * number + 1) > 1);
        *word = go & 1;
    }
    __syncthreads();
    return *word == 0;
}
