/* Forward and backward over the module list; see executor.h and, for every formula, zerobit/kernels.h. */
#include "engine/executor.h"

#include <stdint.h>
#include <string.h>
#include <zerobit/memory.h>

#include "engine/tensor.h"

/* --- buffers: one list, used to allocate, to free, and to count --- */

typedef zb_status visit_fn(void *context, zb_memory_kind kind, size_t bytes, void **pointer);

typedef struct buffer_visit {
    visit_fn *visit;
    void *context;
    zb_status status;
} buffer_visit;

/* `pointer` may be NULL when only counting. */
static void visit(buffer_visit *v, zb_memory_kind kind, size_t numel, size_t element_bytes, void *pointer)
{
    if (v->status == ZB_OK && numel > 0)
        v->status = v->visit(v->context, kind, numel * element_bytes, pointer);
}

static void *element(void *array, size_t element_bytes, int index)
{
    return array == NULL ? NULL : (char *)array + (size_t)index * element_bytes;
}

/* What a pass of this model's own takes. */
static void visit_pass(buffer_visit *v, const zb_graph *graph, zb_dtype dtype, size_t rows, zb_executor *e)
{
    const zb_model *model = graph->model;
    const size_t tensor = zb_dtype_bytes(dtype);
    size_t output_numel = zb_shape_numel(&model->modules[zb_model_output_module(model)].out);

    visit(v, ZB_MEM_ACTIVATION, rows * zb_shape_numel(&model->input), tensor, &e->input);
    if (dtype != ZB_FP32)
        visit(v, ZB_MEM_ACTIVATION, rows * zb_shape_numel(&model->input), sizeof(float), &e->input_fp32);
    for (int m = 0; m < model->module_count; m++) {
        size_t numel = zb_shape_numel(&model->modules[m].out);
        visit(v, ZB_MEM_ACTIVATION, rows * graph->value_numel[m], tensor,
              element(e->value, sizeof *e->value, m));
        if (graph->needs_grad[m] && !graph->shares_grad[m])
            visit(v, ZB_MEM_ACTIVATION, rows * numel, tensor, element(e->grad, sizeof *e->grad, m));
        if (model->modules[m].kind == ZB_MODULE_MAXPOOL2D)
            visit(v, ZB_MEM_ACTIVATION, rows * numel, sizeof(int32_t),
                  element(e->argmax, sizeof *e->argmax, m));
    }
    if (model->loss == ZB_LOSS_CROSS_ENTROPY) {
        visit(v, ZB_MEM_ACTIVATION, rows, sizeof(int32_t), &e->labels);
        visit(v, ZB_MEM_ACTIVATION, rows * output_numel, sizeof(float), &e->log_probs);
        visit(v, ZB_MEM_ACTIVATION, rows, sizeof(float), &e->row_loss);
    } else {
        visit(v, ZB_MEM_ACTIVATION, rows * output_numel, sizeof(float), &e->targets);
    }
    visit(v, ZB_MEM_ACTIVATION, 1, sizeof(float), &e->loss);
}

static zb_status visit_buffers(const zb_graph *graph, zb_dtype dtype, size_t rows, zb_executor *e,
                               visit_fn *fn, void *context)
{
    const zb_model *model = graph->model;
    const size_t tensor = zb_dtype_bytes(dtype);
    buffer_visit v = { fn, context, ZB_OK };

    if (model->loss != ZB_LOSS_ELSEWHERE) visit_pass(&v, graph, dtype, rows, e);
    visit(&v, ZB_MEM_WORKSPACE, graph->max_param_numel, tensor, &e->param_scratch);
    for (int p = 0; p < model->param_count; p++)
        if (model->params[p].requires_grad && model->params[p].use_count > 1)
            visit(&v, ZB_MEM_WORKSPACE, model->params[p].numel, tensor,
                  element(e->tied_grad, sizeof *e->tied_grad, p));
    visit(&v, ZB_MEM_WORKSPACE, rows * graph->shared_grad_numel, tensor, &e->activation_scratch);
    visit(&v, ZB_MEM_WORKSPACE, graph->conv_workspace_numel, sizeof(float), &e->conv_workspace);
    return v.status;
}

static zb_status visit_alloc(void *context, zb_memory_kind kind, size_t bytes, void **pointer)
{
    return zb_device_alloc(context, kind, bytes, pointer);
}

static zb_status visit_free(void *context, zb_memory_kind kind, size_t bytes, void **pointer)
{
    if (pointer == NULL) return ZB_OK;
    zb_device_free(context, kind, bytes, *pointer);
    *pointer = NULL;
    return ZB_OK;
}

