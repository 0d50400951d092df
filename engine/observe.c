/* What a rank shows of itself after a step, and the gathered weights. */
#include <string.h>

#include "engine/state.h"

typedef struct view {
    zb_engine *engine;
    const zb_observer *observer;
    int64_t step, micro; /* micro: -1, but for contributions */
} view;

static zb_status show_values(const view *v, zb_quantity quantity, zb_dtype dtype, size_t numel,
                             const void *data)
{
    return v->observer->observe(v->observer->user, &(zb_observation){ .quantity = quantity,
                                                                      .step = v->step,
                                                                      .micro = -1,
                                                                      .rank = v->engine->comm->rank,
                                                                      .param = ZB_NO_PARAM,
                                                                      .dtype = dtype,
                                                                      .numel = numel,
                                                                      .data = data });
}

/* A range of a parameter-shaped quantity that lies on the device, in pieces that fit the staging buffer. */
static zb_status show_range(const view *v, zb_quantity quantity, int param, zb_dtype dtype,
                            const void *device, size_t first, size_t numel)
{
    zb_engine *e = v->engine;
    while (numel > 0) {
        size_t chunk = numel < ZB_STAGING_NUMEL ? numel : ZB_STAGING_NUMEL;
        ZB_TRY(zb_copy_out(e->compute, e->staging, device, chunk * zb_dtype_bytes(dtype)));
        ZB_TRY(zb_stream_wait_idle(e->compute));
        ZB_TRY(v->observer->observe(v->observer->user, &(zb_observation){ .quantity = quantity,
                                                                          .step = v->step,
                                                                          .micro = v->micro,
                                                                          .rank = e->comm->rank,
                                                                          .param = param,
                                                                          .dtype = dtype,
                                                                          .first = first,
                                                                          .numel = chunk,
                                                                          .data = e->staging }));
        device = zb_at(device, chunk, dtype);
        first += chunk;
        numel -= chunk;
    }
    return ZB_OK;
}

/* Where a quantity of this rank's shard lies; NULL when the optimizer keeps no such state. */
static const void *locate(const zb_engine *e, zb_quantity quantity, int group, size_t shard_offset)
{
    const zb_place place = e->stage->ops->place(e->stage, group, shard_offset);
    const zb_optimizer *o = &e->optimizer;
    const float *moment = quantity == ZB_Q_EXP_AVG ? o->exp_avg : o->exp_avg_sq;
    if (quantity == ZB_Q_GRAD) return place.grad;
    if (quantity == ZB_Q_MASTER) return zb_optimizer_master(o, place.param, shard_offset);
    return moment != NULL ? moment + shard_offset : NULL;
}

static zb_status show_shard(const view *v, zb_quantity quantity, zb_dtype dtype)
{
    zb_engine *e = v->engine;
    for (int p = 0; p < e->model->param_count; p++) {
        if (!e->model->params[p].requires_grad) continue;
        zb_slice slice = zb_layout_slice(&e->layout, p, e->comm->rank);
        if (slice.numel == 0) continue;
        const void *data = locate(e, quantity, e->layout.group_of[p], slice.shard_offset);
        if (data != NULL) ZB_TRY(show_range(v, quantity, p, dtype, data, slice.first, slice.numel));
    }
    return ZB_OK;
}

static zb_status show_held(const view *v)
{
    zb_engine *e = v->engine;
    for (int p = 0; p < e->model->param_count; p++) {
        zb_held held = e->stage->ops->held(e->stage, p);
        ZB_TRY(show_range(v, ZB_Q_PARAM, p, e->plan.param_dtype, held.data, held.first, held.numel));
    }
    return ZB_OK;
}

static zb_status show_scalars(const view *v)
{
    const zb_engine *e = v->engine;
    const int64_t overflow = e->overflow;
    ZB_TRY(show_values(v, ZB_Q_NORM, ZB_FP64, 1, &e->grad_norm));
    ZB_TRY(show_values(v, ZB_Q_OVERFLOW, ZB_INT64, 1, &overflow));
    ZB_TRY(show_values(v, ZB_Q_LOSS_SCALE, ZB_FP64, 1, &e->scale_used));
    return show_values(v, ZB_Q_LR, ZB_FP64, (size_t)e->plan.group_count, e->lr_used);
}

