/*
 * Whole nets against PyTorch: the loss and the gradient of every parameter, after one forward and backward
 * pass.
 *
 * Weights, inputs and labels come from zerobit's counter-based generator, which the script that made the
 * recording writes out again. Bounds are carried through the net in fp64 (bounded.h), errors of operands
 * included; where a relu's sign or a pool's maximum is not certain, both outcomes are inside. PyTorch, the
 * oracle and the engine are each held to them.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/random.h>

#include "ref/oracle.h"
#include "tests/golden/bounded.h"
#include "tests/golden/recorded.h"
#include "tests/kernels/support.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define NETS         ZB_SOURCE_DIR "/fixtures/pytorch-layers/nets.safetensors"
#define MODELS       ZB_SOURCE_DIR "/examples/models/"

enum { WEIGHT_SEED = 3, INPUT_SEED = 5 }; /* as in make.py */

static const struct net_case {
    const char *test, *recorded, *path;
    int64_t rows;
    zb_dtype dtype;
    int exact; /* whole numbers, with which nothing rounds */
} cases[] = {
    { "cifar10-net, fp32", "cifar10-net", "cifar10-net", 4, ZB_FP32, 0 },
    { "mlp, fp32", "mlp:13-32-17-5", "mlp:13-32-17-5", 6, ZB_FP32, 0 },
    { "mlp, fp16", "mlp:13-32-17-5", "mlp:13-32-17-5", 6, ZB_FP16, 0 },
    { "mlp, bf16", "mlp:13-32-17-5", "mlp:13-32-17-5", 6, ZB_BF16, 0 },
    { "mlp-mse, fp32", "mlp-mse:13-32-17-5", "mlp-mse:13-32-17-5", 6, ZB_FP32, 0 },
    { "mlp-mse, fp16", "mlp-mse:13-32-17-5", "mlp-mse:13-32-17-5", 6, ZB_FP16, 0 },
    { "mlp-mse, bf16", "mlp-mse:13-32-17-5", "mlp-mse:13-32-17-5", 6, ZB_BF16, 0 },
    { "residual-cnn, fp32", "residual-cnn.json", MODELS "residual-cnn.json", 3, ZB_FP32, 0 },
    { "residual-cnn, fp16", "residual-cnn.json", MODELS "residual-cnn.json", 3, ZB_FP16, 0 },
    { "residual-cnn, bf16", "residual-cnn.json", MODELS "residual-cnn.json", 3, ZB_BF16, 0 },
    { "exact-cnn", "exact-cnn.json", ZB_SOURCE_DIR "/fixtures/pytorch-layers/exact-cnn.json", 4, ZB_FP32, 1 },
};

static zb_safetensors file;

/* --- a net and what goes into it --- */

typedef struct net {
    const struct net_case *c;
    zb_model *model;
    zb_weights weights; /* as initialised, not rounded */
    zb_batch batch;
    float *inputs, *targets;
    int32_t *labels;
} net;

static void *room(size_t numel, size_t bytes)
{
    void *data = zb_alloc_array(numel, bytes);
    assert_non_null(data);
    return data;
}

/* -2 .. 2 */
static float whole_number(uint64_t seed, uint32_t stream, size_t i)
{
    return (float)(zb_random_bits(seed, stream, i) % 5) - 2.0f;
}

/* About eight of an output's weights are 1 or -1, the others 0; a bias is a small whole number. */
static float sparse_sign(const zb_param *param, uint32_t stream, size_t i)
{
    if (param->shape.dims == 1) return whole_number(WEIGHT_SEED, stream, i);
    const size_t fan_in = param->numel / (size_t)param->shape.extent[0];
    const size_t draw = zb_random_bits(WEIGHT_SEED, stream, i) % fan_in;
    return draw < 4 ? -1.0f : draw < 8 ? 1.0f : 0.0f;
}

