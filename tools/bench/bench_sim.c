/*
 * Simulated collectives: the bandwidth of a large all_reduce against memcpy of the same bytes, measured in
 * turns, and what small ones cost per rank as the world grows.
 *
 *   bench_sim [SAMPLES]
 *
 * An all_reduce of 64 MiB on 4 ranks in place reads 4 x 64 MiB and writes 4 x 64 MiB; so does memcpy of 4 x
 * 64 MiB.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/comm.h>
#include <zerobit/memory.h>
#include <zerobit/sim.h>

#include "tools/bench/bench.h"

enum { RANKS = 4, BYTES = 64 << 20, NUMEL = BYTES / 4, COPY_THREADS = 2 };

/* Ordinary numbers, so that sums stay finite and no subnormals slow the additions down. */
static float *make_floats(size_t numel)
{
    float *x = zb_alloc_array(numel, sizeof *x);
    if (x == NULL) bench_check(ZB_NO_MEMORY);
    for (size_t i = 0; i < numel; i++) x[i] = (float)(i % 1021) / 1021 - 0.25F;
    return x;
}

/* --- bandwidth --- */

typedef struct copy_job {
    char *to;
    const char *from;
    size_t bytes;
} copy_job;

static void *copy_thread(void *argument)
{
    const copy_job *job = argument;
    memcpy(job->to, job->from, job->bytes);
    return NULL;
}

static double time_copy(float **to, float **from, int threads)
{
    double start = bench_seconds();
    for (int i = 0; i < RANKS; i++) {
        pthread_t ids[COPY_THREADS];
        copy_job jobs[COPY_THREADS];
        for (int t = 0; t < threads; t++) {
            size_t share = BYTES / (size_t)threads, at = share * (size_t)t;
            jobs[t] = (copy_job){ (char *)to[i] + at, (const char *)from[i] + at, share };
            if (t > 0 && pthread_create(&ids[t], NULL, copy_thread, &jobs[t]) != 0) abort();
        }
        copy_thread(&jobs[0]);
        for (int t = 1; t < threads; t++) pthread_join(ids[t], NULL);
    }
    return bench_seconds() - start;
}

static zb_status main_all_reduce(void *user, zb_comm *comm)
{
    float *x = ((float **)user)[comm->rank];
    return zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = x, .recv = x,
                             .numel = NUMEL, .op = ZB_AVG);
}

/* Set up as an asynchronous user would: staging copies and poison are part of the price. */
static zb_status main_async_all_reduce(void *user, zb_comm *comm)
{
    float *x = ((float **)user)[comm->rank];
    zb_work work;
    ZB_TRY(zb_collective_run(comm, &work, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = x, .recv = x,
                             .numel = NUMEL, .op = ZB_AVG));
    return zb_comm_wait(comm, &work, NULL);
}

static double time_run(zb_sim *sim, zb_rank_main *rank_main, void *user)
{
    double start = bench_seconds();
    bench_check(zb_sim_run(sim, rank_main, user));
    return bench_seconds() - start;
}

static zb_sim *create(int ranks, int workers)
{
    zb_sim *sim;
    zb_sim_options options = { .world_size = ranks, .workers = workers, .seed = 1 };
    bench_check(zb_sim_create(&options, &sim));
    return sim;
}

