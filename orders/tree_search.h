/*
 * The search for the single tree that gives a result from some element on: over trees, starts and ways of
 * rounding, for the sum of all ranks or of some of them.
 */
#ifndef ZB_ORDERS_TREE_SEARCH_H
#define ZB_ORDERS_TREE_SEARCH_H

#include "orders/seen.h"

/* One way of rounding and scaling, and how to say it. */
typedef struct zb_way {
    zb_rounding rounding;
    zb_after after[ZB_AFTER_MAX];
    const char *words;
} zb_way;

enum { ZB_WAY_MAX = 16 };

/* A tree with its start and way of rounding. */
typedef struct zb_candidate {
    int way, tree, order, start;
} zb_candidate;

typedef struct zb_tree_search {
    const zb_seen *seen;
    zb_way ways[ZB_WAY_MAX];
    int way_count;
    int term_count; /* how many contributions are added */
    int tree_count;
    zb_reduction probe; /* all trees and orders; one range, which is set to what is tried */
} zb_tree_search;

/**
 * Over all ranks. Ways are those that come to what the call asks for. On failure nothing is left. seen must
 * outlive the search.
 */
zb_status zb_tree_search_create(const zb_seen *seen, zb_tree_search *search);
/** Over the ranks terms[0 .. term_count), which may be named twice; the sum is divided by `divisor`, and that
 * twice with `twice`; 0: as the call asks for. */
zb_status zb_tree_search_create_of(const zb_seen *seen, const int32_t *terms, int term_count, double divisor,
                                   int twice, zb_tree_search *search);
void zb_tree_search_destroy(zb_tree_search *search);

/** *best and *numel_p: what goes farthest from `at` on. Of equals the first; *best is untouched when there is
 * none. */
zb_status zb_tree_search_longest(zb_tree_search *search, size_t at, zb_candidate *best, size_t *numel_p);
/** How far the candidate goes from `at` on, up to `end`. */
zb_status zb_tree_search_fit(zb_tree_search *search, zb_candidate candidate, size_t at, size_t end,
                             size_t *numel_p);
/** What the candidate makes of element `at`, at the beginning of seen->finished. */
zb_status zb_tree_search_play(zb_tree_search *search, zb_candidate candidate, size_t at);
/** "(1 + 2) + 0" */
void zb_tree_search_describe(zb_tree_search *search, zb_candidate candidate, char *text, size_t text_bytes);
int zb_candidate_equal(zb_candidate a, zb_candidate b);

#endif
