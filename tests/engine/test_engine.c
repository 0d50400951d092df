/* The engine as its user meets it: calls in the wrong order, inputs that do not fit, counters, what it shows.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "tests/engine/rig.h"

static const float inputs[3 * 5] = { 0.1f, -0.2f, 0.3f, 0.4f, -0.5f, 0.6f, 0.7f, -0.8f,
                                     0.9f, 1.0f,  0.2f, 0.3f, 0.4f,  0.5f, 0.6f };
static const int32_t labels[3] = { 0, 2, 1 };
static const zb_batch good_batch = { .rows = 2, .inputs = inputs, .labels = labels };

/* --- order of calls --- */

static const struct order_case {
    const char *name;
    const char *calls;   /* f, b, s: forward, backward, step */
    const char *message; /* of the last call; all others must succeed */
} orders[] = {
    { "backward first", "b", "backward called where forward is due" },
    { "step first", "s", "step called where forward is due" },
    { "forward twice", "ff", "forward called where backward is due" },
    { "step without backward", "fs", "step called where backward is due" },
    { "backward twice", "fbb", "backward called where step is due" },
    { "forward without step", "fbf", "forward called where step is due" },
    { "step twice", "fbss", "step called where forward is due" },
    { "backward after a whole micro-batch", "fbsb", "backward called where forward is due" },
};

static zb_status call(zb_engine *engine, char what)
{
    float loss;
    if (what == 'f') return zb_engine_forward(engine, &good_batch, &loss);
    return what == 'b' ? zb_engine_backward(engine) : zb_engine_step(engine);
}

static char due_after(char what)
{
    return what == 'f' ? 'b' : what == 'b' ? 's' : 'f';
}

/* The refusal changes nothing: the call that was due works afterwards, and the weights come out the same. */
static void check_order(void **state)
{
    const struct order_case *c = *state;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        float *weights[2];
        rig r[2];
        for (int wrong = 0; wrong < 2; wrong++) {
            rig_open(&r[wrong], &(rig_options){ .model = "mlp", .stage = stage });
            rig_start(&r[wrong]);
            zb_engine *engine = r[wrong].engine;
            char due = 'f';
            for (const char *what = c->calls; what[1] != '\0'; what++) {
                assert_int_equal(call(engine, *what), ZB_OK);
                due = due_after(*what);
            }
            if (wrong) {
                assert_int_equal(call(engine, c->calls[strlen(c->calls) - 1]), ZB_INVALID_ARGUMENT);
                assert_message_has(c->message);
            }
            for (int i = 0; i < 4 || due != 'f'; i++, due = due_after(due))
                assert_int_equal(call(engine, due), ZB_OK);
            weights[wrong] = rig_weights(&r[wrong]);
        }
        assert_memory_equal(weights[0], weights[1], rig_weights_bytes(&r[0]));
        for (int wrong = 1; wrong >= 0; wrong--) {
            free(weights[wrong]);
            rig_close(&r[wrong]);
        }
    }
}

/* --- batches --- */

static const int32_t label_below[2] = { 0, -1 }, label_above[2] = { 3, 0 };

static const struct batch_case {
    const char *name;
    const char *model;
    zb_batch batch;
    const char *message;
} batches[] = {
    { "no rows", "mlp", { .rows = 0, .inputs = inputs, .labels = labels }, "batch has 0 rows, want 1 to 2" },
    { "negative rows", "mlp", { .rows = -1, .inputs = inputs, .labels = labels }, "-1 rows" },
    { "too many rows", "mlp", { .rows = 3, .inputs = inputs, .labels = labels }, "3 rows, want 1 to 2" },
    { "no inputs", "mlp", { .rows = 2, .labels = labels }, "batch has no inputs" },
    { "no labels", "mlp", { .rows = 2, .inputs = inputs }, "batch has no labels; cross entropy" },
    { "a label below",
      "mlp",
      { .rows = 2, .inputs = inputs, .labels = label_below },
      "label of row 1 is -1, want 0 to 2" },
    { "a label above",
      "mlp",
      { .rows = 2, .inputs = inputs, .labels = label_above },
      "label of row 0 is 3, want 0 to 2" },
    { "no targets",
      "mse, no bias",
      { .rows = 2, .inputs = inputs, .labels = labels },
      "batch has no targets; mse" },
};

