/*
 * Models: built module by module, every shape and name checked as it comes in, and initial values.
 *
 * A model is valid after every zb_model_add: a module that is refused leaves nothing behind. What only the
 * whole can show (an output that nothing uses, a loss that does not fit) is checked by zb_model_finish.
 */
#include <zerobit/model.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/random.h>

#include "core/model_parts.h"

/* --- kinds and their fields --- */

const char *zb_module_kind_name(zb_module_kind kind)
{
    switch (kind) {
#define KIND_CASE(name, text)                                                                                \
    case ZB_MODULE_##name:                                                                                   \
        return text;
        ZB_MODULE_MAP(KIND_CASE)
#undef KIND_CASE
    }
    return "?";
}

unsigned zb_module_kind_fields(zb_module_kind kind)
{
    switch (kind) {
    case ZB_MODULE_LINEAR:
        return ZB_MODULE_FIELD_INPUT | ZB_MODULE_FIELD_OUT_FEATURES | ZB_MODULE_FIELD_BIAS |
               ZB_MODULE_FIELD_FROZEN | ZB_MODULE_FIELD_TIE;
    case ZB_MODULE_CONV2D:
        return ZB_MODULE_FIELD_INPUT | ZB_MODULE_FIELD_OUT_CHANNELS | ZB_MODULE_FIELD_KERNEL |
               ZB_MODULE_FIELD_STRIDE | ZB_MODULE_FIELD_PADDING | ZB_MODULE_FIELD_BIAS |
               ZB_MODULE_FIELD_FROZEN | ZB_MODULE_FIELD_TIE;
    case ZB_MODULE_MAXPOOL2D:
        return ZB_MODULE_FIELD_INPUT | ZB_MODULE_FIELD_KERNEL | ZB_MODULE_FIELD_STRIDE;
    case ZB_MODULE_RELU:
    case ZB_MODULE_FLATTEN:
        return ZB_MODULE_FIELD_INPUT;
    case ZB_MODULE_ADD:
        return ZB_MODULE_FIELD_INPUT | ZB_MODULE_FIELD_INPUT2;
    case ZB_MODULE_PARAMETER:
        return ZB_MODULE_FIELD_SHAPE | ZB_MODULE_FIELD_FROZEN;
    }
    return 0;
}

static unsigned given_fields(const zb_module_spec *spec)
{
    return (spec->input != NULL ? ZB_MODULE_FIELD_INPUT : 0u) |
           (spec->input2 != NULL ? ZB_MODULE_FIELD_INPUT2 : 0u) |
           (spec->out_features != 0 ? ZB_MODULE_FIELD_OUT_FEATURES : 0u) |
           (spec->out_channels != 0 ? ZB_MODULE_FIELD_OUT_CHANNELS : 0u) |
           (spec->kernel != 0 ? ZB_MODULE_FIELD_KERNEL : 0u) |
           (spec->stride != 0 ? ZB_MODULE_FIELD_STRIDE : 0u) |
           (spec->padding != 0 ? ZB_MODULE_FIELD_PADDING : 0u) | (spec->no_bias ? ZB_MODULE_FIELD_BIAS : 0u) |
           (spec->frozen ? ZB_MODULE_FIELD_FROZEN : 0u) | (spec->tie != NULL ? ZB_MODULE_FIELD_TIE : 0u) |
           (spec->shape.dims != 0 ? ZB_MODULE_FIELD_SHAPE : 0u);
}

static zb_status check_fields(const zb_module_spec *spec)
{
    static const char *const field_names[] = {
#define FIELD_NAME(name, text) text,
        ZB_MODULE_FIELD_MAP(FIELD_NAME)
#undef FIELD_NAME
    };
    unsigned stray = given_fields(spec) & ~zb_module_kind_fields(spec->kind);
    for (int i = 0; i < ZB_MODULE_FIELD_COUNT; i++)
        if (stray & 1u << i)
            return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": a %s module takes no %s", spec->name,
                           zb_module_kind_name(spec->kind), field_names[i]);
    return ZB_OK;
}

/* --- shapes --- */

size_t zb_shape_numel(const zb_shape *shape)
{
    size_t numel = 1;
    for (int i = 0; i < shape->dims; i++) numel *= (size_t)shape->extent[i];
    return numel;
}

