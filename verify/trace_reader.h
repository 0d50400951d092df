/* Reading a trace, one step at a time. Nothing in the file is believed before it has been checked. */
#ifndef VERIFY_TRACE_READER_H
#define VERIFY_TRACE_READER_H

#include "verify/record_list.h"

#include <stdint.h>
#include <zerobit/model.h>
#include <zerobit/plan.h>
#include <zerobit/route.h>
#include <zerobit/status.h>

typedef struct zb_trace_reader zb_trace_reader;

/* What of the plan decides about how contributions become reduced gradients. */
typedef struct zb_trace_plan {
    int64_t accumulation_steps;
    zb_dtype local_dtype, bucket_dtype, comm_dtype, grad_dtype;
    zb_reduce_when reduce_when;
    zb_averaging averaging;
} zb_trace_plan;

typedef struct zb_trace_info {
    char model[ZB_NAME_BYTES];
    char plan_text[512];
    zb_param *params; /* name, shape, numel, requires_grad */
    int param_count;
    int stage; /* -1: the oracle */
    int world_size;
    zb_trace_plan plan;
    char *orders; /* as zb_orders_parse reads it */
    int has_route;
    zb_route route; /* calls and pieces; the reductions are empty */
} zb_trace_info;

/** ZB_IO when it cannot be read, ZB_CORRUPT (with the offset) when it is no whole trace. */
zb_status zb_trace_reader_open(const char *path, zb_trace_reader **reader_p);
void zb_trace_reader_destroy(zb_trace_reader *reader);
const zb_trace_info *zb_trace_reader_info(const zb_trace_reader *reader);

/** Refuses traces of different models: other parameters, names, shapes, or others frozen. */
zb_status zb_trace_check_models(const char *path_a, const zb_trace_info *a, const char *path_b,
                                const zb_trace_info *b);

/** All records of the next step, sorted; an empty list at the end, when the end record has been checked too.
 */
zb_status zb_trace_reader_next_step(zb_trace_reader *reader, const zb_record_list **step_p);

#endif