static void check_batch(void **state)
{
    const struct batch_case *c = *state;
    rig r;
    float loss = 77;
    rig_open(&r, &(rig_options){ .model = c->model, .stage = 3 });
    rig_start(&r);
    for (int i = 0; i < 2; i++) { /* before the first step, and after one */
        assert_int_equal(zb_engine_forward(r.engine, &c->batch, &loss), ZB_INVALID_ARGUMENT);
        assert_message_has(c->message);
        assert_true(loss == 77);
        rig_train(&r, 1);
    }
    rig_close(&r);
}

/* --- data sets --- */

static void fetch_nothing(const zb_dataset *dataset, int64_t index, float *input, int32_t *label,
                          float *target)
{
    (void)dataset;
    (void)index;
    (void)input;
    (void)label;
    (void)target;
}
static const zb_dataset_ops no_ops = { .fetch = fetch_nothing };

static const struct dataset_case {
    const char *name;
    const char *model;
    zb_dataset dataset;
    const char *message;
} datasets[] = {
    { "extent",
      "mlp",
      { .ops = &no_ops, .size = 4, .input = { 1, { 6 } }, .classes = 3 },
      "shape [6], model mlp wants [5]" },
    { "dimensions",
      "conv",
      { .ops = &no_ops, .size = 4, .input = { 1, { 72 } }, .classes = 4 },
      "shape [72], model conv wants [2,6,6]" },
    { "too many classes",
      "mlp",
      { .ops = &no_ops, .size = 4, .input = { 1, { 5 } }, .classes = 4 },
      "4 classes, model mlp can tell 3 apart" },
    { "regression for a classifier",
      "mlp",
      { .ops = &no_ops, .size = 4, .input = { 1, { 5 } }, .target_numel = 3 },
      "0 classes" },
    { "target too wide",
      "mse, no bias",
      { .ops = &no_ops, .size = 4, .input = { 1, { 3 } }, .target_numel = 3 },
      "3 target values per sample, model mse, no bias gives 2" },
    { "classes for a regression",
      "mse, no bias",
      { .ops = &no_ops, .size = 4, .input = { 1, { 3 } }, .classes = 2 },
      "0 target values" },
};

static void check_dataset(void **state)
{
    const struct dataset_case *c = *state;
    rig r;
    rig_open(&r, &(rig_options){ .model = c->model, .stage = 1 });
    r.options.dataset = &c->dataset;
    assert_int_equal(zb_initialize(&r.options, &r.engine), ZB_INVALID_ARGUMENT);
    assert_message_has(c->message);
    assert_null(r.engine);
    rig_close(&r);
}

/* --- options --- */

static const struct option_case {
    const char *name;
    int stage, dtype;
    zb_status status; /* ZB_OK: the engine runs at stage `runs_at` */
    const char *message;
    int runs_at;
} options[] = {
    { "stage and dtype of the config", -1, -1, ZB_OK, NULL, 2 },
    { "stage of the options goes first", 3, ZB_FP32, ZB_OK, NULL, 3 },
    { "stage above", 4, -1, ZB_INVALID_ARGUMENT, "stage is 4, want 0 to 3", 0 },
    { "half precision of the options goes first", 0, ZB_FP16, ZB_OK, NULL, 0 },
    { "an integer type", 0, ZB_INT32, ZB_INVALID_ARGUMENT, "int32", 0 },
    { "no type at all", 0, 99, ZB_INVALID_ARGUMENT, "?", 0 },
};

static void check_options(void **state)
{
    const struct option_case *c = *state;
    rig r;
    rig_open(&r, &(rig_options){ .model = "mlp", .stage = 2 });
    r.options.stage = c->stage;
    r.options.dtype = c->dtype;
    assert_int_equal(zb_initialize(&r.options, &r.engine), c->status);
    if (c->status == ZB_OK) {
        assert_int_equal(zb_engine_stage(r.engine), c->runs_at);
        assert_int_equal(zb_engine_plan(r.engine)->param_dtype, c->dtype >= 0 ? c->dtype : ZB_FP32);
    } else {
        assert_message_has(c->message);
    }
    rig_close(&r);
}

