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

/* A norm that is taken of tensors says itself of which. */
static zb_tensors norm_tensors(zb_norm_method norm)
{
    if (norm == ZB_NORM_PARTITION_FP32) return ZB_TENSORS_PARTITIONS;
    return norm == ZB_NORM_PARTITION_FP64 ? ZB_TENSORS_SUB_GROUPS : ZB_TENSORS_PARAMETERS;
}

zb_layout_options zb_layout_options_of(const zb_plan *plan, const zb_model *model, int stage)
{
    return (zb_layout_options){ .model = model,
                                .stage = stage,
                                .world_size = plan->world_size,
                                .round_robin = plan->round_robin,
                                .optimizer_tensors = plan->tensors,
                                .norm_tensors = norm_tensors(plan->norm),
                                .sub_group_numel = plan->sub_group_numel };
}

static int count_groups(const zb_layout_options *o)
{
    int count = 1;
    for (int p = 0; o->group_of != NULL && p < o->model->param_count; p++)
        if (o->group_of[p] >= count) count = o->group_of[p] + 1;
    return count;
}

static zb_status allocate_tensors(const zb_layout *l, zb_tensor_list *list)
{
    list->of = zb_alloc_array((size_t)l->model->param_count, sizeof *list->of);
    list->end = zb_alloc_array((size_t)l->model->param_count, sizeof *list->end);
    return list->of != NULL && list->end != NULL ? ZB_OK : ZB_NO_MEMORY;
}

static zb_status allocate(const zb_layout_options *o, zb_layout *l)
{
    const size_t params = (size_t)o->model->param_count;
    l->groups = zb_alloc_array((size_t)l->group_count, sizeof *l->groups);
    l->group_of = zb_alloc_array(params, sizeof *l->group_of);
    l->offset = zb_alloc_array(params, sizeof *l->offset);
    l->part_numel = zb_alloc_array(params, sizeof *l->part_numel);
    l->by_offset = zb_alloc_array(params, sizeof *l->by_offset);
    l->by_group = zb_alloc_array(params, sizeof *l->by_group);
    ZB_TRY(allocate_tensors(l, &l->optimizer_tensors));
    ZB_TRY(allocate_tensors(l, &l->norm_tensors));
    const int complete = l->groups != NULL && l->group_of != NULL && l->offset != NULL &&
                         l->part_numel != NULL && l->by_offset != NULL && l->by_group != NULL;
    return complete ? ZB_OK : ZB_NO_MEMORY;
}

static size_t part_of(const zb_layout *l, int param)
{
    const size_t numel = l->model->params[param].numel, world = (size_t)l->world_size;
    return l->stage == 3 ? (numel + world - 1) / world : numel;
}

static void place_frozen(zb_layout *l)
{
    for (int p = 0; p < l->model->param_count; p++) {
        if (l->model->params[p].requires_grad) continue;
        l->offset[p] = l->frozen_rank_numel;
        l->frozen_rank_numel += l->part_numel[p];
    }
}

/* The next trainable parameter of a group; `from` when there is none. */
static int next_in_group(const zb_layout *l, int group, int from)
{
    while (from < l->model->param_count &&
           (!l->model->params[from].requires_grad || l->group_of[from] != group))
        from++;
    return from;
}

static int count_in_group(const zb_layout *l, int group)
{
    int count = 0;
    for (int p = next_in_group(l, group, 0); p < l->model->param_count; p = next_in_group(l, group, p + 1))
        count++;
    return count;
}

static void place_param(zb_layout *l, zb_layout_group *g, int param, size_t *cursor)
{
    l->offset[param] = *cursor;
    *cursor += l->part_numel[param];
    g->numel += l->model->params[param].numel;
    if (l->model->params[param].numel > 0) l->by_offset[l->order_count++] = param;
}

/* Every stride-th parameter, from each of the first `stride` in turn. */
static void place_group(zb_layout *l, int group, int stride, size_t *cursor)
{
    for (int start = 0; start < stride; start++) {
        int index = 0;
        for (int p = next_in_group(l, group, 0); p < l->model->param_count;
             p = next_in_group(l, group, p + 1), index++)
            if (index % stride == start) place_param(l, &l->groups[group], p, cursor);
    }
}

