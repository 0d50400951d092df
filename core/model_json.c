/*
 * A model from its JSON description (docs/model.md). This file knows keys and types; what makes a model valid
 * is the builder's business (model.c), whose refusals get the place in the file put in front.
 */
#include <zerobit/model.h>

#include <limits.h>
#include <string.h>

#include "core/json.h"
#include "core/model_parts.h"

/* --- values --- */

static zb_status read_loss(const zb_json_at *at, zb_loss_kind *loss)
{
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    if (strcmp(text, "cross_entropy") == 0)
        *loss = ZB_LOSS_CROSS_ENTROPY;
    else if (strcmp(text, "mse") == 0)
        *loss = ZB_LOSS_MSE;
    else
        return zb_json_fail(at, ZB_INVALID_CONFIG, "cross_entropy or mse");
    return ZB_OK;
}

static zb_status read_kind(const zb_json_at *at, zb_module_kind *kind)
{
    static const struct {
        const char *text;
        zb_module_kind kind;
    } kinds[] = {
#define KIND_ROW(name, text) { text, ZB_MODULE_##name },
        ZB_MODULE_MAP(KIND_ROW)
#undef KIND_ROW
    };
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(text, kinds[i].text) == 0) {
            *kind = kinds[i].kind;
            return ZB_OK;
        }
    }
    return zb_json_fail(at, ZB_INVALID_CONFIG, "linear, conv2d, maxpool2d, relu, flatten, add or parameter");
}

static zb_status read_shape(const zb_json_at *at, int64_t extent_min, zb_shape *shape)
{
    size_t dims;
    ZB_TRY(zb_json_array(at, &dims));
    if (dims < 1 || dims > ZB_MAX_DIMS)
        return zb_json_fail(at, ZB_INVALID_CONFIG, "1 to %d extents", ZB_MAX_DIMS);
    zb_shape read = { .dims = (int)dims };
    int64_t *extent = read.extent;
    for (zb_json_at child = zb_json_first(at); child.value != NULL; child = zb_json_next(&child))
        ZB_TRY(zb_json_int64(&child, extent_min, ZB_JSON_MAX_INTEGER, extent++));
    *shape = read;
    return ZB_OK;
}

static zb_status read_int(const zb_json_at *at, int min, int *value)
{
    int64_t wide;
    ZB_TRY(zb_json_int64(at, min, INT_MAX, &wide));
    *value = (int)wide;
    return ZB_OK;
}

static zb_status read_two_names(const zb_json_at *at, const char **first, const char **second)
{
    if (!cJSON_IsArray(at->value) || cJSON_GetArraySize(at->value) != 2)
        return zb_json_fail(at, ZB_INVALID_CONFIG, "a list of two names");
    zb_json_at child = zb_json_first(at);
    ZB_TRY(zb_json_string(&child, first));
    child = zb_json_next(&child);
    return zb_json_string(&child, second);
}

/* --- modules --- */

static const char *const field_keys[ZB_MODULE_FIELD_COUNT] = {
#define FIELD_KEY(name, text) text,
    ZB_MODULE_FIELD_MAP(FIELD_KEY)
#undef FIELD_KEY
};

/* The keys of a kind: its fields, but that an add module's two inputs are one list under "input". */
static unsigned keys_of_kind(zb_module_kind kind)
{
    return zb_module_kind_fields(kind) & ~(unsigned)ZB_MODULE_FIELD_INPUT2;
}

static unsigned required_keys(zb_module_kind kind)
{
    unsigned sizes = ZB_MODULE_FIELD_OUT_FEATURES | ZB_MODULE_FIELD_OUT_CHANNELS | ZB_MODULE_FIELD_KERNEL |
                     ZB_MODULE_FIELD_SHAPE;
    return keys_of_kind(kind) & (kind == ZB_MODULE_ADD ? (unsigned)ZB_MODULE_FIELD_INPUT : sizes);
}

static zb_status check_module_keys(const zb_json_at *module, zb_module_kind kind)
{
    const char *allowed[2 + ZB_MODULE_FIELD_COUNT + 1] = { "kind", "name" };
    int count = 2;
    for (int i = 0; i < ZB_MODULE_FIELD_COUNT; i++)
        if (keys_of_kind(kind) & 1u << i) allowed[count++] = field_keys[i];
    return zb_json_check_keys(module, allowed);
}

