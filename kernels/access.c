/* Which memory each operation touches, from its contract in <zerobit/kernels.h>: one function per operation.
 */
#include "kernels/access.h"

typedef struct show {
    zb_access_visitor *visit;
    void *user;
    zb_status status; /* of the first visit that failed; the rest is not shown then */
} show;

static void show_part(show *s, const char *name, void **pointer, size_t offset, size_t bytes, int reads,
                      int writes)
{
    if (s->status != ZB_OK || *pointer == NULL || bytes == 0) return;
    const zb_access access = {
        .name = name, .pointer = pointer, .offset = offset, .bytes = bytes, .reads = reads, .writes = writes
    };
    s->status = s->visit(s->user, &access);
}

/* `array` is a member of `a`, of whatever pointer type. */
#define READS(array, bytes)   show_part(s, #array, (void **)&a->array, 0, bytes, 1, 0)
#define WRITES(array, bytes)  show_part(s, #array, (void **)&a->array, 0, bytes, 0, 1)
#define CHANGES(array, bytes) show_part(s, #array, (void **)&a->array, 0, bytes, 1, 1)

#define FP32_BYTES(numel)  ((numel) * sizeof(float))
#define INT32_BYTES(numel) ((numel) * sizeof(int32_t))
enum { SUM_SQUARES_BYTES = ZB_SUM_SQUARES_WORDS * sizeof(int64_t) };

static size_t bytes_of(zb_dtype dtype, size_t numel)
{
    return zb_dtype_bytes(dtype) * numel;
}

/* From the first to the last element of rows x columns with these strides. */
static size_t extent(size_t rows, size_t row_stride, size_t columns, size_t column_stride)
{
    if (rows == 0 || columns == 0) return 0;
    return (rows - 1) * row_stride + (columns - 1) * column_stride + 1;
}

/* --- elementwise --- */

static void show_fill_bytes(zb_fill_bytes_args *a, show *s)
{
    WRITES(data, a->bytes);
}

static void show_copy(zb_copy_args *a, show *s)
{
    WRITES(to, a->bytes);
    READS(from, a->bytes);
}

static void show_cast(zb_cast_args *a, show *s)
{
    WRITES(to, bytes_of(a->to_dtype, a->numel));
    READS(from, bytes_of(a->from_dtype, a->numel));
}

static void show_add(zb_add_args *a, show *s)
{
    CHANGES(y, bytes_of(a->y_dtype, a->numel));
    READS(x, bytes_of(a->x_dtype, a->numel));
}

static void show_scale(zb_scale_args *a, show *s)
{
    CHANGES(y, bytes_of(a->dtype, a->numel));
}

static void show_divide(zb_divide_args *a, show *s)
{
    CHANGES(y, bytes_of(a->dtype, a->numel));
}

/* --- products --- */

static void show_matmul(zb_matmul_args *a, show *s)
{
    if (a->m == 0 || a->n == 0) return; /* no chain: even a is not looked at */
    const int whole = a->c_row == a->n || a->m == 1;
    READS(a, bytes_of(a->dtype, extent(a->m, a->a_row, a->k, a->a_col)));
    READS(b, bytes_of(a->dtype, extent(a->k, a->b_row, a->n, a->b_col)));
    show_part(s, "c", &a->c, 0, bytes_of(a->dtype, extent(a->m, a->c_row, a->n, 1)), a->accumulate || !whole,
              1);
    READS(bias, bytes_of(a->dtype, a->n));
}

static void show_linear_forward(zb_linear_forward_args *a, show *s)
{
    if (a->rows == 0 || a->out == 0) return;
    READS(x, bytes_of(a->dtype, a->rows * a->in));
    READS(w, bytes_of(a->dtype, a->out * a->in));
    READS(b, bytes_of(a->dtype, a->out));
    WRITES(y, bytes_of(a->dtype, a->rows * a->out));
}

static void show_linear_backward_input(zb_linear_backward_input_args *a, show *s)
{
    if (a->rows == 0 || a->in == 0) return;
    READS(dy, bytes_of(a->dtype, a->rows * a->out));
    READS(w, bytes_of(a->dtype, a->out * a->in));
    WRITES(dx, bytes_of(a->dtype, a->rows * a->in));
}

static void show_linear_backward_weight(zb_linear_backward_weight_args *a, show *s)
{
    if (a->out == 0 || a->in == 0) return;
    READS(dy, bytes_of(a->dtype, a->rows * a->out));
    READS(x, bytes_of(a->dtype, a->rows * a->in));
    WRITES(dw, bytes_of(a->dtype, a->out * a->in));
}

static void show_linear_backward_bias(zb_linear_backward_bias_args *a, show *s)
{
    READS(dy, bytes_of(a->dtype, a->rows * a->out));
    WRITES(db, bytes_of(a->dtype, a->out));
}

/* --- convolution: elements of its arrays --- */

