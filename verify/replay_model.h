/* The parameters of a recorded run as a model, whose forward is elsewhere. */
#ifndef VERIFY_REPLAY_MODEL_H
#define VERIFY_REPLAY_MODEL_H

#include <zerobit/replay.h>

/** The caller owns *model_p (zb_model_destroy), also after a failure; it may be NULL then. */
zb_status zb_replay_model_create(const zb_replay_run *run, zb_model **model_p);
/** Whether the engine's collectives are those of the run. */
int zb_replay_calls_alike(const zb_replay_run *run);

#endif
