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
#include <zerobit/quirks.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/** In which order ranks' contributions are added, by kind of collective. <zerobit/orders.h> */
typedef struct zb_orders zb_orders;

/** When gradients cross ranks. */
typedef enum zb_reduce_when {
    ZB_REDUCE_AT_BOUNDARY,      /* stages 0, 1: micro-batches are added on each rank, then reduced once     */
    ZB_REDUCE_EVERY_MICRO_BATCH /* stages 2, 3: each micro-batch is reduced, the results are added          */
} zb_reduce_when;

/** One multiplication or division on a gradient's way, in fp32, rounded to the type that the gradient is in. */
typedef enum zb_factor_kind { ZB_FACTOR_NONE, ZB_FACTOR_MULTIPLY, ZB_FACTOR_DIVIDE } zb_factor_kind;
typedef struct zb_factor { zb_factor_kind kind; float by; } zb_factor;

/** How the sum over ranks becomes an average. All NONE and inside 0: a sum (gradient_allreduce_op "sum"). */
typedef struct zb_averaging {
    int absent;          /* nothing is sent, or what is comes to nothing: an element's gradient is that of the rank whose optimizer has it */
    zb_factor in_bucket; /* in bucket_dtype, before the conversion to comm_dtype */
    zb_factor before[2]; /* in comm_dtype, one after the other, before the sum   */
    int inside;          /* the wide sum is divided by the world size before it is rounded to comm_dtype */
    zb_factor after;     /* in comm_dtype, after the rounded sum                 */
} zb_averaging;

/** What an optimizer that looks at whole tensors takes for one. A norm method that does names its own. */
typedef enum zb_tensors {
    ZB_TENSORS_PARAMETERS, /* each parameter, whole                                                    */
    ZB_TENSORS_GROUPS,     /* each parameter group end to end. DeepSpeed: fp16/fused_optimizer.py      */
    ZB_TENSORS_PARTITIONS, /* a rank's part of each group, padded. DeepSpeed: zero/stage_1_and_2.py    */
    ZB_TENSORS_SUB_GROUPS  /* a rank's parts of a sub-group's parameters, padded. DeepSpeed: zero/stage3.py */
} zb_tensors;

/** How the global gradient norm is summed. */
typedef enum zb_norm_method {
    ZB_NORM_EXACT,           /* sum of squares exactly, rounded once to fp64, then sqrt in fp64 */
    /* DeepSpeed 0.19.6, in the order and precision of its PyTorch calls (ref/deepspeed.c): */
    ZB_NORM_PARAMETERS_MEAN, /* stage 0 in fp32: fp32, of each parameter, then of those; averaged over ranks. runtime/utils.py */
    ZB_NORM_PARAMETERS,      /* BF16_Optimizer: the same, not averaged. runtime/utils.py */
    ZB_NORM_FLAT,            /* stage 0 in 16 bit: fp32, of each group as one array. fp16/fused_optimizer.py */
    ZB_NORM_UNFUSED,         /* stage 0 in 16 bit, not FusedAdam: fp32 of each parameter, squares added one by one in a group, fp64 over
                                groups; reported with the loss scale in it. fp16/unfused_optimizer.py */
    ZB_NORM_PARTITION_FP32,  /* stages 1, 2: fp64 within a rank's partition, fp32 over ranks. zero/stage_1_and_2.py */
    ZB_NORM_PARTITION_FP64,  /* stage 3: fp64 throughout. zero/stage3.py */
    ZB_NORM_PYTORCH          /* torch's fp32 norm of the parameters' norms, in the model's order. PyTorch: nn/utils/clip_grad.py */
} zb_norm_method;

/** How the clip factor and the loss scale come together. */
typedef enum zb_clip_method {
    ZB_CLIP_COMBINED,      /* fp64: 1 / (S max(1, (norm / S + 1e-6) / clip_norm)), rounded once to fp32 */
    ZB_CLIP_COMBINED_FP32, /* the same with every operation in fp32. DeepSpeed: zero/stage_1_and_2.py, unscale_and_clip_grads */
    ZB_CLIP_COEFFICIENT,   /* fp32: min(1, clip_norm / (norm + 1e-6)). DeepSpeed: stage 0 in fp32, runtime/utils.py */
    ZB_CLIP_RECIPROCAL     /* fp32: min(1, (1 / (norm + 1e-6)) clip_norm), as PyTorch divides a number by a tensor. DeepSpeed: bf16_optimizer.py; PyTorch: nn/utils/clip_grad.py */
} zb_clip_method;

/** What becomes of a step in which any reduced gradient is an infinity or a NaN. */
typedef enum zb_overflow_rule {
    ZB_OVERFLOW_UNSEEN,       /* the step is taken with it                                            */
    ZB_OVERFLOW_SKIP,         /* every rank skips it: weights, moments and schedule stay              */
    ZB_OVERFLOW_COUNT,        /* the optimizer steps, but the step counts as skipped and the schedule stays. DeepSpeed: stage 0 in bf16 */
    ZB_OVERFLOW_STOP          /* training ends unless the norm is above 0. DeepSpeed: bf16_optimizer.py */
} zb_overflow_rule;

typedef enum zb_optimizer_kind {
    ZB_OPTIMIZER_ADAM,    /* and AdamW: zb_decay_mode tells them apart */
    ZB_OPTIMIZER_SGD,
    ZB_OPTIMIZER_ADAGRAD,
    ZB_OPTIMIZER_LION,
    ZB_OPTIMIZER_LAMB,
    ZB_OPTIMIZER_KIND_COUNT
} zb_optimizer_kind;
ZB_API const char *zb_optimizer_kind_name(zb_optimizer_kind kind); /* "Adam", "SGD", ... */

