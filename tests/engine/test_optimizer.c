/* The scalars that the optimizers hand to their kernels, step by step, and the state that they keep. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "engine/optimizer.h"
#include "tests/engine/models.h"

/* --- a device that keeps the arguments of the last launch --- */

static zb_kernel last_kernel;
static int launches;
static zb_adam_args last_adam;
static zb_sgd_args last_sgd;
static zb_adagrad_args last_adagrad;
static zb_lion_args last_lion;
static zb_lamb_moments_args last_lamb_moments;
static zb_lamb_apply_args last_lamb_apply;
static zb_cast_args last_cast;
static zb_fill_bytes_args last_fill_bytes;

static zb_status note_launch(zb_stream *stream, zb_kernel kernel, const void *args, size_t args_bytes)
{
    (void)stream;
    last_kernel = kernel;
    launches++;
    switch (kernel) {
#define NOTE(name)                                                                                           \
    case ZB_KERNEL_##name:                                                                                   \
        assert_int_equal(args_bytes, sizeof last_##name);                                                    \
        memcpy(&last_##name, args, args_bytes);                                                              \
        return ZB_OK;
        NOTE(adam)
        NOTE(sgd)
        NOTE(adagrad)
        NOTE(lion)
        NOTE(lamb_moments)
        NOTE(lamb_apply)
        NOTE(cast)
        NOTE(fill_bytes)
#undef NOTE
    default:
        fail_msg("launch of kernel %d", (int)kernel);
    }
    return ZB_INTERNAL;
}

/* What LAMB reads back: the squares that next_sums says. */
static const int64_t *next_sums;
static zb_status note_copy_out(zb_stream *stream, void *to_host, const void *from_device, size_t bytes)
{
    (void)stream, (void)from_device;
    memcpy(to_host, next_sums, bytes);
    return ZB_OK;
}
static zb_status note_wait_idle(zb_stream *stream)
{
    (void)stream;
    return ZB_OK;
}

static zb_status note_alloc(zb_device *device, size_t bytes, void **pointer_p)
{
    (void)device;
    *pointer_p = zb_alloc(bytes);
    return *pointer_p != NULL ? ZB_OK : ZB_NO_MEMORY;
}

static void note_free(zb_device *device, void *pointer)
{
    (void)device;
    zb_free(pointer);
}

static const zb_device_ops note_ops = {
    .name = "note",
    .alloc = note_alloc,
    .free = note_free,
    .launch = note_launch,
    .copy_out = note_copy_out,
    .stream_wait_idle = note_wait_idle,
};
static zb_device device = { .ops = &note_ops };
static zb_stream stream = { .device = &device, .name = "compute" };

static float param[5], grad[5];
static zb_segment segment = { .numel = 5, .param = param, .grad = grad };
static const zb_shard shard = { .segments = &segment, .segment_count = 1, .numel = 5 };

/* Elements [offset, offset + numel) of the 16-bit arrays. */
#define SEGMENT16(group, offset, numel)                                                                      \
    {                                                                                                        \
        group, offset, numel, (uint16_t *)(void *)param + (offset), (uint16_t *)(void *)grad + (offset)      \
    }

static zb_status create(const zb_optimizer_config *config, zb_dtype dtype, zb_optimizer *optimizer)
{
    const zb_plan plan = {
        .param_dtype = dtype, .grad_dtype = dtype, .groups = { *config }, .group_count = 1
    };
    return zb_optimizer_create(&plan, &stream, &shard, (zb_optimizer_exchange){ 0 }, optimizer);
}

static zb_status step(zb_optimizer *optimizer, const zb_optimizer_config *now, float grad_scale)
{
    return zb_optimizer_step(optimizer, &stream, &shard, grad_scale, now);
}

static uint32_t bits(float value)
{
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    return word;
}

/* --- Adam's scalars; correction = 1 - beta^step as Python gives it for the fp32 beta --- */

static const struct adam_case {
    const char *name;
    int64_t step; /* counted from 1 */
    int bias_correction;
    uint32_t correction1, correction2;
} adam_cases[] = {
    { "Adam, step 1", 1, 1, 0x3dccccd0, 0x3a831200 },
    { "Adam, step 2", 2, 1, 0x3e428f5f, 0x3b030139 },
    { "Adam, step 3", 3, 1, 0x3e8ac085, 0x3b4468b0 },
    { "Adam, step 10", 10, 1, 0x3f26bd04, 0x3c231a43 },
    { "Adam, step 100000", 100000, 1, 0x3f800000, 0x3f800000 },
    { "Adam without bias correction", 3, 0, 0x3f800000, 0x3f800000 },
};

static const zb_optimizer_config adam = { .kind = ZB_OPTIMIZER_ADAM,
                                          .lr = 1e-3,
                                          .beta1 = 0.9,
                                          .beta2 = 0.999,
                                          .eps = 1e-8,
                                          .bias_correction = 1,
                                          .decay_mode = ZB_DECAY_DECOUPLED,
                                          .weight_decay = 3e-7 };

static void check_adam(void **state)
{
    const struct adam_case *c = *state;
    zb_optimizer_config config = adam;
    zb_optimizer optimizer;
    config.bias_correction = c->bias_correction;
    assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
    optimizer.step_count = c->step - 1;
    assert_int_equal(step(&optimizer, &config, 0.25f), ZB_OK);
    assert_int_equal(optimizer.step_count, c->step);
    assert_int_equal(last_kernel, ZB_KERNEL_adam);
    assert_int_equal(bits(last_adam.correction1), c->correction1);
    assert_int_equal(bits(last_adam.correction2), c->correction2);
    zb_optimizer_destroy(&optimizer, &device);
}

static void adam_passes_everything_on(void **state)
{
    (void)state;
    zb_optimizer optimizer;
    zb_optimizer_config config = adam;
    for (int decoupled = 0; decoupled < 2; decoupled++) {
        config.decay_mode = decoupled ? ZB_DECAY_DECOUPLED : ZB_DECAY_L2;
        assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
        assert_int_equal(step(&optimizer, &config, 0.25f), ZB_OK);
        assert_ptr_equal(last_adam.p, param); /* in fp32 the weights are the masters */
        assert_null(last_adam.param);
        assert_ptr_equal(last_adam.grad, grad);
        assert_ptr_equal(last_adam.m, optimizer.exp_avg);
        assert_ptr_equal(last_adam.v, optimizer.exp_avg_sq);
        assert_int_equal(last_adam.numel, 5);
        assert_int_equal(last_adam.decoupled, decoupled);
        assert_int_equal(bits(last_adam.grad_scale), bits(0.25f));
        assert_int_equal(bits(last_adam.lr), 0x3a83126f);
        assert_int_equal(bits(last_adam.beta1), 0x3f666666);
        assert_int_equal(bits(last_adam.beta2), 0x3f7fbe77);
        assert_int_equal(bits(last_adam.one_minus_beta1), 0x3dccccd0); /* of the rounded beta */
        assert_int_equal(bits(last_adam.one_minus_beta2), 0x3a831200);
        assert_int_equal(bits(last_adam.eps), 0x322bcc77);
        assert_int_equal(bits(last_adam.weight_decay), 0x34a10fb0);
        zb_optimizer_destroy(&optimizer, &device);
    }
}

static void sgd_starts_its_buffer_once(void **state)
{
    (void)state;
    const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_SGD,
                                         .lr = 1e-3,
                                         .momentum = 0.9,
                                         .dampening = 0.3,
                                         .weight_decay = 3e-7,
                                         .nesterov = 0 };
    zb_optimizer optimizer;
    assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
    for (int t = 1; t <= 3; t++) {
        assert_int_equal(step(&optimizer, &config, 0.5f), ZB_OK);
        assert_int_equal(last_kernel, ZB_KERNEL_sgd);
        assert_int_equal(last_sgd.first_step, t == 1);
        assert_ptr_equal(last_sgd.p, param);
        assert_null(last_sgd.param);
        assert_ptr_equal(last_sgd.grad, grad);
        assert_ptr_equal(last_sgd.buf, optimizer.exp_avg);
        assert_int_equal(last_sgd.numel, 5);
        assert_int_equal(last_sgd.nesterov, 0);
        assert_int_equal(bits(last_sgd.grad_scale), bits(0.5f));
        assert_int_equal(bits(last_sgd.lr), 0x3a83126f);
        assert_int_equal(bits(last_sgd.momentum), 0x3f666666);
        assert_int_equal(bits(last_sgd.one_minus_dampening), 0x3f333333); /* rounded once, from double */
        assert_int_equal(bits(last_sgd.weight_decay), 0x34a10fb0);
    }
    zb_optimizer_destroy(&optimizer, &device);
}

static void adagrad_lowers_its_rate(void **state)
{
    (void)state;
    const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_ADAGRAD,
                                         .arithmetic = ZB_ARITHMETIC_TORCH_2,
                                         .lr = 0.5,
                                         .lr_decay = 0.25,
                                         .eps = 1e-8,
                                         .weight_decay = 3e-7 };
    static const float rates[] = { 0.5f, 0.4f, 1.0f / 3.0f }; /* 0.5 / 1, 1.25, 1.5 */
    zb_optimizer optimizer;
    assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
    for (int t = 0; t < 3; t++) {
        assert_int_equal(step(&optimizer, &config, 0.25f), ZB_OK);
        assert_int_equal(last_kernel, ZB_KERNEL_adagrad);
        assert_ptr_equal(last_adagrad.p, param);
        assert_ptr_equal(last_adagrad.grad, grad);
        assert_ptr_equal(last_adagrad.sum, optimizer.exp_avg_sq);
        assert_int_equal(last_adagrad.numel, 5);
        assert_int_equal(last_adagrad.arithmetic, ZB_ARITHMETIC_TORCH_2);
        assert_int_equal(bits(last_adagrad.grad_scale), bits(0.25f));
        assert_int_equal(bits(last_adagrad.lr), bits(rates[t]));
        assert_int_equal(bits(last_adagrad.eps), 0x322bcc77);
        assert_int_equal(bits(last_adagrad.weight_decay), 0x34a10fb0);
    }
    zb_optimizer_destroy(&optimizer, &device);
}

