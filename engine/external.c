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

/* Backward is at `module`, or behind the last one (-1): the gradients that are complete there, in their
 * order. */
static zb_status make_ready(zb_engine *e, zb_external_kind kind, const float *const *values, float factor,
                            int module, int *next)
{
    for (; *next < e->graph.ready_count; ++*next) {
        const int param = e->graph.ready_order[*next];
        void *to;
        if (zb_graph_first_use(&e->graph, param) != module) return ZB_OK;
        ZB_TRY(e->stage->ops->grad_target(e->stage, param, &to));
        if (to == NULL) to = e->executor.param_scratch;
        ZB_TRY(put_gradient(e, kind, values[param], factor, e->model->params[param].numel, to));
        ZB_TRY(e->stage->ops->grad_ready(e->stage, param, to));
    }
    return ZB_OK;
}

zb_status zb_external_run(zb_engine *e, zb_external_kind kind, const float *const *values, float seed,
                          float divisor)
{
    const zb_model *model = e->model;
    const zb_stage_ops *ops = e->stage->ops;
    const float factor = seed / divisor;
    int next = 0;
    ZB_TRY(ops->begin_forward(e->stage));
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
        ZB_TRY(make_ready(e, kind, values, factor, m, &next));
        ZB_TRY(ops->after_backward(e->stage, m));
    }
    ZB_TRY(make_ready(e, kind, values, factor, -1, &next));
    ZB_ASSERT(next == e->graph.ready_count);
    return ops->end_backward(e->stage);
}
