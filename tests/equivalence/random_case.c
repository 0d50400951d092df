/* Random set-ups; see random_case.h. */
#include "tests/equivalence/random_case.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>

#include "tests/equivalence/draw.h"

static void append(char *text, size_t text_bytes, const char *format, ...)
{
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, text_bytes - used, format, args);
    va_end(args);
}

/* --- model --- */

typedef struct builder {
    draw *d;
    random_case *c;
    int count;
    char names[32][16];
} builder;

static zb_status add(builder *b, zb_module_spec spec, const char *stem)
{
    snprintf(b->names[b->count], sizeof b->names[0], "%s%d", stem, b->count);
    spec.name = b->names[b->count];
    append(b->c->model_text, sizeof b->c->model_text, "%s%s%s%s ", spec.name, spec.frozen ? "(frozen)" : "",
           spec.tie != NULL ? "=" : "", spec.tie != NULL ? spec.tie : "");
    b->count++;
    return zb_model_add(b->c->model, &spec);
}

static const char *last_name(const builder *b)
{
    return b->names[b->count - 1];
}

/* Unused parameters, the empty one among them, in front of, between and behind the layers. */
static zb_status maybe_unused(builder *b)
{
    static const zb_shape shapes[] = { { .dims = 1, .extent = { 0 } },
                                       { .dims = 1, .extent = { 1 } },
                                       { .dims = 2, .extent = { 3, 5 } } };
    if (!one_in(b->d, 6)) return ZB_OK;
    return add(b,
               (zb_module_spec){ .kind = ZB_MODULE_PARAMETER,
                                 .shape = shapes[between(b->d, 0, 2)],
                                 .frozen = one_in(b->d, 3) },
               "unused");
}

static zb_status add_linear(builder *b, int64_t out, int frozen, const char *input, const char *tie)
{
    return add(b,
               (zb_module_spec){ .kind = ZB_MODULE_LINEAR,
                                 .out_features = out,
                                 .no_bias = one_in(b->d, 4),
                                 .frozen = frozen,
                                 .input = input,
                                 .tie = tie },
               "fc");
}

static zb_status add_relu(builder *b, const char *input)
{
    return add(b, (zb_module_spec){ .kind = ZB_MODULE_RELU, .input = input }, "relu");
}

static zb_status add_conv_front(builder *b)
{
    int pad = between(b->d, 0, 1);
    ZB_TRY(add(b,
               (zb_module_spec){ .kind = ZB_MODULE_CONV2D,
                                 .out_channels = between(b->d, 1, 4),
                                 .kernel = between(b->d, 1, 3),
                                 .stride = between(b->d, 1, 2),
                                 .padding = pad,
                                 .no_bias = one_in(b->d, 4),
                                 .frozen = one_in(b->d, 5) },
               "conv"));
    ZB_TRY(add_relu(b, NULL));
    const zb_shape *image = &b->c->model->modules[b->c->model->module_count - 1].out;
    if (image->extent[1] > 1 && image->extent[2] > 1 && one_in(b->d, 2))
        ZB_TRY(add(
            b, (zb_module_spec){ .kind = ZB_MODULE_MAXPOOL2D, .kernel = 2, .stride = between(b->d, 1, 2) },
            "pool"));
    if (one_in(b->d, 3))
        ZB_TRY(add(
            b,
            (zb_module_spec){
                .kind = ZB_MODULE_CONV2D, .out_channels = between(b->d, 1, 3), .kernel = 2, .padding = 1 },
            "conv"));
    return add(b, (zb_module_spec){ .kind = ZB_MODULE_FLATTEN }, "flatten");
}