static void measure_group(const zb_layout *l, zb_layout_group *g, size_t placed)
{
    const size_t world = (size_t)l->world_size;
    if (l->stage == 0) {
        g->rank_numel = g->padded_numel = g->numel;
    } else if (l->stage == 3) {
        g->rank_numel = placed;
        g->padded_numel = placed * world;
    } else {
        /* 2 W elements whatever the type, so that every rank's share starts on 4 bytes even in 16 bit. */
        g->padded_numel = round_up(g->numel, 2 * world);
        g->rank_numel = g->padded_numel / world;
    }
}

static void place_trainable(zb_layout *l, int round_robin)
{
    const int goes_round = round_robin && (l->stage == 1 || l->stage == 2);
    for (int group = 0; group < l->group_count; group++) {
        zb_layout_group *g = &l->groups[group];
        const int size = count_in_group(l, group);
        size_t cursor = l->stage == 3 ? l->rank_numel : l->padded_numel;
        g->flat_begin = cursor;
        g->shard_begin = l->rank_numel;
        place_group(l, group, !goes_round ? 1 : size < l->world_size ? size : l->world_size, &cursor);
        measure_group(l, g, cursor - g->flat_begin);
        l->numel += g->numel;
        l->padded_numel += g->padded_numel;
        l->rank_numel += g->rank_numel;
    }
}

static void order_by_group(zb_layout *l)
{
    int count = 0;
    for (int group = 0; group < l->group_count; group++)
        for (int p = next_in_group(l, group, 0); p < l->model->param_count;
             p = next_in_group(l, group, p + 1))
            if (l->model->params[p].numel > 0) l->by_group[count++] = p;
    ZB_ASSERT(count == l->order_count);
}

/* Source of the rule: stage3.py, _create_fp16_sub_groups. */
static void close_sub_groups(const zb_layout *l, uint64_t limit, zb_tensor_list *list)
{
    for (int i = 0; i < l->order_count; i++) {
        const int param = l->by_offset[i], last = list->count - 1;
        const size_t begin = last > 0 ? list->end[last - 1] : 0;
        const int same_group = i > 0 && l->group_of[l->by_offset[i - 1]] == l->group_of[param];
        if (!same_group || list->end[last] - begin >= limit) list->count++;
        list->of[param] = list->count - 1;
        list->end[list->count - 1] = l->offset[param] + l->part_numel[param];
    }
}

static void list_tensors(const zb_layout *l, zb_tensors kind, uint64_t sub_group_numel, zb_tensor_list *list)
{
    const int by_param = kind == ZB_TENSORS_PARAMETERS;
    ZB_ASSERT(l->stage == 3 || kind != ZB_TENSORS_SUB_GROUPS);
    list->kind = kind;
    for (int p = 0; p < l->model->param_count; p++) list->of[p] = -1;
    if (kind == ZB_TENSORS_SUB_GROUPS) {
        close_sub_groups(l, sub_group_numel, list);
        return;
    }
    for (int i = 0; i < l->order_count; i++)
        list->of[l->by_offset[i]] = by_param ? i : l->group_of[l->by_offset[i]];
    list->count = by_param ? l->order_count : l->group_count;
}

zb_status zb_layout_create(const zb_layout_options *o, zb_layout *layout)
{
    if (o->stage < 0 || o->stage >= ZB_STAGE_COUNT)
        return zb_fail(ZB_INVALID_ARGUMENT, "stage is %d, want 0 to %d", o->stage, ZB_STAGE_COUNT - 1);
    if (o->world_size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "world size is %d, want at least 1", o->world_size);

    zb_layout l = {
        .model = o->model, .stage = o->stage, .world_size = o->world_size, .group_count = count_groups(o)
    };
    zb_status status = allocate(o, &l);
    if (status != ZB_OK) {
        zb_layout_destroy(&l);
        return status;
    }
    for (int p = 0; p < o->model->param_count; p++) {
        l.group_of[p] = o->group_of != NULL ? o->group_of[p] : 0;
        l.part_numel[p] = part_of(&l, p);
    }
    place_frozen(&l);
    place_trainable(&l, o->round_robin);
    order_by_group(&l);
    list_tensors(&l, o->optimizer_tensors, o->sub_group_numel, &l.optimizer_tensors);
    list_tensors(&l, o->norm_tensors, o->sub_group_numel, &l.norm_tensors);
    *layout = l;
    return ZB_OK;
}