static zb_status show_accounts(const view *v)
{
    const zb_engine *e = v->engine;
    int64_t counters[4] = { e->counters.micro_steps, e->counters.global_steps, e->counters.global_samples,
                            e->counters.skipped_steps };
    int64_t held[ZB_MEM_COUNT], calls[ZB_COLLECTIVE_COUNT], sent[ZB_COLLECTIVE_COUNT];
    for (int i = 0; i < ZB_MEM_COUNT; i++) held[i] = (int64_t)e->device->held_bytes[i];
    for (int i = 0; i < ZB_COLLECTIVE_COUNT; i++) {
        calls[i] = (int64_t)e->traffic[i].calls;
        sent[i] = (int64_t)e->traffic[i].bytes;
    }
    if (v->step >= 0) ZB_TRY(show_values(v, ZB_Q_COUNTERS, ZB_INT64, 4, counters));
    ZB_TRY(show_values(v, ZB_Q_BYTES_HELD, ZB_INT64, ZB_MEM_COUNT, held));
    if (v->step < 0) return ZB_OK;
    ZB_TRY(show_values(v, ZB_Q_CALLS, ZB_INT64, ZB_COLLECTIVE_COUNT, calls));
    return show_values(v, ZB_Q_BYTES_SENT, ZB_INT64, ZB_COLLECTIVE_COUNT, sent);
}

zb_status zb_engine_observe(zb_engine *e, const zb_observer *observer)
{
    ZB_ASSERT(observer != NULL);
    ZB_TRY(zb_engine_check_whole(e, "observe"));
    const view v = { .engine = e, .observer = observer, .step = e->counters.global_steps - 1, .micro = -1 };
    if (v.step >= 0) {
        ZB_TRY(show_shard(&v, ZB_Q_GRAD, e->plan.grad_dtype));
        ZB_TRY(show_scalars(&v));
    }
    ZB_TRY(show_shard(&v, ZB_Q_MASTER, ZB_FP32));
    if (v.step >= 0) {
        ZB_TRY(show_shard(&v, ZB_Q_EXP_AVG, ZB_FP32));
        ZB_TRY(show_shard(&v, ZB_Q_EXP_AVG_SQ, ZB_FP32));
    }
    ZB_TRY(show_held(&v));
    return show_accounts(&v);
}

void zb_engine_observe_contributions(zb_engine *e, const zb_observer *observer)
{
    e->contributions = observer != NULL ? *observer : (zb_observer){ 0 };
}

zb_status zb_engine_show_contribution(zb_engine *e, int param, size_t first, size_t numel, const void *sent)
{
    const view v = {
        .engine = e, .observer = &e->contributions, .step = e->counters.global_steps, .micro = e->micro_index
    };
    return show_range(&v, ZB_Q_CONTRIBUTION, param, e->plan.comm_dtype, sent, first, numel);
}

zb_status zb_engine_gather_weights(zb_engine *e, float *const *out)
{
    zb_traffic before[ZB_COLLECTIVE_COUNT];
    ZB_TRY(zb_engine_check_whole(e, "gather_weights"));
    memcpy(before, e->comm->traffic, sizeof before);
    for (int p = 0; p < e->model->param_count; p++) {
        const void *full;
        size_t numel = e->model->params[p].numel;
        if (numel == 0) continue;
        ZB_TRY(e->stage->ops->gather(e->stage, p, &full));
        ZB_TRY(zb_engine_save_widened(e, out[p], full, numel));
        ZB_TRY(e->stage->ops->release(e->stage));
    }
    /* Looking is no part of a training step's traffic. */
    for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++) {
        e->traffic_before[kind].calls += e->comm->traffic[kind].calls - before[kind].calls;
        e->traffic_before[kind].bytes += e->comm->traffic[kind].bytes - before[kind].bytes;
    }
    return ZB_OK;
}