static void lion_passes_everything_on(void **state)
{
    (void)state;
    const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_LION,
                                         .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU,
                                         .lr = 0.5,
                                         .beta1 = 0.9,
                                         .beta2 = 0.999,
                                         .weight_decay = 0.25 };
    zb_optimizer optimizer;
    assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
    assert_int_equal(step(&optimizer, &config, 0.25f), ZB_OK);
    assert_int_equal(last_kernel, ZB_KERNEL_lion);
    assert_ptr_equal(last_lion.p, param);
    assert_ptr_equal(last_lion.grad, grad);
    assert_ptr_equal(last_lion.m, optimizer.exp_avg);
    assert_int_equal(last_lion.numel, 5);
    assert_int_equal(last_lion.arithmetic, ZB_ARITHMETIC_DEEPSPEED_CPU);
    assert_int_equal(bits(last_lion.grad_scale), bits(0.25f));
    assert_int_equal(bits(last_lion.lr), bits(0.5f));
    assert_int_equal(bits(last_lion.weight_decay), bits(0.25f));
    assert_int_equal(bits(last_lion.decay), bits(0.875f));
    assert_int_equal(bits(last_lion.beta1), 0x3f666666);
    assert_int_equal(bits(last_lion.beta2), 0x3f7fbe77);
    assert_int_equal(bits(last_lion.one_minus_beta1), 0x3dccccd0);
    assert_int_equal(bits(last_lion.one_minus_beta2), 0x3a831200);
    zb_optimizer_destroy(&optimizer, &device);
}

