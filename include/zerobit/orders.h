/*
 * The orders in which libraries add over ranks, by name: the record of a reduction (<zerobit/reduction.h>) is derived from what
 * a library was told or chose. And the way back: which known order gives a result that has been seen. docs/orders.md says
 * where each order comes from and how it has been checked.
 */
#ifndef ZEROBIT_ORDERS_H
#define ZEROBIT_ORDERS_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/plan.h>
#include <zerobit/reduction.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Open MPI's are those of 4.1. Where its code does something else for few elements, so does the order. */
#define ZB_ALGORITHM_MAP(X)                                                                                              \
    X(RANK, "rank")                             /* ascending, partial sums in fp32, rounded once: zerobit's own       */ \
    X(GLOO, "gloo")                             /* PyTorch's gloo back end on a CPU                                   */ \
    X(MPI_DEFAULT, "mpi-default")               /* what Open MPI chooses by size when it is not told                  */ \
    X(MPI_LINEAR, "mpi-linear")                 /* all_reduce 1; reduce 1                                             */ \
    X(MPI_RECURSIVE_DOUBLING, "mpi-recursive-doubling") /* all_reduce 3; reduce_scatter_block 2                       */ \
    X(MPI_RING, "mpi-ring")                     /* all_reduce 4; reduce_scatter 3                                     */ \
    X(MPI_SEGMENTED_RING, "mpi-segmented-ring") /* all_reduce 5                                                       */ \
    X(MPI_RABENSEIFNER, "mpi-rabenseifner")     /* all_reduce 6                                                       */ \
    X(MPI_RECURSIVE_HALVING, "mpi-recursive-halving") /* reduce_scatter 2; reduce_scatter_block 3                     */ \
    X(MPI_BUTTERFLY, "mpi-butterfly")           /* reduce_scatter 4; reduce_scatter_block 4                           */ \
    X(NCCL_RING, "nccl-ring")                                                                                            \
    X(NCCL_TREE, "nccl-tree")

typedef enum zb_algorithm {
#define ZB_ALGORITHM_ENUM(name, text) ZB_ALGORITHM_##name,
    ZB_ALGORITHM_MAP(ZB_ALGORITHM_ENUM)
#undef ZB_ALGORITHM_ENUM
    ZB_ALGORITHM_COUNT
} zb_algorithm;
ZB_API const char *zb_algorithm_name(zb_algorithm algorithm);

typedef enum zb_nccl_protocol { ZB_NCCL_SIMPLE, ZB_NCCL_LL, ZB_NCCL_LL128 } zb_nccl_protocol;
ZB_API const char *zb_nccl_protocol_name(zb_nccl_protocol protocol); /* "simple", "ll", "ll128" */

/** How the multiplication of an average meets the addition. The compiler's choice, so that another build may differ. */
typedef enum zb_nccl_fusion { ZB_NCCL_AS_RELEASED, ZB_NCCL_FUSED, ZB_NCCL_UNFUSED, ZB_NCCL_FUSED_LL128 } zb_nccl_fusion;

/** A rank's place in NCCL's tree: it adds its own contribution and those of its children, in this order. -1: none. */
typedef struct zb_nccl_node { int32_t child[3]; } zb_nccl_node;

/**
 * Who adds: the small record that a trace keeps. Zero is `rank`. What follows the algorithm is NCCL's; zero is its default there,
 * but version and protocol must be given (zb_orders_parse does).
 */
struct zb_order_source {
    zb_algorithm algorithm;
    int version;       /* NCCL: 100 * major + minor, 228..230 */
    zb_nccl_protocol protocol;
    int channels;      /* of the communicator                                                                        */
    int used_channels; /* of this collective; 0: as many as NCCL gives to its bytes                                  */
    int threads;       /* per channel, which decides about used_channels; 0: 512, LL128 640                          */
    size_t chunk_bytes; /* 0: that of the default buffers                                                            */
    zb_nccl_fusion fusion;
    /*
     * Rings and trees over world_size ranks. Channel k has the k-th, modulo their number. A ring begins at rank 0. No ring: the
     * order of ranks. The arrays are owned.
     */
    int world_size, ring_count, tree_count;
    int32_t *rings;      /* [ring_count][world_size] */
    zb_nccl_node *trees; /* [tree_count][world_size] */
};

