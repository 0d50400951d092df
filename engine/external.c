/* Gradients from outside; see external.h. */
#include "engine/external.h"

#include <string.h>

#include "engine/call_order.h"
#include "engine/state.h"

zb_status zb_external_check(const zb_engine *e, const float *const *values)
{
    for (int i = 0; i < e->graph.ready_count; i++) {
        const int param = e->graph.ready_order[i];
        if (values[param] == NULL)
            return zb_fail(ZB_INVALID_ARGUMENT, "no gradient given for parameter %s of model %s",
                           e->model->params[param].name, e->model->name);
    }
    return ZB_OK;
}

/* One multiplication in fp32, one rounding to the model's type: as autograd's of p.float() * x. */
static zb_status put_gradient(zb_engine *e, zb_external_kind kind, const float *values, float factor,
                              size_t numel, void *to)
{
    for (size_t first = 0; first < numel; first += ZB_STAGING_NUMEL) {
        const size_t chunk = numel - first < ZB_STAGING_NUMEL ? numel - first : ZB_STAGING_NUMEL;
        if (kind == ZB_EXTERNAL_GRADIENT)
            memcpy(e->staging, values + first, chunk * sizeof(float));
        else
            for (size_t i = 0; i < chunk; i++) e->staging[i] = factor * values[first + i];
        ZB_TRY(zb_engine_put_staged(e, chunk, zb_at(to, first, e->plan.param_dtype)));
    }
    return ZB_OK;
}

typedef struct external {
    zb_engine *engine;
    zb_external_kind kind;
    const float *const *values;
    float factor;
    int next; /* of the graph's ready_order */
} external;

/* At a module, or at an entry of the call order; at the end, with or without one. */
static int is_complete(const zb_engine *e, int param, int at)
{
    if (e->call_order != NULL) return zb_call_order_completes(e->call_order, param) <= at;
    return zb_graph_first_use(&e->graph, param) == at;
}

/* The gradients that are complete where backward is now, in their order. */
static zb_status make_ready(external *x, int at)
{
    zb_engine *e = x->engine;
    for (; x->next < e->graph.ready_count; x->next++) {
        const int param = e->graph.ready_order[x->next];
        void *to;
        if (!is_complete(e, param, at)) return ZB_OK;
        ZB_TRY(e->stage->ops->grad_target(e->stage, param, &to));
        if (to == NULL) to = e->executor.param_scratch;
        ZB_TRY(put_gradient(e, x->kind, x->values[param], x->factor, e->model->params[param].numel, to));
        ZB_TRY(e->stage->ops->grad_ready(e->stage, param, to));
    }
    return ZB_OK;
}

static zb_status call_own_modules(external *x)
{
    const zb_engine *e = x->engine;
    const zb_model *model = e->model;
    const zb_stage_ops *ops = e->stage->ops;
    for (int m = 0; m < model->module_count; m++) {
        if (model->modules[m].kind == ZB_MODULE_PARAMETER) continue;
        ZB_TRY(ops->before_forward(e->stage, m));
        ZB_TRY(ops->after_forward(e->stage, m));
    }
    ZB_TRY(ops->end_forward(e->stage));
    ZB_TRY(ops->begin_backward(e->stage));
    for (int m = model->module_count - 1; m >= 0; m--) {
        if (!e->graph.needs_grad[m]) continue;
        ZB_TRY(ops->before_backward(e->stage, m));
        ZB_TRY(make_ready(x, m));
        ZB_TRY(ops->after_backward(e->stage, m));
    }
    return make_ready(x, -1);
}

static zb_status call_in_order(external *x)
{
    const zb_engine *e = x->engine;
    const zb_stage_ops *ops = e->stage->ops;
    const zb_index_list *forward = &e->call_order->forward, *backward = &e->call_order->backward;
    for (int i = 1; i < forward->count; i++) {
        ZB_TRY(ops->before_forward(e->stage, forward->items[i]));
        ZB_TRY(ops->after_forward(e->stage, forward->items[i]));
    }
    ZB_TRY(ops->end_forward(e->stage));
    ZB_TRY(ops->begin_backward(e->stage));
    for (int i = 1; i < backward->count; i++) {
        ZB_TRY(ops->before_backward(e->stage, backward->items[i]));
        ZB_TRY(make_ready(x, i));
        ZB_TRY(ops->after_backward(e->stage, backward->items[i]));
    }
    return make_ready(x, backward->count);
}

zb_status zb_external_run(zb_engine *e, zb_external_kind kind, const float *const *values, float seed,
                          float divisor)
{
    const zb_stage_ops *ops = e->stage->ops;
    external x = { .engine = e, .kind = kind, .values = values, .factor = seed / divisor };
    ZB_TRY(ops->begin_forward(e->stage));
    ZB_TRY(e->call_order != NULL ? call_in_order(&x) : call_own_modules(&x));
    ZB_ASSERT(x.next == e->graph.ready_count);
    return ops->end_backward(e->stage);
}
