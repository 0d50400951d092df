/* The order in which a model's own forward and backward need its parameters; see gather_trace.h. */
#include "engine/gather_trace.h"

#include <string.h>
#include <zerobit/memory.h>

typedef struct builder {
    const zb_graph *graph;
    const zb_model *model;
    const zb_gather_rules *rules;
    zb_gather_trace *trace;
    int param_count; /* in trace->params */
} builder;

static int has_elements(const builder *b, int param)
{
    return param != ZB_NO_PARAM && b->model->params[param].numel > 0;
}

static int uses_parameter(const builder *b, int module)
{
    const zb_module *m = &b->model->modules[module];
    return m->kind != ZB_MODULE_PARAMETER && (has_elements(b, m->weight) || has_elements(b, m->bias));
}

/* Appends to the list that ends the array, in its place. */
static void add_param(builder *b, zb_gather_list *list, int param)
{
    int *params = b->trace->params + b->param_count - list->count;
    if (!has_elements(b, param)) return;
    int at = list->count;
    while (at > 0 && params[at - 1] > param) at--;
    if (at > 0 && params[at - 1] == param) return;
    memmove(params + at + 1, params + at, (size_t)(list->count - at) * sizeof *params);
    params[at] = param;
    list->params = params;
    list->count++;
    b->param_count++;
}

static void add_event(builder *b, int unit, zb_hook hook)
{
    b->trace->events[b->trace->event_count++] = (zb_gather_event){ .unit = unit, .hook = hook };
}

static int is_bare(const builder *b, int module)
{
    return b->model->modules[module].kind == ZB_MODULE_PARAMETER;
}

/* --- which modules are units --- */

/* DeepSpeed: elements per module, the model itself counted as one; never above a billion elements. */
static int is_fine_grained(const builder *b)
{
    size_t numel = 0, modules = 1;
    for (int m = 0; m < b->model->module_count; m++) modules += (size_t)uses_parameter(b, m);
    for (int p = 0; p < b->model->param_count; p++) numel += b->model->params[p].numel;
    return modules > 1 && b->rules->granularity_numel > 0 && numel <= 1000000000 &&
           numel / modules <= b->rules->granularity_numel;
}

static int reads_weight(const builder *b, int module)
{
    return b->graph->needs_grad[module] && zb_graph_backward_reads_weight(b->graph, module);
}

static void add_forward(builder *b, zb_gather_list *list, int module)
{
    add_param(b, list, b->model->modules[module].weight);
    add_param(b, list, b->model->modules[module].bias);
}

static void add_backward(builder *b, zb_gather_list *list, int module)
{
    if (b->rules->as_deepspeed)
        add_forward(b, list, module);
    else if (reads_weight(b, module))
        add_param(b, list, b->model->modules[module].weight);
}

/* Parameters that lie beside the modules: someone else's forward may need them, and DeepSpeed believes that
 * the root's does. */
static void add_bare(builder *b, zb_gather_list *list)
{
    if (!b->rules->as_deepspeed && b->model->loss != ZB_LOSS_ELSEWHERE) return;
    for (int m = 0; m < b->model->module_count; m++)
        if (is_bare(b, m)) add_param(b, list, b->model->modules[m].weight);
}

static void make_root(builder *b, int is_only)
{
    zb_gather_unit *root = &b->trace->units[ZB_GATHER_ROOT];
    add_bare(b, &root->forward);
    for (int m = 0; is_only && m < b->model->module_count; m++)
        if (!is_bare(b, m)) add_forward(b, &root->forward, m);
    if (b->rules->as_deepspeed) {
        root->backward = root->forward;
        return;
    }
    for (int m = 0; is_only && m < b->model->module_count; m++)
        if (!is_bare(b, m)) add_backward(b, &root->backward, m);
}

static void make_units(builder *b, int root_only)
{
    b->trace->unit_count = 1;
    make_root(b, root_only);
    for (int m = 0; m < b->model->module_count; m++) {
        b->trace->unit_of[m] = ZB_GATHER_NO_UNIT;
        if (root_only || !uses_parameter(b, m)) continue;
        zb_gather_unit *unit = &b->trace->units[b->trace->unit_count];
        b->trace->unit_of[m] = b->trace->unit_count++;
        add_forward(b, &unit->forward, m);
        add_backward(b, &unit->backward, m);
    }
}

/* --- when they enter and leave --- */

static int has_backward(const builder *b)
{
    return b->model->loss == ZB_LOSS_ELSEWHERE || b->graph->needs_grad[zb_model_output_module(b->model)];
}