const char *zb_shape_format(const zb_shape *shape, char text[ZB_SHAPE_TEXT_BYTES])
{
    int used = snprintf(text, ZB_SHAPE_TEXT_BYTES, "[");
    for (int i = 0; i < shape->dims && i < ZB_MAX_DIMS; i++)
        used += snprintf(text + used, ZB_SHAPE_TEXT_BYTES - (size_t)used, "%s%" PRId64, i ? "," : "",
                         shape->extent[i]);
    snprintf(text + used, ZB_SHAPE_TEXT_BYTES - (size_t)used, "]");
    return text;
}

int zb_shape_equal(const zb_shape *a, const zb_shape *b)
{
    if (a->dims != b->dims) return 0;
    for (int i = 0; i < a->dims; i++)
        if (a->extent[i] != b->extent[i]) return 0;
    return 1;
}

zb_status zb_shape_check(const zb_shape *shape, int64_t extent_min, const char *what)
{
    char text[ZB_SHAPE_TEXT_BYTES];
    if (shape->dims < 1 || shape->dims > ZB_MAX_DIMS)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: a shape has 1 to %d dimensions, found %d", what, ZB_MAX_DIMS,
                       shape->dims);
    int64_t numel = 1;
    int empty = 0, overflow = 0;
    for (int i = 0; i < shape->dims; i++) {
        if (shape->extent[i] < extent_min)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "%s: extent %d of shape %s is %" PRId64 ", expected at least %" PRId64, what, i,
                           zb_shape_format(shape, text), shape->extent[i], extent_min);
        if (shape->extent[i] == 0)
            empty = 1;
        else
            overflow |= __builtin_mul_overflow(numel, shape->extent[i], &numel);
    }
    if (!empty && (overflow || numel > ZB_TENSOR_NUMEL_MAX))
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: shape %s has more than %" PRId64 " elements", what,
                       zb_shape_format(shape, text), (int64_t)ZB_TENSOR_NUMEL_MAX);
    return ZB_OK;
}

/* --- names --- */

enum { MODULE_NAME_LENGTH_MAX = ZB_NAME_BYTES - (int)sizeof ".weight" };

/* Printable ASCII only: names are written to terminals, file headers and reports as they are. */
static zb_status check_name(const char *what, const char *name, size_t length_max)
{
    if (name == NULL || name[0] == '\0') return zb_fail(ZB_INVALID_ARGUMENT, "%s: the name is empty", what);
    for (size_t i = 0; name[i] != '\0'; i++) {
        unsigned char c = (unsigned char)name[i];
        if (i >= length_max)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s: the name \"%.*s...\" is longer than %zu bytes", what,
                           (int)length_max, name, length_max);
        if (c < 0x20 || c > 0x7e)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "%s: byte %zu of the name is 0x%02x, expected printable ASCII", what, i, c);
    }
    return ZB_OK;
}

static int find_module(const zb_model *model, const char *name)
{
    for (int i = 0; i < model->module_count; i++)
        if (strcmp(model->modules[i].name, name) == 0) return i;
    return -1;
}

int zb_model_find_param(const zb_model *model, const char *name)
{
    for (int i = 0; i < model->param_count; i++)
        if (strcmp(model->params[i].name, name) == 0) return i;
    return ZB_NO_PARAM;
}

static zb_status check_module_name(const zb_model *model, const char *name)
{
    char what[48];
    snprintf(what, sizeof what, "module %d", model->module_count);
    ZB_TRY(check_name(what, name, MODULE_NAME_LENGTH_MAX));
    /* __metadata__ is what a safetensors file calls its free text. */
    if (strcmp(name, ZB_MODEL_INPUT_NAME) == 0 || strcmp(name, "__metadata__") == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: the name \"%s\" is reserved", what, name);
    int twin = find_module(model, name);
    if (twin >= 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: module %d is called \"%s\" already", what, twin, name);
    return ZB_OK;
}

/* --- one module --- */

/* A module and the parameters that it creates, until all checks have passed. */
typedef struct draft {
    const zb_model *model;
    const zb_module_spec *spec;
    zb_module module;
    zb_param params[2];
    int param_count;
} draft;

