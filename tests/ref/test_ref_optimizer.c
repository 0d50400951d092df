/* The oracle's optimizers: against what the real ones computed, and by hand. */
#include "tests/ref/bits.h"

#include "ref/oracle.h"
#include "tests/golden/optimizer_vectors.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- recorded --- */

static void assert_hex(const char *what, size_t numel, const uint32_t *want, const float *got)
{
    for (size_t i = 0; i < numel; i++)
        if (bits_of(got[i]) != want[i])
            fail_msg("%s[%zu] is %08x, want %08x", what, i, bits_of(got[i]), want[i]);
}

static void check_vector(void **state)
{
    const optimizer_vector *c = *state;
    float p[VECTOR_NUMEL_MAX], grad[VECTOR_NUMEL_MAX];
    float m[VECTOR_NUMEL_MAX] = { 0 }, v[VECTOR_NUMEL_MAX] = { 0 };
    zb_ref_optimizer optimizer = { 0 };
    optimizer_vector_start(c, p);
    for (int step = 1; step <= VECTOR_STEPS; step++) {
        optimizer_vector_gradient(c, step, grad);
        zb_ref_optimizer_begin(&optimizer, &c->config);
        zb_ref_update(&optimizer, 1.0f, c->numel, p, grad, m, v);
    }
    assert_hex("p", c->numel, c->p, p);
    assert_hex("m", c->numel, c->m, m);
    assert_hex("v", c->numel, c->v, v);
}

/* --- by hand. Powers of two throughout, so that every number below is exact --- */

/* One element at one step. */
static void step_one(zb_ref_optimizer *o, const zb_optimizer_config *now, float grad_scale, float grad,
                     float *p, float *m, float *v)
{
    zb_ref_optimizer_begin(o, now);
    zb_ref_update(o, grad_scale, 1, p, &grad, m, v);
}

static void check_adam_by_hand(void **state)
{
    (void)state;
    const zb_optimizer_config config = {
        .kind = ZB_OPTIMIZER_ADAM, .lr = 1.5, .beta1 = 0.5, .beta2 = 0.75, .eps = 1.0
    };
    zb_ref_optimizer optimizer = { 0 };
    float p = 1.0f, m = 0.0f, v = 0.0f;
    /* g = 8 * 1/2 = 4; m = 2; v = (1/4 * 4) * 4 = 4; without bias correction u = 2 / (2 + 1); p = 1 - 3/2 * u
     */
    step_one(&optimizer, &config, 0.5f, 8.0f, &p, &m, &v);
    assert_true(m == 2.0f && v == 4.0f);
    assert_true(same_bits(p, 1.0f - 1.5f * (2.0f / 3.0f)));
}

/* Multiplied up while the betas stay, computed anew when they change. */
static void check_powers(void **state)
{
    (void)state;
    zb_optimizer_config now = { .kind = ZB_OPTIMIZER_ADAM, .beta1 = 0.9, .beta2 = 0.999 };
    zb_ref_optimizer o = { 0 };
    float power1 = 0.9f, power2 = 0.999f;
    for (int step = 1; step <= 20; step++) {
        zb_ref_optimizer_begin(&o, &now);
        if (step > 1) power1 *= 0.9f, power2 *= 0.999f;
        assert_true(o.step == step && same_bits(o.power1, power1) && same_bits(o.power2, power2));
    }
    assert_false(same_bits(power2, (float)pow((double)0.999f, 20))); /* so the two ways can be told apart */
    now.beta1 = 0.8;
    zb_ref_optimizer_begin(&o, &now);
    assert_true(same_bits(o.power1, (float)pow((double)0.8f, 21)));
    assert_true(same_bits(o.power2, (float)pow((double)0.999f, 21)));
    zb_ref_optimizer_begin(&o, &now);
    assert_true(same_bits(o.power1, (float)pow((double)0.8f, 21) * 0.8f));
}

static const struct sgd_case {
    const char *name;
    double weight_decay, momentum, dampening;
    int nesterov;
    float p[2], buf[2]; /* after step 1 and 2, from p = 8, gradient 4, lr 1/2, gradient scale 1/2 */
} sgd_cases[] = {
    /* g = 2 */
    { "SGD, plain", 0.0, 0.0, 0.0, 0, { 7.0f, 6.0f }, { 0.0f, 0.0f } },
    /* g = 2 + p/4: 4, p = 6; 3.5, p = 4.25 */
    { "SGD, weight decay", 0.25, 0.0, 0.0, 0, { 6.0f, 4.25f }, { 0.0f, 0.0f } },
    /* buf = 2, p = 7; buf = 1 + 2 = 3, p = 5.5 */
    { "SGD, momentum", 0.0, 0.5, 0.0, 0, { 7.0f, 5.5f }, { 2.0f, 3.0f } },
    /* buf = 2 undampened, p = 7; buf = 1 + 1/4 * 2 = 1.5, p = 6.25 */
    { "SGD, dampening, not in the first step", 0.0, 0.5, 0.75, 0, { 7.0f, 6.25f }, { 2.0f, 1.5f } },
    /* buf = 2, g = 2 + 1 = 3, p = 6.5; buf = 3, g = 2 + 1.5 = 3.5, p = 4.75 */
    { "SGD, nesterov", 0.0, 0.5, 0.0, 1, { 6.5f, 4.75f }, { 2.0f, 3.0f } },
};

