// Recurrent layers of any cell, width, length and batch, in f32 arithmetic from weights of any
// format. Not the fast path of an LSTM in half precision: that is `rnn_batch_hopper.cu` for many
// rows and `rnn_latency.cu` for few.
//
// Ladder
// 1 `rows_*`: a block owns complete rows of the batch and walks all steps of one direction of one
//   layer without waiting for another block; a thread owns a unit with all its gates. The products
//   of the inputs were hoisted into one matrix product before. Bound: each block reads W_hh from
//   L1/L2 once a step for its eight rows, 4·D·D·4 bytes, so about D·D/8 cycles a step at 128 bytes
//   a clock from L1 and three to five times that from L2.
// 2 `cell_*`: for wide layers with many rows, where W_hh (16 MB at D 1000) read by every block
//   would cost 132 times the L2's bandwidth: one matrix product a step, then the cell elementwise.
//   Bound: two launches a step, and the gates through L2.
// Both ship: (2) where D > 64 in the throughput class, D > 256 in the latency class.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "activation.cuh"
#include "run.cuh"

typedef unsigned long long Address;

enum Cell { LSTM = 0, GRU = 1, RNN = 2, SLSTM = 3 };

// States of a layer and how they are found. State 0 has `width` elements, the others `hidden`.
struct States {
    Address from[4];  // initial values, of the layer's first direction; 0 for zeros
    Address to[2][4]; // final values in two places; 0 for none
    Address header;   // of the run, where `slots` is set
    unsigned stride[4]; // elements from a row (or slot) to the next, in all three
    unsigned slots;     // whether `from` is indexed by the row's slot
    unsigned row;       // number of the first row in the bucket
};

struct RowsArguments {
    States states;
    Address gates[2];   // a direction: [batch, gate_steps, G·D] f32, input products with b_ih
    Address w_hh[2];    // [K, D, 4 or 1]: unit and gate fastest
    Address b_hh[2];    // [G·D] f32, or 0
    Address scale[2];   // [G·D] f32 factors of w_hh's rows, or 0
    Address w_hr[2];    // [D, P], or 0
    Address scale_hr[2]; // [P] f32, or 0
    Address y;          // [batch, y_steps, y_width] f32
    unsigned gate_steps[2]; // the last so many positions
    unsigned steps[2];      // to walk
    unsigned batch, time, hidden, width;
    unsigned inputs; // recurrent inputs of a unit: `width`, or a head's width
    unsigned head;   // a head's width, 0 without heads
    unsigned y_steps, y_width;
    unsigned relu, count; // RNN by relu; number of states
};

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(__half x) { return __half2float(x); }
__device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

// Where the initial state of a row begins, or null for zeros.
__device__ __forceinline__ const float* initial(const States& s, unsigned state, unsigned row) {
    const float* from = (const float*)s.from[state];
    if (!from) return nullptr;
    unsigned index = row;
    if (s.slots) {
        const RunHeader* header = (const RunHeader*)s.header;
        // Rows that are not in use have no slot.
        if (s.row + row >= header->rows) return nullptr;
        index = header->slots[s.row + row];
    }
    return from + (size_t)index * s.stride[state];
}

// One unit's step. `a` are the input products (GRU: kept apart from the recurrent ones `b`).
// Explicit roundings, so that every instance gives the same bits.
template <int CELL>
__device__ __forceinline__ float cell(
    const float (&a)[4], const float (&b)[4], float h, float& c, float& n, float& m,
    unsigned relu) {
    if (CELL == LSTM) {
        float i = sigmoid_f32(__fadd_rn(a[0], b[0])), f = sigmoid_f32(__fadd_rn(a[1], b[1]));
        float g = tanhf(__fadd_rn(a[2], b[2])), o = sigmoid_f32(__fadd_rn(a[3], b[3]));
        c = __fmaf_rn(f, c, __fmul_rn(i, g));
        return __fmul_rn(o, tanhf(c));
    }
    if (CELL == GRU) {
        float r = sigmoid_f32(__fadd_rn(a[0], b[0])), z = sigmoid_f32(__fadd_rn(a[1], b[1]));
        float candidate = tanhf(__fmaf_rn(r, b[2], a[2]));
        return __fmaf_rn(z, h, __fmul_rn(__fsub_rn(1.0f, z), candidate));
    }
    if (CELL == RNN) {
        float sum = __fadd_rn(a[0], b[0]);
        return relu ? (sum < 0.0f ? 0.0f : sum) : tanhf(sum);
    }
    float i = __fadd_rn(a[0], b[0]), f = __fadd_rn(a[1], b[1]);
    float z = tanhf(__fadd_rn(a[2], b[2])), o = sigmoid_f32(__fadd_rn(a[3], b[3]));
    float decayed = __fadd_rn(-__fadd_rn(fmaxf(-f, 0.0f), log1pf(expf(-fabsf(f)))), m);
    m = n == 0.0f ? i : fmaxf(i, decayed);
    float ig = fminf(expf(__fsub_rn(i, m)), 1.0f), fg = fminf(expf(__fsub_rn(decayed, m)), 1.0f);
    c = __fmaf_rn(fg, c, __fmul_rn(ig, z));
    n = __fmaf_rn(fg, n, ig);
    return __fdiv_rn(__fmul_rn(o, c), n);
}