/* Inputs and targets: whole numbers, or uniform in [-1, 1). */
static float *numbers(const struct net_case *c, uint32_t stream, size_t numel)
{
    float *values = room(numel, sizeof *values);
    for (size_t i = 0; i < numel; i++)
        values[i] = c->exact ? whole_number(INPUT_SEED, stream, i)
                             : 2.0f * zb_random_uniform(INPUT_SEED, stream, i) - 1.0f;
    return values;
}

static net net_open(const struct net_case *c)
{
    net n = { .c = c };
    assert_ok(zb_model_open(c->path, &n.model));
    assert_ok(zb_weights_from_seed(n.model, WEIGHT_SEED, &n.weights));
    for (int p = 0; c->exact && p < n.model->param_count; p++)
        for (size_t i = 0; i < n.model->params[p].numel; i++)
            n.weights.values[p][i] = sparse_sign(&n.model->params[p], (uint32_t)p, i);
    const size_t rows = (size_t)c->rows;
    const size_t outputs = zb_shape_numel(&n.model->modules[zb_model_output_module(n.model)].out);
    n.inputs = numbers(c, 0, rows * zb_shape_numel(&n.model->input));
    n.batch = (zb_batch){ .rows = c->rows, .inputs = n.inputs };
    if (n.model->loss == ZB_LOSS_MSE) {
        n.batch.targets = n.targets = numbers(c, 1, rows * outputs);
    } else {
        n.batch.labels = n.labels = room(rows, sizeof *n.labels);
        for (size_t i = 0; i < rows; i++) n.labels[i] = (int32_t)(zb_random_bits(INPUT_SEED, 1, i) % outputs);
    }
    return n;
}

static void net_close(net *n)
{
    zb_free(n->inputs), zb_free(n->targets), zb_free(n->labels);
    zb_weights_destroy(&n->weights);
    zb_model_destroy(n->model);
}

/* What one pass gives: all gradients behind one another, in parameter order. */
typedef struct result {
    float loss;
    float *gradients; /* [param_numel] */
} result;

/* --- by the oracle, and by the engine --- */

static result by_oracle(const net *n)
{
    zb_ref_tensors values, gradients;
    zb_ref_pass pass;
    assert_ok(zb_ref_tensors_create(n->model, &values));
    assert_ok(zb_ref_tensors_create(n->model, &gradients));
    assert_ok(zb_ref_pass_create(n->model, n->c->dtype, (size_t)n->c->rows, &pass));
    for (int p = 0; p < n->model->param_count; p++)
        memcpy(values.param[p], n->weights.values[p], n->model->params[p].numel * sizeof(float));
    zb_ref_round_all(n->c->dtype, values.data, values.numel);
    result r = { .gradients = room(n->model->param_numel, sizeof(float)) };
    r.loss = zb_ref_forward(&pass, &values, &n->batch);
    zb_ref_backward(&pass, &values, &n->batch, 1.0f, 1.0f, &gradients);
    memcpy(r.gradients, gradients.data, n->model->param_numel * sizeof(float));
    zb_ref_pass_destroy(&pass);
    zb_ref_tensors_destroy(&values), zb_ref_tensors_destroy(&gradients);
    return r;
}

typedef struct gradient_collector {
    const zb_model *model;
    float *gradients;
    size_t seen;
} gradient_collector;

static zb_status collect_gradient(void *user, const zb_observation *o)
{
    gradient_collector *collector = user;
    if (o->quantity != ZB_Q_GRAD) return ZB_OK;
    float *to = collector->gradients + o->first;
    for (int p = 0; p < o->param; p++) to += collector->model->params[p].numel;
    for (size_t i = 0; i < o->numel; i++)
        to[i] = o->dtype == ZB_FP32 ? ((const float *)o->data)[i]
                                    : (float)plain_from_half(o->dtype, ((const uint16_t *)o->data)[i]);
    collector->seen += o->numel;
    return ZB_OK;
}

