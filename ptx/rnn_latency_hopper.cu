// Recurrent stacks in one launch with a cluster of blocks a layer: up to 16 blocks exchange h by
// asynchronous stores into each other's shared memory. The device code is `rnn_latency.cuh`.
// Ladder: H200, 2026-11-21, f16, one series, host memory to host memory in one call (an empty
// kernel that reads its header and sets the flag takes 5.4 us); a: 2 x LSTM(100) T 50 F 100, b: 3 x
// LSTM(200) T 100 F 250, g: 2 x bidirectional LSTM(128) T 100 F 10, h: the same with 256, c: 4 x
// LSTM(1000) T 100 F 500; microseconds:
//                                                                      a     b     g     h     c
//   1. branches in the loop, weights copied load by load             78.2 146.8 238.5 229.1
//   2. instances by column and cell, copies in flight together       33.8 103.4  82.8 114.3
//   3. the input read once (reads of host memory are 2 us each)      35.4  72.2  90.2 116.7
//   4. input sums asked for three steps ahead                        32.6  65.6  85.4 107.2
//   5. sums given back before the next are asked for                  33.4  63.6  87.3 103.0     -
// A step of a is about 650 cycles: 20 to wake, 150 products, 75 gates, 130 gathering and sending,
// 210 under way to the peers; the rest is sums given back and asked for. Before the first step go
// 5 us: 2.5 of them the read of host memory, the others two hops through level 2. A layer's lag is
// 2 us, the head and the flag 1.4. c does not fit and is
// `rnn_wide_hopper.cu`'s.
#include "rnn_latency.cuh"

RNN_LATENCY_CLUSTER(F16, f16, 7)
RNN_LATENCY_CLUSTER(F16, f16, 8)
RNN_LATENCY_CLUSTER(F16, f16, 13)
RNN_LATENCY_CLUSTER(F16, f16, 16)
RNN_LATENCY_CLUSTER(Bf16, bf16, 8)
RNN_LATENCY_CLUSTER(Bf16, bf16, 16)
RNN_LATENCY_CLUSTER(F32, f32, 16)
RNN_LATENCY_CLUSTER(Tf32, tf32, 16)
