/*
 * Which order gives a result that has been seen. First every order with a name is tried as a whole; most are
 * given up after a few elements. Where none fits, the buffer is walked through: at each place the single tree
 * that fits longest, over all trees, starts and ways of rounding, until an element that none of them gives.
 */
#include <zerobit/orders.h>

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "kernels/half.h"
#include "orders/record.h"
#include "orders/trees.h"

enum {
    FIRST_LOOK = 64, /* elements that tell most wrong orders */
    LOOK = 4096,
    SHORT = 8, /* elements: fewer of them between two parts of one order are no order of their own */
    VARIANT_MAX = 6
};

typedef enum tree_index { CHAIN, DOUBLING, HALVING, ALIGNED, BINARY, TREE_COUNT } tree_index;
enum { ASCENDING, DESCENDING, ORDER_COUNT };

/* One way of rounding, and how to say it. */
typedef struct variant {
    zb_rounding rounding;
    const char *words;
} variant;

typedef struct search {
    const zb_reduction_call *call;
    const void *const *inputs;
    const void *result;
    size_t numel;
    zb_reduction probe; /* all trees and orders; one range, which is set to what is tried */
    variant variants[VARIANT_MAX];
    int variant_count;
    unsigned char *block; /* LOOK elements */
    zb_explanation *found;
} search;

/* --- comparing --- */

static int is_nan(zb_dtype dtype, const void *data, size_t i)
{
    switch (dtype) {
    case ZB_FP32:
        return isnan(((const float *)data)[i]);
    case ZB_FP64:
        return isnan(((const double *)data)[i]);
    case ZB_FP16:
        return (((const uint16_t *)data)[i] & 0x7fff) > 0x7c00;
    case ZB_BF16:
        return (((const uint16_t *)data)[i] & 0x7fff) > 0x7f80;
    default:
        return 0;
    }
}

/* How many elements from the first on are the same; NaNs are. */
static size_t equal_numel(zb_dtype dtype, const void *a, const void *b, size_t numel)
{
    const size_t bytes = zb_dtype_bytes(dtype);
    if (memcmp(a, b, numel * bytes) == 0) return numel;
    for (size_t i = 0; i < numel; i++)
        if (memcmp((const char *)a + i * bytes, (const char *)b + i * bytes, bytes) != 0 &&
            !(is_nan(dtype, a, i) && is_nan(dtype, b, i)))
            return i;
    return numel;
}

/* How many elements from `first` on, up to `end`, the record gives as they have been seen. */
static zb_status fit(const search *s, const zb_reduction *reduction, size_t first, size_t end,
                     size_t *numel_p)
{
    const size_t bytes = zb_dtype_bytes(s->call->dtype);
    size_t at = first, look = FIRST_LOOK;
    while (at < end) {
        const size_t piece = end - at < look ? end - at : look;
        ZB_TRY(zb_reduction_run(reduction, s->inputs, at, piece, s->block));
        const size_t equal = equal_numel(s->call->dtype, s->block, (const char *)s->result + at * bytes,
                                         piece);
        at += equal;
        if (equal < piece) break;
        look = LOOK;
    }
    *numel_p = at - first;
    return ZB_OK;
}

/* --- orders with names --- */

/* Sets *fits_p when the order is offered for this call and gives all of the result. */
static zb_status try_source(search *s, const zb_order_source *source, int *fits_p)
{
    zb_reduction reduction;
    size_t numel;
    *fits_p = 0;
    zb_status status = zb_reduction_derive(source, s->call, &reduction);
    if (status == ZB_UNSUPPORTED) return ZB_OK;
    if (status != ZB_OK) return status;
    status = fit(s, &reduction, 0, s->numel, &numel);
    *fits_p = status == ZB_OK && numel == s->numel;
    zb_reduction_destroy(&reduction);
    if (!*fits_p) return status;
    char *text = zb_order_source_text(source);
    if (text == NULL) return ZB_NO_MEMORY;
    snprintf(s->found->source, sizeof s->found->source, "%s", text);
    zb_free(text);
    return ZB_OK;
}

