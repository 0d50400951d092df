/*
 * Which order gives a result that has been seen. First every order with a name is tried as a whole; most are
 * given up after a few elements. Where none fits, the same orders with other ways of rounding. Then the
 * buffer is walked through: at each place the single tree that fits longest, over all trees, starts and ways
 * of rounding, until an element that none of them gives; what that one is instead is asked last.
 */
#include <zerobit/orders.h>

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "orders/cause.h"
#include "orders/tree_search.h"

enum {
    SHORT = 16,    /* elements: fewer of them between two parts of one order are no order of their own */
    LONG = 1024,   /* elements: at the end of so many, fewer than SHORT are none either */
    MIDDLING = 64, /* elements: beside exceptions from an order with a name, parts of fewer are none */
    EXCEPTIONS = 8 /* so many elements that an order does not give, or more, are another order */
};

/* An order with a name that gives all elements but for a few. */
typedef struct near_miss {
    size_t count, first; /* exceptions; 0: there is no such order */
    char source[512];
} near_miss;

typedef struct search {
    zb_seen seen;
    const zb_reduction_call *call;
    const zb_order_source *expected;
    zb_tree_search trees;
    size_t witness; /* an element at which an order has failed; numel: none has */
    near_miss near;
    zb_explanation *found;
} search;

/* --- words --- */

__attribute__((format(printf, 2, 3))) static void say(zb_explanation *to, const char *format, ...)
{
    const size_t used = strlen(to->text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to->text + used, sizeof to->text - used, format, arguments);
    va_end(arguments);
}

static void say_bits(zb_explanation *to, zb_dtype dtype, const void *data, size_t i)
{
    uint64_t bits = 0;
    const size_t bytes = zb_dtype_bytes(dtype);
    memcpy(&bits, (const char *)data + i * bytes, bytes);
    say(to, "0x%0*" PRIx64, (int)(2 * bytes), bits);
    if (zb_seen_is_whole(dtype))
        say(to, " (%.0Lf)", zb_seen_value(dtype, data, i));
    else
        say(to, " (%.9Lg)", zb_seen_value(dtype, data, i));
}

static zb_status put_source(const zb_order_source *source, char *to, size_t bytes)
{
    char *text = zb_order_source_text(source);
    if (text == NULL) return ZB_NO_MEMORY;
    snprintf(to, bytes, "%s", text);
    zb_free(text);
    return ZB_OK;
}

/* --- orders with names --- */

/* All elements that the order does not give, while they are few. */
static zb_status count_exceptions(search *s, const zb_reduction *reduction,
                                  const zb_after after[ZB_AFTER_MAX], size_t first, near_miss *near)
{
    size_t numel;
    *near = (near_miss){ .count = 1, .first = first };
    for (size_t at = first + 1; at < s->seen.numel && near->count < EXCEPTIONS; at += numel + 1) {
        ZB_TRY(zb_seen_fit(&s->seen, reduction, after, at, s->seen.numel, &numel));
        if (at + numel < s->seen.numel) near->count++;
    }
    if (near->count >= EXCEPTIONS || s->seen.numel < LONG) near->count = 0;
    return ZB_OK;
}

/* *numel_p: how many elements from the first on the order gives; 0 when it fails where another has failed. */
static zb_status fit_source(search *s, const zb_order_source *source, const zb_reduction *reduction,
                            size_t *numel_p)
{
    const zb_after after[ZB_AFTER_MAX] = { s->seen.after };
    const size_t numel = s->seen.numel;
    near_miss near;
    *numel_p = 0;
    if (s->witness < numel && s->near.count > 0) {
        size_t fits;
        ZB_TRY(zb_seen_fit(&s->seen, reduction, after, s->witness, s->witness + 1, &fits));
        if (fits == 0) return ZB_OK;
    }
    ZB_TRY(zb_seen_fit(&s->seen, reduction, after, 0, numel, numel_p));
    if (*numel_p == numel) return ZB_OK;
    s->witness = *numel_p;
    ZB_TRY(count_exceptions(s, reduction, after, *numel_p, &near));
    if (near.count == 0 || (s->near.count > 0 && s->near.count <= near.count)) return ZB_OK;
    s->near = near;
    return put_source(source, s->near.source, sizeof s->near.source);
}

