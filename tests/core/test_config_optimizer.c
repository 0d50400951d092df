/* The section optimizer: what arrives in the config, what is refused, and what becomes of it in a plan. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/config.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define OF_TYPE(type, params, rest)                                                                          \
    "{\"train_batch_size\": 8, \"optimizer\": {\"type\": \"" type "\", \"params\": {" params "}}" rest "}"
#define ZEROBIT(members) ", \"zerobit\": {" members "}"
#define ARITHMETIC(name) ZEROBIT("\"optimizer_arithmetic\": \"" name "\"")
#define DEEPSPEED        "\"semantics\": \"deepspeed-0.19.6\""

static zb_config *parse(const char *text)
{
    zb_config *config = NULL;
    if (zb_config_parse(text, strlen(text), "f.json", &config) != ZB_OK)
        fail_msg("%s\n%s", text, zb_error_message());
    return config;
}

/* --- what arrives --- */

#define BETAS .beta1 = 0.9, .beta2 = 0.999
#define ADAM                                                                                                 \
    .kind = ZB_OPTIMIZER_ADAM, .lr = 1e-3, BETAS, .eps = 1e-8, .bias_correction = 1, .vector_width = 8
#define ADAMW   ADAM, .decay_mode = ZB_DECAY_DECOUPLED
#define ADAGRAD .kind = ZB_OPTIMIZER_ADAGRAD, .lr = 1e-2, .eps = 1e-10, .vector_width = 8
#define LION    .kind = ZB_OPTIMIZER_LION, .decay_mode = ZB_DECAY_DECOUPLED, .lr = 1e-3, BETAS, .vector_width = 8
#define LAMB                                                                                                 \
    .kind = ZB_OPTIMIZER_LAMB, .decay_mode = ZB_DECAY_DECOUPLED, .lr = 1e-3, BETAS, .eps = 1e-8,             \
    .bias_correction = 1, .min_coeff = 0.01, .max_coeff = 10, .vector_width = 8

