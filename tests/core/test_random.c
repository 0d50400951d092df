/*
 * Generators and permutation against numbers that others made: Random123's known answers for Philox, the
 * 10000th value that the C++ standard fixes for mt19937, torch.randperm 1.13.1 (and 2.8.0, where that
 * differs).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "core/random.h"

/* --- Philox --- */

static const struct philox_case {
    const char *name;
    uint32_t counter[4], key[2], want[4];
} philox_cases[] = {
    { "philox: zeros", { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
    { "philox: ones",
      { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff },
      { 0xffffffff, 0xffffffff },
      { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
    { "philox: digits of pi",
      { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
      { 0xa4093822, 0x299f31d0 },
      { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
};

static void check_philox(void **state)
{
    const struct philox_case *c = *state;
    uint32_t got[4];
    zb_philox4x32(c->counter, c->key, got);
    assert_memory_equal(got, c->want, sizeof got);
}

/* From a Python program that follows the paper, checked against the known answers above. */
static const struct bits_case {
    const char *name;
    uint64_t seed;
    uint32_t stream;
    uint64_t element;
    uint32_t want;
} bits_cases[] = {
    { "bits: word 0 of block 0", 0, 0, 0, 0x6627e8d5 },
    { "bits: word 3 of block 0", 0, 0, 3, 0x9b00dbd8 },
    { "bits: low word of the seed is key 0", 1, 0, 0, 0xe3e80670 },
    { "bits: high word of the seed is key 1", UINT64_C(1) << 32, 0, 0, 0xfdde3e0b },
    { "bits: the stream is counter word 2", 0, 1, 0, 0x844515e1 },
    { "bits: four elements make a block", 0, 0, 4, 0xf8e4cca4 },
    { "bits: block 2^32 is counter word 1", 0, 0, UINT64_C(1) << 34, 0x6ad0c5ec },
    { "bits: last element", 0, 0, UINT64_MAX, 0x31eb18f7 },
    { "bits: everything at once", 0x123456789abcdef0, 7, UINT64_C(0x2af37bc048d15a), 0xde900ff4 },
};

static void check_bits(void **state)
{
    const struct bits_case *c = *state;
    uint32_t got = zb_random_bits(c->seed, c->stream, c->element);
    assert_int_equal(got, c->want);
    assert_true(zb_random_uniform(c->seed, c->stream, c->element) == (float)(c->want >> 8) / 16777216.0f);
}

static void uniform_stays_below_one_and_fills_the_range(void **state)
{
    (void)state;
    enum { DRAWS = 65536, BINS = 16 };
    int bins[BINS] = { 0 };
    for (uint64_t i = 0; i < DRAWS; i++) {
        float u = zb_random_uniform(3, 0, i);
        assert_true(u >= 0.0f && u < 1.0f);
        bins[(int)(u * BINS)]++;
    }
    /* 4096 expected, standard deviation 62: six of them on either side. */
    for (int b = 0; b < BINS; b++) assert_in_range(bins[b], 4096 - 372, 4096 + 372);
}

/* --- MT19937 --- */

static const struct mt_case {
    const char *name;
    uint64_t seed;
    uint32_t want[4];
} mt_cases[] = {
    { "mt19937: seed 0", 0, { 2357136044, 2546248239, 3071714933, 3626093760 } },
    { "mt19937: seed 1", 1, { 1791095845, 4282876139, 3093770124, 4005303368 } },
    { "mt19937: seed 2", 2, { 1872583848, 794921487, 111352301, 4000937544 } },
    { "mt19937: seed 42", 42, { 1608637542, 3421126067, 4083286876, 787846414 } },
    { "mt19937: only the low 32 bits of the seed",
      (UINT64_C(1) << 32) + 42,
      { 1608637542, 3421126067, 4083286876, 787846414 } },
};

static void check_mt(void **state)
{
    const struct mt_case *c = *state;
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, c->seed);
    for (int i = 0; i < 4; i++) assert_int_equal(zb_mt19937_random(&generator), c->want[i]);
}

static void mt_value_10000_is_the_standards(void **state)
{
    (void)state;
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, 5489);
    for (int i = 1; i < 10000; i++) zb_mt19937_random(&generator);
    assert_int_equal(zb_mt19937_random(&generator), 4123659995);
}

static void mt_random64_puts_the_first_draw_on_top(void **state)
{
    (void)state;
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, 0);
    uint64_t got = zb_mt19937_random64(&generator);
    assert_true(got == (UINT64_C(2357136044) << 32 | 2546248239));
    /* What a torch sampler without a generator draws as its seed after manual_seed(0). */
    assert_true(got % (UINT64_C(1) << 63) == UINT64_C(900450186894289455));
}

/* --- permutation --- */

static const struct perm_case {
    const char *name;
    int64_t n;
    uint64_t seed;
    int64_t head[16]; /* the first min(n, 16) */
} perm_cases[] = {
    { "randperm: (10, 0)", 10, 0, { 4, 1, 7, 5, 3, 9, 0, 8, 6, 2 } },
    { "randperm: (10, 1)", 10, 1, { 5, 6, 1, 2, 0, 8, 9, 3, 7, 4 } },
    { "randperm: (10, 2)", 10, 2, { 8, 7, 1, 5, 6, 9, 0, 4, 2, 3 } },
    { "randperm: (5, 0)", 5, 0, { 4, 0, 1, 3, 2 } },
    { "randperm: (16, 0)", 16, 0, { 12, 10, 9, 6, 11, 8, 13, 5, 2, 14, 15, 0, 4, 3, 7, 1 } },
    { "randperm: (16, 42)", 16, 42, { 6, 3, 0, 7, 10, 15, 2, 12, 14, 9, 8, 5, 4, 13, 11, 1 } },
    { "randperm: (8, -1), two's complement", 8, UINT64_MAX, { 3, 6, 4, 7, 2, 1, 5, 0 } },
    { "randperm: nothing", 0, 0, { 0 } },
    { "randperm: one", 1, 0, { 0 } },
};

static void check_perm(void **state)
{
    const struct perm_case *c = *state;
    int64_t got[17];
    memset(got, 0xee, sizeof got);
    const int64_t canary = got[16];
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, c->seed);
    zb_randperm(&generator, c->n, got);
    assert_memory_equal(got, c->head, (size_t)c->n * sizeof got[0]);
    assert_true(got[c->n] == canary);
}

static void second_permutation_continues_the_stream(void **state)
{
    (void)state;
    static const int64_t want[10] = { 3, 9, 4, 2, 7, 8, 6, 0, 5, 1 };
    int64_t got[10];
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, 0);
    zb_randperm(&generator, 10, got);
    zb_randperm(&generator, 10, got);
    assert_memory_equal(got, want, sizeof got);
}

/* torch's RandomSampler with a generator of its own draws a second permutation after each pass, of which it
 * uses nothing. */
static void passes_of_a_random_sampler(void **state)
{
    (void)state;
    static const int64_t want[3][5] = { { 0, 1, 3, 2, 4 }, { 3, 2, 0, 4, 1 }, { 1, 0, 2, 3, 4 } };
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, 7);
    for (int pass = 0; pass < 3; pass++) {
        int64_t got[5], unused[5];
        zb_randperm(&generator, 5, got);
        zb_randperm(&generator, 5, unused);
        assert_memory_equal(got, want[pass], sizeof got);
    }
}

static const struct hash_case {
    const char *name;
    int64_t n;
    uint64_t seed;
    int64_t head[8], tail[4];
    uint64_t hash; /* h = h * 1000003 + x over all elements */
} hash_cases[] = {
    { "randperm: (1000, 0)",
      1000,
      0,
      { 44, 37, 675, 775, 947, 209, 719, 500 },
      { 932, 745, 263, 354 },
      UINT64_C(8170802712893681804) },
    { "randperm: (50000, 0)",
      50000,
      0,
      { 36044, 49165, 37807, 11341, 6091, 16904, 36293, 28026 },
      { 2642, 42128, 15898, 31476 },
      UINT64_C(8101349337478810816) },
    { "randperm: (50000, 1)",
      50000,
      1,
      { 45845, 11799, 43880, 43701, 41303, 45348, 14335, 47144 },
      { 28247, 37038, 8785, 8475 },
      UINT64_C(13744270646302300566) },
    { "randperm: (60000, 0)",
      60000,
      0,
      { 36044, 10678, 57327, 55074, 21567, 15479, 9481, 43095 },
      { 6465, 31951, 27130, 1544 },
      UINT64_C(3710944749525469498) },
};

static void check_hash(void **state)
{
    const struct hash_case *c = *state;
    int64_t *got = malloc((size_t)c->n * sizeof *got);
    uint32_t *narrow = malloc((size_t)c->n * sizeof *narrow);
    assert_non_null(got);
    assert_non_null(narrow);
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, c->seed);
    zb_randperm(&generator, c->n, got);
    zb_mt19937_seed(&generator, c->seed);
    zb_randperm_u32(&generator, c->n, ZB_RANDPERM_LARGE_N, narrow);

    uint64_t hash = 0;
    for (int64_t i = 0; i < c->n; i++) {
        hash = hash * 1000003 + (uint64_t)got[i];
        assert_int_equal(narrow[i], got[i]); /* storage does not matter */
    }
    assert_memory_equal(got, c->head, sizeof c->head);
    assert_memory_equal(got + c->n - 4, c->tail, sizeof c->tail);
    assert_true(hash == c->hash);
    free(narrow);
    free(got);
}