/* width -> width, twice with one weight, or with a residual connection, or plain. */
static zb_status add_block(builder *b, int width)
{
    char before[16], first[16];
    switch (between(b->d, 0, 3)) {
    case 0: /* tied */
        ZB_TRY(add_linear(b, width, one_in(b->d, 6), NULL, NULL));
        snprintf(first, sizeof first, "%s", last_name(b));
        ZB_TRY(add_relu(b, NULL));
        snprintf(before, sizeof before, "%s", last_name(b));
        ZB_TRY(maybe_unused(b));
        return add_linear(b, width, 0, before, first);
    case 1: /* residual */
        snprintf(before, sizeof before, "%s", last_name(b));
        ZB_TRY(add_linear(b, width, one_in(b->d, 6), NULL, NULL));
        ZB_TRY(add_relu(b, NULL));
        return add(b, (zb_module_spec){ .kind = ZB_MODULE_ADD, .input = last_name(b), .input2 = before },
                   "add");
    case 2:
        return add_linear(b, width, one_in(b->d, 4), NULL, NULL);
    default:
        return add_relu(b, NULL);
    }
}

static zb_status make_model(draw *d, random_case *c)
{
    builder b = { .d = d, .c = c };
    int image = one_in(d, 3);
    zb_shape input = image ? (zb_shape){ .dims = 3,
                                         .extent = { between(d, 1, 3), between(d, 4, 7), between(d, 4, 7) } }
                           : (zb_shape){ .dims = 1, .extent = { between(d, 1, 9) } };
    ZB_TRY(zb_model_create("random", &input, one_in(d, 2) ? ZB_LOSS_MSE : ZB_LOSS_CROSS_ENTROPY, &c->model));
    int width = between(d, 1, 9);
    if (image) ZB_TRY(add_conv_front(&b));
    /* The first linear is what residual connections start from; never frozen, so that there is something to
     * train. */
    ZB_TRY(add_linear(&b, width, 0, NULL, NULL));
    for (int blocks = between(d, 0, 3); blocks > 0; blocks--) ZB_TRY(add_block(&b, width));
    ZB_TRY(add_linear(&b, between(d, 1, 5), one_in(d, 5), NULL, NULL));
    if (one_in(d, 4))
        ZB_TRY(add(&b,
                   (zb_module_spec){ .kind = ZB_MODULE_PARAMETER,
                                     .shape = { .dims = 1, .extent = { between(d, 0, 4) } } },
                   "tail"));
    return zb_model_finish(c->model);
}

/* --- config --- */

static void append_schedule(draw *d, random_case *c)
{
    const char *type = one_in(d, 2) ? "log" : "linear";
    char *text = c->config_text;
    size_t bytes = sizeof c->config_text;
    switch (between(d, 0, 7)) {
    case 0:
        append(
            text, bytes,
            "\"scheduler\":{\"type\":\"WarmupLR\",\"params\":{\"warmup_min_lr\":0.001,\"warmup_max_lr\":0.05,"
            "\"warmup_num_steps\":%d,\"warmup_type\":\"%s\"}},",
            between(d, 1, 5), type);
        break;
    case 1:
        append(text, bytes,
               "\"scheduler\":{\"type\":\"WarmupDecayLR\",\"params\":{\"total_num_steps\":4,\"warmup_max_"
               "lr\":0.05,"
               "\"warmup_num_steps\":2,\"warmup_type\":\"%s\"}},",
               type);
        break;
    case 2:
        append(text, bytes,
               "\"scheduler\":{\"type\":\"WarmupCosineLR\",\"params\":{\"total_num_steps\":5,"
               "\"warmup_min_ratio\":0.1,\"warmup_num_steps\":2,\"cos_min_ratio\":0.01,\"warmup_type\":\"%"
               "s\"}},",
               type);
        break;
    case 3:
        append(
            text, bytes,
            "\"scheduler\":{\"type\":\"OneCycle\",\"params\":{\"cycle_min_lr\":0.001,\"cycle_max_lr\":0.05,"
            "\"cycle_first_step_size\":%d,\"decay_step_size\":1,\"decay_lr_rate\":0.5,\"decay_mom_rate\":0."
            "01}},",
            between(d, 1, 2));
        break;
    case 4:
        append(text, bytes,
               "\"scheduler\":{\"type\":\"LRRangeTest\",\"params\":{\"lr_range_test_min_lr\":0.001,"
               "\"lr_range_test_step_size\":%d,\"lr_range_test_step_rate\":1.5,\"lr_range_test_staircase\":%"
               "s}},",
               between(d, 1, 2), one_in(d, 2) ? "true" : "false");
        break;
    default:
        break; /* the optimizer's own rate */
    }
}

