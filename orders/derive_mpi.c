/*
 * Open MPI 4.1: ompi/mca/coll/base (the algorithms) and coll/tuned/coll_tuned_decision_fixed.c (which one,
 * for a commutative operation, when nobody says). Partial results are rounded to the MPI type at every
 * addition.
 */
#include "orders/derive.h"

#include "orders/trees.h"

/* What a few lines of its code come down to. */
typedef enum mpi_shape {
    SHAPE_LINEAR,             /* from the last rank down to rank 0, whatever the root */
    SHAPE_PIPELINE,           /* from the rank before the root down, round to the root */
    SHAPE_RECURSIVE_DOUBLING, /* and Rabenseifner's, and butterfly                    */
    SHAPE_RECURSIVE_HALVING,
    SHAPE_ALIGNED,      /* from the root; a binomial tree is one                */
    SHAPE_BINARY,       /* from the root                                        */
    SHAPE_RING,         /* all_reduce: block b starts at rank b                 */
    SHAPE_RING_TO_OWNER /* reduce_scatter: a block ends at its owner            */
} mpi_shape;

/* --- the default choice --- */

typedef struct mpi_rule {
    int world_max;      /* for so many ranks at most */
    size_t bytes_below; /* and fewer bytes than this; 0: any number */
    int algorithm;      /* by Open MPI's number     */
} mpi_rule;

enum { KI = 1 << 10, MI = 1 << 20, DEFAULT_WORLD_MAX = 127 };

static const mpi_rule all_reduce_rules[] = {
    { 3, 8, 4 },        { 3, 4 * KI, 3 }, { 3, 8 * KI, 4 },     { 3, 16 * KI, 3 }, { 3, 64 * KI, 4 },
    { 3, 256 * KI, 5 }, { 3, 0, 6 },      { 7, 16, 4 },         { 7, 8 * KI, 3 },  { 7, 0, 6 },
    { 15, 8 * KI, 3 },  { 15, 0, 6 },     { 31, 64, 5 },        { 31, 4 * KI, 3 }, { 31, 0, 6 },
    { 63, 128, 5 },     { 63, 0, 6 },     { 127, 256 * KI, 3 }, { 127, 0, 6 },
};
static const mpi_rule reduce_scatter_rules[] = {
    { 3, 64 * KI, 3 },   { 3, 128 * KI, 4 },  { 3, 0, 3 },     { 7, 8, 1 },     { 7, 256 * KI, 2 },
    { 7, 0, 3 },         { 31, 256 * KI, 2 }, { 31, 0, 3 },    { 63, 64, 1 },   { 63, 2 * KI, 2 },
    { 63, 512 * KI, 4 }, { 63, 0, 3 },        { 127, 256, 1 }, { 127, 512, 2 }, { 127, 2 * KI, 4 },
    { 127, 4 * KI, 2 },  { 127, 0, 4 },
};
/* By the bytes of one block. */
static const mpi_rule reduce_scatter_block_rules[] = {
    { 3, 4, 2 },          { 3, 8, 4 },      { 3, 16, 3 },       { 3, 128, 4 },       { 3, 256, 3 },
    { 3, 4 * KI, 4 },     { 3, 8 * KI, 3 }, { 3, 128 * KI, 4 }, { 3, 0, 1 },         { 7, 8, 3 },
    { 7, 32, 2 },         { 7, 256, 4 },    { 7, 8 * KI, 3 },   { 7, 16 * KI, 4 },   { 7, 1 * MI, 3 },
    { 7, 0, 1 },          { 15, 4, 1 },     { 15, 32, 3 },      { 15, 128, 4 },      { 15, 512 * KI, 3 },
    { 15, 4 * MI, 1 },    { 15, 0, 4 },     { 31, 32, 1 },      { 31, 512 * KI, 3 }, { 31, 2 * MI, 1 },
    { 31, 4 * MI, 3 },    { 31, 0, 4 },     { 127, 4, 3 },      { 127, 16, 1 },      { 127, 64 * KI, 4 },
    { 127, 256 * KI, 1 }, { 127, 0, 4 },
};
static const mpi_rule reduce_rules[] = {
    { 3, 8, 7 },        { 3, 16, 4 },     { 3, 32, 3 },     { 3, 256 * KI, 1 }, { 3, 512 * KI, 3 },
    { 3, 1 * MI, 2 },   { 3, 0, 3 },      { 7, 4 * KI, 4 }, { 7, 64 * KI, 2 },  { 7, 256 * KI, 5 },
    { 7, 512 * KI, 1 }, { 7, 1 * MI, 5 }, { 7, 0, 1 },      { 15, 8 * KI, 4 },  { 15, 0, 5 },
    { 31, 4 * KI, 4 },  { 31, 0, 5 },     { 127, 0, 5 },
};