static zb_config *config_for(const net *n)
{
    static const char *const precision[] = { [ZB_FP32] = "",
                                             [ZB_FP16] = "\"fp16\": {\"enabled\": true, \"loss_scale\": 1},",
                                             [ZB_BF16] = "\"bf16\": {\"enabled\": true}," };
    char text[512];
    zb_config *config = NULL;
    const int length = snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": %d, %s \"optimizer\": {\"type\": \"SGD\", "
        "\"params\": {\"lr\": 0.1}}, \"zero_optimization\": {\"stage\": 0}}",
        (int)n->c->rows, precision[n->c->dtype]);
    assert_ok(zb_config_parse(text, (size_t)length, "net.json", &config));
    return config;
}

/* In a world of one, stage 0: the reduced gradient is the pass's. */
static result by_engine(const net *n)
{
    zb_config *config = config_for(n);
    zb_device *device;
    zb_comm *comm;
    zb_engine *engine;
    assert_ok(zb_device_cpu_create(&device));
    assert_ok(zb_comm_self_create(&comm));
    assert_ok(zb_initialize(&(zb_engine_options){ .config = config,
                                                  .model = n->model,
                                                  .weights = &n->weights,
                                                  .device = device,
                                                  .comm = comm,
                                                  .stage = -1,
                                                  .dtype = -1 },
                            &engine));
    result r = { .gradients = room(n->model->param_numel, sizeof(float)) };
    gradient_collector collector = { n->model, r.gradients, 0 };
    assert_ok(zb_engine_forward(engine, &n->batch, &r.loss));
    assert_ok(zb_engine_backward(engine));
    assert_ok(zb_engine_step(engine));
    assert_ok(zb_engine_observe(engine, &(zb_observer){ collect_gradient, &collector }));
    assert_int_equal(collector.seen, n->model->param_numel);
    zb_engine_destroy(engine);
    zb_comm_destroy(comm);
    zb_device_destroy(device);
    zb_config_destroy(config);
    return r;
}

/* --- in fp64, with bounds --- */

typedef struct net_bounds {
    bounded input;
    bounded *params, *outputs; /* [param_count], [module_count] */
    bounded loss;
    bounded *output_gradients, *gradients; /* the same; numel 0 where none has arrived */
    int pytorch_cpu;                       /* with what PyTorch's CPU back end may add */
} net_bounds;

static const bounded *input_of(const net_bounds *b, int input)
{
    return input == ZB_MODEL_INPUT ? &b->input : &b->outputs[input];
}

static bounded copy_of(const bounded *from)
{
    bounded to = bounded_create(from->numel);
    memcpy(to.value, from->value, from->numel * sizeof(double));
    memcpy(to.error, from->error, from->numel * sizeof(double));
    return to;
}

static bounded forward_module(const net *n, const net_bounds *b, const zb_module *module)
{
    const size_t rows = (size_t)n->c->rows;
    const bounded *x = input_of(b, module->inputs[0]);
    bounded y;
    switch (module->kind) {
    case ZB_MODULE_RELU:
        return bounded_relu_forward(x);
    case ZB_MODULE_MAXPOOL2D:
        return bounded_maxpool2d_forward(module, rows, x);
    case ZB_MODULE_FLATTEN:
        return copy_of(x);
    case ZB_MODULE_ADD:
        y = bounded_add(x, input_of(b, module->inputs[1]));
        break;
    default:
        y = bounded_forward(module, rows, x, &b->params[module->weight],
                            module->bias == ZB_NO_PARAM ? NULL : &b->params[module->bias]);
    }
    bounded_store(n->c->dtype, &y);
    return y;
}

/* Takes the contribution: the first is kept, a later one added. */
static void hand_over(zb_dtype dtype, bounded contribution, bounded *gradient)
{
    if (gradient->numel == 0) {
        *gradient = contribution;
        return;
    }
    bounded sum = bounded_add(gradient, &contribution);
    bounded_store(dtype, &sum);
    for (size_t i = 0; i < sum.numel; i++)
        sum.magnitude[i] = gradient->magnitude[i] + contribution.magnitude[i];
    bounded_destroy(gradient), bounded_destroy(&contribution);
    *gradient = sum;
}

