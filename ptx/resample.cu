// `pool` and `interpolate`: an axis at another resolution.
//
// Ladder (not measured: a few elements beside the products)
// 1. Pool: a thread an output where windows are short, else a block a window and tile of columns.
//    Sums in f64, because a window may be a whole context. Interpolate: a thread an output.

#include "columns.cuh"

// --- pool ----------------------------------------------------------------------------------------

struct PoolArguments {
    const float *x; // [outer, n, inner]
    float *y;       // [outer, windows, inner]
    u64 n;
    u64 kernel;
    u32 items; // outputs, or blocks
    u32 inner;
    u32 is_mean;
    u32 tile; // columns of a block
    u32 slots;
    u32 tiles;
    Divisor inner_items; // columns, or tiles
    Divisor windows;
};

__device__ __forceinline__ float larger(float a, float b) {
    return a != a ? a : b != b ? b : fmaxf(a, b);
}

extern "C" __global__ void __launch_bounds__(256) pool_short(const PoolArguments p) {
    u32 item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.items) return;
    u32 row = item, column = divide(p.inner_items, row), window = divide(p.windows, row);
    u64 start = window * p.kernel, end = min(start + p.kernel, p.n);
    const float *x = p.x + row * p.n * p.inner + column;
    double sum = 0.0;
    float most = -INFINITY;
    for (u64 t = start; t < end; ++t) {
        float value = x[t * p.inner];
        if (p.is_mean)
            sum += (double)value;
        else
            most = larger(most, value);
    }
    p.y[item] = p.is_mean ? (float)(sum / (double)(end - start)) : most;
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS) pool_long(const PoolArguments p) {
    extern __shared__ double room[];
    Place at = place(p.tile, p.slots);
    u32 row = blockIdx.x, column = divide(p.inner_items, row) * p.tile + at.channel;
    u32 window = divide(p.windows, row);
    u64 start = window * p.kernel, end = min(start + p.kernel, p.n);
    bool works = at.slot < p.slots && column < p.inner;
    const float *x = p.x + row * p.n * p.inner + column;
    double own = p.is_mean ? 0.0 : -INFINITY;
    for (u64 t = start + at.slot; works && t < end; t += at.slots) {
        float value = x[t * p.inner];
        own = p.is_mean ? own + (double)value : (double)larger((float)own, value);
    }
    double all = across(at, room, own, [&](double a, double b) {
        return p.is_mean ? a + b : (double)larger((float)a, (float)b);
    });
    if (!works || at.slot > 0) return;
    u64 output = ((u64)row * p.windows.divisor + window) * p.inner + column;
    p.y[output] = (float)(p.is_mean ? all / (double)(end - start) : all);
}

// --- interpolate ---------------------------------------------------------------------------------

enum InterpolateKind : u32 { NEAREST = 0, LINEAR = 1, CUBIC = 2 };

struct InterpolateArguments {
    const float *x; // [rows, knots]
    float *y;       // [rows, size]
    u32 items;
    u32 knots;
    u32 kind;
    u32 zero;
    Divisor size;
};

__device__ __forceinline__ float near_knot(float d) { return (1.25f * d - 2.25f) * d * d + 1.0f; }

__device__ __forceinline__ float far_knot(float d) {
    return ((-0.75f * d + 3.75f) * d - 6.0f) * d + 3.0f;
}

extern "C" __global__ void __launch_bounds__(256) interpolate(const InterpolateArguments p) {
    u32 item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.items) return;
    u32 row = item, i = divide(p.size, row), n = p.knots;
    const float *x = p.x + (u64)row * n;
    if (p.kind == NEAREST) {
        p.y[item] = x[(u64)i * n / p.size.divisor];
        return;
    }
    // Where the centre of the point lies, in knots; f64, because it is far from 0 in long rows.
    double center = (i + 0.5) * n / p.size.divisor - 0.5;
    if (p.kind == LINEAR) {
        center = fmax(center, 0.0);
        u32 left = min((u32)floor(center), n - 1), right = min(left + 1, n - 1);
        float t = (float)(center - left);
        p.y[item] = __fmaf_rn(x[right], t, x[left] * (1.0f - t));
        return;
    }
    double floored = floor(center);
    float t = (float)(center - floored);
    long long left = (long long)floored;
    auto knot = [&](int offset) { return x[min(max(left + offset, 0ll), (long long)n - 1)]; };
    float y = knot(-1) * far_knot(t + 1.0f);
    y = __fmaf_rn(knot(0), near_knot(t), y);
    y = __fmaf_rn(knot(1), near_knot(1.0f - t), y);
    p.y[item] = __fmaf_rn(knot(2), far_knot(2.0f - t), y);
}
