/* See tree_search.h. */
#include "orders/tree_search.h"

#include <math.h>
#include <zerobit/memory.h>

#include "kernels/half.h"
#include "orders/record.h"
#include "orders/trees.h"

typedef enum tree_index { CHAIN, DOUBLING, HALVING, ALIGNED, BINARY, TREE_COUNT } tree_index;
enum { ASCENDING, DESCENDING, ORDER_COUNT };
enum { ENOUGH = 64 }; /* elements: so many do not meet one way of rounding and another order by chance */

/* --- ways of rounding --- */

static int is_half(zb_dtype dtype)
{
    return dtype == ZB_FP16 || dtype == ZB_BF16;
}

/* As a library has it that takes the factor for a number of the element type. */
static double rounded_to(zb_dtype dtype, double factor)
{
    if (dtype == ZB_FP16) return (double)zb_float_from_fp16(zb_fp16_from_float((float)factor));
    if (dtype == ZB_BF16) return (double)zb_float_from_bf16(zb_bf16_from_float((float)factor));
    return factor;
}

static void add_way(zb_tree_search *s, zb_rounding rounding, zb_after first, zb_after second,
                    const char *words)
{
    ZB_ASSERT(s->way_count < ZB_WAY_MAX);
    s->ways[s->way_count++] = (zb_way){ rounding, { first, second }, words };
}

/* The sum divided by d, wherever that is done. `then` is what comes after it all. */
static void list_divisions(zb_tree_search *s, double d, zb_after then)
{
    const zb_dtype dtype = s->seen->call->dtype;
    int exponent;
    const int half = is_half(dtype), is_reciprocal_exact = frexp(d, &exponent) == 0.5;
    const double factor = rounded_to(dtype, 1 / d);
    const zb_after none = { 0 }, divide = { ZB_FACTOR_DIVIDE, d }, multiply = { ZB_FACTOR_MULTIPLY, 1 / d };
    add_way(s, (zb_rounding){ .wide = half, .divisor = d }, none, then,
            half ? "rounded once, after the division" : "then divided");
    if (half) {
        add_way(s, (zb_rounding){ .divisor = d }, none, then, "each addition rounded, then divided");
        add_way(s, (zb_rounding){ .wide = 1 }, divide, then, "rounded once, then divided");
    }
    add_way(s, (zb_rounding){ .scaling = ZB_SCALING_FUSED, .factor = factor }, none, then,
            "contributions multiplied, fused");
    add_way(s, (zb_rounding){ .scaling = ZB_SCALING_MULTIPLY, .factor = factor }, none, then,
            "contributions multiplied");
    add_way(s, (zb_rounding){ .scaling = ZB_SCALING_DIVIDE, .factor = d }, none, then,
            "contributions divided");
    if (half) {
        add_way(s, (zb_rounding){ .wide = 1, .scaling = ZB_SCALING_MULTIPLY, .factor = 1 / d }, none, then,
                "contributions multiplied, rounded once");
        add_way(s, (zb_rounding){ .wide = 1, .scaling = ZB_SCALING_DIVIDE, .factor = d }, none, then,
                "contributions divided, rounded once");
    }
    if (is_reciprocal_exact) return;
    add_way(s, (zb_rounding){ 0 }, multiply, then,
            half ? "each addition rounded, then multiplied by the reciprocal"
                 : "then multiplied by the reciprocal");
    if (half)
        add_way(s, (zb_rounding){ .wide = 1 }, multiply, then,
                "rounded once, then multiplied by the reciprocal");
}

/* The sum multiplied by f, likewise. */
static void list_multiplications(zb_tree_search *s, double f, zb_after then)
{
    const zb_dtype dtype = s->seen->call->dtype;
    const int half = is_half(dtype), whole = zb_seen_is_whole(dtype);
    const zb_after none = { 0 }, multiply = { ZB_FACTOR_MULTIPLY, f }, divide = { ZB_FACTOR_DIVIDE, 1 / f };
    add_way(s, (zb_rounding){ .scaling = ZB_SCALING_MULTIPLY, .factor = f }, none, then,
            "contributions multiplied");
    if (whole) return;
    if (half)
        add_way(s, (zb_rounding){ .wide = 1, .scaling = ZB_SCALING_MULTIPLY, .factor = f }, none, then,
                "contributions multiplied, rounded once");
    add_way(s, (zb_rounding){ .scaling = ZB_SCALING_FUSED, .factor = rounded_to(dtype, f) }, none, then,
            "contributions multiplied, fused");
    add_way(s, (zb_rounding){ 0 }, multiply, then,
            half ? "each addition rounded, then multiplied" : "then multiplied");
    if (half) add_way(s, (zb_rounding){ .wide = 1 }, multiply, then, "rounded once, then multiplied");
    if (f == 0) return;
    add_way(s, (zb_rounding){ 0 }, divide, then,
            half ? "each addition rounded, then divided" : "then divided");
    if (half) add_way(s, (zb_rounding){ .wide = 1 }, divide, then, "rounded once, then divided");
}