/* --- segments --- */

static void segments_that_touch_are_one(void **state)
{
    (void)state;
    zb_segment segments[] = { SEGMENT16(0, 0, 1), SEGMENT16(0, 1, 1), SEGMENT16(1, 2, 0),
                              SEGMENT16(1, 3, 2) };
    const zb_shard cut = { .segments = segments, .segment_count = 4, .numel = 5 };
    const zb_plan plan = {
        .param_dtype = ZB_FP16, .grad_dtype = ZB_FP16, .groups = { adam }, .group_count = 1
    };
    zb_optimizer_config now[2] = { adam, adam };
    zb_optimizer optimizer;
    now[1].lr = 0.5;
    assert_int_equal(zb_optimizer_create(&plan, &stream, &cut, (zb_optimizer_exchange){ 0 }, &optimizer),
                     ZB_OK);
    launches = 0;
    assert_int_equal(zb_optimizer_step(&optimizer, &stream, &cut, 1.0f, now), ZB_OK);
    assert_int_equal(launches, 2); /* two in one, none for the empty one */
    assert_int_equal(last_adam.numel, 2);
    assert_ptr_equal(last_adam.p, optimizer.master + 3);
    assert_ptr_equal(last_adam.m, optimizer.exp_avg + 3);
    assert_ptr_equal(last_adam.v, optimizer.exp_avg_sq + 3);
    assert_ptr_equal(last_adam.grad, (uint16_t *)(void *)grad + 3);
    assert_ptr_equal(last_adam.param, (uint16_t *)(void *)param + 3);
    assert_int_equal(bits(last_adam.lr), bits(0.5f)); /* its group's */
    zb_optimizer_destroy(&optimizer, &device);
}

