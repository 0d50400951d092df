/*
 * The arithmetic contract, operation by operation. Any conforming implementation gives the same bits on
 * any CPU and any GPU. docs/arithmetic.md is the same contract in prose.
 *
 *  - IEEE-754, round to nearest even, subnormals kept; no contraction and no reassociation. "fma" below is
 *    one fused multiply-add with one rounding and stands exactly where it is meant; every other * + - / sqrt
 *    rounds on its own.
 *  - CHAIN over k: acc = +0; for k ascending: acc = fma(a_k, b_k, acc).
 *  - REDUCE over x_0..x_{n-1} (the one fixed shape for sums that are no chain): 32 lanes, lane l starts at +0
 *    and adds x_l, x_{l+32}, x_{l+64}, ... ascending; then for s = 16, 8, 4, 2, 1: lane l += lane l+s for
 *    l < s; the result is lane 0. Elements that do not exist are not added.
 *  - exp, log: the correctly rounded fp32 result (of an exact NaN: a NaN).
 *  - NaN results compare equal to one another, whatever their payload.
 *
 *  - `dtype` is the type of every void array of an operation: FP32, FP16 or BF16 (others give ZB_UNSUPPORTED).
 *    16-bit operands widen exactly to fp32, the arithmetic is that of the formula in fp32, and an output element is
 *    rounded once, when it is stored (nearest even, overflow to infinity). In fp32 that rounding is none.
 *
 * A launch names an operation and passes its arguments by value, so that a device may queue it. Sizes count
 * elements; every array is dense and row-major unless a stride says otherwise. Arrays must not overlap unless
 * said so.
 */
#ifndef ZEROBIT_KERNELS_H
#define ZEROBIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/plan.h>
#include <zerobit/reduction.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_KERNEL_MAP(X)                                                                                   \
    X(fill_bytes) X(copy) X(cast) X(add) X(scale) X(divide)                                                \
    X(matmul)                                                                                              \
    X(linear_forward) X(linear_backward_input) X(linear_backward_weight) X(linear_backward_bias)           \
    X(conv2d_forward) X(conv2d_backward_input) X(conv2d_backward_weight) X(conv2d_backward_bias)           \
    X(maxpool2d_forward) X(maxpool2d_backward)                                                             \
    X(relu_forward) X(relu_backward)                                                                       \
    X(cross_entropy_forward) X(cross_entropy_backward) X(mse_forward) X(mse_backward)                      \
    X(sum_squares) X(norm) X(find_nonfinite)                                                               \
    X(adam) X(sgd) X(adagrad) X(lion) X(lamb_moments) X(lamb_apply)                                        \
    X(ordered_reduce) X(tree_reduce)

typedef enum zb_kernel {
#define ZB_KERNEL_ENUM(name) ZB_KERNEL_##name,
    ZB_KERNEL_MAP(ZB_KERNEL_ENUM)
#undef ZB_KERNEL_ENUM
    ZB_KERNEL_COUNT
} zb_kernel;

/* --- elementwise --- */

typedef struct zb_fill_bytes_args { void *data; uint8_t value; size_t bytes; } zb_fill_bytes_args;
typedef struct zb_copy_args { void *to; const void *from; size_t bytes; } zb_copy_args;
/** to[i] = from[i] in another type; narrowing rounds to nearest even, overflow gives infinity, NaN stays NaN. FP32, FP16, BF16, FP64. */
typedef struct zb_cast_args { void *to; zb_dtype to_dtype; const void *from; zb_dtype from_dtype; size_t numel; } zb_cast_args;
/** y[i] = y[i] + x[i], x rounded to y's type first where that has 16 bits, and the sum rounded to it */
typedef struct zb_add_args { zb_dtype y_dtype; void *y; zb_dtype x_dtype; const void *x; size_t numel; } zb_add_args;
/** y[i] = y[i] * factor */
typedef struct zb_scale_args { zb_dtype dtype; void *y; float factor; size_t numel; } zb_scale_args;
/** y[i] = y[i] / divisor (a true division) */
typedef struct zb_divide_args { zb_dtype dtype; void *y; float divisor; size_t numel; } zb_divide_args;

/* --- matrix product --- */

/**
 * c[i,j] = CHAIN over p in 0..k-1 of a[i,p], b[p,j], plus bias[j] last when bias is not NULL (one more add).
 * a[i,p] = a[i*a_row + p*a_col], b[p,j] = b[p*b_row + j*b_col], c[i,j] = c[i*c_row + j]: any layout, transposes
 * included. With `accumulate` (fp32 only) the chain starts from the value in c in place of +0. k = 0 gives +0 (or c) + bias.
 */
