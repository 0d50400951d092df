/*
 * Where each parameter lives in a stage's flat parameter space, and which part of it a rank owns. Pure
 * arithmetic: no rank talks to another here, nothing is allocated on a device.
 *
 *  stage 0     every rank owns everything; no padding
 *  stages 1, 2 trainable parameters in order, end to end, padded once at the end to a multiple of 2 W;
 *              rank r owns [r * rank_numel, (r + 1) * rank_numel). Source: stage_1_and_2.py
 *  stage 3     each parameter on its own: part = ceil(n / W), rank r owns [r * part, (r + 1) * part) of it,
 *              cut at n; a rank's shard is its parts end to end. Source: partition_parameters.py
 *
 * Frozen parameters have a flat space of their own: replicated at stages 0 to 2, cut like the others at 3.
 */
#ifndef ZEROBIT_ENGINE_LAYOUT_H
#define ZEROBIT_ENGINE_LAYOUT_H

#include <stddef.h>
#include <zerobit/engine.h>
#include <zerobit/model.h>
#include <zerobit/status.h>

typedef struct zb_layout {
    const zb_model *model;
    int stage, world_size;
    size_t numel;             /* trainable elements, without padding                  */
    size_t padded_numel;      /* rank_numel * world_size, or numel at stage 0         */
    size_t rank_numel;        /* trainable elements that one rank owns, with padding  */
    size_t frozen_rank_numel; /* frozen elements that one rank holds, with padding */
    /* [param_count]: in the flat space (stages 0 to 2) or in a rank's shard (stage 3), trainable or frozen.
     */
    size_t *offset;
    /* [param_count]: elements of one rank's part, padding included (stage 3); numel otherwise. */
    size_t *part_numel;
} zb_layout;

zb_status zb_layout_create(const zb_model *model, int stage, int world_size, zb_layout *layout);
void zb_layout_destroy(zb_layout *layout);

/* What a rank owns of a parameter: elements [first, first + numel) of it lie in the rank's shard (of
 * trainable or of frozen elements) from shard_offset on. numel is 0 where it owns none. */
typedef struct zb_slice {
    size_t first, numel, shard_offset;
} zb_slice;
zb_slice zb_layout_slice(const zb_layout *layout, int param, int rank);

#endif
