/* From a library's name and a collective to the record of the reduction: the front door, and the two orders
 * that need no more. */
#include "orders/derive.h"

#include "orders/trees.h"

size_t zb_call_block(const zb_reduction_call *call, int owner)
{
    return call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V ? call->counts[owner] : call->numel;
}

int zb_call_scatters(const zb_reduction_call *call)
{
    return call->kind == ZB_COLLECTIVE_REDUCE_SCATTER || call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
}

size_t zb_call_total(const zb_reduction_call *call)
{
    if (!zb_call_scatters(call)) return call->numel;
    size_t total = 0;
    for (int rank = 0; rank < call->world_size; rank++) total += zb_call_block(call, rank);
    return total;
}

zb_status zb_derive_refuse(const zb_order_source *source, const zb_reduction_call *call, const char *why)
{
    return zb_fail(ZB_UNSUPPORTED, "%s does not offer %s of %d ranks: %s",
                   zb_algorithm_name(source->algorithm), zb_collective_name(call->kind), call->world_size,
                   why);
}

/* --- rank --- */

static zb_status derive_rank(const zb_reduction_call *call, zb_reduction *reduction_p)
{
    zb_reduction made;
    ZB_TRY(zb_reduction_create(call->world_size, call->dtype, 1, 1, &made));
    zb_tree_write_chain(call->world_size, zb_reduction_tree_at(&made, 0));
    zb_reduction_order_ascending(&made, 0);
    const zb_status status = zb_reduction_append(&made, zb_call_total(call), 0, 0, 0);
    if (status != ZB_OK) {
        zb_reduction_destroy(&made);
        return status;
    }
    made.rounding.wide = 1;
    *reduction_p = made;
    return ZB_OK;
}

/* --- gloo --- */

/*
 * Elements of each of its world_size chunks: segments of at most 1 MiB, at least two for each rank, as many
 * for every rank; a segment's bytes are rounded up to whole elements.
 */
static size_t gloo_chunk(size_t numel, size_t element_bytes, size_t world_size)
{
    const size_t bytes = numel * element_bytes, most = (size_t)1 << 20;
    size_t segments = (bytes + most - 1) / most;
    if (segments < 2 * world_size) segments = 2 * world_size;
    const size_t segments_each = (segments + world_size - 1) / world_size;
    segments = segments_each * world_size;
    const size_t segment_bytes = (bytes + segments - 1) / segments;
    return segments_each * ((segment_bytes + element_bytes - 1) / element_bytes);
}

/* Chunk c begins at rank c - 1 and goes down, round to rank c. A reduce_scatter is an all_reduce of the
 * whole. */
static zb_status append_gloo_chunks(const zb_reduction_call *call, zb_reduction *reduction)
{
    const size_t total = zb_call_total(call), n = (size_t)call->world_size;
    const size_t chunk = gloo_chunk(total, zb_dtype_bytes(call->dtype), n);
    for (size_t c = 0; c < n && reduction->numel < total; c++) {
        const size_t left = total - reduction->numel;
        ZB_TRY(zb_reduction_append(reduction, left < chunk ? left : chunk, 0, 0, (int)((n - c) % n)));
    }
    return ZB_OK;
}

static zb_status derive_gloo(const zb_reduction_call *call, zb_reduction *reduction_p)
{
    zb_reduction made;
    ZB_TRY(zb_reduction_create(call->world_size, call->dtype, 1, 1, &made));
    zb_tree_write_chain(call->world_size, zb_reduction_tree_at(&made, 0));
    zb_reduction_order_descending(&made, 0);
    const zb_status status = append_gloo_chunks(call, &made);
    if (status != ZB_OK) {
        zb_reduction_destroy(&made);
        return status;
    }
    *reduction_p = made;
    return ZB_OK;
}

/* --- the front door --- */

