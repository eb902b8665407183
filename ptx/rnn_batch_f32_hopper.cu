// LSTM stacks over many rows in f32 and tf32 on Hopper: the instances of `rnn_batch.cuh` whose
// products are tf32, one or three of them. See there for what they do and how fast.
#include "rnn_batch.cuh"

BATCHES(tf32, Tf32)
BATCHES(f32, Split)
TILE(tf32, Tf32)
TILE(f32, Split)
STATES(tf32, Tf32)
STATES(f32, Split)
ZERO
