/* Optimizers, in every arithmetic they have. */
#include <string.h>

#include "tests/cuda/harness.h"

static const size_t sizes[] = { 0, 1, 3, 4, 15, 17, 33, 255, 1023, 1029, 4099 };
enum { SIZES = sizeof sizes / sizeof sizes[0], PARAMS = TENSOR_DTYPES + 1 };
static const fill_kind kinds[] = { FILL_UNIFORM, FILL_WIDE, FILL_SMALL, FILL_SPECIAL, FILL_BITS };

/* One combination of types and scalars. */
typedef struct setting {
    size_t numel;
    zb_dtype grad_dtype, param_dtype;
    int has_param;
    fill_kind kind;
    float grad_scale, weight_decay;
} setting;

static setting random_setting(rng *r, size_t numel)
{
    static const float scales[] = { 1, 0.5f, 1 / 3.0f, 0x1p-16f }, decays[] = { 0, 0.01f, 0.1f, -0.5f };
    const size_t param = rng_below(r, PARAMS);
    return (setting){ .numel = numel,
                      .grad_dtype = tensor_dtypes[rng_below(r, TENSOR_DTYPES)],
                      .param_dtype = param < TENSOR_DTYPES ? tensor_dtypes[param] : ZB_FP32,
                      .has_param = param < TENSOR_DTYPES,
                      .kind = kinds[rng_below(r, sizeof kinds / sizeof kinds[0])],
                      .grad_scale = scales[rng_below(r, 4)],
                      .weight_decay = decays[rng_below(r, 4)] };
}

static trial begin(rng *r, const char *name, int arithmetic, const setting *s)
{
    return trial_begin(r, "%s, arithmetic %d, %zu elements, gradients %s, parameters %s, weight decay %a, %s",
                       name, arithmetic, s->numel, zb_dtype_name(s->grad_dtype),
                       s->has_param ? zb_dtype_name(s->param_dtype) : "none", (double)s->weight_decay,
                       fill_name(s->kind));
}

static array *param_of(trial *t, const setting *s)
{
    return s->has_param ? trial_output(t, "param", s->param_dtype, s->numel) : NULL;
}
#define AT_OR_NULL(array) ((array) != NULL ? AT(array) : NULL)

static void adam_once(rng *r, zb_optimizer_arithmetic arithmetic, size_t numel)
{
    const setting s = random_setting(r, numel);
    static const size_t widths[] = { 1, 8, 16 };
    const size_t width = widths[rng_below(r, 3)];
    const int decoupled = (int)rng_below(r, 2);
    const float beta1 = rng_below(r, 3) == 0 ? 0.4f : 0.9f; /* 0.6 is the other side of lerp */
    trial t = begin(r, "adam", (int)arithmetic, &s);
    array *p = trial_array(&t, "p", ZB_FP32, numel, s.kind),
          *m = trial_array(&t, "m", ZB_FP32, numel, s.kind);
    array *v = trial_array(&t, "v", ZB_FP32, numel, s.kind),
          *g = trial_array(&t, "grad", s.grad_dtype, numel, s.kind);
    array *param = param_of(&t, &s);
    TRIAL_RUN(&t, adam, .p = AT(p), .grad_dtype = s.grad_dtype, .grad = AT(g), .m = AT(m), .v = AT(v),
              .param_dtype = s.param_dtype, .param = AT_OR_NULL(param), .numel = numel,
              .grad_scale = s.grad_scale, .lr = 1e-3f, .beta1 = beta1, .beta2 = 0.999f,
              .one_minus_beta1 = 1 - beta1, .one_minus_beta2 = 1 - 0.999f, .eps = 1e-8f,
              .weight_decay = s.weight_decay, .correction1 = 0.19f, .correction2 = 0.002f,
              .decoupled = decoupled, .arithmetic = arithmetic, .decay = 0.99999f, .step_size = -0.0053f,
              .root_correction2 = 0.0447f, .vector_width = width);
}

static void check_adam(rng *r)
{
    for (int a = ZB_ARITHMETIC_PLAIN;
         zb_optimizer_has_arithmetic(ZB_OPTIMIZER_ADAM, (zb_optimizer_arithmetic)a); a++)
        for (size_t i = 0; i < 40 * SIZES; i++) adam_once(r, (zb_optimizer_arithmetic)a, sizes[i % SIZES]);
}

