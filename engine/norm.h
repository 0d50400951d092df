/*
 * Global figures of the averaged gradients: their norm, by the plan's method, and whether one of them is no
 * number. What every rank must agree on crosses ranks here.
 */
#ifndef ZEROBIT_ENGINE_NORM_H
#define ZEROBIT_ENGINE_NORM_H

#include "engine/stage.h"

/* ZB_NORM_EXACT: the accumulator of an exact sum. Otherwise the norm of each piece of the shard, then one
 * number that crosses ranks. */
typedef struct zb_norm {
    void *words;     /* on the device, [word_count] 8 bytes each */
    double *host;    /* [word_count] */
    double *squares; /* [word_count] of some of them */
    void *of_tensor; /* [norm_tensors.count] PARTITION_FP32, PYTORCH: fp32; PARTITION_FP64: fp64 */
    size_t word_count;
} zb_norm;

/* A zeroed norm may be destroyed. */
zb_status zb_norm_create(zb_engine *engine, zb_norm *norm);
void zb_norm_destroy(zb_engine *engine, zb_norm *norm);

/* Of the gradients as they are, still multiplied by the loss scale. The same on every rank. */
zb_status zb_norm_measure(zb_engine *engine, double *norm);
/* 1 when any rank's gradients hold an infinity or a NaN. */
zb_status zb_norm_find_overflow(zb_engine *engine, int *overflow);
/* True when a step asks that before the norm; otherwise the exact norm tells. */
int zb_norm_flags_overflow(const zb_plan *plan);
/* Whether a step with, or without, an overflow takes the norm. */
int zb_norm_is_measured(const zb_plan *plan, int overflow);

/* By formula. */
uint64_t zb_norm_bytes(const zb_stage_facts *facts);
void zb_norm_traffic(const zb_stage_facts *facts, zb_traffic *all_reduce);

#endif
