/*
 * Whole runs of the oracle: a run worked out by hand, what must be equal between plans and what must not, odd
 * parameters, what is shown and in which order, refusals, failures.
 */
#include "tests/ref/bits.h"

#include <stdio.h>
#include <stdlib.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/ref.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- a data set from an array --- */

typedef struct array_dataset {
    zb_dataset base;
    const float *inputs, *targets;
} array_dataset;

static void array_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label, float *target)
{
    const array_dataset *array = (const array_dataset *)dataset;
    size_t in = zb_shape_numel(&dataset->input), out = dataset->target_numel;
    (void)label;
    memcpy(input, array->inputs + (size_t)index * in, in * sizeof *input);
    memcpy(target, array->targets + (size_t)index * out, out * sizeof *target);
}

static const zb_dataset_ops array_ops = { .fetch = array_fetch };

static array_dataset array_of(int64_t size, int64_t in, size_t out, const float *inputs, const float *targets)
{
    return (array_dataset){
        .base = { .ops = &array_ops, .size = size, .input = { 1, { in } }, .target_numel = out },
        .inputs = inputs,
        .targets = targets
    };
}

/* --- everything that a run shows --- */

typedef struct shown {
    zb_observation what; /* data: offset below, not a pointer */
    size_t at;
} shown;

typedef struct record {
    shown *list;
    size_t count, room;
    unsigned char *bytes;
    size_t used, bytes_room;
    int64_t fail_at; /* observation that is answered with ZB_IO; -1: none */
} record;

static zb_status record_one(void *user, const zb_observation *observation)
{
    record *r = user;
    if (r->fail_at == (int64_t)r->count) return zb_fail(ZB_IO, "observer: full");
    size_t bytes = observation->numel * zb_dtype_bytes(observation->dtype);
    if (r->count == r->room) r->list = realloc(r->list, (r->room = 2 * r->room + 64) * sizeof *r->list);
    while (r->used + bytes > r->bytes_room)
        r->bytes = realloc(r->bytes, r->bytes_room = 2 * r->bytes_room + 4096);
    assert_non_null(r->list);
    assert_non_null(observation->data);
    assert_int_equal(observation->first, 0);
    r->list[r->count++] = (shown){ *observation, r->used };
    if (bytes > 0) memcpy(r->bytes + r->used, observation->data, bytes);
    r->used += bytes;
    return ZB_OK;
}

static zb_observer observer_of(record *r)
{
    return (zb_observer){ record_one, r };
}

static void record_free(record *r)
{
    free(r->list);
    free(r->bytes);
    *r = (record){ .fail_at = -1 };
}

static const shown *find(const record *r, zb_quantity quantity, int64_t step, int64_t micro, int rank,
                         int param)
{
    for (size_t i = 0; i < r->count; i++) {
        const zb_observation *o = &r->list[i].what;
        if (o->quantity == quantity && o->step == step && o->micro == micro && o->rank == rank &&
            o->param == param)
            return &r->list[i];
    }
    return NULL;
}

static float tensor_element(const record *r, zb_quantity quantity, int64_t step, int param, size_t element)
{
    const shown *s = find(r, quantity, step, -1, ZB_EVERY_RANK, param);
    if (s == NULL) fail_msg("%s of parameter %d is not shown", zb_quantity_name(quantity), param);
    float value;
    memcpy(&value, r->bytes + s->at + element * sizeof value, sizeof value);
    return value;
}

static double scalar(const record *r, zb_quantity quantity, int64_t step)
{
    const shown *s = find(r, quantity, step, -1, ZB_EVERY_RANK, ZB_NO_PARAM);
    if (s == NULL) fail_msg("%s is not shown", zb_quantity_name(quantity));
    double value;
    memcpy(&value, r->bytes + s->at, sizeof value);
    return value;
}

static float loss_of(const record *r, int64_t step, int64_t micro, int rank)
{
    const shown *s = find(r, ZB_Q_LOSS, step, micro, rank, ZB_NO_PARAM);
    assert_non_null(s);
    float value;
    memcpy(&value, r->bytes + s->at, sizeof value);
    return value;
}

static void assert_counters(const record *r, int64_t step, const int64_t expected[4])
{
    const shown *s = find(r, ZB_Q_COUNTERS, step, -1, ZB_EVERY_RANK, ZB_NO_PARAM);
    assert_non_null(s);
    assert_memory_equal(r->bytes + s->at, expected, 4 * sizeof *expected);
}

/* Every quantity that does not depend on which rank saw what. */
static int same_results(const record *a, const record *b)
{
    for (size_t i = 0; i < a->count; i++) {
        const zb_observation *o = &a->list[i].what;
        if (o->rank != ZB_EVERY_RANK || o->quantity == ZB_Q_COUNTERS) continue;
        const shown *other = find(b, o->quantity, o->step, o->micro, o->rank, o->param);
        if (other == NULL || other->what.numel != o->numel) return 0;
        if (memcmp(a->bytes + a->list[i].at, b->bytes + other->at, o->numel * zb_dtype_bytes(o->dtype)) != 0)
            return 0;
    }
    return 1;
}

/* --- running --- */

static const zb_plan sgd_plan = {
    .world_size = 1,
    .micro_batch_size = 1,
    .accumulation_steps = 1,
    .averaging = { .inside = 1 },
    .loss_is_scaled = 1,
    .groups = { { .kind = ZB_OPTIMIZER_SGD } },
    .group_count = 1,
};

static const zb_plan adam_plan = {
    .world_size = 2,
    .micro_batch_size = 2,
    .accumulation_steps = 2,
    .averaging = { .inside = 1 },
    .loss_is_scaled = 1,
    .clip_norm = 1.0,
    .group_count = 1,
    .groups = { { .kind = ZB_OPTIMIZER_ADAM,
                  .beta1 = 0.9,
                  .beta2 = 0.999,
                  .eps = 1e-8,
                  .bias_correction = 1,
                  .decay_mode = ZB_DECAY_DECOUPLED,
                  .weight_decay = 0.01 } },
};

typedef struct setting {
    zb_plan plan;
    zb_schedule_config schedule;
    zb_model *model;
    zb_weights weights;
    const zb_dataset *dataset;
    int shuffle, drop_last, reshuffle;
    uint64_t sampler_seed;
} setting;

static zb_status create(const setting *s, zb_ref **ref)
{
    return zb_ref_create(&(zb_ref_options){ .plan = &s->plan,
                                            .schedules = &s->schedule,
                                            .model = s->model,
                                            .weights = &s->weights,
                                            .dataset = s->dataset,
                                            .sampler_seed = s->sampler_seed,
                                            .shuffle = s->shuffle,
                                            .drop_last = s->drop_last,
                                            .reshuffle = s->reshuffle },
                         ref);
}

