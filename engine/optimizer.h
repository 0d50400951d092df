/* The optimizer over a rank's shard: moments, step count, and one kernel launch per step. */
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
    float *exp_avg;    /* Adam: first moment; SGD with momentum: its buffer; else NULL */
    float *exp_avg_sq; /* Adam only                                                   */
    size_t numel;
    int64_t step_count; /* steps applied */
} zb_optimizer;

/* How many arrays of state the optimizer keeps beside the weights: 0, 1 or 2. */
int zb_optimizer_state_count(const zb_optimizer_config *config);
zb_status zb_optimizer_create(const zb_optimizer_config *config, zb_device *device, size_t numel,
                              zb_optimizer *optimizer);
void zb_optimizer_destroy(zb_optimizer *optimizer, zb_device *device);
/* Every gradient is multiplied by grad_scale first. */
zb_status zb_optimizer_step(zb_optimizer *optimizer, zb_stream *stream, const zb_shard *shard,
                            float grad_scale, double lr);

#endif
