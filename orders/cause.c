/*
 * See cause.h.
 *
 * A guess says how often each contribution is in the sum, and what the sum is divided by. All guesses are
 * held against a few elements in numbers: a result that is farther from the guess than rounding can bring it
 * refutes it. Guesses come in classes, the simplest first; one counts when it has stood so many tests in
 * which the right sum would have failed that none of its class could have stood them by chance.
 */
#include "orders/cause.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "orders/tree_search.h"

enum {
    WINDOW = 64,      /* elements that guesses are held against first */
    SUBSETS_MAX = 12, /* ranks: of so many every subset is guessed */
    FEW = 8,          /* elements */
    MARGIN_BITS = 12  /* one wrong cause in 4096 results of noise */
};

typedef enum guess_kind { RANKS, SCALE, ROUNDS } guess_kind;

typedef struct guess {
    guess_kind kind;
    unsigned char *times; /* [unit_count]: how often each contribution is taken */
    int term_count;       /* of one round */
    double divisor;       /* 0: scaled as it should be */
    int twice;            /* divided by it twice */
} guess;

typedef struct cause_search {
    const zb_seen *seen;
    size_t element, window;
    int n, unit_count;
    int wide;                 /* partial sums are taken to be in fp32 at least: 16-bit sums tell more */
    long double *values;      /* [unit_count][WINDOW] */
    long double full[WINDOW]; /* the right sum */
    int bits;                 /* that one element tells */
    guess guess, best;        /* .times: two of [unit_count] */
    int tested, best_tests;
    int class_size; /* of the class under way */
    int best_is_enough;
} cause_search;

/* --- one guess, one element --- */

typedef enum outcome { REFUTED, NOTHING_SAID, STOOD } outcome;

static long double scale_of(const cause_search *s, const guess *g)
{
    if (g->divisor == 0) return zb_seen_scale(s->seen);
    return 1 / (long double)(g->twice ? g->divisor * g->divisor : g->divisor);
}

/* As an integer of that type, which wraps around. */
static long double wrapped(zb_dtype dtype, long double x)
{
    const long double range = dtype == ZB_INT32 ? 0x1p32L : dtype == ZB_UINT8 ? 0x1p8L : 0;
    if (range == 0 || !isfinite(x)) return x;
    const long double low = dtype == ZB_INT32 ? -range / 2 : 0;
    return x - range * floorl((x - low) / range);
}

/* The guess is `sum` of magnitudes that add up to `magnitude`. */
static outcome judge(const cause_search *s, const guess *g, long double seen, long double full,
                     long double sum, long double magnitude)
{
    const long double scale = scale_of(s, g), value = wrapped(s->seen->dtype, sum * scale);
    const long double bound = zb_seen_bound(s->seen, g->term_count, s->wide, magnitude * fabsl(scale));
    if (!isfinite(seen) || !isfinite(value) || !isfinite(full)) return NOTHING_SAID;
    /* Beyond that a long double has not all of an integer. */
    if (zb_seen_is_whole(s->seen->dtype) && magnitude * fabsl(scale) > 0x1p62L) return NOTHING_SAID;
    if (fabsl(seen - value) > bound) return REFUTED;
    return fabsl(seen - full) > bound ? STOOD : NOTHING_SAID;
}

static outcome judge_element(const cause_search *s, const guess *g, size_t i)
{
    const zb_seen *seen = s->seen;
    long double sum = 0, magnitude = 0, full = 0;
    for (int u = 0; u < s->unit_count; u++) {
        const long double x = zb_seen_value(seen->call->dtype, seen->inputs[u], i);
        full += x;
        sum += g->times[u] * x;
        magnitude += g->times[u] * fabsl(x);
    }
    return judge(s, g, zb_seen_value(seen->dtype, seen->result, i), full * zb_seen_scale(seen), sum,
                 magnitude);
}

/* Holds s->guess against the window and keeps it when it has stood more than the best. */
static void test(cause_search *s)
{
    const guess *g = &s->guess;
    int stood = 0;
    s->class_size++;
    for (size_t w = 0; w < s->window; w++) {
        long double sum = 0, magnitude = 0;
        for (int u = 0; u < s->unit_count; u++) {
            if (g->times[u] == 0) continue;
            const long double x = s->values[(size_t)u * WINDOW + w];
            sum += g->times[u] * x;
            magnitude += g->times[u] * fabsl(x);
        }
        const outcome o = judge(s, g, zb_seen_value(s->seen->dtype, s->seen->result, s->element + w),
                                s->full[w], sum, magnitude);
        if (o == REFUTED) break;
        stood += o == STOOD;
    }
    if (stood <= s->best_tests) return;
    s->best_tests = stood;
    memcpy(s->best.times, g->times, (size_t)s->unit_count);
    unsigned char *times = s->best.times;
    s->best = *g;
    s->best.times = times;
}

