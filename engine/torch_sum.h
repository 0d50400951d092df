/*
 * torch.sum of a dense array on a CPU with AVX2: DeepSpeed adds up the squares of its pieces' norms by it.
 * Source: ATen/native/cpu/SumKernel.cpp, vectorized_inner_sum and scalar_inner_sum.
 */
#ifndef ZEROBIT_ENGINE_TORCH_SUM_H
#define ZEROBIT_ENGINE_TORCH_SUM_H

#include <stddef.h>

double zb_torch_sum_fp64(const double *x, size_t count);
/* Of numbers that fp32 holds. */
float zb_torch_sum_fp32(const double *x, size_t count);

#endif
