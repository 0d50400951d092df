/* A reduction on this host: range by range, by the kernel that adds in the order of a tree. */
#include <zerobit/reduction.h>

#include "kernels/kernels.h"

zb_status zb_reduction_run(const zb_reduction *reduction, const void *const *inputs, size_t first,
                           size_t numel, void *out)
{
    if (first > reduction->numel || numel > reduction->numel - first)
        return zb_fail(ZB_INVALID_ARGUMENT, "elements %zu to %zu of a reduction of %zu", first, first + numel,
                       reduction->numel);
    const zb_reduction_range *range = numel > 0 ? zb_reduction_range_of(reduction, first) : NULL;
    const size_t element_bytes = zb_dtype_bytes(reduction->dtype), end = first + numel,
                 n = (size_t)reduction->world_size;
    for (size_t at = first; at < end; range++) {
        const size_t range_end = range->first + range->numel, stop = range_end < end ? range_end : end;
        ZB_TRY(
            zb_cpu_tree_reduce(&(zb_tree_reduce_args){ .inputs = inputs,
                                                       .count = reduction->world_size,
                                                       .tree = zb_reduction_tree(reduction, range),
                                                       .order = reduction->orders + (size_t)range->order * n,
                                                       .start = range->start,
                                                       .range_first = range->first,
                                                       .first = at,
                                                       .numel = stop - at,
                                                       .out = (char *)out + (at - first) * element_bytes,
                                                       .dtype = reduction->dtype,
                                                       .rounding = reduction->rounding }));
        at = stop;
    }
    return ZB_OK;
}