static void a_model_that_cannot_train_is_refused(void **state)
{
    (void)state;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        rig r;
        rig_open(&r, &(rig_options){ .model = "mlp", .stage = stage });
        for (int p = 0; p < r.model->param_count; p++) r.model->params[p].requires_grad = 0;
        assert_int_equal(zb_initialize(&r.options, &r.engine), ZB_INVALID_ARGUMENT);
        assert_message_has("model mlp has no trainable element");
        rig_close(&r);
    }
}

static void a_model_without_output_is_refused(void **state)
{
    (void)state;
    rig r;
    rig_open(&r, &(rig_options){ .model = "mlp", .stage = 0 });
    zb_model *model = sizes_model(&(sizes){ 1, { 3 }, 0 });
    r.options.model = model;
    r.options.dataset = NULL;
    assert_int_equal(zb_initialize(&r.options, &r.engine), ZB_INVALID_ARGUMENT);
    assert_message_has("model sizes has no module with an output");
    zb_model_destroy(model);
    rig_close(&r);
}

static void weights_of_another_model_are_refused(void **state)
{
    (void)state;
    rig r;
    rig_open(&r, &(rig_options){ .model = "mlp", .stage = 2 });
    zb_weights weights = { .param_count = r.model->param_count - 1 };
    r.options.weights = &weights;
    assert_int_equal(zb_initialize(&r.options, &r.engine), ZB_INVALID_ARGUMENT);
    assert_message_has("parameters for model mlp, which has");
    rig_close(&r);
}

/* 2^62 rows of 4 elements are 2^66 bytes, or none at all to who does not look. */
static void a_micro_batch_beyond_all_memory_is_refused(void **state)
{
    (void)state;
    for (int bits = 56; bits <= 62; bits++) {
        rig r;
        rig_open(&r, &(rig_options){ .model = "mlp", .stage = 0 });
        r.config->batch = (zb_batch_triangle){ .micro_batch_size = INT64_C(1) << bits };
        zb_status status = zb_initialize(&r.options, &r.engine);
        assert_true(status == ZB_INVALID_ARGUMENT || status == ZB_NO_MEMORY);
        if (bits == 62) assert_message_has("micro-batches of 4611686018427387904 rows of model mlp");
        rig_close(&r);
    }
}

/* Its micro-batches are numbered from 0: begun elsewhere, the boundary would fall in the middle of them. */
static void train_step_starts_at_the_first_micro_batch(void **state)
{
    (void)state;
    rig r;
    rig_open(&r, &(rig_options){ .model = "mlp", .stage = 2, .accumulation = 2 });
    rig_start(&r);
    for (int by_hand = 0; by_hand < 2; by_hand++) {
        for (const char *what = "fbs"; *what != '\0'; what++) assert_int_equal(call(r.engine, *what), ZB_OK);
        if (by_hand == 0) {
            assert_int_equal(zb_engine_train_step(r.engine, NULL), ZB_INVALID_ARGUMENT);
            assert_message_has("after 1 of 2 micro-batches");
        }
    }
    assert_int_equal(call(r.engine, 'f'), ZB_OK);
    assert_int_equal(zb_engine_train_step(r.engine, NULL), ZB_INVALID_ARGUMENT);
    assert_message_has("backward is due");
    for (const char *what = "bsfbs"; *what != '\0'; what++) assert_int_equal(call(r.engine, *what), ZB_OK);
    assert_int_equal(zb_engine_train_step(r.engine, NULL), ZB_OK); /* refusals changed nothing */
    assert_int_equal(zb_engine_counters(r.engine).global_steps, 3);
    rig_close(&r);
}