static const struct good_case {
    const char *text;
    zb_optimizer_config want;
} good_cases[] = {
    { OF_TYPE("aDaM", "", ""), { ADAMW } },
    { OF_TYPE("Adam", "\"adam_w_mode\": false", ""), { ADAM, .decay_mode = ZB_DECAY_L2 } },
    { OF_TYPE("ADAMW", "\"adam_w_mode\": false", ""), { ADAMW } },
    { OF_TYPE("Adam",
              "\"lr\": 0.5, \"betas\": [0.25, 0.75], \"eps\": 2, \"weight_decay\": 3, \"bias_correction\": "
              "false, \"amsgrad\": false",
              ""),
      { .kind = ZB_OPTIMIZER_ADAM,
        .lr = 0.5,
        .beta1 = 0.25,
        .beta2 = 0.75,
        .eps = 2,
        .weight_decay = 3,
        .decay_mode = ZB_DECAY_DECOUPLED,
        .vector_width = 8 } },
    { OF_TYPE("Adam", "\"torch_adam\": true, \"foreach\": null, \"capturable\": false", ""),
      { ADAMW, .arithmetic = ZB_ARITHMETIC_TORCH_1 } },
    { OF_TYPE("Adam", "\"torch_adam\": true, \"adam_w_mode\": false", ARITHMETIC("torch-2")),
      { ADAM, .arithmetic = ZB_ARITHMETIC_TORCH_2 } },
    { OF_TYPE("Adam", "\"torch_adam\": false", ARITHMETIC("torch-1.13")),
      { ADAMW, .arithmetic = ZB_ARITHMETIC_TORCH_1 } },
    { OF_TYPE("Adam", "", ARITHMETIC("plain")), { ADAMW } },
    { OF_TYPE(
          "Adam", "",
          ZEROBIT(DEEPSPEED ", \"optimizer_arithmetic\": \"deepspeed-cpu\", \"optimizer_vector_width\": 16")),
      { .kind = ZB_OPTIMIZER_ADAM,
        .lr = 1e-3,
        BETAS,
        .eps = 1e-8,
        .bias_correction = 1,
        .decay_mode = ZB_DECAY_DECOUPLED,
        .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU,
        .vector_width = 16 } },
    { OF_TYPE("Adam", "", ZEROBIT(DEEPSPEED)), { ADAMW } },
    { OF_TYPE("SGD", "\"lr\": 0.5", ""), { .kind = ZB_OPTIMIZER_SGD, .lr = 0.5, .vector_width = 8 } },
    { OF_TYPE("SGD", "\"lr\": 0.5", ZEROBIT(DEEPSPEED)),
      { .kind = ZB_OPTIMIZER_SGD, .lr = 0.5, .arithmetic = ZB_ARITHMETIC_TORCH_1, .vector_width = 8 } },
    { OF_TYPE("SGD", "\"lr\": 0.5", ARITHMETIC("torch-2")),
      { .kind = ZB_OPTIMIZER_SGD, .lr = 0.5, .arithmetic = ZB_ARITHMETIC_TORCH_2, .vector_width = 8 } },
    { OF_TYPE("adagrad", "", ""), { ADAGRAD } },
    { OF_TYPE("Adagrad", "\"initial_accumulator_value\": 0, \"fused\": null", ZEROBIT(DEEPSPEED)),
      { ADAGRAD, .arithmetic = ZB_ARITHMETIC_TORCH_1 } },
    { OF_TYPE("Adagrad", "\"lr\": 0.5, \"lr_decay\": 0.25, \"eps\": 2, \"weight_decay\": 3", ""),
      { .kind = ZB_OPTIMIZER_ADAGRAD,
        .lr = 0.5,
        .lr_decay = 0.25,
        .eps = 2,
        .weight_decay = 3,
        .vector_width = 8 } },
    { OF_TYPE("Adagrad", "", ARITHMETIC("deepspeed-cpu")),
      { ADAGRAD, .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU } },
    { OF_TYPE("LION", "", ""), { LION } },
    { OF_TYPE("Lion", "\"lr\": 0.5, \"betas\": [0.25, 0.75], \"weight_decay\": 3",
              ARITHMETIC("deepspeed-cpu")),
      { .kind = ZB_OPTIMIZER_LION,
        .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU,
        .decay_mode = ZB_DECAY_DECOUPLED,
        .lr = 0.5,
        .beta1 = 0.25,
        .beta2 = 0.75,
        .weight_decay = 3,
        .vector_width = 8 } },
    { OF_TYPE("Lamb", "", ""), { LAMB } },
    { OF_TYPE("lamb",
              "\"lr\": 0.5, \"betas\": [0.25, 0.75], \"eps\": 2, \"weight_decay\": 3, \"min_coeff\": 0.5, "
              "\"max_coeff\": 4, \"bias_correction\": false, \"eps_inside_sqrt\": true, \"amsgrad\": false",
              ", \"fp16\": {\"enabled\": true, \"loss_scale\": 0}"),
      { .kind = ZB_OPTIMIZER_LAMB,
        .decay_mode = ZB_DECAY_DECOUPLED,
        .lr = 0.5,
        .beta1 = 0.25,
        .beta2 = 0.75,
        .eps = 2,
        .weight_decay = 3,
        .min_coeff = 0.5,
        .max_coeff = 4,
        .eps_inside_sqrt = 1,
        .vector_width = 8 } },
};

static int same_config(const zb_optimizer_config *a, const zb_optimizer_config *b)
{
    return a->kind == b->kind && a->arithmetic == b->arithmetic && a->lr == b->lr &&
           a->weight_decay == b->weight_decay && a->beta1 == b->beta1 && a->beta2 == b->beta2 &&
           a->eps == b->eps && a->bias_correction == b->bias_correction && a->decay_mode == b->decay_mode &&
           a->momentum == b->momentum && a->dampening == b->dampening && a->nesterov == b->nesterov &&
           a->lr_decay == b->lr_decay && a->eps_inside_sqrt == b->eps_inside_sqrt &&
           a->min_coeff == b->min_coeff && a->max_coeff == b->max_coeff && a->vector_width == b->vector_width;
}

static void arrives(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(good_cases); i++) {
        zb_config *config = parse(good_cases[i].text);
        if (!config->optimizer_given || !same_config(&config->optimizer, &good_cases[i].want))
            fail_msg("row %zu: %s", i, good_cases[i].text);
        zb_config_destroy(config);
    }
}

/* --- what is refused --- */

