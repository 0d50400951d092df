/*
 * The engine as a player of recorded runs: one engine per rank in a simulated world, fed with the recorded
 * gradients through everything that follows backward. Its state is told in the form in which DeepSpeed's or
 * PyTorch's was recorded. Reading order: zb_replay_engine_create, step, state.
 */
#include <zerobit/replay.h>

#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/sim.h>

#include "verify/replay_model.h"

typedef struct rank_player {
    zb_device *device;
    zb_engine *engine;
    zb_comm_observer observer;
    zb_replay_call *calls; /* since the last step */
    size_t call_count, call_capacity;
    float *masters;          /* [of all pieces] */
    zb_replay_piece *pieces; /* [piece_count], data points into masters */
    size_t piece_count;
    size_t *tensor_numel; /* [tensor_count] */
    size_t tensor_count;
    const float **gradients; /* [param_count]: of the micro-batch under way */
    double lr[ZB_PARAM_GROUP_MAX];
} rank_player;

typedef struct world_player {
    const zb_replay_run *run; /* borrowed */
    zb_plan plan;
    zb_model *model;
    zb_weights weights; /* its values point into the run's initial ones */
    int *group_of;      /* [param_count] */
    zb_sim *sim;
    rank_player *ranks; /* [world_size] */
    size_t step;        /* that the ranks are taking */
} world_player;

/* --- initial values --- */

static zb_status point_weights(const zb_replay_run *run, zb_weights *weights)
{
    weights->values = zb_alloc_array((size_t)run->param_count, sizeof *weights->values);
    if (weights->values == NULL) return ZB_NO_MEMORY;
    weights->param_count = run->param_count;
    float *next = run->init;
    for (int p = 0; p < run->param_count; p++) {
        weights->values[p] = next;
        next += run->param_numel[p];
    }
    return ZB_OK;
}

/* --- which fp32 tensors DeepSpeed's optimizer holds on a rank, as cuts of what the engine's holds --- */

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* The trainable parameters of a group, one after the other. */
static void cut_group(const world_player *w, int group, rank_player *r)
{
    const zb_replay_run *run = w->run;
    const size_t world = (size_t)run->world_size;
    size_t numel = 0;
    int open = 0;
    for (int p = 0; p < run->param_count; p++) {
        if (run->frozen[p] || w->group_of[p] != group) continue;
        const size_t part = (run->param_numel[p] + world - 1) / world;
        numel += run->param_numel[p];
        if (w->plan.tensors == ZB_TENSORS_PARAMETERS)
            r->tensor_numel[r->tensor_count++] = run->param_numel[p];
        if (w->plan.tensors != ZB_TENSORS_SUB_GROUPS) continue;
        if (!open) r->tensor_count++;
        r->tensor_numel[r->tensor_count - 1] += part;
        open = r->tensor_numel[r->tensor_count - 1] < w->plan.sub_group_numel;
    }
    if (w->plan.tensors == ZB_TENSORS_GROUPS) r->tensor_numel[r->tensor_count++] = numel;
    if (w->plan.tensors == ZB_TENSORS_PARTITIONS)
        r->tensor_numel[r->tensor_count++] = round_up(numel, 2 * world) / world;
}

static zb_status cut_tensors(const world_player *w, rank_player *r)
{
    const size_t most = (size_t)w->run->param_count + (size_t)w->plan.group_count;
    r->tensor_numel = zb_alloc_array(most, sizeof *r->tensor_numel);
    if (r->tensor_numel == NULL) return ZB_NO_MEMORY;
    for (int group = 0; group < w->plan.group_count; group++) cut_group(w, group, r);
    return ZB_OK;
}

/* `at` counts from the start of the rank's flat array. */
static zb_replay_piece place_piece(const rank_player *r, const zb_piece *piece, size_t at)
{
    size_t tensor = 0;
    while (at >= r->tensor_numel[tensor]) at -= r->tensor_numel[tensor++];
    return (zb_replay_piece){
        .tensor = tensor, .at = at, .param = piece->param, .first = piece->param_offset, .numel = piece->numel
    };
}

/* From the flat space of all ranks, where at stages 1 and 2 each group is cut into the ranks' parts, to what
 * one rank holds. */
static size_t in_shard(const world_player *w, int rank, const zb_partition *partition, const zb_piece *piece,
                       const rank_player *r)
{
    const int stage = w->run->config->zero.stage;
    size_t begin = 0;
    if (stage == 0) return piece->flat_offset;
    if (stage == 3) return piece->flat_offset - (size_t)rank * partition->rank_numel;
    for (int g = 0; g < w->group_of[piece->param]; g++) begin += r->tensor_numel[g];
    const size_t group_begin = begin * (size_t)w->run->world_size;
    const size_t part_begin = (size_t)rank * r->tensor_numel[w->group_of[piece->param]];
    return begin + (piece->flat_offset - group_begin - part_begin);
}

