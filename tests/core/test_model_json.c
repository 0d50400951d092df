/* Models read from JSON: the examples, the description in docs/model.md, every key, every refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/model.h>
#include "tests/cjson_memory.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Written with ' for ", to be readable in C. */
static zb_status parse(const char *text, zb_model **model_p)
{
    char quoted[2048];
    size_t length = strlen(text);
    assert_true(length < sizeof quoted);
    for (size_t i = 0; i < length; i++) quoted[i] = text[i] == '\'' ? '"' : text[i];
    return zb_model_parse_json(quoted, length, "m.json", model_p);
}

static zb_model *parse_ok(const char *text)
{
    zb_model *model = NULL;
    if (parse(text, &model) != ZB_OK) fail_msg("refused: %s", zb_error_message());
    return model;
}

static void assert_same_shape(const zb_shape *a, const zb_shape *b)
{
    assert_int_equal(a->dims, b->dims);
    assert_memory_equal(a->extent, b->extent, sizeof a->extent);
}

static void assert_same_module(const zb_module *a, const zb_module *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->input_count, b->input_count);
    assert_memory_equal(a->inputs, b->inputs, sizeof a->inputs);
    assert_same_shape(&a->in, &b->in);
    assert_same_shape(&a->out, &b->out);
    assert_int_equal(a->kernel, b->kernel);
    assert_int_equal(a->stride, b->stride);
    assert_int_equal(a->padding, b->padding);
    assert_int_equal(a->weight, b->weight);
    assert_int_equal(a->bias, b->bias);
}

static void assert_same_param(const zb_param *a, const zb_param *b)
{
    assert_string_equal(a->name, b->name);
    assert_same_shape(&a->shape, &b->shape);
    assert_int_equal(a->numel, b->numel);
    assert_int_equal(a->requires_grad, b->requires_grad);
    assert_true(a->init_bound == b->init_bound);
    assert_int_equal(a->use_count, b->use_count);
}

static void assert_same_model(const zb_model *a, const zb_model *b)
{
    assert_int_equal(a->loss, b->loss);
    assert_same_shape(&a->input, &b->input);
    assert_int_equal(a->module_count, b->module_count);
    for (int i = 0; i < a->module_count; i++) assert_same_module(&a->modules[i], &b->modules[i]);
    assert_int_equal(a->param_count, b->param_count);
    for (int i = 0; i < a->param_count; i++) assert_same_param(&a->params[i], &b->params[i]);
    assert_true(a->param_numel == b->param_numel);
}

/* --- what the keys mean: the same as the builder's members --- */

#define HEAD(input, loss) "{'name': 'm', 'input': " input ", 'loss': '" loss "', 'modules': ["
#define TAIL              "]}"

static void every_key_reaches_the_builder(void **state)
{
    (void)state;
    zb_model *read = parse_ok(
        HEAD("[2, 9, 8]",
             "cross_entropy") "{'kind': 'conv2d', 'name': 'c1', 'out_channels': 2, 'kernel': 3, 'stride': 2, "
                              "'padding': 1,"
                              " 'bias': false, 'frozen': true},"
                              "{'kind': 'conv2d', 'name': 'c2', 'out_channels': 2, 'kernel': 3, 'padding': "
                              "1, 'tie': 'c1'},"
                              "{'kind': 'add', 'name': 'sum', 'input': ['c2', 'c1']},"
                              "{'kind': 'maxpool2d', 'name': 'p', 'kernel': 2, 'stride': 1},"
                              "{'kind': 'parameter', 'name': 'spare', 'shape': [0, 3], 'frozen': true},"
                              "{'kind': 'relu', 'name': 'r', 'input': 'p'},"
                              "{'kind': 'flatten', 'name': 'f'},"
                              "{'kind': 'linear', 'name': 'fc1', 'out_features': 5, 'bias': true, 'frozen': "
                              "false},"
                              "{'kind': 'linear', 'name': 'fc2', 'out_features': 5, 'input': 'fc1'}" TAIL);
    static const zb_module_spec specs[] = {
        { .kind = ZB_MODULE_CONV2D,
          .name = "c1",
          .out_channels = 2,
          .kernel = 3,
          .stride = 2,
          .padding = 1,
          .no_bias = 1,
          .frozen = 1 },
        { .kind = ZB_MODULE_CONV2D, .name = "c2", .out_channels = 2, .kernel = 3, .padding = 1, .tie = "c1" },
        { .kind = ZB_MODULE_ADD, .name = "sum", .input = "c2", .input2 = "c1" },
        { .kind = ZB_MODULE_MAXPOOL2D, .name = "p", .kernel = 2, .stride = 1 },
        { .kind = ZB_MODULE_PARAMETER, .name = "spare", .shape = { 2, { 0, 3 } }, .frozen = 1 },
        { .kind = ZB_MODULE_RELU, .name = "r", .input = "p" },
        { .kind = ZB_MODULE_FLATTEN, .name = "f" },
        { .kind = ZB_MODULE_LINEAR, .name = "fc1", .out_features = 5 },
        { .kind = ZB_MODULE_LINEAR, .name = "fc2", .out_features = 5, .input = "fc1" },
    };
    zb_model *built = NULL;
    zb_shape input = { 3, { 2, 9, 8 } };
    assert_int_equal(zb_model_create("m", &input, ZB_LOSS_CROSS_ENTROPY, &built), ZB_OK);
    for (size_t i = 0; i < COUNT(specs); i++) assert_int_equal(zb_model_add(built, &specs[i]), ZB_OK);
    assert_int_equal(zb_model_finish(built), ZB_OK);
    assert_string_equal(read->name, "m");
    assert_same_model(read, built);
    zb_model_destroy(read);
    zb_model_destroy(built);
}

