/*
 * Trees of additions, put together the way a library's code adds, and written out in postfix notation.
 *
 * A node is a number: 0 .. world_size - 1 are the contributions, each addition makes the next one.
 */
#ifndef ZB_ORDERS_TREES_H
#define ZB_ORDERS_TREES_H

#include <zerobit/reduction.h>

typedef struct zb_tree_node {
    int32_t left, right; /* of an addition */
    int32_t needs;       /* how many sums wait at most while it is computed */
} zb_tree_node;

typedef struct zb_tree_builder {
    int world_size, node_count;
    zb_tree_node *nodes; /* [2 world_size - 1] */
    int32_t *scratch;    /* [world_size] */
} zb_tree_builder;

zb_status zb_tree_builder_create(int world_size, zb_tree_builder *builder_p);
void zb_tree_builder_destroy(zb_tree_builder *builder);
/** a + b, both not yet part of another sum. */
int32_t zb_tree_add(zb_tree_builder *builder, int32_t a, int32_t b);
/** tree: [2 world_size - 1], from the sum of everything. */
void zb_tree_write(const zb_tree_builder *builder, int32_t root, int32_t *tree);

/* --- the shapes that several libraries have; `tree` is [2 world_size - 1] --- */

/** ((0 + 1) + 2) + ... */
void zb_tree_write_chain(int world_size, int32_t *tree);
/**
 * With r = world_size - p, p the largest power of two within it: neighbours among the first 2 r are added,
 * which leaves p; then those at distance 1, 2, 4, .. or, with halving, .., 4, 2, 1.
 */
zb_status zb_tree_write_recursive(int world_size, int halving, int32_t *tree);
/** Neighbours at distance 1, 2, 4, .. of a power of two are added where both exist. */
zb_status zb_tree_write_aligned(int world_size, int32_t *tree);
/** k adds itself, then the sums of k + d and of k + 2 d, where they exist; d is the largest power of two
 * within k + 1. */
zb_status zb_tree_write_binary(int world_size, int32_t *tree);

#endif