static int choose(const mpi_rule *rules, int world_size, size_t bytes)
{
    while (world_size > rules->world_max || (rules->bytes_below != 0 && bytes >= rules->bytes_below)) rules++;
    return rules->algorithm;
}

/* --- all_reduce --- */

static int largest_power_of_two(int n)
{
    int p = 1;
    while (p <= n / 2) p *= 2;
    return p;
}

static zb_status all_reduce_shape(const zb_order_source *source, const zb_reduction_call *call,
                                  mpi_shape *shape_p)
{
    static const zb_algorithm by_number[] = { [1] = ZB_ALGORITHM_MPI_LINEAR,
                                              [3] = ZB_ALGORITHM_MPI_RECURSIVE_DOUBLING,
                                              [4] = ZB_ALGORITHM_MPI_RING,
                                              [5] = ZB_ALGORITHM_MPI_SEGMENTED_RING,
                                              [6] = ZB_ALGORITHM_MPI_RABENSEIFNER };
    zb_algorithm algorithm = source->algorithm;
    if (algorithm == ZB_ALGORITHM_MPI_DEFAULT)
        algorithm =
            by_number[choose(all_reduce_rules, call->world_size, call->numel * zb_dtype_bytes(call->dtype))];
    switch (algorithm) {
    case ZB_ALGORITHM_MPI_LINEAR:
        *shape_p = SHAPE_LINEAR;
        return ZB_OK;
    case ZB_ALGORITHM_MPI_RECURSIVE_DOUBLING:
        *shape_p = SHAPE_RECURSIVE_DOUBLING;
        return ZB_OK;
    case ZB_ALGORITHM_MPI_RING: /* the segments of the other cut its blocks, and leave their order alone */
    case ZB_ALGORITHM_MPI_SEGMENTED_RING:
        *shape_p = call->numel < (size_t)call->world_size ? SHAPE_RECURSIVE_DOUBLING : SHAPE_RING;
        return ZB_OK;
    case ZB_ALGORITHM_MPI_RABENSEIFNER:
        *shape_p = call->numel < (size_t)largest_power_of_two(call->world_size) ? SHAPE_LINEAR
                                                                                : SHAPE_RECURSIVE_DOUBLING;
        return ZB_OK;
    default:
        return zb_derive_refuse(source, call, "Open MPI has this algorithm for reduce_scatter only");
    }
}

/* --- reduce, which the simplest reduce_scatters begin with --- */

static mpi_shape default_reduce_shape(int world_size, size_t numel, size_t element_bytes)
{
    switch (choose(reduce_rules, world_size, numel * element_bytes)) {
    case 1:
        return SHAPE_LINEAR;
    case 2: /* chains, but chosen by default there is only one of them */
    case 3:
        return SHAPE_PIPELINE;
    case 4:
        return SHAPE_BINARY;
    case 5:
        return SHAPE_ALIGNED;
    default: /* 7, Rabenseifner's, for so few elements that it may give up */
        return numel < (size_t)largest_power_of_two(world_size) ? SHAPE_LINEAR : SHAPE_RECURSIVE_DOUBLING;
    }
}

static zb_status reduce_shape(const zb_order_source *source, const zb_reduction_call *call,
                              mpi_shape *shape_p)
{
    if (source->algorithm == ZB_ALGORITHM_MPI_LINEAR) {
        *shape_p = SHAPE_LINEAR;
        return ZB_OK;
    }
    if (source->algorithm != ZB_ALGORITHM_MPI_DEFAULT)
        return zb_derive_refuse(source, call, "want mpi-linear or mpi-default for a reduce");
    *shape_p = default_reduce_shape(call->world_size, call->numel, zb_dtype_bytes(call->dtype));
    return ZB_OK;
}

/* --- reduce_scatter --- */

/* Of MPI_Reduce_scatter_block where all blocks are equal, else of MPI_Reduce_scatter. Both have shapes by
 * number. */
static mpi_shape default_reduce_scatter_shape(const zb_reduction_call *call)
{
    const size_t total = zb_call_total(call), element_bytes = zb_dtype_bytes(call->dtype);
    const int n = call->world_size, equal = call->kind == ZB_COLLECTIVE_REDUCE_SCATTER;
    const int number = equal ? choose(reduce_scatter_block_rules, n, call->numel * element_bytes)
                             : choose(reduce_scatter_rules, n, total * element_bytes);
    if (number == 1) return default_reduce_shape(n, total, element_bytes);
    if (number == 4) return SHAPE_RECURSIVE_DOUBLING;
    if (equal) return number == 2 ? SHAPE_ALIGNED : SHAPE_RECURSIVE_HALVING;
    return number == 2 ? SHAPE_RECURSIVE_HALVING : SHAPE_RING_TO_OWNER;
}

