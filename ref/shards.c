/*
 * What the optimizer, or a norm, takes for one tensor, and what of it each rank holds. The oracle keeps whole
 * parameters; where a formula looks at a tensor's end, or at the order in which ranks add up what they hold,
 * it is given the tensors that are described here.
 */
#include "ref/oracle.h"

#include <string.h>
#include <zerobit/memory.h>

/* The trainable parameters of one group that have elements, in the order in which they are laid out. */
typedef struct members {
    const zb_model *model;
    int *param; /* [count] */
    size_t count, numel;
} members;

static int group_count(const zb_model *model, const int *group_of)
{
    int count = 1;
    for (int p = 0; group_of != NULL && p < model->param_count; p++)
        if (group_of[p] >= count) count = group_of[p] + 1;
    return count;
}

/* With a stride: those at 0, stride, 2 stride, ... of the group, then at 1, stride + 1, ... */
static void list_members(const int *group_of, int group, size_t stride, members *m)
{
    m->count = m->numel = 0;
    for (size_t start = 0; start < stride; start++) {
        size_t index = 0; /* within the group */
        for (int p = 0; p < m->model->param_count; p++) {
            if (!m->model->params[p].requires_grad || (group_of != NULL && group_of[p] != group)) continue;
            if (index++ % stride != start || m->model->params[p].numel == 0) continue;
            m->param[m->count++] = p;
            m->numel += m->model->params[p].numel;
        }
    }
}

static zb_ref_shard_tensor *add_tensor(zb_ref_shard *shard, int group, size_t numel)
{
    zb_ref_shard_tensor *tensor = &shard->tensors[shard->tensor_count++];
    *tensor = (zb_ref_shard_tensor){ .group = group, .numel = numel, .first_piece = shard->piece_count };
    return tensor;
}

/* `numel` elements of a parameter, from its element `first`, lie in the shard's last tensor from `at`. */
static void add_piece(zb_ref_shard *shard, size_t at, int param, size_t first, size_t numel)
{
    if (numel == 0) return;
    shard->tensors[shard->tensor_count - 1].piece_count++;
    shard->pieces[shard->piece_count++] = (zb_ref_piece){
        .at = at, .param = param, .first = first, .numel = numel
    };
}

static void hold_parameters(const members *m, int group, zb_ref_shard *shard)
{
    for (size_t i = 0; i < m->count; i++) {
        const size_t numel = m->model->params[m->param[i]].numel;
        add_tensor(shard, group, numel);
        add_piece(shard, 0, m->param[i], 0, numel);
    }
}

static void hold_group(const members *m, int group, zb_ref_shard *shard)
{
    size_t at = 0;
    add_tensor(shard, group, m->numel);
    for (size_t i = 0; i < m->count; i++) {
        const size_t numel = m->model->params[m->param[i]].numel;
        add_piece(shard, at, m->param[i], 0, numel);
        at += numel;
    }
}

/* A group end to end, zeros up to a multiple of 2 W, cut into W equal parts. Source: zero/stage_1_and_2.py.
 */
static void hold_partition(const members *m, int group, size_t world, size_t rank, zb_ref_shard *shard)
{
    const size_t unit = 2 * world, part = (m->numel + unit - 1) / unit * 2;
    const size_t begin = rank * part, end = begin + part;
    add_tensor(shard, group, part);
    size_t at = 0; /* where the parameter begins */
    for (size_t i = 0; i < m->count; i++) {
        const size_t stop = at + m->model->params[m->param[i]].numel;
        const size_t low = at > begin ? at : begin, high = stop < end ? stop : end;
        if (low < high) add_piece(shard, low - begin, m->param[i], low - at, high - low);
        at = stop;
    }
}

/*
 * Each parameter is cut into W parts of ceil(n / W). A sub-group is closed when its parts reach
 * sub_group_numel, and is one tensor. Source: zero/partition_parameters.py, zero/stage3.py.
 */
