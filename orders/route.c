/* Routes of gradients: freed, and compared element by element. */
#include <zerobit/route.h>

#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

void zb_route_destroy(zb_route *route)
{
    for (size_t i = 0; i < route->count; i++) {
        zb_route_collective *collective = &route->collectives[i];
        zb_free((void *)collective->call.counts);
        zb_free(collective->pieces);
        zb_reduction_destroy(&collective->reduction);
    }
    zb_free(route->collectives);
    zb_reduction_destroy(&route->sum_fp32);
    zb_reduction_destroy(&route->sum_fp64);
    *route = (zb_route){ 0 };
}

/* --- trees, in ranks --- */

/* A sum of ranks in postfix notation, and the smallest rank in it. */
typedef struct sum {
    int begin, length, smallest;
} sum;

typedef struct comparison {
    int world_size;
    int32_t *tree[2]; /* [2 world_size - 1] of either side, in ranks, operands ordered where they may change
                         places */
    int32_t *scratch; /* [2 world_size - 1] */
} comparison;

static void swap_operands(int32_t *tree, int32_t *scratch, sum left, sum right)
{
    memcpy(scratch, tree + left.begin, (size_t)left.length * sizeof *tree);
    memmove(tree + left.begin, tree + right.begin, (size_t)right.length * sizeof *tree);
    memcpy(tree + left.begin + right.length, scratch, (size_t)left.length * sizeof *tree);
}

/* Of equal sums one is written: the operand with the smallest rank comes first. A fused step rounds its two
 * operands at different times, so that there they stay as they are. */
static void write_tree(const zb_reduction *reduction, const zb_reduction_range *range, int32_t *tree,
                       int32_t *scratch)
{
    const int32_t *positions = zb_reduction_tree(reduction, range);
    const zb_scaling scaling = reduction->rounding.scaling;
    const int commutes = scaling != ZB_SCALING_FUSED && scaling != ZB_SCALING_FUSED_LL128;
    sum open[ZB_TREE_DEPTH];
    int count = 0;
    for (int k = 0; k < 2 * reduction->world_size - 1; k++) {
        if (positions[k] != ZB_TREE_ADD) {
            const int rank = zb_reduction_rank(reduction, range, positions[k]);
            tree[k] = rank;
            open[count++] = (sum){ .begin = k, .length = 1, .smallest = rank };
            continue;
        }
        const sum right = open[--count], left = open[count - 1];
        const int turns = commutes && right.smallest < left.smallest;
        if (turns) swap_operands(tree, scratch, left, right);
        tree[k] = ZB_TREE_ADD;
        open[count - 1] = (sum){ .begin = left.begin,
                                 .length = left.length + right.length + 1,
                                 .smallest = turns ? right.smallest : left.smallest };
    }
}

static int rounding_equal(const zb_reduction *a, const zb_reduction *b)
{
    const zb_rounding *x = &a->rounding, *y = &b->rounding;
    return a->dtype == b->dtype && !x->wide == !y->wide && x->scaling == y->scaling &&
           (x->scaling == ZB_SCALING_NONE || x->factor == y->factor) && x->divisor == y->divisor &&
           !x->canonical_nan == !y->canonical_nan;
}

/* Where LL128 counts from, as far as it matters. */
static size_t pack_place(const zb_reduction_range *range, size_t element)
{
    return (element - range->first) % (60 * 16 / sizeof(float));
}

/* --- sweeping over both --- */

/* A piece, with the collective that it is in. */
typedef struct place {
    const zb_route_collective *collective;
    zb_route_piece piece;
} place;

static int by_element(const void *a_pointer, const void *b_pointer)
{
    const zb_route_piece *a = &((const place *)a_pointer)->piece, *b = &((const place *)b_pointer)->piece;
    if (a->param != b->param) return a->param < b->param ? -1 : 1;
    return a->first < b->first ? -1 : a->first > b->first;
}