typedef struct zb_matmul_args {
    zb_dtype dtype;
    size_t m, n, k;
    const void *a; size_t a_row, a_col;
    const void *b; size_t b_row, b_col;
    void *c; size_t c_row;
    const void *bias;
    int accumulate;
} zb_matmul_args;

/* --- layers. rows = samples of the micro-batch --- */

/** y[rows,out] = CHAIN over in of x, w[out,in]; then + b[out], unless b is NULL */
typedef struct zb_linear_forward_args { zb_dtype dtype; size_t rows, in, out; const void *x, *w, *b; void *y; } zb_linear_forward_args;
/** dx[rows,in] = CHAIN over out of dy, w */
typedef struct zb_linear_backward_input_args { zb_dtype dtype; size_t rows, in, out; const void *dy, *w; void *dx; } zb_linear_backward_input_args;
/** dw[out,in] = CHAIN over rows of dy, x */
typedef struct zb_linear_backward_weight_args { zb_dtype dtype; size_t rows, in, out; const void *dy, *x; void *dw; } zb_linear_backward_weight_args;
/** db[out] = REDUCE over rows of dy */
typedef struct zb_linear_backward_bias_args { zb_dtype dtype; size_t rows, out; const void *dy; void *db; } zb_linear_backward_bias_args;

/** Geometry shared by the four convolution operations; oh = (ih + 2 padding - kernel) / stride + 1, likewise ow. */
typedef struct zb_conv2d_shape { size_t rows, ic, ih, iw, oc, oh, ow, kernel, stride, padding; } zb_conv2d_shape;
/**
 * y[n,o,p,q] = CHAIN over (c, r, s) ascending, c slowest, of x[n,c,p*stride+r-padding,q*stride+s-padding], w[o,c,r,s];
 * a tap outside the image takes part as x = +0. Then + b[o], unless b is NULL.
 * workspace: zb_conv2d_workspace_numel() floats, contents undefined before and after; the same for the next two.
 */
typedef struct zb_conv2d_forward_args { zb_dtype dtype; zb_conv2d_shape shape; const void *x, *w, *b; void *y; float *workspace; } zb_conv2d_forward_args;
/**
 * dx[n,c,h,v] = CHAIN over (o, r, s) ascending, o slowest, of dy[n,o,p,q], w[o,c,r,s] with p*stride + r - padding = h,
 * q*stride + s - padding = v; where no such p, q exists dy takes part as +0.
 */
typedef struct zb_conv2d_backward_input_args { zb_dtype dtype; zb_conv2d_shape shape; const void *dy, *w; void *dx; float *workspace; } zb_conv2d_backward_input_args;
/**
 * dw[o,c,r,s] = CHAIN over (n, p, q) ascending, n slowest, of dy[n,o,p,q], x[n,c,p*stride+r-padding,q*stride+s-padding];
 * outside: x = +0. The chain stays in fp32 over all images.
 */
typedef struct zb_conv2d_backward_weight_args { zb_dtype dtype; zb_conv2d_shape shape; const void *dy, *x; void *dw; float *workspace; } zb_conv2d_backward_weight_args;
/** db[o] = REDUCE over (n, p, q), n slowest, of dy[n,o,p,q] */
typedef struct zb_conv2d_backward_bias_args { zb_dtype dtype; zb_conv2d_shape shape; const void *dy; void *db; } zb_conv2d_backward_bias_args;
/** Floats of workspace that any of the operations needs for this shape and any type (independent of rows: images are taken one by one). */
ZB_API size_t zb_conv2d_workspace_numel(const zb_conv2d_shape *shape);

/** oh = (ih - kernel) / stride + 1 */
typedef struct zb_maxpool2d_shape { size_t rows, channels, ih, iw, oh, ow, kernel, stride; } zb_maxpool2d_shape;
/**
 * Scans the window row by row: v replaces the maximum when v > maximum or v is NaN (as PyTorch); starts from -inf
 * with the window's first index. argmax[n,c,p,q] = h * iw + v of the element kept.
 */
typedef struct zb_maxpool2d_forward_args { zb_dtype dtype; zb_maxpool2d_shape shape; const void *x; void *y; int32_t *argmax; } zb_maxpool2d_forward_args;
/** dx = +0; then for (p, q) ascending: dx[n,c,argmax] = dx[n,c,argmax] + dy[n,c,p,q], each sum rounded to dtype */
typedef struct zb_maxpool2d_backward_args { zb_dtype dtype; zb_maxpool2d_shape shape; const void *dy; const int32_t *argmax; void *dx; } zb_maxpool2d_backward_args;

