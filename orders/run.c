/* A reduction carried out: range by range, by the operation that adds in the order of a tree, on this host or
 * on a device. */
#include <zerobit/device.h>
#include <zerobit/reduction.h>

#include "kernels/kernels.h"

/* stream NULL: at once, on the caller's thread. */
static zb_status run(zb_stream *stream, const zb_reduction *reduction, const void *const *inputs,
                     size_t first, size_t numel, void *out)
{
    if (first > reduction->numel || numel > reduction->numel - first)
        return zb_fail(ZB_INVALID_ARGUMENT, "elements %zu to %zu of a reduction of %zu", first, first + numel,
                       reduction->numel);
    const zb_reduction_range *range = numel > 0 ? zb_reduction_range_of(reduction, first) : NULL;
    const size_t element_bytes = zb_dtype_bytes(reduction->dtype), end = first + numel,
                 n = (size_t)reduction->world_size;
    for (size_t at = first; at < end; range++) {
        const size_t range_end = range->first + range->numel, stop = range_end < end ? range_end : end;
        const zb_tree_reduce_args args = { .inputs = inputs,
                                           .count = reduction->world_size,
                                           .tree = zb_reduction_tree(reduction, range),
                                           .order = reduction->orders + (size_t)range->order * n,
                                           .start = range->start,
                                           .range_first = range->first,
                                           .first = at,
                                           .numel = stop - at,
                                           .out = (char *)out + (at - first) * element_bytes,
                                           .dtype = reduction->dtype,
                                           .rounding = reduction->rounding };
        ZB_TRY(stream != NULL ? zb_launch_tree_reduce(stream, &args) : zb_cpu_tree_reduce(&args));
        at = stop;
    }
    return ZB_OK;
}

zb_status zb_reduction_run(const zb_reduction *reduction, const void *const *inputs, size_t first,
                           size_t numel, void *out)
{
    return run(NULL, reduction, inputs, first, numel, out);
}

zb_status zb_reduction_launch(zb_stream *stream, const zb_reduction *reduction, const void *const *inputs,
                              size_t first, size_t numel, void *out)
{
    ZB_ASSERT(stream != NULL);
    return run(stream, reduction, inputs, first, numel, out);
}
