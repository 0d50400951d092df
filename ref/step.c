/*
 * From reduced gradients to weights: overflow -> loss scale -> norm -> clip -> optimizer -> schedule. A
 * training run and a replay differ only in who makes the gradients. Reading order: zb_ref_state_step, apply,
 * update.
 */
#include "ref/oracle.h"

#include <math.h>
#include <zerobit/memory.h>

enum { WEIGHTS, GRADIENT, EXP_AVG, EXP_AVG_SQ, ARRAYS };

/* --- create, destroy --- */

/* Floats for the largest tensor that optimizer or norm may see, and one for each tensor of a rank. */
static size_t scratch_numel(const zb_ref_state *s)
{
    const zb_ref_shard *const shards[] = { &s->shards[0], &s->norm_shards[0] };
    size_t numel = 0;
    for (size_t i = 0; i < sizeof shards / sizeof shards[0]; i++) {
        if (shards[i]->tensor_count > numel) numel = shards[i]->tensor_count;
        for (size_t t = 0; t < shards[i]->tensor_count; t++)
            if (shards[i]->tensors[t].numel > numel) numel = shards[i]->tensors[t].numel;
    }
    return numel;
}

static zb_status fill(zb_ref_state *s, const zb_schedule_config *schedules, const int *group_of,
                      const zb_route *route)
{
    if (s->plan.orders != NULL && route == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "oracle: the plan names another order than that of ranks, and there is no route");
    if (route != NULL) ZB_TRY(zb_ref_route_check(&s->plan, s->model, route));
    ZB_TRY(zb_ref_exchange_create(&s->plan, route, &s->exchange));
    ZB_TRY(zb_schedules_init(&s->schedules, schedules, s->plan.group_count));
    ZB_TRY(zb_loss_scaler_init(&s->scaler, &s->plan.scaler));
    zb_ref_tensors *const tensors[] = { &s->master, &s->exp_avg, &s->exp_avg_sq };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        ZB_TRY(zb_ref_tensors_create(s->model, tensors[i]));
    ZB_TRY(zb_ref_sums_create(s->model, s->plan.world_size, &s->sums));
    ZB_TRY(zb_ref_shards_create(&s->plan, s->plan.tensors, s->model, group_of, &s->shards));
    ZB_TRY(
        zb_ref_shards_create(&s->plan, zb_ref_norm_tensors(&s->plan), s->model, group_of, &s->norm_shards));
    /* Only stages 1 and 2 may send nothing. */
    if (s->plan.averaging.absent)
        ZB_TRY(zb_ref_shards_create(&s->plan, ZB_TENSORS_PARTITIONS, s->model, group_of, &s->owners));
    for (int i = 0; i < ARRAYS; i++) {
        s->tensor[i] = zb_alloc_array(scratch_numel(s), sizeof(float));
        if (s->tensor[i] == NULL) return ZB_NO_MEMORY;
    }
    return ZB_OK;
}

zb_status zb_ref_state_create(const zb_plan *plan, const zb_schedule_config *schedules, const zb_model *model,
                              const int *group_of, const zb_route *route, zb_ref_state *state)
{
    zb_ref_state made = { .plan = *plan, .model = model };
    const zb_status status = fill(&made, schedules, group_of, route);
    if (status == ZB_OK)
        *state = made;
    else
        zb_ref_state_destroy(&made);
    return status;
}

void zb_ref_state_destroy(zb_ref_state *s)
{
    zb_ref_tensors_destroy(&s->master);
    zb_ref_tensors_destroy(&s->exp_avg);
    zb_ref_tensors_destroy(&s->exp_avg_sq);
    zb_ref_sums_destroy(&s->sums);
    zb_ref_exchange_destroy(&s->exchange);
    zb_ref_shards_destroy(s->plan.world_size, s->shards);
    zb_ref_shards_destroy(s->plan.world_size, s->norm_shards);
    zb_ref_shards_destroy(s->plan.world_size, s->owners);
    for (int i = 0; i < ARRAYS; i++) zb_free(s->tensor[i]);
    *s = (zb_ref_state){ 0 };
}

/* --- the optimizer --- */

static void update_tensor(zb_ref_state *s, const zb_ref_shard *shard, size_t t,
                          const zb_optimizer_config *now, float grad_scale)
{
    zb_ref_optimizer_take(&s->optimizer, &now[shard->tensors[t].group]);
    zb_ref_tensors *const from[ARRAYS] = { &s->master, &s->sums.reduced, &s->exp_avg, &s->exp_avg_sq };
    for (int i = 0; i < ARRAYS; i++) zb_ref_shard_gather(shard, t, from[i], s->tensor[i]);
    zb_ref_update(&s->optimizer, grad_scale, shard->tensors[t].numel, s->tensor[WEIGHTS], s->tensor[GRADIENT],
                  s->tensor[EXP_AVG], s->tensor[EXP_AVG_SQ]);
    for (int i = 0; i < ARRAYS; i++)
        if (i != GRADIENT) zb_ref_shard_scatter(shard, t, s->tensor[i], from[i]);
}

