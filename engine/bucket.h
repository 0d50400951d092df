/*
 * Which gradients travel together, how, and where each lies in the buffer that they travel in. Parameters are
 * taken in a given order; a bucket is closed when the next one would make it larger than the limit, so that
 * one larger than the limit travels alone. Source of the rule: stage_1_and_2.py and stage3.py,
 * reduce_independent_p_g_buckets_and_remove_grads.
 *
 * A bucket is a list of pieces: a range of a parameter and the range of the buffer that it is copied to. One
 * mechanism serves every stage and every partition; a transport only decides the order of the pieces and the
 * collectives.
 */
#ifndef ZEROBIT_ENGINE_BUCKET_H
#define ZEROBIT_ENGINE_BUCKET_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/config.h>
#include <zerobit/status.h>

#include "engine/layout.h"

/* How a bucket is reduced. The buffer's order of pieces: */
typedef enum zb_transport {
    ZB_TRANSPORT_ALL_REDUCE,       /* as they come; one all_reduce                                        */
    ZB_TRANSPORT_REDUCE_SCATTER_V, /* by owner, ranks ascending: shares of unequal length (counts)        */
    ZB_TRANSPORT_REDUCE_SCATTER, /* for each rank its part of every parameter, padding included: equal shares
                                  */
    ZB_TRANSPORT_OWNERS,         /* as they come; all_reduces, cut where an owner's run ends beyond the limit.
                                    stage_1_and_2.py, allreduce_and_scatter */
    ZB_TRANSPORT_ROOTED,         /* by owner, as they first come; reduces, cut likewise.
                                    stage_1_and_2.py, allreduce_no_retain */
    ZB_TRANSPORT_NONE            /* as they come; nothing is sent, each rank keeps its own gradient */
} zb_transport;

typedef enum zb_bucket_close {
    ZB_CLOSE_BEFORE_LIMIT, /* before the parameter that would exceed it                  */
    ZB_CLOSE_AFTER_LIMIT   /* after the one that does. engine.py, allreduce_no_retain    */
} zb_bucket_close;

/* All that a plan of buckets is made from, beside layout and order. */
typedef struct zb_bucket_rule {
    zb_transport transport;
    zb_bucket_close close;
    uint64_t limit_numel;
    int whole_groups; /* a bucket is closed at the end of a group only, and padding travels too.
                         bf16_optimizer.py */
    int in_place; /* the buffer is the flat space itself: a bucket is one range of it, and none spans groups
                   */
    int owns_all; /* this rank takes every average, not only those of its shard                          */
    int late; /* a full bucket waits for the parameter that has no room in it, or for the end. As DeepSpeed */
    int in_vain; /* averages are dropped: the optimizer reads what each rank has added up                */
    int to_flat; /* averages go to the flat space; else to the shard                                    */
} zb_bucket_rule;
zb_bucket_rule zb_bucket_rule_of(const zb_config *config, const zb_plan *plan, const zb_layout *layout);

/* Elements [first, first + numel) of a parameter lie in the buffer from `at` on; zeros follow them. In a
 * REDUCE_SCATTER those of the last ranks may be empty. */
typedef struct zb_bucket_piece {
    size_t first, numel, at, padding;
} zb_bucket_piece;

/* Averages of this rank: elements [at, at + numel) of the buffer go to `to`. */
typedef struct zb_bucket_own {
    size_t at, numel, to;
} zb_bucket_own;

/* One collective: elements [begin, begin + numel) of the buffer. */
typedef struct zb_bucket_send {
    size_t begin, numel;
    int root; /* ROOTED */
} zb_bucket_send;

typedef struct zb_bucket {
    zb_transport transport;
    int *params; /* [param_count] within zb_buckets.params */
    int param_count;
    size_t numel;          /* of the buffer                                      */
    size_t flat_offset;    /* in_place: where the range begins                   */
    size_t share_numel;    /* reduce_scatters: of this rank, with padding        */
    int padded;            /* REDUCE_SCATTER: a share has room that no element fills */
    size_t share_begin;    /* and where it begins in the buffer                  */
    size_t *counts;        /* [world_size] REDUCE_SCATTER_V: share lengths       */
    zb_bucket_send *sends; /* ALL_REDUCE, OWNERS, ROOTED                      */
    int send_count;
    zb_bucket_own *own;
    size_t own_count;
} zb_bucket;

typedef struct zb_buckets {
    zb_bucket *buckets;
    int bucket_count;
    int *params;
    size_t *counts;
    zb_bucket_send *sends;
    zb_bucket_own *own;
    zb_bucket_piece *pieces;
    size_t capacity;   /* largest numel                             */
    int send_capacity; /* largest send_count, 1 at least            */
    int *bucket_of;    /* [param_count] -1: travels in none         */
    size_t *slot; /* [param_count] REDUCE_SCATTER: offset within each rank's share; else index of its first
                     piece */
    int *piece_count; /* [param_count] */
    const zb_layout *layout;
} zb_buckets;

/* `order` lists trainable parameters with elements; `rank` is the own one. The layout is borrowed. */
zb_status zb_buckets_create(const zb_layout *layout, const zb_bucket_rule *rule, const int *order,
                            int order_count, int rank, zb_buckets *buckets);
void zb_buckets_destroy(zb_buckets *buckets);

/* The kind of collective that a bucket travels in; not NONE. */
zb_collective_kind zb_transport_collective(const zb_bucket *bucket);

/* Piece 0 .. piece_count[param] - 1 of a parameter, ascending. */
zb_bucket_piece zb_buckets_piece(const zb_buckets *buckets, int param, int index);

/* What a plan would have, without making it: for the formulas. */
typedef struct zb_bucket_measure {
    uint64_t bucket_count;
    size_t capacity;
    uint64_t calls[ZB_COLLECTIVE_COUNT], numel[ZB_COLLECTIVE_COUNT]; /* of all buckets, once */
} zb_bucket_measure;
zb_bucket_measure zb_buckets_measure(const zb_layout *layout, const zb_bucket_rule *rule, const int *order,
                                     int order_count);

#endif