/* Sets *numel_p to how far the order goes; 0 as well when it is not offered for this call. */
static zb_status try_source(search *s, const zb_order_source *source, size_t *numel_p, int *fits_p)
{
    zb_reduction reduction;
    *fits_p = 0;
    *numel_p = 0;
    zb_status status = zb_reduction_derive(source, s->call, &reduction);
    if (status == ZB_UNSUPPORTED) return ZB_OK;
    if (status != ZB_OK) return status;
    status = fit_source(s, source, &reduction, numel_p);
    *fits_p = status == ZB_OK && *numel_p == s->seen.numel;
    zb_reduction_destroy(&reduction);
    if (!*fits_p) return status;
    return put_source(source, s->found->source, sizeof s->found->source);
}

typedef zb_status visit_function(search *s, const zb_order_source *source, int *done_p);

/* All orders with a name, in turn, until one has done it. NCCL in its most frequent settings, rings in the
 * order of ranks. */
static zb_status visit_names(search *s, visit_function *visit, int *done_p)
{
    static const int versions[] = { 228, 230 }, channels[] = { 1, 2, 4, 8, 12, 16, 24, 32 };
    *done_p = 0;
    for (int a = 0; a < ZB_ALGORITHM_NCCL_RING; a++) {
        ZB_TRY(visit(s, &(zb_order_source){ .algorithm = (zb_algorithm)a }, done_p));
        if (*done_p) return ZB_OK;
    }
    for (size_t c = 0; c < sizeof channels / sizeof channels[0]; c++)
        for (int p = ZB_NCCL_SIMPLE; p <= ZB_NCCL_LL128; p++)
            for (size_t v = 0; v < sizeof versions / sizeof versions[0]; v++) {
                const zb_order_source source = { .algorithm = ZB_ALGORITHM_NCCL_RING,
                                                 .version = versions[v],
                                                 .protocol = (zb_nccl_protocol)p,
                                                 .channels = channels[c] };
                ZB_TRY(visit(s, &source, done_p));
                if (*done_p) return ZB_OK;
            }
    return ZB_OK;
}

static zb_status visit_as_it_is(search *s, const zb_order_source *source, int *done_p)
{
    size_t numel;
    return try_source(s, source, &numel, done_p);
}

/* --- orders with names, rounded in another way --- */

static void keep_part(search *s, size_t first, size_t numel, const char *rounding)
{
    zb_explanation *found = s->found;
    if (found->part_count++ < ZB_EXPLAINED_PARTS)
        found->parts[found->part_count - 1] = (zb_explained_part){ .first = first,
                                                                   .numel = numel,
                                                                   .rounding = rounding };
}

static void keep_ranges(search *s, const zb_reduction *reduction, const char *rounding)
{
    for (size_t i = 0; i < reduction->range_count; i++) {
        const zb_reduction_range *range = &reduction->ranges[i], *last = range - 1;
        if (i > 0 && range->tree == last->tree && range->order == last->order &&
            range->start == last->start) {
            if (s->found->part_count <= ZB_EXPLAINED_PARTS)
                s->found->parts[s->found->part_count - 1].numel += range->numel;
            continue;
        }
        keep_part(s, range->first, range->numel, rounding);
        if (s->found->part_count <= ZB_EXPLAINED_PARTS) {
            zb_explained_part *part = &s->found->parts[s->found->part_count - 1];
            zb_reduction_describe(reduction, range, part->sum, sizeof part->sum);
        }
    }
}

static zb_status try_roundings(search *s, const zb_order_source *source, zb_reduction *reduction, int *done_p)
{
    for (int w = 0; w < s->trees.way_count; w++) {
        const zb_way *way = &s->trees.ways[w];
        size_t numel;
        reduction->rounding = way->rounding;
        ZB_TRY(zb_seen_fit(&s->seen, reduction, way->after, 0, s->seen.numel, &numel));
        if (numel < s->seen.numel) continue;
        *done_p = 1;
        s->found->verdict = ZB_VERDICT_ORDER;
        keep_ranges(s, reduction, way->words);
        ZB_TRY(put_source(source, s->found->source, sizeof s->found->source));
        say(s->found, "order: as %s, but %s", s->found->source, way->words);
        return ZB_OK;
    }
    return ZB_OK;
}

static zb_status visit_roundings(search *s, const zb_order_source *source, int *done_p)
{
    zb_reduction reduction;
    zb_status status = zb_reduction_derive(source, s->call, &reduction);
    if (status == ZB_UNSUPPORTED) return ZB_OK;
    if (status != ZB_OK) return status;
    status = try_roundings(s, source, &reduction, done_p);
    zb_reduction_destroy(&reduction);
    return status;
}

