/*
 * Where each parameter lives in a stage's flat parameter space, and which part of it a rank owns. Pure
 * arithmetic: no rank talks to another here, nothing is allocated on a device.
 *
 *  stage 0     every rank owns everything; no padding
 *  stages 1, 2 per parameter group: its trainable parameters end to end, padded once at the end to a multiple
 *              of 2 W; rank r owns the r-th of W equal parts. A rank's shard is its parts of all groups, end
 *              to end. Source: stage_1_and_2.py
 *  stage 3     each parameter on its own: part = ceil(n / W), rank r owns [r * part, (r + 1) * part) of it,
 *              cut at n; a rank's shard is its parts end to end, group by group. Source:
 *              partition_parameters.py
 *
 * Within a group parameters keep their order, or at stages 1 and 2 go round: 0, W, 2 W, ... first, then 1,
 * W + 1, ... Frozen parameters have a flat space of their own: replicated at stages 0 to 2, cut like the
 * others at 3.
 *
 * A tensor is what an optimizer, or a norm, that looks at whole tensors takes for one: a run of every rank's
 * shard.
 */
#ifndef ZEROBIT_ENGINE_LAYOUT_H
#define ZEROBIT_ENGINE_LAYOUT_H

#include <stddef.h>
#include <zerobit/engine.h>
#include <zerobit/model.h>
#include <zerobit/status.h>

typedef struct zb_layout_options {
    const zb_model *model;
    int stage, world_size;
    const int *group_of; /* [param_count] the parameter group of each, from 0; NULL: all in one */
    int round_robin;     /* acts at stages 1, 2 */
    zb_tensors optimizer_tensors, norm_tensors;
    uint64_t sub_group_numel; /* SUB_GROUPS: a tensor is closed when a rank's parts reach this */
} zb_layout_options;

/* What a plan says of it. */
zb_layout_options zb_layout_options_of(const zb_plan *plan, const zb_model *model, int stage);

typedef struct zb_layout_group {
    size_t numel;        /* trainable elements, without padding                      */
    size_t padded_numel; /* rank_numel * world_size, or numel at stage 0             */
    size_t rank_numel;   /* elements of one rank's part, with padding                */
    size_t flat_begin;   /* stages 0 to 2: where the group begins in the flat space  */
    size_t shard_begin;  /* where a rank's part of it begins in the rank's shard     */
} zb_layout_group;

typedef struct zb_tensor_list {
    zb_tensors kind;
    int count;
    int *of;     /* [param_count] which tensor a trainable parameter with elements is in; else -1 */
    size_t *end; /* [count] in a rank's shard, for SUB_GROUPS                                      */
} zb_tensor_list;

typedef struct zb_layout {
    const zb_model *model;
    int stage, world_size;
    /* Sums over the groups, */
    size_t numel, padded_numel, rank_numel;
    size_t frozen_rank_numel; /* and frozen elements that one rank holds, with padding */
    zb_layout_group *groups;
    int group_count;
    int *group_of; /* [param_count] */
    /* [param_count]: in the flat space (stages 0 to 2) or in a rank's shard (stage 3), trainable or frozen.
     */
    size_t *offset;
    /* [param_count]: elements of one rank's part, padding included (stage 3); numel otherwise. */
    size_t *part_numel;
    int *by_offset; /* [order_count] trainable parameters with elements, as they lie           */
    int *by_group;  /* [order_count] the same ones group by group, in parameter order within  */
    int order_count;
    zb_tensor_list optimizer_tensors, norm_tensors;
} zb_layout;

zb_status zb_layout_create(const zb_layout_options *options, zb_layout *layout);
void zb_layout_destroy(zb_layout *layout);

/* What a rank owns of a parameter: elements [first, first + numel) of it lie in the rank's shard (of
 * trainable or of frozen elements) from shard_offset on. numel is 0 where it owns none. */
typedef struct zb_slice {
    size_t first, numel, shard_offset;
} zb_slice;
zb_slice zb_layout_slice(const zb_layout *layout, int param, int rank);

/* The same for a tensor: where it lies in the rank's shard. */
typedef struct zb_extent {
    int group;
    size_t shard_offset, numel;
} zb_extent;
zb_extent zb_layout_tensor(const zb_layout *layout, const zb_tensor_list *list, int tensor, int rank);

/* Stages 0 to 2: where an element of a rank's part of a group lies in the flat space. */
size_t zb_layout_flat(const zb_layout *layout, int rank, int group, size_t shard_offset);

#endif