/** Frees the arrays; fine on zeros and to repeat. */
ZB_API void zb_order_source_destroy(zb_order_source *source);

/**
 * One line of text, e.g. "mpi-ring" or "nccl-ring version=2.28 protocol=simple channels=2 ring=0,1,2,3 ring=0,2,1,3". Keys: version,
 * protocol, channels, used-channels, threads, chunk-bytes, fusion=fused|unfused|fused-ll128, ring=RANK,... and, of a nccl-tree,
 * tree=CHILD/CHILD/CHILD,... for ranks 0, 1, ... ZB_INVALID_ARGUMENT says what was found and expected; ZB_UNSUPPORTED names an
 * order that cannot be predicted ("nccl-nvls") and why. The caller owns *source_p (zb_order_source_destroy).
 */
ZB_API zb_status zb_order_source_parse(const char *text, zb_order_source *source_p);
/** The same line; parsing it gives an equal record. To be freed by zb_free; NULL when out of memory. */
ZB_API char *zb_order_source_text(const zb_order_source *source);
/** Whether both records say the same; NULL is `rank`. */
ZB_API int zb_order_source_equal(const zb_order_source *a, const zb_order_source *b);

/** Who adds in each kind of reduction: a library has an algorithm for each of them. */
struct zb_orders {
    zb_order_source of[ZB_COLLECTIVE_COUNT]; /* all_reduce, reduce_scatter, reduce_scatter_v and reduce are looked at */
};

/** Frees the records; fine on zeros and to repeat. */
ZB_API void zb_orders_destroy(zb_orders *orders);
/** The caller owns *to (zb_orders_destroy); from NULL leaves it as it is. */
ZB_API zb_status zb_orders_copy(const zb_orders *from, zb_orders *to);
/**
 * A source for all kinds, "mpi-ring", or one for each kind that is named and `rank` for the others, "all_reduce: mpi-rabenseifner;
 * reduce_scatter: mpi-butterfly". Fails as zb_order_source_parse. The caller owns *orders_p (zb_orders_destroy).
 */
ZB_API zb_status zb_orders_parse(const char *text, zb_orders *orders_p);
/** The same text, "rank" for NULL; parsing it gives equal records. To be freed by zb_free; NULL when out of memory. */
ZB_API char *zb_orders_text(const zb_orders *orders);
/** The same text; cut, with "...", where the room is too small for it. */
ZB_API void zb_orders_describe(const zb_orders *orders, char *text, size_t text_bytes);
/** Whether they add alike in every kind; NULL is `rank`. */
ZB_API int zb_orders_equal(const zb_orders *a, const zb_orders *b);
/** Who adds in that kind; NULL: rank order. */
ZB_API const zb_order_source *zb_orders_source(const zb_orders *orders, zb_collective_kind kind);

/**
 * The reduction that `source` makes of `call`. avg and premul_sum, where a library has none of its own (Open MPI, gloo): contributions
 * are multiplied by the factor and rounded before, sums are divided and rounded after. ZB_UNSUPPORTED: the library does not
 * offer it, or its order is not known; ZB_INVALID_ARGUMENT: rings of another world, a rank missing. The caller owns
 * *reduction_p (zb_reduction_destroy).
 */
ZB_API zb_status zb_reduction_derive(const zb_order_source *source, const zb_reduction_call *call, zb_reduction *reduction_p);

/* --- NCCL's log --- */

/** One collective, as rank 0 says of it with NCCL_DEBUG_SUBSYS=TUNING. */
typedef struct zb_nccl_collective {
    char function[24];  /* "AllReduce", ...                        */
    char algorithm[24]; /* "ring", "tree", "nvls", ...             */
    size_t bytes;       /* of the count that the call was given    */
    zb_nccl_protocol protocol;
    int channel_low, channel_high;
    int line;
} zb_nccl_collective;

typedef struct zb_nccl_log {
    zb_order_source source; /* version, channels, rings; trees where every rank's log is there */
    size_t collective_count;
    zb_nccl_collective *collectives; /* in the order of the log */
} zb_nccl_log;

/**
 * Reads what NCCL wrote with NCCL_DEBUG=INFO and NCCL_DEBUG_SUBSYS=INIT,GRAPH,TUNING about one communicator; all ranks' lines may be
 * mixed, and other programs' lines between them. ZB_INVALID_ARGUMENT names the line.
 */