/* The powers are those of a step, however many tensors it has, and start anew when the betas change. */
static void cpu_adam_shares_its_powers(void **state)
{
    (void)state;
    zb_segment segments[] = { { 0, 0, 2, param, grad }, { 0, 2, 3, param + 2, grad + 2 } };
    const zb_shard cut = { .segments = segments, .segment_count = 2, .numel = 5 };
    zb_optimizer_config config = adam;
    config.arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU;
    config.vector_width = 16;
    const zb_plan plan = { .groups = { config }, .group_count = 1 };
    zb_optimizer optimizer;
    float power1 = 1, power2 = 1;
    assert_int_equal(zb_optimizer_create(&plan, &stream, &cut, (zb_optimizer_exchange){ 0 }, &optimizer),
                     ZB_OK);
    for (int t = 1; t <= 20; t++) {
        power1 *= 0.9f, power2 *= 0.999f;
        launches = 0;
        assert_int_equal(zb_optimizer_step(&optimizer, &stream, &cut, 1.0f, &config), ZB_OK);
        assert_int_equal(launches, 2); /* each segment has a tail */
        assert_int_equal(bits(last_adam.step_size), bits(-1e-3f / (1.0f - power1)));
        assert_int_equal(bits(last_adam.root_correction2), bits(1.0f / sqrtf(1.0f - power2)));
        assert_int_equal(bits(last_adam.decay), bits(-1e-3f * 3e-7f));
        assert_int_equal(last_adam.vector_width, 16);
    }
    config.beta1 = 0.8;
    assert_int_equal(step(&optimizer, &config, 1.0f), ZB_OK);
    assert_int_equal(bits(last_adam.step_size), bits(-1e-3f / (1.0f - (float)pow((double)0.8f, 21))));
    config.bias_correction = 0;
    assert_int_equal(step(&optimizer, &config, 1.0f), ZB_OK);
    assert_int_equal(bits(last_adam.step_size), bits(-1e-3f));
    assert_int_equal(bits(last_adam.root_correction2), bits(1.0f));
    zb_optimizer_destroy(&optimizer, &device);
}

