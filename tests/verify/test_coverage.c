/* Intervals against a plain array of flags, over random ranges. */
#include "support.h"

#include "verify/coverage.h"

static void same_as_flags(void **state)
{
    (void)state;
    enum { NUMEL = 40 };
    zb_coverage coverage = { 0 };
    srand(7);
    for (int round = 0; round < 2000; round++) {
        char flags[NUMEL] = { 0 };
        zb_coverage_clear(&coverage);
        for (int range = 0; range < 12; range++) {
            size_t first = (size_t)rand() % NUMEL, numel = (size_t)rand() % (NUMEL - first + 1) % 9;
            assert_int_equal(zb_coverage_add(&coverage, first, numel), ZB_OK);
            memset(flags + first, 1, numel);
            size_t gap = 0;
            while (gap < NUMEL && flags[gap]) gap++;
            assert_int_equal(zb_coverage_gap(&coverage, NUMEL), gap);

            /* Each interval is one run of flags, none is missing. */
            size_t at = 0;
            for (size_t i = 0; i < coverage.count; i++) {
                for (; at < coverage.intervals[i].first; at++) assert_false(flags[at]);
                for (; at < coverage.intervals[i].end; at++) assert_true(flags[at]);
                if (at < NUMEL) assert_false(flags[at]);
            }
            for (; at < NUMEL; at++) assert_false(flags[at]);
        }
    }
    zb_coverage_destroy(&coverage);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(same_as_flags) };
    return cmocka_run_group_tests_name("coverage", tests, NULL, NULL);
}
