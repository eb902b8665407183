// Wide recurrent stacks for few rows: the instances of `rnn_wide.cuh`, which says how they work.
// Of a block: groups of units, k-steps of a warp, fragments of W_hh in registers for one row and
// for more. Up to 1024 units in 16 bits a block has 32 of them, so that an H200 holds four layers.
// Ladder: H200, 2026-11-21, 4 x LSTM(1000), T 100, F 500, f16, one series, host memory to host
// memory (graph launch until the flag is seen), p50 in microseconds; predicted before it was run:
//                                                                        predicted  found
//   0. a product and an elementwise kernel a step (`rnn_stack.cu`)                   3,229
//   1. this design: all layers resident, a wavefront of chunks of 8 steps     200      270
//   2. fragments in shared memory of every second k-step, loads a k-step
//      ahead of products (1,720 cycles of a step to 1,300)                    215      231
//   3. four fragments more in registers; the first loads not before the
//      cells have read their sums; W_ih last to leave level 2; input read
//      by pairs, the head's weights ahead                                       -      219
// Tried and left out, on top of 3: first poll of h delayed by 600 cycles 227, by 900 237; pauses
// between polls of the layer below 220; chunks of 6 columns 223, of 4 253.
// p99 of 3: 220 to 223. Others at 2: two rows 383, eight 1,055; tf32 645 and f32 1,046, of two
// launches each. Largest error of all h after 100 steps against f64: f16 1.6e-4, f32 6.6e-7.
// A step at 3 is about 2,400 cycles: 600 until h is there, 1,200 products (their 114 KB of W_hh
// from shared memory are 900 at least), 200 the barrier, 350 sums and cells. A lane follows the one
// below by 17 us, eight steps and 7 us of the input product, and the first begins after 14. The
// input product is latency: its loop has 56 registers, so every load is waited for by the next
// product (750 cycles for 4 KB a warp, 100 of them for memory).
#include "rnn_wide.cuh"

RNN_WIDE(F16, f16, 4, 8, 36, 40)
RNN_WIDE(F16, f16, 2, 16, 32, 40)
RNN_WIDE(Bf16, bf16, 4, 8, 36, 40)
RNN_WIDE(Bf16, bf16, 2, 16, 32, 40)
RNN_WIDE(Tf32, tf32, 2, 16, 32, 40)
RNN_WIDE(F32, f32, 2, 16, 32, 36)
