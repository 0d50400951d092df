/*
 * Rung E1 of the ladder over random set-ups: the engine at stages 0 to 3 on W simulated ranks against the
 * oracle, to the bit, at every step.
 *
 *   test_equivalence_random [--cases N] [--first K]     N cases from number K on (default 1000 from 0)
 *
 * A failure prints the case's number; `--first NUMBER --cases 1` runs it alone.
 *
 * Built a second time (ZB_ON_STANDIN) with the ranks on the CUDA back end, which runs on a stand-in of CUDA's
 * run-time: the case's number is also the seed of the order in which streams run, and a race between two of
 * them is a failure. And a third time (ZB_ON_SIMT) with the CUDA kernels themselves, whose threads and blocks
 * the CPU runs in an order of that seed.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/verify.h>

#include "tests/equivalence/random_case.h"
#if ZB_ON_STANDIN
#include <zerobit/cuda.h>

#include "sim/cuda/standin.h"
#elif ZB_ON_SIMT
#include "kernels/cuda/launch.h"
#include "sim/simt/simt.h"
#endif

/* What has been seen; all of it must be, or cases are not what they are meant to be. */
typedef struct tally {
    uint64_t values;
    uint64_t stages[ZB_STAGE_COUNT], semantics[2]; /* cases */
    uint64_t grouped;                              /* cases with more than one parameter group */
    uint64_t ordered;                              /* cases in the order of a library */
    uint64_t bounded;                              /* pairs of classes that were held to a bound */
    uint64_t apart;                                /* elements of their gradients that had other bits */
    double largest;                                /* how much of a bound was used up */
    uint64_t ended;                                /* runs that ended by themselves */
} tally;

static void report_case(const random_case *c)
{
    fprintf(stderr, "case %" PRIu64 ": world %d, %" PRId64 " steps\n  config %s\n  model  %s\n", c->number,
            c->world_size, c->steps, c->config_text, c->model_text);
}

static void count(const random_case *c, const zb_verify_case *results, tally *seen)
{
    seen->semantics[c->semantics != ZB_SEMANTICS_STANDARD]++;
    seen->grouped += c->group_count > 1;
    seen->ordered += c->order[0] != '\0' && c->stage_count > 0;
    for (int i = 0; i < c->stage_count; i++) {
        seen->stages[results[i].stage]++;
        seen->values += results[i].values_compared;
        seen->ended += results[i].ended != 0;
    }
}

static void count_relation(void *user, const zb_verify_relation *relation)
{
    tally *seen = user;
    if (!relation->is_bounded) return;
    seen->bounded++;
    seen->apart += relation->elements_differ;
    if (relation->largest > seen->largest) seen->largest = relation->largest;
}

#if ZB_ON_STANDIN
static zb_status create_device(void *user, int rank, zb_device **device_p)
{
    (void)user;
    (void)rank;
    return zb_device_cuda_create_poisoning(0, device_p);
}
static const zb_device_factory cuda = { "cuda", create_device, NULL };
static const zb_device_factory *const devices = &cuda;

static zb_status begin_case(uint64_t number)
{
    return zb_standin_begin(&(zb_standin_options){ .seed = number, .device_count = 1 });
}
static zb_status end_case(void)
{
    return zb_standin_end();
}
#elif ZB_ON_SIMT
static zb_status launch(zb_stream *stream, zb_kernel kernel, const void *args, size_t args_bytes)
{
    (void)stream;
    return zb_cuda_launch(NULL, kernel, args, args_bytes);
}

/* The CPU's memory, streams and events; but the ranks share it like a GPU's, so that its kernels add over
 * ranks, too. */
static zb_status create_device(void *user, int rank, zb_device **device_p)
{
    static zb_device_ops ops;
    (void)user;
    (void)rank;
    ZB_TRY(zb_device_cpu_create_poisoning(device_p));
    ops = *(*device_p)->ops;
    ops.name = "simt";
    ops.memory_is_hosts = 0;
    ops.launch = launch;
    (*device_p)->ops = &ops;
    return ZB_OK;
}
static const zb_device_factory simt = { "simt", create_device, NULL };
static const zb_device_factory *const devices = &simt;

static zb_status begin_case(uint64_t number)
{
    sim_simt_set_seed(number);
    return ZB_OK;
}
static zb_status end_case(void)
{
    return ZB_OK;
}
#else
static const zb_device_factory *const devices = NULL;

static zb_status begin_case(uint64_t number)
{
    (void)number;
    return ZB_OK;
}
static zb_status end_case(void)
{
    return ZB_OK;
}
#endif

