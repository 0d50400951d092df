/*
 * The arithmetic plan: what a training step computes, to the bit. A stage derives its plan from the
 * config and publishes it; ref/ executes any plan; it is written into every trace. Two runs with equal
 * plans must agree to the bit.
 */
#ifndef ZEROBIT_PLAN_H
#define ZEROBIT_PLAN_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/loss_scaler.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum zb_semantics { ZB_SEMANTICS_STANDARD, ZB_SEMANTICS_DEEPSPEED_0_19_6 } zb_semantics;

/** Order in which ranks' contributions to one element are added. */
typedef enum zb_order {
    ZB_ORDER_RANK /* ascending ranks, fp32 accumulator (fp64 for fp64, wrapping for integers), rounded once */
} zb_order;
ZB_API const char *zb_order_name(zb_order order);

/** When gradients cross ranks. */
typedef enum zb_reduce_when {
    ZB_REDUCE_AT_BOUNDARY,      /* stages 0, 1: micro-batches are added on each rank, then reduced once     */
    ZB_REDUCE_EVERY_MICRO_BATCH /* stages 2, 3: each micro-batch is reduced, the results are added          */
} zb_reduce_when;

/** How the sum over ranks becomes an average. */
typedef enum zb_average {
    ZB_AVERAGE_INSIDE, /* accumulated wide, divided by the world size, rounded once */
    ZB_SUM_ONLY,       /* gradient_allreduce_op "sum" */
    ZB_AVERAGE_BEFORE, /* each rank divides by the world size, rounds, then sends. DeepSpeed: zero/stage_1_and_2.py, stage3.py */
    ZB_AVERAGE_AFTER   /* the sum is rounded, then multiplied by 1 / world size. DeepSpeed: engine.py, allreduce_bucket */
} zb_average;

/** How the global gradient norm is summed. */
typedef enum zb_norm_method {
    ZB_NORM_EXACT,          /* sum of squares exactly, rounded once to fp64, then sqrt in fp64 */
    /* DeepSpeed 0.19.6, in the order and precision of its PyTorch calls (ref/deepspeed.c): */
    ZB_NORM_PARAMETERS_FP32, /* stage 0 in fp32: of each parameter, then of those; averaged over ranks. runtime/utils.py */
    ZB_NORM_FLAT_FP32,       /* stage 0 in fp16: of all gradients as one array. fp16/fused_optimizer.py */
    ZB_NORM_PARTITION_FP32,  /* stages 1, 2: fp64 within a rank's partition, fp32 over ranks. zero/stage_1_and_2.py */
    ZB_NORM_PARTITION_FP64   /* stage 3: fp64 throughout. zero/stage3.py */
} zb_norm_method;

/** How the clip factor and the loss scale come together. */
typedef enum zb_clip_method {
    ZB_CLIP_COMBINED,      /* fp64: 1 / (S max(1, (norm / S + 1e-6) / clip_norm)), rounded once to fp32 */
    ZB_CLIP_COMBINED_FP32, /* the same with every operation in fp32. DeepSpeed: zero/stage_1_and_2.py, unscale_and_clip_grads */
    ZB_CLIP_COEFFICIENT    /* fp32: min(1, clip_norm / (norm + 1e-6)). DeepSpeed: stage 0 in fp32, runtime/utils.py */
} zb_clip_method;

/** Where DeepSpeed 0.19.6 departs from what it documents. All zero, and not looked at, under `standard` semantics. */
typedef struct zb_quirks {
    int loss_unscaled;          /* engine.py backward scales the loss for ZeRO optimizers only: stage 0 never is */
    int hidden_first_step;      /* fp16/fused_optimizer.py takes a step with zero gradients when it is made: stage 0 in 16 bit */
    int unscaled_by_next_scale; /* the loss scale is updated before gradients are divided by it: every fp16 optimizer */
    int norm_by_next_scale;     /* and the reported norm likewise: stages 0 and 3 */
    zb_clip_method clip;
} zb_quirks;

typedef enum zb_optimizer_kind {
    ZB_OPTIMIZER_ADAM, /* FusedAdam's formula, decay per zb_decay_mode */
    ZB_OPTIMIZER_SGD   /* torch.optim.SGD's formula */
} zb_optimizer_kind;
typedef enum zb_decay_mode { ZB_DECAY_L2, ZB_DECAY_DECOUPLED } zb_decay_mode;
/** Whose Adam: the formulas differ in where they round. */
typedef enum zb_adam_variant {
    ZB_ADAM_FUSED, /* DeepSpeed's FusedAdam, csrc/adam/multi_tensor_adam.cu, without contraction */
    ZB_ADAM_TORCH, /* torch.optim.Adam and AdamW 1.13, not foreach, on a CPU with AVX2 and fma   */
    ZB_ADAM_CPU    /* DeepSpeedCPUAdam, csrc/includes/cpu_adam.h, on a CPU with AVX2 or AVX-512  */
} zb_adam_variant;

typedef struct zb_optimizer_config {
    zb_optimizer_kind kind;
    double lr;
    double beta1, beta2, eps; /* Adam */
    int bias_correction;      /* Adam */
    zb_decay_mode decay_mode; /* Adam; SGD always L2 */
    zb_adam_variant variant;  /* Adam; TORCH ("torch_adam") only under deepspeed-0.19.6 semantics */
    double weight_decay;
    double momentum, dampening; /* SGD */
    int nesterov;               /* SGD */
} zb_optimizer_config;

typedef struct zb_plan {
    zb_semantics semantics;
    int world_size;
    int64_t micro_batch_size;  /* samples per rank and micro-batch */
    int64_t accumulation_steps; /* micro-batches per optimizer step */
    zb_dtype param_dtype;      /* what the model computes with; every tensor of a pass is rounded to it */
    zb_dtype grad_dtype;       /* what gradients are accumulated in over micro-batches */
    zb_dtype comm_dtype;       /* what travels */
    zb_loss_scaler_config scaler;
    int skip_on_overflow;      /* an infinity or NaN in any reduced gradient skips the step on every rank */
    zb_reduce_when reduce_when;
    zb_average average;
    zb_order order;
    zb_norm_method norm;
    zb_quirks quirks;
    double clip_norm; /* 0: no clipping */
    zb_optimizer_config optimizer;
} zb_plan;

/** True when the two plans demand equal bits at every step. With one micro-batch per step, when to reduce makes no difference. */
ZB_API int zb_plan_equal(const zb_plan *a, const zb_plan *b);
/**
 * One line of text, e.g. "standard fp32 world 4 micro 4 x 1 reduce=boundary average=inside order=rank norm=exact grad=fp32
 * comm=fp32 scale=none overflow=apply". A dynamic scale reads scale=dynamic:INITIAL/WINDOW/HYSTERESIS/MINIMUM.
 */
ZB_API void zb_plan_describe(const zb_plan *plan, char *text, size_t text_bytes);

#ifdef __cplusplus
}
#endif
#endif
