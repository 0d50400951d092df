/*
 * The parts of the oracle, in the order in which a step uses them. Only ref/ and its tests include this.
 *
 * Reading order: ref.c (a training run), pass.c (forward and backward through a model), layers.c (one
 * module's formulas), arithmetic.c (exp, log, rounding to 16 bits, the fixed shape of a sum), reduce.c (ranks
 * and norm), route.c, exchange.c (ranks in the order of a library), bound.c (how far rounding goes), step.c
 * (from reduced gradients to weights), optimizer.c; then what DeepSpeed does in its own order: shards.c,
 * deepspeed.c, replay.c. The formulas are those of <zerobit/kernels.h>, written again.
 *
 * Every tensor is an array of float, 16-bit types included: its elements are then numbers that the type holds
 * exactly. layers.c computes in fp32; who stores a result rounds it with zb_ref_round.
 */
#ifndef ZB_REF_ORACLE_H
#define ZB_REF_ORACLE_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/data.h>
#include <zerobit/loss_scaler.h>
#include <zerobit/model.h>
#include <zerobit/plan.h>
#include <zerobit/route.h>
#include <zerobit/schedule.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

/* --- arithmetic.c --- */

float zb_ref_exp(float x);
float zb_ref_log(float x);

/* The nearest number of FP32, FP16 or BF16, ties to even; too large gives infinity, NaN stays NaN. */
float zb_ref_round(zb_dtype dtype, float x);
void zb_ref_round_all(zb_dtype dtype, float *x, size_t numel);
/* The bit pattern of a number that FP16 or BF16 holds; a NaN becomes the quiet one. */
uint16_t zb_ref_encode(zb_dtype dtype, float x);
/* And back. */
float zb_ref_decode(zb_dtype dtype, uint16_t bits);

/* A sum in the fixed shape: 32 lanes filled in turn, then a binary tree. Start from zero bytes. */
enum { ZB_REF_LANES = 32 };
typedef struct zb_ref_sum {
    float lane[ZB_REF_LANES];
    size_t count;
} zb_ref_sum;
void zb_ref_sum_add(zb_ref_sum *sum, float x);
float zb_ref_sum_total(const zb_ref_sum *sum);

/* --- layers.c: one module, or the loss, in fp32. Arrays are dense, row-major, and do not overlap. --- */

/* scratch: zb_ref_layer_scratch_numel() floats, contents undefined before and after. */
size_t zb_ref_layer_scratch_numel(const zb_module *module);

/* y[rows, out] from x[rows, in], w, and b (NULL: none). */
void zb_ref_linear_forward(const zb_module *module, size_t rows, const float *x, const float *w,
                           const float *b, float *y, float *scratch);
void zb_ref_linear_backward_input(const zb_module *module, size_t rows, const float *dy, const float *w,
                                  float *dx);
void zb_ref_linear_backward_weight(const zb_module *module, size_t rows, const float *dy, const float *x,
                                   float *dw);
void zb_ref_conv2d_forward(const zb_module *module, size_t rows, const float *x, const float *w,
                           const float *b, float *y, float *scratch);
void zb_ref_conv2d_backward_input(const zb_module *module, size_t rows, const float *dy, const float *w,
                                  float *dx, float *scratch);
void zb_ref_conv2d_backward_weight(const zb_module *module, size_t rows, const float *dy, const float *x,
                                   float *dw, float *scratch);
/* Of a linear module or a convolution: the sum over rows and positions. */
void zb_ref_backward_bias(const zb_module *module, size_t rows, const float *dy, float *db);
/* argmax[rows, channels, oh, ow]: where in its channel's image each maximum was found. */
void zb_ref_maxpool2d_forward(const zb_module *module, size_t rows, const float *x, float *y, size_t *argmax);
/* Each sum is rounded to dtype. */
void zb_ref_maxpool2d_backward(const zb_module *module, zb_dtype dtype, size_t rows, const float *dy,
                               const size_t *argmax, float *dx);
void zb_ref_relu_forward(size_t numel, const float *x, float *y);
void zb_ref_relu_backward(size_t numel, const float *y, const float *dy, float *dx);

/* Mean over the rows; log_probs[rows, classes] is kept for backward. */
float zb_ref_cross_entropy_forward(size_t rows, size_t classes, const float *x, const int32_t *labels,
                                   float *log_probs);
/* dx[rows, classes] for a loss gradient of seed / divisor. */
void zb_ref_cross_entropy_backward(size_t rows, size_t classes, const float *log_probs, const int32_t *labels,
                                   float seed, float divisor, float *dx);