/* --- examples --- */

static char *read_text(const char *path, size_t *bytes)
{
    static char text[64 * 1024];
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("%s cannot be opened", path);
    *bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[*bytes] = '\0';
    return text;
}

static void the_description_in_the_docs_is_one(void **state)
{
    (void)state;
    size_t bytes;
    char *text = read_text(ZB_SOURCE_DIR "/docs/model.md", &bytes);
    char *first = strstr(text, "```json\n");
    assert_non_null(first);
    first += strlen("```json\n");
    char *end = strstr(first, "```");
    assert_non_null(end);
    zb_model *model = NULL;
    if (zb_model_parse_json(first, (size_t)(end - first), "docs/model.md", &model) != ZB_OK)
        fail_msg("refused: %s", zb_error_message());
    assert_int_equal(model->module_count, 5);
    assert_int_equal(model->params[0].use_count, 2);
    zb_model_destroy(model);
}

static const struct example_case {
    const char *path;
    int module_count, param_count;
    size_t param_numel;
} example_cases[] = {
    { "residual-cnn.json", 9, 6, 3 * 8 * 9 + 8 + 2 * 8 * 8 * 9 + 10 * 8 * 8 * 8 + 10 },
    { "tied-frozen.json", 8, 8, 3 * 49 - 49 + 3 * 7 + 15 + 21 },
};

static void check_example(void **state)
{
    const struct example_case *c = *state;
    char path[512];
    snprintf(path, sizeof path, "%s/examples/models/%s", ZB_SOURCE_DIR, c->path);
    zb_model *model = NULL;
    if (zb_model_open(path, &model) != ZB_OK) fail_msg("refused: %s", zb_error_message());
    assert_int_equal(model->module_count, c->module_count);
    assert_int_equal(model->param_count, c->param_count);
    assert_true(model->param_numel == c->param_numel);
    zb_model_destroy(model);
}

/* --- refusals --- */

#define VECTOR_MODEL(modules) HEAD("[4]", "mse") modules TAIL
#define IMAGE_MODEL(modules)  HEAD("[1, 4, 4]", "mse") modules TAIL

