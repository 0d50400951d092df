/* The builder of models: shapes, names, parameters, what it refuses; the built-in models; initial values. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/model.h>
#include <zerobit/random.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { SPECS_MAX = 6 };

static zb_model *new_model(zb_shape input, zb_loss_kind loss)
{
    zb_model *model = NULL;
    assert_int_equal(zb_model_create("under test", &input, loss, &model), ZB_OK);
    return model;
}

/* Adds modules until one is refused or the list ends, then finishes. */
static zb_status build(zb_model *model, const zb_module_spec *specs, int count)
{
    for (int i = 0; i < count; i++) ZB_TRY(zb_model_add(model, &specs[i]));
    return zb_model_finish(model);
}

static int spec_count(const zb_module_spec *specs)
{
    int count = 0;
    while (count < SPECS_MAX && specs[count].name != NULL) count++;
    return count;
}

static void assert_message_has(const char *part)
{
    if (strstr(zb_error_message(), part) == NULL)
        fail_msg("the message \"%s\" does not contain \"%s\"", zb_error_message(), part);
}

static void assert_shape(const zb_shape *shape, int dims, const int64_t *extent)
{
    assert_int_equal(shape->dims, dims);
    for (int i = 0; i < dims; i++) assert_int_equal(shape->extent[i], extent[i]);
}

/* --- output shapes --- */

#define CHW(c, h, w)                                                                                         \
    {                                                                                                        \
        .dims = 3, .extent = { c, h, w }                                                                     \
    }
#define VECTOR(n)                                                                                            \
    {                                                                                                        \
        .dims = 1, .extent = { n }                                                                           \
    }

static const struct shape_case {
    const char *name;
    zb_shape input;
    zb_module_spec spec;
    zb_shape out;
    zb_shape weight; /* dims 0: the module has no parameter */
} shape_cases[] = {
    { "linear", VECTOR(7), { .kind = ZB_MODULE_LINEAR, .out_features = 3 }, VECTOR(3), { 2, { 3, 7 } } },
    { "conv: stride is 1 unless given",
      CHW(3, 8, 9),
      { .kind = ZB_MODULE_CONV2D, .out_channels = 4, .kernel = 3 },
      CHW(4, 6, 7),
      { 4, { 4, 3, 3, 3 } } },
    { "conv: stride rounds down",
      CHW(2, 8, 9),
      { .kind = ZB_MODULE_CONV2D, .out_channels = 5, .kernel = 3, .stride = 2 },
      CHW(5, 3, 4),
      { 4, { 5, 2, 3, 3 } } },
    { "conv: padding on both sides",
      CHW(1, 4, 5),
      { .kind = ZB_MODULE_CONV2D, .out_channels = 1, .kernel = 3, .padding = 2 },
      CHW(1, 6, 7),
      { 4, { 1, 1, 3, 3 } } },
    { "conv: kernel as large as the padded input",
      CHW(1, 3, 3),
      { .kind = ZB_MODULE_CONV2D, .out_channels = 1, .kernel = 5, .padding = 1 },
      CHW(1, 1, 1),
      { 4, { 1, 1, 5, 5 } } },
    { "pool: stride is the kernel unless given",
      CHW(3, 7, 6),
      { .kind = ZB_MODULE_MAXPOOL2D, .kernel = 2 },
      CHW(3, 3, 3),
      { 0 } },
    { "pool: overlapping windows",
      CHW(3, 7, 6),
      { .kind = ZB_MODULE_MAXPOOL2D, .kernel = 3, .stride = 2 },
      CHW(3, 3, 2),
      { 0 } },
    { "relu keeps the shape", CHW(3, 7, 6), { .kind = ZB_MODULE_RELU }, CHW(3, 7, 6), { 0 } },
    { "flatten", CHW(3, 7, 6), { .kind = ZB_MODULE_FLATTEN }, VECTOR(126), { 0 } },
    { "flatten of a vector", VECTOR(5), { .kind = ZB_MODULE_FLATTEN }, VECTOR(5), { 0 } },
    { "add of one output to itself",
      CHW(3, 7, 6),
      { .kind = ZB_MODULE_ADD, .input2 = "input" },
      CHW(3, 7, 6),
      { 0 } },
};