typedef enum zb_decay_mode { ZB_DECAY_L2, ZB_DECAY_DECOUPLED } zb_decay_mode;

/** Whose arithmetic: implementations of one optimizer differ in where they round. <zerobit/kernels.h> has the formulas. */
typedef enum zb_optimizer_arithmetic {
    ZB_ARITHMETIC_PLAIN,         /* as GPUs have it (csrc/adam, lion, lamb; torch.optim), every operation rounded on its own */
    ZB_ARITHMETIC_DEEPSPEED_CPU, /* DeepSpeed's csrc for a CPU with AVX2 or AVX-512: Adam, Adagrad, Lion   */
    ZB_ARITHMETIC_TORCH_1,       /* torch.optim 1.13, not foreach, a CPU with AVX2 and fma: Adam, SGD, Adagrad */
    ZB_ARITHMETIC_TORCH_2,       /* torch.optim from 2.1 on, likewise                                      */
    ZB_ARITHMETIC_COUNT
} zb_optimizer_arithmetic;
ZB_API const char *zb_optimizer_arithmetic_name(zb_optimizer_arithmetic arithmetic); /* as in the config: "plain", "torch-2", ... */
/** Whether the optimizer exists in that arithmetic. */
ZB_API int zb_optimizer_has_arithmetic(zb_optimizer_kind kind, zb_optimizer_arithmetic arithmetic);

typedef struct zb_optimizer_config {
    zb_optimizer_kind kind;
    zb_optimizer_arithmetic arithmetic;
    double lr;
    double weight_decay;
    double beta1, beta2;        /* Adam, Lion, LAMB */
    double eps;                 /* Adam, Adagrad, LAMB */
    int bias_correction;        /* Adam but for torch, LAMB */
    zb_decay_mode decay_mode;   /* Adam; SGD and Adagrad always L2, Lion and LAMB decoupled */
    double momentum, dampening; /* SGD */
    int nesterov;               /* SGD */
    double lr_decay;            /* Adagrad but for DEEPSPEED_CPU */
    int eps_inside_sqrt;        /* LAMB */
    double min_coeff, max_coeff; /* LAMB: of the trust ratio */
    int vector_width;           /* Adam, DEEPSPEED_CPU: the last numel mod vector_width elements of a tensor are its tail; 1: none */
} zb_optimizer_config;

/* Parameter groups: parameters that share hyper-parameters and a learning rate. */
enum { ZB_PARAM_GROUP_MAX = 16 };

typedef struct zb_plan {
    zb_semantics semantics;
    zb_quirks quirks; /* that were on when the plan was derived: its own fields say what came of them, but for those that act elsewhere */
    int world_size;
    int64_t micro_batch_size;  /* samples per rank and micro-batch */
    int64_t accumulation_steps; /* micro-batches per optimizer step */
    zb_dtype param_dtype;      /* what the model computes with; every tensor of a pass is rounded to it */
    /*
     * A gradient's way, each step a rounding where types differ. It is made in param_dtype. AT_BOUNDARY: added up on its rank
     * in local_dtype over the micro-batches (else local_dtype is param_dtype). Then bucket_dtype, averaging.in_bucket,
     * comm_dtype, averaging.before, the sum, averaging.after, grad_dtype. EVERY_MICRO_BATCH: added up over the
     * micro-batches there, in grad_dtype.
     */
    zb_dtype local_dtype;
    zb_dtype bucket_dtype;
    zb_dtype comm_dtype; /* what travels */
    zb_dtype grad_dtype; /* what the optimizer is given */
    zb_averaging averaging;
    const zb_orders *orders; /* borrowed from the config; NULL: rank order */
    zb_reduce_when reduce_when;
    int reshuffle;             /* the sampler shuffles anew for every epoch */
    zb_loss_scaler_config scaler;
    int loss_is_scaled;              /* the loss gradient begins as the loss scale; else as 1 */
    zb_dtype seed_dtype;             /* the type that the loss gradient begins in */
    int unscale_by_next_scale;       /* gradients are divided, and clipped, by the scale that the step leaves behind */
    int report_norm_by_next_scale;   /* and the reported norm likewise */
    zb_overflow_rule overflow;
    zb_tensors tensors;
    int round_robin;                 /* PARTITIONS: parameters 0, W, 2 W, ... of a group first, then 1, W + 1, ... */
    uint64_t sub_group_numel;        /* SUB_GROUPS */
    zb_norm_method norm;
    zb_clip_method clip;
    double clip_norm; /* 0: no clipping */
    int hidden_first_step; /* the optimizer takes a step with zero gradients, at its own rate, when it is made */
    zb_optimizer_config groups[ZB_PARAM_GROUP_MAX]; /* hyper-parameters by parameter group; kind and arithmetic are those of all */
    int group_count;
} zb_plan;

/**
 * True when the two plans demand equal bits at every step. With one micro-batch per step, when to reduce makes no difference. With
 * another order than that of ranks they also depend on where in its collective each gradient travels: zb_routes_add_alike.
 */
ZB_API int zb_plan_equal(const zb_plan *a, const zb_plan *b);
/**
 * One line of text, e.g. "standard fp32 world 4 micro 4 x 1 reduce=boundary average=inside order=rank norm=exact grad=fp32
 * comm=fp32 scale=none overflow=apply". A dynamic scale reads scale=dynamic:INITIAL/WINDOW/HYSTERESIS/MINIMUM; an average is
 * written as it is computed: "/2 sum", "sum *0.5". grad=A>B where gradients change their type on the way.
 */
enum { ZB_PLAN_TEXT_BYTES = 800 };
ZB_API void zb_plan_describe(const zb_plan *plan, char *text, size_t text_bytes);

#ifdef __cplusplus
}
#endif
#endif