/* params: without braces. arithmetics: what the optimizer exists in, "plain" for the config's own default. */
static void append_optimizer_of(draw *d, random_case *c, const char *type, const char *params,
                                const char *const *arithmetics, int arithmetic_count)
{
    c->arithmetic = arithmetics[between(d, 0, arithmetic_count - 1)];
    append(c->config_text, sizeof c->config_text, "\"optimizer\":{\"type\":\"%s\",\"params\":{%s}},", type,
           params);
}

static const char *truth(int value)
{
    return value ? "true" : "false";
}

static void append_optimizer(draw *d, random_case *c)
{
    static const char *const decays[] = { "0", "0.01", "0.5" };
    static const char *const arithmetics[] = { "plain", "torch-1.13", "torch-2", "deepspeed-cpu" };
    static const char *const of_deepspeed[] = { "plain", "deepspeed-cpu" }, *const of_torch[] = {
        "torch-1.13", "torch-2"
    };
    const char *decay = decays[between(d, 0, 2)];
    const int deepspeed = c->semantics != ZB_SEMANTICS_STANDARD;
    char params[256] = "";
    switch (between(d, deepspeed ? 1 : 0, 8)) { /* DeepSpeed's Lamb has no bits to promise */
    case 0:
        append(params, sizeof params,
               "\"lr\":0.01,\"betas\":[0.8,0.99],\"eps\":1e-6,\"weight_decay\":%s,\"eps_inside_sqrt\":%s,"
               "\"max_coeff\":%s,\"bias_correction\":%s",
               decay, truth(one_in(d, 2)), one_in(d, 3) ? "0.5" : "10", truth(!one_in(d, 4)));
        append_optimizer_of(d, c, "Lamb", params, arithmetics, 1);
        append(c->config_text, sizeof c->config_text, "\"zero_allow_untested_optimizer\":true,");
        break;
    case 1:
    case 2: {
        int momentum = !one_in(d, 3), nesterov = momentum && one_in(d, 2);
        append(params, sizeof params,
               "\"lr\":0.05,\"momentum\":%s,\"dampening\":%s,\"weight_decay\":%s,\"nesterov\":%s",
               momentum ? "0.9" : "0", momentum && !nesterov && one_in(d, 2) ? "0.5" : "0", decay,
               truth(nesterov));
        append_optimizer_of(d, c, "SGD", params, arithmetics, 3);
        append(c->config_text, sizeof c->config_text, "\"zero_allow_untested_optimizer\":true,");
        break;
    }
    case 3: {
        int falls = one_in(d, 2);
        append(params, sizeof params, "\"lr\":0.05,\"eps\":1e-8,\"weight_decay\":%s%s", decay,
               falls ? ",\"lr_decay\":0.1" : "");
        append_optimizer_of(d, c, "Adagrad", params, arithmetics, falls ? 3 : 4);
        break;
    }
    case 4:
        append(params, sizeof params, "\"lr\":0.01,\"betas\":[0.8,0.99],\"weight_decay\":%s", decay);
        append_optimizer_of(d, c, "Lion", params, of_deepspeed, 2);
        break;
    default: {
        /* torch.optim always corrects the bias; DeepSpeed takes it when it is asked for by name. */
        const int torch = one_in(d, 3), corrected = torch || !one_in(d, 4);
        append(params, sizeof params,
               "\"lr\":0.01,\"betas\":[%s,0.99],\"eps\":1e-8,\"weight_decay\":%s,\"adam_w_mode\":%s%s%s",
               one_in(d, 3) ? "0.3" : "0.8", decay, truth(one_in(d, 2)),
               corrected ? "" : ",\"bias_correction\":false",
               torch && deepspeed ? ",\"torch_adam\":true" : "");
        append_optimizer_of(d, c, one_in(d, 2) ? "Adam" : "AdamW", params, torch ? of_torch : of_deepspeed,
                            2);
    }
    }
    append_schedule(d, c);
}

