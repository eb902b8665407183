// `unary`, `binary`, `weighted_sum`, `ramp`: what is left between the products, in f32.
//
// Not a fallback for whole layers: what follows a product belongs into its epilogue.
//
// Ladder (H200, 2026-11-21, 384 MiB in and out; percent of 4.3 TB/s)
// 1. A function known when the kernel is compiled, 16 bytes a thread and access, two accesses in
//    flight: unary 95% (GELU by the error function 79%), binary 97%, 72% with rows that are no
//    multiple of 4; softmax 81-95%, weighted sums 84-95%. Activations are within 5 ulp of f64; GELU
//    by tanh within 1e-7, and 38 ulp at -5, where it is 1e-6 of its argument.
// 2. Softmax: about five single elements a lane and rows in registers up to 2048, as in `norm`.

#include "activation.cuh"
#include "rows.cuh"

// --- unary ---------------------------------------------------------------------------------------

struct UnaryArguments {
    const float *x;
    float *y;
    u32 elements;
    float a; // slope or factor
    float b; // offset
    u32 zero;
};

// Every element takes the same path, that of a vector: bits must not depend on whether an element
// is in the ragged last vector.
template <class F> __device__ __forceinline__ void map(const UnaryArguments &p, F f) {
    constexpr int UNROLL = 2;
    u32 full = p.elements / 4, ragged = p.elements % 4;
    u32 first = blockIdx.x * (blockDim.x * UNROLL) + threadIdx.x;
    Vector<4> v[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 i = first + u * blockDim.x;
        v[u] = {};
        if (i < full) v[u] = load<4>(p.x + 4ull * i);
        if (i == full)
            for (int j = 0; j < 3; ++j)
                if (j < ragged) v[u].at[j] = p.x[4ull * i + j];
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 i = first + u * blockDim.x;
        if (i > full) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            v[u].at[j] = f(v[u].at[j]);
        if (i < full) store<4>(p.y + 4ull * i, v[u]);
        if (i == full)
            for (int j = 0; j < 3; ++j)
                if (j < ragged) p.y[4ull * i + j] = v[u].at[j];
    }
}

#define UNARY(NAME, EXPRESSION)                                                                    \
    extern "C" __global__ void __launch_bounds__(256) unary_##NAME(const UnaryArguments p) {       \
        map(p, [&](float x) { return EXPRESSION; });                                               \
    }

UNARY(identity, x)
UNARY(relu, activate(RELU, 0.0f, x))
UNARY(gelu, activate(GELU, 0.0f, x))
UNARY(gelu_tanh, activate(GELU_TANH, 0.0f, x))
UNARY(silu, activate(SILU, 0.0f, x))
UNARY(sigmoid, activate(SIGMOID, 0.0f, x))
UNARY(tanh, activate(TANH, 0.0f, x))
UNARY(elu, activate(ELU, 0.0f, x))
UNARY(softplus, activate(SOFTPLUS, 0.0f, x))
UNARY(leaky_relu, activate(LEAKY_RELU, p.a, x))
UNARY(selu, activate(SELU, 0.0f, x))
UNARY(asinh, asinhf(x))
UNARY(sinh, sinhf(x))
UNARY(exp, expf(x))
UNARY(sqrt, sqrtf(x))
UNARY(affine, __fmaf_rn(p.a, x, p.b))
UNARY(observed, x == x ? 1.0f : 0.0f)
UNARY(nan_to_zero, x == x ? x : 0.0f)

// --- softmax of rows -----------------------------------------------------------------------------

struct SoftmaxArguments {
    const float *x;
    float *y;
    u32 rows;
    u32 width;
    u32 lanes; // of a team; 0 for a block a row
    u32 zero;
};

