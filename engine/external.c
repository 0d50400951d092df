/* Gradients from outside; see external.h. */
#include "engine/external.h"

#include <string.h>

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

static zb_status make_ready(zb_engine *e, zb_external_kind kind, const float *const *values, float factor,
                            int param)
{
    void *to;
    ZB_TRY(e->stage->ops->grad_target(e->stage, param, &to));
    if (to == NULL) to = e->executor.param_scratch;
    ZB_TRY(put_gradient(e, kind, values[param], factor, e->model->params[param].numel, to));
    return e->stage->ops->grad_ready(e->stage, param, to);
}

static int holds(const zb_index_list *list, int index)
{
    for (int i = 0; i < list->count; i++)
        if (list->items[i] == index) return 1;
    return 0;
}

/* Of an order elsewhere: whether backward has entered a layer that has the parameter, being at its entry
 * `at`. */
static int has_entered(const zb_model_order *order, int param, int at)
{
    for (int i = 0; i <= at; i++)
        if (holds(&order->layers[order->backward.items[i]], param)) return 1;
    return 0;
}

/* Backward is at `at`: a module, or an entry of an order elsewhere; -1: behind the last one. */
static int is_complete(const zb_engine *e, int param, int at)
{
    if (at < 0) return 1;
    return e->model->order != NULL ? has_entered(e->model->order, param, at)
                                   : zb_graph_first_use(&e->graph, param) == at;
}

static zb_status make_complete_ready(zb_engine *e, zb_external_kind kind, const float *const *values,
                                     float factor, int at, int *next)
{
    for (; *next < e->graph.ready_count && is_complete(e, e->graph.ready_order[*next], at); ++*next)
        ZB_TRY(make_ready(e, kind, values, factor, e->graph.ready_order[*next]));
    return ZB_OK;
}

/* --- the way through a model --- */

static zb_status pass_forward(zb_engine *e)
{
    const zb_stage_ops *ops = e->stage->ops;
    const zb_model_order *order = e->model->order;
    const int count = order != NULL ? order->forward.count : e->model->module_count;
    for (int i = order != NULL ? 1 : 0; i < count; i++) {
        if (order == NULL && e->model->modules[i].kind == ZB_MODULE_PARAMETER) continue;
        const int module = order != NULL ? order->forward.items[i] : i;
        ZB_TRY(ops->before_forward(e->stage, module));
        ZB_TRY(ops->after_forward(e->stage, module));
    }
    return ZB_OK;
}

static zb_status pass_backward(zb_engine *e, zb_external_kind kind, const float *const *values, float factor)
{
    const zb_stage_ops *ops = e->stage->ops;
    const zb_model_order *order = e->model->order;
    const int count = order != NULL ? order->backward.count : e->model->module_count;
    int next = 0;
    if (order != NULL) ZB_TRY(make_complete_ready(e, kind, values, factor, 0, &next));
    for (int i = order != NULL ? 1 : 0; i < count; i++) {
        const int at = order != NULL ? i : count - 1 - i,
                  module = order != NULL ? order->backward.items[i] : at;
        if (order == NULL && !e->graph.needs_grad[module]) continue;
        ZB_TRY(ops->before_backward(e->stage, module));
        ZB_TRY(make_complete_ready(e, kind, values, factor, at, &next));
        ZB_TRY(ops->after_backward(e->stage, module));
    }
    ZB_TRY(make_complete_ready(e, kind, values, factor, -1, &next));
    ZB_ASSERT(next == e->graph.ready_count);
    return ZB_OK;
}

zb_status zb_external_run(zb_engine *e, zb_external_kind kind, const float *const *values, float seed,
                          float divisor)
{
    const zb_stage_ops *ops = e->stage->ops;
    ZB_TRY(ops->begin_forward(e->stage));
    ZB_TRY(pass_forward(e));
    ZB_TRY(ops->end_forward(e->stage));
    ZB_TRY(ops->begin_backward(e->stage));
    ZB_TRY(pass_backward(e, kind, values, seed / divisor));
    return ops->end_backward(e->stage);
}
