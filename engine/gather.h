/*
 * Stage 3's parameters: each rank's parts of all of them, and the whole ones that are gathered while a module
 * needs them.
 *
 * A part of parameter p has part_numel(p) = ceil(n / W) elements. The parts of all trainable parameters lie
 * end to end, those of the frozen ones in an array of their own; padding is always zero.
 */
#ifndef ZEROBIT_ENGINE_GATHER_H
#define ZEROBIT_ENGINE_GATHER_H

#include "engine/stage.h"

/* A module uses two parameters at most: its weight and its bias. */
enum { ZB_GATHERED_MAX = 2 };

typedef struct zb_gathered {
    int param; /* or ZB_NO_PARAM */
    void *data;
    zb_work work;
} zb_gathered;

typedef struct zb_gather {
    zb_engine *engine;
    void *trainable; /* [rank_numel] param_dtype, like the next */
    void *frozen;    /* [frozen_rank_numel] */
    void *whole;     /* [whole_numel] the parameters of the module that runs */
    size_t whole_numel;
    zb_gathered now[ZB_GATHERED_MAX];
} zb_gather;

/* Allocates, and puts this rank's parts of the initial weights in place. After a failure too, destroy. */
zb_status zb_gather_create(zb_engine *engine, zb_gather *gather);
/* Waits for what a failure left under way. Before anything that a collective may use is freed. */
void zb_gather_abandon(zb_gather *gather);
void zb_gather_destroy(zb_gather *gather);

zb_status zb_gather_before_forward(zb_gather *gather, int module);
zb_status zb_gather_before_backward(zb_gather *gather, int module);
/* Of what was gathered last, by a module or for inspection. */
zb_status zb_gather_release(zb_gather *gather);
/* The whole parameter; it must be gathered. */
const void *zb_gather_param(zb_gather *gather, int param);
/* Outside forward and backward, collective: readable until released. */
zb_status zb_gather_one(zb_gather *gather, int param, const void **full_p);
zb_held zb_gather_held(const zb_gather *gather, int param);

/* By formula: PARAM and GATHER, and the all_gathers of an optimizer step. */
void zb_gather_memory(const zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT]);
zb_traffic zb_gather_traffic(const zb_stage_facts *facts);

#endif
