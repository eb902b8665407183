#include "rnn_wide.cuh"

RNN_WIDE(WideF16, f16, 4, 8, 36, 40)
RNN_WIDE(WideF16, f16, 2, 16, 32, 40)
RNN_WIDE(WideBf16, bf16, 4, 8, 36, 40)
RNN_WIDE(WideBf16, bf16, 2, 16, 32, 40)
RNN_WIDE(WideTf32, tf32, 2, 16, 32, 40)
RNN_WIDE(F32, f32, 2, 16, 32, 36)