ZB_API zb_status zb_nccl_log_read(const char *text, zb_nccl_log *log_p);
ZB_API void zb_nccl_log_destroy(zb_nccl_log *log);
/** The source of one collective's order. ZB_UNSUPPORTED: an algorithm or a group whose order cannot be told. */
ZB_API zb_status zb_nccl_log_source(const zb_nccl_log *log, size_t index, zb_order_source *source_p);

/* --- the way back --- */

/*
 * Another way of adding is an order: the sequence of the ranks, where partial sums are rounded, whether contributions or sums are
 * scaled, divided or multiplied by the reciprocal. Another number is a value: ranks left out or taken twice, a division that was
 * not made, was made twice or by something else, and single elements amid an order that they do not follow.
 */
typedef enum zb_verdict {
    ZB_VERDICT_NAMED, /* an order with a name gives the whole result                                             */
    ZB_VERDICT_ORDER, /* none does, but every element is the sum of its contributions in some order: see `parts` */
    ZB_VERDICT_VALUE  /* `element` is the first that no known order gives, or not the one of its neighbours      */
} zb_verdict;
ZB_API const char *zb_verdict_name(zb_verdict verdict); /* "named", "order", "value" */

/** Elements [first, first + numel) are this sum of ranks. */
typedef struct zb_explained_part {
    size_t first, numel;
    char sum[160];        /* "(1 + 2) + 0"                      */
    const char *rounding; /* "each addition rounded"; static    */
} zb_explained_part;

enum { ZB_EXPLAINED_PARTS = 16, ZB_EXPLANATION_BYTES = 4096 };
typedef struct zb_explanation {
    zb_verdict verdict;
    int as_expected;     /* NAMED: it is the order that was expected                                     */
    char source[512];    /* NAMED: as zb_order_source_text has it, cut. ORDER: the same trees, rounded otherwise; else "" */
    size_t part_count;   /* ORDER: of all parts; the first ZB_EXPLAINED_PARTS of them are kept           */
    zb_explained_part parts[ZB_EXPLAINED_PARTS];
    size_t unexpected;   /* the first element that the expected order does not give, 0 when it has none for such a call; the
                            number of elements: there is none, or nothing was expected */
    size_t element;      /* VALUE                                                                        */
    int within_rounding; /* VALUE: no cause, and no farther off than an order that is not known could make it */
    size_t cause_numel;  /* VALUE: from `element` on, so many elements are what `cause` says, within rounding; 0: unknown */
    char cause[320];     /* "the sum of ranks 0, 1, 3: rank 2 is missing" */
    char text[ZB_EXPLANATION_BYTES]; /* all of this in words, cut */
} zb_explanation;

/**
 * In which order was `result` added up? inputs[r] is the whole contribution of rank r, `result` all of the result (of a
 * reduce_scatter: the ranks' blocks, one after the other). The order `expected` is tried first, unless NULL, then all that have a
 * name, with NCCL's rings in the order of ranks; then these with other roundings; then single trees, part by part. Where
 * contributions leave more than one order possible (two ranks, whole numbers), the first that fits is named.
 */
ZB_API zb_status zb_reduction_explain(const zb_reduction_call *call, const zb_order_source *expected, const void *const *inputs,
                                      const void *result, zb_explanation *explanation_p);

/** What becomes of a sum: `after`, rounded to the type of the call, and then another type. */
typedef struct zb_finish {
    zb_factor after;
    zb_dtype dtype; /* of the result */
} zb_finish;

/** A result that is made of several reductions, as reduced gradients are: each is finished, and they are added up in finish->dtype. */
typedef struct zb_explain_options {
    const zb_reduction_call *call;
    const zb_order_source *expected; /* NULL: none in particular */
    const void *const *inputs;       /* [rounds][world_size] */
    const void *result;
    int rounds;                      /* 0: one */
    const zb_finish *finish;         /* NULL: the sum as it is */
} zb_explain_options;

/** The same for such a result; all rounds are taken to be added alike. ZB_UNSUPPORTED: other types than fp32, fp16 and bf16 with a
 * finish that changes anything, or with several rounds. */
ZB_API zb_status zb_reduction_explain_finished(const zb_explain_options *options, zb_explanation *explanation_p);

#ifdef __cplusplus
}
#endif
#endif
