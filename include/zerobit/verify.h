/*
 * The product: hold the engine against the oracle, to the bit, over stages, worlds and precisions.
 */
#ifndef ZEROBIT_VERIFY_H
#define ZEROBIT_VERIFY_H

#include <signal.h>
#include <stdint.h>
#include <zerobit/config.h>
#include <zerobit/data.h>
#include <zerobit/model.h>
#include <zerobit/status.h>
#include <zerobit/trace.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_verify_case {
    int stage;
    zb_dtype dtype;
    int world_size;
    zb_plan plan;
    int64_t steps_done;     /* optimizer steps that were equal */
    uint64_t values_compared;
    zb_status status;       /* OK; DIFFERENT; else why it could not run */
    int ended;              /* training ended by itself after steps_done steps (ZB_LOSS_SCALE), as the oracle's did; status is OK */
    zb_difference difference; /* left: oracle, right: engine */
    char message[ZB_ERROR_MESSAGE_BYTES]; /* when status is not OK, or ended is set */
    double seconds;
} zb_verify_case;

typedef struct zb_verify_options {
    const zb_config *config;
    const zb_model *model;
    const zb_weights *weights; /* initial values */
    const zb_dataset *dataset; /* none of these four may be NULL */
    const int *stages; int stage_count; /* lists without repetition */
    const int *worlds; int world_count;
    const zb_dtype *dtypes; int dtype_count;
    int64_t steps;
    int workers;       /* of the simulation; 0: one per core */
    uint64_t sim_seed, sampler_seed;
    const volatile sig_atomic_t *interrupt; /* NULL, or stop between two steps when it becomes non-zero */
    /* Called when a case advances; NULL: nobody listens. done and total count steps over all cases. */
    void (*progress)(void *user, const zb_verify_case *current, int64_t done, int64_t total);
    void *user;
} zb_verify_options;

/**
 * Run every case: dtype x world x stage, all checked for validity (batch triangle included) before any runs.
 * `cases` has dtype_count * world_count * stage_count entries, filled in that nesting. Returns ZB_OK when all are
 * equal, ZB_DIFFERENT when any differs or fails in the run, ZB_INTERRUPTED, or why nothing could run.
 */
ZB_API zb_status zb_verify(const zb_verify_options *options, zb_verify_case *cases);

#ifdef __cplusplus
}
#endif
#endif
