/*
 * Stage 3's parameters: each rank's parts of all of them, and the whole ones that are gathered while
 * something needs them, as the plan (gather_plan.h) says.
 *
 * A part of parameter p has part_numel(p) = ceil(n / W) elements. The parts of all trainable parameters lie
 * end to end, those of the frozen ones in an array of their own; padding is always zero.
 *
 * One optimizer step:  for each micro-batch: begin_forward, enter and leave every module, end_forward,
 *                      begin_backward, enter and leave every module, end_backward;
 *                      then drop_all, and publish unless the step is skipped.
 */
#ifndef ZEROBIT_ENGINE_GATHER_H
#define ZEROBIT_ENGINE_GATHER_H

#include "engine/gather_plan.h"
#include "engine/gather_trace.h"
#include "engine/stage.h"

typedef struct zb_gather {
    zb_engine *engine;
    void *trainable; /* [rank_numel] param_dtype, like the next */
    void *frozen;    /* [frozen_rank_numel] */

    zb_gather_trace trace;
    zb_gather_plan plan;
    void *arena;             /* [plan.arena_numel] param_dtype */
    unsigned char *is_whole; /* [param_count] */
    zb_work *works;          /* [plan.call_count] */
    int64_t *compared;       /* what rank 0 has recorded */
    int pass;                /* under way, or the last one */
    int event;               /* the next one of it */
    int is_under_way;        /* between begin_forward and end_backward */
    zb_gather_after after;   /* what has followed it since */
    size_t inspected_numel;  /* in use for inspection */
} zb_gather;

/* Allocates, and puts this rank's parts of the initial weights in place. After a failure too, destroy. */
zb_status zb_gather_create(zb_engine *engine, zb_gather *gather);
/* Waits for what a failure left under way. Before anything that a collective may use is freed. */
void zb_gather_abandon(zb_gather *gather);
void zb_gather_destroy(zb_gather *gather);

zb_status zb_gather_begin_forward(zb_gather *gather);
zb_status zb_gather_end_forward(zb_gather *gather);
zb_status zb_gather_begin_backward(zb_gather *gather);
zb_status zb_gather_end_backward(zb_gather *gather);
zb_status zb_gather_module(zb_gather *gather, int module, zb_hook hook);
/* Every parameter in parts again: the weights are about to change. */
zb_status zb_gather_drop_all(zb_gather *gather);
/* They have changed: those that persist whole again. */
zb_status zb_gather_publish(zb_gather *gather);

/* The whole parameter; it must be gathered. */
const void *zb_gather_param(zb_gather *gather, int param);
/* For inspection: outside forward and backward, collective. Readable until released. */
zb_status zb_gather_one(zb_gather *gather, int param, const void **full_p);
zb_status zb_gather_release(zb_gather *gather);
zb_held zb_gather_held(const zb_gather *gather, int param);

/* The plan that a config means; the caller owns both. After a failure there is nothing to destroy. */
zb_status zb_gather_derive(const zb_config *config, const zb_plan *plan, const zb_graph *graph,
                           const zb_layout *layout, zb_gather_trace *trace, zb_gather_plan *gather_plan);
/* By formula: PARAM and GATHER, and what an optimizer step sends. */
void zb_gather_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT]);
void zb_gather_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT]);

#endif