static zb_status visit_count(void *context, zb_memory_kind kind, size_t bytes, void **pointer)
{
    (void)pointer;
    ((uint64_t *)context)[kind] += bytes;
    return ZB_OK;
}

void zb_executor_memory(const zb_graph *graph, zb_dtype dtype, size_t max_rows, uint64_t bytes[ZB_MEM_COUNT])
{
    zb_executor none = { 0 };
    (void)visit_buffers(graph, dtype, max_rows, &none, visit_count, bytes); /* counting cannot fail */
}

/* So that no product of rows, elements and bytes above wraps round. */
static zb_status check_rows(const zb_graph *graph, size_t rows)
{
    const zb_model *model = graph->model;
    size_t numel = zb_shape_numel(&model->input), bytes;
    for (int m = 0; m < model->module_count; m++) {
        size_t out = zb_shape_numel(&model->modules[m].out);
        if (out > numel) numel = out;
    }
    if (!__builtin_mul_overflow(numel, rows, &bytes) &&
        !__builtin_mul_overflow(bytes, sizeof(float), &bytes) && bytes <= PTRDIFF_MAX)
        return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "micro-batches of %zu rows of model %s are larger than any memory",
                   rows, model->name);
}

zb_status zb_executor_create(const zb_graph *graph, zb_device *device, zb_stream *stream, zb_dtype dtype,
                             size_t max_rows, zb_executor *executor)
{
    size_t modules = (size_t)graph->model->module_count, params = (size_t)graph->model->param_count;
    zb_executor *e = executor;
    ZB_TRY(check_rows(graph, max_rows));
    *e = (zb_executor){
        .graph = graph, .device = device, .stream = stream, .dtype = dtype, .max_rows = max_rows
    };
    e->value = zb_alloc_array(modules, sizeof *e->value);
    e->grad = zb_alloc_array(modules, sizeof *e->grad);
    e->argmax = zb_alloc_array(modules, sizeof *e->argmax);
    e->tied_grad = zb_alloc_array(params, sizeof *e->tied_grad);
    e->activation_seen = zb_alloc(modules);
    e->uses_left = zb_alloc_array(params, sizeof *e->uses_left);
    zb_status status = ZB_NO_MEMORY;
    if (e->value == NULL || e->grad == NULL || e->argmax == NULL || e->tied_grad == NULL ||
        e->activation_seen == NULL || e->uses_left == NULL)
        goto fail;
    status = visit_buffers(graph, dtype, max_rows, e, visit_alloc, device);
    if (status == ZB_OK) return ZB_OK;
fail:
    zb_executor_destroy(e);
    return status;
}

void zb_executor_destroy(zb_executor *e)
{
    if (e->graph == NULL) return;
    (void)visit_buffers(e->graph, e->dtype, e->max_rows, e, visit_free, e->device); /* freeing cannot fail */
    zb_free(e->value);
    zb_free(e->grad);
    zb_free(e->argmax);
    zb_free(e->tied_grad);
    zb_free(e->activation_seen);
    zb_free(e->uses_left);
    memset(e, 0, sizeof *e);
}

/* --- forward --- */

static const zb_module *module_at(const zb_executor *e, int m)
{
    return &e->graph->model->modules[m];
}

/* A flatten's value is its input's, all the way back. */
static const void *value_of(const zb_executor *e, int activation)
{
    while (activation != ZB_MODEL_INPUT && module_at(e, activation)->kind == ZB_MODULE_FLATTEN)
        activation = module_at(e, activation)->inputs[0];
    return activation == ZB_MODEL_INPUT ? e->input : e->value[activation];
}

static zb_maxpool2d_shape maxpool_shape(const zb_module *m, size_t rows)
{
    return (zb_maxpool2d_shape){ .rows = rows,
                                 .channels = (size_t)m->in.extent[0],
                                 .ih = (size_t)m->in.extent[1],
                                 .iw = (size_t)m->in.extent[2],
                                 .oh = (size_t)m->out.extent[1],
                                 .ow = (size_t)m->out.extent[2],
                                 .kernel = (size_t)m->kernel,
                                 .stride = (size_t)m->stride };
}

static const void *param_at(zb_stage *stage, int param)
{
    return param == ZB_NO_PARAM ? NULL : stage->ops->param(stage, param);
}