/* On both sides of the switch to 64-bit draws, as torch 2.8.0 has them. */
static const struct hash_case switch_cases[] = {
    { "randperm: (214748363, 3), the last with 32-bit draws",
      ZB_RANDPERM_LARGE_N - 1,
      3,
      { 3426993, 89012687, 34994685, 171579910, 175684569, 91605569, 46504276, 82941616 },
      { 2149681, 40745462, 212516164, 92186696 },
      UINT64_C(4075416409076792127) },
    { "randperm: (214748364, 3), the first with 64-bit draws",
      ZB_RANDPERM_LARGE_N,
      3,
      { 50815193, 116864026, 18612126, 8421410, 157113196, 174023950, 859818, 136147441 },
      { 15019188, 108813077, 122959525, 138283752 },
      UINT64_C(16514168383640228310) },
};

static void check_switch(void **state)
{
    const struct hash_case *c = *state;
    uint32_t *got = malloc((size_t)c->n * sizeof *got);
    assert_non_null(got);
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, c->seed);
    zb_randperm_u32(&generator, c->n, ZB_RANDPERM_LARGE_N, got);
    uint64_t hash = 0;
    for (int64_t i = 0; i < c->n; i++) hash = hash * 1000003 + got[i];
    for (int i = 0; i < 8; i++) assert_int_equal(got[i], c->head[i]);
    for (int i = 0; i < 4; i++) assert_int_equal(got[c->n - 4 + i], c->tail[i]);
    assert_true(hash == c->hash);
    free(got);
}