int zb_model_output_module(const zb_model *model)
{
    for (int i = model->module_count - 1; i >= 0; i--)
        if (model->modules[i].kind != ZB_MODULE_PARAMETER) return i;
    return ZB_MODEL_INPUT;
}

static const zb_shape *output_shape(const zb_model *model, int module)
{
    return module == ZB_MODEL_INPUT ? &model->input : &model->modules[module].out;
}

static zb_status resolve_input(const draft *d, const char *input, int *index)
{
    if (input == NULL) {
        *index = zb_model_output_module(d->model);
        return ZB_OK;
    }
    if (strcmp(input, ZB_MODEL_INPUT_NAME) == 0) {
        *index = ZB_MODEL_INPUT;
        return ZB_OK;
    }
    int found = find_module(d->model, input);
    if (found < 0)
        return zb_fail(
            ZB_INVALID_ARGUMENT,
            "module \"%s\": its input \"%s\" is neither an earlier module nor \"" ZB_MODEL_INPUT_NAME "\"",
            d->spec->name, input);
    if (d->model->modules[found].kind == ZB_MODULE_PARAMETER)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "module \"%s\": its input \"%s\" is a parameter, which has no output", d->spec->name,
                       input);
    *index = found;
    return ZB_OK;
}

static zb_status resolve_inputs(draft *d)
{
    zb_module *module = &d->module;
    if (module->kind == ZB_MODULE_PARAMETER) return ZB_OK;
    ZB_TRY(resolve_input(d, d->spec->input, &module->inputs[0]));
    module->input_count = 1;
    module->in = *output_shape(d->model, module->inputs[0]);
    if (module->kind != ZB_MODULE_ADD) return ZB_OK;

    if (d->spec->input2 == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": an add module needs two inputs, found one",
                       module->name);
    ZB_TRY(resolve_input(d, d->spec->input2, &module->inputs[1]));
    module->input_count = 2;
    return ZB_OK;
}

static zb_status check_new_shape(const draft *d, const zb_shape *shape, int64_t extent_min, const char *of)
{
    char what[ZB_NAME_BYTES + 48];
    snprintf(what, sizeof what, "module \"%s\": %s", d->spec->name, of);
    return zb_shape_check(shape, extent_min, what);
}

static zb_status draft_param(draft *d, const char *suffix, zb_shape shape, float init_bound, int *index)
{
    ZB_TRY(check_new_shape(d, &shape, d->module.kind == ZB_MODULE_PARAMETER ? 0 : 1, "its parameter"));
    zb_param *param = &d->params[d->param_count];
    *param = (zb_param){ .shape = shape,
                         .numel = zb_shape_numel(&shape),
                         .requires_grad = !d->spec->frozen,
                         .init_bound = init_bound };
    snprintf(param->name, sizeof param->name, "%s%s", d->spec->name, suffix);
    if (zb_model_find_param(d->model, param->name) != ZB_NO_PARAM)
        return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": a parameter is called \"%s\" already",
                       d->spec->name, param->name);
    *index = d->model->param_count + d->param_count++;
    return ZB_OK;
}

/* The weight of an earlier module of the same kind and the same weight shape. */
static zb_status find_tied(draft *d, const zb_shape *weight_shape)
{
    const char *tie = d->spec->tie;
    int found = find_module(d->model, tie);
    if (found < 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": tie \"%s\" is no earlier module", d->spec->name,
                       tie);
    const zb_module *other = &d->model->modules[found];
    if (other->kind != d->module.kind)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "module \"%s\": a %s module cannot be tied to \"%s\", a %s module", d->spec->name,
                       zb_module_kind_name(d->module.kind), tie, zb_module_kind_name(other->kind));
    const zb_shape *other_shape = &d->model->params[other->weight].shape;
    char own_text[ZB_SHAPE_TEXT_BYTES], other_text[ZB_SHAPE_TEXT_BYTES];
    if (!zb_shape_equal(other_shape, weight_shape))
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "module \"%s\": its weight %s cannot be tied to that of \"%s\", which is %s",
                       d->spec->name, zb_shape_format(weight_shape, own_text), tie,
                       zb_shape_format(other_shape, other_text));
    if (d->spec->frozen && d->spec->no_bias)
        return zb_fail(
            ZB_INVALID_ARGUMENT,
            "module \"%s\": frozen has nothing to act on: the weight belongs to \"%s\" and there is "
            "no bias",
            d->spec->name, tie);
    d->module.weight = other->weight;
    return ZB_OK;
}

