/*
 * The NCCL communicator on real GPUs. Starts its own ranks, on one GPU if there is only one (each rank then
 * says that it is a machine of its own), or is one of them, where a launcher has started it. Exit status 77
 * where there is no GPU.
 *
 *     gpu_suite              worlds of 2, 3 and 4 ranks
 *     gpu_suite --ranks N    a world of N ranks
 *     mpirun -n N gpu_suite
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>
#include <zerobit/nccl.h>

#include "tests/nccl/native_sums.h"
#include "tests/nccl/processes.h"
#include "tests/sim/comm_suite.h"
#include "tests/sim/on_device.h"

enum { SKIPPED = 77 };

typedef struct rank {
    zb_nccl_environment here;
    zb_device *device;
    int shared_gpu;
} rank;

typedef zb_status part_main(rank *r);

static zb_status create(rank *r, const zb_orders *native, zb_comm **comm_p)
{
    return zb_comm_nccl_create(&(zb_nccl_options){ .device = r->device,
                                                   .environment = &r->here,
                                                   .native = native,
                                                   .timeout_seconds = 60,
                                                   .shared_gpu = r->shared_gpu },
                               comm_p);
}

/* What this rank has failed of, the others hear of before it goes. */
static zb_status close_world(zb_comm *comm, zb_status status)
{
    zb_error kept = { .status = status };
    snprintf(kept.message, sizeof kept.message, "%s", zb_error_message());
    if (status != ZB_OK) zb_comm_fail(comm, status, kept.message);
    zb_comm_destroy(comm);
    return status != ZB_OK ? zb_fail(status, "%s", kept.message) : ZB_OK;
}

/* --- the suite that every communicator passes --- */

static zb_status run_cases(zb_comm *comm)
{
    uint64_t seed = (uint64_t)comm->world_size;
    for (int i = 0; i < comm_suite_case_count; i++)
        if (comm_suite_cases[i].main(&seed, comm) != ZB_OK)
            return zb_fail_context("%d ranks, %s", comm->world_size, comm_suite_cases[i].name);
    return ZB_OK;
}

static zb_status suite_on_host(rank *r)
{
    zb_comm *comm;
    ZB_TRY(create(r, NULL, &comm));
    return close_world(comm, run_cases(comm));
}

static zb_status suite_on_device(rank *r)
{
    zb_comm *comm, *outer;
    ZB_TRY(create(r, NULL, &comm));
    const zb_status status = on_device_wrap(comm, r->device, &outer);
    if (status != ZB_OK) return close_world(comm, status);
    r->device = NULL; /* it goes with the wrapper */
    return close_world(outer, run_cases(outer));
}

/* --- NCCL's own reductions --- */

static zb_status learn(rank *r, zb_orders *orders, size_t numel)
{
    zb_comm *comm;
    ZB_TRY(create(r, NULL, &comm));
    zb_status status = zb_nccl_learn(comm, ZB_COLLECTIVE_ALL_REDUCE, ZB_FP32, numel,
                                     &orders->of[ZB_COLLECTIVE_ALL_REDUCE]);
    if (status == ZB_OK)
        status = zb_nccl_learn(comm, ZB_COLLECTIVE_REDUCE_SCATTER, ZB_FP32, numel,
                               &orders->of[ZB_COLLECTIVE_REDUCE_SCATTER]);
    if (status == ZB_OK && comm->rank == 0) {
        char *text = zb_orders_text(orders);
        printf("%zu elements on %d ranks: NCCL adds in the order %s\n", numel, comm->world_size,
               text != NULL ? text : "?");
        fflush(stdout);
        zb_free(text);
    }
    return close_world(comm, status);
}

/* Of its channels NCCL uses as many as the bytes are worth, which differ from type to type: the record
 * follows it. */
static void follow_bytes(zb_orders *orders)
{
    orders->of[ZB_COLLECTIVE_ALL_REDUCE].used_channels = 0;
    orders->of[ZB_COLLECTIVE_REDUCE_SCATTER].used_channels = 0;
}

/* Fewer than 3 ranks show no order. */
static zb_status native_sums(rank *r)
{
    const size_t sizes[] = { 1000, 100003 };
    for (size_t i = 0; i < 2 && r->here.world_size > 2; i++) {
        zb_orders orders = { 0 };
        zb_comm *comm;
        zb_status status = learn(r, &orders, sizes[i]);
        follow_bytes(&orders);
        if (status == ZB_OK) status = create(r, &orders, &comm);
        if (status == ZB_OK) status = close_world(comm, compare_native_sums(comm, &orders, sizes[i]));
        zb_orders_destroy(&orders);
        ZB_TRY(status);
    }
    return ZB_OK;
}

/* --- a rank is killed --- */