/** y = x > 0 ? x : (x is NaN ? x : +0). y may be x. */
typedef struct zb_relu_forward_args { zb_dtype dtype; const void *x; void *y; size_t numel; } zb_relu_forward_args;
/** dx = y <= 0 ? +0 : dy, with y the output of forward. dx may be dy. */
typedef struct zb_relu_backward_args { zb_dtype dtype; const void *y, *dy; void *dx; size_t numel; } zb_relu_backward_args;

/**
 * Per row: m = maximum (NaN if any is NaN); s = REDUCE over i of exp(x_i - m); l = log(s);
 * row_loss = -((x_label - m) - l); log_probs[row,i] = (x_i - m) - l. loss[0] = (REDUCE over rows of row_loss) / (float)rows.
 * Only x has the type dtype; the loss is fp32 whatever the model computes with.
 * Labels must lie in 0..classes-1 (the data set has checked).
 */
typedef struct zb_cross_entropy_forward_args {
    zb_dtype dtype; size_t rows, classes; const void *x; const int32_t *labels; float *log_probs; float *row_loss; float *loss;
} zb_cross_entropy_forward_args;
/** w = seed / (float)rows; dx_i = ((exp(log_probs_i) - (i == label ? 1 : 0)) * w) / divisor */
typedef struct zb_cross_entropy_backward_args {
    zb_dtype dtype; size_t rows, classes; const float *log_probs; const int32_t *labels; float seed, divisor; void *dx;
} zb_cross_entropy_backward_args;

/** d_i = x_i - t_i; loss[0] = (REDUCE over all i, row-major, of d_i * d_i) / (float)numel. x has the type dtype. */
typedef struct zb_mse_forward_args { zb_dtype dtype; size_t numel; const void *x; const float *t; float *loss; } zb_mse_forward_args;
/** w = (2 * seed) / (float)numel; dx_i = ((x_i - t_i) * w) / divisor */
typedef struct zb_mse_backward_args { zb_dtype dtype; size_t numel; const void *x; const float *t; float seed, divisor; void *dx; } zb_mse_backward_args;

/* --- the exact sum of squares --- */

/*
 * The sum of squares of fp32 numbers, exactly, in a form that does not depend on how they are split or ordered:
 * a two's-complement fixed-point number in digits of 32 bits, least significant first, digit d worth 2^(32 d - 320).
 * Each digit is held in an int64, so that up to 2^31 normalised accumulators add digit by digit without loss
 * (an int64 sum over ranks). Two counters follow: infinities and NaNs seen.
 */
enum {
    ZB_SUM_SQUARES_DIGITS = 21,
    ZB_SUM_SQUARES_INF = 21,
    ZB_SUM_SQUARES_NAN = 22,
    ZB_SUM_SQUARES_WORDS = 23
};
/** accumulator += sum over i of x_i^2; leaves every digit in 0..2^32-1 (normalised). */
typedef struct zb_sum_squares_args { zb_dtype dtype; const void *x; size_t numel; int64_t *accumulator; } zb_sum_squares_args;
/**
 * The value rounded once to fp64 (nearest even); then the square root in fp64. NaN if a NaN was seen, else
 * infinity if one was. The digits need not be normalised. Host function.
 */
ZB_API double zb_sum_squares_norm(const int64_t accumulator[ZB_SUM_SQUARES_WORDS]);

/* --- DeepSpeed's norm and overflow check --- */

/**
 * norm[0] = sqrt of the sum of x_i^2, as PyTorch's norm on a CPU with AVX2: in fp32 with 8 lanes, each square rounded; wide: in
 * fp64 with 4. Over the first numel - numel mod lanes elements lane l adds x_l, x_{l+lanes}, ... from +0; then the lanes,
 * ascending, then the elements that are left; in fp32 the last numel mod 4 of these by fma.
 */
typedef struct zb_norm_args { zb_dtype dtype; const void *x; size_t numel; int wide; double *norm; } zb_norm_args;
/** flag[0] = 1 when an element is an infinity or a NaN; otherwise it stays. */
typedef struct zb_find_nonfinite_args { zb_dtype dtype; const void *x; size_t numel; uint8_t *flag; } zb_find_nonfinite_args;