static zb_status stop_at_second_samples(void *user, const zb_observation *o)
{
    (void)user;
    return o->quantity == ZB_Q_SAMPLES && o->micro == 1 ? zb_fail(ZB_INTERRUPTED, "enough") : ZB_OK;
}

/* Between two micro-batches everything is whole but the step. */
static void an_observer_that_stops_between_micro_batches_breaks_the_step_off(void **state)
{
    (void)state;
    rig r;
    rig_open(&r, &(rig_options){ .model = "mlp", .stage = 2, .accumulation = 2 });
    rig_start(&r);
    zb_observer observer = { stop_at_second_samples, NULL };
    assert_int_equal(zb_engine_train_step(r.engine, &observer), ZB_INTERRUPTED);
    assert_int_equal(zb_engine_train_step(r.engine, NULL), ZB_INVALID_ARGUMENT);
    assert_message_has("after a failure broke a step off");
    rig_close(&r);
}

static void without_a_data_set_there_is_no_loader(void **state)
{
    (void)state;
    rig r;
    rig_open(&r, &(rig_options){ .model = "mlp", .stage = 1, .optimizer = RIG_SGD });
    r.options.dataset = NULL;
    rig_start(&r);
    assert_null(zb_engine_loader(r.engine));
    assert_int_equal(zb_engine_train_step(r.engine, NULL), ZB_INVALID_ARGUMENT);
    assert_message_has("no loader");
    assert_int_equal(zb_engine_optimizer(r.engine)->kind, ZB_OPTIMIZER_SGD);
    assert_true(zb_schedule_lr(&zb_engine_lr_scheduler(r.engine)->group[0]) == 0.1);
    for (const char *what = "fbs"; *what != '\0'; what++) assert_int_equal(call(r.engine, *what), ZB_OK);
    rig_close(&r);
}

/* --- counters and short batches --- */

static void counters_count(void **state)
{
    (void)state;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        rig r;
        float loss;
        rig_open(&r, &(rig_options){ .model = "mlp", .stage = stage, .accumulation = 3 });
        rig_start(&r);
        for (int micro = 0; micro < 7; micro++) {
            assert_int_equal(zb_engine_is_boundary(r.engine), micro % 3 == 2);
            assert_int_equal(zb_engine_forward(r.engine, &good_batch, &loss), ZB_OK);
            assert_int_equal(zb_engine_backward(r.engine), ZB_OK);
            assert_int_equal(zb_engine_is_boundary(r.engine), micro % 3 == 2);
            assert_int_equal(zb_engine_step(r.engine), ZB_OK);
            zb_counters now = zb_engine_counters(r.engine);
            assert_int_equal(now.micro_steps, micro + 1);
            assert_int_equal(now.global_steps, (micro + 1) / 3);
            assert_int_equal(now.global_samples, (micro + 1) / 3 * 6);
            assert_int_equal(now.skipped_steps, 0);
            assert_true((zb_engine_global_grad_norm(r.engine) > 0) == (micro >= 2));
        }
        rig_close(&r);
    }
}

static const struct short_case {
    const char *name;
    int drop_last;
    int64_t rows[5]; /* of the batches of 5 samples, 2 at a time */
} shorts[] = {
    { "the last batch of an epoch is short", 0, { 2, 2, 1, 2, 2 } },
    { "drop_last drops it", 1, { 2, 2, 2, 2, 2 } },
};

typedef struct rows_seen {
    int count;
    int64_t rows[8];
} rows_seen;

static zb_status note_rows(void *user, const zb_observation *o)
{
    rows_seen *seen = user;
    if (o->quantity == ZB_Q_SAMPLES) seen->rows[seen->count++] = (int64_t)o->numel;
    return ZB_OK;
}

