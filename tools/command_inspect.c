/* zerobit inspect: what a config will mean, as one JSON value on standard output, with no training. */
#include "tools/command.h"
#include "tools/inputs.h"
#include "tools/options.h"

#include "verify/json_writer.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/estimate.h>
#include <zerobit/memory.h>
#include <zerobit/schedule.h>

enum { WORLD_SIZE_MAX = 65536 };

typedef struct inspect_settings {
    input_options input;
    int64_t world_size, nodes, stage, steps, size, rank, epoch, params;
    int64_t quirks_world;     /* 0: as the batch sizes allow */
    const char *memory_model; /* no default: --params may stand for it */
    const char *overflow;     /* one '0' or '1' per step */
    int_list stages;          /* empty: --stage */
    dtype_list dtypes;        /* empty: the config's */
    int no_shuffle, drop_last;
} inspect_settings;

/* --- each topic fills in `json` --- */

static zb_status resolve_batch(const inputs *in, const inspect_settings *settings, zb_batch_triangle *batch)
{
    if (zb_batch_resolve(&in->config->batch, (int)settings->world_size, batch) == ZB_OK) return ZB_OK;
    return zb_fail_context("%s", in->config->path);
}

static zb_status inspect_batch(const inspect_settings *settings, zb_json_writer *json)
{
    inputs in;
    ZB_TRY(inputs_open_config(&settings->input, &in));
    zb_batch_triangle batch;
    zb_status status = resolve_batch(&in, settings, &batch);
    inputs_close(&in);
    if (status != ZB_OK) return status;
    zb_json_begin_object(json, NULL);
    zb_json_put_int(json, "train_batch_size", batch.train_batch_size);
    zb_json_put_int(json, "train_micro_batch_size_per_gpu", batch.micro_batch_size);
    zb_json_put_int(json, "gradient_accumulation_steps", batch.accumulation_steps);
    zb_json_end_object(json);
    return ZB_OK;
}

/* With more than one parameter group, a list with the rate of each. */
static void put_rates(zb_json_writer *json, const zb_schedules *schedules)
{
    double rates[ZB_PARAM_GROUP_MAX];
    zb_schedules_rates(schedules, rates);
    if (schedules->group_count > 1) zb_json_begin_array(json, NULL);
    for (int g = 0; g < schedules->group_count; g++) zb_json_put_double(json, NULL, rates[g]);
    if (schedules->group_count > 1) zb_json_end_array(json);
}

static zb_status inspect_lr(const inspect_settings *settings, zb_json_writer *json)
{
    inputs in;
    zb_schedule_config configs[ZB_PARAM_GROUP_MAX];
    zb_schedules schedules;
    ZB_TRY(inputs_open_config(&settings->input, &in));
    zb_config_list_schedules(in.config, configs);
    zb_status status = zb_schedules_init(&schedules, configs, in.config->group_count);
    inputs_close(&in);
    if (status != ZB_OK) return status;
    zb_json_begin_array(json, NULL);
    for (int64_t step = 0; step < settings->steps; step++) {
        put_rates(json, &schedules);
        zb_schedules_step(&schedules);
    }
    zb_json_end_array(json);
    return ZB_OK;
}

static zb_status check_overflow_bits(const char *bits)
{
    if (bits == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "--overflow is missing; see zerobit inspect loss-scale --help");
    size_t good = strspn(bits, "01");
    if (bits[good] == '\0') return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "--overflow: '%c' at character %zu: want 0 and 1 only, one for each step", bits[good],
                   good + 1);
}

static int stage_of(const inspect_settings *settings, const inputs *in)
{
    return settings->stage >= 0 ? (int)settings->stage : in->config->zero.stage;
}

/* Ends early where training would; what was written until then is whole, and the caller prints it. */
static zb_status inspect_loss_scale(const inspect_settings *settings, zb_json_writer *json)
{
    ZB_TRY(check_overflow_bits(settings->overflow));
    inputs in;
    zb_loss_scaler_config config;
    ZB_TRY(inputs_open_config(&settings->input, &in));
    zb_status status = zb_scaler_derive(in.config, stage_of(settings, &in), in.config->dtype, &config);
    inputs_close(&in);
    if (status != ZB_OK) return status;
    zb_loss_scaler scaler;
    ZB_TRY(zb_loss_scaler_init(&scaler, &config));
    zb_json_begin_array(json, NULL);
    zb_json_put_double(json, NULL, scaler.scale);
    for (const char *bit = settings->overflow; *bit != '\0' && status == ZB_OK; bit++) {
        status = zb_loss_scaler_update(&scaler, *bit == '1');
        if (status == ZB_OK) zb_json_put_double(json, NULL, scaler.scale);
    }
    zb_json_end_array(json);
    return status;
}