static void torch_adam_rounds_pythons_numbers(void **state)
{
    (void)state;
    zb_optimizer_config config = adam;
    config.arithmetic = ZB_ARITHMETIC_TORCH_2;
    zb_optimizer optimizer;
    assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
    for (int t = 1; t <= 3; t++) {
        assert_int_equal(step(&optimizer, &config, 1.0f), ZB_OK);
        assert_int_equal(last_adam.arithmetic, ZB_ARITHMETIC_TORCH_2);
        assert_int_equal(bits(last_adam.one_minus_beta1), bits(0.1f)); /* of the double, unlike DeepSpeed's */
        assert_int_equal(bits(last_adam.one_minus_beta2), bits(0.001f));
        assert_int_equal(bits(last_adam.decay), bits((float)(1 - 1e-3 * 3e-7)));
        assert_int_equal(bits(last_adam.step_size), bits((float)(-1e-3 / (1 - pow(0.9, t)))));
        assert_int_equal(bits(last_adam.root_correction2), bits((float)sqrt(1 - pow(0.999, t))));
    }
    zb_optimizer_destroy(&optimizer, &device);
}

/* --- LAMB's norms --- */

static struct exchanged {
    int calls;
    const int64_t *words;
    size_t count;
} exchanged;
static zb_status note_sum(void *user, int64_t *words, size_t count)
{
    struct exchanged *noted = user;
    *noted = (struct exchanged){ noted->calls + 1, words, count };
    return ZB_OK;
}

/* Segment 0: weights of norm 3 and updates of norm 2; segment 1: of 0 and 1. Digit d is worth 2^(32 d - 320).
 */
static void lamb_takes_norms_of_segments(void **state)
{
    (void)state;
    zb_segment segments[] = { SEGMENT16(0, 0, 0), SEGMENT16(0, 1, 3) };
    const zb_shard cut = { .segments = segments, .segment_count = 2, .numel = 5 };
    enum { WORDS = ZB_SUM_SQUARES_WORDS, ONE = 10 };
    static int64_t sums[4 * WORDS];
    const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_LAMB,
                                         .lr = 0.5,
                                         .beta1 = 0.5,
                                         .beta2 = 0.75,
                                         .eps = 1e-8,
                                         .weight_decay = 3e-7,
                                         .bias_correction = 1,
                                         .max_coeff = 10,
                                         .eps_inside_sqrt = 1 };
    const zb_plan plan = {
        .param_dtype = ZB_BF16, .grad_dtype = ZB_BF16, .groups = { config }, .group_count = 1
    };
    zb_optimizer optimizer;
    sums[ONE] = 9, sums[WORDS + ONE] = 4, sums[2 * WORDS + ONE] = 9, sums[3 * WORDS + ONE] = 4;
    next_sums = sums;
    exchanged = (struct exchanged){ 0 };
    assert_int_equal(zb_optimizer_create(&plan, &stream, &cut,
                                         (zb_optimizer_exchange){ note_sum, &exchanged }, &optimizer),
                     ZB_OK);
    assert_true(zb_optimizer_takes_norms(&plan));
    assert_int_equal(zb_optimizer_workspace_bytes(&plan, 2), sizeof sums);
    assert_int_equal(device.held_bytes[ZB_MEM_WORKSPACE], sizeof sums);
    launches = 0;
    assert_int_equal(zb_optimizer_step(&optimizer, &stream, &cut, 0.25f, &config), ZB_OK);
    assert_int_equal(launches, 5); /* empty segments take part: their rank holds none of the tensor */
    assert_ptr_equal(last_fill_bytes.data, optimizer.accumulators);
    assert_int_equal(last_fill_bytes.bytes, sizeof sums);
    assert_int_equal(exchanged.calls, 1);
    assert_ptr_equal(exchanged.words, optimizer.accumulators);
    assert_int_equal(exchanged.count, 4 * WORDS);
    assert_ptr_equal(last_lamb_moments.accumulators, optimizer.accumulators + 2 * WORDS);
    assert_ptr_equal(last_lamb_moments.p, optimizer.master + 1);
    assert_ptr_equal(last_lamb_moments.grad, (uint16_t *)(void *)grad + 1);
    assert_int_equal(last_lamb_moments.numel, 3);
    assert_int_equal(last_lamb_moments.eps_inside_sqrt, 1);
    assert_int_equal(bits(last_lamb_moments.grad_scale), bits(0.25f));
    assert_int_equal(bits(last_lamb_moments.one_minus_beta2), bits(0.25f));
    assert_ptr_equal(last_lamb_apply.p, optimizer.master + 1);
    assert_ptr_equal(last_lamb_apply.m, optimizer.exp_avg + 1);
    assert_ptr_equal(last_lamb_apply.v, optimizer.exp_avg_sq + 1);
    assert_ptr_equal(last_lamb_apply.param, (uint16_t *)(void *)param + 1);
    assert_int_equal(last_lamb_apply.numel, 3);
    /* The step size of the first step: 1/2 * sqrt(1/4) / (1/2); times 3/2. */
    assert_int_equal(bits(last_lamb_apply.factor), bits(0.75f));
    assert_int_equal(bits(last_lamb_apply.weight_decay), 0x34a10fb0);
    zb_optimizer_destroy(&optimizer, &device);
    assert_int_equal(device.held_bytes[ZB_MEM_WORKSPACE], 0);
}