static void check_short(void **state)
{
    const struct short_case *c = *state;
    float *weights[ZB_STAGE_COUNT];
    size_t bytes = 0;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        rig r;
        rows_seen seen = { 0 };
        rig_open(&r, &(rig_options){
                         .model = "conv", .stage = stage, .dataset_size = 5, .drop_last = c->drop_last });
        rig_start(&r);
        for (int step = 0; step < 5; step++)
            assert_int_equal(zb_engine_train_step(r.engine, &(zb_observer){ note_rows, &seen }), ZB_OK);
        assert_int_equal(seen.count, 5);
        for (int i = 0; i < 5; i++) assert_int_equal(seen.rows[i], c->rows[i]);
        /* as DeepSpeed: by the configured batch, not by the rows that came */
        assert_int_equal(zb_engine_counters(r.engine).global_samples, 10);
        weights[stage] = rig_weights(&r);
        bytes = rig_weights_bytes(&r);
        rig_close(&r);
    }
    for (int stage = 1; stage < ZB_STAGE_COUNT; stage++)
        assert_memory_equal(weights[stage], weights[0], bytes);
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) free(weights[stage]);
}

/* --- what it shows --- */

static void weights_before_training_are_the_initial_ones(void **state)
{
    (void)state;
    for (int m = 0; m < test_model_count; m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int given = 0; given < 2; given++) {
                rig r;
                zb_weights weights;
                rig_open(&r, &(rig_options){ .model = test_model_names[m], .stage = stage });
                assert_int_equal(zb_weights_from_seed(r.model, given ? 5 : 11, &weights), ZB_OK);
                if (given) r.options.weights = &weights;
                rig_start(&r);
                float *got = rig_weights(&r), *next = got;
                for (int p = 0; p < r.model->param_count; p++) {
                    assert_memory_equal(next, weights.values[p], r.model->params[p].numel * sizeof *next);
                    next += r.model->params[p].numel;
                }
                free(got);
                zb_weights_destroy(&weights);
                rig_close(&r);
            }
}

typedef struct shown {
    const zb_model *model;
    int64_t step;
    size_t next[ZB_QUANTITY_COUNT][16]; /* elements of each parameter seen so far, in order */
    int scalars[ZB_QUANTITY_COUNT];
    int last_quantity;
} shown;

static zb_status note_shown(void *user, const zb_observation *o)
{
    shown *s = user;
    assert_int_equal(o->step, s->step);
    assert_int_equal(o->micro, -1);
    assert_int_equal(o->rank, 0);
    assert_true((int)o->quantity >= s->last_quantity); /* in the order of the map */
    s->last_quantity = (int)o->quantity;
    if (o->param == ZB_NO_PARAM) {
        s->scalars[o->quantity]++;
        return ZB_OK;
    }
    assert_int_equal(o->dtype, ZB_FP32);
    assert_int_equal(o->first, s->next[o->quantity][o->param]);
    s->next[o->quantity][o->param] += o->numel;
    return ZB_OK;
}

/* In a world of one everything is here: every range of every parameter, each element once. */
static void check_shown(rig *r, int64_t step, const zb_quantity *tensors, int tensor_count, int scalar_count)
{
    shown s = { .model = r->model, .step = step };
    assert_int_equal(zb_engine_observe(r->engine, &(zb_observer){ note_shown, &s }), ZB_OK);
    for (int q = 0; q < ZB_QUANTITY_COUNT; q++) {
        int expected = 0;
        for (int i = 0; i < tensor_count; i++) expected |= (int)tensors[i] == q;
        for (int p = 0; p < r->model->param_count; p++) {
            int held = expected && (r->model->params[p].requires_grad || q == ZB_Q_PARAM);
            assert_int_equal(s.next[q][p], held ? r->model->params[p].numel : 0);
        }
        scalar_count -= s.scalars[q];
    }
    assert_int_equal(scalar_count, 0);
}