static const struct bad_case {
    const char *text;
    zb_status status;
    const char *want;
} bad_cases[] = {
    { OF_TYPE("sgd", "", ""), ZB_INVALID_CONFIG,
      "optimizer.type: is \"sgd\", want Adam, AdamW, Adagrad, Lion, Lamb or SGD: neither" },
    { OF_TYPE("Adm", "", ""), ZB_INVALID_CONFIG, "optimizer.type: is \"Adm\", want " },
    { OF_TYPE("OneBitAdam", "", ""), ZB_UNSUPPORTED,
      "optimizer.type: is \"OneBitAdam\", want Adam, AdamW, Adagrad, Lion, Lamb or SGD: this optimizer is "
      "not "
      "supported yet" },
    { OF_TYPE("muon", "", ""), ZB_UNSUPPORTED, "optimizer.type: is \"muon\"" },
    { OF_TYPE("RMSprop", "", ""), ZB_UNSUPPORTED, "optimizer.type: is \"RMSprop\"" },
    { OF_TYPE("Lion", "\"max_grad_norm\": 1", ""), ZB_INVALID_CONFIG,
      "optimizer.params.max_grad_norm: is 1, want it left out" },

    { OF_TYPE("Adam", "\"amsgrad\": true", ""), ZB_INVALID_CONFIG,
      "optimizer.params.amsgrad: is true, want false: DeepSpeed's Adam has no AMSGrad" },
    { OF_TYPE("Adam", "\"adam_w_mode\": 1", ""), ZB_INVALID_CONFIG,
      "optimizer.params.adam_w_mode: is 1, want true or false" },
    { OF_TYPE("Adam", "\"torch_adam\": true, \"bias_correction\": true", ""), ZB_INVALID_CONFIG,
      "optimizer.params.bias_correction: is true, want a key that torch.optim.Adam knows" },
    { OF_TYPE("Adam", "\"torch_adam\": true, \"amsgrad\": true", ""), ZB_UNSUPPORTED,
      "optimizer.params.amsgrad: is true, want false" },
    { OF_TYPE("Adam", "\"torch_adam\": true, \"foreach\": true", ""), ZB_UNSUPPORTED,
      "optimizer.params.foreach: is true, want false" },
    { OF_TYPE("Adam", "\"foreach\": false", ""), ZB_INVALID_CONFIG,
      "optimizer.params.foreach: is false, want a key that Adam knows" },
    { OF_TYPE("Adam", "\"momentum\": 0.9", ""), ZB_INVALID_CONFIG,
      "optimizer.params.momentum: is 0.9, want a key that Adam knows" },

    { OF_TYPE("SGD", "", ""), ZB_INVALID_CONFIG, "optimizer.params.lr: is missing, want a number" },
    { OF_TYPE("SGD", "\"lr\": 0.1, \"betas\": [0, 0]", ""), ZB_INVALID_CONFIG,
      "optimizer.params.betas: is [0,0], want a key that SGD knows" },
    { OF_TYPE("SGD", "\"lr\": 0.1, \"momentum\": -1", ""), ZB_INVALID_CONFIG,
      "optimizer.params.momentum: is -1, want a number not below 0" },
    { OF_TYPE("SGD", "\"lr\": 0.1, \"nesterov\": true", ""), ZB_INVALID_CONFIG,
      "optimizer.params.nesterov: is true, want false, or momentum above 0 and dampening 0 (they are 0 and "
      "0)" },
    { OF_TYPE("SGD", "\"lr\": 0.1, \"maximize\": true", ""), ZB_UNSUPPORTED,
      "optimizer.params.maximize: is true, want false" },

    { OF_TYPE("Adagrad", "\"betas\": [0, 0]", ""), ZB_INVALID_CONFIG,
      "optimizer.params.betas: is [0,0], want a key that Adagrad knows" },
    { OF_TYPE("Adagrad", "\"lr_decay\": -1", ""), ZB_INVALID_CONFIG,
      "optimizer.params.lr_decay: is -1, want a number not below 0" },
    { OF_TYPE("Adagrad", "\"initial_accumulator_value\": 0.1", ""), ZB_UNSUPPORTED,
      "optimizer.params.initial_accumulator_value: is 0.1, want 0" },
    { OF_TYPE("Adagrad", "\"lr_decay\": 0", ARITHMETIC("deepspeed-cpu")), ZB_INVALID_CONFIG,
      "optimizer.params.lr_decay: is 0, want it left out: DeepSpeedCPUAdagrad has no lr_decay" },

    { OF_TYPE("Lion", "\"eps\": 1", ""), ZB_INVALID_CONFIG,
      "optimizer.params.eps: is 1, want a key that Lion knows" },
    { OF_TYPE("Lion", "\"betas\": [0, 1]", ""), ZB_INVALID_CONFIG, "optimizer.params.betas[1]: is 1, want" },

    { OF_TYPE("Lamb", "\"max_coef\": 1", ""), ZB_INVALID_CONFIG,
      "optimizer.params.max_coef: is 1, want a key that Lamb knows" },
    { OF_TYPE("Lamb", "\"min_coeff\": -1", ""), ZB_INVALID_CONFIG,
      "optimizer.params.min_coeff: is -1, want a number not below 0" },
    { OF_TYPE("Lamb", "\"amsgrad\": true", ""), ZB_INVALID_CONFIG,
      "optimizer.params.amsgrad: is true, want false: DeepSpeed's Lamb has no AMSGrad" },
    { OF_TYPE("Lamb", "", ", \"fp16\": {\"loss_scale\": 128}"), ZB_INVALID_CONFIG,
      "fp16.loss_scale: is 128, want 0 with Lamb" },

    { OF_TYPE("Adam", "", ARITHMETIC("mine")), ZB_INVALID_CONFIG,
      "zerobit.optimizer_arithmetic: is \"mine\", want \"plain\", \"deepspeed-cpu\"" },
    { OF_TYPE("Adam", "", ZEROBIT("\"optimizer_arithmetic\": 2")), ZB_INVALID_CONFIG,
      "zerobit.optimizer_arithmetic: is 2, want a string" },
    { OF_TYPE("SGD", "\"lr\": 1", ARITHMETIC("deepspeed-cpu")), ZB_INVALID_CONFIG,
      "zerobit.optimizer_arithmetic: is \"deepspeed-cpu\", want an arithmetic that SGD exists in" },
    { OF_TYPE("Lion", "", ARITHMETIC("torch-2")), ZB_INVALID_CONFIG,
      "want an arithmetic that Lion exists in" },
    { OF_TYPE("Lamb", "", ARITHMETIC("deepspeed-cpu")), ZB_INVALID_CONFIG,
      "want an arithmetic that LAMB exists in" },
    { OF_TYPE("Adam", "\"torch_adam\": true", ARITHMETIC("plain")), ZB_INVALID_CONFIG,
      "zerobit.optimizer_arithmetic: is \"plain\", want \"torch-1.13\" or \"torch-2\", since" },
    { OF_TYPE("Adam", "", ZEROBIT(DEEPSPEED ", \"optimizer_arithmetic\": \"torch-2\"")), ZB_INVALID_CONFIG,
      "zerobit.optimizer_arithmetic: is \"torch-2\", want \"plain\" or \"deepspeed-cpu\", since" },
    { OF_TYPE("Adam", "\"bias_correction\": false", ARITHMETIC("torch-2")), ZB_INVALID_CONFIG,
      "optimizer.params.bias_correction: is false, want true: torch.optim always" },
    { OF_TYPE("Adam", "", ZEROBIT("\"optimizer_vector_width\": 12")), ZB_INVALID_CONFIG,
      "zerobit.optimizer_vector_width: is 12, want 8 (AVX2) or 16 (AVX-512)" },
    { OF_TYPE("Adam", "", ZEROBIT("\"optimizer_vector_width\": 4")), ZB_INVALID_CONFIG,
      "zerobit.optimizer_vector_width: is 4, want 8 (AVX2) or 16 (AVX-512)" },
};

