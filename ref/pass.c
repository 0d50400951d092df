/*
 * Forward and backward through a model, for one micro-batch of one rank.
 *
 * Backward visits the modules in reverse. What one module contributes to the gradient of an activation or of
 * a parameter is computed whole, then handed over: the first contribution is stored, each later one is added
 * with one addition per element. The model's input and frozen parameters receive nothing.
 *
 * Every result is rounded to the pass's type where it is stored; where a module only moves numbers, that
 * changes nothing.
 */
#include "ref/oracle.h"

#include <string.h>
#include <zerobit/memory.h>

/* --- memory --- */

static int has_output(const zb_module *module)
{
    return module->kind != ZB_MODULE_PARAMETER;
}

/* Floats of the largest thing that one module contributes to one gradient. */
static size_t contribution_numel(const zb_model *model, const zb_module *module, size_t rows)
{
    size_t numel = rows * zb_shape_numel(&module->in);
    int params[] = { module->weight, module->bias };
    for (int i = 0; i < 2; i++)
        if (params[i] != ZB_NO_PARAM && model->params[params[i]].numel > numel)
            numel = model->params[params[i]].numel;
    return numel;
}

static zb_status allocate_arrays(const zb_model *model, zb_ref_pass *pass)
{
    size_t modules = (size_t)model->module_count;
    pass->output = zb_alloc_array(modules, sizeof *pass->output);
    pass->gradient = zb_alloc_array(modules, sizeof *pass->gradient);
    pass->argmax = zb_alloc_array(modules, sizeof *pass->argmax);
    pass->output_reached = zb_alloc_array(modules, sizeof *pass->output_reached);
    pass->param_reached = zb_alloc_array((size_t)model->param_count, sizeof *pass->param_reached);
    if (pass->output == NULL || pass->gradient == NULL || pass->argmax == NULL ||
        pass->output_reached == NULL || pass->param_reached == NULL)
        return ZB_NO_MEMORY;
    return ZB_OK;
}

static zb_status allocate_tensors(const zb_model *model, size_t rows, zb_ref_pass *pass)
{
    size_t contribution = 0, scratch = 0;
    for (int m = 0; m < model->module_count; m++) {
        const zb_module *module = &model->modules[m];
        if (!has_output(module)) continue;
        size_t out_bytes = zb_shape_numel(&module->out) * sizeof(float);
        pass->output[m] = zb_alloc_array(rows, out_bytes);
        pass->gradient[m] = zb_alloc_array(rows, out_bytes);
        if (pass->output[m] == NULL || pass->gradient[m] == NULL) return ZB_NO_MEMORY;
        if (module->kind == ZB_MODULE_MAXPOOL2D) {
            pass->argmax[m] = zb_alloc_array(rows, zb_shape_numel(&module->out) * sizeof(size_t));
            if (pass->argmax[m] == NULL) return ZB_NO_MEMORY;
        }
        size_t needed = contribution_numel(model, module, rows);
        if (needed > contribution) contribution = needed;
        needed = zb_ref_layer_scratch_numel(module);
        if (needed > scratch) scratch = needed;
    }
    pass->input = zb_alloc_array(rows, zb_shape_numel(&model->input) * sizeof(float));
    size_t classes = zb_shape_numel(&model->modules[zb_model_output_module(model)].out);
    pass->log_probs = zb_alloc_array(rows, classes * sizeof(float));
    pass->contribution = zb_alloc_array(contribution, sizeof(float));
    pass->scratch = zb_alloc_array(scratch, sizeof(float));
    if (pass->input == NULL || pass->log_probs == NULL || pass->contribution == NULL || pass->scratch == NULL)
        return ZB_NO_MEMORY;
    return ZB_OK;
}

zb_status zb_ref_pass_create(const zb_model *model, zb_dtype dtype, size_t rows, zb_ref_pass *pass)
{
    zb_ref_pass made = { .model = model, .dtype = dtype };
    zb_status status = allocate_arrays(model, &made);
    if (status == ZB_OK) status = allocate_tensors(model, rows, &made);
    if (status != ZB_OK) {
        zb_ref_pass_destroy(&made);
        return status;
    }
    *pass = made;
    return ZB_OK;
}