static void run(const setting *s, int steps, record *r)
{
    zb_ref *ref = NULL;
    zb_observer observer = observer_of(r);
    if (create(s, &ref) != ZB_OK) fail_msg("%s", zb_error_message());
    assert_int_equal(zb_ref_observe_initial(ref, &observer), ZB_OK);
    for (int step = 0; step < steps; step++) assert_int_equal(zb_ref_step(ref, &observer), ZB_OK);
    zb_ref_destroy(ref);
}

static zb_model *open_model(const char *name)
{
    zb_model *model;
    if (zb_model_open(name, &model) != ZB_OK) fail_msg("%s", zb_error_message());
    return model;
}

/* The model's type, and that of its gradients from there on. */
static void set_types(zb_plan *plan, zb_dtype param, zb_dtype grad)
{
    plan->param_dtype = param;
    plan->local_dtype = plan->bucket_dtype = plan->comm_dtype = plan->grad_dtype = grad;
}

static setting setting_of(const zb_plan *plan, double lr, zb_model *model, const zb_dataset *dataset)
{
    setting s = { .plan = *plan,
                  .schedule = { .kind = ZB_SCHEDULE_CONSTANT, .base_lr = lr },
                  .model = model,
                  .dataset = dataset };
    assert_int_equal(zb_weights_from_seed(model, 11, &s.weights), ZB_OK);
    return s;
}

static void setting_destroy(setting *s)
{
    zb_weights_destroy(&s->weights);
    zb_model_destroy(s->model);
}

/* --- by hand --- */

/*
 * y = w x + b with w = 1/2, b = 1/4; mean of squares; SGD, lr 1/4. Two ranks, two micro-batches of one
 * sample: micro 0: rank 0 x = 2, t = 1/4: y = 5/4, d = 1,  loss 1,  dy = 2 d / 2 = 1:   dw = 2,  db = 1 rank
 * 1 x = 0, t = 1/4: y = 1/4, d = 0,  loss 0:                      dw = 0,  db = 0 micro 1: rank 0 x = 1, t =
 * 11/4: y = 3/4, d = -2, loss 4, dy = -2:            dw = -2, db = -2 rank 1 x = 2, t = -7/4: y = 5/4, d = 3,
 * loss 9,  dy = 3:             dw = 6,  db = 3 sums: rank 0 (0, -1), rank 1 (6, 3); average (3, 1). norm =
 * sqrt(10). w = 1/2 - 3/4, b = 1/4 - 1/4.
 */
static void check_by_hand(void **state)
{
    (void)state;
    const float inputs[] = { 2.0f, 0.0f, 1.0f, 2.0f }, targets[] = { 0.25f, 0.25f, 2.75f, -1.75f };
    const array_dataset data = array_of(4, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 0.25, open_model("mlp-mse:1-1"), &data.base);
    s.plan.world_size = 2;
    s.plan.accumulation_steps = 2;
    s.weights.values[0][0] = 0.5f;
    s.weights.values[1][0] = 0.25f;

    for (int when = ZB_REDUCE_AT_BOUNDARY; when <= ZB_REDUCE_EVERY_MICRO_BATCH; when++) {
        record r = { .fail_at = -1 };
        s.plan.reduce_when = (zb_reduce_when)when;
        run(&s, 1, &r);
        assert_true(loss_of(&r, 0, 0, 0) == 1.0f && loss_of(&r, 0, 0, 1) == 0.0f);
        assert_true(loss_of(&r, 0, 1, 0) == 4.0f && loss_of(&r, 0, 1, 1) == 9.0f);
        assert_true(tensor_element(&r, ZB_Q_GRAD, 0, 0, 0) == 3.0f);
        assert_true(tensor_element(&r, ZB_Q_GRAD, 0, 1, 0) == 1.0f);
        assert_true(scalar(&r, ZB_Q_NORM, 0) == sqrt(10.0));
        assert_true(scalar(&r, ZB_Q_LOSS_SCALE, 0) == 1.0);
        assert_true(scalar(&r, ZB_Q_LR, 0) == 0.25);
        assert_true(tensor_element(&r, ZB_Q_MASTER, -1, 0, 0) == 0.5f);
        assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == -0.25f);
        assert_true(same_bits(tensor_element(&r, ZB_Q_PARAM, 0, 1, 0), 0.0f));
        assert_counters(&r, 0, (const int64_t[]){ 2, 1, 4, 0 });
        record_free(&r);
    }

    /* gradient_allreduce_op "sum": twice the average. Clipped: (norm + 1e-6) / clip_norm = 2 halves the
     * update. */
    record r = { .fail_at = -1 };
    s.plan.averaging.inside = 0;
    s.plan.clip_norm = (sqrt(40.0) + 1e-6) / 2.0;
    run(&s, 1, &r);
    assert_true(tensor_element(&r, ZB_Q_GRAD, 0, 0, 0) == 6.0f); /* shown before clipping */
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == -0.25f);
    record_free(&r);
    setting_destroy(&s);
}

/* At rate 0 every step has the same gradient: nothing of one step is left in the next. */
static void check_steps_start_from_nothing(void **state)
{
    (void)state;
    const float inputs[] = { 2.0f, 0.0f, 1.0f, 2.0f }, targets[] = { 0.25f, 0.25f, 2.75f, -1.75f };
    const array_dataset data = array_of(4, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 0.0, open_model("mlp-mse:1-1"), &data.base);
    s.plan.world_size = 2;
    s.plan.accumulation_steps = 2;
    for (int when = ZB_REDUCE_AT_BOUNDARY; when <= ZB_REDUCE_EVERY_MICRO_BATCH; when++) {
        record r = { .fail_at = -1 };
        s.plan.reduce_when = (zb_reduce_when)when;
        run(&s, 3, &r);
        for (int step = 1; step < 3; step++)
            for (int p = 0; p < 2; p++)
                assert_true(same_bits(tensor_element(&r, ZB_Q_GRAD, step, p, 0),
                                      tensor_element(&r, ZB_Q_GRAD, 0, p, 0)));
        record_free(&r);
    }
    setting_destroy(&s);
}

/* Gradients 2^24, -2^24 (micro 0) and 1, 0 (micro 1) of two ranks: when to reduce decides whether the 1
 * survives. */
static void check_when_to_reduce(void **state)
{
    (void)state;
    /* w = 0, x = 1: dw = 2 (0 - t) / 2 = -t */
    const float inputs[] = { 1.0f, 1.0f, 1.0f, 1.0f }, targets[] = { -0x1p24f, 0x1p24f, -1.0f, 0.0f };
    const array_dataset data = array_of(4, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 1.0, open_model("mlp-mse:1-1"), &data.base);
    s.plan.world_size = 2;
    s.plan.accumulation_steps = 2;
    s.weights.values[0][0] = 0.0f;
    s.weights.values[1][0] = 0.0f;
    const float expected[] = { [ZB_REDUCE_AT_BOUNDARY] = 0.0f, [ZB_REDUCE_EVERY_MICRO_BATCH] = 0.5f };
    for (int when = ZB_REDUCE_AT_BOUNDARY; when <= ZB_REDUCE_EVERY_MICRO_BATCH; when++) {
        record r = { .fail_at = -1 };
        s.plan.reduce_when = (zb_reduce_when)when;
        run(&s, 1, &r);
        assert_true(tensor_element(&r, ZB_Q_GRAD, 0, 0, 0) == expected[when]);
        record_free(&r);
    }
    setting_destroy(&s);
}