static void refuses(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(bad_cases); i++) {
        const struct bad_case *c = &bad_cases[i];
        zb_config *config = NULL;
        zb_status status = zb_config_parse(c->text, strlen(c->text), "f.json", &config);
        if (status != c->status || strstr(zb_error_message(), c->want) == NULL)
            fail_msg("%s\n  gives: %s: %s\n  want:  %s: %s", c->text, zb_status_string(status),
                     zb_error_message(), zb_status_string(c->status), c->want);
        assert_null(config);
    }
}

/* --- what is noted --- */

static const struct noted_case {
    const char *text, *note; /* NULL: none */
} noted_cases[] = {
    { OF_TYPE("AdamW", "\"adam_w_mode\": false", ""), "optimizer.params.adam_w_mode: no effect" },
    { OF_TYPE("Adam", "\"set_grad_none\": false", ""), "optimizer.params.set_grad_none: no effect" },
    { OF_TYPE("Lion", "\"set_grad_none\": false", ""), "optimizer.params.set_grad_none: no effect" },
    { OF_TYPE("Adam", "", ZEROBIT("\"optimizer_vector_width\": 16")),
      "zerobit.optimizer_vector_width: no effect" },
    { OF_TYPE("Adam", "",
              ZEROBIT("\"optimizer_vector_width\": 16, \"optimizer_arithmetic\": \"deepspeed-cpu\"")),
      "zerobit.optimizer_vector_width: no effect" },
    { OF_TYPE(
          "Adam", "",
          ZEROBIT(DEEPSPEED ", \"optimizer_vector_width\": 16, \"optimizer_arithmetic\": \"deepspeed-cpu\"")),
      NULL },
};

