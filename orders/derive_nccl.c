/*
 * NCCL 2.28 to 2.30, one collective in a group of its own. A ring adds from the position after an element's
 * chunk (all_reduce) or owner (reduce_scatter) round to it; which chunk an element is in depends on how the
 * buffer is cut over channels and into pieces that fit the transport's buffers. Sources:
 * src/device/all_reduce.h, reduce_scatter.h (the order), src/enqueue.cc (scheduleCollTasksToPlan,
 * topoGetAlgoInfo, calcCollChunking, hostToDevRedOp), src/device/prims_*.h (the rounding).
 */
#include "orders/derive.h"

#include "kernels/half.h"
#include "orders/trees.h"
#include <zerobit/memory.h>

enum { VERSION_MIN = 228, VERSION_MAX = 230 };

static size_t divide_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}
static size_t round_up(size_t a, size_t unit)
{
    return divide_up(a, unit) * unit;
}
static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}
static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* --- channels --- */

/* How many of its channels NCCL gives to so many bytes: each thread must have enough of them. */
static size_t used_channels(const zb_order_source *source, const zb_reduction_call *call)
{
    const size_t n = (size_t)call->world_size, element_bytes = zb_dtype_bytes(call->dtype);
    const size_t threads = source->threads != 0                ? (size_t)source->threads
                           : source->protocol == ZB_NCCL_LL128 ? 640
                                                               : 512;
    const int ring_ll = source->protocol == ZB_NCCL_LL && source->algorithm == ZB_ALGORITHM_NCCL_RING;
    const size_t thread_bytes = source->protocol == ZB_NCCL_SIMPLE ? 64 : ring_ll ? 8 * n : 8;
    if (source->used_channels != 0) return (size_t)source->used_channels;
    size_t channels = (size_t)source->channels;
    while (channels > 1 && zb_call_total(call) * element_bytes < channels * threads * thread_bytes)
        channels--;
    return channels;
}

/* The parts of the buffer, of a block for reduce_scatter, that go to channels 0, 1, ...: `low`,
 * `middle_count` times `middle`, `high`. */
typedef struct channel_parts {
    size_t low, middle, high; /* elements */
    size_t middle_count;
} channel_parts;

/*
 * A unit of traffic is the least that is worth a channel; the buffer is dealt out in cells, each a unit's
 * worth of elements. The first and the last channel may get another number of cells than those between them.
 */
static channel_parts cut_for_channels(const zb_order_source *source, const zb_reduction_call *call)
{
    const size_t element_bytes = zb_dtype_bytes(call->dtype), bytes = call->numel * element_bytes;
    const size_t traffic_least = source->version == 228 ? 16384 : 32768, channels = (size_t)source->channels;
    const size_t weight = (zb_call_scatters(call) ? (size_t)call->world_size : 2) *
                          (source->protocol == ZB_NCCL_LL ? 4 : 1);
    const size_t traffic = larger(traffic_least, bytes * weight),
                 used = smaller(used_channels(source, call), channels);
    const size_t per_channel = source->version == 228 ? larger(traffic_least, traffic / used)
                                                      : round_up(traffic / used, 16);

    const size_t cell = round_up(divide_up(traffic_least, weight), 16), cells = divide_up(bytes, cell);
    size_t each = smaller(cells, divide_up(per_channel, cell * weight));
    const size_t low = channels == 1 ? cells : each;
    size_t middle = each > 0 ? (cells - low) / each : 0, high = each > 0 ? (cells - low) % each : 0;
    if ((low > 0) + middle + (high > 0) > channels) {
        middle = channels - 2;
        each = (cells - low) / (middle + 1);
        high = each + (cells - low) % (middle + 1);
    }
    if (high == 0 && middle > 0) {
        high = each;
        middle--;
    }
    const size_t cell_numel = cell / element_bytes;
    return (channel_parts){ .low = low * cell_numel,
                            .middle = each * cell_numel,
                            .middle_count = middle,
                            .high = high * cell_numel };
}

