/*
 * A reduction over ranks as data: which contributions are added to which, in which nesting, where the results are rounded, and
 * which elements of the buffer that holds for. Whoever executes the same record arrives at the same bits. How libraries add is
 * written down in such records by <zerobit/orders.h>.
 */
#ifndef ZEROBIT_REDUCTION_H
#define ZEROBIT_REDUCTION_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/collective.h>
#include <zerobit/export.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Who adds; <zerobit/orders.h> has what it holds. Where a pointer to one is NULL: zerobit itself, in rank order. */
struct zb_stream;

typedef struct zb_order_source zb_order_source;

#define ZB_REDOP_MAP(X) X(SUM, "sum") X(AVG, "avg") X(MIN, "min") X(MAX, "max") X(PREMUL_SUM, "premul_sum")

typedef enum zb_redop {
#define ZB_REDOP_ENUM(name, text) ZB_##name,
    ZB_REDOP_MAP(ZB_REDOP_ENUM)
#undef ZB_REDOP_ENUM
} zb_redop;

/** "sum", ...; "?" for a value outside the enum. */
ZB_API const char *zb_redop_name(zb_redop op);
/** Inverse of zb_redop_name. Returns 0 when unknown; *op is then unchanged. */
ZB_API int zb_redop_parse(const char *text, zb_redop *op);

/**
 * What of a collective decides about its order. Kinds: all_reduce, reduce_scatter, reduce_scatter_v, reduce; numel and counts as in
 * <zerobit/comm.h>. Operations: sum, avg and premul_sum; minimum and maximum have no order.
 */
typedef struct zb_reduction_call {
    zb_collective_kind kind;
    int world_size;
    size_t numel;
    const size_t *counts;
    zb_dtype dtype;
    zb_redop op;
    double factor; /* PREMUL_SUM */
    int root;      /* reduce     */
} zb_reduction_call;

/*
 * A tree of additions over n positions, in postfix notation: 2 n - 1 numbers, each a position, whose contribution is taken, or
 * ZB_TREE_ADD, which adds the two sums that were found last. Every position occurs once.
 *
 *     ((x0 + x1) + x2) + x3      0 1 + 2 + 3 +       a chain
 *     (x0 + x1) + (x2 + x3)      0 1 + 2 3 + +
 *
 * Addition commutes, so that only the nesting shows in the bits. At most ZB_TREE_DEPTH sums wait at any time; whoever writes a
 * tree puts the branch first that needs more of them, and then log2(n) + 1 are enough.
 */
enum { ZB_TREE_ADD = -1, ZB_TREE_DEPTH = 20 };

/** What happens to a contribution on its way into the sum. */
typedef enum zb_scaling {
    ZB_SCALING_NONE,
    ZB_SCALING_MULTIPLY,   /* contribution * factor, rounded on its own                                                      */
    ZB_SCALING_DIVIDE,     /* contribution / factor, rounded on its own                                                      */
    ZB_SCALING_FUSED,      /* sum + contribution * factor, rounded once, where a position is followed by ZB_TREE_ADD; other
                              contributions as MULTIPLY                                                                      */
    ZB_SCALING_FUSED_LL128 /* FUSED or MULTIPLY, depending on where an FP32 element lies in its range; see below             */
} zb_scaling;

/*
 * LL128: an element lies `offset` bytes behind the first one of its range. pack = offset / 16 mod 60. It is fused in the lower
 * half of its pack (offset mod 16 < 8) and where pack is 7, 15, 23 or 31. NCCL: src/device/prims_ll128.h, where a warp moves 120
 * packs at a time and every eighth thread's upper half makes room for a flag.
 */

/**
 * FP16 and BF16 are computed in fp32, FP64 and integers in themselves; integers wrap around. "Rounded" means: to the accumulator,
 * which is the element type, or fp32 when `wide`. `factor` and `divisor` are rounded to the type that is computed in.
 */
typedef struct zb_rounding {
    int wide; /* partial sums stay in fp32 and are rounded to the element type once, at the end */
    zb_scaling scaling;
    double factor;
    double divisor;    /* the sum is divided by it and rounded; 0: it is not */
    int canonical_nan; /* a NaN that comes out of an addition has NVIDIA's bits: all ones but for the sign. FP32, FP16, BF16 */
} zb_rounding;

/** Elements [first, first + numel): position i of the tree is rank order[(start + i) mod n]. */
typedef struct zb_reduction_range {
    size_t first, numel;
    int tree, order, start;
} zb_reduction_range;

typedef struct zb_reduction {
    int world_size;
    zb_dtype dtype;
    size_t numel; /* of a rank's contribution: reduce_scatter has world_size times what a rank keeps */
    zb_rounding rounding;
    int tree_count, order_count;
    size_t range_count;
    int32_t *trees;             /* [tree_count][2 world_size - 1] */
    int32_t *orders;            /* [order_count][world_size]: position -> rank */
    zb_reduction_range *ranges; /* [range_count], ascending, without gaps, over all of numel */
} zb_reduction;

/** Frees what the record owns; fine on zeros and to repeat. */
ZB_API void zb_reduction_destroy(zb_reduction *reduction);
/** ZB_INVALID_ARGUMENT names what is wrong with a record that somebody else has written. */
ZB_API zb_status zb_reduction_check(const zb_reduction *reduction);
/** The range that holds `element`, which must exist. */
ZB_API const zb_reduction_range *zb_reduction_range_of(const zb_reduction *reduction, size_t element);
ZB_API const int32_t *zb_reduction_tree(const zb_reduction *reduction, const zb_reduction_range *range);
/** The rank at a position of a range's tree. */
ZB_API int zb_reduction_rank(const zb_reduction *reduction, const zb_reduction_range *range, int position);
/** The sum of one range in ranks, e.g. "((1 + 2) + 3) + 0"; cut, with "...", where the text is too short. */
ZB_API void zb_reduction_describe(const zb_reduction *reduction, const zb_reduction_range *range, char *text, size_t text_bytes);

/**
 * Elements [first, first + numel) of the result. inputs[r] is the whole contribution of rank r; `out` receives element `first` at
 * its beginning and may be that part of an input. On the caller's thread, allocating nothing. The record must hold up to
 * zb_reduction_check.
 */
ZB_API zb_status zb_reduction_run(const zb_reduction *reduction, const void *const *inputs, size_t first, size_t numel, void *out);
/** The same on a device: `inputs` is an array of the host, which may be gone on return; what it points to and `out` are of the device. */
ZB_API zb_status zb_reduction_launch(struct zb_stream *stream, const zb_reduction *reduction, const void *const *inputs, size_t first,
                                     size_t numel, void *out);

#ifdef __cplusplus
}
#endif
#endif