static size_t conv2d_x_numel(const zb_conv2d_shape *g)
{
    return g->rows * g->ic * g->ih * g->iw;
}
static size_t conv2d_y_numel(const zb_conv2d_shape *g)
{
    return g->rows * g->oc * g->oh * g->ow;
}
static size_t conv2d_w_numel(const zb_conv2d_shape *g)
{
    return g->oc * g->ic * g->kernel * g->kernel;
}

/* The workspace holds nothing before; how much of it is used is an implementation's affair. */
static void show_conv2d_forward(zb_conv2d_forward_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, conv2d_x_numel(&a->shape)));
    READS(w, bytes_of(a->dtype, conv2d_w_numel(&a->shape)));
    READS(b, bytes_of(a->dtype, a->shape.oc));
    WRITES(y, bytes_of(a->dtype, conv2d_y_numel(&a->shape)));
    CHANGES(workspace, FP32_BYTES(zb_conv2d_workspace_numel(&a->shape)));
}

static void show_conv2d_backward_input(zb_conv2d_backward_input_args *a, show *s)
{
    READS(dy, bytes_of(a->dtype, conv2d_y_numel(&a->shape)));
    READS(w, bytes_of(a->dtype, conv2d_w_numel(&a->shape)));
    WRITES(dx, bytes_of(a->dtype, conv2d_x_numel(&a->shape)));
    CHANGES(workspace, FP32_BYTES(zb_conv2d_workspace_numel(&a->shape)));
}

static void show_conv2d_backward_weight(zb_conv2d_backward_weight_args *a, show *s)
{
    READS(dy, bytes_of(a->dtype, conv2d_y_numel(&a->shape)));
    READS(x, bytes_of(a->dtype, conv2d_x_numel(&a->shape)));
    WRITES(dw, bytes_of(a->dtype, conv2d_w_numel(&a->shape)));
    CHANGES(workspace, FP32_BYTES(zb_conv2d_workspace_numel(&a->shape)));
}

static void show_conv2d_backward_bias(zb_conv2d_backward_bias_args *a, show *s)
{
    READS(dy, bytes_of(a->dtype, conv2d_y_numel(&a->shape)));
    WRITES(db, bytes_of(a->dtype, a->shape.oc));
}

/* --- pooling and activations --- */

static size_t maxpool2d_x_numel(const zb_maxpool2d_shape *g)
{
    return g->rows * g->channels * g->ih * g->iw;
}
static size_t maxpool2d_y_numel(const zb_maxpool2d_shape *g)
{
    return g->rows * g->channels * g->oh * g->ow;
}

static void show_maxpool2d_forward(zb_maxpool2d_forward_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, maxpool2d_x_numel(&a->shape)));
    WRITES(y, bytes_of(a->dtype, maxpool2d_y_numel(&a->shape)));
    WRITES(argmax, INT32_BYTES(maxpool2d_y_numel(&a->shape)));
}

static void show_maxpool2d_backward(zb_maxpool2d_backward_args *a, show *s)
{
    READS(dy, bytes_of(a->dtype, maxpool2d_y_numel(&a->shape)));
    READS(argmax, INT32_BYTES(maxpool2d_y_numel(&a->shape)));
    WRITES(dx, bytes_of(a->dtype, maxpool2d_x_numel(&a->shape)));
}

static void show_relu_forward(zb_relu_forward_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, a->numel));
    WRITES(y, bytes_of(a->dtype, a->numel));
}

static void show_relu_backward(zb_relu_backward_args *a, show *s)
{
    READS(y, bytes_of(a->dtype, a->numel));
    READS(dy, bytes_of(a->dtype, a->numel));
    WRITES(dx, bytes_of(a->dtype, a->numel));
}

/* --- losses --- */

static void show_cross_entropy_forward(zb_cross_entropy_forward_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, a->rows * a->classes));
    READS(labels, INT32_BYTES(a->rows));
    WRITES(log_probs, FP32_BYTES(a->rows * a->classes));
    WRITES(row_loss, FP32_BYTES(a->rows));
    WRITES(loss, FP32_BYTES(1));
}

static void show_cross_entropy_backward(zb_cross_entropy_backward_args *a, show *s)
{
    READS(log_probs, FP32_BYTES(a->rows * a->classes));
    READS(labels, INT32_BYTES(a->rows));
    WRITES(dx, bytes_of(a->dtype, a->rows * a->classes));
}

static void show_mse_forward(zb_mse_forward_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, a->numel));
    READS(t, FP32_BYTES(a->numel));
    WRITES(loss, FP32_BYTES(1));
}

static void show_mse_backward(zb_mse_backward_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, a->numel));
    READS(t, FP32_BYTES(a->numel));
    WRITES(dx, bytes_of(a->dtype, a->numel));
}

/* --- norms --- */

static void show_sum_squares(zb_sum_squares_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, a->numel));
    CHANGES(accumulator, SUM_SQUARES_BYTES);
}