/*
 * --- optimizers: all arrays [numel]; every scalar has been rounded to fp32 by the caller. p and the states are fp32; grad
 * has its own type and widens exactly. When param is not NULL it receives p, rounded to param_dtype, in the same pass. ---
 */

/**
 * Adam and AdamW. Per element, with g = grad * grad_scale:
 *
 * PLAIN
 *   if !decoupled: g = g + weight_decay * p
 *   m = beta1 * m + one_minus_beta1 * g
 *   v = beta2 * v + (one_minus_beta2 * g) * g
 *   u = (m / correction1) / (sqrt(v / correction2) + eps)
 *   if decoupled: u = u + weight_decay * p
 *   p = p - lr * u
 *   correction1 = 1 - beta1^t, correction2 = 1 - beta2^t
 *
 * TORCH_1
 *   if weight_decay != 0: decoupled ? (p = p * decay) : (g = fma(p, weight_decay, g))
 *   m = fma(g, one_minus_beta1, m * beta1)
 *   v = fma(one_minus_beta2 * g, g, v * beta2)
 *   p = p + (step_size * m) / (sqrt(v) / root_correction2 + eps)
 *   decay = 1 - lr * weight_decay, step_size = -lr / (1 - beta1^t), root_correction2 = sqrt(1 - beta2^t)
 *
 * TORCH_2: the same, but
 *   m = one_minus_beta1 < 0.5 ? fma(one_minus_beta1, g - m, m) : fma(one_minus_beta1 - 1, g - m, g)
 *
 * DEEPSPEED_CPU, the first numel - numel mod vector_width elements
 *   if weight_decay > 0 and !decoupled: g = fma(p, weight_decay, g)
 *   m = fma(g, one_minus_beta1, m * beta1)
 *   v = fma(g * g, one_minus_beta2, v * beta2)
 *   u = m / fma(sqrt(v), root_correction2, eps)
 *   if weight_decay > 0 and decoupled: p = fma(p, decay, p)
 *   p = fma(u, step_size, p)
 *   decay = -lr * weight_decay, step_size = -lr / (1 - beta1^t), root_correction2 = 1 / sqrt(1 - beta2^t)
 * and the rest, as its compiler contracts the plain loop:
 *   m = fma(m, beta1, g * one_minus_beta1);  v = fma(v, beta2, (g * g) * one_minus_beta2);  else the same
 *
 * Only the scalars are read that the formula names.
 */
typedef struct zb_adam_args {
    float *p; zb_dtype grad_dtype; const void *grad; float *m, *v; zb_dtype param_dtype; void *param; size_t numel;
    float grad_scale, lr, beta1, beta2, one_minus_beta1, one_minus_beta2, eps, weight_decay, correction1, correction2;
    int decoupled;
    zb_optimizer_arithmetic arithmetic;
    float decay, step_size, root_correction2; /* TORCH_*, DEEPSPEED_CPU */
    size_t vector_width;                      /* DEEPSPEED_CPU: 8 with AVX2, 16 with AVX-512; 1: no tail */
} zb_adam_args;

/**
 * torch.optim.SGD. Per element, with g = grad * grad_scale:
 *
 * PLAIN
 *   if weight_decay != 0: g = g + weight_decay * p
 *   if momentum != 0: buf = first_step ? g : momentum * buf + one_minus_dampening * g; g = nesterov ? g + momentum * buf : buf
 *   p = p - lr * g
 *
 * TORCH_1, TORCH_2
 *   if weight_decay != 0: g = fma(p, weight_decay, g)
 *   if momentum != 0: buf = first_step ? g : fma(g, one_minus_dampening, buf * momentum); g = nesterov ? fma(buf, momentum, g) : buf
 *   p = fma(g, -lr, p)
 *
 * buf may be NULL when momentum is 0.
 */
typedef struct zb_sgd_args {
    float *p; zb_dtype grad_dtype; const void *grad; float *buf; zb_dtype param_dtype; void *param; size_t numel;
    float grad_scale, lr, weight_decay, momentum, one_minus_dampening;
    int nesterov, first_step;
    zb_optimizer_arithmetic arithmetic;
} zb_sgd_args;

/**
 * Adagrad. Per element, with g = grad * grad_scale; lr has been divided by 1 + (t - 1) * lr_decay:
 *
 * PLAIN
 *   if weight_decay != 0: g = g + weight_decay * p
 *   sum = sum + g * g
 *   p = p - lr * (g / (sqrt(sum) + eps))
 *
 * TORCH_1, TORCH_2
 *   if weight_decay != 0: g = fma(p, weight_decay, g)
 *   sum = fma(g, g, sum)
 *   p = p + (-lr * g) / (sqrt(sum) + eps)
 *
 * DEEPSPEED_CPU: the decay goes into the sum alone
 *   h = weight_decay > 0 ? fma(p, weight_decay, g) : g
 *   sum = fma(h, h, sum)
 *   p = fma(g / (sqrt(sum) + eps), -lr, p)
 */