static zb_status inspect_sampler(const inspect_settings *settings, zb_json_writer *json)
{
    if (settings->size < 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--size is missing; see zerobit inspect sampler --help");
    if (settings->rank >= settings->world_size)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "--rank %" PRId64 ": want 0 to %" PRId64 " in a world of %" PRId64, settings->rank,
                       settings->world_size - 1, settings->world_size);
    zb_sampler_config config = { .dataset_size = settings->size,
                                 .world_size = (int)settings->world_size,
                                 .rank = (int)settings->rank,
                                 .shuffle = !settings->no_shuffle,
                                 .drop_last = settings->drop_last,
                                 .seed = (uint64_t)settings->input.seed };
    int64_t length = zb_sampler_length(&config);
    int64_t *indices = zb_alloc_array((size_t)length, sizeof *indices);
    if (indices == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_sampler_indices(&config, settings->epoch, indices);
    if (status == ZB_OK) {
        zb_json_begin_array(json, NULL);
        for (int64_t i = 0; i < length; i++) zb_json_put_int(json, NULL, indices[i]);
        zb_json_end_array(json);
    }
    zb_free(indices);
    return status;
}

static void put_rank(zb_json_writer *json, const zb_model *model, int rank, const zb_partition *partition)
{
    zb_json_begin_object(json, NULL);
    zb_json_put_int(json, "rank", rank);
    zb_json_put_uint(json, "padding", partition->padding);
    zb_json_begin_array(json, "pieces");
    for (size_t i = 0; i < partition->piece_count; i++) {
        const zb_piece *piece = &partition->pieces[i];
        zb_json_begin_object(json, NULL);
        zb_json_put_string(json, "param", model->params[piece->param].name);
        zb_json_put_uint(json, "param_offset", piece->param_offset);
        zb_json_put_uint(json, "numel", piece->numel);
        zb_json_put_uint(json, "flat_offset", piece->flat_offset);
        zb_json_end_object(json);
    }
    zb_json_end_array(json);
    zb_json_end_object(json);
}

static zb_status put_partition(zb_json_writer *json, const inspect_settings *settings, const inputs *in,
                               const int *group_of)
{
    int world_size = (int)settings->world_size;
    int stage = stage_of(settings, in);
    /* Whether this world is possible at all. */
    zb_batch_triangle batch;
    ZB_TRY(resolve_batch(in, settings, &batch));
    zb_json_begin_object(json, NULL);
    zb_json_put_int(json, "stage", stage);
    zb_json_put_int(json, "world", world_size);
    for (int rank = 0; rank < world_size; rank++) {
        zb_partition partition;
        ZB_TRY(zb_partition_create(
            &(zb_partition_options){ .model = in->model,
                                     .stage = stage,
                                     .world_size = world_size,
                                     .rank = rank,
                                     .group_of = group_of,
                                     .round_robin = in->config->zero.round_robin_gradients },
            &partition));
        if (rank == 0) {
            zb_json_put_uint(json, "numel", partition.numel);
            zb_json_put_uint(json, "padded_numel", partition.padded_numel);
            zb_json_begin_array(json, "ranks");
        }
        put_rank(json, in->model, rank, &partition);
        zb_partition_destroy(&partition);
    }
    zb_json_end_array(json);
    zb_json_end_object(json);
    return ZB_OK;
}

static zb_status put_grouped_partition(zb_json_writer *json, const inspect_settings *settings,
                                       const inputs *in)
{
    int *group_of = zb_alloc_array((size_t)in->model->param_count, sizeof *group_of);
    if (group_of == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_config_assign_groups(in->config, in->model, group_of);
    if (status == ZB_OK) status = put_partition(json, settings, in, group_of);
    zb_free(group_of);
    return status;
}

static zb_status inspect_partition(const inspect_settings *settings, zb_json_writer *json)
{
    inputs in;
    ZB_TRY(inputs_open_config(&settings->input, &in));
    zb_status status = zb_model_open(settings->input.model, &in.model);
    if (status == ZB_OK) status = put_grouped_partition(json, settings, &in);
    inputs_close(&in);
    return status;
}

static void put_estimate(zb_json_writer *json, const char *key, zb_estimate estimate)
{
    zb_json_begin_object(json, key);
    zb_json_put_uint(json, "cpu", estimate.cpu_bytes);
    zb_json_put_uint(json, "gpu", estimate.gpu_bytes);
    zb_json_end_object(json);
}

/* The module with the most parameters, as DeepSpeed's live estimator looks for it; 0 when only a number is
 * known. */
static uint64_t largest_layer(const zb_model *model)
{
    uint64_t largest = 0;
    for (int m = 0; model != NULL && m < model->module_count; m++) {
        const int params[] = { model->modules[m].weight, model->modules[m].bias };
        uint64_t numel = 0;
        for (int i = 0; i < 2; i++)
            if (params[i] != ZB_NO_PARAM) numel += model->params[params[i]].numel;
        if (numel > largest) largest = numel;
    }
    return largest;
}

/* What the paper and DeepSpeed say, beside what this engine holds. */
static zb_status put_estimates(zb_json_writer *json, const inspect_settings *settings, const zb_model *model,
                               uint64_t numel)
{
    if (settings->world_size % settings->nodes != 0)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "--nodes: is %" PRId64 ", want a divisor of the %" PRId64 " ranks", settings->nodes,
                       settings->world_size);
    zb_paper_memory paper = zb_paper_memory_bytes(numel, (int)settings->world_size);
    zb_json_begin_object(json, "paper");
    zb_json_put_double(json, "baseline", paper.baseline);
    zb_json_put_double(json, "os", paper.os);
    zb_json_put_double(json, "os+g", paper.os_g);
    zb_json_put_double(json, "os+g+p", paper.os_g_p);
    zb_json_end_object(json);

    zb_estimate_setup setup = { .param_numel = numel,
                                .largest_layer_numel = largest_layer(model),
                                .nodes = (int)settings->nodes,
                                .gpus_per_node = (int)(settings->world_size / settings->nodes),
                                .zero_init = 1 };
    zb_json_begin_object(json, "deepspeed_estimates");
    zb_json_put_int(json, "nodes", setup.nodes);
    zb_json_put_int(json, "gpus_per_node", setup.gpus_per_node);
    zb_json_begin_object(json, "zero2");
    put_estimate(json, "offload_optimizer", zb_estimate_zero2(&setup, ZB_OFFLOAD_OPTIMIZER));
    put_estimate(json, "no_offload", zb_estimate_zero2(&setup, ZB_OFFLOAD_NONE));
    zb_json_end_object(json);
    if (model != NULL) { /* without a model nobody knows its largest layer */
        zb_json_begin_object(json, "zero3");
        put_estimate(json, "offload_optimizer_and_params",
                     zb_estimate_zero3(&setup, ZB_OFFLOAD_OPTIMIZER_AND_PARAMS));
        put_estimate(json, "offload_optimizer", zb_estimate_zero3(&setup, ZB_OFFLOAD_OPTIMIZER));
        put_estimate(json, "no_offload", zb_estimate_zero3(&setup, ZB_OFFLOAD_NONE));
        zb_json_end_object(json);
    }
    zb_json_end_object(json);
    return ZB_OK;
}

static zb_status put_memory(zb_json_writer *json, const inspect_settings *settings, const inputs *in)
{
    uint64_t numel = in->model != NULL ? in->model->param_numel : (uint64_t)settings->params;
    zb_dtype dtype = settings->dtypes.count > 0 ? settings->dtypes.values[0] : in->config->dtype;
    zb_json_begin_object(json, NULL);
    zb_json_put_int(json, "world", settings->world_size);
    zb_json_put_uint(json, "numel", numel);
    zb_json_put_string(json, "dtype", zb_dtype_name(dtype));
    zb_json_begin_array(json, "stages");
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        zb_plan plan;
        uint64_t bytes[ZB_MEM_COUNT];
        ZB_TRY(zb_plan_derive(in->config, stage, dtype, (int)settings->world_size, &plan));
        if (in->model != NULL)
            ZB_TRY(zb_memory_formula(in->config, in->model, &plan, stage, bytes));
        else
            zb_memory_formula_numel(numel, &plan, stage, bytes);
        zb_json_begin_object(json, NULL);
        zb_json_put_int(json, "stage", stage);
        zb_json_put_uint(json, "parameters", bytes[ZB_MEM_PARAM]);
        zb_json_put_uint(json, "gradients", bytes[ZB_MEM_GRAD]);
        zb_json_put_uint(json, "optimizer_states", bytes[ZB_MEM_OPTIMIZER]);
        zb_json_put_uint(json, "total", bytes[ZB_MEM_PARAM] + bytes[ZB_MEM_GRAD] + bytes[ZB_MEM_OPTIMIZER]);
        zb_json_end_object(json);
    }
    zb_json_end_array(json);
    ZB_TRY(put_estimates(json, settings, in->model, numel));
    zb_json_end_object(json);
    return ZB_OK;
}