static void check_shape(void **state)
{
    const struct shape_case *c = *state;
    zb_model *model = new_model(c->input, ZB_LOSS_MSE);
    zb_module_spec spec = c->spec;
    spec.name = "m";
    assert_int_equal(build(model, &spec, 1), ZB_OK);
    const zb_module *module = &model->modules[0];
    assert_shape(&module->in, c->input.dims, c->input.extent);
    assert_shape(&module->out, c->out.dims, c->out.extent);
    assert_int_equal(module->inputs[0], ZB_MODEL_INPUT);
    assert_int_equal(module->input_count, spec.kind == ZB_MODULE_ADD ? 2 : 1);
    if (c->weight.dims == 0) {
        assert_int_equal(model->param_count, 0);
        assert_int_equal(module->weight, ZB_NO_PARAM);
        assert_int_equal(module->bias, ZB_NO_PARAM);
    } else {
        assert_int_equal(model->param_count, 2);
        assert_string_equal(model->params[module->weight].name, "m.weight");
        assert_shape(&model->params[module->weight].shape, c->weight.dims, c->weight.extent);
        assert_string_equal(model->params[module->bias].name, "m.bias");
        assert_shape(&model->params[module->bias].shape, 1, c->weight.extent);
    }
    zb_model_destroy(model);
}

/* --- refusals --- */

/* A name one byte too long for "<name>.weight", and one that just fits. */
#define NAME_88 "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggghhhhhhhhhhiiiiiiii"
#define NAME_89 NAME_88 "i"

#define LINEAR(n, out)                                                                                       \
    {                                                                                                        \
        .kind = ZB_MODULE_LINEAR, .name = n, .out_features = out                                             \
    }
#define RELU(n)                                                                                              \
    {                                                                                                        \
        .kind = ZB_MODULE_RELU, .name = n                                                                    \
    }

