/*
 * Model-state memory as others estimate it: the ZeRO paper's table, and DeepSpeed's own estimators. For comparison with
 * what the engine really holds (engine.h, zb_memory_formula).
 */
#ifndef ZEROBIT_ESTIMATE_H
#define ZEROBIT_ESTIMATE_H

#include <stdint.h>
#include <zerobit/export.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Bytes per rank with mixed-precision Adam: 2 + 2 bytes of weights and gradients, K = 12 of optimizer states. */
typedef struct zb_paper_memory {
    double baseline, os, os_g, os_g_p; /* nothing partitioned; optimizer states; and gradients; and parameters */
} zb_paper_memory;
/** ZeRO, arXiv 1910.02054, figure 1 and table 1. ranks >= 1. */
ZB_API zb_paper_memory zb_paper_memory_bytes(uint64_t param_numel, int ranks);

typedef struct zb_estimate {
    uint64_t cpu_bytes; /* per node */
    uint64_t gpu_bytes; /* per GPU  */
} zb_estimate;

typedef enum zb_offload { ZB_OFFLOAD_NONE, ZB_OFFLOAD_OPTIMIZER, ZB_OFFLOAD_OPTIMIZER_AND_PARAMS } zb_offload;

typedef struct zb_estimate_setup {
    uint64_t param_numel;
    uint64_t largest_layer_numel; /* stage 3 */
    int nodes, gpus_per_node;     /* >= 1 */
    int zero_init;                /* stage 3: parameters are partitioned as they are created */
} zb_estimate_setup;

/**
 * DeepSpeed's estimate_zero2_model_states_mem_needs and estimate_zero3_model_states_mem_needs with their default buffer
 * factor of 1.5, truncated as they are. At stage 2 both kinds of offload mean the optimizer's.
 * Source: deepspeed/runtime/zero/stage_1_and_2.py, stage3.py.
 */
ZB_API zb_estimate zb_estimate_zero2(const zb_estimate_setup *setup, zb_offload offload);
ZB_API zb_estimate zb_estimate_zero3(const zb_estimate_setup *setup, zb_offload offload);

#ifdef __cplusplus
}
#endif
#endif