static const struct ratio_case {
    const char *name;
    int64_t weights, updates; /* squares of the norms */
    double min_coeff, max_coeff;
    float ratio;
} ratio_cases[] = {
    { "ratio of the norms", 9, 4, 0.01, 10, 1.5f }, { "at most max_coeff", 9, 4, 0.01, 1.25, 1.25f },
    { "at least min_coeff", 9, 4, 2, 10, 2 },       { "1 for weights of 0", 0, 4, 2, 10, 1 },
    { "1 for an update of 0", 9, 0, 2, 10, 1 },
};

static void check_ratio(void **state)
{
    const struct ratio_case *c = *state;
    int64_t sums[2 * ZB_SUM_SQUARES_WORDS] = { [10] = c->weights, [ZB_SUM_SQUARES_WORDS + 10] = c->updates };
    const zb_optimizer_config config = {
        .kind = ZB_OPTIMIZER_LAMB, .lr = 1, .min_coeff = c->min_coeff, .max_coeff = c->max_coeff
    };
    zb_optimizer optimizer;
    next_sums = sums;
    assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
    assert_int_equal(step(&optimizer, &config, 1.0f), ZB_OK);
    assert_int_equal(bits(last_lamb_apply.factor), bits(c->ratio));
    assert_null(last_lamb_apply.param);
    zb_optimizer_destroy(&optimizer, &device);
}

/* --- state --- */

static const struct state_case {
    const char *name;
    zb_optimizer_config config;
    int first, second; /* moments */
} state_cases[] = {
    { "Adam keeps two moments", { .kind = ZB_OPTIMIZER_ADAM }, 1, 1 },
    { "SGD keeps nothing", { .kind = ZB_OPTIMIZER_SGD }, 0, 0 },
    { "SGD with momentum keeps one", { .kind = ZB_OPTIMIZER_SGD, .momentum = 0.9, .nesterov = 1 }, 1, 0 },
    { "SGD with dampening alone keeps nothing", { .kind = ZB_OPTIMIZER_SGD, .dampening = 0.5 }, 0, 0 },
    { "Adagrad keeps a sum of squares", { .kind = ZB_OPTIMIZER_ADAGRAD }, 0, 1 },
    { "Lion keeps one moment", { .kind = ZB_OPTIMIZER_LION }, 1, 0 },
    { "LAMB keeps two moments", { .kind = ZB_OPTIMIZER_LAMB }, 1, 1 },
};

