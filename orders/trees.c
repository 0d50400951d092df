/* See trees.h. */
#include "orders/trees.h"

#include <zerobit/memory.h>

zb_status zb_tree_builder_create(int world_size, zb_tree_builder *builder_p)
{
    const size_t n = (size_t)world_size;
    zb_tree_builder builder = { .world_size = world_size, .node_count = world_size };
    builder.nodes = zb_alloc_array(2 * n - 1, sizeof *builder.nodes);
    if (builder.nodes != NULL) builder.scratch = zb_alloc_array(n, sizeof *builder.scratch);
    if (builder.scratch == NULL) {
        zb_tree_builder_destroy(&builder);
        return ZB_NO_MEMORY;
    }
    for (size_t i = 0; i < n; i++) builder.nodes[i] = (zb_tree_node){ .left = -1, .right = -1, .needs = 1 };
    *builder_p = builder;
    return ZB_OK;
}

void zb_tree_builder_destroy(zb_tree_builder *builder)
{
    zb_free(builder->nodes);
    zb_free(builder->scratch);
    *builder = (zb_tree_builder){ 0 };
}

int32_t zb_tree_add(zb_tree_builder *builder, int32_t a, int32_t b)
{
    ZB_ASSERT(a != b && builder->node_count < 2 * builder->world_size - 1);
    zb_tree_node *nodes = builder->nodes;
    const int b_first = nodes[b].needs > nodes[a].needs;
    zb_tree_node *sum = &nodes[builder->node_count];
    sum->left = b_first ? b : a;
    sum->right = b_first ? a : b;
    const int left = nodes[sum->left].needs, right = nodes[sum->right].needs;
    sum->needs = left > right ? left : right + 1;
    return builder->node_count++;
}

/* From the last number to the first: an addition, then all of its right side, then all of its left side. */
void zb_tree_write(const zb_tree_builder *builder, int32_t root, int32_t *tree)
{
    ZB_ASSERT(builder->node_count == 2 * builder->world_size - 1);
    int32_t *waiting = builder->scratch;
    int waiting_count = 0;
    waiting[waiting_count++] = root;
    for (int k = 2 * builder->world_size - 2; k >= 0; k--) {
        ZB_ASSERT(waiting_count > 0);
        const int32_t node = waiting[--waiting_count];
        tree[k] = node < builder->world_size ? node : ZB_TREE_ADD;
        if (tree[k] != ZB_TREE_ADD) continue;
        waiting[waiting_count++] = builder->nodes[node].left;
        waiting[waiting_count++] = builder->nodes[node].right;
    }
    ZB_ASSERT(waiting_count == 0);
}

void zb_tree_write_chain(int world_size, int32_t *tree)
{
    tree[0] = 0;
    for (int i = 1; i < world_size; i++) {
        tree[2 * i - 1] = i;
        tree[2 * i] = ZB_TREE_ADD;
    }
}

/* What each of the libraries' trees is made by: sums[k], to begin with contribution k, are combined until one
 * is left. */
typedef int32_t combine_function(zb_tree_builder *builder, int32_t *sums);

static zb_status write_tree(int world_size, combine_function *combine, int32_t *tree)
{
    zb_tree_builder builder;
    ZB_TRY(zb_tree_builder_create(world_size, &builder));
    int32_t *sums = zb_alloc_array((size_t)world_size, sizeof *sums);
    if (sums != NULL) {
        for (int k = 0; k < world_size; k++) sums[k] = k;
        zb_tree_write(&builder, combine(&builder, sums), tree);
    }
    zb_free(sums);
    zb_tree_builder_destroy(&builder);
    return sums != NULL ? ZB_OK : ZB_NO_MEMORY;
}

/* Leaves p, a power of two, of them. Returns p. */
static int fold(zb_tree_builder *builder, int32_t *sums)
{
    const int n = builder->world_size;
    int p = 1;
    while (p <= n / 2) p *= 2;
    const int pairs = n - p;
    for (int k = 0; k < pairs; k++) sums[k] = zb_tree_add(builder, sums[2 * k], sums[2 * k + 1]);
    for (int k = pairs; k < p; k++) sums[k] = sums[k + pairs];
    return p;
}

static int32_t combine_doubling(zb_tree_builder *builder, int32_t *sums)
{
    const int p = fold(builder, sums);
    for (int distance = 1; distance < p; distance *= 2)
        for (int k = 0; k < p; k += 2 * distance) sums[k] = zb_tree_add(builder, sums[k], sums[k + distance]);
    return sums[0];
}

static int32_t combine_halving(zb_tree_builder *builder, int32_t *sums)
{
    const int p = fold(builder, sums);
    for (int distance = p / 2; distance >= 1; distance /= 2)
        for (int k = 0; k < distance; k++) sums[k] = zb_tree_add(builder, sums[k], sums[k + distance]);
    return sums[0];
}

static int32_t combine_aligned(zb_tree_builder *builder, int32_t *sums)
{
    const int n = builder->world_size;
    for (int distance = 1; distance < n; distance *= 2)
        for (int k = 0; k + distance < n; k += 2 * distance)
            sums[k] = zb_tree_add(builder, sums[k], sums[k + distance]);
    return sums[0];
}

static int32_t combine_binary(zb_tree_builder *builder, int32_t *sums)
{
    const int n = builder->world_size;
    for (int k = n - 1; k >= 0; k--) {
        int distance = 1;
        while (distance <= (k + 1) / 2) distance *= 2;
        for (int child = 1; child <= 2 && k + child * distance < n; child++)
            sums[k] = zb_tree_add(builder, sums[k], sums[k + child * distance]);
    }
    return sums[0];
}

zb_status zb_tree_write_recursive(int world_size, int halving, int32_t *tree)
{
    return write_tree(world_size, halving ? combine_halving : combine_doubling, tree);
}
zb_status zb_tree_write_aligned(int world_size, int32_t *tree)
{
    return write_tree(world_size, combine_aligned, tree);
}
zb_status zb_tree_write_binary(int world_size, int32_t *tree)
{
    return write_tree(world_size, combine_binary, tree);
}
