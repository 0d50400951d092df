/*
 * The training engine: what deepspeed.initialize() sets up, on one rank. Other ranks exist for it only
 * through the communicator, memory and kernels only through the device.
 */
#ifndef ZEROBIT_ENGINE_H
#define ZEROBIT_ENGINE_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/config.h>
#include <zerobit/data.h>
#include <zerobit/device.h>
#include <zerobit/model.h>
#include <zerobit/observe.h>
#include <zerobit/plan.h>
#include <zerobit/route.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_engine zb_engine;

typedef struct zb_engine_options {
    const zb_config *config;   /* these six are borrowed and must outlive the engine */
    const zb_model *model;
    const zb_weights *weights; /* read during zb_initialize only. NULL: made from init_seed */
    const zb_dataset *dataset; /* NULL: no loader */
    zb_device *device;
    zb_comm *comm;
    int stage;                 /* -1: the config's */
    int dtype;                 /* a zb_dtype, or -1: the config's */
    uint64_t init_seed;
    uint64_t sampler_seed;     /* DeepSpeed: 0 */
} zb_engine_options;

/** Set up; collective. On success the caller owns *engine_p. Everything a step needs is allocated here. */
ZB_API zb_status zb_initialize(const zb_engine_options *options, zb_engine **engine_p);
ZB_API void zb_engine_destroy(zb_engine *engine);

/** The handles that deepspeed.initialize() returns beside the engine; they belong to it. */
ZB_API zb_loader *zb_engine_loader(zb_engine *engine);               /* NULL without a data set */
ZB_API const zb_schedules *zb_engine_lr_scheduler(const zb_engine *engine);
ZB_API const zb_optimizer_config *zb_engine_optimizer(const zb_engine *engine); /* by parameter group */
ZB_API const zb_plan *zb_engine_plan(const zb_engine *engine);
ZB_API int zb_engine_stage(const zb_engine *engine);

/*
 * A refused argument changes nothing. A failure in the middle of one of these breaks the step off; from then on
 * the engine refuses everything but zb_engine_destroy, which waits for collectives still under way.
 */

/** The rank's own mean loss over the micro-batch. batch->rows at most the micro-batch size. */
ZB_API zb_status zb_engine_forward(zb_engine *engine, const zb_batch *batch, float *loss);
/** Of the last forward. Gradients are divided by the accumulation steps at the engine's output. */
ZB_API zb_status zb_engine_backward(zb_engine *engine);

typedef enum zb_external_kind {
    ZB_EXTERNAL_INPUT,   /* x of the loss sum(p.float() * x): the gradient is seed * x, rounded to the model's type; seed is the
                            loss's own gradient as zb_engine_backward starts from it, divided by the accumulation steps, in fp32 */
    ZB_EXTERNAL_GRADIENT /* the gradient itself, rounded to the model's type: loss scale and accumulation steps are in it */
} zb_external_kind;
/**
 * Forward and backward in one, with the rank's local gradients from outside: values[param] has the parameter's numel, in host
 * memory; frozen parameters are not looked at. Gradients become ready as backward would make them ready, those of a list of
 * parameters (ZB_LOSS_ELSEWHERE) from the last to the first. zb_engine_step follows.
 */
ZB_API zb_status zb_engine_external_micro_batch(zb_engine *engine, zb_external_kind kind, const float *const *values);
/** At the accumulation boundary: reduce, norm, clip, optimizer, publish, scheduler. Otherwise only counts. */
ZB_API zb_status zb_engine_step(zb_engine *engine);
ZB_API int zb_engine_is_boundary(const zb_engine *engine); /* of the micro-batch under way */

/** loader -> forward -> backward -> step, accumulation_steps times; shows SAMPLES and LOSS on the way when observer is not NULL. */
ZB_API zb_status zb_engine_train_step(zb_engine *engine, const zb_observer *observer);