static bounded closed(const net *n, const net_bounds *b, const zb_module *module, bounded_output output,
                      bounded gradient)
{
    for (size_t i = 0; b->pytorch_cpu && i < gradient.numel; i++)
        gradient.error[i] += bounded_pytorch_cpu(module, n->c->dtype, (size_t)n->c->rows, output, &gradient,
                                                 i);
    bounded_store(n->c->dtype, &gradient);
    return gradient;
}

static bounded backward_input(const net *n, const net_bounds *b, const zb_module *module, const bounded *dy)
{
    const size_t rows = (size_t)n->c->rows;
    const bounded *x = input_of(b, module->inputs[0]);
    switch (module->kind) {
    case ZB_MODULE_RELU:
        return bounded_relu_backward(x, dy);
    case ZB_MODULE_MAXPOOL2D:
        return bounded_maxpool2d_backward(module, rows, x, dy);
    case ZB_MODULE_FLATTEN:
    case ZB_MODULE_ADD:
        return copy_of(dy);
    default:
        return closed(n, b, module, BOUNDED_DX,
                      bounded_backward_input(module, rows, dy, &b->params[module->weight]));
    }
}

static void backward_module(const net *n, net_bounds *b, int m)
{
    const zb_module *module = &n->model->modules[m];
    const size_t rows = (size_t)n->c->rows;
    const bounded *dy = &b->output_gradients[m], *x = input_of(b, module->inputs[0]);
    for (int i = 0; i < module->input_count; i++)
        if (module->inputs[i] != ZB_MODEL_INPUT)
            hand_over(n->c->dtype, backward_input(n, b, module, dy), &b->output_gradients[module->inputs[i]]);
    if (module->weight != ZB_NO_PARAM)
        hand_over(n->c->dtype, closed(n, b, module, BOUNDED_DW, bounded_backward_weight(module, rows, dy, x)),
                  &b->gradients[module->weight]);
    if (module->bias != ZB_NO_PARAM)
        hand_over(n->c->dtype, closed(n, b, module, BOUNDED_DB, bounded_backward_bias(module, rows, dy)),
                  &b->gradients[module->bias]);
}

static bounded rounded(zb_dtype dtype, const float *values, size_t numel)
{
    bounded b = bounded_of(values, numel);
    for (size_t i = 0; i < numel; i++) b.value[i] = (double)plain_rounded(dtype, values[i]);
    return b;
}

static net_bounds bounds_of(const net *n, int pytorch_cpu)
{
    const zb_model *model = n->model;
    const zb_dtype dtype = n->c->dtype;
    const size_t rows = (size_t)n->c->rows, modules = (size_t)model->module_count;
    const size_t params = (size_t)model->param_count;
    net_bounds b = {
        .input = rounded(dtype, n->inputs, rows * zb_shape_numel(&model->input)),
        .params = room(params, sizeof(bounded)),
        .outputs = room(modules, sizeof(bounded)),
        .output_gradients = room(modules, sizeof(bounded)),
        .gradients = room(params, sizeof(bounded)),
        .pytorch_cpu = pytorch_cpu,
    };
    memset(b.output_gradients, 0, modules * sizeof(bounded));
    memset(b.gradients, 0, params * sizeof(bounded));
    for (size_t p = 0; p < params; p++)
        b.params[p] = rounded(dtype, n->weights.values[p], model->params[p].numel);
    for (size_t m = 0; m < modules; m++) b.outputs[m] = forward_module(n, &b, &model->modules[m]);

    const int last = zb_model_output_module(model);
    const bounded *y = &b.outputs[last];
    bounded *dy = &b.output_gradients[last];
    if (model->loss == ZB_LOSS_MSE) {
        b.loss = bounded_mse(y, n->targets);
        *dy = bounded_mse_backward(y, n->targets, 1, 1);
    } else {
        b.loss = bounded_cross_entropy(rows, y->numel / rows, y, n->labels);
        *dy = bounded_cross_entropy_backward(rows, y->numel / rows, y, n->labels, 1, 1);
    }
    bounded_store(dtype, dy);
    for (int m = model->module_count - 1; m >= 0; m--) backward_module(n, &b, m);
    return b;
}