template <int CELL> struct Gates {
    enum { COUNT = CELL == RNN ? 1 : CELL == GRU ? 3 : 4, PACKED = CELL == RNN ? 1 : 4 };
};

template <class W, int N> struct alignas(sizeof(W) * N) Vector { W at[N]; };

// Recurrent sums of one unit for R rows; `h` is [K][R].
template <int CELL, class W, int R>
__device__ __forceinline__ void recur(
    const W* w, size_t stride, const float* h, unsigned inputs, float (&sum)[R][4]) {
    constexpr int P = Gates<CELL>::PACKED;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int g = 0; g < 4; g++) sum[r][g] = 0.0f;
#pragma unroll 4
    for (unsigned k = 0; k < inputs; k++) {
        Vector<W, P> v = *(const Vector<W, P>*)(w + k * stride);
#pragma unroll
        for (int r = 0; r < R; r++) {
            float x = h[k * R + r];
#pragma unroll
            for (int g = 0; g < Gates<CELL>::COUNT; g++)
                sum[r][g] = __fmaf_rn(wide(v.at[g]), x, sum[r][g]);
        }
    }
}

template <int CELL, class W, int R> __device__ __forceinline__ void rows(const RowsArguments& p) {
    extern __shared__ float shared[];
    constexpr int G = Gates<CELL>::COUNT, P = Gates<CELL>::PACKED;
    const unsigned direction = blockIdx.y, row = blockIdx.x * R;
    const unsigned D = p.hidden, width = p.width;
    float* h = shared;                 // [width][R], twice
    float* state[3];                   // [D][R] each: c, n, m
    for (int s = 0; s < 3; s++) state[s] = shared + (2 * width + s * D) * R;
    float* raw = shared + (2 * width + (p.count - 1) * D) * R; // before projection
    const W* w_hh = (const W*)p.w_hh[direction];
    const W* w_hr = (const W*)p.w_hr[direction];
    const float* b_hh = (const float*)p.b_hh[direction];
    const float* scale = (const float*)p.scale[direction];
    const float* scale_hr = (const float*)p.scale_hr[direction];

    for (unsigned s = 0; s < p.count; s++) {
        unsigned n = s ? D : width;
        float* to = s ? state[s - 1] : h;
        for (unsigned i = threadIdx.x; i < n * R; i += blockDim.x) {
            const float* from = row + i % R < p.batch ? initial(p.states, s, row + i % R) : nullptr;
            to[i] = from ? from[direction * n + i / R] : 0.0f;
        }
    }
    __syncthreads();

    auto write = [&](unsigned r, unsigned t, unsigned j, float value) {
        int position = (int)t - (int)(p.time - p.y_steps);
        if (position < 0 || row + r >= p.batch) return;
        size_t at = ((size_t)(row + r) * p.y_steps + position) * p.y_width;
        ((float*)p.y)[at + direction * width + j] = value;
    };
    unsigned current = 0;
    for (unsigned step = 0; step < p.steps[direction]; step++) {
        const unsigned t = direction ? p.time - 1 - step : step;
        const float* old = h + current * width * R;
        float* next = h + (current ^ 1) * width * R;
        const size_t position = t - (p.time - p.gate_steps[direction]);
        for (unsigned j = threadIdx.x; j < D; j += blockDim.x) {
            float sum[R][4];
            const float* inputs = old + (p.head ? j / p.head * p.head * R : 0);
            recur<CELL, W, R>(w_hh + (size_t)j * P, (size_t)D * P, inputs, p.inputs, sum);
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (row + r >= p.batch) break;
                const float* gates = (const float*)p.gates[direction] +
                    ((size_t)(row + r) * p.gate_steps[direction] + position) * G * D;
                float a[4], b[4];
#pragma unroll
                for (int g = 0; g < G; g++) {
                    a[g] = gates[g * D + j];
                    float factor = scale ? scale[g * D + j] : 1.0f;
                    b[g] = __fmaf_rn(sum[r][g], factor, b_hh ? b_hh[g * D + j] : 0.0f);
                }
                float none = 0.0f;
                const unsigned i = j * R + r;
                float value = cell<CELL>(a, b, CELL == GRU ? old[i] : 0.0f,
                    p.count > 1 ? state[0][i] : none, p.count > 2 ? state[1][i] : none,
                    p.count > 3 ? state[2][i] : none, p.relu);
                if (w_hr) {
                    raw[i] = value;
                } else {
                    next[i] = value;
                    write(r, t, j, value);
                }
            }
        }
        if (w_hr) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < width * R; i += blockDim.x) {
                const unsigned j = i / R, r = i % R;
                float sum = 0.0f;
                for (unsigned k = 0; k < D; k++)
                    sum = __fmaf_rn(wide(w_hr[(size_t)k * width + j]), raw[k * R + r], sum);
                sum = __fmul_rn(sum, scale_hr ? scale_hr[j] : 1.0f);
                next[i] = sum;
                write(r, t, j, sum);
            }
        }
        __syncthreads();
        current ^= 1;
    }

    for (unsigned s = 0; s < p.count; s++) {
        unsigned n = s ? D : width;
        const float* from = s ? state[s - 1] : h + current * width * R;
        for (unsigned i = threadIdx.x; i < n * R; i += blockDim.x) {
            if (row + i % R >= p.batch) continue;
            size_t at = (size_t)(row + i % R) * p.states.stride[s] + direction * n + i / R;
            for (int place = 0; place < 2; place++)
                if (p.states.to[place][s]) ((float*)p.states.to[place][s])[at] = from[i];
        }
    }
}

