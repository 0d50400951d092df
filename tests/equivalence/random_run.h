/* Random runs in the form of recorded ones, for any knob of a DeepSpeed config: what the engine and the
 * oracle are fed side by side. */
#ifndef ZB_TESTS_EQUIVALENCE_RANDOM_RUN_H
#define ZB_TESTS_EQUIVALENCE_RANDOM_RUN_H

#include <stdint.h>
#include <zerobit/replay.h>

typedef struct random_run {
    uint64_t number;
    char config_text[2048];
    zb_replay_file *file; /* of one run */
} random_run;

/* Everything follows from the number. ZB_INVALID_CONFIG or ZB_UNSUPPORTED for a combination that a config may
 * not have; any other failure is a bug. After a failure too, destroy. */
zb_status random_run_create(uint64_t number, random_run *r);
void random_run_destroy(random_run *r);

/* Let a player take the steps, and keep what it says as what was recorded. */
zb_status random_run_record(random_run *r, const zb_replay_player *player);

#endif