static uint64_t random_bucket_limit(draw *d, const zb_model *model)
{
    const zb_param *p = &model->params[between(d, 0, model->param_count - 1)];
    switch (between(d, 0, 5)) {
    case 0:
        return 1;
    case 1:
        return p->numel;
    case 2:
        return p->numel + 1;
    case 3:
        return p->numel > 0 ? p->numel - 1 : 0;
    case 4:
        return model->param_numel / 3;
    default:
        return 500000000;
    }
}

enum { WORLD_MAX = 9, GROUPS_MAX = 3, PARAMS_MAX = 64 /* two of each of the builder's 32 modules */ };

/* Its parameters by name, and in what it departs from the optimizer. */
static void append_group(draw *d, random_case *c, const int *group_of, int group)
{
    const char *separator = "";
    append(c->config_text, sizeof c->config_text, "{\"params\":[");
    for (int p = 0; p < c->model->param_count; p++) {
        if (group_of[p] != group) continue;
        append(c->config_text, sizeof c->config_text, "%s\"%s\"", separator, c->model->params[p].name);
        separator = ",";
    }
    append(c->config_text, sizeof c->config_text, "],\"lr\":%g", 0.001 * between(d, 0, 20));
    if (one_in(d, 2))
        append(c->config_text, sizeof c->config_text, ",\"weight_decay\":%g", 0.1 * between(d, 0, 3));
    append(c->config_text, sizeof c->config_text, "}");
}

/* Every trainable parameter in one of up to three groups, each of which has some. */
static void append_groups(draw *d, random_case *c)
{
    int group_of[PARAMS_MAX], size[GROUPS_MAX] = { 0 }, group_count = between(d, 2, GROUPS_MAX);
    for (int p = 0; p < c->model->param_count; p++) {
        group_of[p] = c->model->params[p].requires_grad ? between(d, 0, group_count - 1) : -1;
        if (group_of[p] >= 0) size[group_of[p]]++;
    }
    const char *separator = "";
    append(c->config_text, sizeof c->config_text, "\"param_groups\":[");
    for (int g = 0; g < group_count; g++) {
        if (size[g] == 0) continue;
        append(c->config_text, sizeof c->config_text, "%s", separator);
        append_group(d, c, group_of, g);
        separator = ",";
        c->group_count++;
    }
    append(c->config_text, sizeof c->config_text, "],");
}

/* A ring through all ranks, in any order behind rank 0. */
static void append_ring(draw *d, int world, char *text, size_t text_bytes)
{
    int ranks[WORLD_MAX] = { 0 };
    for (int i = 1; i < world; i++) { /* each is put in a random place */
        const int at = between(d, 1, i);
        ranks[i] = ranks[at];
        ranks[at] = i;
    }
    for (int i = 0; i < world; i++) append(text, text_bytes, "%s%d", i == 0 ? " ring=" : ",", ranks[i]);
}

/* Half of the cases add in the order of a library. Drawn apart, so that a case is otherwise what it is
 * without. */