static void notes(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(noted_cases); i++) {
        zb_config *config = parse(noted_cases[i].text);
        const char *want = noted_cases[i].note;
        assert_int_equal(config->note_count, want != NULL);
        if (want != NULL && strstr(config->notes[0], want) == NULL)
            fail_msg("%s gives %s", noted_cases[i].text, config->notes[0]);
        zb_config_destroy(config);
    }
}

/* OneCycle's momentum turns the betas of all that have some. */
static void cycles_betas(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        int cycles;
    } rows[] = { { "Adam", 1 }, { "Adagrad", 0 }, { "Lion", 1 }, { "Lamb", 1 } };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[256];
        snprintf(text, sizeof text,
                 "{\"optimizer\": {\"type\": \"%s\"}, \"scheduler\": {\"type\": \"OneCycle\", \"params\": "
                 "{\"cycle_min_lr\": 0.25, \"cycle_max_lr\": 0.5}}}",
                 rows[i].type);
        zb_config *config = parse(text);
        assert_int_equal(config->groups[0].schedule.cycle_momentum, rows[i].cycles);
        zb_config_destroy(config);
    }
}

/* --- in a plan --- */

/* Which optimizer may run is judged by the stage that runs, whatever the config's own. */
static void untested_optimizers(void **state)
{
    (void)state;
    static const struct {
        const char *type, *name;
        int tested;
    } rows[] = { { "Adam", "Adam", 1 },
                 { "Adagrad", "Adagrad", 1 },
                 { "Lion", "Lion", 1 },
                 { "SGD", "SGD", 0 },
                 { "Lamb", "LAMB", 0 } };
    for (size_t i = 0; i < COUNT(rows); i++)
        for (int own = 0; own < 4; own += 3)
            for (int stage = 0; stage < 4; stage++)
                for (int allow = 0; allow < 2; allow++) {
                    char text[320], want[200];
                    zb_plan plan;
                    snprintf(
                        text, sizeof text,
                        "{\"train_batch_size\": 8, \"optimizer\": {\"type\": \"%s\", \"params\": {\"lr\": "
                        "1}}, \"zero_optimization\": {\"stage\": %d}, \"zero_allow_untested_optimizer\": %s}",
                        rows[i].type, own, allow ? "true" : "false");
                    snprintf(
                        want, sizeof want,
                        "f.json: optimizer.type: is %s, want Adam, AdamW, Adagrad or Lion at ZeRO stage %d, "
                        "or zero_allow_untested_optimizer: true at the top level",
                        rows[i].name, stage);
                    zb_config *config = parse(text);
                    const int fine = rows[i].tested || stage == 0 || allow;
                    assert_int_equal(zb_plan_derive(config, stage, ZB_FP32, 1, &plan),
                                     fine ? ZB_OK : ZB_INVALID_CONFIG);
                    if (!fine) assert_string_equal(zb_error_message(), want);
                    zb_config_destroy(config);
                }
}

/* Tails depend on where a stage cuts, so there are none where stages must agree. */
static void tails(void **state)
{
    (void)state;
    static const struct {
        const char *semantics;
        int width;
    } rows[] = { { "standard", 1 }, { "deepspeed-0.19.6", 16 } };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[320];
        zb_plan plan;
        snprintf(
            text, sizeof text,
            "{\"train_batch_size\": 8, \"optimizer\": {\"type\": \"Adam\"}, \"zerobit\": {\"semantics\": "
            "\"%s\", \"optimizer_arithmetic\": \"deepspeed-cpu\", \"optimizer_vector_width\": 16}}",
            rows[i].semantics);
        zb_config *config = parse(text);
        assert_int_equal(zb_plan_derive(config, 1, ZB_FP32, 1, &plan), ZB_OK);
        assert_int_equal(plan.groups[0].arithmetic, ZB_ARITHMETIC_DEEPSPEED_CPU);
        assert_int_equal(plan.groups[0].vector_width, rows[i].width);
        zb_config_destroy(config);
    }
}