static void check_sgd(void **state)
{
    const struct sgd_case *c = *state;
    for (int a = 0; a < ZB_ARITHMETIC_COUNT; a++) {
        if (!zb_optimizer_has_arithmetic(ZB_OPTIMIZER_SGD, (zb_optimizer_arithmetic)a)) continue;
        const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_SGD,
                                             .arithmetic = (zb_optimizer_arithmetic)a,
                                             .lr = 0.5,
                                             .weight_decay = c->weight_decay,
                                             .momentum = c->momentum,
                                             .dampening = c->dampening,
                                             .nesterov = c->nesterov };
        zb_ref_optimizer optimizer = { 0 };
        float p = 8.0f, buf = 0.0f;
        for (int step = 0; step < 2; step++) {
            step_one(&optimizer, &config, 0.5f, 4.0f, &p, &buf, NULL);
            assert_same_floats("p", &c->p[step], &p, 1);
            assert_same_floats("buf", &c->buf[step], &buf, 1);
        }
    }
}

static const struct adagrad_case {
    const char *name;
    zb_optimizer_arithmetic arithmetic;
    double weight_decay, eps, lr_decay;
    float p[2], sum[2]; /* after step 1 and 2, from p = 8, gradient 8 and 6, lr 2, gradient scale 1/2 */
} adagrad_cases[] = {
    /* g = 4, sum = 16, u = 4 / (4 + 4); g = 3, sum = 25, u = 3 / (5 + 4) */
    { "Adagrad", ZB_ARITHMETIC_PLAIN, 0, 4, 0, { 7.0f, 7.0f - 2.0f * (3.0f / 9.0f) }, { 16.0f, 25.0f } },
    /* the second rate is 1 */
    { "Adagrad, a falling rate",
      ZB_ARITHMETIC_PLAIN,
      0,
      4,
      1,
      { 7.0f, 7.0f - 3.0f / 9.0f },
      { 16.0f, 25.0f } },
    /* g = 4 + 8/4 = 6, sum = 36, u = 6 / (6 + 2), p = 6.5 */
    { "Adagrad, weight decay", ZB_ARITHMETIC_PLAIN, 0.25, 2, 0, { 6.5f, 0 }, { 36.0f, 0 } },
    { "Adagrad of torch, weight decay", ZB_ARITHMETIC_TORCH_2, 0.25, 2, 0, { 6.5f, 0 }, { 36.0f, 0 } },
    /* u = 4 / (6 + 2): the decay is missing above the line */
    { "Adagrad of DeepSpeed, weight decay",
      ZB_ARITHMETIC_DEEPSPEED_CPU,
      0.25,
      2,
      0,
      { 7.0f, 0 },
      { 36.0f, 0 } },
};

static void check_adagrad(void **state)
{
    const struct adagrad_case *c = *state;
    const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_ADAGRAD,
                                         .arithmetic = c->arithmetic,
                                         .lr = 2,
                                         .weight_decay = c->weight_decay,
                                         .eps = c->eps,
                                         .lr_decay = c->lr_decay };
    const float grads[] = { 8.0f, 6.0f };
    zb_ref_optimizer optimizer = { 0 };
    float p = 8.0f, sum = 0.0f;
    for (int step = 0; step < 2 && c->sum[step] != 0; step++) {
        step_one(&optimizer, &config, 0.5f, grads[step], &p, NULL, &sum);
        assert_same_floats("p", &c->p[step], &p, 1);
        assert_same_floats("sum", &c->sum[step], &sum, 1);
    }
}

static const struct lion_case {
    const char *name;
    zb_optimizer_arithmetic arithmetic;
    double weight_decay;
    float grad, m_before, p, m; /* from p = 8; lr 1/2, betas 1/2 and 3/4, gradient scale 1/2 */
} lion_cases[] = {
    /* c = m/2 + g/2; keep = 1 - 1/8 */
    { "Lion up the slope", ZB_ARITHMETIC_PLAIN, 0.25, 4, 2, 6.5f, 2.0f },
    { "Lion down the slope", ZB_ARITHMETIC_PLAIN, 0.25, 4, -4, 7.5f, -2.5f },
    { "Lion takes 0 for negative", ZB_ARITHMETIC_PLAIN, 0.25, 4, -2, 7.5f, -1.0f },
    { "Lion takes a NaN for negative", ZB_ARITHMETIC_PLAIN, 0, (float)NAN, 2, 8.5f, (float)NAN },
    { "CPULion up the slope", ZB_ARITHMETIC_DEEPSPEED_CPU, 0.25, 4, 2, 6.5f, 2.0f },
    { "CPULion down the slope", ZB_ARITHMETIC_DEEPSPEED_CPU, 0, 4, -4, 8.5f, -2.5f },
    { "CPULion takes 0 for positive", ZB_ARITHMETIC_DEEPSPEED_CPU, 0.25, 4, -2, 6.5f, -1.0f },
    { "CPULion passes a NaN on", ZB_ARITHMETIC_DEEPSPEED_CPU, 0, (float)NAN, 2, (float)NAN, (float)NAN },
};