static size_t part_numel(const channel_parts *parts, size_t channel)
{
    if (channel == 0) return parts->low;
    return channel <= parts->middle_count ? parts->middle : parts->high;
}

/* --- rings --- */

static int ring_count(const zb_order_source *source)
{
    return source->ring_count > 0 ? source->ring_count : 1;
}

static int position_of(const zb_reduction *reduction, int ring, int rank)
{
    const int32_t *order = reduction->orders + (size_t)ring * (size_t)reduction->world_size;
    int position = 0;
    while (order[position] != rank) position++;
    return position;
}

/* Elements of a chunk as large as the transport's buffers let it be. */
static size_t chunk_numel(const zb_order_source *source, zb_dtype dtype)
{
    static const struct {
        size_t bytes, grain;
    } by_protocol[] = {
        [ZB_NCCL_SIMPLE] = { 2097152, 512 }, [ZB_NCCL_LL] = { 32768, 16 }, [ZB_NCCL_LL128] = { 576000, 1920 }
    };
    const size_t bytes = source->chunk_bytes != 0 ? source->chunk_bytes : by_protocol[source->protocol].bytes;
    const size_t grain = by_protocol[source->protocol].grain;
    return bytes / grain * grain / zb_dtype_bytes(dtype);
}

/* One channel's part of an all_reduce: rounds of world_size chunks, the last of them with shorter ones. */
static zb_status append_all_reduce(const zb_order_source *source, size_t numel, int ring, zb_reduction *made)
{
    const size_t n = (size_t)made->world_size, largest = chunk_numel(source, made->dtype);
    const size_t align = 16 / zb_dtype_bytes(made->dtype);
    for (size_t left = numel; left > 0;) {
        const size_t chunk = left >= n * largest ? largest : round_up(divide_up(left, n), align);
        for (size_t c = 0; c < n && left > 0; c++) {
            const size_t piece = smaller(chunk, left);
            ZB_TRY(zb_reduction_append(made, piece, 0, ring, (int)((c + 1) % n)));
            left -= piece;
        }
    }
    return ZB_OK;
}

static zb_status append_rings(const zb_order_source *source, const zb_reduction_call *call,
                              zb_reduction *made)
{
    const channel_parts parts = cut_for_channels(source, call);
    const int scatters = zb_call_scatters(call), owners = scatters ? call->world_size : 1;
    for (int owner = 0; owner < owners; owner++) {
        size_t left = call->numel;
        for (size_t channel = 0; left > 0; channel++) {
            const int ring = (int)(channel % (size_t)ring_count(source));
            const size_t numel = smaller(part_numel(&parts, channel), left);
            ZB_ASSERT(channel < (size_t)source->channels);
            if (scatters)
                ZB_TRY(zb_reduction_append(made, numel, 0, ring,
                                           (position_of(made, ring, owner) + 1) % call->world_size));
            else
                ZB_TRY(append_all_reduce(source, numel, ring, made));
            left -= numel;
        }
    }
    return ZB_OK;
}

static zb_status derive_ring(const zb_order_source *source, const zb_reduction_call *call, zb_reduction *made)
{
    const size_t n = (size_t)call->world_size;
    ZB_TRY(zb_reduction_create(call->world_size, call->dtype, 1, ring_count(source), made));
    zb_tree_write_chain(call->world_size, zb_reduction_tree_at(made, 0));
    if (source->ring_count == 0) zb_reduction_order_ascending(made, 0);
    for (size_t i = 0; i < (size_t)source->ring_count * n; i++) made->orders[i] = source->rings[i];
    return append_rings(source, call, made);
}

/* --- trees --- */

/* From the root down: every rank before its children. Returns how many it reaches. */
static int list_from_root(const zb_nccl_node *nodes, int world_size, int root, int32_t *ranks)
{
    int count = 0;
    ranks[count++] = root;
    for (int i = 0; i < count; i++)
        for (int c = 0; c < 3; c++) {
            const int32_t child = nodes[ranks[i]].child[c];
            if (child >= 0 && count < world_size) ranks[count++] = child;
        }
    return count;
}

