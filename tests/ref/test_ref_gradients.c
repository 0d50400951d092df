/*
 * Backward against difference quotients of a forward written here, in fp64, without any tolerance.
 *
 * Weights are -1, 0 or 1, inputs and biases small dyadic numbers, the loss a mean of 8 squares, so that no
 * operation of the oracle rounds. Where no relu and no maximum changes sides, the loss is a polynomial of
 * degree 4 at most in each single parameter (2, but for tied ones), and the five-point quotient of such a
 * polynomial is its derivative.
 */
#include "tests/ref/bits.h"

#include <stdio.h>

#include "ref/oracle.h"

enum { ROWS = 2, MAX_NUMEL = 512, MAX_MODULES = 12, DRAWS = 2000 };
#define STEP                                                                                                 \
    0x1p-7 /* two of them move no value by as much as the smallest distance of two different ones            \
            */

/* --- forward in fp64 --- */

typedef struct forward {
    double output[MAX_MODULES][MAX_NUMEL];
    int kink; /* a relu at 0, or a maximum that two elements share */
} forward;

/* The derivative's variable: element `element` of parameter `param`, moved by `by`. */
typedef struct variable {
    int param;
    size_t element;
    double by;
} variable;

static double param_at(const zb_ref_tensors *values, const variable *v, int param, size_t element)
{
    if (param == ZB_NO_PARAM) return 0.0;
    return (double)values->param[param][element] + (param == v->param && element == v->element ? v->by : 0.0);
}

static void linear(const zb_module *m, const zb_ref_tensors *values, const variable *v, const double *x,
                   double *y)
{
    size_t in = zb_shape_numel(&m->in), out = zb_shape_numel(&m->out);
    for (size_t o = 0; o < out; o++) {
        y[o] = param_at(values, v, m->bias, o);
        for (size_t i = 0; i < in; i++) y[o] += x[i] * param_at(values, v, m->weight, o * in + i);
    }
}

static void conv(const zb_module *m, const zb_ref_tensors *values, const variable *v, const double *x,
                 double *y)
{
    const int ic = (int)m->in.extent[0], ih = (int)m->in.extent[1], iw = (int)m->in.extent[2];
    const int oc = (int)m->out.extent[0], oh = (int)m->out.extent[1], ow = (int)m->out.extent[2];
    const int k = m->kernel;
    for (int o = 0; o < oc; o++)
        for (int p = 0; p < oh; p++)
            for (int q = 0; q < ow; q++) {
                double sum = param_at(values, v, m->bias, (size_t)o);
                for (int c = 0; c < ic; c++)
                    for (int r = 0; r < k; r++)
                        for (int s = 0; s < k; s++) {
                            int h = p * m->stride + r - m->padding, w = q * m->stride + s - m->padding;
                            if (h < 0 || h >= ih || w < 0 || w >= iw) continue;
                            sum += x[(c * ih + h) * iw + w] *
                                   param_at(values, v, m->weight, (size_t)(((o * ic + c) * k + r) * k + s));
                        }
                y[(o * oh + p) * ow + q] = sum;
            }
}

static void pool(const zb_module *m, const double *x, double *y, int *kink)
{
    const int ih = (int)m->in.extent[1], iw = (int)m->in.extent[2];
    const int oc = (int)m->out.extent[0], oh = (int)m->out.extent[1], ow = (int)m->out.extent[2];
    for (int c = 0; c < oc; c++)
        for (int p = 0; p < oh; p++)
            for (int q = 0; q < ow; q++) {
                double maximum = -HUGE_VAL;
                int holders = 0;
                for (int r = 0; r < m->kernel; r++)
                    for (int s = 0; s < m->kernel; s++) {
                        double value = x[(c * ih + p * m->stride + r) * iw + q * m->stride + s];
                        holders = value > maximum ? 1 : holders + (value == maximum);
                        maximum = fmax(maximum, value);
                    }
                *kink |= holders > 1;
                y[(c * oh + p) * ow + q] = maximum;
            }
}

static void relu(size_t numel, const double *x, double *y, int *kink)
{
    for (size_t i = 0; i < numel; i++) {
        y[i] = x[i] > 0.0 ? x[i] : 0.0;
        *kink |= x[i] == 0.0;
    }
}

