// The two halves of `wait_for_earlier` (`dependent.cuh`), for kernels that have something to do in
// between: what no earlier kernel of a program writes, weights above all, may be read before it.
#pragma once

// Lets the kernel behind this one start.
static __device__ __forceinline__ void let_later_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until the kernel ahead of this one has ended and its writes are seen. Before it nothing may
// be read that an earlier kernel of the program writes, and nothing written that one reads.
static __device__ __forceinline__ void earlier_have_ended() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
