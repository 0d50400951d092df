/*
 * Which parameters of stage 3 are gathered, gathered ahead, kept and released, and when: all of it decided
 * once, from the order in which a micro-batch needs them. Pure: no device, no rank. Source:
 * deepspeed/runtime/zero/partitioned_param_coordinator.py.
 *
 * A micro-batch is a pass over the trace. What it does depends on which parameters are still whole when it
 * begins, and so on what came before; there are only a few such passes, and each knows which one follows:
 *
 *     first -> [another micro-batch] -> ... -> step: all released
 *                 applied: the persistent ones are gathered again   -> next[ZB_AFTER_APPLIED]
 *                 skipped: nothing is                               -> next[ZB_AFTER_SKIPPED]
 *
 * At the event of a pass in which a unit enters: `fetch` is started, `land` is waited for, `prefetch` is
 * started, in this order; where it leaves, `release` is dropped. Behind the last event is one more, the end
 * of backward.
 *
 * Every parameter has one place in the arena for good, so that a step allocates nothing; two share memory
 * only where no pass needs both at once. An all_gather of several parameters leaves them in rank order:
 * it has a buffer of its own until it has landed and they are copied to their places.
 */
#ifndef ZEROBIT_ENGINE_GATHER_PLAN_H
#define ZEROBIT_ENGINE_GATHER_PLAN_H

#include <stdint.h>
#include <zerobit/status.h>

#include "engine/gather_trace.h"
#include "engine/layout.h"

typedef struct zb_gather_knobs {
    uint64_t prefetch_numel;          /* to gather ahead at a time; 0: nothing                  */
    uint64_t max_live_numel;          /* nothing is gathered ahead above this                   */
    uint64_t max_reuse_numel;         /* what is needed again within this distance is kept      */
    uint64_t param_persistence_numel; /* a parameter of at most this size is never released...  */
    uint64_t model_persistence_numel; /* ...up to this many elements together                   */
    int sequential;                   /* never two parameters in one all_gather                 */
    /* DeepSpeed: the first pass only records the order, and ranks compare what they have recorded; in the
     * second one, what to release where is decided once and for all. */
    int record_first;
    int silent_alone; /* a world of one sends nothing to itself */
} zb_gather_knobs;

typedef struct zb_gather_plan zb_gather_plan;

/* Entries [first, first + count) of one of the plan's arrays. */
typedef struct zb_span {
    int first, count;
} zb_span;

/* One all_gather. */
typedef struct zb_gather_call {
    zb_span params;    /* of zb_gather_plan.params, by ascending index                      */
    size_t part_numel; /* that a rank sends: the parts of all its parameters                */
    size_t buffer;     /* in the arena, W * part_numel; of a single parameter: its own place */
} zb_gather_call;

typedef struct zb_gather_actions {
    zb_span fetch, prefetch; /* of zb_gather_plan.calls                      */
    zb_span land;            /* of zb_gather_plan.landings: indices of calls */
    zb_span release;         /* of zb_gather_plan.params                     */
} zb_gather_actions;

typedef enum zb_gather_after { ZB_AFTER_MICRO_BATCH, ZB_AFTER_APPLIED, ZB_AFTER_SKIPPED } zb_gather_after;
enum { ZB_AFTER_COUNT = 3, ZB_NO_PASS = -1 };

/* What ranks compare before a pass: the order that each has recorded. */
typedef enum zb_gather_check {
    ZB_CHECK_NOTHING,
    ZB_CHECK_EMPTY, /* none yet: one list of no entries                                  */
    ZB_CHECK_TRACE  /* units as they entered; the parameters of each; the entry of each */
} zb_gather_check;

typedef struct zb_gather_pass {
    zb_gather_check check;
    zb_span start, end;       /* of zb_gather_plan.params: what is whole then, ascending */
    zb_span calls;            /* all of this pass                                        */
    int first_actions;        /* of event 0 */
    int next[ZB_AFTER_COUNT]; /* or ZB_NO_PASS, where it cannot come to that */
} zb_gather_pass;

struct zb_gather_plan {
    const zb_gather_trace *trace;
    int world_size;
    int is_local; /* a world of one that need not send to itself */

    zb_gather_pass *passes; /* [0]: where training begins */
    int pass_count;
    zb_gather_actions *actions; /* event_count + 1 of each pass */
    zb_gather_call *calls;
    int call_count;
    int *landings;
    int *params;
    zb_span publish; /* of calls: after an applied step, one for each persistent parameter */

    /* The arena, in elements. */
    size_t *place;        /* [param_count] */
    size_t inspect_place; /* for any parameter that is not whole, between passes and between forward and
                             backward */
    size_t arena_numel;
    size_t peak_numel; /* in use at the busiest moment: no arena can do with less */

    /* ZB_CHECK_TRACE */
    int64_t *entered;   /* [entry_count] units */
    int64_t *needed;    /* [needed_count] parameters, entry by entry */
    int64_t *needed_at; /* [needed_count] entries */
    int entry_count, needed_count;
};

/* `layout` is stage 3's. may_skip: an overflow skips steps. Borrows the trace. */
zb_status zb_gather_plan_create(const zb_gather_trace *trace, const zb_layout *layout,
                                const zb_gather_knobs *knobs, int64_t micro_batches, int may_skip,
                                zb_gather_plan *plan);
void zb_gather_plan_destroy(zb_gather_plan *plan);

/* Of one event; event_count: the end of backward. */
const zb_gather_actions *zb_gather_plan_at(const zb_gather_plan *plan, int pass, int event);
/* The event before which forward is over and backward has not begun. */
int zb_gather_plan_turn(const zb_gather_trace *trace);

/* The calls of an all_gather with a buffer of their own: of several parameters. */
static inline int zb_gather_call_is_coalesced(const zb_gather_plan *plan, const zb_gather_call *call)
{
    return call->params.count > 1 && !plan->is_local;
}

/* Give every parameter its place and every coalesced call its buffer (gather_arena.c). */
zb_status zb_gather_plan_place(zb_gather_plan *plan, const zb_layout *layout);

#endif
