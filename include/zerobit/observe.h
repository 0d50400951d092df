/*
 * What a run shows of itself, in one form for oracle, engine and trace: a stream of observations.
 * An observation is a range of one quantity at one step on one rank.
 */
#ifndef ZEROBIT_OBSERVE_H
#define ZEROBIT_OBSERVE_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * In the order in which a step computes them: the first difference is the earliest in this order. A contribution is what a rank
 * sends of its gradient of a parameter; where all micro-batches are sent at once it has one of them, the last. Nobody has to show it.
 */
#define ZB_QUANTITY_MAP(X)                                                                                 \
    X(SAMPLES, "sample indices", INT64)  /* per rank and micro-batch: [rows]                            */ \
    X(LOSS, "loss", FP32)                /* per rank and micro-batch: 1, the rank's own mean            */ \
    X(CONTRIBUTION, "contribution", FP32) /* per rank, micro-batch and parameter, in comm_dtype; optional */ \
    X(GRAD, "reduced gradient", FP32)    /* per parameter, in grad_dtype: after reduction, before clipping */ \
    X(NORM, "gradient norm", FP64)       /* 1, before clipping                                          */ \
    X(OVERFLOW, "overflow", INT64)       /* 1: 0 or 1                                                   */ \
    X(LOSS_SCALE, "loss scale", FP64)    /* 1: in force at this step                                    */ \
    X(LR, "learning rate", FP64)         /* per parameter group: used by this step                      */ \
    X(MASTER, "fp32 weight", FP32)       /* per parameter: after the step                               */ \
    X(EXP_AVG, "first moment", FP32)     /* per parameter; SGD: the momentum buffer; Adagrad: none      */ \
    X(EXP_AVG_SQ, "second moment", FP32) /* per parameter; Adam, LAMB; Adagrad: the sum of squares      */ \
    X(PARAM, "model weight", FP32)       /* per parameter, in the model's dtype: what forward reads     */ \
    X(COUNTERS, "counters", INT64)       /* 4: micro_steps, global_steps, global_samples, skipped_steps */ \
    X(BYTES_HELD, "bytes held", INT64)   /* [ZB_MEM_COUNT], by category                                 */ \
    X(CALLS, "collectives called", INT64) /* [ZB_COLLECTIVE_COUNT], by collective, in this step         */ \
    X(BYTES_SENT, "bytes sent", INT64)   /* [ZB_COLLECTIVE_COUNT], by collective, in this step          */

typedef enum zb_quantity {
#define ZB_QUANTITY_ENUM(name, text, dtype) ZB_Q_##name,
    ZB_QUANTITY_MAP(ZB_QUANTITY_ENUM)
#undef ZB_QUANTITY_ENUM
    ZB_QUANTITY_COUNT
} zb_quantity;
ZB_API const char *zb_quantity_name(zb_quantity quantity);

enum { ZB_EVERY_RANK = -1 };

typedef struct zb_observation {
    zb_quantity quantity;
    int64_t step;  /* optimizer step, from 0; -1: after initialize */
    int64_t micro; /* micro-batch within the step, or -1 */
    int rank;      /* or ZB_EVERY_RANK: must hold on all of them */
    int param;     /* or ZB_NO_PARAM (-1) */
    zb_dtype dtype;
    size_t first, numel; /* which elements of the quantity */
    const void *data;    /* [numel] host memory, valid during the call */
} zb_observation;

typedef struct zb_observer {
    zb_status (*observe)(void *user, const zb_observation *observation);
    void *user;
} zb_observer;

#ifdef __cplusplus
}
#endif
#endif
