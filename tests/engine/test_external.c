/* Micro-batches whose gradients come from outside: the same bits and the same calls as with a backward of the
 * engine's own, and models that have none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "tests/engine/rig.h"

enum { STEPS = 3, PARAMS_MAX = 16, NUMEL_MAX = 512 };

typedef struct gradients {
    float data[PARAMS_MAX][NUMEL_MAX];
    const float *param[PARAMS_MAX];
    int64_t calls[ZB_COLLECTIVE_COUNT];
} gradients;

static zb_status note(void *user, const zb_observation *o)
{
    gradients *g = user;
    if (o->quantity == ZB_Q_CALLS) memcpy(g->calls, o->data, sizeof g->calls);
    if (o->quantity != ZB_Q_GRAD) return ZB_OK;
    assert_true(o->param < PARAMS_MAX && o->first + o->numel <= NUMEL_MAX && o->dtype == ZB_FP32);
    memcpy(g->data[o->param] + o->first, o->data, o->numel * sizeof(float));
    g->param[o->param] = g->data[o->param];
    return ZB_OK;
}

static gradients *observe(zb_engine *engine)
{
    gradients *g = calloc(1, sizeof *g);
    assert_non_null(g);
    for (int p = 0; p < PARAMS_MAX; p++) g->param[p] = g->data[p];
    if (zb_engine_observe(engine, &(zb_observer){ note, g }) != ZB_OK) fail_msg("%s", zb_error_message());
    return g;
}

/* Which collectives a rank starts, in order. */
typedef struct call_log {
    char text[4096];
    size_t used;
} call_log;

static zb_status log_call(void *user, const zb_comm *comm, const zb_collective *c)
{
    call_log *log = user;
    (void)comm;
    log->used += (size_t)snprintf(log->text + log->used, sizeof log->text - log->used, "%s %zu, ",
                                  zb_collective_name(c->kind), c->numel);
    assert_true(log->used < sizeof log->text);
    return ZB_OK;
}

/* In a world of one the reduced gradient of a single micro-batch is the local one. */
static void check_model(const rig_options *options)
{
    rig own, fed;
    rig_open(&own, options);
    rig_start(&own);
    rig_open(&fed, options); /* last, for it is closed first */
    rig_start(&fed);
    call_log logs[2] = { { .used = 0 }, { .used = 0 } };
    const zb_comm_observer own_observer = { log_call, &logs[0] }, fed_observer = { log_call, &logs[1] };
    own.comm.base.observer = &own_observer;
    fed.comm.base.observer = &fed_observer;
    for (int step = 0; step < STEPS; step++) {
        rig_train(&own, 1);
        gradients *want = observe(own.engine);
        if (zb_engine_external_micro_batch(fed.engine, ZB_EXTERNAL_GRADIENT, want->param) != ZB_OK ||
            zb_engine_step(fed.engine) != ZB_OK)
            fail_msg("%s: %s", rig_name(options), zb_error_message());
        gradients *got = observe(fed.engine);
        if (memcmp(got->data, want->data, sizeof got->data) != 0 ||
            memcmp(got->calls, want->calls, sizeof got->calls) != 0)
            fail_msg("%s: step %d differs", rig_name(options), step);
        free(got);
        free(want);
    }
    assert_string_equal(logs[0].text, logs[1].text);
    float *weights[2] = { rig_weights(&own), rig_weights(&fed) };
    assert_memory_equal(weights[0], weights[1], rig_weights_bytes(&own));
    free(weights[1]);
    free(weights[0]);
    rig_close(&fed);
    rig_close(&own);
}

static void equals_an_own_backward(void **state)
{
    (void)state;
    for (int m = 0; m < test_model_count; m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int overlap = 0; overlap < 2; overlap++)
                check_model(&(rig_options){ .model = test_model_names[m],
                                            .stage = stage,
                                            .overlap = overlap,
                                            .lazy = overlap,
                                            .bucket = 20 });
}

/* --- a list of parameters --- */

static const size_t list_numel[] = { 3, 0, 20000, 5 };
enum { LIST_COUNT = 4 };