static const struct bad_case {
    const char *name;
    zb_shape input;
    zb_loss_kind loss;
    zb_module_spec specs[SPECS_MAX];
    const char *message; /* part of it */
} bad_cases[] = {
    { "no module", VECTOR(4), ZB_LOSS_MSE, { { 0 } }, "no module gives an output" },
    { "only a parameter",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_PARAMETER, .name = "p", .shape = VECTOR(2) } },
      "no module gives an output" },
    { "empty name", VECTOR(4), ZB_LOSS_MSE, { RELU("") }, "module 0: the name is empty" },
    { "name too long", VECTOR(4), ZB_LOSS_MSE, { RELU(NAME_89) }, "longer than 88 bytes" },
    { "control character", VECTOR(4), ZB_LOSS_MSE, { RELU("a\nb") }, "byte 1 of the name is 0x0a" },
    { "byte above ASCII", VECTOR(4), ZB_LOSS_MSE, { RELU("r\xc3\xa9") }, "byte 1 of the name is 0xc3" },
    { "name of the input", VECTOR(4), ZB_LOSS_MSE, { RELU("input") }, "\"input\" is reserved" },
    { "name of safetensors",
      VECTOR(4),
      ZB_LOSS_MSE,
      { RELU("__metadata__") },
      "\"__metadata__\" is reserved" },
    { "name twice",
      VECTOR(4),
      ZB_LOSS_MSE,
      { RELU("a"), RELU("a") },
      "module 1: module 0 is called \"a\" already" },
    { "parameter name twice",
      VECTOR(4),
      ZB_LOSS_MSE,
      { LINEAR("a", 3), { .kind = ZB_MODULE_PARAMETER, .name = "a.bias", .shape = VECTOR(2) } },
      "a parameter is called \"a.bias\" already" },
    { "unknown kind",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = (zb_module_kind)99, .name = "x" } },
      "unknown kind 99" },
    { "unknown input",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_RELU, .name = "r", .input = "nowhere" } },
      "its input \"nowhere\" is neither an earlier module nor \"input\"" },
    { "its own output as input",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_RELU, .name = "r", .input = "r" } },
      "its input \"r\" is neither" },
    { "a parameter as input",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_PARAMETER, .name = "p", .shape = VECTOR(4) },
        { .kind = ZB_MODULE_RELU, .name = "r", .input = "p" } },
      "its input \"p\" is a parameter, which has no output" },
    { "linear over an image",
      CHW(3, 4, 5),
      ZB_LOSS_MSE,
      { LINEAR("fc", 2) },
      "input is [3,4,5]; put a flatten before" },
    { "linear without outputs",
      VECTOR(4),
      ZB_LOSS_MSE,
      { LINEAR("fc", 0) },
      "out_features is 0, expected at least 1" },
    { "linear with negative outputs", VECTOR(4), ZB_LOSS_MSE, { LINEAR("fc", -3) }, "out_features is -3" },
    { "linear too large",
      VECTOR(4),
      ZB_LOSS_MSE,
      { LINEAR("fc", INT64_MAX / 9) },
      "shape [1024819115206086200,4] has more than" },
    { "linear output too large",
      VECTOR(4),
      ZB_LOSS_MSE,
      { LINEAR("fc", INT64_MAX) },
      "its output: shape [9223372036854775807]" },
    { "conv over a vector",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .out_channels = 1, .kernel = 1 } },
      "a conv2d module takes [channels,height,width], its input is [4]" },
    { "pool over a vector",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_MAXPOOL2D, .name = "p", .kernel = 1 } },
      "a maxpool2d module takes [channels,height,width], its input is [4]" },
    { "conv without channels",
      CHW(3, 4, 5),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .kernel = 1 } },
      "out_channels is 0" },
    { "conv without kernel",
      CHW(3, 4, 5),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .out_channels = 1 } },
      "kernel is 0" },
    { "negative stride",
      CHW(3, 4, 5),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .out_channels = 1, .kernel = 1, .stride = -1 } },
      "stride is -1" },
    { "negative padding",
      CHW(3, 4, 5),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .out_channels = 1, .kernel = 1, .padding = -1 } },
      "padding is -1" },
    { "kernel larger than the input's height",
      CHW(3, 4, 7),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .out_channels = 1, .kernel = 7, .padding = 1 } },
      "kernel 7 is larger than the padded input, 6 x 9 (input [3,4,7], padding 1)" },
    { "kernel larger than the input's width",
      CHW(3, 7, 4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_MAXPOOL2D, .name = "p", .kernel = 5 } },
      "kernel 5 is larger than the padded input, 7 x 4" },
    { "padding makes the output too large",
      CHW(1, 4, 4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .out_channels = 4, .kernel = 1, .padding = 2147483647 } },
      "its output: shape [4,4294967298,4294967298] has more than" },
    { "weight too large though the output is small",
      CHW(INT64_C(1) << 33, 1, 1),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_CONV2D, .name = "c", .out_channels = 1, .kernel = 100000, .padding = 50000 } },
      "its weight: shape [1,8589934592,100000,100000] has more than" },
    { "pool over a channel whose positions exceed int32",
      CHW(1, 65536, 65536),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_MAXPOOL2D, .name = "p", .kernel = 2 } },
      "65536 x 65536 elements, expected at most 2147483647" },
    { "pool with padding",
      CHW(1, 4, 4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_MAXPOOL2D, .name = "p", .kernel = 2, .padding = 1 } },
      "a maxpool2d module takes no padding" },
    { "relu with a kernel",
      CHW(1, 4, 4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_RELU, .name = "r", .kernel = 2 } },
      "a relu module takes no kernel" },
    { "relu without a bias",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_RELU, .name = "r", .no_bias = 1 } },
      "a relu module takes no bias" },
    { "frozen flatten",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_FLATTEN, .name = "f", .frozen = 1 } },
      "takes no frozen" },
    { "linear with a shape",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_LINEAR, .name = "f", .out_features = 1, .shape = VECTOR(1) } },
      "a linear module takes no shape" },
    { "linear with channels",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_LINEAR, .name = "f", .out_features = 1, .out_channels = 1 } },
      "a linear module takes no out_channels" },
    { "relu with two inputs",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_RELU, .name = "r", .input2 = "input" } },
      "a relu module takes no input2" },
    { "tied flatten",
      VECTOR(4),
      ZB_LOSS_MSE,
      { RELU("r"), { .kind = ZB_MODULE_FLATTEN, .name = "f", .tie = "r" } },
      "a flatten module takes no tie" },
    { "parameter with an input",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_PARAMETER, .name = "p", .shape = VECTOR(1), .input = "input" } },
      "a parameter module takes no input" },
    { "parameter without a shape",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_PARAMETER, .name = "p" } },
      "1 to 4 dimensions, found 0" },
    { "parameter of five dimensions",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_PARAMETER, .name = "p", .shape = { .dims = 5 } } },
      "1 to 4 dimensions, found 5" },
    { "parameter of negative extent",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_PARAMETER, .name = "p", .shape = { 2, { 3, -1 } } } },
      "extent 1 of shape [3,-1] is -1, expected at least 0" },
    { "all parameters together too many",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_PARAMETER, .name = "p", .shape = VECTOR(INT64_MAX / 8) },
        { .kind = ZB_MODULE_PARAMETER, .name = "q", .shape = VECTOR(1) } },
      "module \"q\": the model would have more than 1152921504606846975 parameters" },
    { "add of one input",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_ADD, .name = "a" } },
      "needs two inputs, found one" },
    { "add of two shapes",
      VECTOR(4),
      ZB_LOSS_MSE,
      { LINEAR("fc", 5), { .kind = ZB_MODULE_ADD, .name = "a", .input2 = "input" } },
      "cannot add [5] and [4], the shapes differ" },
    { "tie to nothing",
      VECTOR(4),
      ZB_LOSS_MSE,
      { { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .tie = "a" } },
      "tie \"a\" is no earlier module" },
    { "tie to another kind",
      VECTOR(4),
      ZB_LOSS_MSE,
      { RELU("r"), { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .tie = "r" } },
      "a linear module cannot be tied to \"r\", a relu module" },
    { "tie of two shapes",
      VECTOR(4),
      ZB_LOSS_MSE,
      { LINEAR("a", 5), { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .tie = "a" } },
      "its weight [4,5] cannot be tied to that of \"a\", which is [5,4]" },
    { "frozen with nothing of its own",
      VECTOR(4),
      ZB_LOSS_MSE,
      { LINEAR("a", 4),
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .tie = "a", .no_bias = 1, .frozen = 1 } },
      "frozen has nothing to act on" },
    { "an output that nothing uses",
      VECTOR(4),
      ZB_LOSS_MSE,
      { RELU("r"),
        LINEAR("lost", 4),
        { .kind = ZB_MODULE_LINEAR, .name = "kept", .input = "r", .out_features = 2 } },
      "nothing uses the output of module \"lost\"; the model's output is that of the last module, \"kept\"" },
    { "cross entropy over an image",
      CHW(3, 4, 5),
      ZB_LOSS_CROSS_ENTROPY,
      { RELU("r") },
      "cross entropy takes one dimension of 1 to 2147483647 classes, module \"r\" gives [3,4,5]" },
    { "cross entropy over more classes than int32 labels name",
      VECTOR(INT64_C(1) << 31),
      ZB_LOSS_CROSS_ENTROPY,
      { RELU("r") },
      "module \"r\" gives [2147483648]" },
};

