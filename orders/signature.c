/* Comparing two ranks' calls; see signature.h. */
#include "orders/signature.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/orders.h>

#include "orders/text.h"

int zb_call_is_pair(int kind)
{
    return kind == ZB_COLLECTIVE_SEND || kind == ZB_COLLECTIVE_RECV;
}

int zb_call_is_reduction(int kind)
{
    return kind == ZB_COLLECTIVE_ALL_REDUCE || kind == ZB_COLLECTIVE_REDUCE ||
           kind == ZB_COLLECTIVE_REDUCE_SCATTER || kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
}

int zb_call_has_data(int kind)
{
    return kind != ZB_COLLECTIVE_BARRIER && kind != ZB_CALL_SPLIT;
}

int zb_call_has_root(int kind)
{
    return kind == ZB_COLLECTIVE_BROADCAST || kind == ZB_COLLECTIVE_REDUCE;
}

const char *zb_call_kind_name(int kind)
{
    return kind == ZB_CALL_SPLIT ? "split" : zb_collective_name((zb_collective_kind)kind);
}

const char *zb_call_short_path(const char *path)
{
    int slashes = 0;
    for (const char *c = path + strlen(path); c > path; c--)
        if (c[-1] == '/' && ++slashes == 2) return c;
    return path;
}

/* --- orders --- */

/* Cut, with "...", where there is too much of it. */
static const char *describe_order(const zb_call_side *side, char *text, size_t text_bytes)
{
    static const zb_order_source rank = { 0 };
    const zb_order_source *order = side->call->order != NULL ? side->call->order : &rank;
    zb_text to = { .text = text, .bytes = text_bytes };
    if (side->order != NULL)
        zb_text_put(&to, "%s", side->order);
    else
        zb_text_put_source(&to, order);
    if (to.used >= text_bytes) memcpy(text + text_bytes - 4, "...", 4);
    return text;
}

static int orders_equal(const zb_call_side *a, const zb_call_side *b)
{
    if (a->order != NULL && b->order != NULL) return strcmp(a->order, b->order) == 0;
    return zb_order_source_equal(a->call->order, b->call->order);
}

/* --- comparison --- */

static int first_different_count(const size_t *a, const size_t *b, int count)
{
    if (a == b || memcmp(a, b, (size_t)count * sizeof *a) == 0) return -1;
    int i = 0;
    while (a[i] == b[i]) i++;
    return i;
}

int zb_calls_differ(const zb_call_side *side_a, const zb_call_side *side_b, int world_size, char *text,
                    size_t text_bytes)
{
#define DIFFERENCE(field, format, value_a, value_b)                                                          \
    return (snprintf(text, text_bytes, "%s differs: rank %d has " format ", rank %d has " format, field,     \
                     side_a->rank, value_a, side_b->rank, value_b),                                          \
            1)
    const zb_collective *a = side_a->call, *b = side_b->call;
    const int kind = (int)a->kind;
    if (a->kind != b->kind && !zb_call_is_pair(kind))
        DIFFERENCE("kind", "%s", zb_call_kind_name(kind), zb_call_kind_name((int)b->kind));
    if (!zb_call_has_data(kind)) return 0;
    if (a->dtype != b->dtype) DIFFERENCE("dtype", "%s", zb_dtype_name(a->dtype), zb_dtype_name(b->dtype));
    if (kind == ZB_COLLECTIVE_REDUCE_SCATTER_V) {
        const int i = first_different_count(a->counts, b->counts, world_size);
        char field[32];
        snprintf(field, sizeof field, "counts[%d]", i);
        if (i >= 0) DIFFERENCE(field, "%zu", a->counts[i], b->counts[i]);
    } else if (a->numel != b->numel) {
        DIFFERENCE("numel", "%zu", a->numel, b->numel);
    }
    if (zb_call_has_root(kind) && a->root != b->root) DIFFERENCE("root", "%d", a->root, b->root);
    if (!zb_call_is_reduction(kind)) return 0;
    if (a->op != b->op) DIFFERENCE("op", "%s", zb_redop_name(a->op), zb_redop_name(b->op));
    if (a->op == ZB_PREMUL_SUM && memcmp(&a->factor, &b->factor, sizeof a->factor) != 0)
        DIFFERENCE("factor", "%.17g", a->factor, b->factor);
    char order_a[320], order_b[320];
    if (!orders_equal(side_a, side_b))
        DIFFERENCE("order", "%s", describe_order(side_a, order_a, sizeof order_a),
                   describe_order(side_b, order_b, sizeof order_b));
    return 0;
#undef DIFFERENCE
}