static zb_status forward_module(zb_executor *e, zb_stage *stage, int index)
{
    const zb_module *m = module_at(e, index);
    const void *x = value_of(e, m->inputs[0]);
    void *y = e->value[index];
    size_t numel = e->rows * zb_shape_numel(&m->out);

    switch (m->kind) {
    case ZB_MODULE_LINEAR:
        return zb_launch_linear_forward(e->stream, &(zb_linear_forward_args){ .dtype = e->dtype,
                                                                              .rows = e->rows,
                                                                              .in = zb_shape_numel(&m->in),
                                                                              .out = zb_shape_numel(&m->out),
                                                                              .x = x,
                                                                              .w = param_at(stage, m->weight),
                                                                              .b = param_at(stage, m->bias),
                                                                              .y = y });
    case ZB_MODULE_CONV2D:
        return zb_launch_conv2d_forward(e->stream,
                                        &(zb_conv2d_forward_args){ .dtype = e->dtype,
                                                                   .shape = zb_graph_conv2d_shape(m, e->rows),
                                                                   .x = x,
                                                                   .w = param_at(stage, m->weight),
                                                                   .b = param_at(stage, m->bias),
                                                                   .y = y,
                                                                   .workspace = e->conv_workspace });
    case ZB_MODULE_MAXPOOL2D:
        return zb_launch_maxpool2d_forward(e->stream,
                                           &(zb_maxpool2d_forward_args){ .dtype = e->dtype,
                                                                         .shape = maxpool_shape(m, e->rows),
                                                                         .x = x,
                                                                         .y = y,
                                                                         .argmax = e->argmax[index] });
    case ZB_MODULE_RELU:
        return zb_launch_relu_forward(
            e->stream, &(zb_relu_forward_args){ .dtype = e->dtype, .x = x, .y = y, .numel = numel });
    case ZB_MODULE_ADD:
        ZB_TRY(zb_store(e->stream, y, e->dtype, x, e->dtype, numel));
        return zb_accumulate(e->stream, y, e->dtype, value_of(e, m->inputs[1]), e->dtype, numel);
    case ZB_MODULE_FLATTEN:
    case ZB_MODULE_PARAMETER:
        return ZB_OK;
    }
    return zb_fail(ZB_INTERNAL, "module kind is %d", (int)m->kind);
}

static size_t output_numel_of(const zb_model *model)
{
    return zb_shape_numel(&model->modules[zb_model_output_module(model)].out);
}

/* The kernels rely on it. */
static zb_status check_labels(const zb_batch *batch, size_t classes)
{
    if (batch->labels == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "batch has no labels; cross entropy wants them");
    for (int64_t row = 0; row < batch->rows; row++)
        if (batch->labels[row] < 0 || (size_t)batch->labels[row] >= classes)
            return zb_fail(ZB_INVALID_ARGUMENT, "label of row %lld is %d, want 0 to %zu", (long long)row,
                           batch->labels[row], classes - 1);
    return ZB_OK;
}

zb_status zb_executor_check_batch(const zb_executor *e, const zb_batch *batch)
{
    const zb_model *model = e->graph->model;
    if (model->loss == ZB_LOSS_ELSEWHERE)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "forward called for model %s, whose forward is elsewhere: its gradients come by "
                       "zb_engine_external_micro_batch",
                       model->name);
    if (batch->rows < 1 || (uint64_t)batch->rows > e->max_rows)
        return zb_fail(ZB_INVALID_ARGUMENT, "batch has %lld rows, want 1 to %zu (the micro-batch size)",
                       (long long)batch->rows, e->max_rows);
    if (batch->inputs == NULL) return zb_fail(ZB_INVALID_ARGUMENT, "batch has no inputs");
    if (model->loss == ZB_LOSS_CROSS_ENTROPY) return check_labels(batch, output_numel_of(model));
    if (batch->targets == NULL) return zb_fail(ZB_INVALID_ARGUMENT, "batch has no targets; mse wants them");
    return ZB_OK;
}

static zb_status load_batch(zb_executor *e, const zb_batch *batch)
{
    const zb_model *model = e->graph->model;
    e->rows = (size_t)batch->rows;
    size_t input_numel = e->rows * zb_shape_numel(&model->input);
    void *input_fp32 = e->dtype == ZB_FP32 ? e->input : e->input_fp32;
    ZB_TRY(zb_copy_in(e->stream, input_fp32, batch->inputs, input_numel * sizeof(float)));
    ZB_TRY(zb_store(e->stream, e->input, e->dtype, input_fp32, ZB_FP32, input_numel));
    if (model->loss == ZB_LOSS_CROSS_ENTROPY)
        return zb_copy_in(e->stream, e->labels, batch->labels, e->rows * sizeof(int32_t));
    return zb_copy_in(e->stream, e->targets, batch->targets,
                      e->rows * output_numel_of(model) * sizeof(float));
}

