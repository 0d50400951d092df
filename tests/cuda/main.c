/* Every operation on a device under test against the CPU, and the errors of both. Exits with 77 where there
 * is no such device. */
#include <stdio.h>

#include "tests/cuda/harness.h"

enum { SKIPPED = 77, CASES_MAX = 128 };

static void run_case(void **state)
{
    const cuda_case *c = *state;
    rng r = { 2024 };
    c->run(&r);
}

static void launches_that_name_nothing(void **state)
{
    (void)state;
    rng r = { 1 };
    zb_copy_args args = { NULL, NULL, 0 };
    trial unknown = trial_begin(&r, "an unknown operation");
    assert_int_equal(trial_run(&unknown, ZB_KERNEL_COUNT, &args, &args, sizeof args), ZB_INVALID_ARGUMENT);
    trial short_args = trial_begin(&r, "arguments of a wrong size");
    assert_int_equal(trial_run(&short_args, ZB_KERNEL_copy, &args, &args, sizeof args - 1),
                     ZB_INVALID_ARGUMENT);
}

/* Runs last. */
static void every_operation_has_been_compared(void **state)
{
    (void)state;
#define CUDA_COMPARED(name)                                                                                  \
    if (compared_launches[ZB_KERNEL_##name] == 0) fail_msg("no case has launched %s", #name);
    ZB_KERNEL_MAP(CUDA_COMPARED)
#undef CUDA_COMPARED
}

static size_t add_table(struct CMUnitTest *tests, size_t count, const cuda_case_table *table)
{
    for (size_t i = 0; i < table->count; i++) {
        ZB_ASSERT(count < CASES_MAX - 1);
        tests[count++] = (struct CMUnitTest){ table->cases[i].name, run_case, NULL, NULL,
                                              (void *)&table->cases[i] };
    }
    return count;
}

int main(void)
{
    struct CMUnitTest tests[CASES_MAX] = { cmocka_unit_test(launches_that_name_nothing) };
    size_t count = 1;
    const zb_status status = device_under_test.open();
    if (status == ZB_UNSUPPORTED) {
        printf("skipped: there is no GPU here: %s\n", zb_error_message());
        return SKIPPED;
    }
    if (status != ZB_OK) {
        fprintf(stderr, "%s: %s\n", device_under_test.name, zb_error_message());
        return 1;
    }
#define CUDA_CASE_ADD(name) count = add_table(tests, count, &name##_cases);
    CUDA_CASE_TABLES(CUDA_CASE_ADD)
#undef CUDA_CASE_ADD
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(every_operation_has_been_compared);
    return _cmocka_run_group_tests(device_under_test.name, tests, count, NULL, NULL);
}