void zb_layout_destroy(zb_layout *l)
{
    zb_free(l->groups);
    zb_free(l->group_of);
    zb_free(l->offset);
    zb_free(l->part_numel);
    zb_free(l->by_offset);
    zb_free(l->by_group);
    zb_free(l->optimizer_tensors.of);
    zb_free(l->optimizer_tensors.end);
    zb_free(l->norm_tensors.of);
    zb_free(l->norm_tensors.end);
    memset(l, 0, sizeof *l);
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

    const zb_layout_group *g = &l->groups[l->group_of[param]];
    size_t own_begin = g->flat_begin + (size_t)rank * g->rank_numel, own_end = own_begin + g->rank_numel;
    size_t begin = l->offset[param], end = begin + p->numel;
    size_t first = begin > own_begin ? begin : own_begin, last = min_size(end, own_end);
    if (first >= last) return (zb_slice){ 0 };
    return (zb_slice){ .first = first - begin,
                       .numel = last - first,
                       .shard_offset = g->shard_begin + first - own_begin };
}

zb_extent zb_layout_tensor(const zb_layout *l, const zb_tensor_list *list, int tensor, int rank)
{
    ZB_ASSERT(tensor >= 0 && tensor < list->count);
    if (list->kind == ZB_TENSORS_PARAMETERS) {
        const int param = l->by_offset[tensor];
        const zb_slice slice = zb_layout_slice(l, param, rank);
        return (zb_extent){ .group = l->group_of[param],
                            .shard_offset = slice.shard_offset,
                            .numel = slice.numel };
    }
    if (list->kind == ZB_TENSORS_SUB_GROUPS) {
        const size_t begin = tensor > 0 ? list->end[tensor - 1] : 0;
        int i = 0;
        while (list->of[l->by_offset[i]] != tensor) i++;
        return (zb_extent){ .group = l->group_of[l->by_offset[i]],
                            .shard_offset = begin,
                            .numel = list->end[tensor] - begin };
    }
    const zb_layout_group *g = &l->groups[tensor];
    return (zb_extent){ .group = tensor, .shard_offset = g->shard_begin, .numel = g->rank_numel };
}

size_t zb_layout_flat(const zb_layout *l, int rank, int group, size_t shard_offset)
{
    const zb_layout_group *g = &l->groups[group];
    ZB_ASSERT(l->stage < 3 && shard_offset >= g->shard_begin);
    const size_t begin = l->stage == 0 ? 0 : (size_t)rank * g->rank_numel;
    return g->flat_begin + begin + (shard_offset - g->shard_begin);
}

/* The pieces follow the flat space. */
static void list_pieces(const zb_layout *l, int rank, zb_partition *partition)
{
    size_t live = 0;
    for (int i = 0; i < l->order_count; i++) {
        const int param = l->by_offset[i], group = l->group_of[param];
        const zb_slice slice = zb_layout_slice(l, param, rank);
        if (slice.numel == 0) continue;
        const size_t flat = l->stage == 3 ? (size_t)rank * l->rank_numel + slice.shard_offset
                                          : zb_layout_flat(l, rank, group, slice.shard_offset);
        partition->pieces[partition->piece_count++] = (zb_piece){
            .param = param, .param_offset = slice.first, .numel = slice.numel, .flat_offset = flat
        };
        live += slice.numel;
    }
    partition->padding = l->rank_numel - live;
}

zb_status zb_partition_create(const zb_partition_options *o, zb_partition *partition)
{
    zb_layout layout;
    const zb_layout_options options = { .model = o->model,
                                        .stage = o->stage,
                                        .world_size = o->world_size,
                                        .group_of = o->group_of,
                                        .round_robin = o->round_robin };
    ZB_TRY(zb_layout_create(&options, &layout)); /* checks the world size first */
    if (o->rank < 0 || o->rank >= o->world_size) {
        zb_layout_destroy(&layout);
        return zb_fail(ZB_INVALID_ARGUMENT, "rank is %d, want 0 to %d", o->rank, o->world_size - 1);
    }

    zb_partition result = { .numel = layout.numel,
                            .padded_numel = layout.padded_numel,
                            .rank_numel = layout.rank_numel };
    result.pieces = zb_alloc_array((size_t)o->model->param_count, sizeof *result.pieces);
    if (result.pieces == NULL) {
        zb_layout_destroy(&layout);
        return ZB_NO_MEMORY;
    }
    list_pieces(&layout, o->rank, &result);
    zb_layout_destroy(&layout);
    *partition = result;
    return ZB_OK;
}

void zb_partition_destroy(zb_partition *partition)
{
    zb_free(partition->pieces);
    memset(partition, 0, sizeof *partition);
}