// Rows of at most lanes · V · PER elements.
template <int V, int PER> __device__ __forceinline__ void softmax(const SoftmaxArguments &p) {
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    u32 row = thread / p.lanes, lane = thread % p.lanes;
    bool exists = row < p.rows;
    const float *x = p.x + (u64)row * p.width;
    float *y = p.y + (u64)row * p.width;
    Vector<V> v[PER];
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        u32 at = (lane + i * p.lanes) * V;
        bool inside = exists && at < p.width;
        if (inside) v[i] = load<V>(x + at);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            if (!inside) v[i].at[j] = -INFINITY;
            most = fmaxf(most, v[i].at[j]);
        }
    }
    most = reduce_team<Maximum>(most, p.lanes);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        bool inside = (lane + i * p.lanes) * V < p.width;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            v[i].at[j] = inside ? expf(v[i].at[j] - most) : 0.0f;
            sum += v[i].at[j];
        }
    }
    sum = reduce_team<Sum>(sum, p.lanes);
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        u32 at = (lane + i * p.lanes) * V;
#pragma unroll
        for (int j = 0; j < V; ++j)
            v[i].at[j] = __fdiv_rn(v[i].at[j], sum);
        if (exists && at < p.width) store<V>(y + at, v[i]);
    }
}

template <int V> __device__ __forceinline__ void softmax_long(const SoftmaxArguments &p) {
    const float *x = p.x + (u64)blockIdx.x * p.width;
    float *y = p.y + (u64)blockIdx.x * p.width;
    float most = -INFINITY, sum = 0.0f;
    for (u32 at = threadIdx.x * V; at < p.width; at += LONG_THREADS * V) {
        Vector<V> v = load<V>(x + at);
#pragma unroll
        for (int j = 0; j < V; ++j)
            most = fmaxf(most, v.at[j]);
    }
    most = reduce_block<Maximum>(most);
    for (u32 at = threadIdx.x * V; at < p.width; at += LONG_THREADS * V) {
        Vector<V> v = load<V>(x + at);
#pragma unroll
        for (int j = 0; j < V; ++j)
            sum += expf(v.at[j] - most);
    }
    sum = reduce_block<Sum>(sum);
    for (u32 at = threadIdx.x * V; at < p.width; at += LONG_THREADS * V) {
        Vector<V> v = load<V>(x + at);
#pragma unroll
        for (int j = 0; j < V; ++j)
            v.at[j] = __fdiv_rn(expf(v.at[j] - most), sum);
        store<V>(y + at, v);
    }
}

#define SOFTMAX(V, PER)                                                                            \
    extern "C" __global__ void __launch_bounds__(128)                                              \
        softmax_v##V##_##PER(const SoftmaxArguments p) {                                           \
        softmax<V, PER>(p);                                                                        \
    }

SOFTMAX(1, 1)
SOFTMAX(1, 2)
SOFTMAX(1, 3)
SOFTMAX(1, 4)
SOFTMAX(1, 5)
SOFTMAX(1, 6)
SOFTMAX(1, 8)
SOFTMAX(1, 10)
SOFTMAX(1, 12)
SOFTMAX(1, 16)
SOFTMAX(1, 24)
SOFTMAX(1, 32)
SOFTMAX(4, 1)
SOFTMAX(4, 2)
SOFTMAX(4, 4)
SOFTMAX(4, 8)
SOFTMAX(4, 16)

extern "C" __global__ void __launch_bounds__(LONG_THREADS)
    softmax_v1_long(const SoftmaxArguments p) {
    softmax_long<1>(p);
}

extern "C" __global__ void __launch_bounds__(LONG_THREADS)
    softmax_v4_long(const SoftmaxArguments p) {
    softmax_long<4>(p);
}

// --- binary --------------------------------------------------------------------------------------

enum BinaryKind : u32 { ADD = 0, SUBTRACT = 1, MULTIPLY = 2, DIVIDE = 3, MAXIMUM = 4 };

struct BinaryArguments {
    const float *a;
    const float *b;
    float *y;
    u32 items; // of V elements of `a`
    u32 kind;
    Axes b_axes; // from an item to its first element of `b`
};

