/*
 * A data set for any model: inputs are drawn when they are fetched, so that its size costs nothing, and
 * labels or targets come from a fixed linear map of the input, so that there is something to learn.
 */
#include <zerobit/data.h>

#include <inttypes.h>
#include <zerobit/memory.h>
#include <zerobit/random.h>

/* Above every parameter index: a model initialised with the same seed draws from streams 0, 1, 2, ... */
static const uint32_t stream_input = 0x80000000u, stream_map = 0x80000001u;

/* The map looks at the first elements only: a fetch stays cheap whatever the model's input and output. */
enum { MAP_INPUT_MAX = 64 };

typedef struct synthetic_dataset {
    zb_dataset base;
    uint64_t seed;
    size_t input_numel, map_input_numel, output_numel;
    float *map; /* [output_numel][map_input_numel] */
} synthetic_dataset;

/* In [-1, 1), exact in fp32. */
static float draw(uint64_t seed, uint32_t stream, uint64_t element)
{
    return 2.0f * zb_random_uniform(seed, stream, element) - 1.0f;
}

static float map_output(const synthetic_dataset *self, const float *input, size_t output)
{
    const float *row = self->map + output * self->map_input_numel;
    float sum = 0.0f;
    for (size_t e = 0; e < self->map_input_numel; e++) sum += row[e] * input[e];
    return sum;
}

static int32_t map_argmax(const synthetic_dataset *self, const float *input)
{
    size_t best = 0;
    float best_value = map_output(self, input, 0);
    for (size_t k = 1; k < self->output_numel; k++) {
        float value = map_output(self, input, k);
        if (value > best_value) {
            best = k;
            best_value = value;
        }
    }
    return (int32_t)best;
}

static void synthetic_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label,
                            float *target)
{
    const synthetic_dataset *self = (const synthetic_dataset *)dataset;
    uint64_t first = (uint64_t)index * self->input_numel;
    for (size_t e = 0; e < self->input_numel; e++) input[e] = draw(self->seed, stream_input, first + e);
    if (dataset->classes > 0)
        *label = map_argmax(self, input);
    else
        for (size_t k = 0; k < self->output_numel; k++) target[k] = map_output(self, input, k);
}

static void synthetic_destroy(zb_dataset *dataset)
{
    synthetic_dataset *self = (synthetic_dataset *)dataset;
    zb_free(self->map);
    zb_free(self);
}

static const zb_dataset_ops synthetic_ops = { .fetch = synthetic_fetch, .destroy = synthetic_destroy };

zb_status zb_dataset_synthetic(const zb_model *model, int64_t size, uint64_t seed, zb_dataset **dataset_p)
{
    if (size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "synthetic data for %s: size is %" PRId64 ", want >= 1",
                       model->name, size);
    int output = zb_model_output_module(model);
    if (output == ZB_MODEL_INPUT)
        return zb_fail(ZB_INVALID_ARGUMENT, "synthetic data for %s: the model has no module with an output",
                       model->name);
    synthetic_dataset *self = zb_alloc(sizeof *self);
    if (self == NULL) return ZB_NO_MEMORY;
    self->seed = seed;
    self->input_numel = zb_shape_numel(&model->input);
    self->map_input_numel = self->input_numel < MAP_INPUT_MAX ? self->input_numel : MAP_INPUT_MAX;
    self->output_numel = zb_shape_numel(&model->modules[output].out);
    self->base = (zb_dataset){ .ops = &synthetic_ops, .size = size, .input = model->input };
    if (model->loss == ZB_LOSS_CROSS_ENTROPY)
        self->base.classes = (int64_t)self->output_numel;
    else
        self->base.target_numel = self->output_numel;

    self->map = zb_alloc_array(self->output_numel, self->map_input_numel * sizeof *self->map);
    if (self->map == NULL) {
        zb_free(self);
        return ZB_NO_MEMORY;
    }
    for (size_t i = 0; i < self->output_numel * self->map_input_numel; i++)
        self->map[i] = draw(seed, stream_map, i);
    *dataset_p = &self->base;
    return ZB_OK;
}