static void free_each(void *const *pointers, int count)
{
    for (int i = 0; pointers != NULL && i < count; i++) zb_free(pointers[i]);
}

void zb_ref_pass_destroy(zb_ref_pass *pass)
{
    int modules = pass->model == NULL ? 0 : pass->model->module_count;
    free_each((void *const *)pass->output, modules);
    free_each((void *const *)pass->gradient, modules);
    free_each((void *const *)pass->argmax, modules);
    zb_free(pass->input);
    zb_free(pass->output);
    zb_free(pass->gradient);
    zb_free(pass->argmax);
    zb_free(pass->output_reached);
    zb_free(pass->param_reached);
    zb_free(pass->log_probs);
    zb_free(pass->contribution);
    zb_free(pass->scratch);
    *pass = (zb_ref_pass){ 0 };
}

/* --- forward --- */

static const float *input_of(const zb_ref_pass *pass, int input)
{
    return input == ZB_MODEL_INPUT ? pass->input : pass->output[input];
}

static const float *param_of(const zb_ref_tensors *values, int param)
{
    return param == ZB_NO_PARAM ? NULL : values->param[param];
}

static void forward_module(zb_ref_pass *pass, int m, const zb_ref_tensors *values, size_t rows)
{
    const zb_module *module = &pass->model->modules[m];
    if (!has_output(module)) return;
    size_t numel = rows * zb_shape_numel(&module->out);
    const float *x = input_of(pass, module->inputs[0]);
    const float *w = param_of(values, module->weight), *b = param_of(values, module->bias);
    float *y = pass->output[m];

    switch (module->kind) {
    case ZB_MODULE_LINEAR:
        zb_ref_linear_forward(module, rows, x, w, b, y, pass->scratch);
        break;
    case ZB_MODULE_CONV2D:
        zb_ref_conv2d_forward(module, rows, x, w, b, y, pass->scratch);
        break;
    case ZB_MODULE_MAXPOOL2D:
        zb_ref_maxpool2d_forward(module, rows, x, y, pass->argmax[m]);
        break;
    case ZB_MODULE_RELU:
        zb_ref_relu_forward(numel, x, y);
        break;
    case ZB_MODULE_FLATTEN:
        memcpy(y, x, numel * sizeof *y);
        break;
    case ZB_MODULE_ADD: {
        const float *x2 = input_of(pass, module->inputs[1]);
        for (size_t i = 0; i < numel; i++) y[i] = x[i] + x2[i];
        break;
    }
    case ZB_MODULE_PARAMETER:
        break;
    }
    zb_ref_round_all(pass->dtype, y, numel);
}

float zb_ref_forward(zb_ref_pass *pass, const zb_ref_tensors *values, const zb_batch *batch)
{
    const zb_model *model = pass->model;
    const size_t rows = (size_t)batch->rows, inputs = rows * zb_shape_numel(&model->input);
    memcpy(pass->input, batch->inputs, inputs * sizeof *pass->input);
    zb_ref_round_all(pass->dtype, pass->input, inputs);
    for (int m = 0; m < model->module_count; m++) forward_module(pass, m, values, rows);

    int last = zb_model_output_module(model);
    size_t outputs = zb_shape_numel(&model->modules[last].out);
    if (model->loss == ZB_LOSS_MSE)
        return zb_ref_mse_forward(rows * outputs, pass->output[last], batch->targets);
    return zb_ref_cross_entropy_forward(rows, outputs, pass->output[last], batch->labels, pass->log_probs);
}

/* --- backward --- */

/* The first contribution is stored, a later one added. */
static void hand_over(zb_dtype dtype, const float *contribution, size_t numel, float *gradient, int *reached)
{
    for (size_t i = 0; i < numel; i++) {
        const float rounded = zb_ref_round(dtype, contribution[i]);
        gradient[i] = *reached ? zb_ref_round(dtype, gradient[i] + rounded) : rounded;
    }
    *reached = 1;
}

static int wants_gradient(const zb_model *model, int param)
{
    return param != ZB_NO_PARAM && model->params[param].requires_grad;
}

static void hand_over_param(zb_ref_pass *pass, int param, zb_ref_tensors *gradients)
{
    hand_over(pass->dtype, pass->contribution, pass->model->params[param].numel, gradients->param[param],
              &pass->param_reached[param]);
}

