/* The communicator suite on ranks that share a GPU, on the stand-in: every collective in stream order, under
 * the search for races. */
#include <zerobit/cuda.h>
#include <zerobit/memory.h>
#include <zerobit/sim.h>

#include "tests/sim/comm_suite.h"
#include "tests/sim/on_device.h"
#include "tests/standin/support.h"

typedef struct suite_run {
    comm_suite_main *main;
    void *user;
} suite_run;

static zb_status run_rank(void *user, zb_comm *control)
{
    const suite_run *run = user;
    zb_device *device;
    zb_comm *shared, *comm;
    ZB_TRY(zb_device_cuda_create_poisoning(0, &device));
    ZB_TRY(zb_comm_shared_device_create(control, device, &shared));
    ZB_TRY(on_device_wrap(shared, device, &comm));
    const zb_status status = run->main(run->user, comm);
    zb_comm_destroy(comm);
    return status;
}

static zb_status run_world(int world_size, int workers, uint64_t seed, suite_run *run)
{
    zb_sim *sim;
    const zb_sim_options options = { .world_size = world_size, .workers = workers, .seed = seed };
    ZB_TRY(zb_sim_create(&options, &sim));
    const zb_status status = zb_sim_run(sim, run_rank, run);
    zb_sim_destroy(sim);
    return status;
}

static void suite_on_a_shared_gpu(void **state)
{
    const int world_size = *(int *)*state;
    const uint64_t blocks = zb_alloc_get_stats().live;
    for (int i = 0; i < comm_suite_case_count; i++) {
        uint64_t seed = (uint64_t)(100 * world_size + i);
        suite_run run = { comm_suite_cases[i].main, &seed };
        const zb_standin_options options = { .seed = seed, .device_count = 1 };
        assert_int_equal(zb_standin_begin(&options), ZB_OK);
        const zb_status status = run_world(world_size, 1 + i % 2 * (world_size > 1), seed, &run);
        if (status != ZB_OK)
            fail_msg("%s, world %d: %s", comm_suite_cases[i].name, world_size, zb_error_message());
        end_clean();
        assert_int_equal(zb_alloc_get_stats().live, blocks);
    }
}

int main(void)
{
    static int worlds[] = { 1, 2, 3, 5 };
    struct CMUnitTest tests[sizeof worlds / sizeof worlds[0]];
    static const char *const names[] = { "1 rank", "2 ranks", "3 ranks", "5 ranks" };
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++)
        tests[i] = (struct CMUnitTest){ names[i], suite_on_a_shared_gpu, NULL, NULL, &worlds[i] };
    return cmocka_run_group_tests_name("standin_comm", tests, NULL, NULL);
}