typedef struct zb_counters { int64_t micro_steps, global_steps, global_samples, skipped_steps; } zb_counters;
ZB_API zb_counters zb_engine_counters(const zb_engine *engine);
ZB_API double zb_engine_loss_scale(const zb_engine *engine); /* that the next micro-batch is made with */
/**
 * Global gradient norm of the last boundary step, before clipping. A plan with another norm than the exact one takes none of a
 * step that is skipped, and keeps that of the step before (0 in the first).
 */
ZB_API double zb_engine_global_grad_norm(const zb_engine *engine);

/**
 * Show what this rank holds after its last optimizer step: every quantity of observe.h but SAMPLES and LOSS;
 * tensors as the ranges that are here, under this rank's number. Local, no communication. Step -1 before training.
 * GRAD is what the last reduction left here; a rank shows only what the stage says it holds.
 */
ZB_API zb_status zb_engine_observe(zb_engine *engine, const zb_observer *observer);

/**
 * From now on show CONTRIBUTION: what this rank sends of each gradient, as it is about to be sent, in the step that is under way then.
 * The observer is copied; NULL: no longer. Each is a copy from the device that everything else waits for.
 */
ZB_API void zb_engine_observe_contributions(zb_engine *engine, const zb_observer *observer);

/**
 * Collective: the model's whole weights, as forward reads them, widened to fp32, on every rank, in host memory. out[param] has
 * the parameter's numel.
 */
ZB_API zb_status zb_engine_gather_weights(zb_engine *engine, float *const *out);

/* --- what a stage holds and sends, by formula --- */

typedef struct zb_piece { int param; size_t param_offset, numel, flat_offset; } zb_piece;
/** What one rank owns of the flat parameter space. Owns pieces. */
typedef struct zb_partition {
    size_t numel;        /* trainable elements over all ranks, without padding */
    size_t padded_numel;
    size_t rank_numel;   /* elements of this rank's share, padding included */
    size_t padding;      /* of this rank */
    zb_piece *pieces;
    size_t piece_count;
} zb_partition;
typedef struct zb_partition_options {
    const zb_model *model;
    int stage, world_size, rank;
    int round_robin;     /* zero_optimization.round_robin_gradients */
    const int *group_of; /* [param_count] the parameter group of each, from 0; NULL: all in one */
} zb_partition_options;
ZB_API zb_status zb_partition_create(const zb_partition_options *options, zb_partition *partition);
ZB_API void zb_partition_destroy(zb_partition *partition);

/** Bytes per rank by category, as the formula of the stage says; equal to the device's ledger after zb_initialize. */
ZB_API zb_status zb_memory_formula(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                                   uint64_t bytes[ZB_MEM_COUNT]);
/** Model-state bytes (parameters, gradients, optimizer states) for a parameter count alone. */
ZB_API void zb_memory_formula_numel(uint64_t param_numel, const zb_plan *plan, int stage, uint64_t bytes[ZB_MEM_COUNT]);
/** What came before a step: at stage 3 some parameters are still whole then. */
typedef struct zb_step_past {
    int64_t steps;        /* optimizer steps before this one, skipped ones too */
    int first_skipped;    /* the first of them was */
    int previous_skipped; /* the last of them was  */
} zb_step_past;
/** Calls and payload bytes per rank in an optimizer step, by collective, as the stage's formula says (all ranks alike). A step that
 * is skipped for an overflow publishes nothing. */
ZB_API zb_status zb_traffic_formula(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                                    const zb_step_past *past, int skipped, zb_traffic traffic[ZB_COLLECTIVE_COUNT]);
/**
 * The collectives that a stage reduces gradients in, each added in the plan's order. ZB_UNSUPPORTED names a collective that the
 * order's library does not offer. The caller owns *route_p (zb_route_destroy).
 */
ZB_API zb_status zb_route_create(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage, zb_route *route_p);

#ifdef __cplusplus
}
#endif
#endif