static void hold_sub_groups(const members *m, int group, size_t world, size_t rank, uint64_t sub_group_numel,
                            zb_ref_shard *shard)
{
    zb_ref_shard_tensor *open = NULL;
    for (size_t i = 0; i < m->count; i++) {
        const size_t numel = m->model->params[m->param[i]].numel, part = (numel + world - 1) / world;
        const size_t first = rank * part < numel ? rank * part : numel;
        if (open == NULL) open = add_tensor(shard, group, 0);
        add_piece(shard, open->numel, m->param[i], first, numel - first < part ? numel - first : part);
        open->numel += part;
        if (open->numel >= sub_group_numel) open = NULL;
    }
}

static void hold(const zb_plan *plan, zb_tensors tensors, const members *m, int group, int rank,
                 zb_ref_shard *shard)
{
    const size_t world = (size_t)plan->world_size;
    switch (tensors) {
    case ZB_TENSORS_PARAMETERS:
        hold_parameters(m, group, shard);
        return;
    case ZB_TENSORS_GROUPS:
        hold_group(m, group, shard);
        return;
    case ZB_TENSORS_PARTITIONS:
        hold_partition(m, group, world, (size_t)rank, shard);
        return;
    case ZB_TENSORS_SUB_GROUPS:
        hold_sub_groups(m, group, world, (size_t)rank, plan->sub_group_numel, shard);
        return;
    }
}

static zb_status allocate(int groups, int world_size, members *m, zb_ref_shard *shards)
{
    const size_t params = (size_t)m->model->param_count;
    const size_t tensors = params > (size_t)groups ? params : (size_t)groups;
    if ((m->param = zb_alloc_array(params, sizeof *m->param)) == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < world_size; rank++) {
        zb_ref_shard *shard = &shards[rank];
        shard->pieces = zb_alloc_array(params, sizeof *shard->pieces);
        shard->tensors = zb_alloc_array(tensors, sizeof *shard->tensors);
        if (shard->pieces == NULL || shard->tensors == NULL) return ZB_NO_MEMORY;
    }
    return ZB_OK;
}

zb_status zb_ref_shards_create(const zb_plan *plan, zb_tensors tensors, const zb_model *model,
                               const int *group_of, zb_ref_shard **shards_p)
{
    const int groups = group_count(model, group_of);
    zb_ref_shard *shards = zb_alloc_array((size_t)plan->world_size, sizeof *shards);
    if (shards == NULL) return ZB_NO_MEMORY;
    members m = { .model = model };
    const zb_status status = allocate(groups, plan->world_size, &m, shards);
    for (int group = 0; group < groups && status == ZB_OK; group++) {
        const int round_robin = tensors == ZB_TENSORS_PARTITIONS && plan->round_robin;
        list_members(group_of, group, round_robin ? (size_t)plan->world_size : 1, &m);
        for (int rank = 0; rank < plan->world_size; rank++)
            hold(plan, tensors, &m, group, rank, &shards[rank]);
    }
    zb_free(m.param);
    if (status != ZB_OK)
        zb_ref_shards_destroy(plan->world_size, shards);
    else
        *shards_p = shards;
    return status;
}

void zb_ref_shards_destroy(int world_size, zb_ref_shard *shards)
{
    for (int rank = 0; shards != NULL && rank < world_size; rank++) {
        zb_free(shards[rank].pieces);
        zb_free(shards[rank].tensors);
    }
    zb_free(shards);
}

void zb_ref_shard_gather(const zb_ref_shard *shard, size_t t, const zb_ref_tensors *from, float *tensor)
{
    const zb_ref_shard_tensor *what = &shard->tensors[t];
    memset(tensor, 0, what->numel * sizeof *tensor);
    for (size_t i = 0; i < what->piece_count; i++) {
        const zb_ref_piece *piece = &shard->pieces[what->first_piece + i];
        memcpy(tensor + piece->at, from->param[piece->param] + piece->first, piece->numel * sizeof *tensor);
    }
}

void zb_ref_shard_scatter(const zb_ref_shard *shard, size_t t, const float *tensor, zb_ref_tensors *to)
{
    const zb_ref_shard_tensor *what = &shard->tensors[t];
    for (size_t i = 0; i < what->piece_count; i++) {
        const zb_ref_piece *piece = &shard->pieces[what->first_piece + i];
        memcpy(to->param[piece->param] + piece->first, tensor + piece->at, piece->numel * sizeof *tensor);
    }
}