static int case_is_equal(const random_case *c, tally *seen)
{
    zb_verify_case results[ZB_STAGE_COUNT];
    /* Workers and scheduling seed vary with the case: neither may change a bit. */
    const zb_verify_options options = { .config = c->config,
                                        .model = c->model,
                                        .weights = &c->weights,
                                        .dataset = c->dataset,
                                        .stages = c->stages,
                                        .stage_count = c->stage_count,
                                        .worlds = &c->world_size,
                                        .world_count = 1,
                                        .dtypes = &c->dtype,
                                        .dtype_count = 1,
                                        .devices = devices,
                                        .steps = c->steps,
                                        .contributions = c->number % 4 == 0,
                                        .workers = ZB_ON_SIMT ? 1 : 1 + (int)(c->number % 2),
                                        .sim_seed = c->number,
                                        .sampler_seed = c->number % 3,
                                        .relation = count_relation,
                                        .user = seen };
    zb_status status = zb_verify(&options, results);
    if (status == ZB_OK) {
        count(c, results, seen);
        return 1;
    }
    report_case(c);
    if (status != ZB_DIFFERENT) {
        fprintf(stderr, "  could not run: %s: %s\n", zb_status_string(status), zb_error_message());
        return 0;
    }
    for (int i = 0; i < c->stage_count; i++)
        if (results[i].status != ZB_OK)
            fprintf(stderr, "  stage %d after %" PRId64 " equal steps: %s\n", results[i].stage,
                    results[i].steps_done,
                    results[i].difference.found ? results[i].difference.text : results[i].message);
    return 0;
}

static int run_case(uint64_t number, tally *seen)
{
    random_case c;
    if (random_case_create(number, &c) != ZB_OK) {
        fprintf(stderr, "case %" PRIu64 " could not be made: %s\n  config %s\n  model  %s\n", number,
                zb_error_message(), c.config_text, c.model_text);
        return 0;
    }
    int equal = begin_case(number) == ZB_OK;
    if (equal && c.stage_count > 0) equal = case_is_equal(&c, seen);
    if (end_case() != ZB_OK) {
        report_case(&c);
        fprintf(stderr, "  %s\n", zb_error_message());
        equal = 0;
    }
    random_case_destroy(&c);
    return equal;
}

static int all_kinds_seen(const tally *seen)
{
    int all = seen->ended > 0 && seen->grouped > 0 && seen->ordered > 0 && seen->bounded > 0 &&
              seen->apart > 0 && seen->semantics[0] > 0 && seen->semantics[1] > 0;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) all = all && seen->stages[stage] > 0;
    return all;
}

static uint64_t number_argument(const char *text)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text == '\0' || *end != '\0') {
        fprintf(stderr, "'%s' is no number\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    uint64_t cases = 1000, first = 0, failed = 0;
    tally seen = { 0 };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--cases") == 0)
            cases = number_argument(argv[i + 1]);
        else if (strcmp(argv[i], "--first") == 0)
            first = number_argument(argv[i + 1]);
        else
            return fprintf(stderr, "unknown option %s\n", argv[i]), 2;
    }
    for (uint64_t number = first; number < first + cases && failed < 5; number++)
        failed += !run_case(number, &seen);
    uint64_t leaked = zb_alloc_get_stats().live;
    if (leaked != 0) fprintf(stderr, "%" PRIu64 " blocks were not freed\n", leaked);
    /* A few cases need not have everything. */
    const int enough = seen.values > 0 && (cases < 500 || failed > 0 || all_kinds_seen(&seen));
    if (!enough) fprintf(stderr, "not every kind of case was seen\n");
    printf("%" PRIu64 " passed, %" PRIu64 " failed (%" PRIu64 " values compared)\n", cases - failed, failed,
           seen.values);
    printf("stages 0 to 3: %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 " cases; standard %" PRIu64
           ", deepspeed-0.19.6 %" PRIu64 "; %" PRIu64 " with parameter groups; %" PRIu64
           " in the order of a library; %" PRIu64 " runs ended by themselves\n",
           seen.stages[0], seen.stages[1], seen.stages[2], seen.stages[3], seen.semantics[0],
           seen.semantics[1], seen.grouped, seen.ordered, seen.ended);
    printf("%" PRIu64 " pairs of classes within their bounds, %.2f of one used up at most; %" PRIu64
           " elements of theirs differed\n",
           seen.bounded, seen.largest, seen.apart);
    return failed == 0 && leaked == 0 && enough ? 0 : 1;
}