static void check_bad(void **state)
{
    const struct bad_case *c = *state;
    zb_model *model = new_model(c->input, c->loss);
    int count = spec_count(c->specs);
    assert_int_equal(build(model, c->specs, count), ZB_INVALID_ARGUMENT);
    assert_message_has(c->message);

    /* A refused module leaves nothing behind. */
    int modules_before = model->module_count, params_before = model->param_count;
    size_t numel_before = model->param_numel;
    if (modules_before < count) {
        assert_int_equal(zb_model_add(model, &c->specs[modules_before]), ZB_INVALID_ARGUMENT);
        assert_int_equal(model->module_count, modules_before);
        assert_int_equal(model->param_count, params_before);
        assert_true(model->param_numel == numel_before);
    }
    zb_model_destroy(model);
}

static const struct bad_create_case {
    const char *name;
    const char *model_name;
    zb_shape input;
    zb_loss_kind loss;
    const char *message;
} bad_create_cases[] = {
    { "no name", NULL, VECTOR(1), ZB_LOSS_MSE, "model: the name is empty" },
    { "name too long", NAME_89 "1234567", VECTOR(1), ZB_LOSS_MSE, "longer than 95 bytes" },
    { "no dimension", "m", { 0 }, ZB_LOSS_MSE, "model input: a shape has 1 to 4 dimensions, found 0" },
    { "extent 0", "m", { 2, { 3, 0 } }, ZB_LOSS_MSE, "extent 1 of shape [3,0] is 0, expected at least 1" },
    { "product overflows",
      "m",
      { 2, { INT64_MAX, 4 } },
      ZB_LOSS_MSE,
      "[9223372036854775807,4] has more than" },
    { "unknown loss", "m", VECTOR(1), (zb_loss_kind)7, "unknown loss 7" },
};

static void check_bad_create(void **state)
{
    const struct bad_create_case *c = *state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_create(c->model_name, &c->input, c->loss, &model), ZB_INVALID_ARGUMENT);
    assert_null(model);
    assert_message_has(c->message);
}

/* --- graphs, ties, frozen and unused parameters --- */

static void residual_block_resolves_its_inputs(void **state)
{
    (void)state;
    static const zb_module_spec specs[] = {
        LINEAR("fc1", 4),
        RELU("relu"),
        { .kind = ZB_MODULE_PARAMETER, .name = "spare", .shape = VECTOR(3) },
        LINEAR("fc2", 4), /* reads relu: a parameter has no output */
        { .kind = ZB_MODULE_ADD, .name = "sum1", .input2 = "relu" },
        { .kind = ZB_MODULE_ADD, .name = "sum2", .input = "input", .input2 = "sum1" },
    };
    zb_model *model = new_model((zb_shape)VECTOR(4), ZB_LOSS_CROSS_ENTROPY);
    assert_int_equal(build(model, specs, COUNT(specs)), ZB_OK);
    assert_int_equal(model->modules[2].input_count, 0);
    assert_int_equal(model->modules[3].inputs[0], 1);
    assert_int_equal(model->modules[4].inputs[0], 3);
    assert_int_equal(model->modules[4].inputs[1], 1);
    assert_int_equal(model->modules[5].inputs[0], ZB_MODEL_INPUT);
    assert_int_equal(model->modules[5].inputs[1], 4);
    assert_int_equal(zb_model_output_module(model), 5);
    zb_model_destroy(model);
}