static void list_ways(zb_tree_search *s)
{
    const zb_reduction_call *call = s->seen->call;
    const zb_after none = { 0 }, after = s->seen->after;
    const int half = is_half(call->dtype);
    if (call->op == ZB_AVG) {
        list_divisions(s, call->world_size, after);
    } else if (call->op == ZB_PREMUL_SUM) {
        list_multiplications(s, call->factor, after);
    } else if (after.kind == ZB_FACTOR_DIVIDE) {
        list_divisions(s, after.by, none);
    } else if (after.kind == ZB_FACTOR_MULTIPLY) {
        list_multiplications(s, after.by, none);
    } else {
        add_way(s, (zb_rounding){ 0 }, none, none, "each addition rounded");
        if (half) add_way(s, (zb_rounding){ .wide = 1 }, none, none, "rounded once");
    }
}

/* Of a sum that is divided by something else than it should be. */
static void list_wrong_ways(zb_tree_search *s, double divisor, int twice)
{
    const zb_after none = { 0 }, divide = { ZB_FACTOR_DIVIDE, divisor },
                   multiply = { ZB_FACTOR_MULTIPLY, 1 / divisor };
    const int half = is_half(s->seen->call->dtype);
    for (int wide = half; wide >= 0; wide--) {
        const char *rounded = !half  ? "each addition rounded"
                              : wide ? "rounded once"
                                     : "each addition rounded";
        if (divisor == 1) {
            add_way(s, (zb_rounding){ .wide = wide }, none, none, rounded);
            continue;
        }
        if (wide && !twice)
            add_way(s, (zb_rounding){ .wide = 1, .divisor = divisor }, none, none,
                    "rounded once, after the division");
        add_way(s, (zb_rounding){ .wide = wide }, divide, twice ? divide : none, rounded);
        add_way(s, (zb_rounding){ .wide = wide }, multiply, twice ? multiply : none, rounded);
        add_way(s, (zb_rounding){ .wide = wide, .divisor = divisor }, twice ? divide : none, none, rounded);
        if (!wide)
            add_way(s, (zb_rounding){ .scaling = ZB_SCALING_DIVIDE, .factor = divisor },
                    twice ? divide : none, none, "contributions divided");
    }
}

/* --- trees --- */

/* The tree without the positions that `kept` lacks, the others counted anew. An addition stays where both of
 * its sides have something left. */
static void prune(const int32_t *tree, int world_size, const unsigned char *kept, int32_t *pruned)
{
    unsigned char has[ZB_TREE_DEPTH];
    int open = 0, length = 0;
    for (int k = 0; k < 2 * world_size - 1; k++) {
        if (tree[k] != ZB_TREE_ADD) {
            int32_t position = 0;
            for (int p = 0; p < tree[k]; p++) position += kept[p];
            has[open] = kept[tree[k]];
            if (has[open++]) pruned[length++] = position;
            continue;
        }
        open--;
        if (has[open] && has[open - 1]) pruned[length++] = ZB_TREE_ADD;
        has[open - 1] = has[open] || has[open - 1];
    }
}

/* Where some ranks are missing and none is there twice: the trees of all ranks, without these. */
static zb_status add_pruned_trees(zb_tree_search *s, const int32_t *terms)
{
    const int n = s->seen->call->world_size;
    unsigned char *kept = zb_alloc((size_t)n);
    int32_t *tree = zb_alloc_array(2 * (size_t)n - 1, sizeof *tree);
    zb_status status = kept != NULL && tree != NULL ? ZB_OK : ZB_NO_MEMORY;
    for (int i = 0; kept != NULL && i < s->term_count; i++) kept[terms[i]] = 1;
    for (int t = DOUBLING; t <= BINARY && status == ZB_OK; t++) {
        if (t == DOUBLING || t == HALVING)
            status = zb_tree_write_recursive(n, t == HALVING, tree);
        else
            status = t == ALIGNED ? zb_tree_write_aligned(n, tree) : zb_tree_write_binary(n, tree);
        if (status == ZB_OK) prune(tree, n, kept, zb_reduction_tree_at(&s->probe, s->tree_count++));
    }
    zb_free(kept);
    zb_free(tree);
    return status;
}

static int is_ascending(const int32_t *terms, int term_count)
{
    for (int i = 1; i < term_count; i++)
        if (terms[i] <= terms[i - 1]) return 0;
    return 1;
}