static void show_norm(zb_norm_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, a->numel));
    WRITES(norm, sizeof *a->norm);
}

static void show_find_nonfinite(zb_find_nonfinite_args *a, show *s)
{
    READS(x, bytes_of(a->dtype, a->numel));
    if (a->numel > 0) CHANGES(flag, sizeof *a->flag);
}

/* --- optimizers --- */

static void show_adam(zb_adam_args *a, show *s)
{
    CHANGES(p, FP32_BYTES(a->numel));
    READS(grad, bytes_of(a->grad_dtype, a->numel));
    CHANGES(m, FP32_BYTES(a->numel));
    CHANGES(v, FP32_BYTES(a->numel));
    WRITES(param, bytes_of(a->param_dtype, a->numel));
}

static void show_sgd(zb_sgd_args *a, show *s)
{
    CHANGES(p, FP32_BYTES(a->numel));
    READS(grad, bytes_of(a->grad_dtype, a->numel));
    if (a->momentum != 0) /* a NaN too */
        show_part(s, "buf", (void **)&a->buf, 0, FP32_BYTES(a->numel), !a->first_step, 1);
    WRITES(param, bytes_of(a->param_dtype, a->numel));
}

static void show_adagrad(zb_adagrad_args *a, show *s)
{
    CHANGES(p, FP32_BYTES(a->numel));
    READS(grad, bytes_of(a->grad_dtype, a->numel));
    CHANGES(sum, FP32_BYTES(a->numel));
    WRITES(param, bytes_of(a->param_dtype, a->numel));
}

static void show_lion(zb_lion_args *a, show *s)
{
    CHANGES(p, FP32_BYTES(a->numel));
    READS(grad, bytes_of(a->grad_dtype, a->numel));
    CHANGES(m, FP32_BYTES(a->numel));
    WRITES(param, bytes_of(a->param_dtype, a->numel));
}

static void show_lamb_moments(zb_lamb_moments_args *a, show *s)
{
    READS(p, FP32_BYTES(a->numel));
    READS(grad, bytes_of(a->grad_dtype, a->numel));
    CHANGES(m, FP32_BYTES(a->numel));
    CHANGES(v, FP32_BYTES(a->numel));
    CHANGES(accumulators, 2 * SUM_SQUARES_BYTES);
}

static void show_lamb_apply(zb_lamb_apply_args *a, show *s)
{
    CHANGES(p, FP32_BYTES(a->numel));
    READS(m, FP32_BYTES(a->numel));
    READS(v, FP32_BYTES(a->numel));
    WRITES(param, bytes_of(a->param_dtype, a->numel));
}

/* --- reductions over ranks --- */

static void show_inputs(show *s, const void *const *inputs, int count, size_t offset, size_t bytes)
{
    for (int i = 0; i < count; i++) show_part(s, "inputs", (void **)&inputs[i], offset, bytes, 1, 0);
}

static void show_ordered_reduce(zb_ordered_reduce_args *a, show *s)
{
    show_inputs(s, a->inputs, a->count, 0, bytes_of(a->dtype, a->numel));
    WRITES(out, bytes_of(a->dtype, a->numel));
}

static void show_tree_reduce(zb_tree_reduce_args *a, show *s)
{
    show_inputs(s, a->inputs, a->count, bytes_of(a->dtype, a->first), bytes_of(a->dtype, a->numel));
    WRITES(out, bytes_of(a->dtype, a->numel));
}

/* --- */

const char *zb_kernel_name(zb_kernel kernel)
{
    static const char *const names[] = {
#define ZB_KERNEL_NAME(name) #name,
        ZB_KERNEL_MAP(ZB_KERNEL_NAME)
#undef ZB_KERNEL_NAME
    };
    return (unsigned)kernel < ZB_KERNEL_COUNT ? names[kernel] : "?";
}

static zb_status wrong_size(const char *name, size_t found, size_t expected)
{
    return zb_fail(ZB_INVALID_ARGUMENT, "launch of %s with %zu bytes of arguments, want %zu", name, found,
                   expected);
}

zb_status zb_kernel_accesses(zb_kernel kernel, void *args, size_t args_bytes, zb_access_visitor *visit,
                             void *user)
{
    show s = { .visit = visit, .user = user };
    switch (kernel) {
#define ZB_ACCESS_CASE(name)                                                                                 \
    case ZB_KERNEL_##name:                                                                                   \
        if (args_bytes != sizeof(zb_##name##_args))                                                          \
            return wrong_size(#name, args_bytes, sizeof(zb_##name##_args));                                  \
        show_##name(args, &s);                                                                               \
        return s.status;
        ZB_KERNEL_MAP(ZB_ACCESS_CASE)
#undef ZB_ACCESS_CASE
    case ZB_KERNEL_COUNT:
        break;
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "launch of operation %d; there are %d", (int)kernel,
                   (int)ZB_KERNEL_COUNT);
}
