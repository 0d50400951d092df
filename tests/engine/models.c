/* Models for the engine's tests; see models.h. */
#include "tests/engine/models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

zb_model *sizes_model(const sizes *s)
{
    zb_model *model = NULL;
    assert_int_equal(zb_model_create("sizes", &(zb_shape){ 1, { 1 } }, ZB_LOSS_MSE, &model), ZB_OK);
    for (int i = 0; i < s->count; i++) {
        char name[16];
        snprintf(name, sizeof name, "p%d", i);
        zb_module_spec spec = { .kind = ZB_MODULE_PARAMETER,
                                .name = name,
                                .shape = { 1, { (int64_t)s->numel[i] } },
                                .frozen = (s->frozen >> i) & 1 };
        assert_int_equal(zb_model_add(model, &spec), ZB_OK);
    }
    return model;
}

enum { SPECS_MAX = 9 };

static const struct model_case {
    const char *name;
    zb_shape input;
    zb_loss_kind loss;
    zb_module_spec specs[SPECS_MAX];
} cases[] = {
    { "mlp",
      { 1, { 5 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 7 },
        { .kind = ZB_MODULE_RELU, .name = "r" },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 3 } } },
    { "mse, no bias",
      { 1, { 3 } },
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 5, .no_bias = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 2 } } },
    { "conv",
      { 3, { 2, 6, 6 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_CONV2D, .name = "conv1", .out_channels = 3, .kernel = 3, .padding = 1 },
        { .kind = ZB_MODULE_RELU, .name = "relu1" },
        { .kind = ZB_MODULE_MAXPOOL2D, .name = "pool1", .kernel = 2 },
        { .kind = ZB_MODULE_CONV2D, .name = "conv2", .out_channels = 4, .kernel = 2 },
        { .kind = ZB_MODULE_FLATTEN, .name = "flat" },
        { .kind = ZB_MODULE_LINEAR, .name = "fc", .out_features = 4 } } },
    { "tied",
      { 1, { 4 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 4 },
        { .kind = ZB_MODULE_RELU, .name = "r" },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .tie = "a" },
        { .kind = ZB_MODULE_LINEAR, .name = "c", .out_features = 4, .tie = "a", .no_bias = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "d", .out_features = 3 } } },
    { "frozen prefix",
      { 1, { 4 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 5, .frozen = 1 },
        { .kind = ZB_MODULE_RELU, .name = "r" },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 3 } } },
    { "frozen in the middle",
      { 1, { 4 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 5 },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 6, .frozen = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "c", .out_features = 3 } } },
    { "tied and frozen",
      { 1, { 4 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 4, .frozen = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .tie = "a" },
        { .kind = ZB_MODULE_LINEAR, .name = "c", .out_features = 2, .no_bias = 1 } } },
    { "unused",
      { 1, { 3 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_PARAMETER, .name = "first", .shape = { 1, { 5 } } },
        { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 3 },
        { .kind = ZB_MODULE_PARAMETER, .name = "empty", .shape = { 2, { 0, 4 } } },
        { .kind = ZB_MODULE_PARAMETER, .name = "still", .shape = { 2, { 2, 3 } }, .frozen = 1 },
        { .kind = ZB_MODULE_PARAMETER, .name = "last", .shape = { 2, { 3, 3 } } } } },
    { "only an unused parameter trains",
      { 1, { 3 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 3, .frozen = 1 },
        { .kind = ZB_MODULE_PARAMETER, .name = "only", .shape = { 1, { 1 } } } } },
    { "branches",
      { 3, { 1, 4, 4 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_CONV2D, .name = "conv", .out_channels = 2, .kernel = 3, .padding = 1 },
        { .kind = ZB_MODULE_FLATTEN, .name = "flat1" },
        { .kind = ZB_MODULE_FLATTEN, .name = "flat2", .input = "conv" },
        { .kind = ZB_MODULE_LINEAR, .name = "left", .out_features = 6, .input = "flat1" },
        { .kind = ZB_MODULE_LINEAR, .name = "right", .out_features = 6, .input = "flat2" },
        { .kind = ZB_MODULE_ADD, .name = "sum", .input = "left", .input2 = "right" },
        { .kind = ZB_MODULE_ADD, .name = "twice", .input = "sum", .input2 = "sum" } } },
    { "output is flattened",
      { 3, { 1, 3, 3 } },
      ZB_LOSS_CROSS_ENTROPY,
      { { .kind = ZB_MODULE_CONV2D, .name = "conv", .out_channels = 2, .kernel = 2, .stride = 1 },
        { .kind = ZB_MODULE_FLATTEN, .name = "flat1" },
        { .kind = ZB_MODULE_FLATTEN, .name = "flat2" } } },
};

zb_model *test_model(const char *name)
{
    const struct model_case *c = cases;
    while (strcmp(c->name, name) != 0)
        if (++c == cases + COUNT(cases)) fail_msg("no test model is called \"%s\"", name);
    zb_model *model = NULL;
    assert_int_equal(zb_model_create(c->name, &c->input, c->loss, &model), ZB_OK);
    for (int i = 0; i < SPECS_MAX && c->specs[i].name != NULL; i++)
        if (zb_model_add(model, &c->specs[i]) != ZB_OK) fail_msg("%s", zb_error_message());
    if (zb_model_finish(model) != ZB_OK) fail_msg("%s", zb_error_message());
    return model;
}

const char *const test_model_names[] = { "mlp",
                                         "mse, no bias",
                                         "conv",
                                         "tied",
                                         "frozen prefix",
                                         "frozen in the middle",
                                         "tied and frozen",
                                         "unused",
                                         "only an unused parameter trains",
                                         "branches",
                                         "output is flattened" };
const int test_model_count = (int)COUNT(test_model_names);

uint32_t random_below(uint64_t *state, uint32_t bound)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % bound);
}

void assert_message_has(const char *part)
{
    if (strstr(zb_error_message(), part) == NULL)
        fail_msg("the message \"%s\" does not contain \"%s\"", zb_error_message(), part);
}