static zb_status read_field(const zb_json_at *at, unsigned field, zb_module_spec *spec)
{
    int bias;
    switch (field) {
    case ZB_MODULE_FIELD_INPUT:
        if (spec->kind == ZB_MODULE_ADD) return read_two_names(at, &spec->input, &spec->input2);
        return zb_json_string(at, &spec->input);
    case ZB_MODULE_FIELD_OUT_FEATURES:
        return zb_json_int64(at, 1, ZB_JSON_MAX_INTEGER, &spec->out_features);
    case ZB_MODULE_FIELD_OUT_CHANNELS:
        return zb_json_int64(at, 1, ZB_JSON_MAX_INTEGER, &spec->out_channels);
    case ZB_MODULE_FIELD_KERNEL:
        return read_int(at, 1, &spec->kernel);
    case ZB_MODULE_FIELD_STRIDE:
        return read_int(at, 1, &spec->stride);
    case ZB_MODULE_FIELD_PADDING:
        return read_int(at, 0, &spec->padding);
    case ZB_MODULE_FIELD_BIAS:
        ZB_TRY(zb_json_bool(at, &bias));
        spec->no_bias = !bias;
        return ZB_OK;
    case ZB_MODULE_FIELD_FROZEN:
        return zb_json_bool(at, &spec->frozen);
    case ZB_MODULE_FIELD_TIE:
        return zb_json_string(at, &spec->tie);
    case ZB_MODULE_FIELD_SHAPE:
        return read_shape(at, 0, &spec->shape);
    }
    ZB_ASSERT(!"a key of some kind");
    return ZB_INTERNAL;
}

/* The strings of *spec live in the tree. */
static zb_status read_module(const zb_json_at *module, zb_module_spec *spec)
{
    ZB_TRY(zb_json_object(module));
    zb_json_at kind = zb_json_member(module, "kind"), name = zb_json_member(module, "name");
    ZB_TRY(read_kind(&kind, &spec->kind));
    ZB_TRY(check_module_keys(module, spec->kind));
    ZB_TRY(zb_json_string(&name, &spec->name));
    for (int i = 0; i < ZB_MODULE_FIELD_COUNT; i++) {
        unsigned field = 1u << i;
        if (!(keys_of_kind(spec->kind) & field)) continue;
        zb_json_at at = zb_json_member(module, field_keys[i]);
        if (at.value != NULL || required_keys(spec->kind) & field) ZB_TRY(read_field(&at, field, spec));
    }
    return ZB_OK;
}

static zb_status add_modules(const zb_json *json, const zb_json_at *modules, zb_model *model)
{
    for (zb_json_at at = zb_json_first(modules); at.value != NULL; at = zb_json_next(&at)) {
        zb_module_spec spec = { 0 };
        ZB_TRY(read_module(&at, &spec));
        if (zb_model_add(model, &spec) != ZB_OK)
            return zb_fail_context("%s: modules[%lld]", zb_json_path(json), (long long)at.index);
    }
    if (zb_model_finish(model) != ZB_OK) return zb_fail_context("%s", zb_json_path(json));
    return ZB_OK;
}

/* --- the whole --- */

static zb_status from_json(const zb_json *json, zb_model **model_p)
{
    static const char *const keys[] = { "name", "input", "loss", "modules", NULL };
    zb_json_at root = zb_json_root(json);
    ZB_TRY(zb_json_object(&root));
    ZB_TRY(zb_json_check_keys(&root, keys));

    zb_json_at name_at = zb_json_member(&root, "name"), input_at = zb_json_member(&root, "input");
    zb_json_at loss_at = zb_json_member(&root, "loss"), modules_at = zb_json_member(&root, "modules");
    const char *name = NULL;
    zb_shape input = { 0 };
    zb_loss_kind loss = ZB_LOSS_CROSS_ENTROPY;
    size_t module_count = 0;
    ZB_TRY(zb_json_string(&name_at, &name));
    ZB_TRY(read_shape(&input_at, 1, &input));
    ZB_TRY(read_loss(&loss_at, &loss));
    ZB_TRY(zb_json_array(&modules_at, &module_count));

    zb_model *model = NULL;
    if (zb_model_create(name, &input, loss, &model) != ZB_OK)
        return zb_fail_context("%s", zb_json_path(json));
    zb_status status = add_modules(json, &modules_at, model);
    if (status != ZB_OK) {
        zb_model_destroy(model);
        return status;
    }
    *model_p = model;
    return ZB_OK;
}

zb_status zb_model_parse_json(const char *text, size_t text_bytes, const char *path, zb_model **model_p)
{
    zb_json *json = NULL;
    ZB_TRY(zb_json_parse(text, text_bytes, path, &json));
    zb_status status = from_json(json, model_p);
    zb_json_destroy(json);
    return status;
}

zb_status zb_model_load_json(const char *path, zb_model **model_p)
{
    zb_json *json = NULL;
    ZB_TRY(zb_json_load(path, &json));
    zb_status status = from_json(json, model_p);
    zb_json_destroy(json);
    return status;
}