/* --- classes of guesses --- */

static void begin_class(cause_search *s)
{
    s->class_size = 0;
    s->best_tests = 0;
}

/* Whether the best of the class that ends has stood enough. */
static int end_class(cause_search *s)
{
    int class_bits = 0;
    while (class_bits < 30 && 1 << class_bits < s->class_size) class_bits++;
    const int least = s->best.kind == SCALE && s->window >= FEW ? FEW : 1;
    s->best_is_enough = s->best_tests >= least && s->best_tests * s->bits >= class_bits + MARGIN_BITS;
    return s->best_is_enough;
}

static int is_average(const cause_search *s)
{
    return fabsl(zb_seen_scale(s->seen) * s->n - 1) < 1e-6L && !zb_seen_is_whole(s->seen->call->dtype);
}

/* The ranks that times[0 .. n) says, in all rounds; an average also of so many. */
static void test_ranks(cause_search *s)
{
    guess *g = &s->guess;
    g->kind = RANKS;
    g->divisor = 0;
    g->twice = 0;
    g->term_count = 0;
    for (int rank = 0; rank < s->n; rank++) g->term_count += g->times[rank];
    for (int round = 1; round < s->seen->rounds; round++)
        memcpy(g->times + (size_t)round * (size_t)s->n, g->times, (size_t)s->n);
    if (g->term_count == 0) return;
    test(s);
    if (!is_average(s) || g->term_count == s->n) return;
    g->divisor = g->term_count;
    test(s);
}

static void take_all(cause_search *s)
{
    memset(s->guess.times, 1, (size_t)s->unit_count);
}

static void guess_one_rank(cause_search *s)
{
    for (int times = 0; times <= 2; times += 2)
        for (int rank = 0; rank < s->n; rank++) {
            take_all(s);
            s->guess.times[rank] = (unsigned char)times;
            test_ranks(s);
        }
}

static void test_divisor(cause_search *s, double divisor, int twice)
{
    take_all(s);
    s->guess.kind = SCALE;
    s->guess.term_count = s->n;
    s->guess.divisor = divisor;
    s->guess.twice = twice;
    test(s);
}

static void guess_scales(cause_search *s)
{
    const double wanted = (double)(1 / zb_seen_scale(s->seen));
    if (zb_seen_is_whole(s->seen->call->dtype)) return;
    for (int divisor = 1; divisor <= 2 * s->n; divisor++)
        if (fabs(divisor - wanted) > 1e-6) test_divisor(s, divisor, 0);
    if (wanted != 1) test_divisor(s, wanted, 1);
}

static void guess_rounds(cause_search *s)
{
    guess *g = &s->guess;
    const size_t n = (size_t)s->n;
    for (int round = 0; round < s->seen->rounds && s->seen->rounds > 1; round++)
        for (int times = 0; times <= 2; times += 2) {
            take_all(s);
            *g = (guess){ .kind = ROUNDS, .times = g->times, .term_count = s->n };
            memset(g->times + (size_t)round * n, times, n);
            test(s);
            for (size_t rank = 0; rank < n; rank++) {
                take_all(s);
                g->times[(size_t)round * n + rank] = (unsigned char)times;
                test(s);
            }
        }
}

static void guess_replaced(cause_search *s)
{
    for (int gone = 0; gone < s->n; gone++)
        for (int twice = 0; twice < s->n; twice++) {
            if (gone == twice) continue;
            take_all(s);
            s->guess.times[gone] = 0;
            s->guess.times[twice] = 2;
            test_ranks(s);
        }
}

/* Neighbours, and every so manieth rank. */
static void guess_groups(cause_search *s)
{
    for (int step = 1; step <= s->n; step++)
        for (int first = 0; first < s->n; first++) {
            if (step > 1 && first >= step) break;
            memset(s->guess.times, 0, (size_t)s->n);
            int count = 0;
            for (int rank = first; rank < s->n; rank += step) {
                s->guess.times[rank] = 1;
                /* Of neighbours every beginning of the row as well. */
                if (++count < s->n && (step == 1 || rank + step >= s->n)) test_ranks(s);
            }
        }
}