static zb_status reduce_scatter_shape(const zb_order_source *source, const zb_reduction_call *call,
                                      mpi_shape *shape_p)
{
    switch (source->algorithm) {
    case ZB_ALGORITHM_MPI_DEFAULT:
        *shape_p = default_reduce_scatter_shape(call);
        return ZB_OK;
    case ZB_ALGORITHM_MPI_RING:
        *shape_p = SHAPE_RING_TO_OWNER;
        return ZB_OK;
    case ZB_ALGORITHM_MPI_RECURSIVE_HALVING:
        *shape_p = SHAPE_RECURSIVE_HALVING;
        return ZB_OK;
    case ZB_ALGORITHM_MPI_BUTTERFLY:
        *shape_p = SHAPE_RECURSIVE_DOUBLING;
        return ZB_OK;
    case ZB_ALGORITHM_MPI_RECURSIVE_DOUBLING:
        if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V)
            return zb_derive_refuse(
                source, call, "MPI_Reduce_scatter has no recursive doubling, MPI_Reduce_scatter_block has");
        *shape_p = SHAPE_ALIGNED;
        return ZB_OK;
    default:
        return zb_derive_refuse(source, call, "Open MPI has this algorithm for all_reduce only");
    }
}

/* --- shapes to records --- */

static zb_status write_tree(mpi_shape shape, int world_size, int32_t *tree)
{
    switch (shape) {
    case SHAPE_RECURSIVE_DOUBLING:
        return zb_tree_write_recursive(world_size, 0, tree);
    case SHAPE_RECURSIVE_HALVING:
        return zb_tree_write_recursive(world_size, 1, tree);
    case SHAPE_ALIGNED:
        return zb_tree_write_aligned(world_size, tree);
    case SHAPE_BINARY:
        return zb_tree_write_binary(world_size, tree);
    default:
        zb_tree_write_chain(world_size, tree);
        return ZB_OK;
    }
}

static zb_status append_ranges(mpi_shape shape, const zb_reduction_call *call, zb_reduction *made)
{
    const int n = call->world_size, root = call->kind == ZB_COLLECTIVE_REDUCE ? call->root : 0;
    switch (shape) {
    case SHAPE_RING: /* the first blocks are longer by one */
        for (int b = 0; b < n; b++)
            ZB_TRY(zb_reduction_append(made, call->numel / (size_t)n + ((size_t)b < call->numel % (size_t)n),
                                       0, 0, b));
        return ZB_OK;
    case SHAPE_RING_TO_OWNER:
        for (int d = 0; d < n; d++)
            ZB_TRY(zb_reduction_append(made, zb_call_block(call, d), 0, 0, (d + 1) % n));
        return ZB_OK;
    case SHAPE_PIPELINE: /* descending: n - root is where root - 1 stands */
        return zb_reduction_append(made, zb_call_total(call), 0, 0, (n - root) % n);
    case SHAPE_ALIGNED:
    case SHAPE_BINARY:
        return zb_reduction_append(made, zb_call_total(call), 0, 0, root);
    default:
        return zb_reduction_append(made, zb_call_total(call), 0, 0, 0);
    }
}

static zb_status find_shape(const zb_order_source *source, const zb_reduction_call *call, mpi_shape *shape_p)
{
    if (source->algorithm == ZB_ALGORITHM_MPI_DEFAULT && call->world_size > DEFAULT_WORLD_MAX)
        return zb_derive_refuse(source, call, "its default choices are known up to 127 ranks");
    if (call->kind == ZB_COLLECTIVE_ALL_REDUCE) return all_reduce_shape(source, call, shape_p);
    if (call->kind == ZB_COLLECTIVE_REDUCE) return reduce_shape(source, call, shape_p);
    return reduce_scatter_shape(source, call, shape_p);
}

zb_status zb_derive_mpi(const zb_order_source *source, const zb_reduction_call *call,
                        zb_reduction *reduction_p)
{
    mpi_shape shape = SHAPE_LINEAR;
    ZB_TRY(find_shape(source, call, &shape));
    zb_reduction made;
    ZB_TRY(zb_reduction_create(call->world_size, call->dtype, 1, 1, &made));
    if (shape == SHAPE_LINEAR || shape == SHAPE_PIPELINE)
        zb_reduction_order_descending(&made, 0);
    else
        zb_reduction_order_ascending(&made, 0);
    zb_status status = write_tree(shape, call->world_size, zb_reduction_tree_at(&made, 0));
    if (status == ZB_OK) status = append_ranges(shape, call, &made);
    if (status != ZB_OK) {
        zb_reduction_destroy(&made);
        return status;
    }
    *reduction_p = made;
    return ZB_OK;
}