static zb_status forward_loss(zb_executor *e)
{
    const zb_model *model = e->graph->model;
    int output = zb_model_output_module(model);
    size_t output_numel = zb_shape_numel(&model->modules[output].out);
    const void *x = value_of(e, output);
    if (model->loss == ZB_LOSS_MSE)
        return zb_launch_mse_forward(e->stream, &(zb_mse_forward_args){ .dtype = e->dtype,
                                                                        .numel = e->rows * output_numel,
                                                                        .x = x,
                                                                        .t = e->targets,
                                                                        .loss = e->loss });
    return zb_launch_cross_entropy_forward(e->stream,
                                           &(zb_cross_entropy_forward_args){ .dtype = e->dtype,
                                                                             .rows = e->rows,
                                                                             .classes = output_numel,
                                                                             .x = x,
                                                                             .labels = e->labels,
                                                                             .log_probs = e->log_probs,
                                                                             .row_loss = e->row_loss,
                                                                             .loss = e->loss });
}

zb_status zb_executor_forward(zb_executor *e, zb_stage *stage, const zb_batch *batch, float *loss)
{
    ZB_TRY(load_batch(e, batch));
    ZB_TRY(stage->ops->begin_forward(stage));
    for (int m = 0; m < e->graph->model->module_count; m++) {
        if (module_at(e, m)->kind == ZB_MODULE_PARAMETER) continue;
        ZB_TRY(stage->ops->before_forward(stage, m));
        ZB_TRY(forward_module(e, stage, m));
        ZB_TRY(stage->ops->after_forward(stage, m));
    }
    ZB_TRY(stage->ops->end_forward(stage));
    ZB_TRY(forward_loss(e));
    ZB_TRY(zb_copy_out(e->stream, loss, e->loss, sizeof *loss));
    return zb_stream_wait_idle(e->stream);
}

/* --- backward: contributions to activations --- */

static int grad_root(const zb_executor *e, int activation)
{
    while (e->graph->shares_grad[activation]) activation = module_at(e, activation)->inputs[0];
    return activation;
}

/* Where a kernel puts its contribution to an activation's gradient; NULL when nobody wants it. The first
 * contribution is stored, a later one goes through scratch and is added. */
static void *contribution_target(zb_executor *e, int activation)
{
    if (activation == ZB_MODEL_INPUT || !e->graph->needs_grad[activation]) return NULL;
    int root = grad_root(e, activation);
    return e->activation_seen[root] ? e->activation_scratch : e->grad[root];
}

static zb_status contribution_done(zb_executor *e, int activation, const void *target)
{
    int root = grad_root(e, activation);
    e->activation_seen[root] = 1;
    if (target == e->grad[root]) return ZB_OK;
    size_t numel = e->rows * zb_shape_numel(&module_at(e, root)->out);
    return zb_accumulate(e->stream, e->grad[root], e->dtype, target, e->dtype, numel);
}

/* The contribution of a module that passes its output's gradient on as it is. */
static zb_status pass_through(zb_executor *e, int activation, const void *dy, size_t numel)
{
    void *to = contribution_target(e, activation);
    if (to == NULL) return ZB_OK;
    ZB_TRY(zb_store(e->stream, to, e->dtype, dy, e->dtype, numel));
    return contribution_done(e, activation, to);
}

/* --- backward: gradients of parameters --- */

static int is_tied(const zb_executor *e, int param)
{
    return e->graph->model->params[param].use_count > 1;
}

static int wants_grad(const zb_executor *e, int param)
{
    return param != ZB_NO_PARAM && e->graph->model->params[param].requires_grad;
}

static zb_status param_grad_target(zb_executor *e, zb_stage *stage, int param, void **target)
{
    if (is_tied(e, param)) {
        int first = e->uses_left[param] == e->graph->model->params[param].use_count;
        *target = first ? e->tied_grad[param] : e->param_scratch;
        return ZB_OK;
    }
    ZB_TRY(stage->ops->grad_target(stage, param, target));
    if (*target == NULL) *target = e->param_scratch;
    return ZB_OK;
}