/* The one rank that is nobody's child; -1 where ranks have two parents, or there is not exactly one such
 * rank. */
static int find_root(const zb_nccl_node *nodes, int world_size, int32_t *parents)
{
    int root = -1;
    for (int rank = 0; rank < world_size; rank++) parents[rank] = -1;
    for (int rank = 0; rank < world_size; rank++)
        for (int c = 0; c < 3; c++) {
            const int32_t child = nodes[rank].child[c];
            if (child < 0) continue;
            if (child >= world_size || parents[child] >= 0) return -1;
            parents[child] = rank;
        }
    for (int rank = 0; rank < world_size; rank++) {
        if (parents[rank] >= 0) continue;
        if (root >= 0) return -1;
        root = rank;
    }
    return root;
}

static zb_status write_tree(const zb_nccl_node *nodes, zb_tree_builder *builder, int index, int32_t *ranks,
                            int32_t *sums, int32_t *tree)
{
    const int n = builder->world_size, root = find_root(nodes, n, ranks);
    if (root < 0 || list_from_root(nodes, n, root, ranks) != n)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "tree %d of nccl-tree does not reach each of %d ranks once from one root", index, n);
    for (int rank = 0; rank < n; rank++) sums[rank] = rank;
    for (int i = n - 1; i >= 0; i--)
        for (int c = 0; c < 3; c++) {
            const int32_t child = nodes[ranks[i]].child[c];
            if (child >= 0) sums[ranks[i]] = zb_tree_add(builder, sums[ranks[i]], sums[child]);
        }
    zb_tree_write(builder, sums[root], tree);
    return ZB_OK;
}

static zb_status write_trees(const zb_order_source *source, zb_reduction *made)
{
    const size_t n = (size_t)made->world_size;
    int32_t *room = zb_alloc_array(2 * n, sizeof *room);
    zb_status status = room != NULL ? ZB_OK : ZB_NO_MEMORY;
    for (int t = 0; t < source->tree_count && status == ZB_OK; t++) {
        zb_tree_builder builder;
        status = zb_tree_builder_create(made->world_size, &builder);
        if (status != ZB_OK) break;
        status = write_tree(source->trees + (size_t)t * n, &builder, t, room, room + n,
                            zb_reduction_tree_at(made, t));
        zb_tree_builder_destroy(&builder);
    }
    zb_free(room);
    return status;
}

static zb_status derive_tree(const zb_order_source *source, const zb_reduction_call *call, zb_reduction *made)
{
    ZB_TRY(zb_reduction_create(call->world_size, call->dtype, source->tree_count, 1, made));
    zb_reduction_order_ascending(made, 0);
    ZB_TRY(write_trees(source, made));
    const channel_parts parts = cut_for_channels(source, call);
    size_t left = call->numel;
    for (size_t channel = 0; left > 0; channel++) {
        const size_t numel = smaller(part_numel(&parts, channel), left);
        ZB_TRY(zb_reduction_append(made, numel, (int)(channel % (size_t)source->tree_count), 0, 0));
        left -= numel;
    }
    return ZB_OK;
}

/* --- rounding --- */

static double round_to(zb_dtype dtype, double x)
{
    const float single = (float)x;
    if (dtype == ZB_FP16) return (double)zb_float_from_fp16(zb_fp16_from_float(single));
    if (dtype == ZB_BF16) return (double)zb_float_from_bf16(zb_bf16_from_float(single));
    return dtype == ZB_FP32 ? (double)single : x;
}

/* What the compiler made of multiply-and-add in the released library (2.28.9, CUDA 13.0, compute
 * capability 9.0). */
static zb_scaling released_scaling(zb_nccl_protocol protocol, zb_dtype dtype)
{
    if (protocol != ZB_NCCL_LL128) return ZB_SCALING_FUSED;
    return dtype == ZB_FP32 ? ZB_SCALING_FUSED_LL128 : ZB_SCALING_MULTIPLY;
}