/* Three ranks in ascending order: (1 + 1) + 2^24 keeps the ones, (2^24 + 1) + 1 loses them. */
static void check_rank_order(void **state)
{
    (void)state;
    static const struct {
        float targets[3], gradient;
    } cases[] = {
        { { -0.5f, -0.5f, -0x1p23f }, 0x1p24f + 2.0f },
        { { -0x1p23f, -0.5f, -0.5f }, 0x1p24f },
    };
    const float inputs[] = { 1.0f, 1.0f, 1.0f };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const array_dataset data = array_of(3, 1, 1, inputs, cases[i].targets);
        setting s = setting_of(&sgd_plan, 1.0, open_model("mlp-mse:1-1"), &data.base);
        s.plan.world_size = 3;
        s.plan.averaging.inside = 0;
        s.weights.values[0][0] = 0.0f;
        s.weights.values[1][0] = 0.0f;
        record r = { .fail_at = -1 };
        run(&s, 1, &r);
        assert_true(tensor_element(&r, ZB_Q_GRAD, 0, 0, 0) == cases[i].gradient);
        record_free(&r);
        setting_destroy(&s);
    }
}

/* A gradient that overflows: no clipping, no skipped step, the infinity arrives in the weight. */
static void check_overflow(void **state)
{
    (void)state;
    const float inputs[] = { 0x1p100f }, targets[] = { 0.0f };
    const array_dataset data = array_of(1, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 1.0, open_model("mlp-mse:1-1"), &data.base);
    s.plan.clip_norm = 1.0;
    s.weights.values[0][0] = 1.0f;
    s.weights.values[1][0] = 0.0f;
    record r = { .fail_at = -1 };
    run(&s, 1, &r);
    assert_true(isinf(scalar(&r, ZB_Q_NORM, 0)));
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == -INFINITY);
    const shown *overflow = find(&r, ZB_Q_OVERFLOW, 0, -1, ZB_EVERY_RANK, ZB_NO_PARAM);
    int64_t flag;
    memcpy(&flag, r.bytes + overflow->at, sizeof flag);
    assert_int_equal(flag, 0);
    record_free(&r);
    setting_destroy(&s);
}

/* --- 16 bits --- */

static uint16_t code_of(const record *r, zb_quantity quantity, int64_t step, int param, zb_dtype dtype)
{
    const shown *s = find(r, quantity, step, -1, ZB_EVERY_RANK, param);
    uint16_t code;
    assert_non_null(s);
    assert_int_equal(s->what.dtype, dtype);
    memcpy(&code, r->bytes + s->at, sizeof code);
    return code;
}

static int64_t overflow_of(const record *r, int64_t step)
{
    const shown *s = find(r, ZB_Q_OVERFLOW, step, -1, ZB_EVERY_RANK, ZB_NO_PARAM);
    int64_t flag;
    assert_non_null(s);
    memcpy(&flag, r->bytes + s->at, sizeof flag);
    return flag;
}

/*
 * y = w x + b in fp16, w = 0.1 and x just above 1 rounded to fp16: 0x1.998p-4 and 1; b = 0, t = 0, loss scale
 * 2^10. dy = w * 2^11 = dw = db exactly, whose code is w's with 11 added to the exponent. The step takes
 * w * 2^-11 from both, which the masters hold to the last bit; the model's w moves by one unit of 2^-14.
 */
static void check_fp16_by_hand(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f + 0x1p-11f }, targets[] = { 0.0f };
    const array_dataset data = array_of(1, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 0x1p-12, open_model("mlp-mse:1-1"), &data.base);
    set_types(&s.plan, ZB_FP16, ZB_FP16);
    s.plan.scaler = (zb_loss_scaler_config){ .kind = ZB_SCALER_STATIC, .initial_scale = 1024.0 };
    s.plan.overflow = ZB_OVERFLOW_SKIP;
    s.weights.values[0][0] = 0.1f;
    s.weights.values[1][0] = 0.0f;
    record r = { .fail_at = -1 };
    run(&s, 1, &r);

    const float w = 0x1.998p-4f;
    assert_int_equal(code_of(&r, ZB_Q_PARAM, -1, 0, ZB_FP16), 0x2e66);
    assert_true(tensor_element(&r, ZB_Q_MASTER, -1, 0, 0) == w);
    assert_true(loss_of(&r, 0, 0, 0) == w * w); /* fp32, not scaled */
    assert_int_equal(code_of(&r, ZB_Q_GRAD, 0, 0, ZB_FP16), 0x2e66 + (11 << 10));
    assert_int_equal(code_of(&r, ZB_Q_GRAD, 0, 1, ZB_FP16), 0x2e66 + (11 << 10));
    assert_true(scalar(&r, ZB_Q_NORM, 0) == sqrt((double)w * (double)w * 0x1p23) / 1024.0);
    assert_true(scalar(&r, ZB_Q_LOSS_SCALE, 0) == 1024.0);
    assert_int_equal(overflow_of(&r, 0), 0);
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == w - w * 0x1p-11f);
    assert_int_equal(code_of(&r, ZB_Q_PARAM, 0, 0, ZB_FP16), 0x2e65);
    record_free(&r);

    /* Clipped to half of the norm: half the step. */
    s.plan.clip_norm = (sqrt((double)w * (double)w * 0x1p23) / 1024.0 + 1e-6) / 2.0;
    run(&s, 1, &r);
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == w - w * 0x1p-12f);
    record_free(&r);
    setting_destroy(&s);
}

/* Micro-batch gradients 1 and 2^-8: bf16 cannot hold their sum, fp32 can. */
static void check_accumulation_type(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f, 1.0f }, targets[] = { -1.0f, -0x1p-8f };
    const array_dataset data = array_of(2, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 1.0, open_model("mlp-mse:1-1"), &data.base);
    s.plan.param_dtype = ZB_BF16;
    s.plan.accumulation_steps = 2;
    s.weights.values[0][0] = 0.0f;
    s.weights.values[1][0] = 0.0f;
    for (int when = ZB_REDUCE_AT_BOUNDARY; when <= ZB_REDUCE_EVERY_MICRO_BATCH; when++) {
        record r = { .fail_at = -1 };
        s.plan.reduce_when = (zb_reduce_when)when;
        set_types(&s.plan, s.plan.param_dtype, ZB_BF16);
        run(&s, 1, &r);
        assert_int_equal(code_of(&r, ZB_Q_GRAD, 0, 0, ZB_BF16), 0x3f80);
        assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == -1.0f);
        record_free(&r);
        set_types(&s.plan, s.plan.param_dtype, ZB_FP32);
        run(&s, 1, &r);
        assert_true(tensor_element(&r, ZB_Q_GRAD, 0, 0, 0) == 1.0f + 0x1p-8f);
        assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == -1.0f - 0x1p-8f);
        record_free(&r);
    }
    setting_destroy(&s);
}

