// From the number of a work item to the place of its elements. Mirrors `step::indexing`.
//
// A launch has fewer than 2^31 items, numbered in 32 bits, because 64-bit divisions are slow; the
// host cuts what is larger into several launches. Offsets are 64-bit.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

// Most axes of unequal strides.
constexpr int AXES_MAX = 8;

// Division by a number that is not known when the kernel is compiled: multiply and shift.
struct Divisor {
    u32 divisor;
    u32 multiplier;
    u32 shift;
    u32 zero;
};

// For n below 2^31.
__device__ __forceinline__ u32 quotient(const Divisor &d, u32 n) {
    return (__umulhi(n, d.multiplier) + n) >> d.shift;
}

// The remainder; `n` becomes the quotient.
__device__ __forceinline__ u32 divide(const Divisor &d, u32 &n) {
    u32 q = quotient(d, n);
    u32 remainder = n - q * d.divisor;
    n = q;
    return remainder;
}

// Axes, the innermost first, with the distance between neighbours of each.
struct Axes {
    Divisor sizes[AXES_MAX];
    u64 strides[AXES_MAX];
    u32 count;
    u32 zero;
};

__device__ __forceinline__ u64 offset(const Axes &axes, u32 item) {
    u64 at = 0;
    for (int i = 0; i + 1 < (int)axes.count; ++i)
        at += divide(axes.sizes[i], item) * axes.strides[i];
    return at + item * axes.strides[axes.count - 1];
}
