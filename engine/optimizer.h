/*
 * The optimizer over a rank's shard: fp32 master weights, moments, step count, and one kernel launch per
 * step. In fp32 the weights that the model computes with are the masters; in 16 bit the optimizer keeps a
 * copy of its own, made from the rounded weights, and every step rounds it back.
 */
#ifndef ZEROBIT_ENGINE_OPTIMIZER_H
#define ZEROBIT_ENGINE_OPTIMIZER_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/device.h>
#include <zerobit/plan.h>
#include <zerobit/status.h>

#include "engine/stage.h"

typedef struct zb_optimizer {
    zb_optimizer_config config;
    zb_dtype param_dtype, grad_dtype;
    float *master; /* in 16 bit: the shard's own weights in fp32; else NULL         */
    int owns_master;
    float *exp_avg;    /* Adam: first moment; SGD with momentum: its buffer; else NULL */
    float *exp_avg_sq; /* Adam only                                                   */
    size_t numel;
    int64_t step_count; /* steps applied */
} zb_optimizer;

/* Bytes of OPTIMIZER for a shard: moments, and in 16 bit the masters. */
uint64_t zb_optimizer_bytes(const zb_plan *plan, uint64_t numel);
/* `shard` holds the initial weights. */
zb_status zb_optimizer_create(const zb_plan *plan, zb_stream *stream, const zb_shard *shard,
                              zb_optimizer *optimizer);
void zb_optimizer_destroy(zb_optimizer *optimizer, zb_device *device);
/* The fp32 weights that belong to `param`, which lies in the shard at that offset. */
const float *zb_optimizer_master(const zb_optimizer *optimizer, const void *param, size_t shard_offset);
/* Every gradient is multiplied by grad_scale first. Writes the shard's weights. */
zb_status zb_optimizer_step(zb_optimizer *optimizer, zb_stream *stream, const zb_shard *shard,
                            float grad_scale, double lr);

#endif
