/*
 * In which order a micro-batch needs its parameters, as data: what the gather plan is made from. Pure; made
 * from a model, or by hand for a run whose forward and backward are elsewhere.
 *
 * A unit is what DeepSpeed calls a sub-module: it enters before its forward and leaves after it, likewise
 * backward. Units may nest; the one around all others is the root. Source:
 * deepspeed/runtime/zero/parameter_offload.py.
 */
#ifndef ZEROBIT_ENGINE_GATHER_TRACE_H
#define ZEROBIT_ENGINE_GATHER_TRACE_H

#include <stdint.h>
#include <zerobit/status.h>

#include "engine/graph.h"

typedef enum zb_hook {
    ZB_HOOK_ENTER_FORWARD,
    ZB_HOOK_LEAVE_FORWARD,
    ZB_HOOK_ENTER_BACKWARD,
    ZB_HOOK_LEAVE_BACKWARD
} zb_hook;

/* Parameters by ascending index, without repetition, none without elements. */
typedef struct zb_gather_list {
    const int *params;
    int count;
} zb_gather_list;

typedef struct zb_gather_unit {
    zb_gather_list forward, backward; /* that it needs in either direction */
} zb_gather_unit;

typedef struct zb_gather_event {
    int unit;
    zb_hook hook;
} zb_gather_event;

enum { ZB_GATHER_ROOT = 0, ZB_GATHER_NO_UNIT = -1 };

typedef struct zb_gather_trace {
    zb_gather_unit *units;
    int unit_count;
    zb_gather_event
        *events; /* in the order in which they happen; a unit that never leaves has no such event */
    int event_count;
    int *unit_of; /* [module_count] or ZB_GATHER_NO_UNIT, for a module that uses no parameter */
    int *params;  /* what the lists point into */
} zb_gather_trace;

typedef struct zb_gather_rules {
    /* DeepSpeed: backward takes all of a module's parameters, not only those that it reads; a module whose
     * inputs need no gradient never leaves its backward; the root takes the parameters that no module uses.
     */
    int as_deepspeed;
    /* The whole model is one unit when it has at most so many elements per module (0: never). */
    uint64_t granularity_numel;
} zb_gather_rules;

/* The units of a model: the root, and every module that uses a parameter. */
zb_status zb_gather_trace_create(const zb_graph *graph, const zb_gather_rules *rules, zb_gather_trace *trace);
void zb_gather_trace_destroy(zb_gather_trace *trace);

static inline const zb_gather_list *zb_gather_event_list(const zb_gather_trace *trace,
                                                         const zb_gather_event *event)
{
    const zb_gather_unit *unit = &trace->units[event->unit];
    return event->hook == ZB_HOOK_ENTER_FORWARD || event->hook == ZB_HOOK_LEAVE_FORWARD ? &unit->forward
                                                                                        : &unit->backward;
}

#endif
