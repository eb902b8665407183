// LSTM stacks over many rows in half precision on Hopper: the instances of `rnn_batch.cuh` whose
// products are f16 and bf16. See there for what they do and how fast.
#include "rnn_batch.cuh"

BATCHES(f16, __half)
BATCHES(bf16, __nv_bfloat16)
TILE(f16, __half)
TILE(bf16, __nv_bfloat16)
STATES(f16, __half)
STATES(bf16, __nv_bfloat16)
ZERO