static void guess_subsets(cause_search *s)
{
    if (s->n > SUBSETS_MAX) return;
    for (unsigned set = 1; set + 1 < 1u << s->n; set++) {
        for (int rank = 0; rank < s->n; rank++) s->guess.times[rank] = set >> rank & 1;
        test_ranks(s);
    }
}

static void guess_all(cause_search *s)
{
    static void (*const classes[])(cause_search *) = { guess_one_rank, guess_scales,   guess_rounds,
                                                       guess_groups,   guess_replaced, guess_subsets };
    for (size_t c = 0; c < sizeof classes / sizeof classes[0]; c++) {
        begin_class(s);
        classes[c](s);
        if (end_class(s)) return;
    }
}

/* --- in words --- */

typedef struct sentence {
    char *text;
    size_t bytes, used;
} sentence;

__attribute__((format(printf, 2, 3))) static void say(sentence *to, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(to->text + to->used, to->bytes - to->used, format, arguments);
    va_end(arguments);
    to->used += (size_t)length;
    if (to->used >= to->bytes) to->used = to->bytes - 1;
}

/* "rank 2", "ranks 0, 1, 3", "ranks 0 to 31, 40" of those that are taken `times` times; with `or_more` also
 * more. */
static void say_ranks(sentence *to, const unsigned char *taken, int n, int times, int or_more)
{
    int count = 0, said = 0;
    for (int rank = 0; rank < n; rank++) count += taken[rank] == times || (or_more && taken[rank] > times);
    say(to, count == 1 ? "rank " : "ranks ");
    for (int rank = 0; rank < n; rank++) {
        if (!(taken[rank] == times || (or_more && taken[rank] > times))) continue;
        int last = rank;
        while (last + 1 < n && (taken[last + 1] == times || (or_more && taken[last + 1] > times))) last++;
        say(to, "%s%d", said++ > 0 ? ", " : "", rank);
        if (last > rank + 2) {
            say(to, " to %d", last);
            rank = last;
        }
    }
}

static int count_taken(const guess *g, int n, int times)
{
    int count = 0;
    for (int rank = 0; rank < n; rank++) count += g->times[rank] == times;
    return count;
}

static void say_rank_guess(const cause_search *s, sentence *to)
{
    const guess *g = &s->best;
    const int missing = count_taken(g, s->n, 0), twice = count_taken(g, s->n, 2);
    say(to, "the sum of ");
    say_ranks(to, g->times, s->n, 1, 1);
    if (g->divisor != 0) say(to, ", divided by %g, not by %d", g->divisor, s->n);
    say(to, ": ");
    if (missing > 0) {
        say_ranks(to, g->times, s->n, 0, 0);
        say(to, missing == 1 ? " is missing" : " are missing");
    }
    if (twice > 0) {
        if (missing > 0) say(to, ", ");
        say_ranks(to, g->times, s->n, 2, 0);
        say(to, " is there twice");
    }
}

static void say_scale_guess(const cause_search *s, sentence *to)
{
    const guess *g = &s->best;
    const double wanted = (double)(1 / zb_seen_scale(s->seen));
    say(to, "the sum of all ranks, ");
    if (g->twice)
        say(to, wanted >= 1 ? "divided by %g twice" : "multiplied by %g twice",
            wanted >= 1 ? wanted : 1 / wanted);
    else if (g->divisor == 1)
        say(to, wanted >= 1 ? "not divided by %g" : "not multiplied by %g",
            wanted >= 1 ? wanted : 1 / wanted);
    else if (wanted == 1)
        say(to, "divided by %g, which was not asked for", g->divisor);
    else if (wanted > 1)
        say(to, "divided by %g, not by %g", g->divisor, wanted);
    else
        say(to, "divided by %g, not multiplied by %g", g->divisor, 1 / wanted);
}

static void say_round_guess(const cause_search *s, sentence *to)
{
    const guess *g = &s->best;
    for (int round = 0; round < s->seen->rounds; round++) {
        const guess of_round = { .times = g->times + (size_t)round * (size_t)s->n };
        const int times = count_taken(&of_round, s->n, 0) > 0 ? 0 : 2,
                  count = count_taken(&of_round, s->n, times);
        if (count == 0) continue;
        say(to, "the sum of all rounds: ");
        if (count == s->n && s->n > 1) {
            say(to, "round %d", round);
        } else {
            say_ranks(to, of_round.times, s->n, times, 0);
            say(to, " of round %d", round);
        }
        say(to, times == 0 ? " is missing" : " is there twice");
        return;
    }
}

