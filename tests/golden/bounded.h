/*
 * Layers and losses in fp64, and how far a right computation in fp32 may be from them.
 *
 * Somebody else's fp32 program rounds after every operation but adds in an order of its own, with or without
 * fused multiply-adds. With u = 2^-24 and gamma(n) = n u / (1 - n u), a number that goes through n roundings
 * is off by a factor within 1 +- gamma(n). A sum of K products therefore stays within
 *
 *     gamma(K) * sum of |a_k b_k|  +  K * 2^-150
 *
 * of its true value, whatever the order: each product is rounded at most once, and joins at most K - 1
 * additions of which the first one to +0 is exact. The second part is what a product that is subnormal can
 * lose; additions of subnormal numbers are exact. Every bound here is of this kind, computed for each element
 * from the operands themselves. Operands may be uncertain too; what that does to a result is added to first
 * order and beyond, so that bounds go through a whole net.
 *
 * Not a tolerance: nothing is measured and nothing chosen. See docs/arithmetic.md, "Against PyTorch".
 */
#ifndef ZB_TESTS_GOLDEN_BOUNDED_H
#define ZB_TESTS_GOLDEN_BOUNDED_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/model.h>
#include <zerobit/types.h>

/* Numbers and how far off a computation of each may be. An fp32 result lies within value +- error. */
typedef struct bounded {
    size_t numel;
    double *value;
    double *error;
    double *magnitude; /* of a sum: of the absolute values of its terms. What a bound for other roundings
                          needs. */
    double *terms;     /* of a sum: how many */
} bounded;

/* Zeroed. Fails the test when there is no memory. */
bounded bounded_create(size_t numel);
/* Exactly known numbers. */
bounded bounded_of(const float *values, size_t numel);
void bounded_destroy(bounded *b);

/* gamma(n) for a unit of rounding u. */
double bounded_gamma(double n, double u);

/* The result is stored as dtype: one rounding more for 16 bits. */
void bounded_store(zb_dtype dtype, bounded *b);

/*
 * How far `got` is from the value, in units of what is allowed: at most 1 for a right computation. `got` has
 * been rounded to dtype once, behind the computation that the bound is for, and so has the bound's interval:
 * overflow and underflow of that rounding are part of it. A NaN or an infinity must be just that. `also` is
 * added to the element's error.
 */
double bounded_distance(zb_dtype dtype, const bounded *b, size_t i, double also, float got);

/*
 * What PyTorch's CPU back end may add to the error of element i of a linear module's or a convolution's
 * output. Its convolutions may not keep 16-bit gradients in fp32 until the end (fp16 never; bf16 only on a
 * processor with AVX-512): the input's is then rounded after every tap that adds to it, the weights' after
 * every image. Its bf16 products use an instruction of x86 that takes subnormals for zeros.
 */
typedef enum bounded_output { BOUNDED_Y, BOUNDED_DX, BOUNDED_DW, BOUNDED_DB } bounded_output;
double bounded_pytorch_cpu(const zb_module *module, zb_dtype dtype, size_t rows, bounded_output output,
                           const bounded *b, size_t i);

/* --- linear, conv2d: one set of products x[i] w[j] -> y[k], used in three directions --- */

bounded bounded_forward(const zb_module *module, size_t rows, const bounded *x, const bounded *w,
                        const bounded *b);
bounded bounded_backward_input(const zb_module *module, size_t rows, const bounded *dy, const bounded *w);
bounded bounded_backward_weight(const zb_module *module, size_t rows, const bounded *dy, const bounded *x);
bounded bounded_backward_bias(const zb_module *module, size_t rows, const bounded *dy);

/* --- the others --- */

bounded bounded_relu_forward(const bounded *x);
bounded bounded_relu_backward(const bounded *x, const bounded *dy);
bounded bounded_maxpool2d_forward(const zb_module *module, size_t rows, const bounded *x);
bounded bounded_maxpool2d_backward(const zb_module *module, size_t rows, const bounded *x, const bounded *dy);
bounded bounded_add(const bounded *a, const bounded *b);

/* The mean over rows; one element. */
bounded bounded_cross_entropy(size_t rows, size_t classes, const bounded *x, const int32_t *labels);
bounded bounded_cross_entropy_backward(size_t rows, size_t classes, const bounded *x, const int32_t *labels,
                                       double seed, double divisor);
bounded bounded_mse(const bounded *x, const float *t);
bounded bounded_mse_backward(const bounded *x, const float *t, double seed, double divisor);

#endif