static zb_status param_grad_done(zb_executor *e, zb_stage *stage, int param, const void *target)
{
    if (!is_tied(e, param)) return stage->ops->grad_ready(stage, param, target);
    if (target != e->tied_grad[param])
        ZB_TRY(zb_accumulate(e->stream, e->tied_grad[param], e->dtype, target, e->dtype,
                             e->graph->model->params[param].numel));
    if (--e->uses_left[param] > 0) return ZB_OK;
    return stage->ops->grad_ready(stage, param, e->tied_grad[param]);
}

static zb_status backward_bias(zb_executor *e, zb_stage *stage, const zb_module *m, const void *dy)
{
    void *to;
    if (!wants_grad(e, m->bias)) return ZB_OK;
    ZB_TRY(param_grad_target(e, stage, m->bias, &to));
    if (m->kind == ZB_MODULE_LINEAR)
        ZB_TRY(zb_launch_linear_backward_bias(
            e->stream,
            &(zb_linear_backward_bias_args){
                .dtype = e->dtype, .rows = e->rows, .out = zb_shape_numel(&m->out), .dy = dy, .db = to }));
    else
        ZB_TRY(zb_launch_conv2d_backward_bias(
            e->stream,
            &(zb_conv2d_backward_bias_args){
                .dtype = e->dtype, .shape = zb_graph_conv2d_shape(m, e->rows), .dy = dy, .db = to }));
    return param_grad_done(e, stage, m->bias, to);
}

static zb_status backward_weight(zb_executor *e, zb_stage *stage, const zb_module *m, const void *x,
                                 const void *dy)
{
    void *to;
    if (!wants_grad(e, m->weight)) return ZB_OK;
    ZB_TRY(param_grad_target(e, stage, m->weight, &to));
    if (m->kind == ZB_MODULE_LINEAR)
        ZB_TRY(zb_launch_linear_backward_weight(
            e->stream, &(zb_linear_backward_weight_args){ .dtype = e->dtype,
                                                          .rows = e->rows,
                                                          .in = zb_shape_numel(&m->in),
                                                          .out = zb_shape_numel(&m->out),
                                                          .dy = dy,
                                                          .x = x,
                                                          .dw = to }));
    else
        ZB_TRY(zb_launch_conv2d_backward_weight(
            e->stream, &(zb_conv2d_backward_weight_args){ .dtype = e->dtype,
                                                          .shape = zb_graph_conv2d_shape(m, e->rows),
                                                          .dy = dy,
                                                          .x = x,
                                                          .dw = to,
                                                          .workspace = e->conv_workspace }));
    return param_grad_done(e, stage, m->weight, to);
}

static zb_status backward_input(zb_executor *e, zb_stage *stage, const zb_module *m, const void *dy)
{
    void *to = contribution_target(e, m->inputs[0]);
    if (to == NULL) return ZB_OK;
    const void *w = param_at(stage, m->weight);
    if (m->kind == ZB_MODULE_LINEAR)
        ZB_TRY(zb_launch_linear_backward_input(
            e->stream, &(zb_linear_backward_input_args){ .dtype = e->dtype,
                                                         .rows = e->rows,
                                                         .in = zb_shape_numel(&m->in),
                                                         .out = zb_shape_numel(&m->out),
                                                         .dy = dy,
                                                         .w = w,
                                                         .dx = to }));
    else
        ZB_TRY(zb_launch_conv2d_backward_input(
            e->stream, &(zb_conv2d_backward_input_args){ .dtype = e->dtype,
                                                         .shape = zb_graph_conv2d_shape(m, e->rows),
                                                         .dy = dy,
                                                         .w = w,
                                                         .dx = to,
                                                         .workspace = e->conv_workspace }));
    return contribution_done(e, m->inputs[0], to);
}

static zb_status backward_weighted(zb_executor *e, zb_stage *stage, const zb_module *m, const void *dy)
{
    ZB_TRY(backward_input(e, stage, m, dy));
    ZB_TRY(backward_bias(e, stage, m, dy));
    return backward_weight(e, stage, m, value_of(e, m->inputs[0]), dy);
}

static zb_status backward_pointwise(zb_executor *e, int index, const zb_module *m, const void *dy)
{
    void *to = contribution_target(e, m->inputs[0]);
    if (to == NULL) return ZB_OK;
    if (m->kind == ZB_MODULE_RELU)
        ZB_TRY(zb_launch_relu_backward(
            e->stream, &(zb_relu_backward_args){ .dtype = e->dtype,
                                                 .y = e->value[index],
                                                 .dy = dy,
                                                 .dx = to,
                                                 .numel = e->rows * zb_shape_numel(&m->out) }));
    else
        ZB_TRY(zb_launch_maxpool2d_backward(e->stream,
                                            &(zb_maxpool2d_backward_args){ .dtype = e->dtype,
                                                                           .shape = maxpool_shape(m, e->rows),
                                                                           .dy = dy,
                                                                           .argmax = e->argmax[index],
                                                                           .dx = to }));
    return contribution_done(e, m->inputs[0], to);
}

