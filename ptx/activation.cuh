// Activation functions in f32, accurate to a few ulp; numbered as `step::activation` numbers them.
// Kernels that may trade accuracy for speed (f16 and below) have their own beside them.
#pragma once

enum Activation : unsigned {
    IDENTITY = 0,
    RELU = 1,
    GELU = 2,
    GELU_TANH = 3,
    SILU = 4,
    SIGMOID = 5,
    TANH = 6,
    ELU = 7,
    SOFTPLUS = 8,
    LEAKY_RELU = 9,
    SELU = 10,
};

__device__ __forceinline__ float sigmoid_f32(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// `slope` is read for LEAKY_RELU alone.
__device__ __forceinline__ float activate(unsigned kind, float slope, float x) {
    switch (kind) {
    case RELU: return x < 0.0f ? 0.0f : x; // NaN stays NaN
    case GELU: return x * normcdff(x);
    case GELU_TANH: {
        // (1 + tanh z) / 2 = sigmoid(2z), which keeps its digits where tanh is near -1.
        float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return x * sigmoid_f32(2.0f * inner);
    }
    case SILU: return x * sigmoid_f32(x);
    case SIGMOID: return sigmoid_f32(x);
    case TANH: return tanhf(x);
    case ELU: return x > 0.0f ? x : expm1f(x);
    case SOFTPLUS: return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
    case LEAKY_RELU: return x > 0.0f ? x : slope * x;
    case SELU: return 1.0507009873554805f * (x > 0.0f ? x : 1.6732632423543772f * expm1f(x));
    default: return x;
    }
}
