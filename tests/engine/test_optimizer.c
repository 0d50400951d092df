/* The scalars that the optimizers hand to their kernels, step by step, and the state that they keep. */
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
static zb_adam_args last_adam;
static zb_sgd_args last_sgd;
static zb_cast_args last_cast;

static zb_status note_launch(zb_stream *stream, zb_kernel kernel, const void *args, size_t args_bytes)
{
    (void)stream;
    last_kernel = kernel;
    void *to = kernel == ZB_KERNEL_adam  ? (void *)&last_adam
               : kernel == ZB_KERNEL_sgd ? (void *)&last_sgd
                                         : &last_cast;
    size_t bytes = kernel == ZB_KERNEL_adam  ? sizeof last_adam
                   : kernel == ZB_KERNEL_sgd ? sizeof last_sgd
                                             : sizeof last_cast;
    assert_true(kernel == ZB_KERNEL_adam || kernel == ZB_KERNEL_sgd || kernel == ZB_KERNEL_cast);
    assert_int_equal(args_bytes, bytes);
    memcpy(to, args, args_bytes);
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
    .name = "note", .alloc = note_alloc, .free = note_free, .launch = note_launch
};
static zb_device device = { .ops = &note_ops };
static zb_stream stream = { .device = &device, .name = "compute" };

static float param[5], grad[5];
static zb_segment segment = { .numel = 5, .param = param, .grad = grad };
static const zb_shard shard = { .segments = &segment, .segment_count = 1, .numel = 5 };

static zb_status create(const zb_optimizer_config *config, zb_dtype dtype, zb_optimizer *optimizer)
{
    const zb_plan plan = { .param_dtype = dtype, .grad_dtype = dtype, .optimizer = *config };
    return zb_optimizer_create(&plan, &stream, &shard, optimizer);
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
                                          .lr = 99,
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
    assert_int_equal(zb_optimizer_step(&optimizer, &stream, &shard, 0.25f, 1e-3), ZB_OK);
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
        assert_int_equal(zb_optimizer_step(&optimizer, &stream, &shard, 0.25f, 1e-3), ZB_OK);
        assert_ptr_equal(last_adam.p, param); /* in fp32 the weights are the masters */
        assert_null(last_adam.param);
        assert_ptr_equal(last_adam.grad, grad);
        assert_ptr_equal(last_adam.m, optimizer.exp_avg);
        assert_ptr_equal(last_adam.v, optimizer.exp_avg_sq);
        assert_int_equal(last_adam.numel, 5);
        assert_int_equal(last_adam.decoupled, decoupled);
        assert_int_equal(bits(last_adam.grad_scale), bits(0.25f));
        assert_int_equal(bits(last_adam.lr), 0x3a83126f); /* the schedule's, not the config's */
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
    const zb_optimizer_config config = {
        .kind = ZB_OPTIMIZER_SGD, .momentum = 0.9, .dampening = 0.3, .weight_decay = 3e-7, .nesterov = 0
    };
    zb_optimizer optimizer;
    assert_int_equal(create(&config, ZB_FP32, &optimizer), ZB_OK);
    for (int step = 1; step <= 3; step++) {
        assert_int_equal(zb_optimizer_step(&optimizer, &stream, &shard, 0.5f, 1e-3), ZB_OK);
        assert_int_equal(last_kernel, ZB_KERNEL_sgd);
        assert_int_equal(last_sgd.first_step, step == 1);
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

/* --- state --- */

static const struct state_case {
    const char *name;
    zb_optimizer_config config;
    int arrays;
} state_cases[] = {
    { "Adam keeps two moments", { .kind = ZB_OPTIMIZER_ADAM }, 2 },
    { "SGD keeps nothing", { .kind = ZB_OPTIMIZER_SGD }, 0 },
    { "SGD with momentum keeps one", { .kind = ZB_OPTIMIZER_SGD, .momentum = 0.9, .nesterov = 1 }, 1 },
    { "SGD with dampening alone keeps nothing", { .kind = ZB_OPTIMIZER_SGD, .dampening = 0.5 }, 0 },
};

static void check_state_in(const struct state_case *c, zb_dtype dtype)
{
    uint64_t live = zb_alloc_get_stats().live;
    zb_optimizer optimizer;
    const zb_plan plan = { .param_dtype = dtype, .grad_dtype = dtype, .optimizer = c->config };
    int arrays = c->arrays + (dtype != ZB_FP32); /* and the masters */
    assert_int_equal(zb_optimizer_bytes(&plan, 5), (size_t)arrays * sizeof grad);
    for (int n = 0; n <= arrays; n++) {
        zb_alloc_fail_at(n);
        zb_status status = create(&c->config, dtype, &optimizer);
        zb_alloc_fail_at(-1);
        assert_int_equal(status, n < arrays ? ZB_NO_MEMORY : ZB_OK);
        if (status == ZB_OK) {
            assert_int_equal(device.held_bytes[ZB_MEM_OPTIMIZER], (size_t)arrays * sizeof grad);
            assert_true((optimizer.exp_avg != NULL) == (c->arrays > 0));
            assert_true((optimizer.exp_avg_sq != NULL) == (c->arrays > 1));
            assert_true((zb_optimizer_master(&optimizer, param, 0) == param) == (dtype == ZB_FP32));
            assert_int_equal(zb_optimizer_step(&optimizer, &stream, &shard, 1.0f, 1.0), ZB_OK);
        }
        zb_optimizer_destroy(&optimizer, &device);
        assert_int_equal(device.held_bytes[ZB_MEM_OPTIMIZER], 0);
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
    assert_int_equal(zb_optimizer_step(&optimizer, &stream, &shard, 1.0f, 1.0), ZB_OK);
    assert_ptr_equal(last_adam.p, optimizer.master);
    assert_ptr_equal(last_adam.param, param); /* and go back in the same pass */
    assert_int_equal(last_adam.param_dtype, ZB_FP16);
    assert_int_equal(last_adam.grad_dtype, ZB_FP16);
    zb_optimizer_destroy(&optimizer, &device);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(adam_cases) + COUNT(state_cases) + 3] = {
        cmocka_unit_test(adam_passes_everything_on),
        cmocka_unit_test(sgd_starts_its_buffer_once),
        cmocka_unit_test(masters_come_from_the_rounded_weights),
    };
    size_t n = 3;
    for (size_t i = 0; i < COUNT(adam_cases); i++)
        tests[n++] = (struct CMUnitTest){ adam_cases[i].name, check_adam, NULL, NULL,
                                          (void *)&adam_cases[i] };
    for (size_t i = 0; i < COUNT(state_cases); i++)
        tests[n++] = (struct CMUnitTest){ state_cases[i].name, check_state, NULL, NULL,
                                          (void *)&state_cases[i] };
    return cmocka_run_group_tests_name("optimizer", tests, NULL, NULL);
}