static zb_status set_rounding(const zb_order_source *source, const zb_reduction_call *call,
                              zb_rounding *rounding)
{
    static const zb_scaling by_fusion[] = { [ZB_NCCL_FUSED] = ZB_SCALING_FUSED,
                                            [ZB_NCCL_UNFUSED] = ZB_SCALING_MULTIPLY,
                                            [ZB_NCCL_FUSED_LL128] = ZB_SCALING_FUSED_LL128 };
    const int small = call->dtype == ZB_FP32 || call->dtype == ZB_FP16 || call->dtype == ZB_BF16;
    rounding->canonical_nan = small;
    if (call->op == ZB_SUM) return ZB_OK;
    if (call->dtype == ZB_FP64)
        return zb_derive_refuse(source, call, "whether averages of fp64 are fused is not known");
    if (source->algorithm == ZB_ALGORITHM_NCCL_TREE)
        return zb_derive_refuse(source, call, "whether a tree's averages are fused is not known");
    if (source->fusion == ZB_NCCL_FUSED_LL128 && call->dtype != ZB_FP32)
        return zb_derive_refuse(source, call, "fusion=fused-ll128 is for fp32");
    rounding->scaling = ZB_SCALING_MULTIPLY;
    rounding->factor = call->op == ZB_AVG ? round_to(call->dtype, 1.0 / call->world_size)
                                          : round_to(call->dtype, call->factor);
    if (small)
        rounding->scaling = source->fusion != ZB_NCCL_AS_RELEASED
                                ? by_fusion[source->fusion]
                                : released_scaling(source->protocol, call->dtype);
    return ZB_OK;
}

/* --- */

static zb_status check_source(const zb_order_source *source, const zb_reduction_call *call)
{
    const int tree = source->algorithm == ZB_ALGORITHM_NCCL_TREE;
    if (source->version < VERSION_MIN || source->version > VERSION_MAX)
        return zb_derive_refuse(source, call, "only versions 2.28 to 2.30 are known");
    if (source->channels < 1 || source->used_channels < 0 || source->used_channels > source->channels)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s with %d of %d channels", zb_algorithm_name(source->algorithm),
                       source->used_channels, source->channels);
    if (chunk_numel(source, call->dtype) == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s with chunks of %zu bytes, less than the protocol's smallest",
                       zb_algorithm_name(source->algorithm), source->chunk_bytes);
    if (tree && source->tree_count < 1)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "nccl-tree without a tree; want tree=CHILD/CHILD/CHILD,... for ranks 0, 1, ...");
    if ((tree || source->ring_count > 0) && source->world_size != call->world_size)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s with %s over %d ranks for a collective of %d",
                       zb_algorithm_name(source->algorithm), tree ? "trees" : "rings", source->world_size,
                       call->world_size);
    if (call->kind == ZB_COLLECTIVE_ALL_REDUCE || (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER && !tree))
        return ZB_OK;
    return zb_derive_refuse(
        source, call, tree ? "a tree is for all_reduce" : "a ring is for all_reduce and reduce_scatter");
}

zb_status zb_derive_nccl(const zb_order_source *source, const zb_reduction_call *call,
                         zb_reduction *reduction_p)
{
    ZB_TRY(check_source(source, call));
    zb_rounding rounding = { 0 };
    ZB_TRY(set_rounding(source, call, &rounding));
    zb_reduction made = { 0 };
    zb_status status = source->algorithm == ZB_ALGORITHM_NCCL_TREE ? derive_tree(source, call, &made)
                                                                   : derive_ring(source, call, &made);
    made.rounding = rounding;
    if (status == ZB_OK) status = zb_reduction_check(&made); /* rings and trees have come from outside */
    if (status != ZB_OK) {
        zb_reduction_destroy(&made);
        return status;
    }
    *reduction_p = made;
    return ZB_OK;
}