static zb_status draft_weight_and_bias(draft *d, zb_shape weight_shape)
{
    /* PyTorch's reset_parameters of Linear and Conv2d: kaiming_uniform_ with a = sqrt(5) comes to
     * 1 / sqrt(fan_in) for the weight, and the bias has the same bound. */
    int64_t fan_in = 1;
    for (int i = 1; i < weight_shape.dims; i++)
        if (__builtin_mul_overflow(fan_in, weight_shape.extent[i], &fan_in))
            return check_new_shape(d, &weight_shape, 1, "its weight");
    float bound = (float)(1.0 / sqrt((double)fan_in));
    if (d->spec->tie != NULL)
        ZB_TRY(find_tied(d, &weight_shape));
    else
        ZB_TRY(draft_param(d, ".weight", weight_shape, bound, &d->module.weight));
    if (d->spec->no_bias) return ZB_OK;
    zb_shape bias_shape = { .dims = 1, .extent = { weight_shape.extent[0] } };
    return draft_param(d, ".bias", bias_shape, bound, &d->module.bias);
}

static zb_status check_positive(const draft *d, const char *field, int64_t value)
{
    if (value >= 1) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": %s is %" PRId64 ", expected at least 1",
                   d->spec->name, field, value);
}

static zb_status draft_linear(draft *d)
{
    zb_module *module = &d->module;
    char text[ZB_SHAPE_TEXT_BYTES];
    if (module->in.dims != 1)
        return zb_fail(
            ZB_INVALID_ARGUMENT,
            "module \"%s\": a linear module takes one dimension, its input is %s; put a flatten before",
            module->name, zb_shape_format(&module->in, text));
    ZB_TRY(check_positive(d, "out_features", d->spec->out_features));
    module->out = (zb_shape){ .dims = 1, .extent = { d->spec->out_features } };
    ZB_TRY(check_new_shape(d, &module->out, 1, "its output"));
    return draft_weight_and_bias(
        d, (zb_shape){ .dims = 2, .extent = { d->spec->out_features, module->in.extent[0] } });
}

/* The window of a convolution or a pool: kernel, stride and padding, and the output's height and width. */
static zb_status draft_window(draft *d, int64_t out_channels, int stride_default)
{
    zb_module *module = &d->module;
    char text[ZB_SHAPE_TEXT_BYTES];
    if (module->in.dims != 3)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "module \"%s\": a %s module takes [channels,height,width], its input is %s",
                       module->name, zb_module_kind_name(module->kind), zb_shape_format(&module->in, text));
    ZB_TRY(check_positive(d, "kernel", d->spec->kernel));
    module->kernel = d->spec->kernel;
    module->stride = d->spec->stride == 0 ? stride_default : d->spec->stride;
    ZB_TRY(check_positive(d, "stride", module->stride));
    module->padding = d->spec->padding;
    if (module->padding < 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": padding is %d, expected at least 0", module->name,
                       module->padding);

    module->out = (zb_shape){ .dims = 3, .extent = { out_channels } };
    for (int i = 1; i < 3; i++) {
        int64_t padded = module->in.extent[i] + 2 * (int64_t)module->padding;
        if (module->kernel > padded)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "module \"%s\": kernel %d is larger than the padded input, %" PRId64 " x %" PRId64
                           " (input %s, padding %d)",
                           module->name, module->kernel, module->in.extent[1] + 2 * (int64_t)module->padding,
                           module->in.extent[2] + 2 * (int64_t)module->padding,
                           zb_shape_format(&module->in, text), module->padding);
        module->out.extent[i] = (padded - module->kernel) / module->stride + 1;
    }
    return check_new_shape(d, &module->out, 1, "its output");
}

static zb_status draft_conv2d(draft *d)
{
    ZB_TRY(check_positive(d, "out_channels", d->spec->out_channels));
    ZB_TRY(draft_window(d, d->spec->out_channels, 1));
    return draft_weight_and_bias(d, (zb_shape){ .dims = 4,
                                                .extent = { d->spec->out_channels, d->module.in.extent[0],
                                                            d->spec->kernel, d->spec->kernel } });
}