static void lamb_of_deepspeed_is_not_known(void **state)
{
    (void)state;
    zb_plan plan;
    zb_config *config = parse(OF_TYPE("Lamb", "", ZEROBIT(DEEPSPEED)));
    assert_int_equal(zb_plan_derive(config, 0, ZB_FP32, 1, &plan), ZB_UNSUPPORTED);
    assert_non_null(
        strstr(zb_error_message(), "optimizer.type: is Lamb, want another under deepspeed-0.19.6"));
    zb_config_destroy(config);
}

/* Only what a formula reads makes two plans differ. */
static void equality(void **state)
{
    (void)state;
    enum { KINDS = ZB_OPTIMIZER_KIND_COUNT };
    enum { A = 1 << ZB_OPTIMIZER_ADAM, S = 1 << ZB_OPTIMIZER_SGD, G = 1 << ZB_OPTIMIZER_ADAGRAD };
    enum { I = 1 << ZB_OPTIMIZER_LION, B = 1 << ZB_OPTIMIZER_LAMB };
    zb_plan base = { .groups = { { .vector_width = 8 } }, .group_count = 1 }, other;
    const struct {
        const char *name;
        void *field;
        int is_double, matters;
    } rows[] = {
        { "lr", &other.groups[0].lr, 1, A | S | G | I | B },
        { "weight_decay", &other.groups[0].weight_decay, 1, A | S | G | I | B },
        { "arithmetic", &other.groups[0].arithmetic, 0, A | S | G | I | B },
        { "beta1", &other.groups[0].beta1, 1, A | I | B },
        { "beta2", &other.groups[0].beta2, 1, A | I | B },
        { "eps", &other.groups[0].eps, 1, A | G | B },
        { "bias_correction", &other.groups[0].bias_correction, 0, A | B },
        { "decay_mode", &other.groups[0].decay_mode, 0, A },
        { "momentum", &other.groups[0].momentum, 1, S },
        { "dampening", &other.groups[0].dampening, 1, S },
        { "nesterov", &other.groups[0].nesterov, 0, S },
        { "lr_decay", &other.groups[0].lr_decay, 1, G },
        { "eps_inside_sqrt", &other.groups[0].eps_inside_sqrt, 0, B },
        { "min_coeff", &other.groups[0].min_coeff, 1, B },
        { "max_coeff", &other.groups[0].max_coeff, 1, B },
        { "vector_width", &other.groups[0].vector_width, 0, 0 },
    };
    for (int kind = 0; kind < KINDS; kind++) {
        base.groups[0].kind = (zb_optimizer_kind)kind;
        for (size_t i = 0; i < COUNT(rows); i++) {
            other = base;
            if (rows[i].is_double)
                *(double *)rows[i].field = 0.5;
            else
                *(int *)rows[i].field = 1;
            if (zb_plan_equal(&base, &other) == (rows[i].matters >> kind & 1))
                fail_msg("%s of %s", rows[i].name, zb_optimizer_kind_name((zb_optimizer_kind)kind));
        }
        other = base;
        other.groups[0].kind = (zb_optimizer_kind)((kind + 1) % KINDS);
        assert_false(zb_plan_equal(&base, &other));
    }
    base.groups[0] = (zb_optimizer_config){ .arithmetic = ZB_ARITHMETIC_DEEPSPEED_CPU, .vector_width = 8 };
    other = base;
    other.groups[0].vector_width = 16;
    assert_false(zb_plan_equal(&base, &other));
}

static void names(void **state)
{
    (void)state;
    assert_string_equal(zb_optimizer_kind_name(ZB_OPTIMIZER_LAMB), "LAMB");
    assert_string_equal(zb_optimizer_kind_name(ZB_OPTIMIZER_KIND_COUNT), "?");
    assert_string_equal(zb_optimizer_arithmetic_name(ZB_ARITHMETIC_TORCH_1), "torch-1.13");
    assert_string_equal(zb_optimizer_arithmetic_name(ZB_ARITHMETIC_COUNT), "?");
    assert_false(zb_optimizer_has_arithmetic(ZB_OPTIMIZER_KIND_COUNT, ZB_ARITHMETIC_PLAIN));
    assert_false(zb_optimizer_has_arithmetic(ZB_OPTIMIZER_ADAM, ZB_ARITHMETIC_COUNT));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrives),
        cmocka_unit_test(refuses),
        cmocka_unit_test(notes),
        cmocka_unit_test(cycles_betas),
        cmocka_unit_test(untested_optimizers),
        cmocka_unit_test(tails),
        cmocka_unit_test(lamb_of_deepspeed_is_not_known),
        cmocka_unit_test(equality),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests_name("config_optimizer", tests, NULL, NULL);
}
