/*
 * Kernels: their twins on the CPU, queued. The arguments are copied, the host's arrays among them; pointers
 * to device memory become those by which operations reach it.
 */
#include "kernels/cuda/launch.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/access.h"
#include "kernels/kernels.h"
#include "sim/cuda/state.h"

typedef union any_args {
#define ARGS_MEMBER(name) zb_##name##_args name;
    ZB_KERNEL_MAP(ARGS_MEMBER)
#undef ARGS_MEMBER
} any_args;

typedef struct kernel_launch {
    zb_kernel kernel;
    size_t args_bytes;
    any_args args;
    const void **inputs; /* copies of the host's arrays */
    int32_t *tree, *order;
} kernel_launch;

/* What a launch touches, while it is checked. */
typedef struct touched {
    zb_kernel kernel;
    int device, count;
    si_range *ranges;
} touched;

static void release_launch(void *user)
{
    kernel_launch *launch = user;
    free((void *)launch->inputs);
    free(launch->tree);
    free(launch->order);
    free(launch);
}

static zb_standin_progress run_launch(void *user)
{
    const kernel_launch *launch = user;
    if (zb_cpu_launch(launch->kernel, &launch->args, launch->args_bytes) == ZB_OK) return ZB_STANDIN_DONE;
    si_misuse("%s failed when it ran: %s", zb_kernel_name(launch->kernel), zb_error_message());
    return ZB_STANDIN_FAILED;
}

/* --- checking --- */

/* The sizes that make an operation one over nothing: what it then still touches are single numbers. */
#define SIZE(name, member)                                                                                   \
    {                                                                                                        \
        ZB_KERNEL_##name, offsetof(zb_##name##_args, member)                                                 \
    }
static const struct {
    zb_kernel kernel;
    size_t offset;
} sizes[] = {
    SIZE(fill_bytes, bytes),
    SIZE(copy, bytes),
    SIZE(cast, numel),
    SIZE(add, numel),
    SIZE(scale, numel),
    SIZE(divide, numel),
    SIZE(matmul, m),
    SIZE(linear_forward, rows),
    SIZE(linear_backward_input, rows),
    SIZE(linear_backward_weight, out),
    SIZE(linear_backward_bias, out),
    SIZE(conv2d_forward, shape.rows),
    SIZE(conv2d_forward, shape.oc),
    SIZE(conv2d_forward, shape.ic),
    SIZE(conv2d_backward_input, shape.rows),
    SIZE(conv2d_backward_input, shape.oc),
    SIZE(conv2d_backward_input, shape.ic),
    SIZE(conv2d_backward_weight, shape.rows),
    SIZE(conv2d_backward_weight, shape.oc),
    SIZE(conv2d_backward_weight, shape.ic),
    SIZE(conv2d_backward_bias, shape.oc),
    SIZE(maxpool2d_forward, shape.rows),
    SIZE(maxpool2d_backward, shape.rows),
    SIZE(relu_forward, numel),
    SIZE(relu_backward, numel),
    SIZE(cross_entropy_forward, rows),
    SIZE(cross_entropy_backward, rows),
    SIZE(mse_forward, numel),
    SIZE(mse_backward, numel),
    SIZE(sum_squares, numel),
    SIZE(norm, numel),
    SIZE(find_nonfinite, numel),
    SIZE(adam, numel),
    SIZE(sgd, numel),
    SIZE(adagrad, numel),
    SIZE(lion, numel),
    SIZE(lamb_moments, numel),
    SIZE(lamb_apply, numel),
    SIZE(ordered_reduce, numel),
    SIZE(tree_reduce, numel),
};
#undef SIZE

static void empty(zb_kernel kernel, any_args *args)
{
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].kernel == kernel) memset((char *)args + sizes[i].offset, 0, sizeof(size_t));
}

enum { SCRATCH_BYTES = 2 * ZB_SUM_SQUARES_WORDS * sizeof(int64_t) };

static zb_status use_scratch(void *user, const zb_access *access)
{
    ZB_ASSERT(access->bytes <= SCRATCH_BYTES); /* or a size is missing above */
    *access->pointer = user;
    return ZB_OK;
}

