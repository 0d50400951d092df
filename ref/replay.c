/*
 * A recorded run of DeepSpeed 0.19.6 or PyTorch, played by the oracle: the recorded gradients go through the
 * plan of the run's stage. Reading order: zb_ref_replay_create, step, state.
 */
#include <zerobit/ref.h>
#include <zerobit/replay.h>

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "ref/oracle.h"

typedef struct replay {
    const zb_replay_run *run; /* borrowed, like the next */
    const zb_route *route;    /* NULL: rank order */
    zb_ref_state state;
    zb_model model;          /* has parameters only, made from the run's sizes */
    zb_ref_tensors gradient; /* of one micro-batch of one rank */
    /* What `state` hands out. */
    zb_replay_piece *pieces; /* [param_count], as there are pieces and tensors at most */
    size_t *tensor_numel;
    double lr[ZB_PARAM_GROUP_MAX];
} replay;

/* --- create, destroy --- */

static zb_status name_param(const zb_replay_run *run, int p, zb_param *param)
{
    const int length = snprintf(param->name, sizeof param->name, "%s", run->param_names[p]);
    if (length < (int)sizeof param->name) return ZB_OK;
    return zb_fail(ZB_INVALID_CONFIG,
                   "run %s: the name of parameter %d has %d characters, want fewer than %d", run->name, p,
                   length, (int)sizeof param->name);
}

static zb_status create_model(const zb_replay_run *run, zb_model *model)
{
    snprintf(model->name, sizeof model->name, "%s", run->name); /* for messages */
    model->params = zb_alloc_array((size_t)run->param_count, sizeof *model->params);
    if (model->params == NULL) return ZB_NO_MEMORY;
    model->param_count = run->param_count;
    model->param_numel = run->numel;
    for (int p = 0; p < run->param_count; p++) {
        model->params[p] = (zb_param){ .numel = run->param_numel[p], .requires_grad = !run->frozen[p] };
        ZB_TRY(name_param(run, p, &model->params[p]));
    }
    return ZB_OK;
}

static zb_status create_state(replay *r, const zb_plan *plan)
{
    zb_schedule_config schedules[ZB_PARAM_GROUP_MAX];
    int *group_of = zb_alloc_array((size_t)r->model.param_count, sizeof *group_of);
    if (group_of == NULL) return ZB_NO_MEMORY;
    zb_config_list_schedules(r->run->config, schedules);
    zb_status status = zb_config_assign_groups(r->run->config, &r->model, group_of);
    if (status == ZB_OK)
        status = zb_ref_state_create(plan, schedules, &r->model, group_of, r->route, &r->state);
    zb_free(group_of);
    return status;
}

static zb_status fill(replay *r)
{
    const zb_replay_run *run = r->run;
    const size_t params = (size_t)run->param_count;
    zb_plan plan;
    ZB_TRY(zb_plan_derive(run->config, run->config->zero.stage, run->config->dtype, run->world_size, &plan));
    ZB_TRY(create_model(run, &r->model));
    if ((r->pieces = zb_alloc_array(params, sizeof *r->pieces)) == NULL) return ZB_NO_MEMORY;
    if ((r->tensor_numel = zb_alloc_array(params, sizeof *r->tensor_numel)) == NULL) return ZB_NO_MEMORY;
    ZB_TRY(create_state(r, &plan));
    ZB_TRY(zb_ref_tensors_create(&r->model, &r->gradient));

    for (size_t i = 0; i < run->numel; i++)
        r->state.master.data[i] = zb_ref_round(plan.param_dtype, run->init[i]);
    zb_ref_state_begin(&r->state);
    return ZB_OK;
}

static void destroy(void *self)
{
    replay *r = self;
    zb_ref_state_destroy(&r->state);
    zb_ref_tensors_destroy(&r->gradient);
    zb_free(r->model.params);
    zb_free(r->pieces);
    zb_free(r->tensor_numel);
    zb_free(r);
}

/* --- a step --- */

/*
 * Recorded is either the local gradient itself, or x of a loss that is the sum over parameters of sum(p * x),
 * in fp32 whatever the model's type, so that the plan's seed_dtype plays no part; its gradient by p is x
 * times the gradient of the loss, rounded to the model's type.
 */
static void compute_gradients(replay *r, size_t step)
{
    const zb_plan *plan = &r->state.plan;
    const float scale = plan->loss_is_scaled ? (float)r->state.scaler.scale : 1.0f;
    const float seed = r->run->grads_are_local ? 1.0f : scale / (float)plan->accumulation_steps;
    for (int64_t micro = 0; micro < plan->accumulation_steps; micro++)
        for (int rank = 0; rank < plan->world_size; rank++) {
            const float *x = r->run->grads[step][micro * plan->world_size + rank];
            for (int p = 0; p < r->model.param_count; p++)
                for (size_t i = 0; i < r->model.params[p].numel; i++, x++)
                    r->gradient.param[p][i] = r->run->frozen[p] ? 0.0f
                                                                : zb_ref_round(plan->param_dtype, seed * *x);
            zb_ref_state_add(&r->state, micro, rank, &r->gradient);
        }
}

/* ZB_LOSS_SCALE where DeepSpeed gives up. */
static zb_status step(void *self, size_t index)
{
    replay *r = self;
    compute_gradients(r, index);
    return zb_ref_state_step(&r->state);
}

/* --- what a rank holds --- */

static void list_pieces(replay *r, const zb_ref_shard *shard)
{
    for (size_t t = 0; t < shard->tensor_count; t++) {
        const zb_ref_shard_tensor *tensor = &shard->tensors[t];
        r->tensor_numel[t] = tensor->numel;
        for (size_t i = tensor->first_piece; i < tensor->first_piece + tensor->piece_count; i++) {
            const zb_ref_piece *piece = &shard->pieces[i];
            r->pieces[i] = (zb_replay_piece){ .tensor = t,
                                              .at = piece->at,
                                              .param = piece->param,
                                              .first = piece->first,
                                              .numel = piece->numel,
                                              .data = r->state.master.param[piece->param] + piece->first };
        }
    }
}

static void state(void *self, int rank, zb_replay_state *out)
{
    replay *r = self;
    const zb_ref_state *held = &r->state;
    const zb_ref_shard *shard = &held->shards[rank];
    list_pieces(r, shard);
    zb_schedules_rates(&held->schedules, r->lr);
    *out = (zb_replay_state){
        .tensor_numel = r->tensor_numel,
        .tensor_count = shard->tensor_count,
        .pieces = r->pieces,
        .piece_count = shard->piece_count,
        .has_norm = held->steps > 0 && zb_replay_tells_norm(&held->plan),
        .norm = held->norm,
        .has_scale = zb_replay_tells_scale(&held->plan),
        .scale = held->scaler.scale,
        .lr = r->lr,
        .lr_count = (size_t)held->plan.group_count,
        .skipped = held->skipped,
    };
}

zb_status zb_ref_replay_create(const zb_replay_run *run, const zb_route *route, zb_replay_player *player)
{
    ZB_TRY(zb_replay_check(run));
    replay *r = zb_alloc(sizeof *r);
    if (r == NULL) return ZB_NO_MEMORY;
    r->run = run;
    r->route = route;
    const zb_status status = fill(r);
    if (status != ZB_OK) {
        destroy(r);
        return status;
    }
    *player = (zb_replay_player){
        .name = "the oracle", .self = r, .step = step, .state = state, .destroy = destroy
    };
    return ZB_OK;
}