typedef struct zb_adagrad_args {
    float *p; zb_dtype grad_dtype; const void *grad; float *sum; zb_dtype param_dtype; void *param; size_t numel;
    float grad_scale, lr, weight_decay, eps;
    zb_optimizer_arithmetic arithmetic;
} zb_adagrad_args;

/**
 * Lion. Per element, with g = grad * grad_scale and c = beta1 * m + one_minus_beta1 * g; decay = 1 - lr * weight_decay:
 *
 * PLAIN: p = p * decay + (c > 0 ? -lr : lr), so that c = 0 and a NaN move p up
 *
 * DEEPSPEED_CPU, its plain loop: u = lr with the sign of c, or NaN where c is one
 *   p = weight_decay > 0 ? fma(p, decay, -u) : p - u
 *
 * then m = beta2 * m + one_minus_beta2 * g
 */
typedef struct zb_lion_args {
    float *p; zb_dtype grad_dtype; const void *grad; float *m; zb_dtype param_dtype; void *param; size_t numel;
    float grad_scale, lr, weight_decay, decay, beta1, beta2, one_minus_beta1, one_minus_beta2;
    zb_optimizer_arithmetic arithmetic;
} zb_lion_args;

/**
 * LAMB, before the trust ratio is known. Per element, with g = grad * grad_scale:
 *   m = beta1 * m + one_minus_beta1 * g
 *   v = beta2 * v + (one_minus_beta2 * g) * g
 *   u = m / (eps_inside_sqrt ? sqrt(v + eps) : sqrt(v) + eps) + weight_decay * p
 * p stays. The squares of p are added to the first ZB_SUM_SQUARES_WORDS of `accumulators`, those of u to the second, as by
 * sum_squares.
 */
typedef struct zb_lamb_moments_args {
    const float *p; zb_dtype grad_dtype; const void *grad; float *m, *v; size_t numel;
    float grad_scale, beta1, beta2, one_minus_beta1, one_minus_beta2, eps, weight_decay;
    int eps_inside_sqrt;
    int64_t *accumulators;
} zb_lamb_moments_args;
/** p = p - factor * u, with u as above. */
typedef struct zb_lamb_apply_args {
    float *p; const float *m, *v; zb_dtype param_dtype; void *param; size_t numel;
    float factor, eps, weight_decay;
    int eps_inside_sqrt;
} zb_lamb_apply_args;

/* --- reduction over ranks in rank order --- */

/**
 * out[i] over inputs 0..count-1 ascending: rank order.
 * SUM, AVG: acc = inputs[0][i]; acc = acc + inputs[r][i] (fp32; fp64 for FP64; wrapping integers); AVG: acc / count
 * (floating types only); rounded once to the type. PREMUL_SUM: each input is first multiplied by `factor` in the
 * accumulator's type. MIN, MAX: a NaN wins; -0 < +0. `out` may be one of the inputs.
 */
typedef struct zb_ordered_reduce_args {
    const void *const *inputs; int count; void *out; size_t numel; zb_dtype dtype; zb_redop op; double factor;
} zb_ordered_reduce_args;

/* --- reduction in the order of a tree --- */

/**
 * out[i], 0 <= i < numel: the sum of inputs[..][first + i] by `tree`, rounded as `rounding` says (<zerobit/reduction.h>). Position p of
 * the tree is inputs[order[(start + p) mod count]]. `range_first` is where LL128 counts from. `out` may be element `first` of
 * an input.
 */
typedef struct zb_tree_reduce_args {
    const void *const *inputs; int count; const int32_t *tree, *order; int start;
    size_t range_first, first, numel; void *out; zb_dtype dtype; zb_rounding rounding;
} zb_tree_reduce_args;

/**
 * The SIMD level that the CPU kernels run at: "avx512", "avx2" or "portable". Chosen at the first use, or named by the
 * environment variable ZEROBIT_SIMD; it changes the speed, never a bit. NULL when ZEROBIT_SIMD names a level that this
 * build or processor lacks (zb_fail has been called).
 */
ZB_API const char *zb_simd_level(void);

#ifdef __cplusplus
}
#endif
#endif