static zb_status find_rounding(search *s, int *done_p)
{
    *done_p = 0;
    if (s->expected != NULL) ZB_TRY(visit_roundings(s, s->expected, done_p));
    return *done_p ? ZB_OK : visit_names(s, visit_roundings, done_p);
}

/* --- single trees, part by part --- */

typedef struct walk {
    zb_candidate last, anchor; /* of the last part, and of the last part that is not short; way < 0: none */
    size_t anchor_numel;
    size_t shorts, first_short; /* short parts since the anchor */
    size_t shortest;            /* of all parts */
} walk;

/* A part of `numel` elements from `at` on. Sets *wrong_p to an element that is no order of its own but a
 * wrong value. */
static int is_wrong_value(const search *s, walk *w, zb_candidate part, size_t at, size_t numel,
                          size_t *wrong_p)
{
    const int is_last = at + numel == s->seen.numel;
    if (numel < SHORT && w->shorts++ == 0) w->first_short = at;
    *wrong_p = w->first_short;
    /* No library changes the order every few elements, but a short buffer has short chunks. */
    if (w->shorts > (size_t)(2 * s->call->world_size + 32)) return 1;
    if (numel < SHORT) return is_last && w->anchor_numel >= LONG && s->seen.numel - w->first_short < SHORT;
    if (w->shorts > 0 && at - w->first_short < (size_t)SHORT * w->shorts) {
        /* Then the one before again, or a long one after a start of a few. */
        if (zb_candidate_equal(part, w->anchor)) return 1;
        if (w->anchor.way < 0 && at < SHORT && numel >= LONG) {
            w->anchor = part;
            return 1;
        }
    }
    w->anchor = part;
    w->anchor_numel = numel;
    w->shorts = 0;
    return 0;
}

/* Splits all of the result into parts, or stops at the first element that no order gives. */
static zb_status find_parts(search *s, walk *w)
{
    zb_explanation *found = s->found;
    *w = (walk){ .last = { .way = -1 }, .anchor = { .way = -1 }, .shortest = SIZE_MAX };
    found->verdict = ZB_VERDICT_ORDER;
    for (size_t at = 0, numel; at < s->seen.numel; at += numel) {
        ZB_TRY(zb_tree_search_longest(&s->trees, at, &w->last, &numel));
        found->element = at;
        if (numel == 0 || is_wrong_value(s, w, w->last, at, numel, &found->element)) {
            found->verdict = ZB_VERDICT_VALUE;
            found->part_count = 0;
            return ZB_OK;
        }
        if (numel < w->shortest) w->shortest = numel;
        keep_part(s, at, numel, s->trees.ways[w->last.way].words);
        if (found->part_count <= ZB_EXPLAINED_PARTS) {
            zb_explained_part *part = &found->parts[found->part_count - 1];
            zb_tree_search_describe(&s->trees, w->last, part->sum, sizeof part->sum);
        }
    }
    return ZB_OK;
}

static void describe_parts(zb_explanation *found)
{
    const size_t kept = found->part_count < ZB_EXPLAINED_PARTS ? found->part_count : ZB_EXPLAINED_PARTS;
    say(found, "order: none that has a name, but");
    for (size_t i = 0; i < kept; i++) {
        const zb_explained_part *part = &found->parts[i];
        say(found, "%s elements %zu to %zu are %s, %s", i > 0 ? ";" : "", part->first,
            part->first + part->numel - 1, part->sum, part->rounding);
    }
    if (found->part_count > kept) say(found, "; and %zu more parts", found->part_count - kept);
}

/* --- an element that no order gives --- */

/* Whether another order of the same additions could give it. Sums that overflow on the way are not thought
 * of. */
static int is_within_rounding(const zb_seen *seen, size_t i)
{
    const int terms = seen->rounds * seen->call->world_size;
    const long double scale = zb_seen_scale(seen);
    long double sum = 0, magnitude = 0;
    for (int u = 0; u < terms; u++) {
        const long double x = zb_seen_value(seen->call->dtype, seen->inputs[u], i) * scale;
        sum += x;
        magnitude += fabsl(x);
    }
    const long double found = zb_seen_value(seen->dtype, seen->result, i);
    if (!isfinite(sum)) return isnan(sum) ? isnan(found) : found == sum;
    if (magnitude == 0) return 0; /* of zeros only the sign can differ, and no rounding makes that */
    return fabsl(found - sum) <= zb_seen_bound(seen, seen->call->world_size, 0, magnitude);
}

