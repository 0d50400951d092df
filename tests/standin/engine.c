/*
 * The engine on the CUDA back end, two ranks that share a GPU, on the stand-in: every CUDA call of a training
 * run fails once. Whatever it is, the run ends, says so, and leaves nothing behind; no rank frees what
 * another still reads.
 */
#include <stdio.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>
#include <zerobit/verify.h>

#include "tests/standin/support.h"

static const char config_text[] =
    "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": 2, \"optimizer\": {\"type\": "
    "\"Adam\", \"params\": {\"lr\": "
    "0.01}}, \"gradient_clipping\": 0.5, \"zero_optimization\": {\"overlap_comm\": true, "
    "\"reduce_bucket_size\": 20, "
    "\"stage3_param_persistence_threshold\": 3, \"stage3_prefetch_bucket_size\": 20}}";

static zb_config *config;
static zb_model *model;
static zb_dataset *dataset;
static zb_weights weights;

static int set_up(void **state)
{
    (void)state;
    assert_int_equal(zb_config_parse(config_text, sizeof config_text - 1, "engine.c", &config), ZB_OK);
    assert_int_equal(zb_model_open("mlp:6-5-4-3", &model), ZB_OK);
    assert_int_equal(zb_dataset_synthetic(model, 16, 1, &dataset), ZB_OK);
    assert_int_equal(zb_weights_from_seed(model, 1, &weights), ZB_OK);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    zb_weights_destroy(&weights);
    zb_dataset_destroy(dataset);
    zb_model_destroy(model);
    zb_config_destroy(config);
    return 0;
}

static zb_status create_device(void *user, int rank, zb_device **device_p)
{
    (void)user;
    (void)rank;
    return zb_device_cuda_create_poisoning(0, device_p);
}

static zb_verify_case run(int stage)
{
    static const int worlds[] = { 2 };
    static const zb_dtype dtypes[] = { ZB_BF16 };
    static const zb_device_factory cuda = { "cuda", create_device, NULL };
    zb_verify_case result = { 0 };
    const zb_verify_options options = { .config = config,
                                        .model = model,
                                        .weights = &weights,
                                        .dataset = dataset,
                                        .stages = &stage,
                                        .stage_count = 1,
                                        .worlds = worlds,
                                        .world_count = 1,
                                        .dtypes = dtypes,
                                        .dtype_count = 1,
                                        .steps = 2,
                                        .devices = &cuda,
                                        .workers = 1 };
    const zb_status status = zb_verify(&options, &result);
    assert_true(status == ZB_OK || status == ZB_DIFFERENT);
    return result;
}

/* Another call each time, ever farther apart; 0 when there are not so many. */
static int run_with_fault(int stage, const char *call, int64_t n, cudaError_t error)
{
    const uint64_t blocks = zb_alloc_get_stats().live;
    begin((uint64_t)n);
    zb_standin_fail_call(call, n, error);
    const zb_verify_case result = run(stage);
    const int fired = zb_standin_fault_fired();
    /* What fails after the last step is told on standard error: there is nobody else. */
    if (result.status == ZB_DIFFERENT) fail_msg("%s %d: values differ: %s", call, (int)n, result.message);
    if (result.status == ZB_INTERNAL && strstr(result.message, cudaGetErrorName(error)) == NULL)
        fail_msg("%s %d: the message does not say what failed: %s", call, (int)n, result.message);
    if (result.status == ZB_OK && !fired) assert_int_equal(result.steps_done, 2);
    end_clean();
    assert_int_equal(zb_alloc_get_stats().live, blocks);
    return fired;
}

static int fail_all(int stage, const char *call, cudaError_t error)
{
    int count = 0;
    for (int64_t n = 0; run_with_fault(stage, call, n, error); n += 1 + n / 20) count++;
    return count;
}

static void any_call_may_fail(void **state)
{
    const int stage = *(int *)*state;
    static const char *const calls[] = { "cudaMemcpyAsync",       "cudaEventRecord", "cudaStreamWaitEvent",
                                         "cudaStreamSynchronize", "cudaMemsetAsync", "zb_cuda_launch",
                                         "cudaFreeAsync",         "cudaSetDevice" };
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        if (fail_all(stage, calls[i], cudaErrorECCUncorrectable) < 5)
            fail_msg("%s: hardly ever called", calls[i]);
}

static void memory_may_run_out(void **state)
{
    const int stage = *(int *)*state;
    static const char *const calls[] = { "cudaMallocFromPoolAsync", "cudaMemPoolCreate",
                                         "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags" };
    int count = 0;
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        count += fail_all(stage, calls[i], cudaErrorMemoryAllocation);
    assert_true(count > 15);
}

int main(void)
{
    static int stages[] = { 1, 3 };
    const struct CMUnitTest tests[] = {
        { "stage 1: any call may fail", any_call_may_fail, NULL, NULL, &stages[0] },
        { "stage 3: any call may fail", any_call_may_fail, NULL, NULL, &stages[1] },
        { "stage 1: memory may run out", memory_may_run_out, NULL, NULL, &stages[0] },
        { "stage 3: memory may run out", memory_may_run_out, NULL, NULL, &stages[1] },
    };
    return cmocka_run_group_tests_name("standin_engine", tests, set_up, tear_down);
}