static zb_status draft_maxpool2d(draft *d)
{
    ZB_TRY(draft_window(d, d->module.in.extent[0], d->spec->kernel));
    /* Where the maximum was is kept as an int32 index into one channel. */
    int64_t height = d->module.in.extent[1], width = d->module.in.extent[2];
    if (height > INT32_MAX / width)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "module \"%s\": a channel of its input has %" PRId64 " x %" PRId64
                       " elements, expected at most %" PRId32,
                       d->spec->name, height, width, INT32_MAX);
    return ZB_OK;
}

static zb_status draft_flatten(draft *d)
{
    d->module.out = (zb_shape){ .dims = 1, .extent = { (int64_t)zb_shape_numel(&d->module.in) } };
    return ZB_OK;
}

static zb_status draft_add(draft *d)
{
    zb_module *module = &d->module;
    const zb_shape *second = output_shape(d->model, module->inputs[1]);
    char first_text[ZB_SHAPE_TEXT_BYTES], second_text[ZB_SHAPE_TEXT_BYTES];
    if (!zb_shape_equal(&module->in, second))
        return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": cannot add %s and %s, the shapes differ",
                       module->name, zb_shape_format(&module->in, first_text),
                       zb_shape_format(second, second_text));
    module->out = module->in;
    return ZB_OK;
}

static zb_status draft_module(draft *d)
{
    ZB_TRY(resolve_inputs(d));
    switch (d->module.kind) {
    case ZB_MODULE_LINEAR:
        return draft_linear(d);
    case ZB_MODULE_CONV2D:
        return draft_conv2d(d);
    case ZB_MODULE_MAXPOOL2D:
        return draft_maxpool2d(d);
    case ZB_MODULE_RELU:
        d->module.out = d->module.in;
        return ZB_OK;
    case ZB_MODULE_FLATTEN:
        return draft_flatten(d);
    case ZB_MODULE_ADD:
        return draft_add(d);
    case ZB_MODULE_PARAMETER:
        return draft_param(d, "", d->spec->shape, 1.0f, &d->module.weight);
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "module \"%s\": unknown kind %d", d->spec->name, (int)d->module.kind);
}

/* --- the whole --- */

zb_status zb_model_create(const char *name, const zb_shape *input, zb_loss_kind loss, zb_model **model_p)
{
    ZB_TRY(check_name("model", name, ZB_NAME_BYTES - 1));
    if (loss != ZB_LOSS_CROSS_ENTROPY && loss != ZB_LOSS_MSE && loss != ZB_LOSS_ELSEWHERE)
        return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": unknown loss %d", name, (int)loss);
    if (loss != ZB_LOSS_ELSEWHERE)
        ZB_TRY(zb_shape_check(input, 1, "model input"));
    else if (input != NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": has an input, want NULL: its forward is elsewhere",
                       name);
    zb_model *model = zb_alloc(sizeof *model);
    if (model == NULL) return ZB_NO_MEMORY;
    snprintf(model->name, sizeof model->name, "%s", name);
    if (input != NULL) model->input = *input;
    model->loss = loss;
    *model_p = model;
    return ZB_OK;
}

void zb_model_destroy(zb_model *model)
{
    if (model == NULL) return;
    zb_free(model->modules);
    zb_free(model->params);
    zb_model_order_destroy(model->order);
    zb_free(model);
}

/* Room for `more` elements behind `count`: the capacity is the smallest power of two that holds them. */
static void *reserve(void *array, int count, int more, size_t element_bytes)
{
    size_t capacity = 1;
    while (capacity < (size_t)count) capacity *= 2;
    if (array != NULL && (size_t)count + (size_t)more <= capacity) return array;
    while (capacity < (size_t)count + (size_t)more) capacity *= 2;
    return zb_realloc(array, capacity * element_bytes);
}

