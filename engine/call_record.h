/*
 * A rank's call as it travels to other ranks, for back ends whose ranks are processes: what is compared, and
 * what a report says of it. Texts are cut.
 */
#ifndef ZB_ENGINE_CALL_RECORD_H
#define ZB_ENGINE_CALL_RECORD_H

#include <stdint.h>
#include <zerobit/comm.h>

typedef struct zb_call_record {
    int32_t world_rank, kind, dtype, op, root, line;
    uint64_t numel, sequence;
    double factor;
    char what[64], file[64], order[256];
} zb_call_record;

/** The counts of a reduce_scatter_v do not fit in: they travel beside the record. ZB_NO_MEMORY. */
zb_status zb_call_record_write(const zb_collective *call, int world_rank, uint64_t sequence,
                               zb_call_record *record);
/** "all_reduce #3 of world (what) at file:line", "send to rank 2 of world ...". */
void zb_call_record_describe(const zb_call_record *record, const char *group_name, char *text,
                             size_t text_bytes);
/**
 * ZB_OK when the two calls fit together; else ZB_MISMATCH names the field, both values and both calls.
 * `counts_a`, `counts_b`: [world_size] of a reduce_scatter_v.
 */
zb_status zb_call_record_compare(const zb_call_record *a, const size_t *counts_a, const zb_call_record *b,
                                 const size_t *counts_b, int world_size, const char *group_name);

/** Of the communicator that a split makes of one color: the same on all its ranks, and most likely no
 * other's. */
uint64_t zb_call_part_id(uint64_t parent, uint64_t sequence, int color);

#endif
