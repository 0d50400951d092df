/*
 * Recorded runs of real DeepSpeed: its config, the gradients that each rank was given, and what each rank held after
 * every step. Fed through a plan of `deepspeed-0.19.6` semantics, everything after backward can be compared to the
 * bit. docs/replay.md describes the file.
 */
#ifndef ZEROBIT_REPLAY_H
#define ZEROBIT_REPLAY_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/config.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_replay_tensor { size_t numel; float *data; } zb_replay_tensor;

/** What one rank held after one optimizer step; entry 0 is after initialize and has tensors only. */
typedef struct zb_replay_entry {
    zb_replay_tensor *masters; /* fp32 tensors as the rank's optimizer holds them */
    size_t master_count;
    int has_norm, has_scale;   /* 0: null was recorded */
    double norm, scale;        /* engine.get_global_grad_norm(); the loss scale after the step */
    double lr;                 /* engine.get_lr() after the step; one parameter group */
    int64_t skipped;           /* steps skipped so far */
    char *error;               /* NULL; otherwise DeepSpeed gave up in this step, and the rest is not recorded */
} zb_replay_entry;

typedef struct zb_replay_rank {
    char *wrapper;            /* the optimizer class that DeepSpeed chose */
    zb_replay_entry *entries; /* [entry_count] */
} zb_replay_rank;

typedef struct zb_replay_run {
    char *name;
    int world_size;
    int param_count;
    size_t *param_numel; /* [param_count] */
    size_t numel;        /* over all parameters */
    zb_config *config;   /* read with deepspeed-0.19.6 semantics */
    int64_t accumulation_steps;
    float *init;          /* [numel], parameters behind one another, before any rounding to 16 bits */
    size_t step_count;    /* optimizer steps with gradients */
    float ***grads;       /* [step_count][accumulation_steps * world_size]: micro-batch m, rank r at m * world_size + r; [numel] */
    size_t entry_count;   /* of every rank: step_count + 1, or less when the last one is an error */
    zb_replay_rank *ranks; /* [world_size] */
} zb_replay_run;

typedef struct zb_replay_file {
    zb_replay_run *runs;
    size_t run_count;
} zb_replay_file;

/** ZB_IO, ZB_INVALID_CONFIG or ZB_UNSUPPORTED name the file and the key. The caller owns *file_p (zb_replay_destroy). */
ZB_API zb_status zb_replay_load(const char *path, zb_replay_file **file_p);
/** NULL is fine. */
ZB_API void zb_replay_destroy(zb_replay_file *file);

typedef struct zb_replay_result {
    int64_t steps_equal;     /* optimizer steps in which every rank agreed */
    uint64_t values_compared;
    int different;
    char text[512]; /* the first difference in one sentence; "" when there is none */
} zb_replay_result;

/**
 * Feed the gradients through the oracle. ZB_OK whether or not anything differs (result->different tells); ZB_UNSUPPORTED
 * for a config whose DeepSpeed arithmetic is not written down here.
 */
ZB_API zb_status zb_replay_by_oracle(const zb_replay_run *run, zb_replay_result *result);

#ifdef __cplusplus
}
#endif
#endif
