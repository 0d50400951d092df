/* What a call says without its data: sizes of its buffers, and whether two ranks' calls fit together. */
#include "sim/world.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/orders.h>

#include "orders/text.h"

static size_t sum_counts(const size_t *counts, int size)
{
    size_t sum = 0;
    for (int i = 0; i < size; i++) sum += counts[i];
    return sum;
}

size_t sim_reduced_numel(const zb_collective *call, int size)
{
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
    case ZB_COLLECTIVE_REDUCE:
        return call->numel;
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        return (size_t)size * call->numel;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        return sum_counts(call->counts, size);
    default:
        return 0;
    }
}

size_t sim_send_bytes(const zb_collective *call, int size, int index)
{
    size_t bytes = zb_dtype_bytes(call->dtype);
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_GATHER:
    case ZB_COLLECTIVE_SEND:
        return call->numel * bytes;
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_BROADCAST:
        return index == call->root ? call->numel * bytes : 0;
    default:
        return sim_reduced_numel(call, size) * bytes;
    }
}

size_t sim_recv_bytes(const zb_collective *call, int size, int index)
{
    size_t bytes = zb_dtype_bytes(call->dtype);
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
    case ZB_COLLECTIVE_REDUCE_SCATTER:
    case ZB_COLLECTIVE_BROADCAST:
    case ZB_COLLECTIVE_RECV:
        return call->numel * bytes;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        return call->counts[index] * bytes;
    case ZB_COLLECTIVE_ALL_GATHER:
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_REDUCE:
        return index == call->root ? call->numel * bytes : 0;
    default:
        return 0;
    }
}

size_t sim_result_bytes(const zb_collective *call, int size, int index, int async)
{
    size_t bytes = zb_dtype_bytes(call->dtype);
    switch ((int)call->kind) {
    case ZB_COLLECTIVE_ALL_GATHER:
        return (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return (size_t)size * (size_t)size * call->numel * bytes;
    case ZB_COLLECTIVE_BROADCAST:
    case ZB_COLLECTIVE_SEND:
    case ZB_COLLECTIVE_RECV:
        return call->numel * bytes;
    case ZB_COLLECTIVE_REDUCE:
        return async && index == call->root ? call->numel * bytes : 0;
    default:
        return async ? sim_reduced_numel(call, size) * bytes : 0;
    }
}

/* --- comparison --- */

static const char *kind_name(int kind)
{
    return kind == SIM_SPLIT ? "split" : zb_collective_name(kind);
}

/* Cut, with "...", where there is too much of it. */
static const char *describe_order(const zb_order_source *order, char *text, size_t text_bytes)
{
    static const zb_order_source rank = { 0 };
    zb_text to = { .text = text, .bytes = text_bytes };
    zb_text_put_source(&to, order != NULL ? order : &rank);
    if (to.used >= text_bytes) memcpy(text + text_bytes - 4, "...", 4);
    return text;
}

static int is_reduction(const zb_collective *call)
{
    return call->kind == ZB_COLLECTIVE_ALL_REDUCE || call->kind == ZB_COLLECTIVE_REDUCE ||
           call->kind == ZB_COLLECTIVE_REDUCE_SCATTER || call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
}

static int first_different_count(const size_t *a, const size_t *b, int size)
{
    if (a == b || memcmp(a, b, (size_t)size * sizeof *a) == 0) return -1;
    int i = 0;
    while (a[i] == b[i]) i++;
    return i;
}

int sim_signature_differs(const zb_collective *a, int rank_a, const zb_collective *b, int rank_b, int size,
                          char *text, size_t text_bytes)
{
#define DIFFERENCE(field, format, value_a, value_b)                                                          \
    return (snprintf(text, text_bytes, "%s differs: rank %d has " format ", rank %d has " format, field,     \
                     rank_a, value_a, rank_b, value_b),                                                      \
            1)
    int pair = a->kind == ZB_COLLECTIVE_SEND || a->kind == ZB_COLLECTIVE_RECV;
    if (a->kind != b->kind && !pair) DIFFERENCE("kind", "%s", kind_name(a->kind), kind_name(b->kind));
    if ((int)a->kind == SIM_SPLIT || a->kind == ZB_COLLECTIVE_BARRIER) return 0;
    if (a->dtype != b->dtype) DIFFERENCE("dtype", "%s", zb_dtype_name(a->dtype), zb_dtype_name(b->dtype));
    if (a->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V) {
        int i = first_different_count(a->counts, b->counts, size);
        char field[32];
        snprintf(field, sizeof field, "counts[%d]", i);
        if (i >= 0) DIFFERENCE(field, "%zu", a->counts[i], b->counts[i]);
    } else if (a->numel != b->numel) {
        DIFFERENCE("numel", "%zu", a->numel, b->numel);
    }
    if ((a->kind == ZB_COLLECTIVE_BROADCAST || a->kind == ZB_COLLECTIVE_REDUCE) && a->root != b->root)
        DIFFERENCE("root", "%d", a->root, b->root);
    if (!is_reduction(a)) return 0;
    if (a->op != b->op) DIFFERENCE("op", "%s", zb_redop_name(a->op), zb_redop_name(b->op));
    if (a->op == ZB_PREMUL_SUM && memcmp(&a->factor, &b->factor, sizeof a->factor) != 0)
        DIFFERENCE("factor", "%.17g", a->factor, b->factor);
    char order_a[320], order_b[320];
    if (!zb_order_source_equal(a->order, b->order))
        DIFFERENCE("order", "%s", describe_order(a->order, order_a, sizeof order_a),
                   describe_order(b->order, order_b, sizeof order_b));
    return 0;
#undef DIFFERENCE
}