/*
 * w = b = 0, x = 1, t = -1: the gradient is twice the loss scale, and 2^16 is too large for fp16. Step 0
 * changes nothing but the counters and the scale. Step 1 is then the optimizer's first: its momentum buffer
 * starts undampened, and the schedule is where it was.
 */
static void check_skipped_step(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f }, targets[] = { -1.0f };
    const array_dataset data = array_of(1, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 1.0, open_model("mlp-mse:1-1"), &data.base);
    set_types(&s.plan, ZB_FP16, ZB_FP16);
    s.plan.overflow = ZB_OVERFLOW_SKIP;
    s.plan.clip_norm = 1e6;
    s.plan.scaler = (zb_loss_scaler_config){
        .kind = ZB_SCALER_DYNAMIC, .initial_scale = 0x1p15, .min_scale = 1.0, .window = 100, .hysteresis = 1
    };
    s.plan.groups[0].momentum = 0.5;
    s.plan.groups[0].dampening = 0.75;
    s.schedule = (zb_schedule_config){ .kind = ZB_SCHEDULE_WARMUP_LR,
                                       .base_lr = 1.0,
                                       .warmup_min_lr = 0.25,
                                       .warmup_max_lr = 1.0,
                                       .warmup_num_steps = 3,
                                       .warmup_type = ZB_WARMUP_LINEAR };
    s.weights.values[0][0] = 0.0f;
    s.weights.values[1][0] = 0.0f;
    zb_schedule schedule;
    assert_int_equal(zb_schedule_init(&schedule, &s.schedule), ZB_OK);
    record r = { .fail_at = -1 };
    run(&s, 3, &r);

    assert_int_equal(overflow_of(&r, 0), 1);
    assert_int_equal(code_of(&r, ZB_Q_GRAD, 0, 0, ZB_FP16), 0x7c00);
    assert_true(isinf(scalar(&r, ZB_Q_NORM, 0)));
    assert_true(scalar(&r, ZB_Q_LOSS_SCALE, 0) == 0x1p15);
    assert_true(scalar(&r, ZB_Q_LR, 0) == zb_schedule_lr(&schedule));
    assert_true(same_bits(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0), 0.0f));
    assert_true(same_bits(tensor_element(&r, ZB_Q_EXP_AVG, 0, 0, 0), 0.0f));
    assert_counters(&r, 0, (const int64_t[]){ 1, 1, 1, 1 });

    assert_int_equal(overflow_of(&r, 1), 0);
    assert_true(scalar(&r, ZB_Q_LOSS_SCALE, 1) == 0x1p14);
    assert_true(scalar(&r, ZB_Q_NORM, 1) == sqrt(8.0)); /* dw = db = 2 */
    assert_true(scalar(&r, ZB_Q_LR, 1) == zb_schedule_lr(&schedule));
    assert_true(tensor_element(&r, ZB_Q_EXP_AVG, 1, 0, 0) == 2.0f);
    assert_true(tensor_element(&r, ZB_Q_MASTER, 1, 0, 0) == -2.0f * (float)zb_schedule_lr(&schedule));
    assert_counters(&r, 1, (const int64_t[]){ 2, 2, 2, 1 });

    zb_schedule_step(&schedule);
    assert_true(scalar(&r, ZB_Q_LR, 2) == zb_schedule_lr(&schedule));
    record_free(&r);
    setting_destroy(&s);
}

/* Overflow at the smallest scale: DeepSpeed stops, and so does the step. Without the check nothing stops. */
static void check_scale_cannot_be_lowered(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f }, targets[] = { -1.0f };
    const array_dataset data = array_of(1, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 1.0, open_model("mlp-mse:1-1"), &data.base);
    set_types(&s.plan, ZB_FP16, ZB_FP16);
    s.plan.overflow = ZB_OVERFLOW_SKIP;
    s.plan.scaler = (zb_loss_scaler_config){
        .kind = ZB_SCALER_DYNAMIC, .initial_scale = 0x1p15, .min_scale = 0x1p15, .window = 1, .hysteresis = 1
    };
    s.weights.values[0][0] = 0.0f;
    s.weights.values[1][0] = 0.0f;
    zb_ref *ref = NULL;
    assert_int_equal(create(&s, &ref), ZB_OK);
    assert_int_equal(zb_ref_step(ref, NULL), ZB_LOSS_SCALE);
    zb_ref_destroy(ref);

    record r = { .fail_at = -1 };
    s.plan.overflow = ZB_OVERFLOW_UNSEEN;
    run(&s, 1, &r);
    assert_int_equal(overflow_of(&r, 0), 0);
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == -INFINITY);
    assert_int_equal(code_of(&r, ZB_Q_PARAM, 0, 0, ZB_FP16), 0xfc00);
    record_free(&r);
    setting_destroy(&s);
}

/*
 * Stage 0 in fp16 as DeepSpeed 0.19.6 has it: y = w x + b, w = 1/2, b = 0, x = 1, t = 0; SGD with a decay of
 * 1/2, loss scale 4. The hidden first step, at the optimizer's own rate 1/4, takes the master of w to 1/2 -
 * 1/16, and leaves the model's w alone. So y = 1/2, dw = db = 1, for the loss is not scaled; divided by 4 all
 * the same, and the rate of the schedule is 1: w = 7/16 - 1/4 - 7/32, b = -1/4.
 */
static void check_deepspeed_by_hand(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f }, targets[] = { 0.0f };
    const array_dataset data = array_of(1, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 1.0, open_model("mlp-mse:1-1"), &data.base);
    set_types(&s.plan, ZB_FP16, ZB_FP16);
    s.plan.semantics = ZB_SEMANTICS_DEEPSPEED_0_19_6;
    s.plan.scaler = (zb_loss_scaler_config){ .kind = ZB_SCALER_STATIC, .initial_scale = 4.0 };
    s.plan.loss_is_scaled = 0;
    s.plan.seed_dtype = ZB_FP16;
    s.plan.hidden_first_step = 1;
    s.plan.tensors = ZB_TENSORS_GROUPS;
    s.plan.norm = ZB_NORM_FLAT;
    s.plan.groups[0].lr = 0.25;
    s.plan.groups[0].weight_decay = 0.5;
    s.weights.values[0][0] = 0.5f;
    s.weights.values[1][0] = 0.0f;
    record r = { .fail_at = -1 };
    run(&s, 1, &r);
    assert_int_equal(code_of(&r, ZB_Q_PARAM, -1, 0, ZB_FP16), 0x3800); /* 1/2 */
    assert_true(tensor_element(&r, ZB_Q_MASTER, -1, 0, 0) == 0.4375f);
    assert_true(loss_of(&r, 0, 0, 0) == 0.25f);
    assert_int_equal(code_of(&r, ZB_Q_GRAD, 0, 0, ZB_FP16), 0x3c00); /* 1 */
    const double norm = (double)sqrtf(2.0f);
    assert_true(scalar(&r, ZB_Q_NORM, 0) == sqrt((double)(float)(norm * norm)) / 4.0);
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 0, 0) == -0.03125f);
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, 1, 0) == -0.25f);
    assert_counters(&r, 0, (const int64_t[]){ 1, 1, 1, 0 });
    record_free(&r);
    setting_destroy(&s);
}