static void bounds_destroy(const net *n, net_bounds *b)
{
    for (int m = 0; m < n->model->module_count; m++)
        bounded_destroy(&b->outputs[m]), bounded_destroy(&b->output_gradients[m]);
    for (int p = 0; p < n->model->param_count; p++)
        bounded_destroy(&b->params[p]), bounded_destroy(&b->gradients[p]);
    bounded_destroy(&b->input), bounded_destroy(&b->loss);
    zb_free(b->params), zb_free(b->outputs), zb_free(b->output_gradients), zb_free(b->gradients);
}

/* --- judging --- */

/* Distance in units of what is allowed. Bounds contain the rounding of what is stored already. */
static double distance_of(const bounded *b, size_t i, float got)
{
    const double off = fabs((double)got - b->value[i]);
    return off == 0 ? 0 : off / b->error[i];
}

/* The largest distance over the loss and all gradients, and where it is. */
static double worst_distance(const net *n, const net_bounds *b, const result *r, char *where,
                             size_t where_bytes)
{
    double worst = distance_of(&b->loss, 0, r->loss);
    const float *got = r->gradients;
    snprintf(where, where_bytes, "loss %.9g, true %.9g +- %.2g", (double)r->loss, b->loss.value[0],
             b->loss.error[0]);
    for (int p = 0; p < n->model->param_count; got += n->model->params[p++].numel)
        for (size_t i = 0; i < n->model->params[p].numel; i++) {
            const double distance = distance_of(&b->gradients[p], i, got[i]);
            if (distance <= worst) continue;
            worst = distance;
            snprintf(where, where_bytes, "%s[%zu] %.9g, true %.9g +- %.2g", n->model->params[p].name, i,
                     (double)got[i], b->gradients[p].value[i], b->gradients[p].error[i]);
        }
    return worst;
}

/* PyTorch's results, and the fp64 values that go with them; the latter may be missing. */
typedef struct recording {
    result r;
    recorded loss_rest;
    recorded *rests; /* [param_count] */
} recording;

static recording recording_open(const net *n)
{
    const char *name = n->c->recorded, *dtype = zb_dtype_name(n->c->dtype);
    recorded loss = recorded_get(&file, "%s.%s.loss", name, dtype);
    recording made = { .r = { loss.values[0], room(n->model->param_numel, sizeof(float)) },
                       .loss_rest = recorded_find(&file, "%s.%s.loss.rest", name, dtype),
                       .rests = room((size_t)n->model->param_count, sizeof(recorded)) };
    recorded_destroy(&loss);
    float *to = made.r.gradients;
    for (int p = 0; p < n->model->param_count; to += n->model->params[p++].numel) {
        const char *param = n->model->params[p].name;
        recorded gradient = recorded_get(&file, "%s.%s.%s", name, dtype, param);
        made.rests[p] = recorded_find(&file, "%s.%s.%s.rest", name, dtype, param);
        assert_int_equal(gradient.found->numel, n->model->params[p].numel);
        assert_int_equal(gradient.found->dtype, n->c->dtype);
        memcpy(to, gradient.values, n->model->params[p].numel * sizeof *to);
        recorded_destroy(&gradient);
    }
    return made;
}

static void recording_close(const net *n, recording *made)
{
    zb_free(made->r.gradients);
    recorded_destroy(&made->loss_rest);
    for (int p = 0; p < n->model->param_count; p++) recorded_destroy(&made->rests[p]);
    zb_free(made->rests);
}