/* What the CPU refuses is refused now, not when it runs: the CPU is asked, with nothing to do. */
static zb_status check_as_cpu(const kernel_launch *launch)
{
    any_args args = launch->args;
    int64_t scratch[SCRATCH_BYTES / sizeof(int64_t)] = { 0 };
    empty(launch->kernel, &args);
    ZB_TRY(zb_kernel_accesses(launch->kernel, &args, launch->args_bytes, use_scratch, scratch));
    return zb_cpu_launch(launch->kernel, &args, launch->args_bytes);
}

/* --- copying and translating --- */

static void *copied(const void *from, size_t count, size_t size)
{
    void *to = si_calloc(count, size);
    memcpy(to, from, count * size);
    return to;
}

static void copy_host_arrays(kernel_launch *launch)
{
    if (launch->kernel == ZB_KERNEL_ordered_reduce) {
        zb_ordered_reduce_args *a = &launch->args.ordered_reduce;
        a->inputs = launch->inputs = copied(a->inputs, (size_t)a->count, sizeof *a->inputs);
    } else if (launch->kernel == ZB_KERNEL_tree_reduce) {
        zb_tree_reduce_args *a = &launch->args.tree_reduce;
        const size_t count = (size_t)a->count;
        a->inputs = launch->inputs = copied(a->inputs, count, sizeof *a->inputs);
        a->tree = launch->tree = copied(a->tree, 2 * count - 1, sizeof *a->tree);
        a->order = launch->order = copied(a->order, count, sizeof *a->order);
    }
}

static zb_status translate(void *user, const zb_access *access)
{
    touched *t = user;
    const char *name = zb_kernel_name(t->kernel);
    if (t->count == SI_RANGES) return zb_fail(ZB_UNSUPPORTED, "%s with more than %d arrays", name, SI_RANGES);
    si_range *range = &t->ranges[t->count];
    if (si_resolve(name, access->name, *access->pointer, access->offset, access->bytes, t->device, range) !=
        cudaSuccess)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s", si.last_finding);
    range->reads = access->reads;
    range->writes = access->writes;
    t->count++;
    *access->pointer = si_shadow(*access->pointer);
    return ZB_OK;
}

static zb_status cuda_failed(zb_kernel kernel, cudaError_t error)
{
    return zb_fail(error == cudaErrorMemoryAllocation ? ZB_NO_MEMORY : ZB_INTERNAL,
                   "launch of %s: cudaLaunchKernel: %s (%s)", zb_kernel_name(kernel),
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

static zb_status launch_on(si_stream *stream, kernel_launch *launch)
{
    static si_range ranges[SI_RANGES]; /* under the lock, as all of this */
    touched t = { .kernel = launch->kernel, .device = stream->device, .ranges = ranges };
    ZB_TRY(check_as_cpu(launch));
    copy_host_arrays(launch);
    ZB_TRY(zb_kernel_accesses(launch->kernel, &launch->args, launch->args_bytes, translate, &t));
    if (t.count == 0) return ZB_OK;
    kernel_launch *queued = si_calloc(1, sizeof *queued);
    *queued = *launch;
    launch->inputs = NULL, launch->tree = launch->order = NULL;
    si_enqueue(stream, &(si_work){ .name = zb_kernel_name(launch->kernel),
                                   .ranges = ranges,
                                   .range_count = t.count,
                                   .run = run_launch,
                                   .release = release_launch,
                                   .user = queued });
    return ZB_OK;
}

static zb_status open_launch(zb_kernel kernel, const void *args, size_t args_bytes, kernel_launch *launch)
{
    launch->kernel = kernel;
    launch->args_bytes = args_bytes;
    if (args_bytes > sizeof launch->args) return zb_cpu_launch(kernel, args, args_bytes);
    memcpy(&launch->args, args, args_bytes);
    return ZB_OK;
}

zb_status zb_cuda_launch(cudaStream_t handle, zb_kernel kernel, const void *args, size_t args_bytes)
{
    si_stream *stream = NULL;
    cudaError_t error = si_enter("zb_cuda_launch");
    if (error == cudaSuccess) error = si_stream_of(handle, &stream);
    if (error == cudaSuccess && stream->device != si_current_device()) error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess) {
        si_leave(error);
        return cuda_failed(kernel, error);
    }
    kernel_launch launch = { .args_bytes = 0 };
    zb_status status = open_launch(kernel, args, args_bytes, &launch);
    if (status == ZB_OK) status = launch_on(stream, &launch);
    free((void *)launch.inputs);
    free(launch.tree);
    free(launch.order);
    si_leave(cudaSuccess);
    return status;
}