static zb_model *list_model(void)
{
    zb_model *model = NULL;
    assert_int_equal(zb_model_create("list", NULL, ZB_LOSS_ELSEWHERE, &model), ZB_OK);
    for (int p = 0; p < LIST_COUNT; p++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", p);
        assert_int_equal(zb_model_add(model, &(zb_module_spec){ .kind = ZB_MODULE_PARAMETER,
                                                                .name = name,
                                                                .shape = { 1, { (int64_t)list_numel[p] } },
                                                                .frozen = p == 3 }),
                         ZB_OK);
    }
    if (zb_model_finish(model) != ZB_OK) fail_msg("%s", zb_error_message());
    return model;
}

static const char list_text[] =
    "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 3, \"gradient_clipping\": 0,"
    "\"zero_allow_untested_optimizer\": true, \"fp16\": {\"enabled\": true, \"loss_scale\": 64},"
    "\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 1}}}";

typedef struct list_rig {
    zb_config *config;
    zb_model *model;
    zb_device *device;
    zb_comm *comm;
    zb_engine_options options;
} list_rig;

static void list_open(list_rig *l, int stage)
{
    if (zb_config_parse(list_text, sizeof list_text - 1, "list.json", &l->config) != ZB_OK)
        fail_msg("%s", zb_error_message());
    l->model = list_model();
    assert_int_equal(zb_device_cpu_create(&l->device), ZB_OK);
    assert_int_equal(zb_comm_self_create(&l->comm), ZB_OK);
    l->options = (zb_engine_options){ .config = l->config,
                                      .model = l->model,
                                      .device = l->device,
                                      .comm = l->comm,
                                      .stage = stage,
                                      .dtype = -1 };
}

static void list_close(list_rig *l)
{
    zb_comm_destroy(l->comm);
    zb_device_destroy(l->device);
    zb_model_destroy(l->model);
    zb_config_destroy(l->config);
}

typedef struct list_seen {
    uint16_t grad[LIST_COUNT];  /* fp16 */
    float first_of[LIST_COUNT]; /* the fp32 weight at element 0 */
    int64_t bytes[ZB_MEM_COUNT];
} list_seen;

/* Of each parameter the last element of the gradient and the first weight. */
static zb_status list_note(void *user, const zb_observation *o)
{
    list_seen *seen = user;
    if (o->quantity == ZB_Q_BYTES_HELD) memcpy(seen->bytes, o->data, sizeof seen->bytes);
    if (o->quantity == ZB_Q_MASTER && o->first == 0) seen->first_of[o->param] = *(const float *)o->data;
    if (o->quantity != ZB_Q_GRAD) return ZB_OK;
    memcpy(&seen->grad[o->param], (const uint16_t *)o->data + o->numel - 1, sizeof seen->grad[0]);
    return ZB_OK;
}

/*
 * fl32(64 / 3) is 0x1.555556p+4; of its products with x = 1 and 3 the roundings to fp16 are 0x1.554p+4 and
 * 0x1p+6, and that of their sum is 0x1.554p+6, bits 0x5555. A gradient that is given as such is taken as it
 * is: here zero.
 */
static void takes_inputs_and_gradients(void **state)
{
    (void)state;
    static float x[2][20000], g[20000];
    for (size_t i = 0; i < 20000; i++) x[0][i] = 1.0f, x[1][i] = 3.0f, g[i] = 0.0f;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        list_rig l;
        zb_engine *engine = NULL;
        list_seen before, after;
        memset(&before, 0, sizeof before);
        memset(&after, 0, sizeof after);
        list_open(&l, stage);
        if (zb_initialize(&l.options, &engine) != ZB_OK) fail_msg("%s", zb_error_message());
        assert_true(zb_engine_loss_scale(engine) == 64.0);
        assert_int_equal(zb_engine_observe(engine, &(zb_observer){ list_note, &before }), ZB_OK);
        for (int micro = 0; micro < 3; micro++) {
            const float *from = micro < 2 ? x[micro] : g;
            const float *values[LIST_COUNT] = { from, from, from, NULL };
            if (zb_engine_external_micro_batch(engine, micro < 2 ? ZB_EXTERNAL_INPUT : ZB_EXTERNAL_GRADIENT,
                                               values) != ZB_OK ||
                zb_engine_step(engine) != ZB_OK)
                fail_msg("%s", zb_error_message());
        }
        assert_int_equal(zb_engine_observe(engine, &(zb_observer){ list_note, &after }), ZB_OK);
        assert_true(after.grad[0] == 0x5555 && after.grad[2] == 0x5555);
        const float moved = before.first_of[2] - 0x1.554p+0f; /* lr 1, the scale divided out */
        assert_true(after.first_of[2] == moved);

        uint64_t want[ZB_MEM_COUNT];
        assert_int_equal(zb_memory_formula(l.config, l.model, zb_engine_plan(engine), stage, want), ZB_OK);
        for (int kind = 0; kind < ZB_MEM_COUNT; kind++) assert_int_equal(after.bytes[kind], want[kind]);
        zb_engine_destroy(engine);
        list_close(&l);
    }
}