/* Sum of squared differences of one sample. */
static double sample_loss(const zb_model *model, const zb_ref_tensors *values, const variable *v,
                          const float *input, const float *target, forward *f)
{
    double x0[MAX_NUMEL];
    for (size_t i = 0; i < zb_shape_numel(&model->input); i++) x0[i] = (double)input[i];
    for (int i = 0; i < model->module_count; i++) {
        const zb_module *m = &model->modules[i];
        const double *x = m->inputs[0] == ZB_MODEL_INPUT ? x0 : f->output[m->inputs[0]];
        double *y = f->output[i];
        size_t numel = zb_shape_numel(&m->out);
        switch (m->kind) {
        case ZB_MODULE_LINEAR:
            linear(m, values, v, x, y);
            break;
        case ZB_MODULE_CONV2D:
            conv(m, values, v, x, y);
            break;
        case ZB_MODULE_MAXPOOL2D:
            pool(m, x, y, &f->kink);
            break;
        case ZB_MODULE_RELU:
            relu(numel, x, y, &f->kink);
            break;
        case ZB_MODULE_FLATTEN:
            memcpy(y, x, numel * sizeof *y);
            break;
        case ZB_MODULE_ADD: {
            const double *x2 = m->inputs[1] == ZB_MODEL_INPUT ? x0 : f->output[m->inputs[1]];
            for (size_t j = 0; j < numel; j++) y[j] = x[j] + x2[j];
            break;
        }
        case ZB_MODULE_PARAMETER:
            break;
        }
    }
    int last = zb_model_output_module(model);
    double sum = 0.0;
    for (size_t j = 0; j < zb_shape_numel(&model->modules[last].out); j++) {
        double d = f->output[last][j] - (double)target[j];
        sum += d * d;
    }
    return sum;
}

static double loss_of(const zb_model *model, const zb_ref_tensors *values, const variable *v,
                      const zb_batch *batch, int *kink)
{
    static forward f;
    size_t in = zb_shape_numel(&model->input);
    size_t out = zb_shape_numel(&model->modules[zb_model_output_module(model)].out);
    double sum = 0.0;
    f.kink = 0;
    for (size_t n = 0; n < ROWS; n++)
        sum += sample_loss(model, values, v, batch->inputs + n * in, batch->targets + n * out, &f);
    *kink = f.kink;
    return sum / (double)(ROWS * out);
}

static double quotient(const zb_model *model, const zb_ref_tensors *values, int param, size_t element,
                       const zb_batch *batch)
{
    double at[5];
    for (int i = 0; i < 5; i++) {
        const variable v = { param, element, (i - 2) * STEP };
        int kink;
        at[i] = loss_of(model, values, &v, batch, &kink);
    }
    return (8.0 * (at[3] - at[1]) - (at[4] - at[0])) / (12.0 * STEP);
}

/* --- models --- */

static const struct model_case {
    const char *name;
    zb_shape input;
    zb_module_spec modules[MAX_MODULES];
} cases[] = {
    { "convolutions, padding, pool, relu",
      { 3, { 1, 6, 6 } },
      { { .kind = ZB_MODULE_CONV2D, .name = "conv1", .out_channels = 2, .kernel = 3, .padding = 1 },
        { .kind = ZB_MODULE_MAXPOOL2D, .name = "pool", .kernel = 2 },
        { .kind = ZB_MODULE_RELU, .name = "relu1" },
        { .kind = ZB_MODULE_CONV2D, .name = "conv2", .out_channels = 3, .kernel = 2 },
        { .kind = ZB_MODULE_RELU, .name = "relu2" },
        { .kind = ZB_MODULE_FLATTEN, .name = "flatten" },
        { .kind = ZB_MODULE_LINEAR, .name = "head", .out_features = 4 } } },
    { "strides",
      { 3, { 2, 7, 5 } },
      { { .kind = ZB_MODULE_CONV2D,
          .name = "conv1",
          .out_channels = 2,
          .kernel = 3,
          .stride = 2,
          .padding = 2 },
        { .kind = ZB_MODULE_CONV2D,
          .name = "conv2",
          .out_channels = 2,
          .kernel = 2,
          .stride = 2,
          .no_bias = 1 },
        { .kind = ZB_MODULE_FLATTEN, .name = "flatten" },
        { .kind = ZB_MODULE_LINEAR, .name = "head", .out_features = 4 } } },
    { "tied weights, a residual, a frozen head",
      { 1, { 4 } },
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 4 },
        { .kind = ZB_MODULE_RELU, .name = "relu" },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .tie = "a", .out_features = 4 },
        { .kind = ZB_MODULE_ADD, .name = "sum", .input = "relu", .input2 = "b" },
        { .kind = ZB_MODULE_LINEAR, .name = "head", .out_features = 4, .frozen = 1 } } },
    { "an activation added to itself and used again",
      { 1, { 3 } },
      { { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 3 },
        { .kind = ZB_MODULE_ADD, .name = "twice", .input = "a", .input2 = "a" },
        { .kind = ZB_MODULE_ADD, .name = "thrice", .input = "twice", .input2 = "a" },
        { .kind = ZB_MODULE_LINEAR, .name = "head", .out_features = 4 } } },
};

