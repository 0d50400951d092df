/* Calls on their way to other ranks; see call_record.h. */
#include "engine/call_record.h"

#include <stdio.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>

#include "orders/signature.h"

static zb_status write_order(const zb_order_source *order, char *text, size_t text_bytes)
{
    if (order == NULL) {
        snprintf(text, text_bytes, "rank");
        return ZB_OK;
    }
    char *whole = zb_order_source_text(order);
    if (whole == NULL) return ZB_NO_MEMORY;
    snprintf(text, text_bytes, "%s", whole);
    zb_free(whole);
    return ZB_OK;
}

zb_status zb_call_record_write(const zb_collective *c, int world_rank, uint64_t sequence,
                               zb_call_record *record)
{
    *record = (zb_call_record){ .world_rank = world_rank,
                                .kind = (int)c->kind,
                                .dtype = (int)c->dtype,
                                .op = (int)c->op,
                                .root = c->root,
                                .line = c->line,
                                .numel = c->numel,
                                .sequence = sequence,
                                .factor = c->factor };
    snprintf(record->what, sizeof record->what, "%s", c->what != NULL ? c->what : "");
    snprintf(record->file, sizeof record->file, "%s", c->file != NULL ? zb_call_short_path(c->file) : "");
    if (!zb_call_is_reduction((int)c->kind)) return ZB_OK;
    return write_order(c->order, record->order, sizeof record->order);
}

void zb_call_record_describe(const zb_call_record *record, const char *group_name, char *text,
                             size_t text_bytes)
{
    char what[80] = "", place[96] = "";
    if (record->what[0] != '\0') snprintf(what, sizeof what, " (%s)", record->what);
    if (record->file[0] != '\0') snprintf(place, sizeof place, " at %s:%d", record->file, (int)record->line);
    if (zb_call_is_pair(record->kind))
        snprintf(text, text_bytes, "%s rank %d of %s%s%s",
                 record->kind == ZB_COLLECTIVE_SEND ? "send to" : "recv from", (int)record->root, group_name,
                 what, place);
    else
        snprintf(text, text_bytes, "%s #%llu of %s%s%s", zb_call_kind_name(record->kind),
                 (unsigned long long)record->sequence, group_name, what, place);
}

static zb_collective call_of(const zb_call_record *record, const size_t *counts)
{
    return (zb_collective){ .kind = (zb_collective_kind)record->kind,
                            .numel = record->numel,
                            .counts = counts,
                            .dtype = (zb_dtype)record->dtype,
                            .op = (zb_redop)record->op,
                            .factor = record->factor,
                            .root = record->root };
}

zb_status zb_call_record_compare(const zb_call_record *a, const size_t *counts_a, const zb_call_record *b,
                                 const size_t *counts_b, int world_size, const char *group_name)
{
    const zb_collective call_a = call_of(a, counts_a), call_b = call_of(b, counts_b);
    char difference[704], calls[2][512];
    if (!zb_calls_differ(&(zb_call_side){ a->world_rank, &call_a, a->order },
                         &(zb_call_side){ b->world_rank, &call_b, b->order }, world_size, difference,
                         sizeof difference))
        return ZB_OK;
    zb_call_record_describe(a, group_name, calls[0], sizeof calls[0]);
    zb_call_record_describe(b, group_name, calls[1], sizeof calls[1]);
    return zb_fail(ZB_MISMATCH,
                   "ranks called different collectives: %s\n  rank %d called %s\n  rank %d called %s",
                   difference, (int)a->world_rank, calls[0], (int)b->world_rank, calls[1]);
}

uint64_t zb_call_part_id(uint64_t parent, uint64_t sequence, int color)
{
    uint64_t id = parent;
    id = (id ^ sequence) * UINT64_C(0x9e3779b97f4a7c15);
    id ^= id >> 32;
    id = (id ^ (uint64_t)(uint32_t)color) * UINT64_C(0xd6e8feb86659fd93);
    return id ^ id >> 32;
}
