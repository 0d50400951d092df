/*
 * A trace: everything a run showed (observe.h), in one file, complete enough to name the first difference
 * between two runs down to the element. docs/trace.md gives the layout.
 */
#ifndef ZEROBIT_TRACE_H
#define ZEROBIT_TRACE_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/model.h>
#include <zerobit/observe.h>
#include <zerobit/orders.h>
#include <zerobit/plan.h>
#include <zerobit/route.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_trace_header {
    const zb_model *model; /* names and sizes of the parameters */
    zb_plan plan;
    int stage;             /* -1: the oracle */
    const char *comm, *device, *order;
    int64_t steps;
    const zb_route *route; /* of the stage; NULL: not told. With it and contributions a trace can be explained */
} zb_trace_header;

typedef struct zb_trace_writer zb_trace_writer;
/** Writes to a temporary file beside `path`; only zb_trace_writer_finish puts it in place. */
ZB_API zb_status zb_trace_writer_create(const char *path, const zb_trace_header *header, zb_trace_writer **writer_p);
/**
 * Thread-safe. Within a step ranks may write in any order: each step is sorted, so the same run gives the same file. An
 * observation of a later step ends the present one. After a failure only zb_trace_writer_destroy is left.
 */
ZB_API zb_status zb_trace_write(zb_trace_writer *writer, const zb_observation *observation);
ZB_API zb_status zb_trace_writer_finish(zb_trace_writer *writer);
/** Without finish: nothing is left behind. */
ZB_API void zb_trace_writer_destroy(zb_trace_writer *writer);

typedef enum zb_missing {
    ZB_MISSING_NONE, /* both runs show the value; the bits differ */
    ZB_MISSING_A,
    ZB_MISSING_B,
    ZB_MISSING_BOTH
} zb_missing;

/** The first place where two runs differ. */
typedef struct zb_difference {
    int found;
    zb_missing missing; /* which run does not show what it should; then there are no bits */
    zb_quantity quantity;
    int64_t step, micro;
    int rank_a, rank_b; /* ZB_EVERY_RANK for the oracle */
    char tensor[ZB_NAME_BYTES]; /* "" when the quantity has no tensor */
    uint64_t element;           /* within the tensor or quantity */
    zb_dtype dtype;
    uint64_t bits_a, bits_b;
    char text[512]; /* the whole in one sentence */
} zb_difference;

/**
 * Compare two trace files. ZB_OK whether or not they differ (difference->found tells). Traces of different
 * worlds are compared in what they share: reduced gradients, norm, weights, moments, schedule.
 * BYTES_HELD, CALLS and BYTES_SENT are compared only between equal stages. Refuses traces of different models.
 */
ZB_API zb_status zb_trace_diff(const char *path_a, const char *path_b, zb_difference *difference);

enum { ZB_COLLECTIVE_TEXT_BYTES = ZB_EXPLANATION_BYTES + 256 };

/** What orders.h says of one collective in which gradients crossed ranks. */
typedef struct zb_trace_collective {
    int64_t step;
    size_t index; /* in the route */
    zb_collective_kind kind;
    size_t numel; /* of a rank's contribution */
    zb_explanation explanation;
    char place[ZB_NAME_BYTES + 32]; /* VALUE: its element in the tensor, "fc1.weight[3]"; "" in the padding */
    char text[ZB_COLLECTIVE_TEXT_BYTES]; /* "step 0, collective 2 (reduce_scatter_v, 1000 elements): order: as mpi-ring" */
} zb_trace_collective;

typedef struct zb_trace_explanation {
    int64_t step; /* -1: all gradients are the same */
    size_t count;
    zb_trace_collective *collectives; /* [count] */
} zb_trace_explanation;

/**
 * How what the ranks of one trace sent became the reduced gradients of another, or of the same: every collective of the route, at
 * `step`, or with -1 at the first step whose gradients differ. The order that the first trace names is the expected one.
 * ZB_INVALID_ARGUMENT says what a trace lacks: a route, contributions, a step. The caller owns *explanation_p.
 */
ZB_API zb_status zb_trace_explain(const char *contributions_path, const char *gradients_path, int64_t step,
                                  zb_trace_explanation *explanation_p);
/** Fine to repeat. */
ZB_API void zb_trace_explanation_destroy(zb_trace_explanation *explanation);

/**
 * The collective of a difference that zb_trace_diff has found in a reduced gradient: how B's came about, by its own contributions
 * and route, or A's where it holds none, and if that is as A's order has it, how A's did. "" when it is another difference, the
 * worlds differ, or neither trace holds contributions and a route.
 */
ZB_API zb_status zb_trace_explain_difference(const char *path_a, const char *path_b, const zb_difference *difference, char *text,
                                             size_t text_bytes);

#ifdef __cplusplus
}
#endif
#endif