static const struct bad_case {
    const char *name;
    const char *text;
    const char *message;
} bad_cases[] = {
    { "syntax", "{'name': 'm',\n 'input': [4}", "m.json:2:13: " },
    { "no object", "[1]", "m.json: is [1], want an object" },
    { "unknown key", "{'name': 'm', 'inputs': [4]}", "m.json: inputs: is not a key" },
    { "key twice", "{'name': 'm', 'name': 'n'}", "m.json: name: is given more than once" },
    { "no name", "{'input': [4]}", "m.json: name: is missing, want a string" },
    { "empty name", "{'name': '', 'input': [4], 'loss': 'mse', 'modules': []}",
      "m.json: model: the name is empty" },
    { "no input", "{'name': 'm'}", "m.json: input: is missing, want an array" },
    { "input is a number", "{'name': 'm', 'input': 4}", "m.json: input: is 4, want an array" },
    { "input has no extent", "{'name': 'm', 'input': []}", "m.json: input: is [], want 1 to 4 extents" },
    { "input has five extents", "{'name': 'm', 'input': [1,1,1,1,1]}",
      "m.json: input: is [1,1,1,1,1], want 1 to 4 extents" },
    { "input is empty", "{'name': 'm', 'input': [4, 0]}", "m.json: input[1]: is 0, want an integer from 1" },
    { "input is not whole", "{'name': 'm', 'input': [4.5]}", "m.json: input[0]: is 4.5, want an integer" },
    { "no loss", "{'name': 'm', 'input': [4]}", "m.json: loss: is missing" },
    { "unknown loss", "{'name': 'm', 'input': [4], 'loss': 'l1'}",
      "m.json: loss: is \"l1\", want cross_entropy or mse" },
    { "no modules", "{'name': 'm', 'input': [4], 'loss': 'mse'}",
      "m.json: modules: is missing, want an array" },
    { "empty list", VECTOR_MODEL(""), "m.json: model \"m\": no module gives an output" },
    { "module is a string", VECTOR_MODEL("'relu'"), "m.json: modules[0]: is \"relu\", want an object" },
    { "no kind", VECTOR_MODEL("{'name': 'r'}"), "m.json: modules[0].kind: is missing" },
    { "unknown kind", VECTOR_MODEL("{'kind': 'gelu', 'name': 'r'}"),
      "m.json: modules[0].kind: is \"gelu\", want linear, conv2d" },
    { "module without a name", VECTOR_MODEL("{'kind': 'relu'}"), "m.json: modules[0].name: is missing" },
    { "key of another kind",
      VECTOR_MODEL("{'kind': 'relu', 'name': 'a'}, {'kind': 'relu', 'name': 'r', 'kernel': 2}"),
      "m.json: modules[1].kernel: is not a key that is known here, want one of: kind, name, input" },
    { "second input as a key",
      VECTOR_MODEL("{'kind': 'add', 'name': 'a', 'input': ['input', 'input'], 'input2': 'input'}"),
      "m.json: modules[0].input2: is not a key" },
    { "linear without out_features", VECTOR_MODEL("{'kind': 'linear', 'name': 'fc'}"),
      "m.json: modules[0].out_features: is missing" },
    { "linear with no outputs", VECTOR_MODEL("{'kind': 'linear', 'name': 'fc', 'out_features': 0}"),
      "m.json: modules[0].out_features: is 0, want an integer from 1" },
    { "conv without out_channels", IMAGE_MODEL("{'kind': 'conv2d', 'name': 'c', 'kernel': 1}"),
      "m.json: modules[0].out_channels: is missing" },
    { "conv without kernel", IMAGE_MODEL("{'kind': 'conv2d', 'name': 'c', 'out_channels': 1}"),
      "m.json: modules[0].kernel: is missing" },
    { "kernel too large for an int", IMAGE_MODEL("{'kind': 'maxpool2d', 'name': 'p', 'kernel': 2147483648}"),
      "m.json: modules[0].kernel: is 2147483648, want an integer from 1 to 2147483647" },
    { "stride 0 said in words", IMAGE_MODEL("{'kind': 'maxpool2d', 'name': 'p', 'kernel': 2, 'stride': 0}"),
      "m.json: modules[0].stride: is 0, want an integer from 1" },
    { "negative padding",
      IMAGE_MODEL("{'kind': 'conv2d', 'name': 'c', 'out_channels': 1, 'kernel': 1, 'padding': -1}"),
      "m.json: modules[0].padding: is -1, want an integer from 0" },
    { "bias as a number", VECTOR_MODEL("{'kind': 'linear', 'name': 'fc', 'out_features': 1, 'bias': 1}"),
      "m.json: modules[0].bias: is 1, want true or false" },
    { "frozen as a string",
      VECTOR_MODEL("{'kind': 'linear', 'name': 'fc', 'out_features': 1, 'frozen': 'yes'}"),
      "m.json: modules[0].frozen: is \"yes\", want true or false" },
    { "tie is null", VECTOR_MODEL("{'kind': 'linear', 'name': 'fc', 'out_features': 1, 'tie': null}"),
      "m.json: modules[0].tie: is null, want a string" },
    { "relu with a list", VECTOR_MODEL("{'kind': 'relu', 'name': 'r', 'input': ['input']}"),
      "m.json: modules[0].input: is [\"input\"], want a string" },
    { "add without input", VECTOR_MODEL("{'kind': 'add', 'name': 'a'}"),
      "m.json: modules[0].input: is missing, want a list of two names" },
    { "add of one", VECTOR_MODEL("{'kind': 'add', 'name': 'a', 'input': 'input'}"),
      "m.json: modules[0].input: is \"input\", want a list of two names" },
    { "add of three", VECTOR_MODEL("{'kind': 'add', 'name': 'a', 'input': ['input', 'input', 'input']}"),
      "want a list of two names" },
    { "add of a number", VECTOR_MODEL("{'kind': 'add', 'name': 'a', 'input': ['input', 3]}"),
      "m.json: modules[0].input[1]: is 3, want a string" },
    { "parameter without shape", VECTOR_MODEL("{'kind': 'parameter', 'name': 'p'}"),
      "m.json: modules[0].shape: is missing" },
    { "parameter of negative extent", VECTOR_MODEL("{'kind': 'parameter', 'name': 'p', 'shape': [2, -1]}"),
      "m.json: modules[0].shape[1]: is -1, want an integer from 0" },
    { "what the builder refuses",
      IMAGE_MODEL("{'kind': 'relu', 'name': 'r'}, {'kind': 'conv2d', 'name': 'c', 'out_channels': 1, "
                  "'kernel': 7, 'padding': 1}"),
      "m.json: modules[1]: module \"c\": kernel 7 is larger than the padded input, 6 x 6" },
    { "what the whole shows",
      VECTOR_MODEL("{'kind': 'relu', 'name': 'lost'}, {'kind': 'relu', 'name': 'r', 'input': 'input'}"),
      "m.json: model \"m\": nothing uses the output of module \"lost\"" },
};