static zb_status first_grad(void *user, const zb_observation *o)
{
    if (o->quantity == ZB_Q_GRAD && o->param == 0) memcpy(user, o->data, sizeof(float));
    return ZB_OK;
}

/* fl32(fl32(1 / 3) 7) is 0x1.2aaaacp+1, fl32(7 / 3) would be 0x1.2aaaaap+1. */
static void divides_the_seed_not_the_product(void **state)
{
    (void)state;
    static float seven[20000], zero[20000];
    for (size_t i = 0; i < 20000; i++) seven[i] = 7.0f;
    const float *first[LIST_COUNT] = { seven, seven, seven, NULL }, *later[LIST_COUNT] = { zero, zero, zero };
    list_rig l;
    zb_engine *engine = NULL;
    float grad = 0.0f;
    list_open(&l, 1);
    l.options.dtype = ZB_FP32;
    assert_int_equal(zb_initialize(&l.options, &engine), ZB_OK);
    for (int micro = 0; micro < 3; micro++) {
        assert_int_equal(
            zb_engine_external_micro_batch(engine, ZB_EXTERNAL_INPUT, micro == 0 ? first : later), ZB_OK);
        assert_int_equal(zb_engine_step(engine), ZB_OK);
    }
    assert_int_equal(zb_engine_observe(engine, &(zb_observer){ first_grad, &grad }), ZB_OK);
    assert_true(grad == 0x1.2aaaacp+1f);
    zb_engine_destroy(engine);
    list_close(&l);
}

static void refuses_what_does_not_fit(void **state)
{
    (void)state;
    static const float x[20000];
    const float *values[LIST_COUNT] = { x, x, NULL, x };
    list_rig l;
    zb_engine *engine = NULL;
    float loss;
    list_open(&l, 2);
    assert_int_equal(zb_initialize(&l.options, &engine), ZB_OK);
    assert_int_equal(zb_engine_external_micro_batch(engine, ZB_EXTERNAL_INPUT, values), ZB_INVALID_ARGUMENT);
    assert_message_has("no gradient given for parameter p2 of model list");
    assert_int_equal(zb_engine_forward(engine, &(zb_batch){ .rows = 1 }, &loss), ZB_INVALID_ARGUMENT);
    assert_message_has("model list, whose forward is elsewhere");
    values[2] = x;
    assert_int_equal(zb_engine_external_micro_batch(engine, ZB_EXTERNAL_INPUT, values), ZB_OK);
    assert_int_equal(zb_engine_external_micro_batch(engine, ZB_EXTERNAL_INPUT, values), ZB_INVALID_ARGUMENT);
    assert_message_has("external_micro_batch called where step is due");
    zb_engine_destroy(engine);

    zb_model *mlp = test_model("mlp");
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_synthetic(mlp, 4, 1, &dataset), ZB_OK);
    l.options.dataset = dataset;
    assert_int_equal(zb_initialize(&l.options, &engine), ZB_INVALID_ARGUMENT);
    assert_message_has("a data set for model list");
    zb_dataset_destroy(dataset);
    zb_model_destroy(mlp);
    list_close(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_an_own_backward),
        cmocka_unit_test(takes_inputs_and_gradients),
        cmocka_unit_test(divides_the_seed_not_the_product),
        cmocka_unit_test(refuses_what_does_not_fit),
    };
    return cmocka_run_group_tests_name("external", tests, NULL, NULL);
}
