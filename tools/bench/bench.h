/* What the benchmarks share: a clock, medians, and samples that last long enough for the clock. */
#ifndef ZB_TOOLS_BENCH_H
#define ZB_TOOLS_BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/kernels.h"

enum { BENCH_SAMPLES_DEFAULT = 15, BENCH_SAMPLES_MAX = 1000 };

static inline double bench_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int bench_compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double bench_median(double *samples, int count)
{
    qsort(samples, (size_t)count, sizeof samples[0], bench_compare);
    return count % 2 ? samples[count / 2] : (samples[count / 2 - 1] + samples[count / 2]) / 2;
}

/* Stops on failure: a benchmark of something that fails says nothing. */
static inline void bench_check(zb_status status)
{
    if (status == ZB_OK) return;
    fprintf(stderr, "%s\n", zb_error_message());
    exit(4);
}

/* Small numbers from a seed, the same in every run. */
static inline float *bench_floats(size_t numel)
{
    float *x = aligned_alloc(64, (numel * sizeof *x + 127) / 64 * 64);
    if (x == NULL) exit(4);
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < numel; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        x[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
    return x;
}

/* The only option is the number of samples. */
static inline int bench_samples(int argc, char **argv)
{
    const int count = argc == 2 ? atoi(argv[1]) : BENCH_SAMPLES_DEFAULT;
    if (argc > 2 || count < 1 || count > BENCH_SAMPLES_MAX) {
        fprintf(stderr, "usage: %s [SAMPLES]   (1..%d, default %d)\n", argv[0], BENCH_SAMPLES_MAX,
                BENCH_SAMPLES_DEFAULT);
        exit(2);
    }
    return count;
}

#endif