static void sgd_once(rng *r, zb_optimizer_arithmetic arithmetic, size_t numel)
{
    const setting s = random_setting(r, numel);
    const float momentum = rng_below(r, 3) == 0 ? 0 : 0.9f;
    const int nesterov = (int)rng_below(r, 2), first_step = (int)rng_below(r, 2);
    trial t = begin(r, "sgd", (int)arithmetic, &s);
    array *p = trial_array(&t, "p", ZB_FP32, numel, s.kind),
          *g = trial_array(&t, "grad", s.grad_dtype, numel, s.kind);
    array *buf = momentum != 0 ? trial_array(&t, "buf", ZB_FP32, numel, s.kind) : NULL,
          *param = param_of(&t, &s);
    TRIAL_RUN(&t, sgd, .p = AT(p), .grad_dtype = s.grad_dtype, .grad = AT(g), .buf = AT_OR_NULL(buf),
              .param_dtype = s.param_dtype, .param = AT_OR_NULL(param), .numel = numel,
              .grad_scale = s.grad_scale, .lr = 0.1f, .weight_decay = s.weight_decay, .momentum = momentum,
              .one_minus_dampening = 0.7f, .nesterov = nesterov, .first_step = first_step,
              .arithmetic = arithmetic);
}

static void adagrad_once(rng *r, zb_optimizer_arithmetic arithmetic, size_t numel)
{
    const setting s = random_setting(r, numel);
    trial t = begin(r, "adagrad", (int)arithmetic, &s);
    array *p = trial_array(&t, "p", ZB_FP32, numel, s.kind),
          *g = trial_array(&t, "grad", s.grad_dtype, numel, s.kind);
    array *sum = trial_array(&t, "sum", ZB_FP32, numel, s.kind), *param = param_of(&t, &s);
    TRIAL_RUN(&t, adagrad, .p = AT(p), .grad_dtype = s.grad_dtype, .grad = AT(g), .sum = AT(sum),
              .param_dtype = s.param_dtype, .param = AT_OR_NULL(param), .numel = numel,
              .grad_scale = s.grad_scale, .lr = 0.1f, .weight_decay = s.weight_decay, .eps = 1e-10f,
              .arithmetic = arithmetic);
}

static void lion_once(rng *r, zb_optimizer_arithmetic arithmetic, size_t numel)
{
    const setting s = random_setting(r, numel);
    trial t = begin(r, "lion", (int)arithmetic, &s);
    array *p = trial_array(&t, "p", ZB_FP32, numel, s.kind),
          *g = trial_array(&t, "grad", s.grad_dtype, numel, s.kind);
    array *m = trial_array(&t, "m", ZB_FP32, numel, s.kind), *param = param_of(&t, &s);
    TRIAL_RUN(&t, lion, .p = AT(p), .grad_dtype = s.grad_dtype, .grad = AT(g), .m = AT(m),
              .param_dtype = s.param_dtype, .param = AT_OR_NULL(param), .numel = numel,
              .grad_scale = s.grad_scale, .lr = 1e-3f, .weight_decay = s.weight_decay, .decay = 0.9999f,
              .beta1 = 0.9f, .beta2 = 0.99f, .one_minus_beta1 = 0.1f, .one_minus_beta2 = 0.01f,
              .arithmetic = arithmetic);
}

/* In every arithmetic; one that the optimizer does not have is refused by both. */
static void check_others(rng *r)
{
    for (int a = ZB_ARITHMETIC_PLAIN; a <= ZB_ARITHMETIC_TORCH_2; a++)
        for (size_t i = 0; i < 25 * SIZES; i++) {
            sgd_once(r, (zb_optimizer_arithmetic)a, sizes[i % SIZES]);
            adagrad_once(r, (zb_optimizer_arithmetic)a, sizes[i % SIZES]);
            lion_once(r, (zb_optimizer_arithmetic)a, sizes[i % SIZES]);
        }
}

