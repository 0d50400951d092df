/*
 * zerobit from C: hold a small network at all ZeRO stages on 1 to 4 ranks against the oracle.
 *
 *   cmake -S . -B build && cmake --build build && build/embed
 *   cc embed.c $(pkg-config --cflags --libs zerobit) -o embed && ./embed
 */
#include <stdio.h>
#include <string.h>
#include <zerobit/zerobit.h>

static const char config_text[] = "{ \"train_batch_size\": 12, \"gradient_clipping\": 1.0,"
                                  "  \"optimizer\": { \"type\": \"AdamW\", \"params\": { \"lr\": 0.01 } },"
                                  "  \"zero_optimization\": { \"stage\": 0, \"reduce_bucket_size\": 100 } }";

enum { STAGES = 4, WORLDS = 4 };

static zb_status verify_all(const zb_config *config, const zb_model *model, const zb_weights *weights,
                            const zb_dataset *dataset)
{
    static const int stages[STAGES] = { 0, 1, 2, 3 }, worlds[WORLDS] = { 1, 2, 3, 4 };
    static const zb_dtype dtypes[] = { ZB_FP32 };
    zb_verify_case cases[STAGES * WORLDS];
    const zb_verify_options options = { .config = config,
                                        .model = model,
                                        .weights = weights,
                                        .dataset = dataset,
                                        .stages = stages,
                                        .stage_count = STAGES,
                                        .worlds = worlds,
                                        .world_count = WORLDS,
                                        .dtypes = dtypes,
                                        .dtype_count = 1,
                                        .steps = 5 };
    zb_status status = zb_verify(&options, cases);
    if (status != ZB_OK && status != ZB_DIFFERENT) return status;
    for (int i = 0; i < STAGES * WORLDS; i++)
        printf("stage %d, world %d: %s\n", cases[i].stage, cases[i].world_size,
               cases[i].status == ZB_OK ? "equal" : cases[i].difference.text);
    return status;
}

int main(void)
{
    zb_config *config = NULL;
    zb_model *model = NULL;
    zb_dataset *dataset = NULL;
    zb_weights weights = { 0 };
    zb_status status = zb_config_parse(config_text, strlen(config_text), "embed.c", &config);
    if (status == ZB_OK) status = zb_model_open("mlp:7-13-5", &model);
    if (status == ZB_OK) status = zb_weights_from_seed(model, 1, &weights);
    if (status == ZB_OK) status = zb_dataset_synthetic(model, 100, 2, &dataset);
    if (status == ZB_OK) status = verify_all(config, model, &weights, dataset);
    if (status != ZB_OK) fprintf(stderr, "%s: %s\n", zb_status_string(status), zb_error_message());
    zb_dataset_destroy(dataset);
    zb_weights_destroy(&weights);
    zb_model_destroy(model);
    zb_config_destroy(config);
    return status == ZB_OK ? 0 : 1;
}