static zb_model *build(const struct model_case *c)
{
    zb_model *model;
    assert_int_equal(zb_model_create(c->name, &c->input, ZB_LOSS_MSE, &model), ZB_OK);
    for (int i = 0; i < MAX_MODULES && c->modules[i].name != NULL; i++)
        if (zb_model_add(model, &c->modules[i]) != ZB_OK) fail_msg("%s", zb_error_message());
    if (zb_model_finish(model) != ZB_OK) fail_msg("%s", zb_error_message());
    return model;
}

static float draw(uint32_t stream, uint32_t *drawn, int low, int high)
{
    return (float)(low + (int)(zb_random_bits(3, stream, (*drawn)++) % (uint32_t)(high - low + 1)));
}

/* Weights -1, 0, 1; biases odd sixteenths, so that no relu is at 0; inputs eighths. */
static void draw_values(const zb_model *model, uint32_t stream, zb_ref_tensors *values, float *inputs,
                        float *targets)
{
    uint32_t drawn = 0;
    for (int p = 0; p < model->param_count; p++)
        for (size_t i = 0; i < model->params[p].numel; i++)
            values->param[p][i] = model->params[p].shape.dims == 1
                                      ? 0.0625f * (1.0f + 2.0f * draw(stream, &drawn, -2, 1))
                                      : draw(stream, &drawn, -1, 1);
    for (size_t i = 0; i < ROWS * zb_shape_numel(&model->input); i++)
        inputs[i] = 0.125f * draw(stream, &drawn, -8, 8);
    for (size_t i = 0; i < ROWS * 4; i++) targets[i] = draw(stream, &drawn, -3, 3);
}

static void compare_all(const zb_model *model, const zb_ref_tensors *values, const zb_batch *batch)
{
    zb_ref_pass pass;
    zb_ref_tensors gradients;
    assert_int_equal(zb_ref_pass_create(model, ZB_FP32, ROWS, &pass), ZB_OK);
    assert_int_equal(zb_ref_tensors_create(model, &gradients), ZB_OK);

    int kink;
    double loss = loss_of(model, values, &(variable){ 0, 0, 0.0 }, batch, &kink);
    assert_true((double)zb_ref_forward(&pass, values, batch) == loss);

    const float divisor = 2.0f;
    fill_random(gradients.data, gradients.numel, 9); /* what was there before must not matter */
    zb_ref_backward(&pass, values, batch, 1.0f, divisor, &gradients);
    int nonzero = 0;
    for (int p = 0; p < model->param_count; p++)
        for (size_t i = 0; i < model->params[p].numel; i++) {
            double want = model->params[p].requires_grad ? quotient(model, values, p, i, batch) / divisor
                                                         : 0.0;
            double got = (double)gradients.param[p][i];
            if (got != want) fail_msg("%s[%zu]: %a, want %a", model->params[p].name, i, got, want);
            nonzero += got != 0.0;
        }
    assert_true(nonzero > 8);
    zb_ref_tensors_destroy(&gradients);
    zb_ref_pass_destroy(&pass);
}