static zb_status inspect_memory(const inspect_settings *settings, zb_json_writer *json)
{
    if (settings->params > 0 && settings->memory_model != NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "--model and --params exclude one another");
    if (settings->dtypes.count > 1) return zb_fail(ZB_INVALID_ARGUMENT, "--dtypes: want one precision");
    if (settings->params == 0 && settings->memory_model == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "--model or --params is missing; see zerobit inspect memory --help");
    inputs in;
    ZB_TRY(inputs_open_config(&settings->input, &in));
    in.config->zero_allow_untested_optimizer = 1; /* bytes can be told where DeepSpeed would not run */
    zb_status status = settings->params > 0 ? ZB_OK : zb_model_open(settings->memory_model, &in.model);
    if (status == ZB_OK) status = put_memory(json, settings, &in);
    inputs_close(&in);
    return status;
}

/* A world in which ranks have something to tell one another: the smallest of at least two that the batch
 * sizes allow. One, where they allow no other. */
static zb_status choose_world(const inputs *in, int *world_size)
{
    zb_batch_triangle batch;
    for (int world = 2; world <= WORLD_SIZE_MAX; world++) {
        *world_size = world;
        if (zb_batch_resolve(&in->config->batch, world, &batch) == ZB_OK) return ZB_OK;
    }
    *world_size = 1;
    return zb_batch_resolve(&in->config->batch, 1, &batch) == ZB_OK ? ZB_OK
                                                                    : zb_fail_context("%s", in->config->path);
}