/* Accumulators that may hold something, normalised or not. */
static array *accumulators(trial *t, size_t count)
{
    int64_t words[2 * ZB_SUM_SQUARES_WORDS];
    assert_true(count <= 2 * ZB_SUM_SQUARES_WORDS);
    for (size_t i = 0; i < count; i++)
        words[i] = rng_below(t->random, 2) ? 0
                                           : (int64_t)rng_next(t->random) >> (8 + rng_below(t->random, 40));
    return trial_values(t, "accumulators", ZB_INT64, count, words);
}

static void lamb_once(rng *r, size_t numel)
{
    const setting s = random_setting(r, numel);
    const int inside = (int)rng_below(r, 2);
    trial t = begin(r, "lamb_moments", 0, &s);
    array *p = trial_array(&t, "p", ZB_FP32, numel, s.kind),
          *g = trial_array(&t, "grad", s.grad_dtype, numel, s.kind);
    array *m = trial_array(&t, "m", ZB_FP32, numel, s.kind),
          *v = trial_array(&t, "v", ZB_FP32, numel, s.kind);
    array *sums = accumulators(&t, 2 * ZB_SUM_SQUARES_WORDS);
    TRIAL_RUN(&t, lamb_moments, .p = AT(p), .grad_dtype = s.grad_dtype, .grad = AT(g), .m = AT(m), .v = AT(v),
              .numel = numel, .grad_scale = s.grad_scale, .beta1 = 0.9f, .beta2 = 0.999f,
              .one_minus_beta1 = 0.1f, .one_minus_beta2 = 0.001f, .eps = 1e-6f,
              .weight_decay = s.weight_decay, .eps_inside_sqrt = inside, .accumulators = AT(sums));
    t = begin(r, "lamb_apply", 0, &s);
    p = trial_array(&t, "p", ZB_FP32, numel, s.kind), m = trial_array(&t, "m", ZB_FP32, numel, s.kind);
    v = trial_array(&t, "v", ZB_FP32, numel, s.kind);
    array *param = param_of(&t, &s);
    TRIAL_RUN(&t, lamb_apply, .p = AT(p), .m = AT(m), .v = AT(v), .param_dtype = s.param_dtype,
              .param = AT_OR_NULL(param), .numel = numel, .factor = 0.003f, .eps = 1e-6f,
              .weight_decay = s.weight_decay, .eps_inside_sqrt = inside);
}

static void check_lamb(rng *r)
{
    for (size_t i = 0; i < 30 * SIZES; i++) lamb_once(r, sizes[i % SIZES]);
}

static void check_refused(rng *r)
{
    trial t;
    array *a, *b;
#define REFUSED(operation, ...)                                                                              \
    t = trial_begin(r, #operation ", refused");                                                              \
    a = trial_array(&t, "a", ZB_FP64, 5, FILL_BITS), b = trial_array(&t, "b", ZB_FP32, 5, FILL_BITS);        \
    TRIAL_RUN(&t, operation, .p = AT(b), .numel = 5, __VA_ARGS__)
    const zb_dtype wrong = ZB_FP64;
    REFUSED(adam, .m = AT(b), .v = AT(b), .grad_dtype = wrong, .grad = AT(a));
    REFUSED(adam, .m = AT(b), .v = AT(b), .grad = AT(b), .param_dtype = wrong, .param = AT(a));
    REFUSED(adam, .m = AT(b), .v = AT(b), .grad = AT(b), .arithmetic = (zb_optimizer_arithmetic)99);
    REFUSED(adam, .m = AT(b), .v = AT(b), .grad = AT(b), .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU,
            .vector_width = 0);
    REFUSED(sgd, .grad_dtype = wrong, .grad = AT(a));
    REFUSED(sgd, .grad = AT(b), .param_dtype = wrong, .param = AT(a));
    REFUSED(adagrad, .sum = AT(b), .grad_dtype = wrong, .grad = AT(a));
    REFUSED(lion, .m = AT(b), .grad_dtype = wrong, .grad = AT(a));
    REFUSED(lamb_moments, .m = AT(b), .v = AT(b), .grad_dtype = wrong, .grad = AT(a));
    REFUSED(lamb_apply, .m = AT(b), .v = AT(b), .param_dtype = wrong, .param = AT(a));
#undef REFUSED
}

CUDA_CASE_TABLE(optimizer, { "adam", check_adam }, { "sgd, adagrad, lion", check_others },
                { "lamb", check_lamb }, { "optimizers, refused", check_refused });
