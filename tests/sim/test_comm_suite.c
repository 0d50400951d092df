/* The communicator suite on the back ends that exist: self, and sim in many worlds, workers and seeds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <zerobit/comm.h>
#include <zerobit/memory.h>
#include <zerobit/sim.h>

#include "tests/sim/comm_suite.h"
#include "tests/sim/on_device.h"

static zb_status run_on_self(void *backend, comm_suite_main *suite_main, void *user)
{
    (void)backend;
    zb_comm *comm;
    ZB_TRY(zb_comm_self_create(&comm));
    zb_status status = suite_main(user, comm);
    zb_comm_destroy(comm);
    return status;
}

static zb_status run_on_sim(void *backend, comm_suite_main *suite_main, void *user)
{
    zb_sim *sim;
    ZB_TRY(zb_sim_create(backend, &sim));
    zb_status status = zb_sim_run(sim, suite_main, user);
    if (status == ZB_OK) status = zb_sim_run(sim, suite_main, user); /* a world outlives its runs */
    zb_sim_destroy(sim);
    return status;
}

/* --- the simulated ranks share a device: here the CPU, whose work is done at once --- */

typedef struct shared_run {
    const zb_sim_options *options;
    comm_suite_main *main;
    void *user;
} shared_run;

static zb_status run_shared_rank(void *user, zb_comm *control)
{
    const shared_run *run = user;
    zb_device *device;
    zb_comm *shared, *comm;
    ZB_TRY(zb_device_cpu_create_poisoning(&device));
    ZB_TRY(zb_comm_shared_device_create(control, device, &shared));
    ZB_TRY(on_device_wrap(shared, device, &comm));
    const zb_status status = run->main(run->user, comm);
    zb_comm_destroy(comm);
    return status;
}

static zb_status run_on_shared(void *backend, comm_suite_main *suite_main, void *user)
{
    zb_sim *sim;
    shared_run run = { backend, suite_main, user };
    ZB_TRY(zb_sim_create(run.options, &sim));
    zb_status status = zb_sim_run(sim, run_shared_rank, &run);
    zb_sim_destroy(sim);
    return status;
}

static void run_suite(comm_suite_runner *run, void *backend, uint64_t seed, const char *name)
{
    uint64_t live = zb_alloc_get_stats().live;
    for (int i = 0; i < comm_suite_case_count; i++) {
        zb_status status = run(backend, comm_suite_cases[i].main, &seed);
        if (status != ZB_OK)
            fail_msg("%s, seed %llu: %s: %s", name, (unsigned long long)seed, comm_suite_cases[i].name,
                     zb_error_message());
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
}

static void test_self(void **state)
{
    (void)state;
    run_suite(run_on_self, NULL, 1, "self");
}

static void test_sim(void **state)
{
    int workers = *(int *)*state;
    for (int world = workers; world <= 9; world += workers) {
        zb_sim_options options = { .world_size = world,
                                   .workers = workers,
                                   .seed = (uint64_t)(world * 10 + workers) };
        run_suite(run_on_sim, &options, options.seed, "sim");
    }
}

static void test_shared(void **state)
{
    int workers = *(int *)*state;
    for (int world = workers; world <= 5; world += workers) {
        zb_sim_options options = { .world_size = world, .workers = workers, .seed = (uint64_t)world };
        run_suite(run_on_shared, &options, options.seed, "shared device");
    }
}

/* --- a communicator that is destroyed while others are still in its last collective --- */

enum { LEAVING_RANKS = 3 };
static zb_comm *leaving_control[LEAVING_RANKS];
static zb_device *leaving_device[LEAVING_RANKS];
static int destroyed_count, destroyed_too_early;

/* Lets the others go on, as far as they can, before it waits. */
static zb_status wait_late(zb_stream *stream, zb_event *event)
{
    (void)event;
    for (int rank = 0; rank < LEAVING_RANKS; rank++)
        if (leaving_device[rank] == stream->device)
            for (int i = 0; i < 100; i++) zb_sim_yield(leaving_control[rank]);
    destroyed_too_early += destroyed_count;
    return ZB_OK;
}

static zb_status reduce_on(zb_device *device, zb_comm *comm)
{
    zb_stream *stream;
    void *data;
    ZB_TRY(zb_stream_create(device, "compute", &stream));
    ZB_TRY(zb_device_alloc(device, ZB_MEM_GRAD, 64, &data));
    const zb_status status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = data,
                                               .recv = data, .numel = 16, .dtype = ZB_FP32, .op = ZB_SUM,
                                               .stream = stream, .what = "the last one");
    zb_device_free(device, ZB_MEM_GRAD, 64, data);
    zb_stream_destroy(stream);
    return status;
}

static zb_status leave_early(void *user, zb_comm *control)
{
    static zb_device_ops late;
    zb_device *device;
    zb_comm *comm;
    ZB_TRY(zb_device_cpu_create(&device));
    late = *device->ops;
    late.stream_wait_event = wait_late;
    device->ops = &late;
    leaving_control[control->rank] = control;
    leaving_device[control->rank] = device;
    ZB_TRY(zb_comm_shared_device_create(control, device, &comm));
    const zb_status status = reduce_on(device, comm);
    zb_comm_destroy(comm);
    destroyed_count++;
    zb_device_destroy(device);
    (void)user;
    return status;
}

static void test_leaving(void **state)
{
    (void)state;
    const uint64_t live = zb_alloc_get_stats().live;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        const zb_sim_options options = { .world_size = LEAVING_RANKS, .workers = 1, .seed = seed };
        zb_sim *sim;
        destroyed_count = 0;
        assert_int_equal(zb_sim_create(&options, &sim), ZB_OK);
        assert_int_equal(zb_sim_run(sim, leave_early, NULL), ZB_OK);
        zb_sim_destroy(sim);
        assert_int_equal(destroyed_count, LEAVING_RANKS);
        assert_int_equal(destroyed_too_early, 0);
    }
    assert_int_equal(zb_alloc_get_stats().live, live);
}

int main(void)
{
    static int workers[] = { 1, 2, 3 };
    const struct CMUnitTest tests[] = {
        { "self", test_self, NULL, NULL, NULL },
        { "sim, 1 worker, worlds 1-9", test_sim, NULL, NULL, &workers[0] },
        { "sim, 2 workers, worlds 2,4,6,8", test_sim, NULL, NULL, &workers[1] },
        { "sim, 3 workers, worlds 3,6,9", test_sim, NULL, NULL, &workers[2] },
        { "shared device, 1 worker, worlds 1-5", test_shared, NULL, NULL, &workers[0] },
        { "shared device, 2 workers, worlds 2,4", test_shared, NULL, NULL, &workers[1] },
        { "shared device, destroyed early", test_leaving, NULL, NULL, NULL },
    };
    return cmocka_run_group_tests_name("comm_suite", tests, NULL, NULL);
}