static void a_parameter_behind_the_output_is_not_the_output(void **state)
{
    (void)state;
    static const zb_module_spec specs[] = {
        LINEAR("fc1", 4),
        { .kind = ZB_MODULE_PARAMETER, .name = "spare", .shape = VECTOR(3) },
    };
    zb_model *model = new_model((zb_shape)VECTOR(4), ZB_LOSS_MSE);
    assert_int_equal(build(model, specs, COUNT(specs)), ZB_OK);
    assert_int_equal(zb_model_output_module(model), 0);
    zb_model_destroy(model);
}

static void forward_elsewhere_is_a_list_of_parameters(void **state)
{
    (void)state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_create("list", &(zb_shape)VECTOR(4), ZB_LOSS_ELSEWHERE, &model),
                     ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "has an input, want NULL"));
    assert_int_equal(zb_model_create("list", NULL, ZB_LOSS_ELSEWHERE, &model), ZB_OK);
    assert_int_equal(zb_model_finish(model), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "has no parameter"));
    assert_int_equal(zb_model_add(model, &(zb_module_spec){ .kind = ZB_MODULE_RELU, .name = "r" }),
                     ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "is a relu, want a parameter"));
    const zb_module_spec spec = { .kind = ZB_MODULE_PARAMETER, .name = "p0", .shape = VECTOR(3) };
    assert_int_equal(zb_model_add(model, &spec), ZB_OK);
    assert_int_equal(zb_model_finish(model), ZB_OK);
    assert_int_equal(zb_model_output_module(model), ZB_MODEL_INPUT);
    zb_model_destroy(model);
}

static zb_model *list_of_three(void)
{
    static const char *const names[] = { "p0", "p1", "p2" };
    zb_model *model = NULL;
    assert_int_equal(zb_model_create("list", NULL, ZB_LOSS_ELSEWHERE, &model), ZB_OK);
    for (int p = 0; p < 3; p++) {
        const zb_module_spec spec = { .kind = ZB_MODULE_PARAMETER,
                                      .name = names[p],
                                      .shape = { .dims = 1, .extent = { p == 1 ? 0 : 2 } } };
        assert_int_equal(zb_model_add(model, &spec), ZB_OK);
    }
    return model;
}

#define LIST(...)                                                                                            \
    {                                                                                                        \
        (int[]){ __VA_ARGS__ }, (int)(sizeof((int[]){ __VA_ARGS__ }) / sizeof(int))                          \
    }

static void an_order_elsewhere_is_checked_and_copied(void **state)
{
    (void)state;
    zb_index_list layers[] = { { NULL, 0 }, LIST(0, 1), LIST(2) };
    const struct {
        zb_model_order order;
        const char *words; /* NULL: taken */
    } orders[] = {
        { { layers, 3, LIST(0, 1, 2), LIST(0, 2, 1), LIST(2, 0) }, NULL },
        { { layers, 3, LIST(0), LIST(0), { NULL, 0 } }, NULL },
        { { layers, 3, LIST(1, 2), LIST(0), LIST(2, 0) }, "its forward order does not begin with layer 0" },
        { { layers, 3, LIST(0), { NULL, 0 }, LIST(2, 0) }, "its backward order does not begin with layer 0" },
        { { layers, 3, LIST(0, 3), LIST(0), LIST(2, 0) }, "entry 1 of its forward order is 3, want 0 to 2" },
        { { layers, 2, LIST(0), LIST(0, -1), LIST(2, 0) }, "entry 1 of its backward order is -1" },
        { { layers, 3, LIST(0), LIST(0), LIST(2, 1) }, "has parameter p0 0 times, want 1" },
        { { layers, 3, LIST(0), LIST(0), LIST(2, 0, 1) }, "has parameter p1 1 times, want 0" },
        { { layers, 3, LIST(0), LIST(0), LIST(2, 0, 2) }, "has parameter p2 2 times, want 1" },
        { { layers, 3, LIST(0), LIST(0), LIST(3) }, "entry 0 of its gradient order is 3" },
    };
    for (size_t i = 0; i < COUNT(orders); i++) {
        zb_model *model = list_of_three();
        const zb_status status = zb_model_set_order(model, &orders[i].order);
        if (orders[i].words == NULL) {
            assert_int_equal(status, ZB_OK);
            assert_int_equal(model->order->layer_count, 3);
            assert_int_equal(model->order->layers[1].items[1], 1);
            assert_ptr_not_equal(model->order->layers[1].items, layers[1].items);
            assert_int_equal(model->order->forward.count, orders[i].order.forward.count);
        } else {
            assert_int_equal(status, ZB_INVALID_ARGUMENT);
            if (strstr(zb_error_message(), orders[i].words) == NULL) fail_msg("%s", zb_error_message());
            assert_null(model->order);
        }
        zb_model_destroy(model);
    }
    zb_model *own = new_model((zb_shape)VECTOR(4), ZB_LOSS_MSE);
    assert_int_equal(zb_model_set_order(own, &orders[0].order), ZB_INVALID_ARGUMENT);
    zb_model_destroy(own);
}

