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

static zb_status allocate(zb_gather_trace *trace, size_t units, size_t events, size_t params)
{
    *trace = (zb_gather_trace){ 0 };
    trace->units = zb_alloc_array(units, sizeof *trace->units);
    trace->events = zb_alloc_array(events, sizeof *trace->events);
    trace->unit_of = zb_alloc_array(units, sizeof *trace->unit_of);
    trace->params = zb_alloc_array(params, sizeof *trace->params);
    if (trace->units != NULL && trace->events != NULL && trace->unit_of != NULL && trace->params != NULL)
        return ZB_OK;
    zb_gather_trace_destroy(trace);
    return ZB_NO_MEMORY;
}

zb_status zb_gather_trace_create(const zb_graph *graph, const zb_gather_rules *rules, zb_gather_trace *trace)
{
    const zb_model *model = graph->model;
    const size_t units = (size_t)model->module_count + 1;
    /* A module has two parameters in either direction; so has the root of each, at most. */
    ZB_TRY(allocate(trace, units, 4 * units, 8 * units));
    builder b = { .graph = graph, .model = model, .rules = rules, .trace = trace };
    make_units(&b, is_fine_grained(&b));
    make_events(&b);
    return ZB_OK;
}

/* --- modules that someone else calls --- */

static int has_trainable(const builder *b, const zb_index_list *module)
{
    for (int i = 0; i < module->count; i++)
        if (b->model->params[module->items[i]].requires_grad) return 1;
    return 0;
}

/* For all that is known: a module called before it has something to train. */
static int input_needs_grad(const builder *b, const zb_call_order *order, int module)
{
    for (int i = 1; i < order->forward.count && order->forward.items[i] != module; i++)
        if (has_trainable(b, &order->modules[order->forward.items[i]])) return 1;
    return 0;
}

static void make_called_units(builder *b, const zb_call_order *order)
{
    b->trace->unit_count = order->module_count;
    for (int m = 0; m < order->module_count; m++) {
        zb_gather_unit *unit = &b->trace->units[m];
        for (int i = 0; i < order->modules[m].count; i++)
            add_param(b, &unit->forward, order->modules[m].items[i]);
        unit->backward = unit->forward;
        b->trace->unit_of[m] = m;
    }
}

static void make_called_events(builder *b, const zb_call_order *order)
{
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_ENTER_FORWARD);
    for (int i = 1; i < order->forward.count; i++) {
        add_event(b, order->forward.items[i], ZB_HOOK_ENTER_FORWARD);
        add_event(b, order->forward.items[i], ZB_HOOK_LEAVE_FORWARD);
    }
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_FORWARD);
    add_event(b, ZB_GATHER_ROOT, ZB_HOOK_ENTER_BACKWARD);
    for (int i = 1; i < order->backward.count; i++) {
        const int module = order->backward.items[i];
        add_event(b, module, ZB_HOOK_ENTER_BACKWARD);
        if (!b->rules->as_deepspeed || input_needs_grad(b, order, module))
            add_event(b, module, ZB_HOOK_LEAVE_BACKWARD);
    }
    if (!b->rules->as_deepspeed) add_event(b, ZB_GATHER_ROOT, ZB_HOOK_LEAVE_BACKWARD);
}

zb_status zb_gather_trace_of_calls(const zb_call_order *order, const zb_model *model, int as_deepspeed,
                                   zb_gather_trace *trace)
{
    size_t params = 1;
    for (int m = 0; m < order->module_count; m++) params += (size_t)order->modules[m].count;
    ZB_TRY(allocate(trace, (size_t)order->module_count,
                    2 * (size_t)(order->forward.count + order->backward.count), params));
    const zb_gather_rules rules = { .as_deepspeed = as_deepspeed };
    builder b = { .model = model, .rules = &rules, .trace = trace };
    make_called_units(&b, order);
    make_called_events(&b, order);
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
