/*
 * Which elements a rank's optimizer holds in DeepSpeed 0.19.6: needed to read a recorded run, and because its
 * gradient norm depends on it. The oracle itself computes on whole parameters.
 */
#include "ref/oracle.h"

#include <zerobit/memory.h>

void zb_ref_shard_destroy(zb_ref_shard *shard)
{
    zb_free(shard->pieces);
    zb_free(shard->tensor_numel);
    *shard = (zb_ref_shard){ 0 };
}

/* `numel` elements of a parameter, from its element `first`, lie in the shard's last tensor from `at`. */
static void add_piece(zb_ref_shard *shard, size_t at, int param, size_t first, size_t numel)
{
    if (numel == 0) return;
    shard->pieces[shard->piece_count++] = (zb_ref_piece){
        .tensor = shard->tensor_count - 1, .at = at, .param = param, .first = first, .numel = numel
    };
}

static void add_tensor(zb_ref_shard *shard, size_t numel)
{
    shard->tensor_numel[shard->tensor_count++] = numel;
}

/* Stage 0: the parameters as they are in fp32; in fp16 one tensor with all of them. */
static void hold_everything(const zb_replay_run *run, zb_ref_shard *shard)
{
    const int flat = run->config->dtype != ZB_FP32;
    size_t at = 0;
    if (flat) add_tensor(shard, run->numel);
    for (int p = 0; p < run->param_count; p++) {
        if (!flat) add_tensor(shard, run->param_numel[p]);
        add_piece(shard, flat ? at : 0, p, 0, run->param_numel[p]);
        at += run->param_numel[p];
    }
}

/*
 * Stages 1, 2: parameters behind one another, zeros up to a multiple of 2 W, cut into W equal parts. Source:
 * zero/stage_1_and_2.py. Round robin puts parameters 0, W, 2 W, ... first, then 1, W + 1, ...
 */
static void hold_flat_part(const zb_replay_run *run, size_t rank, zb_ref_shard *shard)
{
    const size_t world = (size_t)run->world_size, params = (size_t)run->param_count;
    const size_t unit = 2 * world, part = (run->numel + unit - 1) / unit * 2;
    const size_t begin = rank * part, end = begin + part;
    const size_t stride = run->config->zero.round_robin_gradients ? world : 1;
    add_tensor(shard, part);
    size_t at = 0; /* where the parameter begins */
    for (size_t start = 0; start < stride; start++)
        for (size_t p = start; p < params; p += stride) {
            const size_t stop = at + run->param_numel[p];
            const size_t low = at > begin ? at : begin, high = stop < end ? stop : end;
            if (low < high) add_piece(shard, low - begin, (int)p, low - at, high - low);
            at = stop;
        }
}

/*
 * Stage 3: each parameter is cut into W parts of ceil(n / W). A sub-group is closed when its parts reach
 * sub_group_size, and is one tensor. Source: zero/partition_parameters.py, zero/stage3.py.
 */
static void hold_parts(const zb_replay_run *run, size_t rank, zb_ref_shard *shard)
{
    const size_t world = (size_t)run->world_size;
    size_t at = 0;
    int open = 0;
    for (int p = 0; p < run->param_count; p++) {
        const size_t numel = run->param_numel[p], part = (numel + world - 1) / world;
        const size_t first = rank * part < numel ? rank * part : numel;
        if (!open) {
            add_tensor(shard, 0);
            at = 0;
        }
        add_piece(shard, at, p, first, numel - first < part ? numel - first : part);
        at += part;
        shard->tensor_numel[shard->tensor_count - 1] = at;
        open = at < run->config->zero.sub_group_numel;
    }
}

zb_status zb_ref_shard_create(const zb_replay_run *run, int rank, zb_ref_shard *shard)
{
    zb_ref_shard made = { 0 };
    made.pieces = zb_alloc_array((size_t)run->param_count, sizeof *made.pieces);
    made.tensor_numel = zb_alloc_array((size_t)run->param_count, sizeof *made.tensor_numel);
    if (made.pieces == NULL || made.tensor_numel == NULL) {
        zb_ref_shard_destroy(&made);
        return ZB_NO_MEMORY;
    }
    if (run->config->zero.stage == 0)
        hold_everything(run, &made);
    else if (run->config->zero.stage < 3)
        hold_flat_part(run, (size_t)rank, &made);
    else
        hold_parts(run, (size_t)rank, &made);
    *shard = made;
    return ZB_OK;
}