static zb_status check_counts(const zb_reduction_call *call)
{
    size_t total = 0, bytes;
    const int scatters = zb_call_scatters(call);
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V && call->counts == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "reduce_scatter_v without counts");
    for (int rank = 0; rank < (scatters ? call->world_size : 1); rank++)
        if (__builtin_add_overflow(total, zb_call_block(call, rank), &total)) total = SIZE_MAX;
    if (__builtin_mul_overflow(total, 4 * zb_dtype_bytes(call->dtype),
                               &bytes)) /* 4: what NCCL makes of them for LL */
        return zb_fail(ZB_INVALID_ARGUMENT, "%s of %s over %d ranks: too many elements",
                       zb_collective_name(call->kind), zb_dtype_name(call->dtype), call->world_size);
    return ZB_OK;
}

static zb_status check_call(const zb_reduction_call *call)
{
    if (call->world_size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "a reduction over %d ranks, want >= 1", call->world_size);
    if (call->kind != ZB_COLLECTIVE_ALL_REDUCE && call->kind != ZB_COLLECTIVE_REDUCE &&
        !zb_call_scatters(call))
        return zb_fail(ZB_INVALID_ARGUMENT, "%s is no reduction", zb_collective_name(call->kind));
    if ((unsigned)call->dtype >= ZB_DTYPE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "a reduction of element type %d", (int)call->dtype);
    if (call->op != ZB_SUM && call->op != ZB_AVG && call->op != ZB_PREMUL_SUM)
        return zb_fail(ZB_UNSUPPORTED, "only sums and averages have an order; a minimum or maximum has none");
    const int whole = call->dtype == ZB_INT32 || call->dtype == ZB_INT64 || call->dtype == ZB_UINT8;
    if (call->op == ZB_AVG && whole)
        return zb_fail(ZB_UNSUPPORTED, "the average of %s is not defined; want fp32, fp16, bf16 or fp64",
                       zb_dtype_name(call->dtype));
    if (call->kind == ZB_COLLECTIVE_REDUCE && (call->root < 0 || call->root >= call->world_size))
        return zb_fail(ZB_INVALID_ARGUMENT, "root %d of %d ranks", call->root, call->world_size);
    return check_counts(call);
}

/* For libraries without an average of their own, and for `rank`. */
static void scale_outside(const zb_reduction_call *call, zb_rounding *rounding)
{
    if (call->op == ZB_AVG) rounding->divisor = call->world_size;
    if (call->op == ZB_PREMUL_SUM) {
        rounding->scaling = ZB_SCALING_MULTIPLY;
        rounding->factor = call->factor;
    }
}

zb_status zb_reduction_derive(const zb_order_source *source, const zb_reduction_call *call,
                              zb_reduction *reduction_p)
{
    ZB_TRY(check_call(call));
    switch (source->algorithm) {
    case ZB_ALGORITHM_RANK:
        ZB_TRY(derive_rank(call, reduction_p));
        break;
    case ZB_ALGORITHM_GLOO:
        ZB_TRY(derive_gloo(call, reduction_p));
        break;
    case ZB_ALGORITHM_MPI_DEFAULT:
    case ZB_ALGORITHM_MPI_LINEAR:
    case ZB_ALGORITHM_MPI_RECURSIVE_DOUBLING:
    case ZB_ALGORITHM_MPI_RING:
    case ZB_ALGORITHM_MPI_SEGMENTED_RING:
    case ZB_ALGORITHM_MPI_RABENSEIFNER:
    case ZB_ALGORITHM_MPI_RECURSIVE_HALVING:
    case ZB_ALGORITHM_MPI_BUTTERFLY:
        ZB_TRY(zb_derive_mpi(source, call, reduction_p));
        break;
    case ZB_ALGORITHM_NCCL_RING:
    case ZB_ALGORITHM_NCCL_TREE:
        return zb_derive_nccl(source, call, reduction_p);
    case ZB_ALGORITHM_COUNT:
        return zb_fail(ZB_INVALID_ARGUMENT, "algorithm %d; there are %d", (int)source->algorithm,
                       ZB_ALGORITHM_COUNT);
    }
    scale_outside(call, &reduction_p->rounding);
    return ZB_OK;
}