typedef struct quirk_place {
    int stage;
    zb_dtype dtype;
} quirk_place;

static void put_quirk(zb_json_writer *json, const zb_config *config, zb_quirk quirk, const quirk_place *met,
                      int met_count)
{
    zb_quirks quirks = config->quirks;
    const zb_quirk_description *description = zb_quirk_describe(quirk);
    zb_json_begin_object(json, NULL);
    zb_json_put_string(json, "name", zb_quirk_name(quirk));
    zb_json_put_bool(json, "on", *zb_quirk_switch(&quirks, quirk));
    zb_json_put_string(json, "does", description->does);
    zb_json_put_string(json, "effect", description->effect);
    zb_json_put_string(json, "when", description->when);
    zb_json_put_string(json, "source", description->source);
    zb_json_begin_array(json, "met");
    for (int i = 0; i < met_count; i++) {
        zb_json_begin_object(json, NULL);
        zb_json_put_int(json, "stage", met[i].stage);
        zb_json_put_string(json, "dtype", zb_dtype_name(met[i].dtype));
        zb_json_end_object(json);
    }
    zb_json_end_array(json);
    zb_json_end_object(json);
}

static zb_status put_quirks(zb_json_writer *json, const inputs *in, int world_size, const int_list *stages,
                            const dtype_list *dtypes)
{
    zb_json_begin_array(json, NULL);
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) {
        quirk_place met[ZB_STAGE_COUNT * ZB_DTYPE_COUNT];
        int met_count = 0;
        for (int s = 0; s < stages->count; s++)
            for (int d = 0; d < dtypes->count; d++) {
                quirk_place place = { stages->values[s], dtypes->values[d] };
                int applies;
                ZB_TRY(zb_quirk_applies((zb_quirk)q, in->config, place.stage, place.dtype, world_size,
                                        &applies));
                if (applies) met[met_count++] = place;
            }
        if (met_count > 0) put_quirk(json, in->config, (zb_quirk)q, met, met_count);
    }
    zb_json_end_array(json);
    return ZB_OK;
}

