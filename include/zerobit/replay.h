/*
 * Recorded runs of real DeepSpeed, and of PyTorch's DistributedDataParallel: the config, the gradients that each rank was
 * given, and what each rank held after every step. Fed through a plan of `deepspeed-0.19.6` or `pytorch-ddp` semantics,
 * everything after backward can be compared to the bit. docs/replay.md describes the file.
 */
#ifndef ZEROBIT_REPLAY_H
#define ZEROBIT_REPLAY_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/config.h>
#include <zerobit/model.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_replay_tensor {
    size_t numel;
    float *data;     /* [numel]; NULL: only their digest was kept */
    char digest[65]; /* SHA-256 of the elements as little-endian fp32, padding zero; lower-case hexadecimal */
} zb_replay_tensor;

/** One collective as torch.distributed calls it, its recorded values behind one another: "all_reduce float32 9 sum". */
typedef struct zb_replay_call { char text[64]; } zb_replay_call;

/** What one rank held after one optimizer step; entry 0 is after initialize and has tensors only. */
typedef struct zb_replay_entry {
    zb_replay_tensor *masters; /* fp32 tensors as the rank's optimizer holds them */
    size_t master_count;
    int has_norm, has_scale;   /* 0: null was recorded */
    double norm, scale;        /* engine.get_global_grad_norm(); the loss scale after the step */
    double *lr;                /* [lr_count] engine.get_lr() after the step, of each parameter group */
    size_t lr_count;
    int64_t skipped;           /* steps skipped so far */
    zb_replay_call *calls;     /* [call_count] what this rank called since the entry before; NULL: not recorded */
    size_t call_count;
    char *error;               /* NULL; otherwise DeepSpeed gave up in this step, and the rest is not recorded */
} zb_replay_entry;

typedef struct zb_replay_rank {
    char *wrapper;            /* the optimizer class that DeepSpeed chose, or PyTorch's class around the model; NULL: not told */
    zb_replay_entry *entries; /* [entry_count] */
} zb_replay_rank;

typedef struct zb_replay_run {
    char *name;
    char *refusal; /* NULL; otherwise why it cannot be played, and nothing below is to be relied upon */
    int world_size;
    int param_count;
    size_t *param_numel; /* [param_count] */
    size_t numel;        /* over all parameters */
    char **param_names;  /* [param_count]; "p0", "p1", ... when the file has none */
    int *frozen;         /* [param_count] */
    size_t trainable_numel;
    zb_model_order order; /* of the model's modules; all empty when nothing is known of them */
    zb_config *config;   /* read with deepspeed-0.19.6 semantics, or those of PyTorch's framework */
    int64_t accumulation_steps;
    float *init;          /* [numel], parameters behind one another, before any rounding to 16 bits */
    size_t step_count;    /* optimizer steps with gradients */
    float ***grads;       /* [step_count][accumulation_steps * world_size]: micro-batch m, rank r at m * world_size + r; [numel] */
    int grads_are_local;  /* they are gradients as autograd gave them; otherwise x of the loss sum(p.float() * x) */
    size_t entry_count;   /* of every rank: step_count + 1, or less when the last one is an error */
    zb_replay_rank *ranks; /* [world_size] */
} zb_replay_run;

typedef struct zb_replay_file {
    zb_replay_run *runs;
    size_t run_count;
} zb_replay_file;

/**
 * ZB_IO or ZB_INVALID_CONFIG name the file and the key. A run that asks for what is not supported here is read as one that says
 * so when it is played, with its name. The caller owns *file_p (zb_replay_destroy).
 */
ZB_API zb_status zb_replay_load(const char *path, zb_replay_file **file_p);
/** NULL is fine. */
ZB_API void zb_replay_destroy(zb_replay_file *file);

/** ZB_UNSUPPORTED or ZB_INVALID_CONFIG for a run that no player can play: the file could not be understood, or asks for arithmetic that
 * is not written down here. */
ZB_API zb_status zb_replay_check(const zb_replay_run *run);

/** Whether DeepSpeed has a norm, and a loss scale, to tell under this plan, once a step has been taken. */
ZB_API int zb_replay_tells_norm(const zb_plan *plan);
ZB_API int zb_replay_tells_scale(const zb_plan *plan);

/* --- whoever can be fed recorded gradients --- */

/** Elements of a parameter, and where they lie among the fp32 tensors of a rank's optimizer. */
typedef struct zb_replay_piece {
    size_t tensor, at; /* which of the rank's tensors, from which of its elements */
    int param;
    size_t first, numel; /* of the parameter's elements */
    const float *data;   /* [numel] */
} zb_replay_piece;

/** What a player says one rank holds: an entry in the player's words. */
typedef struct zb_replay_state {
    const size_t *tensor_numel; /* [tensor_count], padding included */
    size_t tensor_count;
    const zb_replay_piece *pieces; /* [piece_count] in the order of tensors; padding is what no piece covers */
    size_t piece_count;
    int has_norm, has_scale; /* 0: DeepSpeed would say null */
    double norm, scale;
    const double *lr; /* [lr_count] */
    size_t lr_count;
    int64_t skipped;
    const zb_replay_call *calls; /* [call_count]; NULL: the player knows of no collectives, or of others than were recorded: they are not compared */
    size_t call_count;
} zb_replay_state;

typedef struct zb_replay_player {
    const char *name; /* in sentences: "the oracle" */
    void *self;
    /* Take optimizer step `step` (from 0). ZB_LOSS_SCALE where DeepSpeed gives up; any other failure ends the replay. */
    zb_status (*step)(void *self, size_t step);
    /* Of one rank after the last step, or before the first. Belongs to the player, until its next step. */
    void (*state)(void *self, int rank, zb_replay_state *state);
    void (*destroy)(void *self);
} zb_replay_player;

/* Both make a player for one pass over `run`, which is borrowed; the caller owns it (player->destroy). They fail where
 * zb_replay_check does. */

/** The oracle: knows nothing of collectives. */
ZB_API zb_status zb_replay_oracle_create(const zb_replay_run *run, zb_replay_player *player);
/** The engine, each rank on a simulated world. Under pytorch-ddp semantics its collectives are not DDP's, and it tells none. workers: threads; 0: one per core. */
ZB_API zb_status zb_replay_engine_create(const zb_replay_run *run, int workers, zb_replay_player *player);

typedef struct zb_replay_result {
    int64_t steps_equal;     /* optimizer steps in which every rank agreed */
    uint64_t values_compared;
    int different;
    char text[512]; /* the first difference in one sentence; "" when there is none */
} zb_replay_result;

/**
 * Let a player take the run's steps, and compare after each of them what every rank holds with what was recorded, to the bit.
 * ZB_OK whether or not anything differs (result->different tells). Fails where zb_replay_check does.
 */
ZB_API zb_status zb_replay_play(const zb_replay_run *run, const zb_replay_player *player, zb_replay_result *result);

#ifdef __cplusplus
}
#endif
#endif
