/*
 * The optimizer over a rank's shard: fp32 master weights, moments, step count. In fp32 the weights that the
 * model computes with are the masters; in 16 bit the optimizer keeps a copy of its own, made from the rounded
 * weights, and every step rounds it back.
 *
 * Most formulas treat every element alike, and step segments that touch in one. But LAMB takes norms of a
 * segment, over all ranks where these hold slices of one tensor; and DeepSpeed's Adam for CPUs treats the
 * last few elements of one apart.
 */
#ifndef ZEROBIT_ENGINE_OPTIMIZER_H
#define ZEROBIT_ENGINE_OPTIMIZER_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/device.h>
#include <zerobit/plan.h>
#include <zerobit/status.h>

#include "engine/stage.h"

/* Adds `count` numbers on the device over the ranks that hold slices of the same tensors, in stream order.
 * sum is NULL where every tensor is whole. */
typedef struct zb_optimizer_exchange {
    zb_status (*sum)(void *user, int64_t *words, size_t count);
    void *user;
} zb_optimizer_exchange;

/* beta^step as DeepSpeedCPUAdam keeps it: in fp32, multiplied up from step to step. */
typedef struct zb_beta_powers {
    int64_t step;
    float beta1, beta2;
    float power1, power2;
} zb_beta_powers;

typedef struct zb_optimizer {
    zb_optimizer_kind kind;
    zb_dtype param_dtype, grad_dtype;
    float *master; /* in 16 bit: the shard's own weights in fp32; else NULL */
    int owns_master;
    float *exp_avg;    /* first moment, SGD: momentum buffer; NULL when there is none     */
    float *exp_avg_sq; /* second moment, Adagrad: sum of squares; NULL when there is none */
    size_t numel;
    int64_t step_count; /* steps applied */
    zb_beta_powers powers;
    /* LAMB: per segment the squares of the weights and those of the update, on the device and on the host. */
    int64_t *accumulators, *sums;
    size_t word_count; /* of either */
    zb_optimizer_exchange exchange;
} zb_optimizer;

/* Bytes of OPTIMIZER for a shard: moments, and in 16 bit the masters. */
uint64_t zb_optimizer_bytes(const zb_plan *plan, uint64_t numel);
/* Bytes of WORKSPACE; what an exchange moves is as much. */
uint64_t zb_optimizer_workspace_bytes(const zb_plan *plan, uint64_t segment_count);
/* True when a step takes norms of every tensor. */
int zb_optimizer_takes_norms(const zb_plan *plan);
/* True when those are norms of whole parameters, of which ranks may hold slices; other tensors are a rank's
 * own. */
int zb_optimizer_adds_norms(const zb_plan *plan);

/* `shard` holds the initial weights. */
zb_status zb_optimizer_create(const zb_plan *plan, zb_stream *stream, const zb_shard *shard,
                              zb_optimizer_exchange exchange, zb_optimizer *optimizer);
void zb_optimizer_destroy(zb_optimizer *optimizer, zb_device *device);
/* The fp32 weights that belong to `param`, which lies in the shard at that offset. */
const float *zb_optimizer_master(const zb_optimizer *optimizer, const void *param, size_t shard_offset);
/* `now` holds the hyper-parameters of this step, by group. Every gradient is multiplied by grad_scale first.
 * Writes the shard's weights. */
zb_status zb_optimizer_step(zb_optimizer *optimizer, zb_stream *stream, const zb_shard *shard,
                            float grad_scale, const zb_optimizer_config *now);

#endif