static void append_order(random_case *c)
{
    static const char *const whole[] = { "gloo",
                                         "mpi-default",
                                         "mpi-ring",
                                         "all_reduce: mpi-rabenseifner; reduce_scatter_v: mpi-butterfly; "
                                         "reduce_scatter: mpi-recursive-doubling; reduce: mpi-linear",
                                         "all_reduce: mpi-linear; reduce_scatter_v: mpi-recursive-halving; "
                                         "reduce_scatter: mpi-recursive-halving; reduce: mpi-default",
                                         "all_reduce: mpi-segmented-ring; reduce_scatter: mpi-butterfly" };
    static const char *const protocols[] = { "simple", "ll", "ll128" };
    draw d = { .state = c->number * 0x9E3779B97F4A7C15u + 5 };
    if (one_in(&d, 2)) return;
    const int kind = between(&d, 0, 8);
    if (kind < 6) {
        append(c->order, sizeof c->order, "%s", whole[kind]);
    } else {
        const int channels = between(&d, 1, 3);
        append(c->order, sizeof c->order, "nccl-ring version=2.28 protocol=%s channels=%d",
               protocols[between(&d, 0, 2)], channels);
        for (int rings = between(&d, 0, channels); rings > 0; rings--)
            append_ring(&d, c->world_size, c->order, sizeof c->order);
    }
    append(c->config_text, sizeof c->config_text, "\"order\":\"%s\",", c->order);
}

/* One of the two semantics, in some cases with single quirks switched the other way. */
static void append_zerobit(draw *d, random_case *c)
{
    append(c->config_text, sizeof c->config_text, "\"zerobit\":{\"semantics\":\"%s\",",
           zb_semantics_name(c->semantics));
    if (strcmp(c->arithmetic, "plain") != 0)
        append(c->config_text, sizeof c->config_text, "\"optimizer_arithmetic\":\"%s\",", c->arithmetic);
    if (strcmp(c->arithmetic, "deepspeed-cpu") == 0 && one_in(d, 2))
        append(c->config_text, sizeof c->config_text, "\"optimizer_vector_width\":16,");
    c->group_count = 0;
    if (one_in(d, 3)) append_groups(d, c);
    append_order(c);
    append(c->config_text, sizeof c->config_text, "\"quirks\":{");
    zb_quirks preset = zb_quirks_of(c->semantics);
    const char *separator = "";
    for (int q = 0; q < ZB_QUIRK_COUNT && c->number % 3 != 0; q++) {
        if (!one_in(d, 6)) continue;
        append(c->config_text, sizeof c->config_text, "%s\"%s\":%s", separator, zb_quirk_name((zb_quirk)q),
               truth(!*zb_quirk_switch(&preset, (zb_quirk)q)));
        separator = ",";
    }
    append(c->config_text, sizeof c->config_text, "}},");
}

/* Scales from harmless to certain overflow, windows that grow within a run, minima that end one. */
static void append_precision(draw *d, random_case *c)
{
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16 };
    const int is_lamb = strstr(c->config_text, "\"Lamb\"") != NULL; /* it wants the scale to be dynamic */
    c->dtype = dtypes[between(d, 0, 2)];
    const int power = between(d, 4, 26), static_scale = one_in(d, 4);
    if (c->dtype == ZB_FP16)
        append(c->config_text, sizeof c->config_text,
               "\"fp16\":{\"enabled\":true,\"loss_scale\":%s,\"initial_scale_power\":%d,"
               "\"loss_scale_window\":%d,\"hysteresis\":%d,\"consecutive_hysteresis\":%s,"
               "\"min_loss_scale\":%lld},",
               static_scale && !is_lamb ? "128" : "0", power, between(d, 1, 3), between(d, 1, 2),
               truth(one_in(d, 2)), one_in(d, 8) ? 1ll << power : 1ll);
    if (c->dtype == ZB_BF16)
        append(c->config_text, sizeof c->config_text,
               "\"bf16\":{\"enabled\":true,\"check_grad_overflow\":%s},", truth(one_in(d, 2)));
    if (one_in(d, 3))
        append(c->config_text, sizeof c->config_text, "\"data_types\":{\"grad_accum_dtype\":\"%s\"},",
               zb_dtype_name(one_in(d, 3) ? c->dtype : ZB_FP32));
    if (one_in(d, 3))
        append(c->config_text, sizeof c->config_text, "\"communication_data_type\":\"%s\",",
               zb_dtype_name(dtypes[between(d, 0, 2)]));
}

