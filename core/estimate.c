/* The paper's and DeepSpeed's memory estimates, in double as Python computes them. */
#include <zerobit/estimate.h>

static const double buffer_factor = 1.5; /* additional_buffer_factor */

static double max_double(double a, double b)
{
    return a > b ? a : b;
}

zb_paper_memory zb_paper_memory_bytes(uint64_t param_numel, int ranks)
{
    const double psi = (double)param_numel, n = ranks, k = 12;
    return (zb_paper_memory){ .baseline = (4 + k) * psi,
                              .os = 4 * psi + k * psi / n,
                              .os_g = 2 * psi + (2 + k) * psi / n,
                              .os_g_p = (4 + k) * psi / n };
}

zb_estimate zb_estimate_zero2(const zb_estimate_setup *s, zb_offload offload)
{
    const double psi = (double)s->param_numel, per_node = s->gpus_per_node,
                 gpus = (double)s->nodes * per_node;
    if (offload != ZB_OFFLOAD_NONE)
        return (zb_estimate){ .cpu_bytes = (uint64_t)(psi * max_double(4 * gpus, 16) * buffer_factor),
                              .gpu_bytes = 2 * s->param_numel };
    /* 18: 2 of gradients, and 4 + 4 + 8 of fp32 gradients, weights and moments. */
    return (zb_estimate){ .cpu_bytes = (uint64_t)(psi * 4 * per_node * buffer_factor),
                          .gpu_bytes = 2 * s->param_numel + (uint64_t)(18 * psi / gpus) };
}

zb_estimate zb_estimate_zero3(const zb_estimate_setup *s, zb_offload offload)
{
    const double psi = (double)s->param_numel, per_node = s->gpus_per_node,
                 gpus = (double)s->nodes * per_node;
    const double share = 1.0 / s->nodes, largest = (double)s->largest_layer_numel;
    const double whole_model =
        4 * per_node; /* every process of a node makes the model before it is partitioned */
    double cpu, gpu = 4 * largest;
    switch (offload) {
    case ZB_OFFLOAD_OPTIMIZER_AND_PARAMS:
        cpu = psi * (s->zero_init ? 18 * share : max_double(whole_model, 18 * share));
        break;
    case ZB_OFFLOAD_OPTIMIZER:
        cpu = psi * (s->zero_init ? 16 * share : max_double(whole_model, 16 * share));
        gpu += (double)(uint64_t)(2 * psi / gpus);
        break;
    case ZB_OFFLOAD_NONE:
    default:
        cpu = s->zero_init ? largest * whole_model : psi * whole_model;
        gpu += (double)(uint64_t)(18 * psi / gpus);
        break;
    }
    return (zb_estimate){ .cpu_bytes = (uint64_t)(cpu * buffer_factor), .gpu_bytes = (uint64_t)gpu };
}