static zb_status place_pieces(const world_player *w, int rank, const zb_partition *partition, rank_player *r)
{
    ZB_TRY(cut_tensors(w, r));
    r->pieces = zb_alloc_array(partition->piece_count, sizeof *r->pieces);
    r->masters = zb_alloc_array(partition->rank_numel, sizeof *r->masters);
    if (r->pieces == NULL || r->masters == NULL) return ZB_NO_MEMORY;
    r->piece_count = partition->piece_count;
    for (size_t i = 0; i < partition->piece_count; i++) {
        const size_t at = in_shard(w, rank, partition, &partition->pieces[i], r);
        r->pieces[i] = place_piece(r, &partition->pieces[i], at);
        r->pieces[i].data = r->masters + at;
    }
    return ZB_OK;
}

static zb_status create_pieces(const world_player *w, int rank, rank_player *r)
{
    zb_partition partition;
    ZB_TRY(zb_partition_create(&(zb_partition_options){ .model = w->model,
                                                        .stage = w->run->config->zero.stage,
                                                        .world_size = w->run->world_size,
                                                        .rank = rank,
                                                        .round_robin = w->plan.round_robin,
                                                        .group_of = w->group_of },
                               &partition));
    const zb_status status = place_pieces(w, rank, &partition, r);
    zb_partition_destroy(&partition);
    return status;
}

/* --- what a rank shows and calls --- */

static zb_status note_master(void *user, const zb_observation *o)
{
    rank_player *r = user;
    if (o->quantity != ZB_Q_MASTER) return ZB_OK;
    for (size_t i = 0; i < r->piece_count; i++) {
        const zb_replay_piece *piece = &r->pieces[i];
        if (piece->param != o->param || o->first < piece->first ||
            o->first + o->numel > piece->first + piece->numel)
            continue;
        float *to = r->masters + (piece->data - r->masters);
        memcpy(to + (o->first - piece->first), o->data, o->numel * sizeof *to);
        return ZB_OK;
    }
    return zb_fail(ZB_INTERNAL, "the engine shows elements %zu to %zu of p%d, which its partition lacks",
                   o->first, o->first + o->numel, o->param);
}

static const char *torch_dtype(zb_dtype dtype)
{
    switch (dtype) {
    case ZB_FP32:
        return "float32";
    case ZB_FP16:
        return "float16";
    case ZB_BF16:
        return "bfloat16";
    case ZB_FP64:
        return "float64";
    default:
        return zb_dtype_name(dtype); /* integers are called alike */
    }
}

/* In the words of torch.distributed, for what DeepSpeed calls of it; operations are called alike. */
static void describe_call(const zb_comm *comm, const zb_collective *c, zb_replay_call *call)
{
    const char *dtype = torch_dtype(c->dtype);
    const size_t room = sizeof call->text, all = c->numel * (size_t)comm->world_size;
    switch (c->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
        snprintf(call->text, room, "all_reduce %s %zu %s", dtype, c->numel, zb_redop_name(c->op));
        return;
    case ZB_COLLECTIVE_ALL_GATHER:
        snprintf(call->text, room, "all_gather_into_tensor %s %zu %zu", dtype, all, c->numel);
        return;
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        snprintf(call->text, room, "reduce_scatter_tensor %s %zu %zu", dtype, all, c->numel);
        return;
    case ZB_COLLECTIVE_REDUCE:
    case ZB_COLLECTIVE_BROADCAST:
        snprintf(call->text, room, "%s %s %zu %d", zb_collective_name(c->kind), dtype, c->numel, c->root);
        return;
    default:
        snprintf(call->text, room, "%s %s %zu", zb_collective_name(c->kind), dtype, c->numel);
    }
}

static zb_status note_call(void *user, const zb_comm *comm, const zb_collective *collective)
{
    rank_player *r = user;
    if (r->call_count == r->call_capacity) {
        const size_t capacity = r->call_capacity == 0 ? 16 : 2 * r->call_capacity;
        zb_replay_call *calls = zb_realloc(r->calls, capacity * sizeof *calls);
        if (calls == NULL) return ZB_NO_MEMORY;
        r->calls = calls;
        r->call_capacity = capacity;
    }
    describe_call(comm, collective, &r->calls[r->call_count++]);
    return ZB_OK;
}

/* --- the ranks --- */

static zb_status start_rank(void *user, zb_comm *comm)
{
    world_player *w = user;
    rank_player *r = &w->ranks[comm->rank];
    ZB_TRY(zb_device_cpu_create_poisoning(&r->device));
    ZB_TRY(zb_initialize(&(zb_engine_options){ .config = w->run->config,
                                               .model = w->model,
                                               .weights = &w->weights,
                                               .device = r->device,
                                               .comm = comm,
                                               .stage = -1,
                                               .dtype = -1 },
                         &r->engine));
    r->observer = (zb_comm_observer){ .starting = note_call, .user = r };
    comm->observer = &r->observer; /* from here on, as in the recordings */
    return zb_engine_observe(r->engine, &(zb_observer){ note_master, r });
}

