// Recurrent stacks in one launch where a block alone holds a layer: up to 128 units in 16-bit
// numbers, 64 in 32-bit ones. The device code is `rnn_latency.cuh`; wider layers, and more blocks a
// layer, are `rnn_latency_hopper.cu`'s. H200, 2026-11-21, 2 x LSTM(100), T 50, F 100, f16, one
// series, host memory to host memory in one call (an empty kernel that reads its header and sets
// the flag takes 5.4 us):
//   1. a thread's units with every branch in the loop, weights copied load by load   75.6 us
//   2. one column, LSTM and the rest as instances; copies in flight together         43.9
//   3. the input read once by blocks of its own, input products by others            43.5
// What is left of a step (0.6 us) is issue: 13 warps of about 190 instructions on four schedulers.
// That is why Hopper shares such a layer among four blocks.
#include "rnn_latency.cuh"

RNN_LATENCY_ALONE(F16, f16, 2, 512)
RNN_LATENCY_ALONE(F16, f16, 4, 512)
RNN_LATENCY_ALONE(F16, f16, 7, 448)
RNN_LATENCY_ALONE(F16, f16, 8, 512)
RNN_LATENCY_ALONE(Bf16, bf16, 2, 512)
RNN_LATENCY_ALONE(Bf16, bf16, 4, 512)
RNN_LATENCY_ALONE(Bf16, bf16, 8, 512)
RNN_LATENCY_ALONE(F32, f32, 4, 256)
RNN_LATENCY_ALONE(F32, f32, 8, 256)
RNN_LATENCY_ALONE(Tf32, tf32, 4, 256)
RNN_LATENCY_ALONE(Tf32, tf32, 8, 256)