static zb_status make_probe(zb_tree_search *s, const int32_t *terms)
{
    zb_reduction *probe = &s->probe;
    const int m = s->term_count, prunes = m < s->seen->call->world_size && is_ascending(terms, m);
    ZB_TRY(zb_reduction_create(m, s->seen->call->dtype, prunes ? 2 * TREE_COUNT - 1 : TREE_COUNT, ORDER_COUNT,
                               probe));
    s->tree_count = TREE_COUNT;
    zb_tree_write_chain(m, zb_reduction_tree_at(probe, CHAIN));
    ZB_TRY(zb_tree_write_recursive(m, 0, zb_reduction_tree_at(probe, DOUBLING)));
    ZB_TRY(zb_tree_write_recursive(m, 1, zb_reduction_tree_at(probe, HALVING)));
    ZB_TRY(zb_tree_write_aligned(m, zb_reduction_tree_at(probe, ALIGNED)));
    ZB_TRY(zb_tree_write_binary(m, zb_reduction_tree_at(probe, BINARY)));
    for (int i = 0; i < m; i++) {
        zb_reduction_order_at(probe, ASCENDING)[i] = terms[i];
        zb_reduction_order_at(probe, DESCENDING)[i] = terms[m - 1 - i];
    }
    if (prunes) ZB_TRY(add_pruned_trees(s, terms));
    return zb_reduction_append(probe, s->seen->numel, 0, 0, 0);
}

zb_status zb_tree_search_create_of(const zb_seen *seen, const int32_t *terms, int term_count, double divisor,
                                   int twice, zb_tree_search *search)
{
    zb_tree_search made = { .seen = seen, .term_count = term_count };
    if (divisor == 0)
        list_ways(&made);
    else
        list_wrong_ways(&made, divisor, twice);
    const zb_status status = make_probe(&made, terms);
    if (status == ZB_OK)
        *search = made;
    else
        zb_tree_search_destroy(&made);
    return status;
}

zb_status zb_tree_search_create(const zb_seen *seen, zb_tree_search *search)
{
    const int n = seen->call->world_size;
    int32_t *all = zb_alloc_array((size_t)n, sizeof *all);
    if (all == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < n; rank++) all[rank] = rank;
    const zb_status status = zb_tree_search_create_of(seen, all, n, 0, 0, search);
    zb_free(all);
    return status;
}

void zb_tree_search_destroy(zb_tree_search *search)
{
    zb_reduction_destroy(&search->probe);
}

/* --- trying --- */

int zb_candidate_equal(zb_candidate a, zb_candidate b)
{
    return a.way == b.way && a.tree == b.tree && a.order == b.order && a.start == b.start;
}

static void set_probe(zb_tree_search *s, zb_candidate c)
{
    zb_reduction_range *range = &s->probe.ranges[0];
    range->tree = c.tree;
    range->order = c.order;
    range->start = c.start;
    s->probe.rounding = s->ways[c.way].rounding;
}

zb_status zb_tree_search_fit(zb_tree_search *s, zb_candidate c, size_t at, size_t end, size_t *numel_p)
{
    set_probe(s, c);
    return zb_seen_fit(s->seen, &s->probe, s->ways[c.way].after, at, end, numel_p);
}

zb_status zb_tree_search_play(zb_tree_search *s, zb_candidate c, size_t at)
{
    set_probe(s, c);
    return zb_seen_play(s->seen, &s->probe, s->ways[c.way].after, at, 1);
}

void zb_tree_search_describe(zb_tree_search *s, zb_candidate c, char *text, size_t text_bytes)
{
    set_probe(s, c);
    zb_reduction_describe(&s->probe, &s->probe.ranges[0], text, text_bytes);
}

/* `best` and how far it goes, when `c` goes farther. First where the best has ended: whoever fails there as
 * well needs no other look. */
static zb_status try_candidate(zb_tree_search *s, zb_candidate c, size_t at, zb_candidate *best,
                               size_t *best_numel)
{
    const size_t end = s->seen->numel, place = at + *best_numel;
    size_t numel;
    if (place == end) return ZB_OK;
    if (*best_numel > 0) {
        ZB_TRY(zb_tree_search_fit(s, c, place, place + 1, &numel));
        if (numel == 0) return ZB_OK;
    }
    ZB_TRY(zb_tree_search_fit(s, c, at, end, &numel));
    if (numel > *best_numel) {
        *best = c;
        *best_numel = numel;
    }
    return ZB_OK;
}

static zb_status try_way(zb_tree_search *s, int way, size_t at, zb_candidate *best, size_t *best_numel)
{
    for (int order = ASCENDING; order <= DESCENDING; order++)
        for (int start = 0; start < s->term_count; start++)
            ZB_TRY(try_candidate(s, (zb_candidate){ way, CHAIN, order, start }, at, best, best_numel));
    for (int tree = DOUBLING; tree < s->tree_count; tree++)
        ZB_TRY(try_candidate(s, (zb_candidate){ way, tree, ASCENDING, 0 }, at, best, best_numel));
    return ZB_OK;
}

zb_status zb_tree_search_longest(zb_tree_search *s, size_t at, zb_candidate *best, size_t *best_numel)
{
    const int likely = best->way; /* that of the part before */
    *best_numel = 0;
    if (likely >= 0) {
        ZB_TRY(try_way(s, likely, at, best, best_numel));
        if (*best_numel >= ENOUGH) return ZB_OK;
    }
    for (int way = 0; way < s->way_count && at + *best_numel < s->seen->numel; way++)
        if (way != likely) ZB_TRY(try_way(s, way, at, best, best_numel));
    return ZB_OK;
}