/* A difference was recorded in 16 bits or in fp32: a part in 256 of it may be lost. */
static void assert_same_truth(const char *what, size_t i, double value, double error, float torch, float rest)
{
    const double recorded_truth = (double)torch + (double)rest;
    if (fabs(recorded_truth - value) > fabs((double)rest) / 256 + error / 64)
        fail_msg("the true value of %s[%zu] is %.17g, PyTorch in fp64 has %.17g", what, i, value,
                 recorded_truth);
}

/* What bounds are around is what PyTorch computes in fp64, from which the bounds were not made. */
static void assert_same_truths(const net *n, const net_bounds *b, const recording *torch)
{
    int compared = 0;
    assert_same_truth("loss", 0, b->loss.value[0], b->loss.error[0], torch->r.loss,
                      torch->loss_rest.values[0]);
    const float *gradient = torch->r.gradients;
    for (int p = 0; p < n->model->param_count; gradient += n->model->params[p++].numel) {
        if (torch->rests[p].found == NULL) continue;
        compared++;
        for (size_t i = 0; i < n->model->params[p].numel; i++)
            assert_same_truth(n->model->params[p].name, i, b->gradients[p].value[i], b->gradients[p].error[i],
                              gradient[i], torch->rests[p].values[i]);
    }
    assert_true(compared >= n->model->param_count - 1); /* the largest of cifar10-net was left out */
}

static void assert_near(const net *n, const net_bounds *b, const result *r, const char *who)
{
    char where[256];
    if (worst_distance(n, b, r, where, sizeof where) > 1) fail_msg("%s: %s", who, where);
}

/*
 * Whole multiples of 2^-5 (the squared error is divided by 64, its gradient by 32), and no sum's terms come
 * to 2^24 of them: whatever the order, nothing rounds.
 */
static void assert_nothing_rounds(const bounded *arrays, int count)
{
    for (int a = 0; a < count; a++)
        for (size_t i = 0; i < arrays[a].numel; i++) assert_true(arrays[a].magnitude[i] < 0x1p24 / 32);
}

static void assert_exact(const net *n, const net_bounds *b, const result *r, const char *who)
{
    const float *got = r->gradients;
    if ((double)r->loss != b->loss.value[0])
        fail_msg("%s: loss is %.9g, want %.9g", who, (double)r->loss, b->loss.value[0]);
    for (int p = 0; p < n->model->param_count; got += n->model->params[p++].numel)
        for (size_t i = 0; i < n->model->params[p].numel; i++)
            if ((double)got[i] != b->gradients[p].value[i])
                fail_msg("%s: %s[%zu] is %.9g, want %.9g", who, n->model->params[p].name, i, (double)got[i],
                         b->gradients[p].value[i]);
}

static void check_net(void **state)
{
    net n = net_open(*state);
    net_bounds bounds = bounds_of(&n, 0), cpu_bounds = bounds_of(&n, 1);
    recording torch = recording_open(&n);
    result oracle = by_oracle(&n), engine = by_engine(&n);
    if (n.c->exact) {
        assert_nothing_rounds(bounds.outputs, n.model->module_count);
        assert_nothing_rounds(bounds.output_gradients, n.model->module_count);
        assert_nothing_rounds(bounds.gradients, n.model->param_count);
        assert_exact(&n, &bounds, &torch.r, "PyTorch");
        assert_exact(&n, &bounds, &oracle, "oracle");
        assert_exact(&n, &bounds, &engine, "engine");
    } else {
        assert_same_truths(&n, &bounds, &torch);
        assert_near(&n, &cpu_bounds, &torch.r, "PyTorch");
        assert_near(&n, &bounds, &oracle, "oracle");
        assert_near(&n, &bounds, &engine, "engine");
    }
    zb_free(oracle.gradients), zb_free(engine.gradients);
    recording_close(&n, &torch);
    bounds_destroy(&n, &bounds), bounds_destroy(&n, &cpu_bounds);
    net_close(&n);
}

/* --- faults: a net that is a little wrong, which the comparison must notice --- */