static zb_status step_rank(void *user, zb_comm *comm)
{
    world_player *w = user;
    rank_player *r = &w->ranks[comm->rank];
    const zb_external_kind kind = w->run->grads_are_local ? ZB_EXTERNAL_GRADIENT : ZB_EXTERNAL_INPUT;
    r->call_count = 0;
    for (int64_t micro = 0; micro < w->run->accumulation_steps; micro++) {
        const float *x = w->run->grads[w->step][micro * w->run->world_size + comm->rank];
        for (int p = 0; p < w->run->param_count; p++) {
            r->gradients[p] = x;
            x += w->run->param_numel[p];
        }
        ZB_TRY(zb_engine_external_micro_batch(r->engine, kind, r->gradients));
        ZB_TRY(zb_engine_step(r->engine));
    }
    return zb_engine_observe(r->engine, &(zb_observer){ note_master, r });
}

/* --- the player --- */

static zb_status step(void *self, size_t index)
{
    world_player *w = self;
    w->step = index;
    return zb_sim_run(w->sim, step_rank, w);
}

static void state(void *self, int rank, zb_replay_state *out)
{
    world_player *w = self;
    rank_player *r = &w->ranks[rank];
    const zb_counters counters = zb_engine_counters(r->engine);
    zb_schedules_rates(zb_engine_lr_scheduler(r->engine), r->lr);
    *out = (zb_replay_state){
        .tensor_numel = r->tensor_numel,
        .tensor_count = r->tensor_count,
        .pieces = r->pieces,
        .piece_count = r->piece_count,
        .has_norm = counters.global_steps > 0 && zb_replay_tells_norm(&w->plan),
        .norm = zb_engine_global_grad_norm(r->engine),
        .has_scale = zb_replay_tells_scale(&w->plan),
        .scale = zb_engine_loss_scale(r->engine),
        .lr = r->lr,
        .lr_count = (size_t)w->plan.group_count,
        .skipped = counters.skipped_steps,
        .calls = zb_replay_calls_alike(w->run) ? r->calls : NULL,
        .call_count = zb_replay_calls_alike(w->run) ? r->call_count : 0,
    };
}

static void destroy_rank(rank_player *r)
{
    zb_engine_destroy(r->engine);
    if (r->device != NULL) zb_device_destroy(r->device);
    zb_free(r->calls);
    zb_free(r->masters);
    zb_free(r->pieces);
    zb_free(r->tensor_numel);
    zb_free(r->gradients);
}

static void destroy(void *self)
{
    world_player *w = self;
    for (int rank = 0; w->ranks != NULL && rank < w->run->world_size; rank++) destroy_rank(&w->ranks[rank]);
    zb_free(w->ranks);
    if (w->sim != NULL) zb_sim_destroy(w->sim);
    zb_free(w->weights.values);
    zb_free(w->group_of);
    zb_model_destroy(w->model);
    zb_free(w);
}

static zb_status create_ranks(world_player *w)
{
    w->ranks = zb_alloc_array((size_t)w->run->world_size, sizeof *w->ranks);
    if (w->ranks == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < w->run->world_size; rank++) {
        rank_player *r = &w->ranks[rank];
        r->gradients = zb_alloc_array((size_t)w->run->param_count, sizeof *r->gradients);
        if (r->gradients == NULL) return ZB_NO_MEMORY;
        ZB_TRY(create_pieces(w, rank, r));
    }
    return ZB_OK;
}

static zb_status fill(world_player *w, int workers)
{
    const zb_replay_run *run = w->run;
    ZB_TRY(
        zb_plan_derive(run->config, run->config->zero.stage, run->config->dtype, run->world_size, &w->plan));
    ZB_TRY(zb_replay_model_create(run, &w->model));
    ZB_TRY(point_weights(run, &w->weights));
    if ((w->group_of = zb_alloc_array((size_t)run->param_count, sizeof *w->group_of)) == NULL)
        return ZB_NO_MEMORY;
    ZB_TRY(zb_config_assign_groups(run->config, w->model, w->group_of));
    ZB_TRY(create_ranks(w));
    ZB_TRY(zb_sim_create(&(zb_sim_options){ .world_size = run->world_size, .workers = workers }, &w->sim));
    return zb_sim_run(w->sim, start_rank, w);
}

zb_status zb_replay_engine_create(const zb_replay_run *run, int workers, zb_replay_player *player)
{
    ZB_TRY(zb_replay_check(run));
    world_player *w = zb_alloc(sizeof *w);
    if (w == NULL) return ZB_NO_MEMORY;
    w->run = run;
    const zb_status status = fill(w, workers);
    if (status != ZB_OK) {
        destroy(w);
        return status;
    }
    *player = (zb_replay_player){
        .name = "the engine", .self = w, .step = step, .state = state, .destroy = destroy
    };
    return ZB_OK;
}
