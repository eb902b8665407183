// As encoder_small_hopper.cu, in bfloat16.
#include "encoder_small.cuh"

ENCODER_SMALL(bf16, Bfloat)