/* Where every rank holds everything, all of them compute the same. */
static int ranks_that_differ(const zb_plan *plan)
{
    const int is_cut = plan->tensors == ZB_TENSORS_PARTITIONS || plan->tensors == ZB_TENSORS_SUB_GROUPS;
    return is_cut ? plan->world_size : 1;
}

/* now: the hyper-parameters of this step, by group. */
static void update(zb_ref_state *s, const zb_optimizer_config *now, float grad_scale)
{
    zb_ref_optimizer_begin(&s->optimizer, now);
    for (int rank = 0; rank < ranks_that_differ(&s->plan); rank++)
        for (size_t t = 0; t < s->shards[rank].tensor_count; t++)
            update_tensor(s, &s->shards[rank], t, now, grad_scale);
}

/* The gradients are still zero, and the schedule has not set a rate yet. */
void zb_ref_state_begin(zb_ref_state *s)
{
    if (s->plan.hidden_first_step) update(s, s->plan.groups, 1.0f);
}

/* --- a step --- */

float zb_ref_seed(const zb_ref_state *s)
{
    return s->plan.loss_is_scaled ? zb_ref_round(s->plan.seed_dtype, (float)s->scaler.scale) : 1.0f;
}

void zb_ref_state_add(zb_ref_state *s, int64_t micro, int rank, const zb_ref_tensors *gradient)
{
    zb_ref_sums_add(&s->plan, micro, rank, gradient, &s->sums);
    if (rank == s->plan.world_size - 1)
        zb_ref_sums_reduce(&s->plan, micro, s->owners, &s->exchange, &s->sums);
}

/* An infinity or a NaN in any reduced gradient, where the plan looks for one. */
static int overflows(const zb_ref_state *s)
{
    if (s->plan.overflow != ZB_OVERFLOW_SKIP && s->plan.overflow != ZB_OVERFLOW_COUNT) return 0;
    for (size_t i = 0; i < s->sums.reduced.numel; i++)
        if (!isfinite(s->sums.reduced.data[i])) return 1;
    return 0;
}

/* Returns the norm with the loss scale still in it. */
static double take_norm(zb_ref_state *s)
{
    const zb_plan *plan = &s->plan;
    const double norm = zb_ref_plan_norm(plan, s->model, s->norm_shards, &s->sums.reduced, &s->exchange,
                                         s->tensor[GRADIENT]);
    const double next = s->scaler.scale;
    s->norm = zb_ref_reported_norm(plan, norm, plan->report_norm_by_next_scale ? next : s->loss_scale);
    return norm;
}

static void apply(zb_ref_state *s, double norm)
{
    const zb_plan *plan = &s->plan;
    const double by = plan->unscale_by_next_scale ? s->scaler.scale : s->loss_scale;
    zb_optimizer_config now[ZB_PARAM_GROUP_MAX];
    for (int g = 0; g < plan->group_count; g++) now[g] = plan->groups[g];
    zb_schedules_apply(&s->schedules, now);
    update(s, now, zb_ref_plan_grad_scale(plan, norm, by));
}

zb_status zb_ref_state_step(zb_ref_state *s)
{
    const zb_plan *plan = &s->plan;
    s->loss_scale = s->scaler.scale;
    zb_schedules_rates(&s->schedules, s->lr);
    s->overflow = overflows(s);
    ZB_TRY(zb_loss_scaler_update(&s->scaler, (int)s->overflow));
    s->steps++;
    s->skipped += s->overflow;

    const int is_skipped = s->overflow && plan->overflow == ZB_OVERFLOW_SKIP;
    /* DeepSpeed takes its norms after an overflow has been ruled out: the one of the step before stays. */
    if (is_skipped && plan->norm != ZB_NORM_EXACT) return ZB_OK;
    const double norm = take_norm(s);
    if (is_skipped) return ZB_OK;
    if (plan->overflow == ZB_OVERFLOW_STOP && !(norm > 0.0 && isfinite(norm)))
        return zb_fail(ZB_LOSS_SCALE, "gradient norm is %g, want a number above 0: training ends here", norm);
    apply(s, norm);
    if (!s->overflow) zb_schedules_step(&s->schedules);
    return ZB_OK;
}