float zb_ref_mse_forward(size_t numel, const float *x, const float *t);
void zb_ref_mse_backward(size_t numel, const float *x, const float *t, float seed, float divisor, float *dx);

/* --- tensors.c: one array per parameter of a model, dense behind one another --- */

typedef struct zb_ref_tensors {
    size_t numel;  /* of all */
    float *data;   /* [numel], owned */
    float **param; /* [param_count] into data */
} zb_ref_tensors;
/* Zeroed. */
zb_status zb_ref_tensors_create(const zb_model *model, zb_ref_tensors *tensors);
void zb_ref_tensors_destroy(zb_ref_tensors *tensors);

/* --- pass.c: one micro-batch of one rank --- */

typedef struct zb_ref_pass {
    const zb_model *model; /* borrowed */
    zb_dtype dtype;        /* of every tensor below but log_probs */
    float *input;          /* [rows, in] */
    float **output;        /* [module_count], each [rows, out] */
    float **gradient;      /* [module_count], each [rows, out]: of the loss by that output */
    size_t **argmax;       /* [module_count], MAXPOOL2D only */
    int *output_reached;   /* [module_count]: gradient holds a first contribution */
    int *param_reached;    /* [param_count]: the same for a parameter's gradient */
    float *log_probs;      /* [rows, classes], cross entropy only */
    float *contribution;   /* what one module adds to one gradient */
    float *scratch;        /* of layers.c */
} zb_ref_pass;
/* For micro-batches of up to `rows` samples. */
zb_status zb_ref_pass_create(const zb_model *model, zb_dtype dtype, size_t rows, zb_ref_pass *pass);
void zb_ref_pass_destroy(zb_ref_pass *pass);
/* Returns the loss. */
float zb_ref_forward(zb_ref_pass *pass, const zb_ref_tensors *values, const zb_batch *batch);
/*
 * After zb_ref_forward on the same batch. The loss gradient is `seed` (the loss scale), divided by `divisor`
 * at the model's output. Frozen and unused parameters get +0.
 */
void zb_ref_backward(zb_ref_pass *pass, const zb_ref_tensors *values, const zb_batch *batch, float seed,
                     float divisor, zb_ref_tensors *gradients);

/* --- shards.c: the tensors of a plan --- */

/* Elements of a parameter within a tensor. */
typedef struct zb_ref_piece {
    size_t at; /* from which of the tensor's elements */
    int param;
    size_t first; /* of the parameter's elements */
    size_t numel;
} zb_ref_piece;
typedef struct zb_ref_shard_tensor {
    int group;    /* parameter group */
    size_t numel; /* padding included */
    size_t first_piece, piece_count;
} zb_ref_shard_tensor;
/* What one rank holds. */
typedef struct zb_ref_shard {
    zb_ref_piece *pieces; /* in the order of the tensors */
    size_t piece_count;
    zb_ref_shard_tensor *tensors;
    size_t tensor_count;
} zb_ref_shard;
/*
 * One shard per rank, by the plan's world size, round_robin and sub_group_numel. group_of[param]: its
 * parameter group, from 0 (NULL: all in one). Frozen and empty parameters are in no
 * tensor.
 */
zb_status zb_ref_shards_create(const zb_plan *plan, zb_tensors tensors, const zb_model *model,
                               const int *group_of, zb_ref_shard **shards_p);
void zb_ref_shards_destroy(int world_size, zb_ref_shard *shards);
/* Tensor t in one array, zeros where it is padded; and the other way. */
void zb_ref_shard_gather(const zb_ref_shard *shard, size_t t, const zb_ref_tensors *from, float *tensor);
void zb_ref_shard_scatter(const zb_ref_shard *shard, size_t t, const float *tensor, zb_ref_tensors *to);

/* --- reduce.c --- */

/* to = from, or with `add` to + from; rounded to dtype. */
void zb_ref_store(zb_dtype dtype, const zb_ref_tensors *from, int add, zb_ref_tensors *to);
/* out = the average over ranks [plan->world_size], by the plan: the fp32 sum in ascending order. What goes in
 * and what comes out is rounded on the way that plan.h describes, up to comm_dtype. */
void zb_ref_reduce(const zb_plan *plan, const zb_ref_tensors *ranks, zb_ref_tensors *out);
/* One element: what a rank sends of it, in comm_dtype; one of the plan's factors. */
float zb_ref_contribution(const zb_plan *plan, float x);
float zb_ref_factor(zb_factor factor, zb_dtype dtype, float x);