static zb_status list_places(const zb_route *route, place **places_p, size_t *count_p)
{
    size_t count = 0;
    for (size_t i = 0; i < route->count; i++) count += route->collectives[i].piece_count;
    place *places = zb_alloc_array(count, sizeof *places);
    if (places == NULL) return ZB_NO_MEMORY;
    *count_p = 0;
    for (size_t i = 0; i < route->count; i++)
        for (size_t k = 0; k < route->collectives[i].piece_count; k++)
            places[(*count_p)++] = (place){ &route->collectives[i], route->collectives[i].pieces[k] };
    qsort(places, count, sizeof *places, by_element);
    *places_p = places;
    return ZB_OK;
}

/* How many elements, from `first` of the parameter on, lie in one range of their collective. */
static size_t same_range(const place *p, size_t first, size_t numel, const zb_reduction_range **range_p,
                         size_t *element_p)
{
    *element_p = p->piece.at + (first - p->piece.first);
    *range_p = zb_reduction_range_of(&p->collective->reduction, *element_p);
    const size_t in_piece = p->piece.first + p->piece.numel - first;
    const size_t in_range = (*range_p)->first + (*range_p)->numel - *element_p;
    if (in_piece < numel) numel = in_piece;
    return in_range < numel ? in_range : numel;
}

static int ranges_add_alike(comparison *c, const place *a, const zb_reduction_range *range_a, const place *b,
                            const zb_reduction_range *range_b)
{
    const zb_reduction *x = &a->collective->reduction, *y = &b->collective->reduction;
    if (!rounding_equal(x, y)) return 0;
    write_tree(x, range_a, c->tree[0], c->scratch);
    write_tree(y, range_b, c->tree[1], c->scratch);
    return memcmp(c->tree[0], c->tree[1], (2 * (size_t)c->world_size - 1) * sizeof *c->tree[0]) == 0;
}

static int places_add_alike(comparison *c, const place *a, size_t a_count, const place *b, size_t b_count)
{
    size_t i = 0, k = 0, done = 0; /* elements of a[i] that have been compared */
    while (i < a_count && k < b_count) {
        const zb_reduction_range *range_a, *range_b;
        size_t element_a, element_b;
        const size_t first = a[i].piece.first + done;
        if (a[i].piece.param != b[k].piece.param || first < b[k].piece.first) return 0;
        size_t numel = same_range(&a[i], first, SIZE_MAX, &range_a, &element_a);
        numel = same_range(&b[k], first, numel, &range_b, &element_b);
        if (!ranges_add_alike(c, &a[i], range_a, &b[k], range_b)) return 0;
        if (a[i].collective->reduction.rounding.scaling == ZB_SCALING_FUSED_LL128 &&
            pack_place(range_a, element_a) != pack_place(range_b, element_b))
            return 0;
        done += numel;
        if (first + numel == b[k].piece.first + b[k].piece.numel) k++;
        if (done == a[i].piece.numel) {
            done = 0;
            i++;
        }
    }
    return i == a_count && k == b_count;
}

static zb_status compare(const zb_route *a, const zb_route *b, comparison *c, int *alike_p)
{
    const size_t length = 2 * (size_t)c->world_size - 1;
    place *places_a = NULL, *places_b = NULL;
    size_t a_count = 0, b_count = 0;
    c->tree[0] = zb_alloc_array(3 * length, sizeof *c->tree[0]);
    zb_status status = c->tree[0] != NULL ? list_places(a, &places_a, &a_count) : ZB_NO_MEMORY;
    if (status == ZB_OK) status = list_places(b, &places_b, &b_count);
    if (status == ZB_OK) {
        c->tree[1] = c->tree[0] + length;
        c->scratch = c->tree[1] + length;
        *alike_p = places_add_alike(c, places_a, a_count, places_b, b_count);
    }
    zb_free(places_a);
    zb_free(places_b);
    zb_free(c->tree[0]);
    return status;
}

zb_status zb_routes_add_alike(const zb_route *a, const zb_route *b, int *alike_p)
{
    ZB_ASSERT(a->world_size == b->world_size);
    comparison c = { .world_size = a->world_size };
    return compare(a, b, &c, alike_p);
}