/* Not all of it is taken at every stage: random_case_create looks at which. */
static void append_averaging(draw *d, random_case *c)
{
    static const char *const factors[] = { "0.5", "2", "3" };
    char world[16];
    if (one_in(d, 6)) append(c->config_text, sizeof c->config_text, "\"prescale_gradients\":true,");
    if (one_in(d, 6)) {
        snprintf(world, sizeof world, "%d", c->world_size);
        append(c->config_text, sizeof c->config_text, "\"gradient_predivide_factor\":%s,",
               one_in(d, 2) ? world : factors[between(d, 0, 2)]);
    }
    append(c->config_text, sizeof c->config_text, "\"gradient_allreduce_op\":\"%s\",",
           one_in(d, 8) ? "sum" : "mean");
}

static uint64_t random_limit(draw *d, const zb_model *model)
{
    return one_in(d, 2) ? (uint64_t)between(d, 0, 40) : model->param_numel / 2;
}

/* Keys of zero_optimization that only set when stage 3 gathers and releases parameters. */
static void append_gathering(draw *d, random_case *c)
{
    static const char *const counts[] = { "prefetch_bucket_size", "max_live_parameters", "max_reuse_distance",
                                          "param_persistence_threshold", "model_persistence_threshold" };
    if (one_in(d, 4)) return;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const int limit = between(d, 0, 2) * between(d, 0, (int)c->model->param_numel);
        if (!one_in(d, 3)) append(c->config_text, sizeof c->config_text, "\"%s\":%d,", counts[i], limit);
    }
    if (one_in(d, 5)) append(c->config_text, sizeof c->config_text, "\"allgather_sequential\":true,");
    if (one_in(d, 5))
        append(c->config_text, sizeof c->config_text, "\"module_granularity_threshold\":%d,",
               between(d, 1, (int)c->model->param_numel));
}

static void append_zero(draw *d, random_case *c)
{
    char *text = c->config_text;
    const size_t bytes = sizeof c->config_text;
    append(text, bytes, "\"zero_optimization\":{\"stage\":0,\"reduce_bucket_size\":%llu,",
           (unsigned long long)random_bucket_limit(d, c->model));
    if (one_in(d, 2)) append(text, bytes, "\"overlap_comm\":%s,", truth(one_in(d, 2)));
    if (one_in(d, 3)) append(text, bytes, "\"round_robin_gradients\":true,");
    if (one_in(d, 3))
        append(text, bytes, "\"sub_group_size\":%llu,", (unsigned long long)random_limit(d, c->model));
    if (one_in(d, 3)) append(text, bytes, "\"use_multi_rank_bucket_allreduce\":false,");
    if (one_in(d, 5)) append(text, bytes, "\"contiguous_gradients\":false,");
    append_gathering(d, c);
    append(text, bytes, "\"reduce_scatter\":%s}", truth(!one_in(d, 3)));
}

static zb_status make_config(draw *d, random_case *c)
{
    static const char *const clips[] = { "0", "0.0001", "0.1", "1.0", "1000" };
    c->world_size = between(d, 1, WORLD_MAX);
    c->steps = between(d, 2, 4);
    int micro = between(d, 1, 3), accumulation = between(d, 1, 4);
    append(c->config_text, sizeof c->config_text,
           "{\"train_micro_batch_size_per_gpu\":%d,\"gradient_accumulation_steps\":%d,", micro, accumulation);
    c->semantics = one_in(d, 2) ? ZB_SEMANTICS_STANDARD : ZB_SEMANTICS_DEEPSPEED_0_19_6;
    append_optimizer(d, c);
    append_zerobit(d, c);
    append_precision(d, c);
    append_averaging(d, c);
    append(c->config_text, sizeof c->config_text, "\"gradient_clipping\":%s,\"dataloader_drop_last\":%s,",
           clips[between(d, 0, 4)], truth(one_in(d, 3)));
    append_zero(d, c);
    append(c->config_text, sizeof c->config_text, "}");
    ZB_TRY(zb_config_parse(c->config_text, strlen(c->config_text), "random", &c->config));

    /* From less than a step to several steps of data, so that epochs end in the middle of a step. */
    int64_t per_step = (int64_t)micro * accumulation * c->world_size;
    c->dataset_size = between(d, 1, (int)per_step * 2 + 3);
    if (c->config->dataloader_drop_last && c->dataset_size < (int64_t)micro * c->world_size)
        c->dataset_size = (int64_t)micro * c->world_size;
    return ZB_OK;
}