__device__ __forceinline__ float combine(u32 kind, float a, float b) {
    switch (kind) {
    case ADD: return a + b;
    case SUBTRACT: return a - b;
    case MULTIPLY: return a * b;
    case DIVIDE: return __fdiv_rn(a, b);
    default: return a != a ? a : b != b ? b : fmaxf(a, b);
    }
}

// `B` of the elements of `b` for `V` of `a`: as many, or one for all.
template <int V, int B> __device__ __forceinline__ void binary(const BinaryArguments &p) {
    constexpr int UNROLL = V == 4 ? 2 : 4;
    u32 first = blockIdx.x * (blockDim.x * UNROLL) + threadIdx.x;
    Vector<V> a[UNROLL];
    Vector<B> b[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 i = first + u * blockDim.x;
        if (i >= p.items) continue;
        a[u] = load<V>(p.a + (u64)i * V);
        b[u] = load<B>(p.b + offset(p.b_axes, i));
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        u32 i = first + u * blockDim.x;
        if (i >= p.items) continue;
#pragma unroll
        for (int j = 0; j < V; ++j)
            a[u].at[j] = combine(p.kind, a[u].at[j], b[u].at[B == 1 ? 0 : j]);
        store<V>(p.y + (u64)i * V, a[u]);
    }
}

extern "C" __global__ void __launch_bounds__(256) binary_v1(const BinaryArguments p) {
    binary<1, 1>(p);
}

extern "C" __global__ void __launch_bounds__(256) binary_v4(const BinaryArguments p) {
    binary<4, 4>(p);
}

extern "C" __global__ void __launch_bounds__(256) binary_v4_one(const BinaryArguments p) {
    binary<4, 1>(p);
}

// --- weighted sum --------------------------------------------------------------------------------

struct WeightedSumArguments {
    const float *weights; // [rows, n]
    const float *x;       // [rows, n, d]
    float *y;             // [rows, d]
    u32 items;            // rows · d / V
    u32 n;
    u32 d;
    u32 is_softmax;
    Divisor vectors; // d / V
};

// A thread has V columns of a row and goes over the n vectors in order. The softmax is recomputed
// by every thread of a row: that costs less than the memory that its result would travel through.
template <int V> __device__ __forceinline__ void weighted_sum(const WeightedSumArguments &p) {
    u32 item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.items) return;
    u32 row = item, column = divide(p.vectors, row) * V;
    const float *w = p.weights + (u64)row * p.n;
    const float *x = p.x + (u64)row * p.n * p.d + column;
    float most = -INFINITY, total = 0.0f;
    if (p.is_softmax)
        for (u32 i = 0; i < p.n; ++i)
            most = fmaxf(most, w[i]);
    Vector<V> sum = {};
#pragma unroll 4
    for (u32 i = 0; i < p.n; ++i) {
        Vector<V> v = load<V>(x + (u64)i * p.d);
        float factor = w[i];
        if (p.is_softmax) {
            factor = expf(factor - most);
            total += factor;
        }
#pragma unroll
        for (int j = 0; j < V; ++j)
            sum.at[j] = __fmaf_rn(factor, v.at[j], sum.at[j]);
    }
    if (p.is_softmax)
#pragma unroll
        for (int j = 0; j < V; ++j)
            sum.at[j] = __fdiv_rn(sum.at[j], total);
    store<V>(p.y + (u64)row * p.d + column, sum);
}

extern "C" __global__ void __launch_bounds__(128) weighted_sum_v1(const WeightedSumArguments p) {
    weighted_sum<1>(p);
}

extern "C" __global__ void __launch_bounds__(128) weighted_sum_v4(const WeightedSumArguments p) {
    weighted_sum<4>(p);
}

// --- ramp ----------------------------------------------------------------------------------------

struct RampArguments {
    float *y;
    double start;
    double added; // length factor times the context's length
    double factor;
    u64 elements;
};

extern "C" __global__ void __launch_bounds__(256) ramp(const RampArguments p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    double index = __dadd_rn(__dadd_rn(p.start, (double)i), p.added);
    p.y[i] = (float)__dmul_rn(index, p.factor);
}