/* The large-n shuffle on small n; wanted values from a Python program that follows the published source. */
static const struct large_case {
    const char *name;
    int64_t n;
    uint64_t seed;
    int64_t head[10];
} large_cases[] = {
    { "randperm, 64-bit draws: (10, 0)", 10, 0, { 8, 2, 6, 3, 5, 1, 0, 9, 7, 4 } },
    { "randperm, 64-bit draws: (10, 42)", 10, 42, { 6, 0, 5, 8, 7, 2, 3, 1, 9, 4 } },
    { "randperm, 64-bit draws: one", 1, 0, { 0 } },
};

static void check_large(void **state)
{
    const struct large_case *c = *state;
    int64_t got[10];
    uint32_t narrow[10];
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, c->seed);
    zb_randperm_i64(&generator, c->n, c->n, got);
    zb_mt19937_seed(&generator, c->seed);
    zb_randperm_u32(&generator, c->n, c->n, narrow);
    for (int64_t i = 0; i < c->n; i++) {
        assert_int_equal(got[i], c->head[i]);
        assert_int_equal(narrow[i], c->head[i]);
    }
}

static void large_shuffle_permutes_and_matches_its_hash(void **state)
{
    (void)state;
    enum { N = 1000 };
    int64_t got[N];
    char seen[N] = { 0 };
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, 0);
    zb_randperm_i64(&generator, N, N, got);
    uint64_t hash = 0;
    for (int i = 0; i < N; i++) {
        hash = hash * 1000003 + (uint64_t)got[i];
        assert_in_range(got[i], 0, N - 1);
        assert_false(seen[got[i]]++);
    }
    assert_true(hash == UINT64_C(17063507880212224526));
}

#define ADD_CASES(table, check)                                                                              \
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) tests[count++] = (struct CMUnitTest)         \
        {                                                                                                    \
            table[i].name, check, NULL, NULL, (void *)&table[i]                                              \
        }

int main(int argc, char **argv)
{
    static const struct CMUnitTest single[] = {
        cmocka_unit_test(uniform_stays_below_one_and_fills_the_range),
        cmocka_unit_test(mt_value_10000_is_the_standards),
        cmocka_unit_test(mt_random64_puts_the_first_draw_on_top),
        cmocka_unit_test(second_permutation_continues_the_stream),
        cmocka_unit_test(passes_of_a_random_sampler),
        cmocka_unit_test(large_shuffle_permutes_and_matches_its_hash),
    };
    struct CMUnitTest tests[64];
    size_t count = 0;
    if (argc == 2 && strcmp(argv[1], "--exhaustive") == 0) {
        ADD_CASES(switch_cases, check_switch);
        return _cmocka_run_group_tests("random, exhaustive", tests, count, NULL, NULL);
    }
    count = sizeof single / sizeof single[0];
    memcpy(tests, single, sizeof single);
    ADD_CASES(philox_cases, check_philox);
    ADD_CASES(bits_cases, check_bits);
    ADD_CASES(mt_cases, check_mt);
    ADD_CASES(perm_cases, check_perm);
    ADD_CASES(hash_cases, check_hash);
    ADD_CASES(large_cases, check_large);
    return _cmocka_run_group_tests("random", tests, count, NULL, NULL);
}