static void bandwidth(int samples)
{
    enum { COPY_1, COPY_2, REDUCE_1, REDUCE_2, ASYNC_2, ROWS };
    static const char *const names[ROWS] = { "memcpy, 1 thread", "memcpy, 2 threads", "all_reduce, 1 worker",
                                             "all_reduce, 2 workers", "async all_reduce, 2 workers" };
    static double seconds[ROWS][BENCH_SAMPLES_MAX];
    float *x[RANKS], *y[RANKS];
    for (int i = 0; i < RANKS; i++) x[i] = make_floats(NUMEL), y[i] = make_floats(NUMEL);
    zb_sim *sims[2] = { create(RANKS, 1), create(RANKS, 2) };
    for (int s = -1; s < samples; s++) { /* the first round warms up */
        int at = s < 0 ? 0 : s;
        seconds[COPY_1][at] = time_copy(y, x, 1);
        seconds[REDUCE_1][at] = time_run(sims[0], main_all_reduce, x);
        seconds[COPY_2][at] = time_copy(y, x, 2);
        seconds[REDUCE_2][at] = time_run(sims[1], main_all_reduce, x);
        seconds[ASYNC_2][at] = time_run(sims[1], main_async_all_reduce, x);
    }
    printf("64 MiB on 4 ranks, in place; medians of %d\n", samples);
    double medians[ROWS];
    for (int row = 0; row < ROWS; row++) medians[row] = bench_median(seconds[row], samples);
    for (int row = 0; row < ROWS; row++)
        printf("  %-28s %7.1f ms %6.2f GB/s   %.2f of memcpy, 1 thread; %.2f of 2 threads\n", names[row],
               1e3 * medians[row], 2.0 * RANKS * BYTES / medians[row] / 1e9, medians[COPY_1] / medians[row],
               medians[COPY_2] / medians[row]);
    for (int i = 0; i < 2; i++) zb_sim_destroy(sims[i]);
    for (int i = 0; i < RANKS; i++) zb_free(x[i]), zb_free(y[i]);
}

/* --- latency --- */

typedef struct repeated {
    zb_collective_kind kind;
    size_t numel;
    int rounds;
    float *data; /* every rank has its own numel floats */
} repeated;

static zb_status main_repeated(void *user, zb_comm *comm)
{
    const repeated *r = user;
    float *x = r->data + (size_t)comm->rank * r->numel;
    for (int i = 0; i < r->rounds; i++)
        ZB_TRY(zb_collective_run(comm, NULL, .kind = r->kind, .send = x, .recv = x, .numel = r->numel));
    return ZB_OK;
}

static double per_rank(int ranks, int workers, repeated job, int samples)
{
    double seconds[BENCH_SAMPLES_MAX];
    zb_sim *sim = create(ranks, workers);
    job.data = make_floats((size_t)ranks * job.numel + 1);
    time_run(sim, main_repeated, &job);
    for (int s = 0; s < samples; s++) seconds[s] = time_run(sim, main_repeated, &job);
    zb_sim_destroy(sim);
    zb_free(job.data);
    return bench_median(seconds, samples) / job.rounds / ranks;
}

static void latency(int samples)
{
    static const int worlds[] = { 8, 64, 512, 1024, 4096 };
    printf("\ntime per rank, us (1 and 2 workers); medians of %d\n", samples);
    printf("  %5s  %-15s  %-19s  %-19s\n", "ranks", "barrier", "all_reduce 1 KiB", "all_reduce 1 MiB");
    for (size_t w = 0; w < sizeof worlds / sizeof worlds[0]; w++) {
        int n = worlds[w], rounds = 40000 / n + 1;
        printf("  %5d", n);
        for (int workers = 1; workers <= 2; workers++)
            printf("  %6.2f",
                   1e6 * per_rank(n, workers, (repeated){ ZB_COLLECTIVE_BARRIER, 0, rounds, NULL }, samples));
        for (int workers = 1; workers <= 2; workers++)
            printf("  %8.2f",
                   1e6 * per_rank(n, workers, (repeated){ ZB_COLLECTIVE_ALL_REDUCE, 256, rounds, NULL },
                                  samples));
        for (int workers = 1; workers <= 2 && n <= 1024; workers++) /* 1 GiB of buffers is enough */
            printf("  %8.1f",
                   1e6 * per_rank(n, workers, (repeated){ ZB_COLLECTIVE_ALL_REDUCE, 1 << 18, 1, NULL },
                                  samples));
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    int samples = bench_samples(argc, argv);
    bandwidth(samples);
    latency(samples < 9 ? samples : 9);
    return 0;
}
