// `encoder_stack` of small layers in one launch, in f16, on Hopper: instances of encoder_small.cuh.
#include "encoder_small.cuh"

ENCODER_SMALL(f16, Half)
