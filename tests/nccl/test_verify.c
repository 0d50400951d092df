/*
 * The engine on ranks of NCCL, here on the stand-ins of CUDA and NCCL, against the oracle: every stage, with
 * gradients added by zerobit in several orders, and by NCCL itself. What a missing event would do to it the
 * stand-in of CUDA reports as a race.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/cuda.h>
#include <zerobit/verify.h>

#include "sim/nccl/standin.h"
#include "tests/nccl/threads.h"
#include "tests/verify/fixture.h"

enum { STAGES = 4 };

static zb_status create_device(void *user, int rank, zb_device **device_p)
{
    (void)user;
    return zb_device_cuda_create_poisoning(rank, device_p);
}

static const zb_device_factory devices = { "cuda", create_device, NULL };

static const struct verify_case {
    const char *name, *config; /* %s: the optimizer */
    zb_dtype dtype;
    int size, stage_count, native;
    int stages[STAGES];
} verify_cases[] = {
    { "fp32, accumulation",
      "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": 2, %s}",
      ZB_FP32,
      2,
      4,
      0,
      { 0, 1, 2, 3 } },
    { "bf16, an order of Open MPI's",
      "{\"train_micro_batch_size_per_gpu\": 2, \"zerobit\": {\"order\": \"mpi-ring\"}, %s}",
      ZB_BF16,
      3,
      4,
      0,
      { 0, 1, 2, 3 } },
    { "fp16, steps that are skipped",
      "{\"train_micro_batch_size_per_gpu\": 1, \"fp16\": {\"enabled\": true, \"initial_scale_power\": 31, "
      "\"hysteresis\": 1}, %s}",
      ZB_FP16,
      4,
      4,
      0,
      { 0, 1, 2, 3 } },
    { "fp32, added by NCCL",
      "{\"train_micro_batch_size_per_gpu\": 2, \"zerobit\": {\"order\": \"nccl-ring version=2.28 "
      "protocol=simple "
      "channels=2 used-channels=2\"}, %s}",
      ZB_FP32,
      3,
      1,
      1,
      { 0 } },
};

typedef struct verify_run {
    const struct verify_case *c;
    const fixture *f;
    zb_verify_case cases[THREADS_MAX][STAGES];
    uint64_t native_reductions;
} verify_run;

static zb_status verify_rank(void *user, zb_comm *comm)
{
    verify_run *run = user;
    const zb_verify_options options = { .config = run->f->config,
                                        .model = run->f->model,
                                        .weights = &run->f->weights,
                                        .dataset = run->f->dataset,
                                        .stages = run->c->stages,
                                        .stage_count = run->c->stage_count,
                                        .worlds = &run->c->size,
                                        .world_count = 1,
                                        .dtypes = &run->c->dtype,
                                        .dtype_count = 1,
                                        .steps = 3,
                                        .comm = comm,
                                        .devices = &devices,
                                        .workers = 1 };
    const zb_status status = zb_verify(&options, run->cases[comm->rank]);
    if (comm->rank == 0) run->native_reductions = zb_nccl_standin_reductions();
    return status;
}

static void equal_to_the_oracle(void **state)
{
    const struct verify_case *c = *state;
    char config[512];
    fixture f;
    snprintf(config, sizeof config, c->config,
             "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.01}}");
    open_fixture(config, &f);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        verify_run run = { .c = c, .f = &f };
        const thread_world world = { .size = c->size,
                                     .seed = seed,
                                     .native = c->native ? f.config->orders : NULL };
        thread_ends ends;
        run_threads(&world, verify_rank, &run, NULL, &ends);
        if (first_failure(&world, &ends) != ZB_OK) fail_msg("seed %d: %s", (int)seed, zb_error_message());
        for (int s = 0; s < c->stage_count; s++) {
            const zb_verify_case *judged = &run.cases[0][s];
            if (judged->status != ZB_OK) fail_msg("stage %d: %s", c->stages[s], judged->message);
            assert_string_equal(judged->ranks, "nccl");
            assert_int_equal(judged->steps_done, 3);
            assert_true(judged->values_compared > 100);
        }
        assert_int_equal(run.native_reductions > 0, c->native);
    }
    close_fixture(&f);
}

int main(void)
{
    enum { COUNT = sizeof verify_cases / sizeof verify_cases[0] };
    struct CMUnitTest tests[COUNT];
    for (int i = 0; i < COUNT; i++)
        tests[i] = (struct CMUnitTest){ verify_cases[i].name, equal_to_the_oracle, NULL, NULL,
                                        (void *)(uintptr_t)&verify_cases[i] };
    /* All threads would set them at once. */
    if (setenv("NCCL_ALGO", "Ring", 1) != 0 || setenv("NCCL_PROTO", "Simple", 1) != 0) return 1;
    return cmocka_run_group_tests_name("the engine on NCCL's ranks", tests, NULL, NULL);
}
