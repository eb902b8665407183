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
// 6 and 7 were timed with `times_of_the_workloads` of `tests/recurrent_whole.rs`, which is another
// program than the one of 1 to 5: compare 6 with 7. G and H are g and h with 32 rows; k is what one
// more step of one layer of a takes, in ns.
//                                                            a     b     g     h     G     H   k
//   6. what can wait done after the sends instead of while h
//      is read (predicted -2; loads on their way then hold up
//      the next wait)                                      39.0  74.1 105.6 119.0 160.2 313.0 478
//   7. back, and three more:                               31.6  61.1  83.3  94.1 136.0 287.6 362
//      - the wait for h acquires in the block's scope alone: the cluster's has the compiler
//        invalidate level 1 at every step. Not predicted, found in the machine code; in 6's order
//        it took g from 103.1 to 91.4 and h from 118.6 to 102.8, but a from 35.5 to 39.3;
//      - a shift where each thread of several columns divided to find its peer;
//      - four chains of products from 7 k-steps on (predicted 40 cycles a step: within the spread);
//      - the steps of the layer below taken in turn by 32 blocks instead of 16: a 32.4 to 31.6.
//      Whether sums are looked at before the products (b 61.1, h 94.1) or after (62.9, 109.9; a, g:
//      after 32.4 and 83.3, before 33.7 and 84.7) goes by width, for a reason not known. Each was
//      timed in a build that had all widths alike; that with the better of each was not timed.
// With several row groups the input products had been a block for each, up to 512 of which one
// fits a multiprocessor, and recurrences start when all have: now they take the row groups in
// turn, from the middle of the window outwards where two directions are below. At 5's step H takes
// 105 us less with 64 such blocks than with 32; 96 are no better at 7's.
// 8 on other machines of the kind, two runs, p50 and p99:
//                                                         a                        g
//   7 again                                   30.2, 33.0; 30.6, 38.1   75.4, 81.0; 75.7, 81.6
//   8. the launch lingers (`linger.cuh`;
//      predicted 26.7 of a: without what a
//      launch takes beyond a doorbell, and
//      without the prologue)                  26.6, 29.5; 28.3, 32.4   73.0, 78.0; 73.6, 78.9
// In the second run input blocks also waited for their weights after their inputs, not before.
// b, h, G and H have more blocks than are resident at once, and do not linger.
// Not faster: the first layer's input blocks reading the input from host memory themselves, without
// STAGE (predicted a 0.8 us less for one way through level 2; found 2.0 more, lingering 1.9: rows
// of 400 bytes share lines of host memory, which are then read twice, one after the other);
// 2, 8 and 16 blocks a layer of a; and blocks of one row each, whose recurrence stays
// in one multiprocessor (half2 products added up by an mma with ones, 13 warps for 100 units).
// Predicted 240 ns a step, found 620: of about 1,200 cycles the products took 420 to 470 (a half2
// instruction every two cycles, not every one), strong loads and stores of 13 warps about 240,
// barrier and store 170, a gate 90.
// Of a, about 11 us are not steps (6.4 a launch that does nothing), and the second layer takes 2
// to 3. c does not fit and is `rnn_wide_hopper.cu`'s.
#include "rnn_latency.cuh"

RNN_LATENCY_CLUSTER(F16, f16, 7)
RNN_LATENCY_CLUSTER(F16, f16, 8)
RNN_LATENCY_CLUSTER(F16, f16, 13)
RNN_LATENCY_CLUSTER(F16, f16, 16)
RNN_LATENCY_CLUSTER(Bf16, bf16, 8)
RNN_LATENCY_CLUSTER(Bf16, bf16, 16)
RNN_LATENCY_CLUSTER(F32, f32, 16)
RNN_LATENCY_CLUSTER(Tf32, tf32, 16)
