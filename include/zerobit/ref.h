/*
 * The oracle: a whole training run in one process, in plain loops, for any plan. It knows no partition,
 * no collective, no kernel; it computes what W ranks together must arrive at.
 */
#ifndef ZEROBIT_REF_H
#define ZEROBIT_REF_H

#include <zerobit/data.h>
#include <zerobit/model.h>
#include <zerobit/observe.h>
#include <zerobit/plan.h>
#include <zerobit/reduction.h>
#include <zerobit/replay.h>
#include <zerobit/route.h>
#include <zerobit/schedule.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_ref zb_ref;

typedef struct zb_ref_options {
    const zb_plan *plan;            /* copied */
    const zb_schedule_config *schedules; /* [plan->group_count], copied */
    const int *group_of; /* [model->param_count] the parameter group of each, from 0; NULL: all in one. Read during the call only */
    const zb_model *model;          /* borrowed, like the next two */
    const zb_weights *weights;      /* initial values */
    const zb_dataset *dataset;
    /* Where gradients lie in the collectives that add them: for orders in which that matters, as the stage has it. NULL: rank order.
       Borrowed. */
    const zb_route *route;
    int with_contributions; /* shown beside the rest: what each rank sends */
    int with_bounds; /* of the first step, for zb_ref_first_gradient */
    uint64_t sampler_seed;
    int shuffle, drop_last, reshuffle; /* of the loader */
} zb_ref_options;

/** ZB_UNSUPPORTED names the plan's field that is not offered; ZB_INVALID_ARGUMENT what does not fit together. */
ZB_API zb_status zb_ref_create(const zb_ref_options *options, zb_ref **ref_p);
ZB_API void zb_ref_destroy(zb_ref *ref);

/** Show the state after initialize: MASTER and PARAM of every parameter, step -1. */
ZB_API zb_status zb_ref_observe_initial(zb_ref *ref, const zb_observer *observer);

/**
 * One optimizer step: all micro-batches of all ranks, reduction, norm, clip, optimizer; or a skipped one. Then everything
 * of observe.h except BYTES_HELD, CALLS and BYTES_SENT is shown: SAMPLES and LOSS per rank and micro-batch, the rest
 * for ZB_EVERY_RANK; GRAD and the moments for trainable parameters only, MASTER and PARAM for all. `observer` may be
 * NULL. Allocates nothing. ZB_LOSS_SCALE where DeepSpeed stops training. After a failure (that one, or the observer's,
 * passed on) only zb_ref_destroy is left.
 */
ZB_API zb_status zb_ref_step(zb_ref *ref, const zb_observer *observer);

/**
 * The oracle as a player of a recorded run (replay.h), by the route of the run's gradients where its ranks were not added in rank
 * order; NULL otherwise. Both are borrowed until the player is destroyed. zb_replay_oracle_create has the route made.
 */
ZB_API zb_status zb_ref_replay_create(const zb_replay_run *run, const zb_route *route, zb_replay_player *player);

/** Roundings that an element of a reduced gradient meets at most on its way, whatever the order of addition. */
ZB_API int zb_ref_gradient_roundings(const zb_ref *ref);
/**
 * After the first step, with_bounds set: the reduced gradient of a parameter, how far each element can lie from what it would be
 * without any rounding, whatever the order of addition (derived in ref/bound.c), and the sum of the magnitudes of all ranks' gradients
 * of it. Each [the parameter's numel]; where a number on the way may be too large for its type the bound is no finite number.
 */
ZB_API void zb_ref_first_gradient(const zb_ref *ref, int param, float *gradient, double *bound, double *magnitude);

/** As zb_reduction_run, one element and one addition at a time. `out` must not be part of an input. */
ZB_API void zb_ref_reduction_run(const zb_reduction *reduction, const void *const *inputs, size_t first, size_t numel, void *out);

#ifdef __cplusplus
}
#endif
#endif
