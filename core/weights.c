/* Values of all parameters of a model: from a seed, from a safetensors file, and into one. */
#include <zerobit/model.h>

#include <zerobit/memory.h>

#include "core/model_parts.h"
#include "core/safetensors.h"

/* Zeroed values of every parameter. */
static zb_status create(const zb_model *model, zb_weights *weights)
{
    zb_weights created = { .values = zb_alloc_array((size_t)model->param_count, sizeof(float *)),
                           .param_count = model->param_count };
    if (created.values == NULL) return ZB_NO_MEMORY;
    for (int i = 0; i < model->param_count; i++) {
        created.values[i] = zb_alloc_array(model->params[i].numel, sizeof(float));
        if (created.values[i] == NULL) {
            zb_weights_destroy(&created);
            return ZB_NO_MEMORY;
        }
    }
    *weights = created;
    return ZB_OK;
}

void zb_weights_destroy(zb_weights *weights)
{
    if (weights->values != NULL)
        for (int i = 0; i < weights->param_count; i++) zb_free(weights->values[i]);
    zb_free(weights->values);
    *weights = (zb_weights){ 0 };
}

zb_status zb_weights_from_seed(const zb_model *model, uint64_t seed, zb_weights *weights)
{
    zb_weights made;
    ZB_TRY(create(model, &made));
    for (int i = 0; i < model->param_count; i++)
        zb_model_init_param(model, i, seed, 0, model->params[i].numel, made.values[i]);
    *weights = made;
    return ZB_OK;
}

/* The same names with the same shapes on both sides. */
static zb_status check_tensors(const zb_model *model, const zb_safetensors *file)
{
    char found[ZB_SHAPE_TEXT_BYTES], expected[ZB_SHAPE_TEXT_BYTES];
    for (int i = 0; i < model->param_count; i++) {
        const zb_param *param = &model->params[i];
        const zb_safetensors_tensor *tensor = zb_safetensors_find(file, param->name);
        if (tensor == NULL)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "%s: has no tensor \"%s\", which model \"%s\" needs with shape %s", file->path,
                           param->name, model->name, zb_shape_format(&param->shape, expected));
        if (!zb_shape_equal(&tensor->shape, &param->shape))
            return zb_fail(ZB_INVALID_ARGUMENT, "%s: tensor \"%s\" has shape %s, model \"%s\" expects %s",
                           file->path, param->name, zb_shape_format(&tensor->shape, found), model->name,
                           zb_shape_format(&param->shape, expected));
    }
    for (size_t i = 0; i < file->count; i++)
        if (zb_model_find_param(model, file->tensors[i].name) == ZB_NO_PARAM)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s: tensor \"%s\" is no parameter of model \"%s\"",
                           file->path, file->tensors[i].name, model->name);
    return ZB_OK;
}

static zb_status load(const zb_model *model, const zb_safetensors *file, zb_weights *weights)
{
    ZB_TRY(check_tensors(model, file));
    zb_weights loaded;
    ZB_TRY(create(model, &loaded));
    for (int i = 0; i < model->param_count; i++) {
        const zb_safetensors_tensor *tensor = zb_safetensors_find(file, model->params[i].name);
        zb_status status = zb_safetensors_read(file, tensor, loaded.values[i]);
        if (status != ZB_OK) {
            zb_weights_destroy(&loaded);
            return status;
        }
    }
    *weights = loaded;
    return ZB_OK;
}

zb_status zb_weights_load(const zb_model *model, const char *safetensors_path, zb_weights *weights)
{
    zb_safetensors file;
    ZB_TRY(zb_safetensors_open(safetensors_path, &file));
    zb_status status = load(model, &file, weights);
    zb_safetensors_close(&file);
    return status;
}

zb_status zb_weights_save(const zb_model *model, const zb_weights *weights, const char *safetensors_path)
{
    if (weights->param_count != model->param_count)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "weights of %d parameters cannot be those of model \"%s\", which has %d",
                       weights->param_count, model->name, model->param_count);
    zb_safetensors_source *sources = zb_alloc_array((size_t)model->param_count, sizeof *sources);
    if (sources == NULL) return ZB_NO_MEMORY;
    for (int i = 0; i < model->param_count; i++)
        sources[i] = (zb_safetensors_source){ .name = model->params[i].name,
                                              .shape = &model->params[i].shape,
                                              .numel = model->params[i].numel,
                                              .values = weights->values[i] };
    zb_status status = zb_safetensors_write(safetensors_path, sources, (size_t)model->param_count);
    zb_free(sources);
    return status;
}