static void tied_weight_is_one_parameter_used_twice(void **state)
{
    (void)state;
    static const zb_module_spec specs[] = {
        { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 4, .frozen = 1, .no_bias = 1 },
        { .kind = ZB_MODULE_PARAMETER, .name = "empty", .shape = { 2, { 0, 5 } } },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .tie = "a" },
        { .kind = ZB_MODULE_LINEAR, .name = "c", .out_features = 4, .tie = "b", .no_bias = 1 },
        { .kind = ZB_MODULE_PARAMETER, .name = "spare", .shape = VECTOR(3), .frozen = 1 },
    };
    static const zb_param expected[] = {
        { .name = "a.weight",
          .shape = { 2, { 4, 4 } },
          .numel = 16,
          .requires_grad = 0,
          .init_bound = 0.5f,
          .use_count = 3 },
        { .name = "empty", .shape = { 2, { 0, 5 } }, .numel = 0, .requires_grad = 1, .init_bound = 1.0f },
        { .name = "b.bias",
          .shape = VECTOR(4),
          .numel = 4,
          .requires_grad = 1,
          .init_bound = 0.5f,
          .use_count = 1 },
        { .name = "spare", .shape = VECTOR(3), .numel = 3, .requires_grad = 0, .init_bound = 1.0f },
    };
    zb_model *model = new_model((zb_shape)VECTOR(4), ZB_LOSS_MSE);
    assert_int_equal(build(model, specs, COUNT(specs)), ZB_OK);
    assert_int_equal(model->modules[0].weight, 0);
    assert_int_equal(model->modules[0].bias, ZB_NO_PARAM);
    assert_int_equal(model->modules[2].weight, 0);
    assert_int_equal(model->modules[2].bias, 2);
    assert_int_equal(model->modules[3].weight, 0);
    assert_int_equal(model->modules[4].weight, 3);
    assert_int_equal(model->param_count, COUNT(expected));
    assert_int_equal(model->param_numel, 23);
    for (int i = 0; i < model->param_count; i++) {
        const zb_param *param = &model->params[i];
        assert_string_equal(param->name, expected[i].name);
        assert_shape(&param->shape, expected[i].shape.dims, expected[i].shape.extent);
        assert_int_equal(param->numel, expected[i].numel);
        assert_int_equal(param->requires_grad, expected[i].requires_grad);
        assert_true(param->init_bound == expected[i].init_bound);
        assert_int_equal(param->use_count, expected[i].use_count);
        assert_int_equal(zb_model_find_param(model, expected[i].name), i);
    }
    assert_int_equal(zb_model_find_param(model, "b.weight"), ZB_NO_PARAM);
    zb_model_destroy(model);
}

static void longest_name_fits(void **state)
{
    (void)state;
    zb_module_spec spec = LINEAR(NAME_88, 2);
    zb_model *model = new_model((zb_shape)VECTOR(2), ZB_LOSS_MSE);
    assert_int_equal(build(model, &spec, 1), ZB_OK);
    assert_string_equal(model->params[0].name, NAME_88 ".weight");
    zb_model_destroy(model);
}

static void kinds_have_names(void **state)
{
    (void)state;
    assert_string_equal(zb_module_kind_name(ZB_MODULE_LINEAR), "linear");
    assert_string_equal(zb_module_kind_name(ZB_MODULE_PARAMETER), "parameter");
    assert_string_equal(zb_module_kind_name((zb_module_kind)99), "?");
}

/* --- built in --- */

static void cifar10_net_is_the_example(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t numel;
        double fan_in;
    } params[] = {
        { "conv1.weight", 450, 75 },  { "conv1.bias", 6, 75 },      { "conv2.weight", 2400, 150 },
        { "conv2.bias", 16, 150 },    { "fc1.weight", 48000, 400 }, { "fc1.bias", 120, 400 },
        { "fc2.weight", 10080, 120 }, { "fc2.bias", 84, 120 },      { "fc3.weight", 840, 84 },
        { "fc3.bias", 10, 84 },
    };
    static const char *const modules[] = { "conv1",   "relu1", "pool1", "conv2", "relu2", "pool2",
                                           "flatten", "fc1",   "relu3", "fc2",   "relu4", "fc3" };
    zb_model *model = NULL;
    assert_int_equal(zb_model_open("cifar10-net", &model), ZB_OK);
    assert_string_equal(model->name, "cifar10-net");
    assert_int_equal(model->loss, ZB_LOSS_CROSS_ENTROPY);
    assert_shape(&model->input, 3, (const int64_t[]){ 3, 32, 32 });
    assert_int_equal(model->module_count, COUNT(modules));
    for (size_t i = 0; i < COUNT(modules); i++) assert_string_equal(model->modules[i].name, modules[i]);
    assert_int_equal(model->param_count, COUNT(params));
    for (size_t i = 0; i < COUNT(params); i++) {
        assert_string_equal(model->params[i].name, params[i].name);
        assert_int_equal(model->params[i].numel, params[i].numel);
        assert_true(model->params[i].init_bound == (float)(1.0 / sqrt(params[i].fan_in)));
        assert_int_equal(model->params[i].requires_grad, 1);
        assert_int_equal(model->params[i].use_count, 1);
    }
    assert_int_equal(model->param_numel, 62006);
    zb_model_destroy(model);
}

