/* Flat layouts of the four stages; see layout.h. */
#include "engine/layout.h"

#include <string.h>
#include <zerobit/memory.h>

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void place_params(zb_layout *l)
{
    size_t trainable = 0, frozen = 0;
    for (int p = 0; p < l->model->param_count; p++) {
        const zb_param *param = &l->model->params[p];
        size_t world = (size_t)l->world_size;
        l->part_numel[p] = l->stage == 3 ? (param->numel + world - 1) / world : param->numel;
        size_t *cursor = param->requires_grad ? &trainable : &frozen;
        l->offset[p] = *cursor;
        *cursor += l->part_numel[p];
        if (param->requires_grad) l->numel += param->numel;
    }
    l->frozen_rank_numel = frozen;
    if (l->stage == 0) {
        l->rank_numel = l->padded_numel = l->numel;
    } else if (l->stage == 3) {
        l->rank_numel = trainable;
        l->padded_numel = trainable * (size_t)l->world_size;
    } else {
        /* 2 W elements whatever the type, so that every rank's share starts on 4 bytes even in 16 bit. */
        l->padded_numel = round_up(l->numel, 2 * (size_t)l->world_size);
        l->rank_numel = l->padded_numel / (size_t)l->world_size;
    }
}

zb_status zb_layout_create(const zb_model *model, int stage, int world_size, zb_layout *layout)
{
    if (stage < 0 || stage >= ZB_STAGE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "stage is %d, want 0 to %d", stage, ZB_STAGE_COUNT - 1);
    if (world_size < 1) return zb_fail(ZB_INVALID_ARGUMENT, "world size is %d, want at least 1", world_size);

    zb_layout l = { .model = model, .stage = stage, .world_size = world_size };
    l.offset = zb_alloc_array((size_t)model->param_count, sizeof *l.offset);
    l.part_numel = zb_alloc_array((size_t)model->param_count, sizeof *l.part_numel);
    if (l.offset == NULL || l.part_numel == NULL) {
        zb_layout_destroy(&l);
        return ZB_NO_MEMORY;
    }
    place_params(&l);
    *layout = l;
    return ZB_OK;
}

void zb_layout_destroy(zb_layout *layout)
{
    zb_free(layout->offset);
    zb_free(layout->part_numel);
    memset(layout, 0, sizeof *layout);
}

zb_slice zb_layout_slice(const zb_layout *l, int param, int rank)
{
    const zb_param *p = &l->model->params[param];
    ZB_ASSERT(rank >= 0 && rank < l->world_size);
    if (l->stage == 0 || (l->stage != 3 && !p->requires_grad))
        return (zb_slice){ .numel = p->numel, .shard_offset = l->offset[param] };

    if (l->stage == 3) {
        size_t first = min_size(p->numel, (size_t)rank * l->part_numel[param]);
        size_t end = min_size(p->numel, first + l->part_numel[param]);
        return (zb_slice){ .first = first, .numel = end - first, .shard_offset = l->offset[param] };
    }

    size_t own_begin = (size_t)rank * l->rank_numel, own_end = own_begin + l->rank_numel;
    size_t begin = l->offset[param], end = begin + p->numel;
    size_t first = begin > own_begin ? begin : own_begin, last = min_size(end, own_end);
    if (first >= last) return (zb_slice){ 0 };
    return (zb_slice){ .first = first - begin, .numel = last - first, .shard_offset = first - own_begin };
}

zb_status zb_partition_create(const zb_model *model, int stage, int world_size, int rank,
                              zb_partition *partition)
{
    zb_layout layout;
    ZB_TRY(zb_layout_create(model, stage, world_size, &layout)); /* checks the world size first */
    if (rank < 0 || rank >= world_size) {
        zb_layout_destroy(&layout);
        return zb_fail(ZB_INVALID_ARGUMENT, "rank is %d, want 0 to %d", rank, world_size - 1);
    }

    zb_partition result = { .numel = layout.numel,
                            .padded_numel = layout.padded_numel,
                            .rank_numel = layout.rank_numel };
    result.pieces = zb_alloc_array((size_t)model->param_count, sizeof *result.pieces);
    if (result.pieces == NULL) {
        zb_layout_destroy(&layout);
        return ZB_NO_MEMORY;
    }
    size_t base = stage == 0 ? 0 : (size_t)rank * layout.rank_numel, live = 0;
    for (int p = 0; p < model->param_count; p++) {
        if (!model->params[p].requires_grad) continue;
        zb_slice slice = zb_layout_slice(&layout, p, rank);
        if (slice.numel == 0) continue;
        result.pieces[result.piece_count++] = (zb_piece){ .param = p,
                                                          .param_offset = slice.first,
                                                          .numel = slice.numel,
                                                          .flat_offset = base + slice.shard_offset };
        live += slice.numel;
    }
    result.padding = layout.rank_numel - live;
    zb_layout_destroy(&layout);
    *partition = result;
    return ZB_OK;
}

void zb_partition_destroy(zb_partition *partition)
{
    zb_free(partition->pieces);
    memset(partition, 0, sizeof *partition);
}
