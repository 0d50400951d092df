/*
 * How a simulated world grows: the CIFAR net at one ZeRO stage on 8 to 1024 ranks, one sample per rank and
 * step.
 *
 *   bench_world [--stage S] [--ranks N] [--data DIR]
 *
 * Default: stage 3; 8, 32, 128, 512 and 1024 ranks; synthetic images.
 *
 * Prints, per world: set-up, median of 3 steps, microseconds per rank and step, and the process's peak memory
 * so far. Time per rank should stay level: gathers and reductions move a fixed number of bytes per rank.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <zerobit/zerobit.h>

#include "tools/bench/bench.h"

enum { STEPS = 3, RECORDS = 50000 };

static const char config_text[] =
    "{ \"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 1, \"gradient_clipping\": 1.0,"
    "  \"optimizer\": { \"type\": \"Adam\", \"params\": { \"lr\": 0.001, \"betas\": [0.8, 0.999] } },"
    "  \"zero_optimization\": { \"stage\": 3, \"reduce_bucket_size\": 50000000, \"overlap_comm\": true } }";

typedef struct bench {
    zb_config *config;
    zb_model *model;
    zb_dataset *dataset;
    int stage;
    zb_device **devices;
    zb_engine **engines;
} bench;

static zb_status set_up(void *user, zb_comm *comm)
{
    bench *b = user;
    ZB_TRY(zb_device_cpu_create(&b->devices[comm->rank]));
    return zb_initialize(&(zb_engine_options){ .config = b->config,
                                               .model = b->model,
                                               .dataset = b->dataset,
                                               .device = b->devices[comm->rank],
                                               .comm = comm,
                                               .stage = b->stage,
                                               .dtype = ZB_FP32,
                                               .init_seed = 1 },
                         &b->engines[comm->rank]);
}

static zb_status step(void *user, zb_comm *comm)
{
    return zb_engine_train_step(((bench *)user)->engines[comm->rank], NULL);
}

static void run_world(bench *b, int ranks)
{
    zb_sim *sim;
    double begin = bench_seconds(), set_up_seconds, steps[STEPS];
    b->devices = calloc((size_t)ranks, sizeof(zb_device *));
    b->engines = calloc((size_t)ranks, sizeof(zb_engine *));
    if (b->devices == NULL || b->engines == NULL) exit(4);
    bench_check(zb_sim_create(&(zb_sim_options){ .world_size = ranks }, &sim));
    bench_check(zb_sim_run(sim, set_up, b));
    set_up_seconds = bench_seconds() - begin;
    for (int s = 0; s < STEPS; s++) {
        begin = bench_seconds();
        bench_check(zb_sim_run(sim, step, b));
        steps[s] = bench_seconds() - begin;
    }
    double first = steps[0];
    double median = bench_median(steps, STEPS);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%5d ranks: set-up %7.3f s, first step %7.3f s, median step %7.3f s, %7.1f us per rank, peak "
           "%6.0f MiB\n",
           ranks, set_up_seconds, first, median, 1e6 * median / ranks, (double)usage.ru_maxrss / 1024);
    for (int r = 0; r < ranks; r++) {
        zb_engine_destroy(b->engines[r]);
        zb_device_destroy(b->devices[r]);
    }
    zb_sim_destroy(sim);
    free(b->devices);
    free(b->engines);
}

int main(int argc, char **argv)
{
    bench b = { .stage = 3 };
    int only = 0;
    const char *data = NULL;
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            return fprintf(stderr, "bench_world: %s wants a value\n", argv[i]), 2;
        else if (strcmp(argv[i], "--stage") == 0)
            b.stage = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--ranks") == 0)
            only = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--data") == 0)
            data = argv[i + 1];
        else
            return fprintf(stderr, "bench_world: unknown option %s\n", argv[i]), 2;
    }
    bench_check(zb_config_parse(config_text, strlen(config_text), "bench_world", &b.config));
    bench_check(zb_model_open("cifar10-net", &b.model));
    bench_check(data != NULL ? zb_dataset_open_cifar10(data, 0, &b.dataset)
                             : zb_dataset_synthetic_cifar10(RECORDS, 1, &b.dataset));
    static const int worlds[] = { 8, 32, 128, 512, 1024 };
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++)
        if (only == 0) run_world(&b, worlds[i]);
    if (only != 0) run_world(&b, only);
    zb_dataset_destroy(b.dataset);
    zb_model_destroy(b.model);
    zb_config_destroy(b.config);
    return 0;
}