static zb_status commit(zb_model *model, const draft *d)
{
    size_t param_numel = model->param_numel;
    for (int i = 0; i < d->param_count; i++) param_numel += d->params[i].numel;
    if (param_numel > (size_t)ZB_TENSOR_NUMEL_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "module \"%s\": the model would have more than %" PRId64 " parameters", d->spec->name,
                       (int64_t)ZB_TENSOR_NUMEL_MAX);

    zb_module *modules = reserve(model->modules, model->module_count, 1, sizeof *modules);
    if (modules == NULL) return ZB_NO_MEMORY;
    model->modules = modules;
    if (d->param_count > 0) {
        zb_param *params = reserve(model->params, model->param_count, d->param_count, sizeof *params);
        if (params == NULL) return ZB_NO_MEMORY;
        model->params = params;
    }

    modules[model->module_count++] = d->module;
    for (int i = 0; i < d->param_count; i++) model->params[model->param_count++] = d->params[i];
    model->param_numel = param_numel;
    if (d->module.kind != ZB_MODULE_PARAMETER) {
        if (d->module.weight != ZB_NO_PARAM) model->params[d->module.weight].use_count++;
        if (d->module.bias != ZB_NO_PARAM) model->params[d->module.bias].use_count++;
    }
    return ZB_OK;
}

zb_status zb_model_add(zb_model *model, const zb_module_spec *spec)
{
    ZB_TRY(check_module_name(model, spec->name));
    ZB_TRY(check_fields(spec));
    if (model->loss == ZB_LOSS_ELSEWHERE && spec->kind != ZB_MODULE_PARAMETER)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "module \"%s\": is a %s, want a parameter: the forward of model \"%s\" is elsewhere",
                       spec->name, zb_module_kind_name(spec->kind), model->name);
    draft d = { .model = model,
                .spec = spec,
                .module = { .kind = spec->kind, .weight = ZB_NO_PARAM, .bias = ZB_NO_PARAM } };
    snprintf(d.module.name, sizeof d.module.name, "%s", spec->name);
    ZB_TRY(draft_module(&d));
    return commit(model, &d);
}

/* Every output but the last is used by a later module; then, by induction, every module reaches the output.
 */
static zb_status check_no_dangling(const zb_model *model)
{
    unsigned char *used = zb_alloc((size_t)model->module_count);
    if (used == NULL) return ZB_NO_MEMORY;
    used[zb_model_output_module(model)] = 1;
    for (int i = 0; i < model->module_count; i++) {
        const zb_module *module = &model->modules[i];
        if (module->kind == ZB_MODULE_PARAMETER) used[i] = 1;
        for (int j = 0; j < module->input_count; j++)
            if (module->inputs[j] != ZB_MODEL_INPUT) used[module->inputs[j]] = 1;
    }
    zb_status status = ZB_OK;
    for (int i = 0; i < model->module_count && status == ZB_OK; i++)
        if (!used[i])
            status = zb_fail(
                ZB_INVALID_ARGUMENT,
                "model \"%s\": nothing uses the output of module \"%s\"; the model's output is that of "
                "the last module, \"%s\"",
                model->name, model->modules[i].name, model->modules[zb_model_output_module(model)].name);
    zb_free(used);
    return status;
}

zb_status zb_model_finish(zb_model *model)
{
    int last = zb_model_output_module(model);
    if (model->loss == ZB_LOSS_ELSEWHERE) {
        if (model->param_count > 0) return ZB_OK;
        return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": has no parameter", model->name);
    }
    if (last == ZB_MODEL_INPUT)
        return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": no module gives an output", model->name);
    const zb_shape *out = &model->modules[last].out;
    char text[ZB_SHAPE_TEXT_BYTES];
    /* Labels are int32. */
    if (model->loss == ZB_LOSS_CROSS_ENTROPY && (out->dims != 1 || out->extent[0] > INT32_MAX))
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "model \"%s\": cross entropy takes one dimension of 1 to %" PRId32
                       " classes, module \"%s\" gives %s",
                       model->name, INT32_MAX, model->modules[last].name, zb_shape_format(out, text));
    return check_no_dangling(model);
}

/* --- initial values --- */

void zb_model_init_param(const zb_model *model, int param, uint64_t seed, size_t first, size_t numel,
                         float *out)
{
    ZB_ASSERT(param >= 0 && param < model->param_count);
    const zb_param *p = &model->params[param];
    ZB_ASSERT(first <= p->numel && numel <= p->numel - first);
    for (size_t i = 0; i < numel; i++) {
        float uniform = zb_random_uniform(seed, (uint32_t)param, first + i);
        float centred = 2.0f * uniform - 1.0f; /* exact: a multiple of 2^-23 */
        out[i] = centred * p->init_bound;
    }
}