/* --- route.c --- */

/* What follows from plan and model: every trainable element once, every rank once, the plan's type and
 * average. ZB_INVALID_ARGUMENT names the collective and what is wrong. */
zb_status zb_ref_route_check(const zb_plan *plan, const zb_model *model, const zb_route *route);

/* --- exchange.c: sums over ranks in the order of a route --- */

typedef struct zb_ref_exchange {
    const zb_route *route; /* borrowed; NULL: ascending ranks, each partial sum rounded to the type */
    int world_size;
    double *values;         /* [world_size] one number of each rank, for the sums below */
    unsigned char *buffers; /* [world_size + 1][buffer_bytes] what each rank sends in the largest collective;
                               the result */
    size_t buffer_bytes;
    const void **inputs; /* [world_size] */
} zb_ref_exchange;
zb_status zb_ref_exchange_create(const zb_plan *plan, const zb_route *route, zb_ref_exchange *exchange);
void zb_ref_exchange_destroy(zb_ref_exchange *exchange);
/* The sum of `values`. */
float zb_ref_exchange_sum_fp32(const zb_ref_exchange *exchange);
double zb_ref_exchange_sum_fp64(const zb_ref_exchange *exchange);
/* As zb_ref_reduce, by the route, which there is. */
void zb_ref_exchange_gradients(const zb_ref_exchange *exchange, const zb_plan *plan,
                               const zb_ref_tensors *ranks, zb_ref_tensors *out);

/* --- bound.c: how far rounding can take a reduced gradient --- */

/* How many roundings an element meets on its way at most. */
int zb_ref_roundings(const zb_plan *plan);
/* Adds up |gradient|, which is one rank's of one micro-batch. */
void zb_ref_bound_note(const zb_ref_tensors *gradient, double *magnitudes);
/* For an element whose gradients' magnitudes add up to this; no finite number where a type on the way may
 * overflow. */
double zb_ref_bound_of(const zb_plan *plan, double magnitude);

/* The gradients of one optimizer step on their way to the optimizer. */
typedef struct zb_ref_sums {
    int world_size;
    zb_ref_tensors *rank;   /* [world_size]: of the micro-batches that have not been reduced yet */
    zb_ref_tensors average; /* over ranks, of one reduction */
    zb_ref_tensors reduced; /* what the optimizer gets */
} zb_ref_sums;
zb_status zb_ref_sums_create(const zb_model *model, int world_size, zb_ref_sums *sums);
void zb_ref_sums_destroy(zb_ref_sums *sums);
/* One rank's gradient of micro-batch `micro` (from 0). */
void zb_ref_sums_add(const zb_plan *plan, int64_t micro, int rank, const zb_ref_tensors *gradient,
                     zb_ref_sums *sums);
/* After all ranks of a micro-batch: reduces where the plan says so. owners: which rank's optimizer has what;
 * read where averaging is absent. */
void zb_ref_sums_reduce(const zb_plan *plan, int64_t micro, const zb_ref_shard *owners,
                        const zb_ref_exchange *exchange, zb_ref_sums *sums);

/*
 * An exact sum of squares: a non-negative integer in digits of 32 bits, least significant first, in units of
 * 2^-298, the square of the smallest fp32 number. The square of the largest is below 2^256, and at most 2^64
 * of them are added, so that 298 + 256 + 64 = 618 bits are enough. Start from zero bytes.
 */
enum { ZB_REF_SQUARE_DIGITS = 20 };
typedef struct zb_ref_square_sum {
    uint32_t digit[ZB_REF_SQUARE_DIGITS];
    int infinity_seen, nan_seen;
} zb_ref_square_sum;
void zb_ref_square_sum_add(zb_ref_square_sum *sum, float x);
/* Rounded once to fp64, then the root there. NaN if one was added, else infinity if one was. */
double zb_ref_square_sum_root(const zb_ref_square_sum *sum);

/* The root of the exact sum of squares over trainable parameters. */
double zb_ref_norm(const zb_model *model, const zb_ref_tensors *gradients);

/* --- optimizer.c --- */

/*
 * What a gradient is multiplied by to take the loss scale out, and to bring its norm down to about clip_norm
 * (0: no clipping). norm: of the gradient without the loss scale.
 */