/* NCCL in its most frequent settings, rings in the order of ranks. */
static zb_status try_nccl(search *s, int *fits_p)
{
    static const int versions[] = { 228, 230 }, channels[] = { 1, 2, 4, 8, 12, 16, 24, 32 };
    for (size_t c = 0; c < sizeof channels / sizeof channels[0]; c++)
        for (int p = ZB_NCCL_SIMPLE; p <= ZB_NCCL_LL128; p++)
            for (size_t v = 0; v < sizeof versions / sizeof versions[0]; v++) {
                const zb_order_source source = { .algorithm = ZB_ALGORITHM_NCCL_RING,
                                                 .version = versions[v],
                                                 .protocol = (zb_nccl_protocol)p,
                                                 .channels = channels[c] };
                ZB_TRY(try_source(s, &source, fits_p));
                if (*fits_p) return ZB_OK;
            }
    return ZB_OK;
}

static zb_status try_names(search *s, int *fits_p)
{
    for (int a = 0; a < ZB_ALGORITHM_NCCL_RING; a++) {
        ZB_TRY(try_source(s, &(zb_order_source){ .algorithm = (zb_algorithm)a }, fits_p));
        if (*fits_p) return ZB_OK;
    }
    return try_nccl(s, fits_p);
}

/* --- single trees --- */

static double factor_of(const zb_reduction_call *call)
{
    double factor = call->op == ZB_AVG ? 1.0 / call->world_size : call->factor;
    if (call->dtype == ZB_FP16) factor = (double)zb_float_from_fp16(zb_fp16_from_float((float)factor));
    if (call->dtype == ZB_BF16) factor = (double)zb_float_from_bf16(zb_bf16_from_float((float)factor));
    return factor;
}

static void add_variant(search *s, zb_rounding rounding, const char *words)
{
    ZB_ASSERT(s->variant_count < VARIANT_MAX);
    s->variants[s->variant_count++] = (variant){ rounding, words };
}

static void list_variants(search *s)
{
    const zb_reduction_call *call = s->call;
    const int half = call->dtype == ZB_FP16 || call->dtype == ZB_BF16,
              floating = half || call->dtype == ZB_FP32 || call->dtype == ZB_FP64;
    const double factor = factor_of(call), n = call->world_size;
    switch (call->op) {
    case ZB_AVG:
        add_variant(s, (zb_rounding){ .wide = half, .divisor = n },
                    half ? "rounded once, after the division" : "then divided");
        if (half) add_variant(s, (zb_rounding){ .divisor = n }, "each addition rounded, then divided");
        add_variant(s, (zb_rounding){ .scaling = ZB_SCALING_FUSED, .factor = factor },
                    "contributions multiplied, fused");
        add_variant(s, (zb_rounding){ .scaling = ZB_SCALING_MULTIPLY, .factor = factor },
                    "contributions multiplied");
        add_variant(s, (zb_rounding){ .scaling = ZB_SCALING_DIVIDE, .factor = n }, "contributions divided");
        add_variant(s, (zb_rounding){ 0 }, "not divided");
        break;
    case ZB_PREMUL_SUM:
        add_variant(s, (zb_rounding){ .scaling = ZB_SCALING_MULTIPLY, .factor = call->factor },
                    "contributions multiplied");
        if (floating)
            add_variant(s, (zb_rounding){ .scaling = ZB_SCALING_FUSED, .factor = factor },
                        "contributions multiplied, fused");
        break;
    default:
        add_variant(s, (zb_rounding){ 0 }, "each addition rounded");
        if (half) add_variant(s, (zb_rounding){ .wide = 1 }, "rounded once");
    }
}

static zb_status make_probe(search *s)
{
    zb_reduction *probe = &s->probe;
    const int n = s->call->world_size;
    ZB_TRY(zb_reduction_create(n, s->call->dtype, TREE_COUNT, ORDER_COUNT, probe));
    zb_tree_write_chain(n, zb_reduction_tree_at(probe, CHAIN));
    ZB_TRY(zb_tree_write_recursive(n, 0, zb_reduction_tree_at(probe, DOUBLING)));
    ZB_TRY(zb_tree_write_recursive(n, 1, zb_reduction_tree_at(probe, HALVING)));
    ZB_TRY(zb_tree_write_aligned(n, zb_reduction_tree_at(probe, ALIGNED)));
    ZB_TRY(zb_tree_write_binary(n, zb_reduction_tree_at(probe, BINARY)));
    zb_reduction_order_ascending(probe, ASCENDING);
    zb_reduction_order_descending(probe, DESCENDING);
    return zb_reduction_append(probe, s->numel, 0, 0, 0);
}

/* A tree with its start and rounding. */
typedef struct candidate {
    int variant, tree, order, start;
} candidate;

static int is_same(candidate a, candidate b)
{
    return a.variant == b.variant && a.tree == b.tree && a.order == b.order && a.start == b.start;
}

