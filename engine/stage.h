/*
 * The stage interface: where model state lives and when it moves. A stage is a table of functions; the engine
 * calls them at fixed points of a step and knows nothing else of it. stage0.c to stage3.c are the four
 * examples, from the simplest to the hardest.
 *
 * One optimizer step, as a stage sees it (G micro-batches):
 *
 *   G times:  begin_forward
 *             for each module forward:   before_forward, [param ...], after_forward
 *             end_forward, begin_backward
 *             for each module backward:  before_backward, [param, grad_target ...], after_backward,
 *                                        and grad_ready as soon as a parameter's gradient is complete
 *             end_backward
 *   once:     reduce            the shard's gradients are final
 *             (engine: norm, clip, optimizer over the shard)
 *             publish           every rank's next forward sees the new weights
 */
#ifndef ZEROBIT_ENGINE_STAGE_H
#define ZEROBIT_ENGINE_STAGE_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/engine.h>
#include <zerobit/status.h>

#include "engine/layout.h"

/* Back ends put this first. */
typedef struct zb_stage {
    const struct zb_stage_ops *ops;
    zb_engine *engine;
} zb_stage;

/* A range of what this rank optimizes, on the device: weights in param_dtype, averaged gradients in
 * grad_dtype. Padding is zero. */
typedef struct zb_segment {
    int group; /* of parameters */
    size_t shard_offset, numel;
    void *param, *grad;
} zb_segment;

/* The rank's shard, cut into tensors as the optimizer is to see them (plan.tensors); one may be empty here.
 */
typedef struct zb_shard {
    zb_segment *segments; /* [segment_count], ascending */
    int segment_count;
    size_t numel; /* of the shard, with padding that no segment may cover */
} zb_shard;

/* The segment at *next and all that follow it without a gap, in one; *next goes past them. For what treats
 * every element alike. */
zb_segment zb_shard_run(const zb_shard *shard, int *next);

/* Where an element of this rank's part of a group lies. */
typedef struct zb_place {
    void *param, *grad;
} zb_place;

/* Elements [first, first + numel) of a parameter as they lie on this rank between two steps. */
typedef struct zb_held {
    const void *data; /* param_dtype */
    size_t first, numel;
} zb_held;

struct zb_stage_facts;

typedef struct zb_stage_ops {
    int number;
    const char *name;
    int norm_is_partial; /* a rank's shard is not the whole: squares are summed over ranks */

    /* Allocates all that the stage ever needs and puts the initial weights in place. */
    zb_status (*create)(zb_engine *engine, zb_stage **stage_p);
    void (*destroy)(zb_stage *stage);

    zb_status (*begin_forward)(zb_stage *stage);
    zb_status (*end_forward)(zb_stage *stage);
    zb_status (*begin_backward)(zb_stage *stage);
    /* A module's parameters must be readable through `param` between before_ and after_. */
    zb_status (*before_forward)(zb_stage *stage, int module);
    zb_status (*after_forward)(zb_stage *stage, int module);
    zb_status (*before_backward)(zb_stage *stage, int module);
    zb_status (*after_backward)(zb_stage *stage, int module);
    const void *(*param)(zb_stage *stage, int param);

    /* Where the kernel may write, in param_dtype, this micro-batch's gradient of the parameter (all of it);
     * NULL: into scratch. */
    zb_status (*grad_target)(zb_stage *stage, int param, void **target_p);
    /* The micro-batch's local gradient is complete: at the target just given, or elsewhere, valid during the
     * call. */
    zb_status (*grad_ready)(zb_stage *stage, int param, const void *grad);
    zb_status (*end_backward)(zb_stage *stage);
    zb_status (*reduce)(zb_stage *stage);
    zb_status (*publish)(zb_stage *stage);

    /* For inspection, outside forward and backward; collective. The whole parameter is readable until
     * release. */
    zb_status (*gather)(zb_stage *stage, int param, const void **full_p);
    zb_status (*release)(zb_stage *stage);

    zb_place (*place)(zb_stage *stage, int group, size_t shard_offset);
    zb_held (*held)(zb_stage *stage, int param);
    /* The parameter's whole averaged gradient, in grad_dtype, where every rank has it (stage 0, and
     * DeepSpeed's BF16_Optimizer); NULL elsewhere. */
    const void *(*whole_grad)(zb_stage *stage, int param);

    /* By formula, on every rank alike: bytes of PARAM, GRAD, GATHER and BUCKET (the rest is the engine's),
     * and payload bytes per optimizer step without the norm. */
    void (*memory)(const struct zb_stage_facts *facts, uint64_t bytes[ZB_MEM_COUNT]);
    void (*traffic)(const struct zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT]);
} zb_stage_ops;

/* What the formulas are made from. */
typedef struct zb_stage_facts {
    const zb_config *config;
    const zb_plan *plan;
    const struct zb_graph *graph;
    const zb_layout *layout;
    const struct zb_gather_plan *gather; /* stage 3's */
    zb_step_past past;                   /* traffic: what came before the step */
    int skipped;                         /* traffic: an overflow keeps the step from being applied */
} zb_stage_facts;

extern const zb_stage_ops zb_stage0, zb_stage1, zb_stage2, zb_stage3;

/* NULL when there is no such stage. */
const zb_stage_ops *zb_stage_find(int number);
/* Two bucket buffers take turns when communication may overlap with computation. */
int zb_overlap_comm(const zb_config *config, int stage);

#endif