/* --- what must be equal --- */

static zb_dataset *synthetic_for(const zb_model *model, int64_t size)
{
    zb_dataset *dataset;
    if (zb_dataset_synthetic(model, size, 3, &dataset) != ZB_OK) fail_msg("%s", zb_error_message());
    return dataset;
}

static void check_equal_plans(void **state)
{
    (void)state;
    setting s = setting_of(&adam_plan, 1e-2, open_model("mlp:6-5-3"), NULL);
    zb_dataset *dataset = synthetic_for(s.model, 50);
    s.dataset = dataset;
    s.shuffle = 1;
    record once = { .fail_at = -1 }, again = { .fail_at = -1 }, every = { .fail_at = -1 };

    run(&s, 20, &once);
    run(&s, 20, &again);
    assert_int_equal(once.count, again.count);
    assert_int_equal(once.used, again.used);
    assert_memory_equal(once.bytes, again.bytes, once.used);

    /* With two micro-batches the plans round differently, with one they are the same plan. */
    s.plan.reduce_when = ZB_REDUCE_EVERY_MICRO_BATCH;
    run(&s, 20, &every);
    assert_false(same_results(&once, &every));
    record_free(&once);
    record_free(&every);
    s.plan.accumulation_steps = 1;
    run(&s, 20, &every);
    s.plan.reduce_when = ZB_REDUCE_AT_BOUNDARY;
    run(&s, 20, &once);
    assert_true(same_results(&once, &every));

    record_free(&once);
    record_free(&again);
    record_free(&every);
    zb_dataset_destroy(dataset);
    setting_destroy(&s);
}

/* Four ranks that see the same sample are one rank: a power of two divides out. */
static void check_same_data_on_every_rank(void **state)
{
    (void)state;
    const float inputs[] = { 0.3f, -0.7f, 0.1f, 0.3f, -0.7f, 0.1f, 0.3f, -0.7f, 0.1f, 0.3f, -0.7f, 0.1f };
    const float targets[] = { 0.2f, -0.4f, 0.2f, -0.4f, 0.2f, -0.4f, 0.2f, -0.4f };
    const array_dataset data = array_of(4, 3, 2, inputs, targets);
    setting s = setting_of(&adam_plan, 1e-2, open_model("mlp-mse:3-4-2"), &data.base);
    s.plan.micro_batch_size = 1;
    record one = { .fail_at = -1 }, four = { .fail_at = -1 };
    s.plan.world_size = 1;
    run(&s, 10, &one);
    s.plan.world_size = 4;
    run(&s, 10, &four);
    assert_true(same_results(&one, &four));
    record_free(&one);
    record_free(&four);
    setting_destroy(&s);
}

static void learn_in(zb_dtype dtype, const zb_dataset *dataset)
{
    setting s = setting_of(&adam_plan, 1e-3, open_model("cifar10-net"), dataset);
    s.plan.micro_batch_size = 8;
    set_types(&s.plan, dtype, dtype);
    if (dtype == ZB_FP16)
        s.plan.scaler = (zb_loss_scaler_config){ .kind = ZB_SCALER_STATIC, .initial_scale = 1024.0 };
    s.shuffle = 1;
    zb_ref *ref = NULL;
    assert_int_equal(create(&s, &ref), ZB_OK);
    float first = 0.0f, last = 0.0f;
    for (int step = 0; step < 30; step++) {
        record r = { .fail_at = -1 };
        zb_observer observer = observer_of(&r);
        assert_int_equal(zb_ref_step(ref, &observer), ZB_OK);
        last = loss_of(&r, step, 0, 0) + loss_of(&r, step, 0, 1) + loss_of(&r, step, 1, 0) +
               loss_of(&r, step, 1, 1);
        if (step == 0) first = last;
        record_free(&r);
    }
    if (!(last < 0.8f * first))
        fail_msg("%s: the loss went from %g to %g", zb_dtype_name(dtype), (double)first / 4,
                 (double)last / 4);
    zb_ref_destroy(ref);
    setting_destroy(&s);
}

static void check_learning(void **state)
{
    (void)state;
    zb_dataset *dataset;
    assert_int_equal(zb_dataset_synthetic_cifar10(256, 1, &dataset), ZB_OK);
    learn_in(ZB_FP32, dataset);
    learn_in(ZB_FP16, dataset);
    learn_in(ZB_BF16, dataset);
    zb_dataset_destroy(dataset);
}

/* --- odd parameters --- */

static zb_model *odd_model(void)
{
    static const zb_module_spec modules[] = {
        { .kind = ZB_MODULE_LINEAR, .name = "frozen", .out_features = 3, .frozen = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 3, .no_bias = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 3, .tie = "a" },
        { .kind = ZB_MODULE_PARAMETER, .name = "unused", .shape = { 1, { 2 } } },
        { .kind = ZB_MODULE_PARAMETER, .name = "empty", .shape = { 2, { 0, 4 } } },
        { .kind = ZB_MODULE_LINEAR, .name = "head", .input = "b", .out_features = 2 },
    };
    zb_model *model;
    assert_int_equal(zb_model_create("odd", &(zb_shape){ 1, { 3 } }, ZB_LOSS_MSE, &model), ZB_OK);
    for (size_t i = 0; i < COUNT(modules); i++)
        if (zb_model_add(model, &modules[i]) != ZB_OK) fail_msg("%s", zb_error_message());
    if (zb_model_finish(model) != ZB_OK) fail_msg("%s", zb_error_message());
    return model;
}