static void check_state_in(const struct state_case *c, zb_dtype dtype)
{
    const uint64_t live = zb_alloc_get_stats().live;
    static const int64_t no_sums[2 * ZB_SUM_SQUARES_WORDS];
    zb_optimizer optimizer;
    const zb_plan plan = {
        .param_dtype = dtype, .grad_dtype = dtype, .groups = { c->config }, .group_count = 1
    };
    const int arrays = c->first + c->second + (dtype != ZB_FP32);               /* and the masters */
    const int allocations = arrays + (zb_optimizer_takes_norms(&plan) ? 2 : 0); /* here and there */
    next_sums = no_sums;
    assert_int_equal(zb_optimizer_bytes(&plan, 5), (size_t)arrays * sizeof grad);
    for (int n = 0; n <= allocations; n++) {
        zb_alloc_fail_at(n);
        zb_status status = create(&c->config, dtype, &optimizer);
        zb_alloc_fail_at(-1);
        assert_int_equal(status, n < allocations ? ZB_NO_MEMORY : ZB_OK);
        if (status == ZB_OK) {
            assert_int_equal(device.held_bytes[ZB_MEM_OPTIMIZER], (size_t)arrays * sizeof grad);
            assert_int_equal(device.held_bytes[ZB_MEM_WORKSPACE], zb_optimizer_workspace_bytes(&plan, 1));
            assert_true((optimizer.exp_avg != NULL) == c->first);
            assert_true((optimizer.exp_avg_sq != NULL) == c->second);
            assert_true((zb_optimizer_master(&optimizer, param, 0) == param) == (dtype == ZB_FP32));
            assert_int_equal(step(&optimizer, &c->config, 1.0f), ZB_OK);
        }
        zb_optimizer_destroy(&optimizer, &device);
        assert_int_equal(device.held_bytes[ZB_MEM_OPTIMIZER], 0);
        assert_int_equal(device.held_bytes[ZB_MEM_WORKSPACE], 0);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
}

static void check_state(void **state)
{
    check_state_in(*state, ZB_FP32);
    check_state_in(*state, ZB_BF16);
}

static void masters_come_from_the_rounded_weights(void **state)
{
    (void)state;
    zb_optimizer optimizer;
    assert_int_equal(create(&adam, ZB_FP16, &optimizer), ZB_OK);
    assert_int_equal(last_kernel, ZB_KERNEL_cast);
    assert_ptr_equal(last_cast.from, param);
    assert_int_equal(last_cast.from_dtype, ZB_FP16);
    assert_ptr_equal(last_cast.to, optimizer.master);
    assert_int_equal(last_cast.to_dtype, ZB_FP32);
    assert_int_equal(last_cast.numel, 5);
    assert_int_equal(step(&optimizer, &adam, 1.0f), ZB_OK);
    assert_ptr_equal(last_adam.p, optimizer.master);
    assert_ptr_equal(last_adam.param, param); /* and go back in the same pass */
    assert_int_equal(last_adam.param_dtype, ZB_FP16);
    assert_int_equal(last_adam.grad_dtype, ZB_FP16);
    zb_optimizer_destroy(&optimizer, &device);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(adam_cases) + COUNT(state_cases) + COUNT(ratio_cases) + 9] = {
        cmocka_unit_test(adam_passes_everything_on),
        cmocka_unit_test(sgd_starts_its_buffer_once),
        cmocka_unit_test(adagrad_lowers_its_rate),
        cmocka_unit_test(lion_passes_everything_on),
        cmocka_unit_test(segments_that_touch_are_one),
        cmocka_unit_test(cpu_adam_shares_its_powers),
        cmocka_unit_test(torch_adam_rounds_pythons_numbers),
        cmocka_unit_test(lamb_takes_norms_of_segments),
        cmocka_unit_test(masters_come_from_the_rounded_weights),
    };
    size_t n = 9;
    for (size_t i = 0; i < COUNT(adam_cases); i++)
        tests[n++] = (struct CMUnitTest){ adam_cases[i].name, check_adam, NULL, NULL,
                                          (void *)&adam_cases[i] };
    for (size_t i = 0; i < COUNT(ratio_cases); i++)
        tests[n++] = (struct CMUnitTest){ ratio_cases[i].name, check_ratio, NULL, NULL,
                                          (void *)&ratio_cases[i] };
    for (size_t i = 0; i < COUNT(state_cases); i++)
        tests[n++] = (struct CMUnitTest){ state_cases[i].name, check_state, NULL, NULL,
                                          (void *)&state_cases[i] };
    return cmocka_run_group_tests_name("optimizer", tests, NULL, NULL);
}
