/* The table behind quantity.h. */
#include "verify/quantity.h"

#include <zerobit/comm.h>
#include <zerobit/device.h>

static const char *const counter_names[] = { "micro_steps", "global_steps", "global_samples",
                                             "skipped_steps" };
enum { COUNTER_COUNT = sizeof counter_names / sizeof counter_names[0] };

const zb_quantity_facts *zb_quantity_get(zb_quantity quantity)
{
    static const zb_quantity_facts facts[ZB_QUANTITY_COUNT] = {
        [ZB_Q_SAMPLES] = { ZB_INT64, ZB_SCOPE_RANK, 1, 0, 0 },
        [ZB_Q_LOSS] = { ZB_FP32, ZB_SCOPE_RANK, 1, 1, 0 },
        [ZB_Q_CONTRIBUTION] = { ZB_FP32, ZB_SCOPE_RANK_PARAM, 1, 0, .may_be_16_bit = 1 },
        [ZB_Q_GRAD] = { ZB_FP32, ZB_SCOPE_PARAM, 0, 0, .may_be_16_bit = 1 },
        [ZB_Q_NORM] = { ZB_FP64, ZB_SCOPE_WORLD, 0, 1, 0 },
        [ZB_Q_OVERFLOW] = { ZB_INT64, ZB_SCOPE_WORLD, 0, 1, 0 },
        [ZB_Q_LOSS_SCALE] = { ZB_FP64, ZB_SCOPE_WORLD, 0, 1, 0 },
        [ZB_Q_LR] = { ZB_FP64, ZB_SCOPE_WORLD, 0, 0, 0 },
        [ZB_Q_MASTER] = { ZB_FP32, ZB_SCOPE_PARAM, 0, 0, 0 },
        [ZB_Q_EXP_AVG] = { ZB_FP32, ZB_SCOPE_PARAM, 0, 0, 0 },
        [ZB_Q_EXP_AVG_SQ] = { ZB_FP32, ZB_SCOPE_PARAM, 0, 0, 0 },
        [ZB_Q_PARAM] = { ZB_FP32, ZB_SCOPE_PARAM, 0, 0, .may_be_16_bit = 1 },
        [ZB_Q_COUNTERS] = { ZB_INT64, ZB_SCOPE_WORLD, 0, COUNTER_COUNT, 0 },
        [ZB_Q_BYTES_HELD] = { ZB_INT64, ZB_SCOPE_RANK, 0, ZB_MEM_COUNT, 0 },
        [ZB_Q_CALLS] = { ZB_INT64, ZB_SCOPE_RANK, 0, ZB_COLLECTIVE_COUNT, 0 },
        [ZB_Q_BYTES_SENT] = { ZB_INT64, ZB_SCOPE_RANK, 0, ZB_COLLECTIVE_COUNT, 0 },
    };
    ZB_ASSERT((unsigned)quantity < ZB_QUANTITY_COUNT);
    return &facts[quantity];
}

int zb_quantity_is_of_param(zb_quantity quantity)
{
    const zb_scope scope = zb_quantity_get(quantity)->scope;
    return scope == ZB_SCOPE_PARAM || scope == ZB_SCOPE_RANK_PARAM;
}

int zb_quantity_is_optional(zb_quantity quantity)
{
    return quantity == ZB_Q_CONTRIBUTION;
}

const char *zb_quantity_element_name(zb_quantity quantity, uint64_t element)
{
    switch (quantity) {
    case ZB_Q_COUNTERS:
        return element < COUNTER_COUNT ? counter_names[element] : NULL;
    case ZB_Q_BYTES_HELD:
        return element < ZB_MEM_COUNT ? zb_memory_kind_name((zb_memory_kind)element) : NULL;
    case ZB_Q_CALLS:
    case ZB_Q_BYTES_SENT:
        return element < ZB_COLLECTIVE_COUNT ? zb_collective_name((zb_collective_kind)element) : NULL;
    default:
        return NULL;
    }
}

const char *zb_observation_fault(const zb_observation *observation, const zb_param *params, int param_count,
                                 int world_size)
{
    if ((unsigned)observation->quantity >= ZB_QUANTITY_COUNT) return "unknown quantity";
    const zb_quantity_facts *facts = zb_quantity_get(observation->quantity);
    int is_16_bit = observation->dtype == ZB_FP16 || observation->dtype == ZB_BF16;
    if (observation->dtype != facts->dtype && !(facts->may_be_16_bit && is_16_bit))
        return "element type does not belong to the quantity";
    if (observation->step < -1) return "step below -1";
    if (facts->of_micro_batch ? observation->micro < 0 : observation->micro != -1)
        return "micro-batch does not belong to the quantity";
    if (observation->rank < ZB_EVERY_RANK || observation->rank >= world_size) return "rank outside the world";

    size_t limit = facts->numel != 0 ? facts->numel : SIZE_MAX;
    if (facts->scope == ZB_SCOPE_RANK_PARAM && observation->rank == ZB_EVERY_RANK) return "no rank";
    if (zb_quantity_is_of_param(observation->quantity)) {
        if (observation->param < 0 || observation->param >= param_count) return "parameter outside the model";
        limit = params[observation->param].numel;
    } else if (observation->param != ZB_NO_PARAM) {
        return "parameter does not belong to the quantity";
    }
    if (observation->first > limit || observation->numel > limit - observation->first)
        return "elements outside the tensor";
    return NULL;
}

int zb_observation_order(const zb_observation *a, const zb_observation *b)
{
    if (a->step != b->step) return a->step < b->step ? -1 : 1;
    if (a->quantity != b->quantity) return a->quantity < b->quantity ? -1 : 1;
    if (a->micro != b->micro) return a->micro < b->micro ? -1 : 1;
    if (a->param != b->param) return a->param < b->param ? -1 : 1;
    if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return 0;
}