static void check_gradients(void **state)
{
    zb_model *model = build(*state);
    zb_ref_tensors values;
    assert_int_equal(zb_ref_tensors_create(model, &values), ZB_OK);
    float inputs[MAX_NUMEL], targets[ROWS * 4];
    const zb_batch batch = { .rows = ROWS, .inputs = inputs, .targets = targets };

    int compared = 0;
    for (uint32_t stream = 0; stream < DRAWS && compared < 3; stream++) {
        int kink;
        draw_values(model, stream, &values, inputs, targets);
        loss_of(model, &values, &(variable){ 0, 0, 0.0 }, &batch, &kink);
        if (kink) continue;
        compare_all(model, &values, &batch);
        compared++;
    }
    assert_int_equal(compared, 3);
    zb_ref_tensors_destroy(&values);
    zb_model_destroy(model);
}

/* --- 16 bits: nothing that a pass stores has more digits than its type --- */

static size_t count_wide(zb_dtype dtype, const float *x, size_t numel)
{
    size_t wide = 0;
    for (size_t i = 0; i < numel; i++) wide += !same_bits(x[i], zb_ref_round(dtype, x[i]));
    return wide;
}

static size_t count_wide_in_pass(const zb_ref_pass *pass, zb_dtype dtype, const zb_ref_tensors *gradients)
{
    const zb_model *model = pass->model;
    size_t wide = count_wide(dtype, gradients->data, gradients->numel);
    for (int m = 0; m < model->module_count; m++) {
        const size_t numel = ROWS * zb_shape_numel(&model->modules[m].out);
        wide += count_wide(dtype, pass->output[m], numel) + count_wide(dtype, pass->gradient[m], numel);
    }
    return wide;
}

static void check_16_bit(void **state)
{
    static const zb_dtype dtypes[] = { ZB_FP16, ZB_BF16 };
    zb_model *model = build(*state);
    zb_ref_tensors values, gradients;
    zb_ref_pass wide, narrow;
    float inputs[MAX_NUMEL], targets[ROWS * 4];
    const zb_batch batch = { .rows = ROWS, .inputs = inputs, .targets = targets };
    assert_int_equal(zb_ref_tensors_create(model, &values), ZB_OK);
    assert_int_equal(zb_ref_tensors_create(model, &gradients), ZB_OK);
    for (size_t d = 0; d < 2; d++) {
        assert_int_equal(zb_ref_pass_create(model, ZB_FP32, ROWS, &wide), ZB_OK);
        assert_int_equal(zb_ref_pass_create(model, dtypes[d], ROWS, &narrow), ZB_OK);
        fill_random(values.data, values.numel, 1);
        zb_ref_round_all(dtypes[d], values.data, values.numel);
        fill_random(inputs, ROWS * zb_shape_numel(&model->input), 2);
        fill_random(targets, ROWS * 4, 3);

        zb_ref_forward(&narrow, &values, &batch);
        zb_ref_backward(&narrow, &values, &batch, 64.0f, 3.0f, &gradients);
        assert_int_equal(count_wide_in_pass(&narrow, dtypes[d], &gradients), 0);

        /* The same in fp32 has more digits; of the first module, rounding them gives the same. */
        zb_ref_round_all(dtypes[d], inputs, ROWS * zb_shape_numel(&model->input));
        zb_ref_forward(&wide, &values, &batch);
        zb_ref_backward(&wide, &values, &batch, 64.0f, 3.0f, &gradients);
        assert_true(count_wide_in_pass(&wide, dtypes[d], &gradients) > 0);
        const size_t numel = ROWS * zb_shape_numel(&model->modules[0].out);
        zb_ref_round_all(dtypes[d], wide.output[0], numel);
        assert_same_floats("the first module", wide.output[0], narrow.output[0], numel);
        zb_ref_pass_destroy(&narrow);
        zb_ref_pass_destroy(&wide);
    }
    zb_ref_tensors_destroy(&gradients);
    zb_ref_tensors_destroy(&values);
    zb_model_destroy(model);
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

int main(void)
{
    struct CMUnitTest tests[2 * COUNT(cases)];
    char names[COUNT(cases)][ZB_NAME_BYTES];
    for (size_t i = 0; i < COUNT(cases); i++) {
        snprintf(names[i], sizeof names[i], "16 bit: %s", cases[i].name);
        tests[2 * i] = (struct CMUnitTest){ cases[i].name, check_gradients, NULL, NULL, (void *)&cases[i] };
        tests[2 * i + 1] = (struct CMUnitTest){ names[i], check_16_bit, NULL, NULL, (void *)&cases[i] };
    }
    return cmocka_run_group_tests_name("ref_gradients", tests, NULL, NULL);
}