/* --- how far it goes, and by which tree --- */

static void find_extent(cause_search *s, zb_cause *cause)
{
    s->wide = 0; /* they may all be farther off than the few that have told */
    size_t end = s->element + 1;
    while (end < s->seen->numel && judge_element(s, &s->best, end) != REFUTED) end++;
    cause->first = s->element;
    cause->numel = end - cause->first;
}

static zb_status find_sum(const cause_search *s, zb_cause *cause)
{
    const guess *g = &s->best;
    zb_tree_search trees;
    zb_candidate best = { .way = -1 };
    size_t numel;
    int32_t *terms = zb_alloc_array((size_t)s->n + 1, sizeof *terms); /* one of them may be there twice */
    int count = 0;
    if (terms == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < s->n; rank++)
        for (int k = 0; k < g->times[rank]; k++) terms[count++] = rank;
    zb_status status = zb_tree_search_create_of(s->seen, terms, count, g->divisor, g->twice, &trees);
    zb_free(terms);
    if (status != ZB_OK) return status;
    status = zb_tree_search_longest(&trees, cause->first, &best, &numel);
    if (status == ZB_OK && numel > 0) {
        cause->sum_numel = numel < cause->numel ? numel : cause->numel;
        cause->rounding = trees.ways[best.way].words;
        zb_tree_search_describe(&trees, best, cause->sum, sizeof cause->sum);
    }
    zb_tree_search_destroy(&trees);
    return status;
}

static zb_status describe(cause_search *s, zb_cause *cause)
{
    sentence to = { .text = cause->text, .bytes = sizeof cause->text };
    cause->found = 1;
    find_extent(s, cause);
    switch (s->best.kind) {
    case RANKS:
        say_rank_guess(s, &to);
        break;
    case SCALE:
        say_scale_guess(s, &to);
        break;
    case ROUNDS:
        say_round_guess(s, &to);
        return ZB_OK;
    }
    return find_sum(s, cause);
}

/* --- */

static int bits_told(zb_dtype dtype)
{
    static const int bits[ZB_DTYPE_COUNT] = { [ZB_FP32] = 16, [ZB_FP16] = 5,  [ZB_BF16] = 3, [ZB_FP64] = 40,
                                              [ZB_INT32] = 8, [ZB_INT64] = 8, [ZB_UINT8] = 2 };
    return bits[dtype];
}

static zb_status prepare(cause_search *s)
{
    const zb_seen *seen = s->seen;
    const size_t units = (size_t)s->unit_count, left = seen->numel - s->element;
    const int a = bits_told(seen->call->dtype), b = bits_told(seen->dtype);
    s->bits = a < b ? a : b;
    s->window = left < WINDOW ? left : WINDOW;
    s->values = zb_alloc_array(units * WINDOW, sizeof *s->values);
    if (s->values != NULL) s->guess.times = zb_alloc(2 * units);
    if (s->guess.times == NULL) return ZB_NO_MEMORY;
    s->best.times = s->guess.times + units;
    for (size_t w = 0; w < s->window; w++) {
        for (size_t u = 0; u < units; u++) {
            const long double x = zb_seen_value(seen->call->dtype, seen->inputs[u], s->element + w);
            s->values[u * WINDOW + w] = x;
            s->full[w] += x;
        }
        s->full[w] = wrapped(seen->dtype, s->full[w] * zb_seen_scale(seen));
    }
    return ZB_OK;
}

zb_status zb_cause_find(const zb_seen *seen, size_t element, zb_cause *cause)
{
    cause_search s = { .seen = seen,
                       .element = element,
                       .n = seen->call->world_size,
                       .unit_count = seen->rounds * seen->call->world_size };
    *cause = (zb_cause){ 0 };
    zb_status status = prepare(&s);
    if (status == ZB_OK) {
        s.wide = 1;
        guess_all(&s);
        if (!s.best_is_enough) {
            s.wide = 0;
            guess_all(&s);
        }
        if (s.best_is_enough) status = describe(&s, cause);
    }
    zb_free(s.values);
    zb_free(s.guess.times);
    return status;
}