static zb_status inspect_quirks(const inspect_settings *settings, zb_json_writer *json)
{
    if (settings->stage >= 0 && settings->stages.count > 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--stage and --stages exclude one another");
    inputs in;
    ZB_TRY(inputs_open_config(&settings->input, &in));
    int_list stages = settings->stages;
    dtype_list dtypes = settings->dtypes;
    if (stages.count == 0) stages = (int_list){ { stage_of(settings, &in) }, 1 };
    if (dtypes.count == 0) dtypes = (dtype_list){ { in.config->dtype }, 1 };
    int world_size = (int)settings->quirks_world;
    zb_status status = world_size == 0 ? choose_world(&in, &world_size) : ZB_OK;
    if (status == ZB_OK) status = put_quirks(json, &in, world_size, &stages, &dtypes);
    inputs_close(&in);
    return status;
}

/* --- the command --- */

typedef zb_status inspect_fn(const inspect_settings *settings, zb_json_writer *json);

static const char *const topics[] = { "batch",     "lr",     "loss-scale", "sampler",
                                      "partition", "memory", "quirks",     NULL };
#define TOPICS "batch, lr, loss-scale, sampler, partition, memory or quirks"

static exit_code unknown_topic(const char *word)
{
    const char *meant = word != NULL ? closest_word(word, topics) : NULL;
    zb_status status;
    if (word == NULL)
        status = zb_fail(ZB_INVALID_ARGUMENT, "what? " TOPICS);
    else if (meant != NULL)
        status = zb_fail(ZB_INVALID_ARGUMENT, "unknown topic %s; did you mean %s?", word, meant);
    else
        status = zb_fail(ZB_INVALID_ARGUMENT, "unknown topic %s; want " TOPICS, word);
    return command_failed("inspect", status);
}

static void print_topics(void)
{
    puts("usage: zerobit inspect TOPIC ... [options]\n\n"
         "Says what a config will mean, as one JSON value, with no training.\n\n"
         "  batch CONFIG --world W                      the batch sizes, resolved\n"
         "  lr CONFIG --steps N                         the learning rates of N steps\n"
         "  loss-scale CONFIG --overflow BITS           the loss scales of as many steps, and the next\n"
         "  sampler --size N --world W --rank R         the sample indices of one rank\n"
         "  partition CONFIG --model M --world W        what each rank owns of the parameters\n"
         "  memory CONFIG --model M|--params N --world W  bytes per rank at every stage\n"
         "  quirks CONFIG [--stages S] [--dtypes D]     where DeepSpeed departs from what it documents");
}

/* Printed as a whole, or nothing is. */
static exit_code run_topic(const command_spec *spec, inspect_fn *inspect, inspect_settings *settings,
                           int argc, char **argv)
{
    const char *operands[OPERAND_MAX] = { NULL };
    int help = 0;
    zb_status status = options_parse(spec, argc, argv, operands, &help);
    if (status == ZB_OK && help) {
        options_print_help(spec);
        return EXIT_EQUAL;
    }
    settings->input.config_path = operands[0];
    zb_json_writer json = { 0 };
    if (status == ZB_OK) status = inspect(settings, &json);
    /* A loss scale that cannot be lowered ends what is shown; it does not take it back. */
    if (status == ZB_OK || status == ZB_LOSS_SCALE) {
        zb_status finished = zb_json_writer_finish(&json);
        if (finished == ZB_OK) puts(json.text);
        if (finished != ZB_OK) status = finished;
    }
    zb_json_writer_destroy(&json);
    return status == ZB_OK ? EXIT_EQUAL : command_failed(spec->name, status);
}

static exit_code find_topic(const char *topic, int argc, char **argv)
{
    inspect_settings settings = {
        .input = INPUT_OPTIONS_DEFAULT, .world_size = 1, .nodes = 1, .stage = -1, .steps = 20, .size = -1
    };
#define ROW_WORLD                                                                                            \
    {                                                                                                        \
        "--world", OPTION_INT, &settings.world_size, "W", "number of ranks (1)", 1, WORLD_SIZE_MAX           \
    }
#define ROW_STAGE                                                                                            \
    {                                                                                                        \
        "--stage", OPTION_INT, &settings.stage, "S", "ZeRO stage (the config's)", 0, ZB_STAGE_COUNT - 1      \
    }
    const option_spec batch_options[] = { ROW_WORLD, OPTION_ROWS_BATCH(settings.input), { 0 } };
    const option_spec lr_options[] = {
        { "--steps", OPTION_INT, &settings.steps, "N", "optimizer steps (20)", 0, INT32_MAX },
        { 0 },
    };
    const option_spec loss_scale_options[] = {
        { "--overflow", OPTION_TEXT, &settings.overflow, "BITS",
          "for each optimizer step 1 if its gradients overflow, otherwise 0; required", 0, 0 },
        ROW_STAGE,
        OPTION_ROW_SEMANTICS(settings.input),
        { 0 },
    };
    const option_spec sampler_options[] = {
        { "--size", OPTION_INT, &settings.size, "N", "samples in the data set; required", 1, INT32_MAX },
        ROW_WORLD,
        { "--rank", OPTION_INT, &settings.rank, "R", "which rank (0)", 0, WORLD_SIZE_MAX - 1 },
        { "--epoch", OPTION_INT, &settings.epoch, "E", "which epoch (0)", 0, INT32_MAX },
        { "--seed", OPTION_INT, &settings.input.seed, "S", "of the shuffle (0)", 0, INT64_MAX },
        { "--no-shuffle", OPTION_FLAG, &settings.no_shuffle, NULL, "in order", 0, 0 },
        { "--drop-last", OPTION_FLAG, &settings.drop_last, NULL, "drop the uneven tail instead of padding it",
          0, 0 },
        { 0 },
    };
    const option_spec partition_options[] = {
        OPTION_ROW_MODEL(settings.input), ROW_WORLD, ROW_STAGE, OPTION_ROWS_BATCH(settings.input), { 0 },
    };
    const option_spec memory_options[] = {
        { "--model", OPTION_TEXT, &settings.memory_model, "M",
          "cifar10-net, mlp:IN-..-OUT, mlp-mse:.. or a JSON file", 0, 0 },
        { "--params", OPTION_INT, &settings.params, "N", "instead of a model: a number of parameters", 1,
          INT64_MAX / 64 },
        { "--nodes", OPTION_INT, &settings.nodes, "N",
          "nodes that the ranks are spread over, for DeepSpeed's estimates (1)", 1, 65536 },
        { "--dtypes", OPTION_DTYPES, &settings.dtypes, "DTYPE",
          "precision: fp32, fp16 or bf16 (the config's)", 0, 0 },
        ROW_WORLD,
        OPTION_ROW_SEMANTICS(settings.input),
        OPTION_ROWS_BATCH(settings.input),
        { 0 },
    };
    const option_spec quirks_options[] = {
        ROW_STAGE,
        { "--stages", OPTION_INTS, &settings.stages, "LIST", "instead: several stages, as in 0,1,2,3", 0,
          ZB_STAGE_COUNT - 1 },
        { "--dtypes", OPTION_DTYPES, &settings.dtypes, "LIST", "precisions: fp32, fp16, bf16 (the config's)",
          0, 0 },
        { "--world", OPTION_INT, &settings.quirks_world, "W",
          "number of ranks (the fewest from 2 on that the batch sizes allow)", 1, WORLD_SIZE_MAX },
        OPTION_ROW_SEMANTICS(settings.input),
        OPTION_ROWS_BATCH(settings.input),
        { 0 },
    };
#undef ROW_WORLD
#undef ROW_STAGE
    const struct {
        const char *topic;
        inspect_fn *inspect;
        command_spec spec;
    } commands[] = {
        { "batch",
          inspect_batch,
          { "inspect batch", "The batch sizes that a config resolves to.", { "CONFIG" }, batch_options } },
        { "lr",
          inspect_lr,
          { "inspect lr", "The learning rates that the optimizer steps use.", { "CONFIG" }, lr_options } },
        { "loss-scale",
          inspect_loss_scale,
          { "inspect loss-scale",
            "The loss scale in force at each optimizer step, and the one after the last.",
            { "CONFIG" },
            loss_scale_options } },
        { "sampler",
          inspect_sampler,
          { "inspect sampler",
            "The sample indices that a rank gets in an epoch.",
            { NULL },
            sampler_options } },
        { "partition",
          inspect_partition,
          { "inspect partition",
            "What each rank owns of the flat parameter space.",
            { "CONFIG" },
            partition_options } },
        { "memory",
          inspect_memory,
          { "inspect memory",
            "Bytes of model states that a rank holds, at every stage.",
            { "CONFIG" },
            memory_options } },
        { "quirks",
          inspect_quirks,
          { "inspect quirks",
            "Where DeepSpeed 0.19.6 departs from what it documents in a run of this config.",
            { "CONFIG" },
            quirks_options } },
    };
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(topic, commands[i].topic) == 0)
            return run_topic(&commands[i].spec, commands[i].inspect, &settings, argc, argv);
    return unknown_topic(topic);
}

exit_code command_inspect(int argc, char **argv)
{
    if (argc < 2) return unknown_topic(NULL);
    const char *topic = argv[1];
    if (strcmp(topic, "--help") == 0 || strcmp(topic, "-h") == 0) {
        print_topics();
        return EXIT_EQUAL;
    }
    return find_topic(topic, argc - 1, argv + 1);
}