static void check_lion(void **state)
{
    const struct lion_case *c = *state;
    const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_LION,
                                         .arithmetic = c->arithmetic,
                                         .lr = 0.5,
                                         .weight_decay = c->weight_decay,
                                         .beta1 = 0.5,
                                         .beta2 = 0.75 };
    zb_ref_optimizer optimizer = { 0 };
    float p = 8.0f, m = c->m_before;
    step_one(&optimizer, &config, 0.5f, c->grad, &p, &m, NULL);
    assert_same_floats("p", &c->p, &p, 1);
    assert_same_floats("m", &c->m, &m, 1);
}

/* With betas of 0 and eps 0 the update is the gradient's sign, + p/4. */
static const struct lamb_case {
    const char *name;
    zb_optimizer_config config;
    float p_before, p; /* gradient 6, scale 1/2, lr 1/2 */
} lamb_cases[] = {
    /* u = 1 + 1 = 2, ratio 4 / 2, p = 4 - 1/2 * 2 * 2 */
    { "LAMB", { .weight_decay = 0.25, .max_coeff = 10, .min_coeff = 0.01 }, 4, 2 },
    { "LAMB, ratio too large", { .weight_decay = 0.25, .max_coeff = 1.5, .min_coeff = 0.01 }, 4, 2.5f },
    { "LAMB, ratio too small", { .weight_decay = 0.25, .max_coeff = 10, .min_coeff = 3 }, 4, 1 },
    { "LAMB, weights of 0: a ratio of 1",
      { .weight_decay = 0.25, .max_coeff = 10, .min_coeff = 3 },
      0,
      -0.5f },
    /* u = -1 + 1 = 0: p stays */
    { "LAMB, an update of 0", { .weight_decay = 0.25, .max_coeff = 10, .min_coeff = 3 }, -4, -4 },
    /* sqrt(9 + 16) = 5, u = 3/5; ratio 4 / (3/5), times u is 4 */
    { "LAMB, eps inside", { .eps = 16, .eps_inside_sqrt = 1, .max_coeff = 100, .min_coeff = 0.01 }, 4, 2 },
    /* betas 1/2, 3/4: u = 1 again; the step size is 1/2 * sqrt(1/4) / (1/2) */
    { "LAMB, bias correction",
      { .beta1 = 0.5, .beta2 = 0.75, .bias_correction = 1, .max_coeff = 1, .min_coeff = 0.01 },
      4,
      3.5f },
};

static void check_lamb(void **state)
{
    const struct lamb_case *c = *state;
    zb_optimizer_config config = c->config;
    config.kind = ZB_OPTIMIZER_LAMB;
    config.lr = 0.5;
    zb_ref_optimizer optimizer = { 0 };
    float p = c->p_before, m = 0.0f, v = 0.0f;
    step_one(&optimizer, &config, 0.5f, 6.0f, &p, &m, &v);
    assert_same_floats("p", &c->p, &p, 1);
}

/* Over both elements: |p| = 5, |u| = sqrt 2. */
static void lamb_takes_the_norm_of_all(void **state)
{
    (void)state;
    const zb_optimizer_config config = { .kind = ZB_OPTIMIZER_LAMB, .lr = 0.5, .max_coeff = 10 };
    zb_ref_optimizer optimizer = { 0 };
    float p[] = { 3, 4 }, m[2] = { 0 }, v[2] = { 0 };
    const float grad[] = { 7, -9 }, factor = 0.5f * (float)(5 / sqrt(2));
    zb_ref_optimizer_begin(&optimizer, &config);
    zb_ref_update(&optimizer, 1.0f, 2, p, grad, m, v);
    assert_true(same_bits(p[0], 3 - factor) && same_bits(p[1], 4 + factor));
}

int main(void)
{
    struct CMUnitTest tests[3 + OPTIMIZER_VECTOR_COUNT + COUNT(sgd_cases) + COUNT(adagrad_cases) +
                            COUNT(lion_cases) + COUNT(lamb_cases)] = {
        cmocka_unit_test(check_adam_by_hand),
        cmocka_unit_test(check_powers),
        cmocka_unit_test(lamb_takes_the_norm_of_all),
    };
    size_t n = 3;
#define ADD(cases, check)                                                                                    \
    for (size_t i = 0; i < COUNT(cases); i++)                                                                \
        tests[n++] = (struct CMUnitTest){ (cases)[i].name, check, NULL, NULL, (void *)&(cases)[i] };
    ADD(optimizer_vectors, check_vector)
    ADD(sgd_cases, check_sgd)
    ADD(adagrad_cases, check_adagrad)
    ADD(lion_cases, check_lion)
    ADD(lamb_cases, check_lamb)
#undef ADD
    return cmocka_run_group_tests_name("ref_optimizer", tests, NULL, NULL);
}
