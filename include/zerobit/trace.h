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
#include <zerobit/plan.h>
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

#ifdef __cplusplus
}
#endif
#endif