#define ROWS(NAME, CELL, W, R)                                                                     \
    extern "C" __global__ void __launch_bounds__(512) rows_##NAME##_##R(                           \
        const __grid_constant__ RowsArguments p) {                                                 \
        rows<CELL, W, R>(p);                                                                       \
    }
#define ROWS_OF_CELL(NAME, CELL)                                                                   \
    ROWS(NAME##_f32, CELL, float, 1)                                                               \
    ROWS(NAME##_f32, CELL, float, 8)                                                               \
    ROWS(NAME##_f16, CELL, __half, 1)                                                              \
    ROWS(NAME##_f16, CELL, __half, 8)                                                              \
    ROWS(NAME##_bf16, CELL, __nv_bfloat16, 1)                                                      \
    ROWS(NAME##_bf16, CELL, __nv_bfloat16, 8)
ROWS_OF_CELL(lstm, LSTM)
ROWS_OF_CELL(gru, GRU)
ROWS_OF_CELL(rnn, RNN)
ROWS_OF_CELL(slstm, SLSTM)

// One step of one direction, elementwise; also the states' way in and out.
struct CellArguments {
    States states;
    Address gates;    // of this position: [batch] rows of G·D f32
    Address sums;     // [batch, G·D] f32: recurrent products with b_hh
    Address state[4]; // [batch, width or D] f32 each, of this direction
    Address raw;      // [batch, D] f32: h before projection, where it goes instead of state 0; or 0
    Address y;        // of this position and direction: [batch] rows of f32; or 0
    unsigned gate_stride, y_stride;
    unsigned batch, hidden, width, direction;
    unsigned relu, count;
};

template <int CELL> __device__ __forceinline__ void step(const CellArguments& p) {
    constexpr int G = Gates<CELL>::COUNT;
    const unsigned D = p.hidden;
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)p.batch * D) return;
    const unsigned row = at / D, j = at % D;
    const float* gates = (const float*)p.gates + (size_t)row * p.gate_stride;
    const float* sums = (const float*)p.sums + (size_t)row * G * D;
    float a[4], b[4], none = 0.0f;
#pragma unroll
    for (int g = 0; g < G; g++) a[g] = gates[g * D + j], b[g] = sums[g * D + j];
    float* h = (float*)p.state[0];
    float* c = p.count > 1 ? (float*)p.state[1] + at : &none;
    float* n = p.count > 2 ? (float*)p.state[2] + at : &none;
    float* m = p.count > 3 ? (float*)p.state[3] + at : &none;
    float value = cell<CELL>(a, b, CELL == GRU ? h[at] : 0.0f, *c, *n, *m, p.relu);
    if (p.raw) {
        ((float*)p.raw)[at] = value;
        return;
    }
    h[at] = value;
    if (p.y) ((float*)p.y)[(size_t)row * p.y_stride + j] = value;
}

extern "C" __global__ void cell_lstm(const __grid_constant__ CellArguments p) { step<LSTM>(p); }
extern "C" __global__ void cell_gru(const __grid_constant__ CellArguments p) { step<GRU>(p); }
extern "C" __global__ void cell_rnn(const __grid_constant__ CellArguments p) { step<RNN>(p); }
extern "C" __global__ void cell_slstm(const __grid_constant__ CellArguments p) { step<SLSTM>(p); }

// After a projection: its result into the output.
extern "C" __global__ void cell_keep(const __grid_constant__ CellArguments p) {
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)p.batch * p.width) return;
    float* y = (float*)p.y + at / p.width * p.y_stride + at % p.width;
    *y = ((const float*)p.state[0])[at];
}

// Initial states into the working states; blockIdx.y is the state.
extern "C" __global__ void cell_begin(const __grid_constant__ CellArguments p) {
    const unsigned s = blockIdx.y, n = s ? p.hidden : p.width;
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)p.batch * n) return;
    const float* from = initial(p.states, s, at / n);
    ((float*)p.state[s])[at] = from ? from[p.direction * n + at % n] : 0.0f;
}

// Working states to where final states are wanted.
extern "C" __global__ void cell_end(const __grid_constant__ CellArguments p) {
    const unsigned s = blockIdx.y, n = s ? p.hidden : p.width;
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)p.batch * n) return;
    size_t to = at / n * p.states.stride[s] + p.direction * n + at % n;
    for (int place = 0; place < 2; place++)
        if (p.states.to[place][s])
            ((float*)p.states.to[place][s])[to] = ((const float*)p.state[s])[at];
}
