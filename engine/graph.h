/*
 * What the engine derives from a model once: who needs a gradient, in which order parameter gradients become
 * ready in backward, and which buffers a pass takes. Pure, so that the memory and traffic formulas and the
 * executor read the same facts.
 */
#ifndef ZEROBIT_ENGINE_GRAPH_H
#define ZEROBIT_ENGINE_GRAPH_H

#include <stddef.h>
#include <zerobit/kernels.h>
#include <zerobit/model.h>
#include <zerobit/status.h>

typedef struct zb_graph {
    const zb_model *model;
    /* Per module; its output is "activation m". */
    unsigned char *needs_grad;  /* [module_count] the output depends on a trainable parameter     */
    unsigned char *shares_grad; /* [module_count] flatten whose input feeds nothing else: its
                                   output's gradient is its input's gradient                      */
    size_t *value_numel;        /* [module_count] per sample; 0: flatten, a view of its input      */
    /* Trainable parameters with elements, in the order in which backward completes their gradients:
     * modules backwards, bias before weight, a tied one at its last contribution, unused ones at the end. */
    int *ready_order;
    int *trainable;              /* the same ones in parameter order */
    int ready_count;             /* of both                          */
    size_t max_param_numel;      /* of a trainable parameter                        */
    size_t shared_grad_numel;    /* largest activation per sample whose gradient has several contributions; 0:
                                    none */
    size_t conv_workspace_numel; /* largest of any convolution                      */
} zb_graph;

zb_status zb_graph_create(const zb_model *model, zb_graph *graph);
void zb_graph_destroy(zb_graph *graph);

/* Backward of this module reads its weight: a gradient for its input is wanted. */
int zb_graph_backward_reads_weight(const zb_graph *graph, int module);
/* The first module in forward order that uses the parameter: where backward completes its gradient. -1: none.
 */
int zb_graph_first_use(const zb_graph *graph, int param);
zb_conv2d_shape zb_graph_conv2d_shape(const zb_module *module, size_t rows);

#endif