static void check_bad(void **state)
{
    const struct bad_case *c = *state;
    uint64_t live = zb_alloc_get_stats().live;
    zb_model *model = NULL;
    zb_status status = parse(c->text, &model);
    if (status != ZB_INVALID_CONFIG && status != ZB_INVALID_ARGUMENT) fail_msg("status %d", (int)status);
    assert_null(model);
    if (strstr(zb_error_message(), c->message) == NULL)
        fail_msg("the message \"%s\" does not contain \"%s\"", zb_error_message(), c->message);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

static void a_path_that_is_nothing_is_refused(void **state)
{
    (void)state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_open("cifar10-nett", &model), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "model \"cifar10-nett\" is neither a file nor built in"));
    assert_int_equal(zb_model_open(ZB_SOURCE_DIR "/examples", &model), ZB_IO);
    assert_null(model);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    for (int64_t n = 0;; n++) {
        uint64_t live = zb_alloc_get_stats().live;
        zb_model *model = NULL;
        zb_alloc_fail_at(n);
        zb_status status = zb_model_open(ZB_SOURCE_DIR "/examples/models/tied-frozen.json", &model);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        zb_model_destroy(model);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (!fired) {
            assert_true(n > 20);
            return;
        }
        assert_null(model);
    }
}

int main(void)
{
    cjson_allocates_here();
    static const struct CMUnitTest single[] = {
        cmocka_unit_test(every_key_reaches_the_builder),
        cmocka_unit_test(the_description_in_the_docs_is_one),
        cmocka_unit_test(a_path_that_is_nothing_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    static struct CMUnitTest tests[COUNT(single) + COUNT(example_cases) + COUNT(bad_cases)];
    size_t count = 0;
    for (; count < COUNT(single); count++) tests[count] = single[count];
    for (size_t i = 0; i < COUNT(example_cases); i++)
        tests[count++] = (struct CMUnitTest){ example_cases[i].path, check_example, NULL, NULL,
                                              (void *)&example_cases[i] };
    for (size_t i = 0; i < COUNT(bad_cases); i++)
        tests[count++] = (struct CMUnitTest){ bad_cases[i].name, check_bad, NULL, NULL,
                                              (void *)&bad_cases[i] };
    return cmocka_run_group_tests_name("model_json", tests, NULL, NULL);
}
