/* What every quantity of observe.h looks like: whose it is, its type, its size, the names of its elements. */
#ifndef VERIFY_QUANTITY_H
#define VERIFY_QUANTITY_H

#include <stdint.h>
#include <zerobit/model.h>
#include <zerobit/observe.h>

typedef enum zb_scope {
    ZB_SCOPE_PARAM,     /* one tensor per parameter, the same whichever rank shows it */
    ZB_SCOPE_WORLD,     /* a few numbers on which all ranks agree */
    ZB_SCOPE_RANK,      /* each rank has its own */
    ZB_SCOPE_RANK_PARAM /* each rank has its own tensor per parameter */
} zb_scope;

typedef struct zb_quantity_facts {
    zb_dtype dtype; /* FP32 stands for FP16 and BF16 too where may_be_16_bit */
    zb_scope scope;
    int of_micro_batch; /* shown once per micro-batch */
    size_t numel;       /* 0: as many as the parameter, the micro-batch, or the list of groups has */
    int may_be_16_bit;
} zb_quantity_facts;

const zb_quantity_facts *zb_quantity_get(zb_quantity quantity);

/** Whether the quantity has a tensor per parameter. */
int zb_quantity_is_of_param(zb_quantity quantity);
/** Whether nobody has to show it. */
int zb_quantity_is_optional(zb_quantity quantity);

/** "global_steps", "gradients", "all_reduce", ... for quantities whose elements have names of their own; else
 * NULL. */
const char *zb_quantity_element_name(zb_quantity quantity, uint64_t element);

/** What is wrong with an observation, in words; NULL when it is well formed. world_size bounds the rank. */
const char *zb_observation_fault(const zb_observation *observation, const zb_param *params, int param_count,
                                 int world_size);

/** The order in which a step computes and a trace keeps: (step, quantity, micro, param, rank, first). */
int zb_observation_order(const zb_observation *a, const zb_observation *b);

#endif