static void check_odd_parameters(void **state)
{
    (void)state;
    const float inputs[] = { 0.3f, -0.7f, 0.1f, 0.9f, 0.2f, -0.4f }, targets[] = { 1.0f, 2.0f, -1.0f, 0.5f };
    const array_dataset data = array_of(2, 3, 2, inputs, targets);
    setting s = setting_of(&adam_plan, 0.5, odd_model(), &data.base);
    s.plan.clip_norm = 0.0;
    record r = { .fail_at = -1 };
    run(&s, 1, &r);

    const int frozen = zb_model_find_param(s.model, "frozen.weight"),
              unused = zb_model_find_param(s.model, "unused");
    const int empty = zb_model_find_param(s.model, "empty"), tied = zb_model_find_param(s.model, "a.weight");
    assert_null(find(&r, ZB_Q_GRAD, 0, -1, ZB_EVERY_RANK, frozen));
    assert_null(find(&r, ZB_Q_EXP_AVG, 0, -1, ZB_EVERY_RANK, frozen));
    assert_true(tensor_element(&r, ZB_Q_MASTER, 0, frozen, 0) ==
                tensor_element(&r, ZB_Q_MASTER, -1, frozen, 0));

    /* Gradient +0, so only the decay moves it: p - lr * (0 + decay * p). */
    float before = tensor_element(&r, ZB_Q_PARAM, -1, unused, 1);
    assert_true(same_bits(tensor_element(&r, ZB_Q_GRAD, 0, unused, 1), 0.0f));
    assert_true(same_bits(tensor_element(&r, ZB_Q_PARAM, 0, unused, 1), before - 0.5f * (0.01f * before)));

    const shown *nothing = find(&r, ZB_Q_EXP_AVG_SQ, 0, -1, ZB_EVERY_RANK, empty);
    assert_non_null(nothing);
    assert_int_equal(nothing->what.numel, 0);
    assert_true(tensor_element(&r, ZB_Q_GRAD, 0, tied, 0) != 0.0f);
    assert_int_equal(zb_model_find_param(s.model, "b.weight"), ZB_NO_PARAM);
    record_free(&r);
    setting_destroy(&s);
}

/* --- what is shown, in which order --- */

static void check_order_of_observations(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f, 2.0f, 3.0f }, targets[] = { 1.0f, 2.0f, 3.0f };
    const array_dataset data = array_of(3, 1, 1, inputs, targets);
    setting s = setting_of(&adam_plan, 0.5, open_model("mlp-mse:1-1"), &data.base);
    s.plan.accumulation_steps = 1;
    record r = { .fail_at = -1 };
    run(&s, 1, &r);
    static const struct {
        zb_quantity quantity;
        int64_t step, micro;
        int rank, param;
    } expected[] = {
        { ZB_Q_MASTER, -1, -1, -1, 0 },     { ZB_Q_MASTER, -1, -1, -1, 1 },
        { ZB_Q_PARAM, -1, -1, -1, 0 },      { ZB_Q_PARAM, -1, -1, -1, 1 },
        { ZB_Q_SAMPLES, 0, 0, 0, -1 },      { ZB_Q_LOSS, 0, 0, 0, -1 },
        { ZB_Q_SAMPLES, 0, 0, 1, -1 },      { ZB_Q_LOSS, 0, 0, 1, -1 },
        { ZB_Q_GRAD, 0, -1, -1, 0 },        { ZB_Q_GRAD, 0, -1, -1, 1 },
        { ZB_Q_NORM, 0, -1, -1, -1 },       { ZB_Q_OVERFLOW, 0, -1, -1, -1 },
        { ZB_Q_LOSS_SCALE, 0, -1, -1, -1 }, { ZB_Q_LR, 0, -1, -1, -1 },
        { ZB_Q_MASTER, 0, -1, -1, 0 },      { ZB_Q_MASTER, 0, -1, -1, 1 },
        { ZB_Q_EXP_AVG, 0, -1, -1, 0 },     { ZB_Q_EXP_AVG, 0, -1, -1, 1 },
        { ZB_Q_EXP_AVG_SQ, 0, -1, -1, 0 },  { ZB_Q_EXP_AVG_SQ, 0, -1, -1, 1 },
        { ZB_Q_PARAM, 0, -1, -1, 0 },       { ZB_Q_PARAM, 0, -1, -1, 1 },
        { ZB_Q_COUNTERS, 0, -1, -1, -1 },
    };
    assert_int_equal(r.count, COUNT(expected));
    for (size_t i = 0; i < r.count; i++) {
        const zb_observation *o = &r.list[i].what;
        if (o->quantity != expected[i].quantity || o->step != expected[i].step ||
            o->micro != expected[i].micro || o->rank != expected[i].rank || o->param != expected[i].param)
            fail_msg("observation %zu is %s", i, zb_quantity_name(o->quantity));
    }
    record_free(&r);

    /* SGD shows its buffer as the first moment, and none without momentum. */
    s.plan.groups[0] = (zb_optimizer_config){ .kind = ZB_OPTIMIZER_SGD, .momentum = 0.5 };
    run(&s, 1, &r);
    assert_non_null(find(&r, ZB_Q_EXP_AVG, 0, -1, ZB_EVERY_RANK, 0));
    assert_null(find(&r, ZB_Q_EXP_AVG_SQ, 0, -1, ZB_EVERY_RANK, 0));
    record_free(&r);
    s.plan.groups[0].momentum = 0.0;
    run(&s, 1, &r);
    assert_null(find(&r, ZB_Q_EXP_AVG, 0, -1, ZB_EVERY_RANK, 0));
    record_free(&r);
    setting_destroy(&s);
}

/* 3 samples in batches of 2: the second has one row; the fourth begins the next epoch's second half. */
static void check_short_batches_and_counters(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f, 2.0f, 3.0f }, targets[] = { 4.0f, 5.0f, 6.0f };
    const array_dataset data = array_of(3, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 0.0, open_model("mlp-mse:1-1"), &data.base);
    s.plan.micro_batch_size = 2;
    s.weights.values[0][0] = 0.0f;
    s.weights.values[1][0] = 0.0f;
    record r = { .fail_at = -1 };
    run(&s, 4, &r);
    const float losses[] = { 20.5f, 36.0f, 20.5f, 36.0f }; /* (16 + 25) / 2, 36 */
    for (int step = 0; step < 4; step++) {
        assert_int_equal(find(&r, ZB_Q_SAMPLES, step, 0, 0, ZB_NO_PARAM)->what.numel, step % 2 == 0 ? 2 : 1);
        assert_true(loss_of(&r, step, 0, 0) == losses[step]);
    }
    assert_counters(&r, 3, (const int64_t[]){ 4, 4, 8, 0 }); /* whole batches are counted */
    record_free(&r);
    setting_destroy(&s);
}

