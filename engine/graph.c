/* Facts about a model that backward, the stages and the formulas share; see graph.h. */
#include "engine/graph.h"

#include <string.h>
#include <zerobit/memory.h>

static int is_trainable(const zb_model *model, int param)
{
    return param != ZB_NO_PARAM && model->params[param].requires_grad;
}

zb_conv2d_shape zb_graph_conv2d_shape(const zb_module *m, size_t rows)
{
    return (zb_conv2d_shape){ .rows = rows,
                              .ic = (size_t)m->in.extent[0],
                              .ih = (size_t)m->in.extent[1],
                              .iw = (size_t)m->in.extent[2],
                              .oc = (size_t)m->out.extent[0],
                              .oh = (size_t)m->out.extent[1],
                              .ow = (size_t)m->out.extent[2],
                              .kernel = (size_t)m->kernel,
                              .stride = (size_t)m->stride,
                              .padding = (size_t)m->padding };
}

static int input_needs_grad(const zb_graph *g, const zb_module *module)
{
    for (int i = 0; i < module->input_count; i++)
        if (module->inputs[i] != ZB_MODEL_INPUT && g->needs_grad[module->inputs[i]]) return 1;
    return 0;
}

int zb_graph_backward_reads_weight(const zb_graph *graph, int module)
{
    const zb_module *m = &graph->model->modules[module];
    return m->weight != ZB_NO_PARAM && input_needs_grad(graph, m);
}

int zb_graph_first_use(const zb_graph *graph, int param)
{
    for (int m = 0; m < graph->model->module_count; m++) {
        const zb_module *module = &graph->model->modules[m];
        if (module->kind != ZB_MODULE_PARAMETER && (module->weight == param || module->bias == param))
            return m;
    }
    return -1;
}

static int consumer_count(const zb_model *model, int activation)
{
    int count = 0;
    for (int m = 0; m < model->module_count; m++)
        for (int i = 0; i < model->modules[m].input_count; i++)
            count += model->modules[m].inputs[i] == activation;
    return count;
}

static void describe_activations(zb_graph *g)
{
    for (int i = 0; i < g->model->module_count; i++) {
        const zb_module *m = &g->model->modules[i];
        if (m->kind == ZB_MODULE_PARAMETER) continue;
        g->needs_grad[i] = is_trainable(g->model, m->weight) || is_trainable(g->model, m->bias) ||
                           input_needs_grad(g, m);
        size_t numel = zb_shape_numel(&m->out);
        if (g->needs_grad[i] && numel > g->shared_grad_numel && consumer_count(g->model, i) > 1)
            g->shared_grad_numel = numel;
        if (m->kind == ZB_MODULE_FLATTEN)
            g->shares_grad[i] = m->inputs[0] != ZB_MODEL_INPUT && consumer_count(g->model, m->inputs[0]) == 1;
        else
            g->value_numel[i] = numel;
        if (m->kind == ZB_MODULE_CONV2D) {
            zb_conv2d_shape shape = zb_graph_conv2d_shape(m, 1);
            size_t workspace = zb_conv2d_workspace_numel(&shape);
            if (workspace > g->conv_workspace_numel) g->conv_workspace_numel = workspace;
        }
    }
}

/* `uses` counts down the modules still to come that use the parameter. */
static void note_use(zb_graph *g, int param, int *uses)
{
    if (!is_trainable(g->model, param) || g->model->params[param].numel == 0) return;
    if (--uses[param] == 0) g->ready_order[g->ready_count++] = param;
}

static zb_status order_gradients(zb_graph *g)
{
    const zb_model *model = g->model;
    int *uses = zb_alloc_array((size_t)model->param_count, sizeof *uses);
    if (uses == NULL) return ZB_NO_MEMORY;
    for (int p = 0; p < model->param_count; p++) uses[p] = model->params[p].use_count;
    for (int m = model->module_count - 1; m >= 0; m--) {
        if (model->modules[m].kind == ZB_MODULE_PARAMETER) continue;
        note_use(g, model->modules[m].bias, uses);
        note_use(g, model->modules[m].weight, uses);
    }
    zb_free(uses);
    int count = 0;
    for (int p = 0; p < model->param_count; p++)
        if (model->params[p].requires_grad && model->params[p].numel > 0) g->trainable[count++] = p;
    for (int p = model->param_count - 1; p >= 0; p--) {
        const zb_param *param = &model->params[p];
        if (!param->requires_grad || param->numel == 0) continue;
        if (param->use_count == 0) g->ready_order[g->ready_count++] = p;
        if (param->numel > g->max_param_numel) g->max_param_numel = param->numel;
    }
    const zb_model_order *elsewhere = model->order;
    if (elsewhere != NULL && elsewhere->ready.count > 0)
        memcpy(g->ready_order, elsewhere->ready.items, (size_t)g->ready_count * sizeof *g->ready_order);
    return ZB_OK;
}

zb_status zb_graph_create(const zb_model *model, zb_graph *graph)
{
    zb_graph g = { .model = model };
    size_t modules = (size_t)model->module_count;
    g.needs_grad = zb_alloc(modules);
    g.shares_grad = zb_alloc(modules);
    g.value_numel = zb_alloc_array(modules, sizeof *g.value_numel);
    g.ready_order = zb_alloc_array((size_t)model->param_count, sizeof *g.ready_order);
    g.trainable = zb_alloc_array((size_t)model->param_count, sizeof *g.trainable);
    zb_status status = ZB_NO_MEMORY;
    if (g.needs_grad == NULL || g.shares_grad == NULL || g.value_numel == NULL || g.ready_order == NULL ||
        g.trainable == NULL)
        goto fail;
    describe_activations(&g);
    status = order_gradients(&g);
    if (status != ZB_OK) goto fail;
    *graph = g;
    return ZB_OK;
fail:
    zb_graph_destroy(&g);
    return status;
}

void zb_graph_destroy(zb_graph *graph)
{
    zb_free(graph->needs_grad);
    zb_free(graph->shares_grad);
    zb_free(graph->value_numel);
    zb_free(graph->ready_order);
    zb_free(graph->trainable);
    memset(graph, 0, sizeof *graph);
}
