/*
 * One engine under test on its world, held against the oracle step by step. The oracle goes first; it and
 * what it has shown are there only in the process that judges.
 */
#ifndef VERIFY_RUNNER_H
#define VERIFY_RUNNER_H

#include <zerobit/engine.h>
#include <zerobit/verify.h>

#include "verify/compare.h"
#include "verify/seat.h"
#include "verify/world.h"

typedef struct zb_runner {
    const zb_verify_options *options;
    zb_verify_case *result; /* what comes of it: status, steps_done, ... */
    zb_world *world;
    zb_compare *compare; /* NULL where nobody judges */
    zb_seat *seats;      /* [world_size], like engines; in a spread world only the own rank's are there */
    zb_engine **engines;
    const int *group_of;   /* [param_count] the parameter group of each, borrowed */
    uint64_t *owned_numel; /* [world_size] */
    int *has_ended;        /* [world_size]: the rank's engine has ended training */
    zb_step_past past;
} zb_runner;

/** options, result and group_of are set, all else zero. reference: NULL where nobody judges.
 * zb_runner_destroy follows whether it fails or not. */
zb_status zb_runner_create(zb_runner *runner, const zb_reference *reference);
void zb_runner_destroy(zb_runner *runner);

int zb_runner_is_running(const zb_runner *runner);

/*
 * Each takes the engine one step further while the reference holds the matching one, and notes in *result
 * what came of it. They fail only where no further case can run: in a spread world, when any rank has failed.
 */

/** Up to the state after initialize. */
zb_status zb_runner_start(zb_runner *runner);
/** skipped: the oracle has skipped this step for an overflow. */
zb_status zb_runner_step(zb_runner *runner, int skipped);
/** The oracle has ended training in this step, for `reason`. */
zb_status zb_runner_end(zb_runner *runner, const char *reason);

/** Whatever went wrong on a case's own world is that case's result: the message recorded last, and `status`.
 */
void zb_case_fail(zb_verify_case *result, zb_status status);

#endif