/* Each rank sees what a loader with the same options gives it, over three epochs. */
static void check_samples(void **state)
{
    (void)state;
    static const struct {
        int shuffle, drop_last, reshuffle;
        uint64_t seed;
    } cases[] = { { 0, 0, 0, 0 }, { 1, 0, 1, 7 }, { 1, 0, 0, 7 }, { 1, 1, 1, 8 } };
    setting s = setting_of(&adam_plan, 1e-3, open_model("mlp:2-3"), NULL);
    zb_dataset *dataset = synthetic_for(s.model, 19); /* 10 for each rank: batches of 3, 3, 3, 1 */
    s.dataset = dataset;
    s.plan.micro_batch_size = 3;
    for (size_t i = 0; i < COUNT(cases); i++) {
        s.shuffle = cases[i].shuffle;
        s.drop_last = cases[i].drop_last;
        s.reshuffle = cases[i].reshuffle;
        s.sampler_seed = cases[i].seed;
        record r = { .fail_at = -1 };
        run(&s, 6, &r);
        for (int rank = 0; rank < 2; rank++) {
            const zb_loader_config config = { .micro_batch_size = 3,
                                              .world_size = 2,
                                              .rank = rank,
                                              .shuffle = s.shuffle,
                                              .drop_last = s.drop_last,
                                              .seed = s.sampler_seed,
                                              .reshuffle = s.reshuffle };
            zb_loader *loader;
            assert_int_equal(zb_loader_create(dataset, &config, &loader), ZB_OK);
            for (int k = 0; k < 12; k++) {
                zb_batch batch;
                assert_int_equal(zb_loader_next(loader, &batch), ZB_OK);
                const shown *got = find(&r, ZB_Q_SAMPLES, k / 2, k % 2, rank, ZB_NO_PARAM);
                assert_int_equal(got->what.numel, batch.rows);
                assert_memory_equal(r.bytes + got->at, batch.indices, (size_t)batch.rows * sizeof(int64_t));
            }
            zb_loader_destroy(loader);
        }
        record_free(&r);
    }
    zb_dataset_destroy(dataset);
    setting_destroy(&s);
}

static void check_schedule(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f }, targets[] = { 1.0f };
    const array_dataset data = array_of(1, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 0.25, open_model("mlp-mse:1-1"), &data.base);
    s.schedule.kind = ZB_SCHEDULE_WARMUP_LR;
    s.schedule.warmup_min_lr = 0.0;
    s.schedule.warmup_max_lr = 1.0;
    s.schedule.warmup_num_steps = 4;
    s.schedule.warmup_type = ZB_WARMUP_LINEAR;
    zb_schedule schedule;
    assert_int_equal(zb_schedule_init(&schedule, &s.schedule), ZB_OK);
    record r = { .fail_at = -1 };
    run(&s, 7, &r);
    for (int step = 0; step < 7; step++) {
        assert_true(scalar(&r, ZB_Q_LR, step) == zb_schedule_lr(&schedule));
        zb_schedule_step(&schedule);
    }
    record_free(&r);
    setting_destroy(&s);
}

/* --- refusals and failures --- */

static void break_param_dtype(setting *s)
{
    s->plan.param_dtype = ZB_INT32;
}
static void break_grad_dtype(setting *s)
{
    s->plan.grad_dtype = ZB_UINT8;
}
static void break_comm_dtype(setting *s)
{
    s->plan.comm_dtype = ZB_FP64;
}
static void break_reduce_when(setting *s)
{
    s->plan.reduce_when = (zb_reduce_when)7;
}
static void break_local_dtype(setting *s)
{
    s->plan.local_dtype = ZB_INT64;
}
static void break_bucket_dtype(setting *s)
{
    s->plan.bucket_dtype = ZB_INT64;
}
static void break_order(setting *s)
{
    static const zb_orders ring = { .of = { [ZB_COLLECTIVE_ALL_REDUCE] = {
                                                .algorithm = ZB_ALGORITHM_MPI_RING } } };
    s->plan.orders = &ring;
}
static void break_norm(setting *s)
{
    s->plan.norm = (zb_norm_method)8;
}
static void break_averaging(setting *s)
{
    s->plan.averaging.before[1].kind = (zb_factor_kind)7;
}
static void break_overflow(setting *s)
{
    s->plan.overflow = (zb_overflow_rule)7;
}
static void break_tensors(setting *s)
{
    s->plan.tensors = (zb_tensors)-1;
}
static void break_clip(setting *s)
{
    s->plan.clip = (zb_clip_method)7;
}
static void break_seed_dtype(setting *s)
{
    s->plan.seed_dtype = ZB_FP64;
}
static void break_optimizer(setting *s)
{
    s->plan.groups[0].kind = (zb_optimizer_kind)7;
}
static void break_arithmetic(setting *s)
{
    s->plan.groups[0].kind = ZB_OPTIMIZER_ADAM;
    s->plan.groups[0].arithmetic = ZB_ARITHMETIC_COUNT;
}
static void break_scaler(setting *s)
{
    s->plan.scaler = (zb_loss_scaler_config){ .kind = ZB_SCALER_STATIC, .initial_scale = -2.0 };
}
static void break_world(setting *s)
{
    s->plan.world_size = 0;
}
static void break_micro_batch(setting *s)
{
    s->plan.micro_batch_size = 0;
}
static void break_accumulation(setting *s)
{
    s->plan.accumulation_steps = 0;
}
static void break_clip_negative(setting *s)
{
    s->plan.clip_norm = -1.0;
}
static void break_clip_nan(setting *s)
{
    s->plan.clip_norm = NAN;
}
static void break_clip_infinite(setting *s)
{
    s->plan.clip_norm = INFINITY;
}
static void break_schedule(setting *s)
{
    s->schedule.base_lr = INFINITY;
}
static void break_weights(setting *s)
{
    s->weights.param_count--;
}

static const struct refusal {
    const char *name; /* what the message must name */
    zb_status status;
    void (*break_it)(setting *s);
} refusals[] = {
    { "plan.param_dtype is int32", ZB_UNSUPPORTED, break_param_dtype },
    { "plan.grad_dtype is uint8", ZB_UNSUPPORTED, break_grad_dtype },
    { "plan.comm_dtype is fp64", ZB_UNSUPPORTED, break_comm_dtype },
    { "plan.reduce_when is 7", ZB_UNSUPPORTED, break_reduce_when },
    { "plan.local_dtype is int64", ZB_UNSUPPORTED, break_local_dtype },
    { "plan.bucket_dtype is int64", ZB_UNSUPPORTED, break_bucket_dtype },
    { "another order than that of ranks, and there is no route", ZB_INVALID_ARGUMENT, break_order },
    { "plan.norm is 8", ZB_UNSUPPORTED, break_norm },
    { "plan.averaging.before[1] is 7", ZB_UNSUPPORTED, break_averaging },
    { "plan.overflow is 7", ZB_UNSUPPORTED, break_overflow },
    { "plan.tensors is ", ZB_UNSUPPORTED, break_tensors },
    { "plan.clip is 7", ZB_UNSUPPORTED, break_clip },
    { "plan.seed_dtype is fp64", ZB_UNSUPPORTED, break_seed_dtype },
    { "plan.groups[0].kind is 7", ZB_UNSUPPORTED, break_optimizer },
    { "kind is 0 and arithmetic 4", ZB_UNSUPPORTED, break_arithmetic },
    { "scale is -2", ZB_INVALID_CONFIG, break_scaler },
    { "plan.world_size is 0", ZB_INVALID_ARGUMENT, break_world },
    { "plan.micro_batch_size is 0", ZB_INVALID_ARGUMENT, break_micro_batch },
    { "plan.accumulation_steps is 0", ZB_INVALID_ARGUMENT, break_accumulation },
    { "plan.clip_norm is -1", ZB_INVALID_ARGUMENT, break_clip_negative },
    { "plan.clip_norm is nan", ZB_INVALID_ARGUMENT, break_clip_nan },
    { "plan.clip_norm is inf", ZB_INVALID_ARGUMENT, break_clip_infinite },
    { "inf", ZB_INVALID_CONFIG, break_schedule },
    { "1 weights for a model of 2 parameters", ZB_INVALID_ARGUMENT, break_weights },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    const float inputs[] = { 1.0f }, targets[] = { 1.0f };
    const array_dataset data = array_of(1, 1, 1, inputs, targets);
    setting s = setting_of(&sgd_plan, 0.25, open_model("mlp-mse:1-1"), &data.base);
    setting broken = s;
    zb_ref *ref = NULL;
    uint64_t live = zb_alloc_get_stats().live;
    c->break_it(&broken);
    assert_int_equal(create(&broken, &ref), c->status);
    if (strstr(zb_error_message(), c->name) == NULL) fail_msg("message: %s", zb_error_message());
    assert_null(ref);
    assert_int_equal(zb_alloc_get_stats().live, live);
    setting_destroy(&s);
}