static void set_probe(search *s, candidate c)
{
    zb_reduction_range *range = &s->probe.ranges[0];
    range->tree = c.tree;
    range->order = c.order;
    range->start = c.start;
    s->probe.rounding = s->variants[c.variant].rounding;
}

/* `best` and how far it goes, when `c` goes farther. */
static zb_status try_candidate(search *s, candidate c, size_t at, candidate *best, size_t *best_numel)
{
    size_t numel;
    set_probe(s, c);
    ZB_TRY(fit(s, &s->probe, at, s->numel, &numel));
    if (numel > *best_numel) {
        *best = c;
        *best_numel = numel;
    }
    return ZB_OK;
}

static zb_status find_longest(search *s, size_t at, candidate *best, size_t *best_numel)
{
    *best_numel = 0;
    for (int v = 0; v < s->variant_count && at + *best_numel < s->numel; v++) {
        for (int order = ASCENDING; order <= DESCENDING; order++)
            for (int start = 0; start < s->call->world_size; start++)
                ZB_TRY(try_candidate(s, (candidate){ v, CHAIN, order, start }, at, best, best_numel));
        for (int tree = DOUBLING; tree < TREE_COUNT; tree++)
            ZB_TRY(try_candidate(s, (candidate){ v, tree, ASCENDING, 0 }, at, best, best_numel));
    }
    return ZB_OK;
}

static void keep_part(search *s, candidate c, size_t first, size_t numel)
{
    zb_explanation *found = s->found;
    if (found->part_count++ >= ZB_EXPLAINED_PARTS) return;
    zb_explained_part *part = &found->parts[found->part_count - 1];
    *part = (zb_explained_part){ .first = first, .numel = numel, .rounding = s->variants[c.variant].words };
    set_probe(s, c);
    zb_reduction_describe(&s->probe, &s->probe.ranges[0], part->sum, sizeof part->sum);
}

/* Splits all of the result into parts, or stops at the first element that no order gives. */
static zb_status find_parts(search *s)
{
    candidate before = { .variant = -1 }, last = before; /* of the last two parts */
    size_t last_numel = 0;
    s->found->verdict = ZB_VERDICT_ORDER;
    for (size_t at = 0; at < s->numel;) {
        candidate best = before;
        size_t numel;
        ZB_TRY(find_longest(s, at, &best, &numel));
        /* A few elements in another order, and then the one before again: these few have met it by chance. */
        if (numel == 0 || (last_numel < SHORT && numel >= SHORT && is_same(best, before))) {
            s->found->verdict = ZB_VERDICT_VALUE;
            s->found->element = numel == 0 ? at : at - last_numel;
            return ZB_OK;
        }
        keep_part(s, best, at, numel);
        before = last;
        last = best;
        last_numel = numel;
        at += numel;
    }
    return ZB_OK;
}

/* --- an element that no order gives --- */

static double value_of(zb_dtype dtype, const void *data, size_t i)
{
    switch (dtype) {
    case ZB_FP32:
        return (double)((const float *)data)[i];
    case ZB_FP64:
        return ((const double *)data)[i];
    case ZB_FP16:
        return (double)zb_float_from_fp16(((const uint16_t *)data)[i]);
    case ZB_BF16:
        return (double)zb_float_from_bf16(((const uint16_t *)data)[i]);
    case ZB_INT32:
        return ((const int32_t *)data)[i];
    case ZB_INT64:
        return (double)((const int64_t *)data)[i];
    default:
        return ((const uint8_t *)data)[i];
    }
}

/*
 * Whether another order of the same additions could give the element: it is not farther from the sum than a
 * rounding for each addition, and two for scaling, can make it. A sum of fp64 is compared with one of long
 * double.
 */