static void observe_shows_everything_once(void **state)
{
    (void)state;
    static const zb_quantity before[] = { ZB_Q_MASTER, ZB_Q_PARAM };
    static const zb_quantity after[] = { ZB_Q_GRAD, ZB_Q_MASTER, ZB_Q_PARAM, ZB_Q_EXP_AVG, ZB_Q_EXP_AVG_SQ };
    static const struct {
        const char *optimizer;
        int tensors;
    } kinds[] = { { RIG_ADAM, 5 }, { RIG_MOMENTUM, 4 }, { RIG_SGD, 3 } };
    for (int m = 0; m < test_model_count; m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (size_t k = 0; k < COUNT(kinds); k++) {
                rig r;
                rig_open(&r, &(rig_options){ .model = test_model_names[m],
                                             .stage = stage,
                                             .optimizer = kinds[k].optimizer });
                rig_start(&r);
                check_shown(&r, -1, before, 2, 1); /* bytes held */
                rig_train(&r, 2);
                /* norm, overflow, loss scale, rate, counters, bytes held, bytes sent */
                check_shown(&r, 1, after, kinds[k].tensors, 8);
                rig_close(&r);
            }
}

typedef struct count_down {
    int left;
} count_down;

static zb_status stop_at(void *user, const zb_observation *o)
{
    (void)o;
    count_down *c = user;
    return c->left-- == 0 ? zb_fail(ZB_INTERRUPTED, "enough") : ZB_OK;
}

static void an_observer_may_stop(void **state)
{
    (void)state;
    for (int n = 0, stopped = 1; stopped; n++) {
        rig r;
        count_down c = { n };
        zb_observer observer = { stop_at, &c };
        rig_open(&r, &(rig_options){ .model = "tied", .stage = 3 });
        rig_start(&r);
        zb_status status = zb_engine_train_step(r.engine, &observer);
        if (status == ZB_OK) status = zb_engine_observe(r.engine, &observer);
        stopped = c.left < 0;
        assert_int_equal(status, stopped ? ZB_INTERRUPTED : ZB_OK);
        rig_close(&r);
    }
}

/* Parameters larger than the staging buffer, loaded and shown in pieces. */
static void a_large_parameter_passes_in_pieces(void **state)
{
    (void)state;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage += 3) {
        rig r;
        zb_model *small;
        rig_open(&r, &(rig_options){ .model = "mlp", .stage = stage });
        small = r.model;
        assert_int_equal(zb_model_open("mlp:700-30-10", &r.model), ZB_OK); /* 21,000 weights: 2.6 buffers */
        r.options.model = r.model;
        r.options.dataset = NULL;
        rig_start(&r);
        static const zb_quantity before[] = { ZB_Q_MASTER, ZB_Q_PARAM };
        check_shown(&r, -1, before, 2, 1);
        zb_weights weights;
        assert_int_equal(zb_weights_from_seed(r.model, 11, &weights), ZB_OK);
        float *got = rig_weights(&r);
        assert_memory_equal(got, weights.values[0], r.model->params[0].numel * sizeof *got);
        free(got);
        zb_weights_destroy(&weights);
        zb_model_destroy(small);
        rig_close(&r);
    }
}

#define ROWS(array, function)                                                                                \
    for (size_t i = 0; i < COUNT(array); i++)                                                                \
        tests[n++] = (struct CMUnitTest){ array[i].name, function, NULL, NULL, (void *)&array[i] };

int main(void)
{
    struct CMUnitTest
        tests[COUNT(orders) + COUNT(batches) + COUNT(datasets) + COUNT(options) + COUNT(shorts) + 12] = {
            cmocka_unit_test(a_model_that_cannot_train_is_refused),
            cmocka_unit_test(a_model_without_output_is_refused),
            cmocka_unit_test(weights_of_another_model_are_refused),
            cmocka_unit_test(a_micro_batch_beyond_all_memory_is_refused),
            cmocka_unit_test(train_step_starts_at_the_first_micro_batch),
            cmocka_unit_test(an_observer_that_stops_between_micro_batches_breaks_the_step_off),
            cmocka_unit_test(without_a_data_set_there_is_no_loader),
            cmocka_unit_test(counters_count),
            cmocka_unit_test(weights_before_training_are_the_initial_ones),
            cmocka_unit_test(observe_shows_everything_once),
            cmocka_unit_test(an_observer_may_stop),
            cmocka_unit_test(a_large_parameter_passes_in_pieces),
        };
    size_t n = 12;
    ROWS(orders, check_order)
    ROWS(batches, check_batch)
    ROWS(datasets, check_dataset)
    ROWS(options, check_options)
    ROWS(shorts, check_short)
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