static void backward_params(zb_ref_pass *pass, int m, size_t rows, zb_ref_tensors *gradients)
{
    const zb_module *module = &pass->model->modules[m];
    const float *x = input_of(pass, module->inputs[0]), *dy = pass->gradient[m];
    if (wants_gradient(pass->model, module->weight)) {
        if (module->kind == ZB_MODULE_LINEAR)
            zb_ref_linear_backward_weight(module, rows, dy, x, pass->contribution);
        else
            zb_ref_conv2d_backward_weight(module, rows, dy, x, pass->contribution, pass->scratch);
        hand_over_param(pass, module->weight, gradients);
    }
    if (wants_gradient(pass->model, module->bias)) {
        zb_ref_backward_bias(module, rows, dy, pass->contribution);
        hand_over_param(pass, module->bias, gradients);
    }
}

static int wants_input_gradient(const zb_module *module)
{
    for (int i = 0; i < module->input_count; i++)
        if (module->inputs[i] != ZB_MODEL_INPUT) return 1;
    return 0;
}

static void backward_inputs(zb_ref_pass *pass, int m, const zb_ref_tensors *values, size_t rows)
{
    const zb_module *module = &pass->model->modules[m];
    const float *dy = pass->gradient[m], *w = param_of(values, module->weight);
    float *dx = pass->contribution;
    if (!wants_input_gradient(module)) return;

    switch (module->kind) {
    case ZB_MODULE_LINEAR:
        zb_ref_linear_backward_input(module, rows, dy, w, dx);
        break;
    case ZB_MODULE_CONV2D:
        zb_ref_conv2d_backward_input(module, rows, dy, w, dx, pass->scratch);
        break;
    case ZB_MODULE_MAXPOOL2D:
        zb_ref_maxpool2d_backward(module, pass->dtype, rows, dy, pass->argmax[m], dx);
        break;
    case ZB_MODULE_RELU:
        zb_ref_relu_backward(rows * zb_shape_numel(&module->out), pass->output[m], dy, dx);
        break;
    case ZB_MODULE_FLATTEN:
    case ZB_MODULE_ADD:
        dx = pass->gradient[m];
        break; /* the output's gradient is the contribution */
    case ZB_MODULE_PARAMETER:
        break;
    }
    for (int i = 0; i < module->input_count; i++) {
        int from = module->inputs[i];
        if (from != ZB_MODEL_INPUT)
            hand_over(pass->dtype, dx, rows * zb_shape_numel(&module->in), pass->gradient[from],
                      &pass->output_reached[from]);
    }
}

static void backward_module(zb_ref_pass *pass, int m, const zb_ref_tensors *values, size_t rows,
                            zb_ref_tensors *gradients)
{
    const zb_module *module = &pass->model->modules[m];
    if (!has_output(module)) return;
    ZB_ASSERT(pass->output_reached[m]); /* a finished model has no output that nothing uses */
    backward_params(pass, m, rows, gradients);
    backward_inputs(pass, m, values, rows);
}

void zb_ref_backward(zb_ref_pass *pass, const zb_ref_tensors *values, const zb_batch *batch, float seed,
                     float divisor, zb_ref_tensors *gradients)
{
    const zb_model *model = pass->model;
    memset(gradients->data, 0, gradients->numel * sizeof *gradients->data);
    memset(pass->output_reached, 0, (size_t)model->module_count * sizeof *pass->output_reached);
    memset(pass->param_reached, 0, (size_t)model->param_count * sizeof *pass->param_reached);

    int last = zb_model_output_module(model);
    size_t rows = (size_t)batch->rows, outputs = zb_shape_numel(&model->modules[last].out);
    float *dy = pass->gradient[last];
    if (model->loss == ZB_LOSS_MSE)
        zb_ref_mse_backward(rows * outputs, pass->output[last], batch->targets, seed, divisor, dy);
    else
        zb_ref_cross_entropy_backward(rows, outputs, pass->log_probs, batch->labels, seed, divisor, dy);
    zb_ref_round_all(pass->dtype, dy, rows * outputs);
    pass->output_reached[last] = 1;

    for (int m = model->module_count - 1; m >= 0; m--) backward_module(pass, m, values, rows, gradients);
}