static int is_within_rounding(const search *s, size_t i)
{
    static const double unit[ZB_DTYPE_COUNT] = {
        [ZB_FP32] = 0x1p-24, [ZB_FP16] = 0x1p-11, [ZB_BF16] = 0x1p-8, [ZB_FP64] = 0x1p-53
    };
    static const double smallest[ZB_DTYPE_COUNT] = {
        [ZB_FP32] = 0x1p-149, [ZB_FP16] = 0x1p-24, [ZB_BF16] = 0x1p-133, [ZB_FP64] = 0x1p-1074
    };
    const zb_reduction_call *call = s->call;
    const long double factor = call->op == ZB_AVG          ? 1.0L / call->world_size
                               : call->op == ZB_PREMUL_SUM ? (long double)call->factor
                                                           : 1;
    long double sum = 0, magnitude = 0;
    for (int rank = 0; rank < call->world_size; rank++) {
        const long double x = (long double)value_of(call->dtype, s->inputs[rank], i) * factor;
        sum += x;
        magnitude += fabsl(x);
    }
    const long double roundings = call->world_size + 1;
    const long double bound = roundings * ((long double)unit[call->dtype] * magnitude * 1.01L +
                                           (long double)smallest[call->dtype]);
    return fabsl((long double)value_of(call->dtype, s->result, i) - sum) <= bound;
}

/* --- in words --- */

static void put_bits(zb_dtype dtype, const void *data, size_t i, char *text, size_t text_bytes)
{
    uint64_t bits = 0;
    const size_t bytes = zb_dtype_bytes(dtype);
    memcpy(&bits, (const char *)data + i * bytes, bytes);
    const size_t used = strlen(text);
    snprintf(text + used, text_bytes - used, "0x%0*llx (%.9g)", (int)(2 * bytes), (unsigned long long)bits,
             value_of(dtype, data, i));
}

static void describe_value(search *s)
{
    zb_explanation *found = s->found;
    char *text = found->text;
    const size_t room = sizeof found->text;
    snprintf(text, room, "value: element %zu of %zu is ", found->element, s->numel);
    put_bits(s->call->dtype, s->result, found->element, text, room);
    snprintf(text + strlen(text), room - strlen(text), ", which no known order gives%s; contributions ",
             found->within_rounding ? ", though rounding could" : "");
    for (int rank = 0; rank < s->call->world_size; rank++) {
        snprintf(text + strlen(text), room - strlen(text), "%srank %d: ", rank > 0 ? ", " : "", rank);
        put_bits(s->call->dtype, s->inputs[rank], found->element, text, room);
    }
}

static void describe_parts(zb_explanation *found)
{
    char *text = found->text;
    const size_t room = sizeof found->text,
                 kept = found->part_count < ZB_EXPLAINED_PARTS ? found->part_count : ZB_EXPLAINED_PARTS;
    snprintf(text, room, "order: none that has a name, but");
    for (size_t i = 0; i < kept; i++) {
        const zb_explained_part *part = &found->parts[i];
        snprintf(text + strlen(text), room - strlen(text), "%s elements %zu to %zu are %s, %s",
                 i > 0 ? ";" : "", part->first, part->first + part->numel - 1, part->sum, part->rounding);
    }
    if (found->part_count > kept)
        snprintf(text + strlen(text), room - strlen(text), "; and %zu more parts", found->part_count - kept);
}

/* --- */

static zb_status explain(search *s, const zb_order_source *expected)
{
    int fits = 0;
    if (expected != NULL) ZB_TRY(try_source(s, expected, &fits));
    s->found->as_expected = fits;
    if (!fits) ZB_TRY(try_names(s, &fits));
    if (fits) {
        s->found->verdict = ZB_VERDICT_NAMED;
        snprintf(s->found->text, sizeof s->found->text, "order: as %s", s->found->source);
        return ZB_OK;
    }
    list_variants(s);
    ZB_TRY(make_probe(s));
    ZB_TRY(find_parts(s));
    if (s->found->verdict == ZB_VERDICT_VALUE) {
        s->found->within_rounding = is_within_rounding(s, s->found->element);
        describe_value(s);
    } else {
        describe_parts(s->found);
    }
    return ZB_OK;
}

zb_status zb_reduction_explain(const zb_reduction_call *call, const zb_order_source *expected,
                               const void *const *inputs, const void *result, zb_explanation *explanation_p)
{
    zb_reduction plain; /* also checks the call */
    ZB_TRY(zb_reduction_derive(&(zb_order_source){ 0 }, call, &plain));
    search s = { .call = call, .inputs = inputs, .result = result, .numel = plain.numel };
    zb_reduction_destroy(&plain);
    s.block = zb_alloc_array(LOOK, zb_dtype_bytes(call->dtype));
    s.found = zb_alloc(sizeof *s.found);
    zb_status status = s.block != NULL && s.found != NULL ? explain(&s, expected) : ZB_NO_MEMORY;
    if (status == ZB_OK) *explanation_p = *s.found;
    zb_reduction_destroy(&s.probe);
    zb_free(s.block);
    zb_free(s.found);
    return status;
}