static void say_cause(search *s, const zb_cause *cause)
{
    zb_explanation *found = s->found;
    if (!cause->found) return;
    found->element = cause->first;
    found->cause_numel = cause->numel;
    snprintf(found->cause, sizeof found->cause, "%s", cause->text);
    if (cause->numel == 1)
        say(found, "element %zu is %s; ", cause->first, cause->text);
    else
        say(found, "elements %zu to %zu are %s; ", cause->first, cause->first + cause->numel - 1,
            cause->text);
    if (cause->sum_numel == 0) return;
    say(found, "to the bit ");
    if (cause->sum_numel < cause->numel)
        say(found, "those up to %zu", cause->first + cause->sum_numel - 1);
    else
        say(found, cause->numel == 1 ? "it" : "they");
    say(found, " %s %s, %s; ", cause->numel == 1 ? "is" : "are", cause->sum, cause->rounding);
}

/* What the elements around it are, and what that would give here. */
static zb_status say_surroundings(search *s, const walk *w)
{
    zb_explanation *found = s->found;
    char sum[sizeof found->parts[0].sum];
    if (s->near.count > 0) {
        say(found, ", where %s gives all but %zu of the elements", s->near.source, s->near.count);
    } else if (w->anchor.way >= 0) {
        zb_tree_search_describe(&s->trees, w->anchor, sum, sizeof sum);
        ZB_TRY(zb_tree_search_play(&s->trees, w->anchor, found->element));
        say(found, ", where %s, %s, as beside it, gives ", sum, s->trees.ways[w->anchor.way].words);
        say_bits(found, s->seen.dtype, s->seen.finished, 0);
    }
    return ZB_OK;
}

/* By which order the element could be, if by any, and why it is taken for wrong. */
static zb_status say_origin(search *s, const walk *w)
{
    zb_explanation *found = s->found;
    zb_candidate best = { .way = -1 };
    size_t numel;
    ZB_TRY(zb_tree_search_longest(&s->trees, found->element, &best, &numel));
    if (numel == 0) {
        say(found, ", which no known order gives%s", found->within_rounding ? ", though rounding could" : "");
    } else {
        char sum[sizeof found->parts[0].sum];
        zb_tree_search_describe(&s->trees, best, sum, sizeof sum);
        say(found, ", which %s, %s, gives, but that for %zu element%s only", sum,
            s->trees.ways[best.way].words, numel, numel == 1 ? "" : "s");
    }
    return say_surroundings(s, w);
}

static zb_status describe_value(search *s, const walk *w)
{
    const zb_seen *seen = &s->seen;
    zb_explanation *found = s->found;
    zb_cause cause = { 0 };
    if (s->near.count > 0) found->element = s->near.first;
    ZB_TRY(zb_cause_find(seen, found->element, &cause));
    found->within_rounding = !cause.found && is_within_rounding(seen, found->element);
    say(found, "value: ");
    say_cause(s, &cause);
    say(found, "element %zu of %zu is ", found->element, seen->numel);
    say_bits(found, seen->dtype, seen->result, found->element);
    if (cause.found)
        say(found, ", which no known order gives");
    else
        ZB_TRY(say_origin(s, w));
    say(found, "; contributions ");
    for (int round = 0; round < seen->rounds; round++)
        for (int rank = 0; rank < s->call->world_size; rank++) {
            if (round + rank > 0) say(found, ", ");
            if (seen->rounds > 1) say(found, "round %d ", round);
            say(found, "rank %d: ", rank);
            say_bits(found, s->call->dtype, seen->inputs[round * s->call->world_size + rank], found->element);
        }
    return ZB_OK;
}

/* --- */

static zb_status find_named(search *s, int *fits_p)
{
    size_t numel;
    *fits_p = 0;
    s->found->unexpected = s->seen.numel;
    if (s->expected != NULL) {
        ZB_TRY(try_source(s, s->expected, &numel, fits_p));
        s->found->as_expected = *fits_p;
        if (*fits_p) return ZB_OK;
        s->found->unexpected = numel;
    }
    return visit_names(s, visit_as_it_is, fits_p);
}