static void next_label(net *n)
{
    n->labels[0] = (n->labels[0] + 1) % 5;
}
static void drop_sample(net *n)
{
    n->batch.rows--;
}
static void change_weight(net *n) /* by 1 % */
{
    n->weights.values[0][0] *= 1.01f;
}
static void drop_bias(net *n) /* of the first layer */
{
    memset(n->weights.values[1], 0, n->model->params[1].numel * sizeof(float));
}
static void move_input(net *n)
{
    memmove(n->inputs + 1, n->inputs, (zb_shape_numel(&n->model->input) - 1) * sizeof *n->inputs);
}
static void change_target(net *n) /* by 1 % */
{
    n->targets[0] *= 1.01f;
}
static void shorten_weights(net *n) /* to the 11 bits of TF32 */
{
    for (int p = 0; p < n->model->param_count; p++)
        zb_ref_round_all(ZB_FP16, n->weights.values[p], n->model->params[p].numel);
}

static const struct fault {
    const char *name, *test;
    double times;
    void (*damage)(net *n);
} faults[] = {
    { "cifar10-net: one wrong label", "cifar10-net, fp32", 100, next_label },
    { "cifar10-net: no bias in the first layer", "cifar10-net, fp32", 100, drop_bias },
    { "cifar10-net: an image moved by one", "cifar10-net, fp32", 100, move_input },
    { "cifar10-net: a sample missing", "cifar10-net, fp32", 100, drop_sample },
    { "mlp: one wrong label", "mlp, fp32", 1e4, next_label },
    { "mlp: one weight off by 1 %", "mlp, fp32", 100, change_weight },
    { "mlp: weights as TF32", "mlp, fp32", 10, shorten_weights },
    { "mlp: one wrong label, fp16", "mlp, fp16", 10, next_label },
    { "mlp: one wrong label, bf16", "mlp, bf16", 2, next_label },
    { "mlp-mse: one target off by 1 %", "mlp-mse, fp32", 100, change_target },
    { "mlp-mse: a sample missing, fp16", "mlp-mse, fp16", 10, drop_sample },
    { "residual-cnn: one weight off by 1 %", "residual-cnn, fp32", 3, change_weight },
    { "residual-cnn: no bias in the first layer", "residual-cnn, fp32", 100, drop_bias },
    { "residual-cnn: a sample missing, fp16", "residual-cnn, fp16", 2, drop_sample },
};

static void check_fault(void **state)
{
    const struct fault *f = *state;
    const struct net_case *c = NULL;
    for (size_t i = 0; i < COUNT(cases); i++)
        if (strcmp(cases[i].test, f->test) == 0) c = &cases[i];
    assert_non_null(c);
    net n = net_open(c), damaged = net_open(c);
    net_bounds bounds = bounds_of(&n, 0);
    f->damage(&damaged);
    result r = by_oracle(&damaged);
    char where[256];
    const double distance = worst_distance(&n, &bounds, &r, where, sizeof where);
    if (!(distance >= f->times))
        fail_msg("only %.3g times too far, want %.3g: %s", distance, f->times, where);
    zb_free(r.gradients);
    bounds_destroy(&n, &bounds);
    net_close(&damaged), net_close(&n);
}

static int open_recording(void **state)
{
    (void)state;
    assert_ok(zb_safetensors_open(NETS, &file));
    return 0;
}

static int close_recording(void **state)
{
    (void)state;
    zb_safetensors_close(&file);
    return 0;
}

int main(void)
{
    struct CMUnitTest tests[COUNT(cases) + COUNT(faults)];
    for (size_t i = 0; i < COUNT(cases); i++)
        tests[i] = (struct CMUnitTest){ cases[i].test, check_net, NULL, NULL, (void *)&cases[i] };
    for (size_t i = 0; i < COUNT(faults); i++)
        tests[COUNT(cases) + i] = (struct CMUnitTest){ faults[i].name, check_fault, NULL, NULL,
                                                       (void *)&faults[i] };
    return _cmocka_run_group_tests("pytorch_nets", tests, COUNT(tests), open_recording, close_recording);
}