static zb_status backward_module(zb_executor *e, zb_stage *stage, int index)
{
    const zb_module *m = module_at(e, index);
    const void *dy = e->grad[grad_root(e, index)];
    size_t numel = e->rows * zb_shape_numel(&m->out);

    switch (m->kind) {
    case ZB_MODULE_LINEAR:
    case ZB_MODULE_CONV2D:
        return backward_weighted(e, stage, m, dy);
    case ZB_MODULE_MAXPOOL2D:
    case ZB_MODULE_RELU:
        return backward_pointwise(e, index, m, dy);
    case ZB_MODULE_FLATTEN:
        return e->graph->shares_grad[index] ? ZB_OK : pass_through(e, m->inputs[0], dy, numel);
    case ZB_MODULE_ADD:
        ZB_TRY(pass_through(e, m->inputs[0], dy, numel));
        return pass_through(e, m->inputs[1], dy, numel);
    case ZB_MODULE_PARAMETER:
        return ZB_OK;
    }
    return zb_fail(ZB_INTERNAL, "module kind is %d", (int)m->kind);
}

static zb_status backward_loss(zb_executor *e, float seed, float divisor)
{
    const zb_model *model = e->graph->model;
    int output = zb_model_output_module(model);
    size_t output_numel = zb_shape_numel(&model->modules[output].out);
    void *dx = e->grad[grad_root(e, output)];
    if (model->loss == ZB_LOSS_MSE)
        ZB_TRY(zb_launch_mse_backward(e->stream, &(zb_mse_backward_args){ .dtype = e->dtype,
                                                                          .numel = e->rows * output_numel,
                                                                          .x = value_of(e, output),
                                                                          .t = e->targets,
                                                                          .seed = seed,
                                                                          .divisor = divisor,
                                                                          .dx = dx }));
    else
        ZB_TRY(zb_launch_cross_entropy_backward(e->stream,
                                                &(zb_cross_entropy_backward_args){ .dtype = e->dtype,
                                                                                   .rows = e->rows,
                                                                                   .classes = output_numel,
                                                                                   .log_probs = e->log_probs,
                                                                                   .labels = e->labels,
                                                                                   .seed = seed,
                                                                                   .divisor = divisor,
                                                                                   .dx = dx }));
    e->activation_seen[grad_root(e, output)] = 1;
    return ZB_OK;
}

/* A parameter that no module uses still takes part in every reduction, with zeros. */
static zb_status backward_unused(zb_executor *e, zb_stage *stage)
{
    for (int i = 0; i < e->graph->ready_count; i++) {
        int param = e->graph->ready_order[i];
        const zb_param *p = &e->graph->model->params[param];
        void *to;
        if (p->use_count > 0) continue;
        ZB_TRY(param_grad_target(e, stage, param, &to));
        ZB_TRY(zb_launch_fill_bytes(
            e->stream,
            &(zb_fill_bytes_args){ .data = to, .value = 0, .bytes = p->numel * zb_dtype_bytes(e->dtype) }));
        ZB_TRY(param_grad_done(e, stage, param, to));
    }
    return ZB_OK;
}

zb_status zb_executor_backward(zb_executor *e, zb_stage *stage, float seed, float divisor)
{
    const zb_model *model = e->graph->model;
    memset(e->activation_seen, 0, (size_t)model->module_count);
    for (int p = 0; p < model->param_count; p++) e->uses_left[p] = model->params[p].use_count;

    ZB_TRY(stage->ops->begin_backward(stage));
    if (e->graph->needs_grad[zb_model_output_module(model)]) ZB_TRY(backward_loss(e, seed, divisor));
    for (int m = model->module_count - 1; m >= 0; m--) {
        if (!e->graph->needs_grad[m]) continue;
        ZB_TRY(stage->ops->before_backward(stage, m));
        ZB_TRY(backward_module(e, stage, m));
        ZB_TRY(stage->ops->after_backward(stage, m));
    }
    ZB_TRY(backward_unused(e, stage));
    return stage->ops->end_backward(stage);
}
