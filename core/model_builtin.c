/* The built-in models, and the front door that tells them from a file. */
#include <zerobit/model.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/model_parts.h"

/* --- cifar10-net: the Net of DeepSpeedExamples training/cifar/cifar10_deepspeed.py --- */

/* Its one pool and its calls of relu have no names of their own in state_dict: they are numbered in call
 * order. */
static const zb_module_spec cifar10_net[] = {
    { .kind = ZB_MODULE_CONV2D, .name = "conv1", .out_channels = 6, .kernel = 5 },
    { .kind = ZB_MODULE_RELU, .name = "relu1" },
    { .kind = ZB_MODULE_MAXPOOL2D, .name = "pool1", .kernel = 2 },
    { .kind = ZB_MODULE_CONV2D, .name = "conv2", .out_channels = 16, .kernel = 5 },
    { .kind = ZB_MODULE_RELU, .name = "relu2" },
    { .kind = ZB_MODULE_MAXPOOL2D, .name = "pool2", .kernel = 2 },
    { .kind = ZB_MODULE_FLATTEN, .name = "flatten" },
    { .kind = ZB_MODULE_LINEAR, .name = "fc1", .out_features = 120 },
    { .kind = ZB_MODULE_RELU, .name = "relu3" },
    { .kind = ZB_MODULE_LINEAR, .name = "fc2", .out_features = 84 },
    { .kind = ZB_MODULE_RELU, .name = "relu4" },
    { .kind = ZB_MODULE_LINEAR, .name = "fc3", .out_features = 10 },
};

static zb_status build_cifar10_net(zb_model *model)
{
    for (size_t i = 0; i < sizeof cifar10_net / sizeof cifar10_net[0]; i++)
        ZB_TRY(zb_model_add(model, &cifar10_net[i]));
    return zb_model_finish(model);
}

static zb_status open_cifar10_net(zb_model **model_p)
{
    zb_model *model = NULL;
    zb_shape input = { .dims = 3, .extent = { 3, 32, 32 } };
    ZB_TRY(zb_model_create("cifar10-net", &input, ZB_LOSS_CROSS_ENTROPY, &model));
    zb_status status = build_cifar10_net(model);
    if (status != ZB_OK) {
        zb_model_destroy(model);
        return status;
    }
    *model_p = model;
    return ZB_OK;
}

/* --- mlp:IN-HIDDEN-...-OUT --- */

/* Reads the width at *at and moves *at behind it. Positions in messages count characters from 1. */
static zb_status parse_width(const char *spec, size_t *at, int64_t *width)
{
    size_t first = *at;
    int64_t value = 0;
    for (; isdigit((unsigned char)spec[*at]); ++*at)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, spec[*at] - '0', &value))
            return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": the width at character %zu is too large", spec,
                           first + 1);
    if (*at == first && spec[first] == '\0')
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "model \"%s\": it ends where a width is expected, at character %zu", spec, first + 1);
    if (*at == first)
        return zb_fail(ZB_INVALID_ARGUMENT, "model \"%s\": found '%c' at character %zu, expected a width",
                       spec, spec[first], first + 1);
    if (value == 0)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "model \"%s\": the width at character %zu is 0, expected at least 1", spec, first + 1);
    if (spec[*at] != '-' && spec[*at] != '\0')
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "model \"%s\": found '%c' at character %zu, expected '-' or the end", spec, spec[*at],
                       *at + 1);
    *width = value;
    return ZB_OK;
}

/* Everything behind the width of the input: "-HIDDEN-...-OUT" from spec[at] on. */
static zb_status build_mlp(zb_model *model, const char *spec, size_t at)
{
    char name[ZB_NAME_BYTES];
    for (int layer = 1; spec[at] == '-'; layer++) {
        int64_t width;
        at++;
        ZB_TRY(parse_width(spec, &at, &width));
        if (layer > 1) {
            snprintf(name, sizeof name, "relu%d", layer - 1);
            ZB_TRY(zb_model_add(model, &(zb_module_spec){ .kind = ZB_MODULE_RELU, .name = name }));
        }
        snprintf(name, sizeof name, "fc%d", layer);
        ZB_TRY(zb_model_add(
            model, &(zb_module_spec){ .kind = ZB_MODULE_LINEAR, .name = name, .out_features = width }));
    }
    return zb_model_finish(model);
}

static zb_status open_mlp(const char *spec, size_t prefix_length, zb_loss_kind loss, zb_model **model_p)
{
    zb_shape input = { .dims = 1 };
    size_t at = prefix_length;
    ZB_TRY(parse_width(spec, &at, &input.extent[0]));
    if (spec[at] == '\0')
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "model \"%s\": found one width, expected IN-OUT or IN-HIDDEN-...-OUT", spec);

    char name[ZB_NAME_BYTES]; /* a label: cut where a very deep model's would not fit */
    snprintf(name, sizeof name, "%s", spec);
    zb_model *model = NULL;
    ZB_TRY(zb_model_create(name, &input, loss, &model));
    zb_status status = build_mlp(model, spec, at);
    if (status != ZB_OK) {
        zb_model_destroy(model);
        return status;
    }
    *model_p = model;
    return ZB_OK;
}

/* --- the front door --- */

zb_status zb_model_open(const char *name_or_path, zb_model **model_p)
{
    static const char mlp[] = "mlp:", mlp_mse[] = "mlp-mse:";
    if (strcmp(name_or_path, "cifar10-net") == 0) return open_cifar10_net(model_p);
    if (strncmp(name_or_path, mlp, strlen(mlp)) == 0)
        return open_mlp(name_or_path, strlen(mlp), ZB_LOSS_CROSS_ENTROPY, model_p);
    if (strncmp(name_or_path, mlp_mse, strlen(mlp_mse)) == 0)
        return open_mlp(name_or_path, strlen(mlp_mse), ZB_LOSS_MSE, model_p);
    if (access(name_or_path, F_OK) != 0 && errno == ENOENT)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "model \"%s\" is neither a file nor built in, expected a path, cifar10-net, "
                       "mlp:IN-HIDDEN-...-OUT or mlp-mse:IN-HIDDEN-...-OUT",
                       name_or_path);
    return zb_model_load_json(name_or_path, model_p);
}