static void make_events(builder *b)
{
    const zb_gather_trace *trace = b->trace;
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_ENTER_FORWARD);
    for (int m = 0; m < b->model->module_count; m++) {
        if (trace->unit_of[m] == ZB_GATHER_NO_UNIT) continue;
        add_event(b, trace->unit_of[m], ZB_HOOK_ENTER_FORWARD);
        add_event(b, trace->unit_of[m], ZB_HOOK_LEAVE_FORWARD);
    }
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_FORWARD);
    if (!has_backward(b)) return;
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_ENTER_BACKWARD);
    for (int m = b->model->module_count - 1; m >= 0; m--) {
        if (trace->unit_of[m] == ZB_GATHER_NO_UNIT || !b->graph->needs_grad[m]) continue;
        add_event(b, trace->unit_of[m], ZB_HOOK_ENTER_BACKWARD);
        /* DeepSpeed learns of the end by the gradient of an input. */
        if (!b->rules->as_deepspeed || zb_graph_backward_reads_weight(b->graph, m))
            add_event(b, trace->unit_of[m], ZB_HOOK_LEAVE_BACKWARD);
    }
    if (!b->rules->as_deepspeed) add_event(b, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_BACKWARD);
}

/* --- an order that is known from elsewhere --- */

/* Every layer that is called is a unit, with parameters or without. */
static void make_layers(builder *b, const zb_model_order *order)
{
    for (int l = 0; l < order->layer_count; l++) {
        zb_gather_unit *unit = &b->trace->units[l];
        b->trace->unit_of[l] = l;
        for (int i = 0; i < order->layers[l].count; i++)
            add_param(b, &unit->forward, order->layers[l].items[i]);
        unit->backward = unit->forward;
    }
    b->trace->unit_count = order->layer_count;
}

/* DeepSpeed learns of the end of a layer's backward by the gradient of its input. The first one that is
 * called has the model's input, which needs none. */
static void follow_order(builder *b, const zb_model_order *order)
{
    const int first = order->forward.count > 1 ? order->forward.items[1] : ZB_GATHER_NO_UNIT;
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_ENTER_FORWARD);
    for (int i = 1; i < order->forward.count; i++) {
        add_event(b, order->forward.items[i], ZB_HOOK_ENTER_FORWARD);
        add_event(b, order->forward.items[i], ZB_HOOK_LEAVE_FORWARD);
    }
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_FORWARD);
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_ENTER_BACKWARD);
    for (int i = 1; i < order->backward.count; i++) {
        const int layer = order->backward.items[i];
        add_event(b, layer, ZB_HOOK_ENTER_BACKWARD);
        if (!b->rules->as_deepspeed || layer != first) add_event(b, layer, ZB_HOOK_LEAVE_BACKWARD);
    }
    if (!b->rules->as_deepspeed) add_event(b, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_BACKWARD);
}

/* What the arrays need room for. */
typedef struct trace_size {
    size_t units, events, params;
} trace_size;

/* A module has two parameters in either direction; so has the root of each, at most. */
static trace_size size_of_model(const zb_model *model)
{
    const size_t units = (size_t)model->module_count + 1;
    return (trace_size){ .units = units, .events = 4 * units, .params = 8 * units };
}

static trace_size size_of_order(const zb_model_order *order)
{
    trace_size size = { .units = (size_t)order->layer_count,
                        .events = 2 * ((size_t)order->forward.count + (size_t)order->backward.count) };
    for (int l = 0; l < order->layer_count; l++) size.params += (size_t)order->layers[l].count;
    return size;
}

zb_status zb_gather_trace_create(const zb_graph *graph, const zb_gather_rules *rules, zb_gather_trace *trace)
{
    const zb_model *model = graph->model;
    const trace_size size = model->order != NULL ? size_of_order(model->order) : size_of_model(model);
    *trace = (zb_gather_trace){ 0 };
    trace->units = zb_alloc_array(size.units, sizeof *trace->units);
    trace->events = zb_alloc_array(size.events, sizeof *trace->events);
    trace->unit_of = zb_alloc_array(size.units, sizeof *trace->unit_of);
    trace->params = zb_alloc_array(size.params, sizeof *trace->params);
    if (trace->units == NULL || trace->events == NULL || trace->unit_of == NULL || trace->params == NULL) {
        zb_gather_trace_destroy(trace);
        return ZB_NO_MEMORY;
    }
    builder b = { .graph = graph, .model = model, .rules = rules, .trace = trace };
    if (model->order != NULL) {
        make_layers(&b, model->order);
        follow_order(&b, model->order);
        return ZB_OK;
    }
    make_units(&b, is_fine_grained(&b));
    make_events(&b);
    return ZB_OK;
}

void zb_gather_trace_destroy(zb_gather_trace *trace)
{
    zb_free(trace->units);
    zb_free(trace->events);
    zb_free(trace->unit_of);
    zb_free(trace->params);
    memset(trace, 0, sizeof *trace);
}
