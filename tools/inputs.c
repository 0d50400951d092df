/* What verify, train and inspect read: config, model, data, weights. */
#include "tools/inputs.h"

#include <string.h>

/* Given on the command line, the batch triangle is the command line's alone: a size left over from the config
 * would contradict it. */
static void apply_batch(const input_options *options, zb_config *config)
{
    if (options->train_batch == 0 && options->micro_batch == 0 && options->accumulation == 0) return;
    config->batch = (zb_batch_triangle){ .train_batch_size = options->train_batch,
                                         .micro_batch_size = options->micro_batch,
                                         .accumulation_steps = options->accumulation };
}

static zb_status load_config(const input_options *options, zb_config **config_p)
{
    zb_semantics semantics;
    if (options->semantics == NULL) return zb_config_load(options->config_path, config_p);
    if (!zb_semantics_parse(options->semantics, &semantics))
        return zb_fail(ZB_INVALID_ARGUMENT, "--semantics %s: want standard or deepspeed-0.19.6",
                       options->semantics);
    return zb_config_load_as(options->config_path, semantics, config_p);
}

zb_status inputs_open_config(const input_options *options, inputs *in)
{
    *in = (inputs){ 0 };
    ZB_TRY(load_config(options, &in->config));
    apply_batch(options, in->config);
    if (options->order == NULL || zb_config_set_order(in->config, options->order) == ZB_OK) return ZB_OK;
    const zb_status status = zb_fail_context("--order");
    inputs_close(in);
    return status;
}

static int looks_like_cifar10(const zb_model *model)
{
    const zb_shape *in = &model->input;
    const zb_shape *out = &model->modules[zb_model_output_module(model)].out;
    return in->dims == 3 && in->extent[0] == 3 && in->extent[1] == 32 && in->extent[2] == 32 &&
           model->loss == ZB_LOSS_CROSS_ENTROPY && zb_shape_numel(out) == 10;
}

static zb_status open_dataset(const input_options *options, inputs *in)
{
    uint64_t seed = (uint64_t)options->seed;
    if (strcmp(options->data, "synthetic") != 0)
        return zb_dataset_open_cifar10(options->data, 0, &in->dataset);
    if (looks_like_cifar10(in->model))
        return zb_dataset_synthetic_cifar10(options->records, seed, &in->dataset);
    return zb_dataset_synthetic(in->model, options->records, seed, &in->dataset);
}

static zb_status open_rest(const input_options *options, inputs *in)
{
    ZB_TRY(zb_model_open(options->model, &in->model));
    if (options->weights != NULL)
        ZB_TRY(zb_weights_load(in->model, options->weights, &in->weights));
    else
        ZB_TRY(zb_weights_from_seed(in->model, (uint64_t)options->seed, &in->weights));
    return open_dataset(options, in);
}

zb_status inputs_open(const input_options *options, inputs *in)
{
    ZB_TRY(inputs_open_config(options, in));
    zb_status status = open_rest(options, in);
    if (status != ZB_OK) inputs_close(in);
    return status;
}

void inputs_close(inputs *in)
{
    zb_dataset_destroy(in->dataset);
    zb_weights_destroy(&in->weights);
    zb_model_destroy(in->model);
    zb_config_destroy(in->config);
    *in = (inputs){ 0 };
}