static zb_status kill_a_rank(rank *r)
{
    float x[1024] = { 0 };
    zb_comm *comm;
    ZB_TRY(create(r, NULL, &comm));
    zb_status status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = x, .recv = x,
                                         .numel = 1024);
    if (status == ZB_OK && r->here.rank == r->here.world_size - 1) raise(SIGKILL);
    for (int i = 0; i < 100 && status == ZB_OK; i++)
        status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = x, .recv = x,
                                   .numel = 1024);
    return close_world(comm, status);
}

/* --- ranks --- */

static const struct part {
    const char *name;
    part_main *main;
    int kills;
} parts[] = { { "the suite, host buffers", suite_on_host, 0 },
              { "the suite, device buffers", suite_on_device, 0 },
              { "sums by NCCL itself", native_sums, 0 },
              { "a rank is killed", kill_a_rank, 1 } };
enum { PART_COUNT = sizeof parts / sizeof parts[0] };

/* NCCL reads its variables once: before its first call in this process. */
static zb_status prepare(int number)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/zerobit-nccl-%d-%d", (int)getpid(), number);
    if (setenv("NCCL_ALGO", "Ring", 0) != 0 || setenv("NCCL_PROTO", "Simple", 0) != 0)
        return zb_fail(ZB_NO_MEMORY, "no room in the environment");
    return zb_nccl_report_to(path);
}

static zb_status run_part(const struct part *part, const zb_nccl_environment *here)
{
    rank r = { .here = *here };
    int count;
    ZB_TRY(zb_cuda_device_count(&count));
    r.shared_gpu = count < here->world_size;
    ZB_TRY(zb_device_cuda_create(here->local_rank % count, &r.device));
    const zb_status status = part->main(&r);
    zb_device_destroy(r.device);
    return status;
}

typedef struct job {
    const struct part *part;
    int size, port;
} job;

static zb_status run_forked(void *user, int index)
{
    const job *j = user;
    zb_nccl_environment here = { .rank = index, .world_size = j->size, .local_rank = index, .port = j->port };
    snprintf(here.address, sizeof here.address, "127.0.0.1");
    ZB_TRY(prepare(index));
    const zb_status status = run_part(j->part, &here);
    unlink(getenv("NCCL_DEBUG_FILE"));
    return status;
}

/* 0, 1 or SKIPPED. */
static int judge(const job *j, const process_end *ends)
{
    int bad = 0;
    for (int r = 0; r < j->size; r++) {
        const int dies = j->part->kills && r == j->size - 1, hears = j->part->kills && !dies;
        if (ends[r].status == ZB_UNSUPPORTED && strstr(ends[r].message, "no GPU here") != NULL) {
            printf("skipped: %s\n", ends[r].message);
            return SKIPPED;
        }
        if (dies ? ends[r].killed == SIGKILL : ends[r].status == (hears ? ZB_REMOTE : ZB_OK)) continue;
        printf("%s, %d ranks: rank %d: %s\n", j->part->name, j->size, r, ends[r].message);
        bad = 1;
    }
    if (!bad) printf("%s, %d ranks: ok\n", j->part->name, j->size);
    return bad;
}

static int run_world(int size)
{
    int code = 0;
    for (int p = 0; p < PART_COUNT && code != SKIPPED; p++) {
        job j = { .part = &parts[p], .size = size, .port = find_free_port() };
        process_end ends[PROCESSES_MAX];
        run_processes(size, run_forked, &j, ends);
        const int judged = judge(&j, ends);
        if (judged != 0) code = judged;
    }
    return code;
}

/* One rank of those that a launcher has started; nobody is killed. */
static int run_launched(void)
{
    zb_nccl_environment here;
    zb_status status = zb_nccl_environment_read(&here);
    for (int p = 0; p < PART_COUNT && status == ZB_OK; p++)
        if (!parts[p].kills && parts[p].main != native_sums) status = run_part(&parts[p], &here);
    if (status == ZB_OK) return 0;
    fprintf(stderr, "rank %d: %s\n", here.rank, zb_error_message());
    return strstr(zb_error_message(), "no GPU here") != NULL ? SKIPPED : 1;
}

int main(int argc, char **argv)
{
    if (getenv("RANK") != NULL || getenv("OMPI_COMM_WORLD_RANK") != NULL) return run_launched();
    if (argc > 2 && strcmp(argv[1], "--ranks") == 0) {
        const int ranks = atoi(argv[2]);
        if (ranks >= 1 && ranks <= PROCESSES_MAX) return run_world(ranks);
        fprintf(stderr, "--ranks %s: want 1 to %d\n", argv[2], PROCESSES_MAX);
        return 2;
    }
    for (int size = 2; size <= 4; size++) {
        const int code = run_world(size);
        if (code != 0) return code;
    }
    return 0;
}