static void mlp_has_relu_between_its_layers(void **state)
{
    (void)state;
    static const char *const modules[] = { "fc1", "relu1", "fc2", "relu2", "fc3" };
    zb_model *model = NULL;
    assert_int_equal(zb_model_open("mlp:3072-64-32-10", &model), ZB_OK);
    assert_string_equal(model->name, "mlp:3072-64-32-10");
    assert_int_equal(model->loss, ZB_LOSS_CROSS_ENTROPY);
    assert_shape(&model->input, 1, (const int64_t[]){ 3072 });
    assert_int_equal(model->module_count, COUNT(modules));
    for (size_t i = 0; i < COUNT(modules); i++) assert_string_equal(model->modules[i].name, modules[i]);
    assert_shape(&model->params[2].shape, 2, (const int64_t[]){ 32, 64 });
    assert_int_equal(model->param_numel, 3072 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10);
    zb_model_destroy(model);

    assert_int_equal(zb_model_open("mlp-mse:5-1", &model), ZB_OK);
    assert_int_equal(model->loss, ZB_LOSS_MSE);
    assert_int_equal(model->module_count, 1);
    zb_model_destroy(model);
}

static void deep_mlp_has_its_name_cut(void **state)
{
    (void)state;
    char spec[256] = "mlp:1";
    for (int i = 0; i < 100; i++) strcat(spec, "-1");
    zb_model *model = NULL;
    assert_int_equal(zb_model_open(spec, &model), ZB_OK);
    assert_int_equal(strlen(model->name), ZB_NAME_BYTES - 1);
    assert_int_equal(model->param_count, 200);
    zb_model_destroy(model);
}

static const struct bad_spec_case {
    const char *spec, *message;
} bad_spec_cases[] = {
    { "mlp:", "it ends where a width is expected, at character 5" },
    { "mlp:12", "found one width, expected IN-OUT" },
    { "mlp:12-", "it ends where a width is expected, at character 8" },
    { "mlp:12--3", "found '-' at character 8, expected a width" },
    { "mlp:12-x3", "found 'x' at character 8, expected a width" },
    { "mlp:12-3x", "found 'x' at character 9, expected '-' or the end" },
    { "mlp:12-3 ", "found ' ' at character 9, expected '-' or the end" },
    { "mlp: 12-3", "found ' ' at character 5, expected a width" },
    { "mlp:+12-3", "found '+' at character 5, expected a width" },
    { "mlp:12-0-3", "the width at character 8 is 0" },
    { "mlp:9223372036854775808-1", "the width at character 5 is too large" },
    { "mlp:4611686018427387904-1", "shape [4611686018427387904] has more than" },
    { "mlp-mse:3-2-", "it ends where a width is expected, at character 13" },
};

static void check_bad_spec(void **state)
{
    const struct bad_spec_case *c = *state;
    zb_model *model = NULL;
    uint64_t live = zb_alloc_get_stats().live;
    assert_int_equal(zb_model_open(c->spec, &model), ZB_INVALID_ARGUMENT);
    assert_null(model);
    assert_message_has(c->message);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

/* --- initial values --- */

static void initial_values_do_not_depend_on_the_split(void **state)
{
    (void)state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_open("mlp:7-5-3", &model), ZB_OK);
    for (int p = 0; p < model->param_count; p++) {
        size_t numel = model->params[p].numel;
        float whole[35], part[35];
        assert_true(numel <= COUNT(whole));
        zb_model_init_param(model, p, 42, 0, numel, whole);
        for (size_t first = 0; first <= numel; first++) {
            zb_model_init_param(model, p, 42, first, numel - first, part);
            assert_memory_equal(part, whole + first, (numel - first) * sizeof(float));
        }
    }
    zb_model_destroy(model);
}