static zb_status explain_without_name(search *s)
{
    walk w;
    int done;
    ZB_TRY(zb_tree_search_create(&s->seen, &s->trees));
    ZB_TRY(find_rounding(s, &done));
    if (done) return ZB_OK;
    ZB_TRY(find_parts(s, &w));
    if (s->near.count > 0 && w.shortest < MIDDLING) {
        s->found->verdict = ZB_VERDICT_VALUE;
        s->found->part_count = 0;
    }
    if (s->found->verdict == ZB_VERDICT_VALUE) return describe_value(s, &w);
    describe_parts(s->found);
    return ZB_OK;
}

static zb_status explain(search *s)
{
    int fits;
    ZB_TRY(find_named(s, &fits));
    if (fits) {
        s->found->verdict = ZB_VERDICT_NAMED;
        say(s->found, "order: as %s", s->found->source);
    } else {
        ZB_TRY(explain_without_name(s));
    }
    if (s->expected == NULL || s->found->as_expected) return ZB_OK;
    char expected[sizeof s->found->source];
    ZB_TRY(put_source(s->expected, expected, sizeof expected));
    say(s->found, "; expected: %s", expected);
    if (s->found->unexpected < s->seen.numel && s->found->verdict != ZB_VERDICT_VALUE)
        say(s->found, ", which would have given another element %zu", s->found->unexpected);
    return ZB_OK;
}

/* --- the front door --- */

static int is_tensor_dtype(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP16 || dtype == ZB_BF16;
}

static zb_status set_finish(const zb_explain_options *options, zb_seen *seen)
{
    const zb_finish *finish = options->finish;
    seen->dtype = finish != NULL ? finish->dtype : options->call->dtype;
    if (finish != NULL) seen->after = (zb_after){ finish->after.kind, (double)finish->after.by };
    if (options->rounds < 0) return zb_fail(ZB_INVALID_ARGUMENT, "%d rounds, want >= 1", options->rounds);
    seen->rounds = options->rounds > 0 ? options->rounds : 1;
    const int is_finished = seen->rounds > 1 || seen->after.kind != ZB_FACTOR_NONE ||
                            seen->dtype != options->call->dtype;
    if (is_finished && (!is_tensor_dtype(options->call->dtype) || !is_tensor_dtype(seen->dtype)))
        return zb_fail(
            ZB_UNSUPPORTED,
            "sums of %s, made into %s: only fp32, fp16 and bf16 are scaled, converted and added up",
            zb_dtype_name(options->call->dtype), zb_dtype_name(seen->dtype));
    if (seen->after.kind == ZB_FACTOR_DIVIDE && !(fabs(seen->after.by) > 0))
        return zb_fail(ZB_INVALID_ARGUMENT, "sums divided by %g", seen->after.by);
    return ZB_OK;
}

zb_status zb_reduction_explain_finished(const zb_explain_options *options, zb_explanation *explanation_p)
{
    const zb_reduction_call *call = options->call;
    zb_reduction plain; /* also checks the call */
    ZB_TRY(zb_reduction_derive(&(zb_order_source){ 0 }, call, &plain));
    search s = {
        .call = call,
        .expected = options->expected,
        .seen = { .call = call, .inputs = options->inputs, .result = options->result, .numel = plain.numel },
        .witness = plain.numel
    };
    zb_reduction_destroy(&plain);
    ZB_TRY(set_finish(options, &s.seen));
    s.seen.sum = zb_alloc_array(2 * ZB_SEEN_BLOCK, sizeof(double));
    s.found = zb_alloc(sizeof *s.found);
    zb_status status = s.seen.sum != NULL && s.found != NULL ? ZB_OK : ZB_NO_MEMORY;
    if (status == ZB_OK) {
        s.seen.finished = (double *)s.seen.sum + ZB_SEEN_BLOCK;
        status = explain(&s);
    }
    if (status == ZB_OK) *explanation_p = *s.found;
    zb_tree_search_destroy(&s.trees);
    zb_free(s.seen.sum);
    zb_free(s.found);
    return status;
}

zb_status zb_reduction_explain(const zb_reduction_call *call, const zb_order_source *expected,
                               const void *const *inputs, const void *result, zb_explanation *explanation_p)
{
    const zb_explain_options options = {
        .call = call, .expected = expected, .inputs = inputs, .result = result
    };
    return zb_reduction_explain_finished(&options, explanation_p);
}
