/*
 * How what ranks sent became a reduced gradient: contributions of a run are put into the collectives of its
 * route, the gradients that came of it, of the same run or of another, are put beside them, and orders.h says
 * how the one became the other.
 */
#ifndef VERIFY_EXPLAIN_RUN_H
#define VERIFY_EXPLAIN_RUN_H

#include <zerobit/trace.h>

#include "verify/record_list.h"
#include "verify/trace_reader.h"

/* A run at one step, all of it borrowed: of a trace, or gathered. */
typedef struct zb_explained_run {
    const char *name;       /* for messages: a path, "the engine" */
    const zb_param *params; /* like what follows: read of the run that shows contributions only */
    int world_size;
    const zb_trace_plan *plan;
    const zb_route *route;      /* calls and pieces */
    const zb_record_list *step; /* sealed: all records of the step */
} zb_explained_run;

/** INT64_MAX when there are no records. */
int64_t zb_explained_step(const zb_explained_run *run);
/** The first contribution of the step; NULL: none is there. */
const zb_observation *zb_explained_contribution(const zb_explained_run *run);
/** The first collective that the element of a difference is in; the route's count when it is in none. */
size_t zb_explained_collective_of(const zb_explained_run *run, const zb_difference *difference);
/** Whether any reduced gradient is not the same in both. */
zb_status zb_explained_gradients_differ(const zb_explained_run *a, const zb_explained_run *b, int *differ_p);
/**
 * Collective `index` of the route of `from`, which shows contributions; `of` shows the gradients. *told is
 * zero. ZB_INVALID_ARGUMENT names what is not shown.
 */
zb_status zb_explain_collective(const zb_explained_run *from, const zb_explained_run *of,
                                const zb_orders *expected, size_t index, zb_trace_collective *told);

#endif
