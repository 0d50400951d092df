/* The ZeRO paper's table and values that DeepSpeed's estimators printed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <zerobit/estimate.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Gigabytes (1e9 bytes) per rank; the paper gives them rounded, these are exact. */
static const struct paper_row {
    double billions;
    int ranks;
    double os, os_g, os_g_p;
} papers[] = {
    { 7.5, 1, 120, 120, 120 },
    { 7.5, 4, 52.5, 41.25, 30 },
    { 7.5, 16, 35.625, 21.5625, 7.5 },
    { 7.5, 64, 31.40625, 16.640625, 1.875 },
    { 128, 4, 896, 704, 512 },
    { 128, 16, 608, 368, 128 },
    { 128, 1024, 513.5, 257.75, 2 },
    { 1000, 64, 4187.5, 2218.75, 250 },
    { 1000, 256, 4046.875, 2054.6875, 62.5 },
};

static void paper_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(papers); i++) {
        zb_paper_memory m = zb_paper_memory_bytes((uint64_t)(papers[i].billions * 1e9), papers[i].ranks);
        assert_true(m.baseline == papers[i].billions * 16e9);
        assert_true(m.os == papers[i].os * 1e9);
        assert_true(m.os_g == papers[i].os_g * 1e9);
        assert_true(m.os_g_p == papers[i].os_g_p * 1e9);
    }
}

static const struct estimate_row {
    const char *name;
    int stage;
    zb_estimate_setup setup;
    zb_offload offload;
    uint64_t cpu, gpu;
} estimates[] = {
    { "2: 3e9, 8 GPUs, offload",
      2,
      { 3000000000, 0, 1, 8, 0 },
      ZB_OFFLOAD_OPTIMIZER,
      144000000000,
      6000000000 },
    { "2: 3e9, 8 GPUs", 2, { 3000000000, 0, 1, 8, 0 }, ZB_OFFLOAD_NONE, 144000000000, 12750000000 },
    { "2: 11e9, 4 x 8 GPUs, offload",
      2,
      { 11000000000, 0, 4, 8, 0 },
      ZB_OFFLOAD_OPTIMIZER,
      2112000000000,
      22000000000 },
    { "2: 11e9, 4 x 8 GPUs", 2, { 11000000000, 0, 4, 8, 0 }, ZB_OFFLOAD_NONE, 528000000000, 28187500000 },
    { "2: CIFAR net, 4 GPUs, offload", 2, { 62006, 0, 1, 4, 0 }, ZB_OFFLOAD_OPTIMIZER, 1488144, 124012 },
    { "2: CIFAR net, 4 GPUs", 2, { 62006, 0, 1, 4, 0 }, ZB_OFFLOAD_NONE, 1488144, 403039 },
    { "3: both, zero_init",
      3,
      { 3000000000, 66000000, 1, 8, 1 },
      ZB_OFFLOAD_OPTIMIZER_AND_PARAMS,
      81000000000,
      264000000 },
    { "3: optimizer, zero_init",
      3,
      { 3000000000, 66000000, 1, 8, 1 },
      ZB_OFFLOAD_OPTIMIZER,
      72000000000,
      1014000000 },
    { "3: none, zero_init", 3, { 3000000000, 66000000, 1, 8, 1 }, ZB_OFFLOAD_NONE, 3168000000, 7014000000 },
    { "3: both",
      3,
      { 3000000000, 66000000, 1, 8, 0 },
      ZB_OFFLOAD_OPTIMIZER_AND_PARAMS,
      144000000000,
      264000000 },
    { "3: optimizer", 3, { 3000000000, 66000000, 1, 8, 0 }, ZB_OFFLOAD_OPTIMIZER, 144000000000, 1014000000 },
    { "3: none", 3, { 3000000000, 66000000, 1, 8, 0 }, ZB_OFFLOAD_NONE, 144000000000, 7014000000 },
};

static void check_estimate(void **state)
{
    const struct estimate_row *row = *state;
    zb_estimate got = row->stage == 2 ? zb_estimate_zero2(&row->setup, row->offload)
                                      : zb_estimate_zero3(&row->setup, row->offload);
    assert_int_equal(got.cpu_bytes, row->cpu);
    assert_int_equal(got.gpu_bytes, row->gpu);
}

int main(void)
{
    struct CMUnitTest tests[1 + COUNT(estimates)] = { cmocka_unit_test(paper_table) };
    for (size_t i = 0; i < COUNT(estimates); i++)
        tests[1 + i] = (struct CMUnitTest){ estimates[i].name, check_estimate, NULL, NULL,
                                            (void *)&estimates[i] };
    return cmocka_run_group_tests_name("estimate", tests, NULL, NULL);
}