/* Those that take the config, and whose collectives the order's library offers. Stage 1 takes every config.
 */
static zb_status find_stages(random_case *c)
{
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        zb_plan plan;
        zb_route route = { 0 };
        zb_status status = zb_plan_derive(c->config, stage, c->dtype, c->world_size, &plan);
        if (status == ZB_OK) status = zb_route_create(c->config, c->model, &plan, stage, &route);
        zb_route_destroy(&route);
        if (status == ZB_OK)
            c->stages[c->stage_count++] = stage;
        else if (status != ZB_UNSUPPORTED && (status != ZB_INVALID_CONFIG || stage == 1))
            return status;
    }
    return ZB_OK;
}

/* --- data: in some cases one sample makes gradients overflow, on whichever rank and in whichever step it
 * comes --- */

typedef struct poisoned_dataset {
    zb_dataset base;
    zb_dataset *clean;
    int64_t sample;
    float value;
} poisoned_dataset;

static void poisoned_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label,
                           float *target)
{
    const poisoned_dataset *poisoned = (const poisoned_dataset *)dataset;
    zb_dataset_fetch(poisoned->clean, index, input, label, target);
    if (index == poisoned->sample) input[0] = poisoned->value;
}

static void poisoned_destroy(zb_dataset *dataset)
{
    poisoned_dataset *poisoned = (poisoned_dataset *)dataset;
    zb_dataset_destroy(poisoned->clean);
    zb_free(poisoned);
}

static zb_status poison(draw *d, random_case *c)
{
    static const zb_dataset_ops ops = { poisoned_fetch, poisoned_destroy };
    static const float values[] = { INFINITY, NAN, 60000.0f, -3e38f, 1e20f };
    poisoned_dataset *poisoned = zb_alloc(sizeof *poisoned);
    if (poisoned == NULL) return ZB_NO_MEMORY;
    *poisoned = (poisoned_dataset){ .base = *c->dataset,
                                    .clean = c->dataset,
                                    .sample = between(d, 0, (int)c->dataset_size - 1),
                                    .value = values[between(d, 0, 4)] };
    poisoned->base.ops = &ops;
    c->dataset = &poisoned->base;
    append(c->model_text, sizeof c->model_text, "; sample %lld begins with %g", (long long)poisoned->sample,
           (double)poisoned->value);
    return ZB_OK;
}

static zb_status make_data(draw *d, random_case *c)
{
    ZB_TRY(zb_dataset_synthetic(c->model, c->dataset_size, c->number, &c->dataset));
    return one_in(d, 3) ? poison(d, c) : ZB_OK;
}

zb_status random_case_create(uint64_t number, random_case *c)
{
    *c = (random_case){ .number = number };
    draw d = { .state = number * 0x632BE59BD9B4E019u + 1 };
    zb_status status = make_model(&d, c);
    if (status == ZB_OK) status = make_config(&d, c);
    if (status == ZB_OK) status = find_stages(c);
    if (status == ZB_OK) status = make_data(&d, c);
    if (status == ZB_OK) status = zb_weights_from_seed(c->model, number, &c->weights);
    if (status != ZB_OK) random_case_destroy(c);
    return status;
}

void random_case_destroy(random_case *c)
{
    zb_weights_destroy(&c->weights);
    zb_dataset_destroy(c->dataset);
    zb_config_destroy(c->config);
    zb_model_destroy(c->model);
    c->dataset = NULL;
    c->config = NULL;
    c->model = NULL;
}
