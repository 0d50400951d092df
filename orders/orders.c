/* The sources of all kinds of reduction: as text and back, looked up, compared. */
#include <zerobit/orders.h>

#include <ctype.h>
#include <string.h>
#include <zerobit/memory.h>

#include "orders/text.h"

static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER,
                                            ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE };
static const zb_order_source rank = { 0 };
enum { KIND_COUNT = sizeof kinds / sizeof kinds[0] };

/* --- comparing, looking up --- */

int zb_order_source_equal(const zb_order_source *a, const zb_order_source *b)
{
    if (a == NULL) a = &rank;
    if (b == NULL) b = &rank;
    const size_t n = (size_t)a->world_size;
    if (a == b) return 1;
    return a->algorithm == b->algorithm && a->version == b->version && a->protocol == b->protocol &&
           a->channels == b->channels && a->used_channels == b->used_channels && a->threads == b->threads &&
           a->chunk_bytes == b->chunk_bytes && a->fusion == b->fusion && a->world_size == b->world_size &&
           a->ring_count == b->ring_count && a->tree_count == b->tree_count &&
           (a->ring_count == 0 ||
            memcmp(a->rings, b->rings, (size_t)a->ring_count * n * sizeof *a->rings) == 0) &&
           (a->tree_count == 0 ||
            memcmp(a->trees, b->trees, (size_t)a->tree_count * n * sizeof *a->trees) == 0);
}

const zb_order_source *zb_orders_source(const zb_orders *orders, zb_collective_kind kind)
{
    if (orders == NULL || orders->of[kind].algorithm == ZB_ALGORITHM_RANK) return NULL;
    return &orders->of[kind];
}

int zb_orders_equal(const zb_orders *a, const zb_orders *b)
{
    for (int k = 0; k < KIND_COUNT; k++)
        if (!zb_order_source_equal(zb_orders_source(a, kinds[k]), zb_orders_source(b, kinds[k]))) return 0;
    return 1;
}

void zb_orders_destroy(zb_orders *orders)
{
    for (int k = 0; k < ZB_COLLECTIVE_COUNT; k++) zb_order_source_destroy(&orders->of[k]);
}

/* --- reading --- */

/* The text from *at up to a semicolon or the end, without blanks around it; *at goes behind it. */
static char *next_part(const char **at)
{
    while (isspace((unsigned char)**at)) ++*at;
    const char *begin = *at;
    size_t length = strcspn(begin, ";");
    *at = begin + length + (begin[length] == ';');
    while (length > 0 && isspace((unsigned char)begin[length - 1])) length--;
    char *part = zb_alloc(length + 1);
    if (part != NULL) memcpy(part, begin, length);
    return part;
}

static zb_status read_for_all(const char *text, zb_orders *orders)
{
    for (int k = 0; k < KIND_COUNT; k++) ZB_TRY(zb_order_source_parse(text, &orders->of[kinds[k]]));
    return ZB_OK;
}

static zb_status read_for_kind(const char *part, size_t name_length, zb_orders *orders, unsigned *seen)
{
    for (int k = 0; k < KIND_COUNT; k++) {
        const char *name = zb_collective_name(kinds[k]);
        if (strlen(name) != name_length || memcmp(part, name, name_length) != 0) continue;
        if (*seen >> k & 1) return zb_fail(ZB_INVALID_ARGUMENT, "the order of %s is given twice", name);
        *seen |= 1u << k;
        return zb_order_source_parse(part + name_length + 1, &orders->of[kinds[k]]);
    }
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "the order of \"%.*s\"; want all_reduce, reduce_scatter, reduce_scatter_v or reduce",
                   (int)(name_length < 80 ? name_length : 80), part);
}

static zb_status read_orders(const char *text, zb_orders *orders)
{
    if (strchr(text, ':') == NULL) return read_for_all(text, orders);
    unsigned seen = 0;
    while (*text != '\0') {
        char *part = next_part(&text);
        if (part == NULL) return ZB_NO_MEMORY;
        const char *colon = strchr(part, ':');
        zb_status status = ZB_OK;
        if (colon != NULL)
            status = read_for_kind(part, (size_t)(colon - part), orders, &seen);
        else if (*part != '\0')
            status = zb_fail(ZB_INVALID_ARGUMENT, "\"%.80s\" among the orders; want COLLECTIVE: ORDER", part);
        zb_free(part);
        ZB_TRY(status);
    }
    return ZB_OK;
}

zb_status zb_orders_parse(const char *text, zb_orders *orders_p)
{
    zb_orders orders = { 0 };
    const zb_status status = read_orders(text, &orders);
    if (status == ZB_OK)
        *orders_p = orders;
    else
        zb_orders_destroy(&orders);
    return status;
}

/* --- writing --- */

static int is_one_for_all(const zb_orders *orders)
{
    for (int k = 1; k < KIND_COUNT; k++)
        if (!zb_order_source_equal(&orders->of[kinds[0]], &orders->of[kinds[k]])) return 0;
    return 1;
}

static void put_orders(zb_text *to, const zb_orders *orders)
{
    if (orders == NULL || is_one_for_all(orders)) {
        zb_text_put_source(to, orders != NULL ? &orders->of[kinds[0]] : &rank);
        return;
    }
    for (int k = 0; k < KIND_COUNT; k++) {
        const zb_order_source *source = zb_orders_source(orders, kinds[k]);
        if (source == NULL) continue;
        zb_text_put(to, "%s%s: ", to->used > 0 ? "; " : "", zb_collective_name(kinds[k]));
        zb_text_put_source(to, source);
    }
}

char *zb_orders_text(const zb_orders *orders)
{
    zb_text to = { 0 };
    put_orders(&to, orders);
    char *text = zb_alloc(to.used + 1);
    if (text == NULL) return NULL;
    to = (zb_text){ .text = text, .bytes = to.used + 1 };
    put_orders(&to, orders);
    return text;
}

void zb_orders_describe(const zb_orders *orders, char *text, size_t text_bytes)
{
    ZB_ASSERT(text_bytes > 4);
    zb_text to = { .text = text, .bytes = text_bytes };
    put_orders(&to, orders);
    if (to.used >= text_bytes) memcpy(text + text_bytes - 4, "...", 4);
}

zb_status zb_orders_copy(const zb_orders *from, zb_orders *to)
{
    if (from == NULL) return ZB_OK;
    char *text = zb_orders_text(from);
    if (text == NULL) return ZB_NO_MEMORY;
    const zb_status status = zb_orders_parse(text, to);
    zb_free(text);
    return status;
}