float zb_ref_grad_scale(double norm, double clip_norm, double loss_scale);
/* What an optimizer knows beside the tensors. Start from zero bytes. */
typedef struct zb_ref_optimizer {
    zb_optimizer_config now; /* of the step under way: its rate, its betas */
    int64_t step;            /* likewise, from 1 */
    /* DeepSpeedCPUAdam's beta^step in fp32, multiplied up from step to step as long as the betas stay. */
    float power1, power2, power_of1, power_of2;
    int64_t power_step;
} zb_ref_optimizer;
/* A step begins, with the hyper-parameters of one parameter group; within it, those of another. */
void zb_ref_optimizer_begin(zb_ref_optimizer *optimizer, const zb_optimizer_config *now);
void zb_ref_optimizer_take(zb_ref_optimizer *optimizer, const zb_optimizer_config *now);
/*
 * Update one tensor in place. exp_avg: the first moment of Adam, Lion and LAMB, or SGD's momentum buffer;
 * exp_avg_sq: the second moment of Adam and LAMB, or Adagrad's sum of squares; either may be NULL where the
 * formula has none.
 */
void zb_ref_update(const zb_ref_optimizer *optimizer, float grad_scale, size_t numel, float *p,
                   const float *grad, float *exp_avg, float *exp_avg_sq);

/* --- deepspeed.c: norm and clipping by the plan's methods --- */

/* The tensors that the plan's norm is taken of. */
zb_tensors zb_ref_norm_tensors(const zb_plan *plan);
/*
 * Of the reduced gradients, still multiplied by the loss scale. shards: of zb_ref_norm_tensors. scratch:
 * floats for the largest tensor, and one for each tensor of a rank.
 */
double zb_ref_plan_norm(const zb_plan *plan, const zb_model *model, const zb_ref_shard *shards,
                        const zb_ref_tensors *gradients, const zb_ref_exchange *exchange, float *scratch);
/* What gradients are multiplied by, and the norm that is reported, for a loss scale. */
float zb_ref_plan_grad_scale(const zb_plan *plan, double norm, double loss_scale);
double zb_ref_reported_norm(const zb_plan *plan, double norm, double loss_scale);

/* --- step.c: from reduced gradients to weights, whether a model made the gradients or a recording --- */

typedef struct zb_ref_state {
    zb_plan plan;
    const zb_model *model;  /* borrowed */
    zb_schedules schedules; /* their rates are what the next step uses */
    zb_loss_scaler scaler;  /* its scale is what the next step uses */
    zb_ref_tensors master;  /* fp32: what the optimizer writes */
    zb_ref_tensors exp_avg, exp_avg_sq;
    zb_ref_sums sums;
    zb_ref_exchange exchange;
    zb_ref_shard *shards;       /* [world_size]: what the optimizer takes for one tensor */
    zb_ref_shard *norm_shards;  /* [world_size]: and the norm */
    zb_ref_shard *owners;       /* [world_size]: whose optimizer has what; NULL unless nothing is sent */
    float *tensor[4];           /* one of them: weights, gradient, moments */
    int64_t steps, skipped;     /* optimizer steps done; skipped ones are among them */
    zb_ref_optimizer optimizer; /* its step counts those that it took, a hidden first one included */
    /* Of the last step. */
    double loss_scale; /* that its gradients were made with */
    double lr[ZB_PARAM_GROUP_MAX];
    int64_t overflow;
    double norm; /* as reported: without the loss scale; a skipped step may leave the one before, or 0 */
} zb_ref_state;
/* schedules: [plan->group_count]. group_of: as in zb_ref_shards_create; needed during the call only. route:
 * borrowed; NULL where the plan adds in rank order. */
zb_status zb_ref_state_create(const zb_plan *plan, const zb_schedule_config *schedules, const zb_model *model,
                              const int *group_of, const zb_route *route, zb_ref_state *state);
void zb_ref_state_destroy(zb_ref_state *state);
/* Once, when the masters have been filled with the initial weights. */
void zb_ref_state_begin(zb_ref_state *state);
/* What the loss gradient begins as, before it is divided by the accumulation steps. */
float zb_ref_seed(const zb_ref_state *state);
/* One rank's gradient of micro-batch `micro` (from 0), ranks in ascending order; the last one's is followed
 * by the reduction, where the plan has one then. */
void zb_ref_state_add(zb_ref_state *state, int64_t micro, int rank, const zb_ref_tensors *gradient);
/* After the gradients of all micro-batches. ZB_LOSS_SCALE where training ends. */
zb_status zb_ref_state_step(zb_ref_state *state);

#endif
