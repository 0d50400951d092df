/*
 * Runs the model on the device: forward, loss, backward over one micro-batch. Knows no rank and no partition;
 * parameters and gradient destinations come from the stage.
 */
#ifndef ZEROBIT_ENGINE_EXECUTOR_H
#define ZEROBIT_ENGINE_EXECUTOR_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/data.h>
#include <zerobit/device.h>
#include <zerobit/status.h>

#include "engine/graph.h"
#include "engine/stage.h"

typedef struct zb_executor {
    const zb_graph *graph;
    zb_device *device;
    zb_stream *stream;
    zb_dtype dtype; /* of every tensor of a pass */
    size_t max_rows;
    size_t rows; /* of the last forward */

    /* On the device. Values and gradients are per module; a flatten's value is its input's. */
    void **value, **grad;
    int32_t **argmax;  /* max-pools */
    float *input_fp32; /* as the loader gives it, where dtype is another */
    void *input;
    int32_t *labels;
    float *targets;
    float *log_probs, *row_loss, *loss;

    void *param_scratch;      /* max_param_numel: a gradient without a target             */
    void **tied_grad;         /* per parameter: where contributions of a tied one are added */
    void *activation_scratch; /* a second contribution to an activation's gradient        */
    float *conv_workspace;

    /* Per backward. */
    unsigned char *activation_seen; /* [module_count] */
    int *uses_left;                 /* [param_count] contributions still to come */
} zb_executor;

zb_status zb_executor_create(const zb_graph *graph, zb_device *device, zb_stream *stream, zb_dtype dtype,
                             size_t max_rows, zb_executor *executor);
void zb_executor_destroy(zb_executor *executor);

/* Refuses what the model cannot take; changes nothing. */
zb_status zb_executor_check_batch(const zb_executor *executor, const zb_batch *batch);
/* *loss: mean over the rows of a batch that has been checked. Waits for the device. */
zb_status zb_executor_forward(zb_executor *executor, zb_stage *stage, const zb_batch *batch, float *loss);
/* `seed` is the gradient of the loss; the gradient at the model's output is divided by `divisor`. */
zb_status zb_executor_backward(zb_executor *executor, zb_stage *stage, float seed, float divisor);

/* Bytes that zb_executor_create books under ACTIVATION and WORKSPACE. */
void zb_executor_memory(const zb_graph *graph, zb_dtype dtype, size_t max_rows, uint64_t bytes[ZB_MEM_COUNT]);

#endif