/* A data set that does not fit the model. */
static const struct misfit {
    const char *model;
    int64_t in, classes;
    size_t target_numel;
    const char *words;
} misfits[] = {
    { "mlp-mse:2-3", 5, 0, 3, "a sample has 5 elements, the model's input 2" },
    { "mlp-mse:2-3", 2, 0, 4, "a target has 4 elements, the model's output 3" },
    { "mlp:2-3", 2, 4, 0, "the data set has 4 classes, the model 3 outputs" },
    { "mlp:2-3", 2, 0, 1, "the data set has 0 classes, the model 3 outputs" },
};

static void check_misfit(void **state)
{
    const struct misfit *c = *state;
    array_dataset data = array_of(1, c->in, c->target_numel, NULL, NULL);
    data.base.classes = c->classes;
    setting s = setting_of(&sgd_plan, 0.25, open_model(c->model), &data.base);
    zb_ref *ref = NULL;
    assert_int_equal(create(&s, &ref), ZB_INVALID_ARGUMENT);
    if (strstr(zb_error_message(), c->words) == NULL) fail_msg("message: %s", zb_error_message());
    setting_destroy(&s);
}

static void check_every_allocation(void **state)
{
    (void)state;
    setting s = setting_of(&adam_plan, 1e-2, open_model("cifar10-net"), NULL);
    zb_dataset *dataset;
    assert_int_equal(zb_dataset_synthetic_cifar10(8, 1, &dataset), ZB_OK);
    s.dataset = dataset;
    s.shuffle = 1;
    const uint64_t live = zb_alloc_get_stats().live;
    int64_t n = 0;
    for (;; n++) {
        zb_ref *ref = NULL;
        zb_alloc_fail_at(n);
        zb_status status = create(&s, &ref);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        if (!fired) {
            assert_int_equal(status, ZB_OK);
            /* Then a step allocates nothing, across epochs. */
            const uint64_t calls = zb_alloc_get_stats().calls;
            for (int step = 0; step < 3; step++) assert_int_equal(zb_ref_step(ref, NULL), ZB_OK);
            assert_int_equal(zb_alloc_get_stats().calls, calls);
            zb_ref_destroy(ref);
            break;
        }
        assert_int_equal(status, ZB_NO_MEMORY);
        assert_null(ref);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    assert_true(n > 20);
    assert_int_equal(zb_alloc_get_stats().live, live);
    zb_dataset_destroy(dataset);
    setting_destroy(&s);
}

static void check_every_observation_failing(void **state)
{
    (void)state;
    const float inputs[] = { 1.0f, 2.0f }, targets[] = { 1.0f, 2.0f };
    const array_dataset data = array_of(2, 1, 1, inputs, targets);
    setting s = setting_of(&adam_plan, 0.5, open_model("mlp-mse:1-1"), &data.base);
    for (int64_t n = 0;; n++) {
        zb_ref *ref = NULL;
        record r = { .fail_at = n };
        zb_observer observer = observer_of(&r);
        assert_int_equal(create(&s, &ref), ZB_OK);
        zb_status status = zb_ref_observe_initial(ref, &observer);
        if (status == ZB_OK) status = zb_ref_step(ref, &observer);
        zb_ref_destroy(ref);
        int64_t seen = (int64_t)r.count;
        record_free(&r);
        if (status == ZB_OK) {
            assert_int_equal(seen, n);
            break;
        }
        assert_int_equal(status, ZB_IO);
        assert_int_equal(seen, n); /* nothing is shown after the failure */
        assert_string_equal(zb_error_message(), "observer: full");
    }
    setting_destroy(&s);
}

int main(void)
{
    const struct CMUnitTest single[] = {
        cmocka_unit_test(check_by_hand),
        cmocka_unit_test(check_steps_start_from_nothing),
        cmocka_unit_test(check_when_to_reduce),
        cmocka_unit_test(check_rank_order),
        cmocka_unit_test(check_overflow),
        cmocka_unit_test(check_fp16_by_hand),
        cmocka_unit_test(check_accumulation_type),
        cmocka_unit_test(check_skipped_step),
        cmocka_unit_test(check_scale_cannot_be_lowered),
        cmocka_unit_test(check_deepspeed_by_hand),
        cmocka_unit_test(check_equal_plans),
        cmocka_unit_test(check_same_data_on_every_rank),
        cmocka_unit_test(check_learning),
        cmocka_unit_test(check_odd_parameters),
        cmocka_unit_test(check_order_of_observations),
        cmocka_unit_test(check_short_batches_and_counters),
        cmocka_unit_test(check_samples),
        cmocka_unit_test(check_schedule),
        cmocka_unit_test(check_every_allocation),
        cmocka_unit_test(check_every_observation_failing),
    };
    struct CMUnitTest tests[COUNT(single) + COUNT(refusals) + COUNT(misfits)];
    size_t count = COUNT(single);
    memcpy(tests, single, sizeof single);
    for (size_t i = 0; i < COUNT(refusals); i++)
        tests[count++] = (struct CMUnitTest){ refusals[i].name, check_refusal, NULL, NULL,
                                              (void *)&refusals[i] };
    for (size_t i = 0; i < COUNT(misfits); i++)
        tests[count++] = (struct CMUnitTest){ misfits[i].words, check_misfit, NULL, NULL,
                                              (void *)&misfits[i] };
    return cmocka_run_group_tests_name("ref_run", tests, NULL, NULL);
}