static void initial_values_follow_the_formula(void **state)
{
    (void)state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_open("mlp:3000-4", &model), ZB_OK);
    enum { NUMEL = 12000 };
    static float values[NUMEL];
    float bound = (float)(1.0 / sqrt(3000.0));
    double sum = 0.0, least = 1.0, greatest = -1.0;
    zb_model_init_param(model, 0, 7, 0, NUMEL, values);
    for (size_t i = 0; i < NUMEL; i++) {
        float twice = 2.0f * zb_random_uniform(7, 0, i);
        float centred = twice - 1.0f;
        float value = centred * bound;
        assert_memory_equal(&values[i], &value, sizeof value);
        sum += (double)value;
        least = fmin(least, (double)value);
        greatest = fmax(greatest, (double)value);
    }
    /* Uniform in [-bound, bound): the mean of 12000 lies within 5 standard deviations, the ends are nearly
     * reached. */
    assert_true(fabs(sum / NUMEL) < 5.0 * (double)bound / sqrt(3.0 * NUMEL));
    assert_true(least >= -(double)bound && least < -0.99 * (double)bound);
    assert_true(greatest < (double)bound && greatest > 0.99 * (double)bound);

    float other_seed[4], other_param[4];
    zb_model_init_param(model, 0, 8, 0, 4, other_seed);
    zb_model_init_param(model, 1, 7, 0, 4, other_param);
    assert_memory_not_equal(values, other_seed, sizeof other_seed);
    assert_memory_not_equal(values, other_param, sizeof other_param);
    zb_model_destroy(model);
}

/* --- memory --- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const char *const specs[] = { "cifar10-net", "mlp:3-4-5-6-7-8" };
    for (size_t i = 0; i < COUNT(specs); i++) {
        for (int64_t n = 0;; n++) {
            uint64_t live = zb_alloc_get_stats().live;
            zb_model *model = NULL;
            zb_alloc_fail_at(n);
            zb_status status = zb_model_open(specs[i], &model);
            int fired = zb_alloc_fault_fired();
            zb_alloc_fail_at(-1);
            zb_model_destroy(model);
            assert_int_equal(zb_alloc_get_stats().live, live);
            assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
            if (!fired) {
                assert_true(n > 4);
                break;
            }
            assert_null(model);
        }
    }
}

static void a_module_can_be_added_again_after_memory_ran_out(void **state)
{
    (void)state;
    zb_model *model = new_model((zb_shape)VECTOR(4), ZB_LOSS_MSE);
    zb_module_spec spec = LINEAR("fc", 4);
    for (int64_t n = 0; n < 2; n++) { /* the modules, the parameters */
        zb_alloc_fail_at(n);
        assert_int_equal(zb_model_add(model, &spec), ZB_NO_MEMORY);
        zb_alloc_fail_at(-1);
        assert_int_equal(model->module_count, 0);
        assert_int_equal(model->param_count, 0);
    }
    assert_int_equal(build(model, &spec, 1), ZB_OK);
    assert_int_equal(model->param_count, 2);
    zb_model_destroy(model);
}

#define ADD_CASES(cases, check)                                                                              \
    for (size_t i = 0; i < COUNT(cases); i++) tests[count++] = (struct CMUnitTest)                           \
        {                                                                                                    \
            cases[i].name, check, NULL, NULL, (void *)&cases[i]                                              \
        }

int main(void)
{
    static const struct CMUnitTest single[] = {
        cmocka_unit_test(residual_block_resolves_its_inputs),
        cmocka_unit_test(a_parameter_behind_the_output_is_not_the_output),
        cmocka_unit_test(forward_elsewhere_is_a_list_of_parameters),
        cmocka_unit_test(an_order_elsewhere_is_checked_and_copied),
        cmocka_unit_test(tied_weight_is_one_parameter_used_twice),
        cmocka_unit_test(longest_name_fits),
        cmocka_unit_test(kinds_have_names),
        cmocka_unit_test(cifar10_net_is_the_example),
        cmocka_unit_test(mlp_has_relu_between_its_layers),
        cmocka_unit_test(deep_mlp_has_its_name_cut),
        cmocka_unit_test(initial_values_do_not_depend_on_the_split),
        cmocka_unit_test(initial_values_follow_the_formula),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_module_can_be_added_again_after_memory_ran_out),
    };
    static struct CMUnitTest tests[COUNT(single) + COUNT(shape_cases) + COUNT(bad_cases) +
                                   COUNT(bad_create_cases) + COUNT(bad_spec_cases)];
    size_t count = 0;
    for (; count < COUNT(single); count++) tests[count] = single[count];
    ADD_CASES(shape_cases, check_shape);
    ADD_CASES(bad_cases, check_bad);
    ADD_CASES(bad_create_cases, check_bad_create);
    for (size_t i = 0; i < COUNT(bad_spec_cases); i++)
        tests[count++] = (struct CMUnitTest){ bad_spec_cases[i].spec, check_bad_spec, NULL, NULL,
                                              (void *)&bad_spec_cases[i] };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
