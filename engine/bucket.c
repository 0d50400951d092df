/* Bucket plans; see bucket.h. */
#include "engine/bucket.h"

#include <string.h>
#include <zerobit/memory.h>

#include "engine/stage.h"

/* --- the rule --- */

/* Otherwise an absent average was sent for all that, and is dropped. */
static int sends_nothing(const zb_config *config, const zb_plan *plan)
{
    return plan->averaging.absent && plan->quirks.unreduced_without_contiguous_gradients &&
           !config->zero.contiguous_gradients;
}

static zb_transport transport_of(const zb_config *config, const zb_plan *plan, int stage)
{
    const zb_zero_config *zero = &config->zero;
    if (stage == 0 || plan->overflow == ZB_OVERFLOW_STOP) return ZB_TRANSPORT_ALL_REDUCE;
    if (stage == 3)
        return zero->reduce_scatter || !zero->contiguous_gradients ? ZB_TRANSPORT_REDUCE_SCATTER
                                                                   : ZB_TRANSPORT_ALL_REDUCE;
    const int whole = !zero->contiguous_gradients && plan->quirks.all_reduce_for_reduce_scatter;
    if (sends_nothing(config, plan)) return ZB_TRANSPORT_NONE;
    if (!zero->reduce_scatter || whole) return ZB_TRANSPORT_ALL_REDUCE;
    if (!plan->quirks.all_reduce_for_reduce_scatter) return ZB_TRANSPORT_REDUCE_SCATTER_V;
    return zero->multi_rank_bucket ? ZB_TRANSPORT_OWNERS : ZB_TRANSPORT_ROOTED;
}

/* Gradients that are added up on their rank are reduced where they lie, if nothing has to be converted. */
static int is_in_place(const zb_config *config, const zb_plan *plan, const zb_layout *layout,
                       zb_transport transport)
{
    const int same_type = plan->local_dtype == plan->bucket_dtype && plan->bucket_dtype == plan->comm_dtype &&
                          plan->comm_dtype == plan->grad_dtype;
    const int goes_round = layout->stage == 1 && plan->round_robin;
    const int as_ready = layout->stage == 1 && zb_overlap_comm(config, 1);
    const int in_flat_order = plan->semantics == ZB_SEMANTICS_STANDARD ||
                              (layout->group_count == 1 && !goes_round && !as_ready);
    const int one_range = transport == ZB_TRANSPORT_REDUCE_SCATTER_V || transport == ZB_TRANSPORT_ALL_REDUCE;
    return layout->stage < 2 && plan->overflow != ZB_OVERFLOW_STOP && same_type && in_flat_order && one_range;
}

zb_bucket_rule zb_bucket_rule_of(const zb_config *config, const zb_plan *plan, const zb_layout *layout)
{
    enum { STAGE_0_LIMIT = 500000000 }; /* engine.py, MEMORY_OPT_ALLREDUCE_SIZE */
    const int stage = layout->stage, bf16_optimizer = plan->overflow == ZB_OVERFLOW_STOP;
    const int as_stage_0 = bf16_optimizer || (stage == 0 && plan->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6);
    zb_bucket_rule rule = { .transport = transport_of(config, plan, stage),
                            .close = as_stage_0 ? ZB_CLOSE_AFTER_LIMIT : ZB_CLOSE_BEFORE_LIMIT,
                            .limit_numel = as_stage_0 ? STAGE_0_LIMIT : config->zero.reduce_bucket_numel,
                            .whole_groups = bf16_optimizer,
                            .owns_all = stage == 0 || bf16_optimizer,
                            .late = plan->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6 && !as_stage_0,
                            .to_flat = stage < 2 && plan->local_dtype == plan->grad_dtype };
    rule.in_place = is_in_place(config, plan, layout, rule.transport);
    rule.in_vain = plan->averaging.absent && rule.to_flat;
    return rule;
}

/* --- making a plan --- */

/* A range of a parameter with one owner, and where it lies in the buffer. */
typedef struct slice {
    int param, owner;
    size_t first, numel, at;
} slice;

typedef struct builder {
    const zb_layout *layout;
    const zb_bucket_rule *rule;
    int rank;
    zb_buckets *plan;
    slice *slices; /* of one bucket */
    size_t slice_count;
    size_t *cursor;                            /* [world_size] where an owner's next slice goes */
    size_t *owned;                             /* [world_size] elements of each owner in the bucket */
    size_t send_count, own_count, piece_count; /* so far */
} builder;

static size_t param_numel(const builder *b, int param)
{
    return b->layout->model->params[param].numel;
}

static const zb_layout_group *group_of(const builder *b, int param)
{
    return &b->layout->groups[b->layout->group_of[param]];
}

/* One past the last parameter of the bucket that begins at order[first]. */
static int bucket_end(const builder *b, const int *order, int order_count, int first)
{
    const zb_bucket_rule *rule = b->rule;
    uint64_t numel = 0;
    int end = first;
    for (; end < order_count; end++) {
        const int new_group = end > first &&
                              b->layout->group_of[order[end]] != b->layout->group_of[order[end - 1]];
        if (rule->in_place && new_group) break;
        if (rule->close == ZB_CLOSE_BEFORE_LIMIT && end > first &&
            numel + param_numel(b, order[end]) > rule->limit_numel)
            break;
        if (rule->close == ZB_CLOSE_AFTER_LIMIT && numel > rule->limit_numel &&
            (new_group || !rule->whole_groups))
            break;
        numel += param_numel(b, order[end]);
        const int ends_group = end + 1 == order_count ||
                               b->layout->group_of[order[end + 1]] != b->layout->group_of[order[end]];
        if (rule->whole_groups && ends_group)
            numel += group_of(b, order[end])->padded_numel - group_of(b, order[end])->numel;
    }
    return end;
}

static void sort_by(const size_t *key, int *params, int count)
{
    for (int i = 1; i < count; i++) { /* almost always reversed or sorted already, and short */
        int param = params[i], j = i;
        for (; j > 0 && key[params[j - 1]] > key[param]; j--) params[j] = params[j - 1];
        params[j] = param;
    }
}

/* At stage 0 the first rank stands for all, who own everything. */
static void cut_at_owners(builder *b, const zb_bucket *bucket)
{
    b->slice_count = 0;
    memset(b->owned, 0, (size_t)b->layout->world_size * sizeof *b->owned);
    for (int i = 0; i < bucket->param_count; i++) {
        const int param = bucket->params[i];
        const zb_layout_group *g = group_of(b, param);
        const size_t numel = param_numel(b, param), begin = b->layout->offset[param] - g->flat_begin;
        for (size_t first = 0; first < numel;) {
            const int owner = b->layout->stage == 0 ? 0 : (int)((begin + first) / g->rank_numel);
            const size_t end = ((size_t)owner + 1) * g->rank_numel - begin, stop = end < numel ? end : numel;
            b->slices[b->slice_count++] = (slice){
                .param = param, .owner = owner, .first = first, .numel = stop - first
            };
            b->owned[owner] += stop - first;
            first = stop;
        }
    }
}

/* Where each owner's slices begin: by rank, or by when it first comes. */
static void place_owners(builder *b, int by_rank)
{
    size_t at = 0;
    for (int r = 0; r < b->layout->world_size; r++) {
        b->cursor[r] = by_rank ? at : SIZE_MAX;
        at += by_rank ? b->owned[r] : 0;
    }
    for (size_t i = 0; i < b->slice_count; i++) {
        const int owner = b->slices[i].owner;
        if (b->cursor[owner] != SIZE_MAX) continue;
        b->cursor[owner] = at;
        at += b->owned[owner];
    }
}

static size_t padding_after(const builder *b, const slice *s)
{
    const zb_layout_group *g = group_of(b, s->param);
    const size_t end = b->layout->offset[s->param] + s->first + s->numel;
    return b->rule->whole_groups && end == g->flat_begin + g->numel ? g->padded_numel - g->numel : 0;
}

static void place_slices(builder *b, zb_bucket *bucket)
{
    const int by_owner = bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER_V ||
                         bucket->transport == ZB_TRANSPORT_ROOTED;
    size_t end = 0;
    if (by_owner) place_owners(b, bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER_V);
    for (size_t i = 0; i < b->slice_count; i++) {
        slice *s = &b->slices[i];
        size_t *cursor = by_owner ? &b->cursor[s->owner] : &end;
        s->at = *cursor;
        *cursor += s->numel + padding_after(b, s);
        bucket->numel += s->numel + padding_after(b, s);
    }
}

/* Slices that follow one another in the parameter and in the buffer are one piece. */
static void list_pieces(builder *b)
{
    zb_buckets *plan = b->plan;
    for (size_t i = 0; i < b->slice_count; i++) {
        const slice *s = &b->slices[i];
        zb_bucket_piece *last = b->piece_count > 0 ? &plan->pieces[b->piece_count - 1] : NULL;
        if (plan->piece_count[s->param] > 0 && last->at + last->numel == s->at) {
            last->numel += s->numel;
            last->padding = padding_after(b, s);
            continue;
        }
        if (plan->piece_count[s->param]++ == 0) plan->slot[s->param] = b->piece_count;
        plan->pieces[b->piece_count++] = (zb_bucket_piece){
            .first = s->first, .numel = s->numel, .at = s->at, .padding = padding_after(b, s)
        };
    }
}

static size_t destination(const builder *b, const slice *s)
{
    const size_t flat = b->layout->offset[s->param] + s->first;
    if (b->rule->to_flat || b->layout->stage == 0) return flat;
    const zb_layout_group *g = group_of(b, s->param);
    return g->shard_begin + flat - g->flat_begin - (size_t)b->rank * g->rank_numel;
}

static void add_own(builder *b, zb_bucket *bucket, zb_bucket_own own)
{
    zb_bucket_own *last = bucket->own_count > 0 ? &bucket->own[bucket->own_count - 1] : NULL;
    if (last != NULL && last->at + last->numel == own.at && last->to + last->numel == own.to) {
        last->numel += own.numel;
        return;
    }
    bucket->own[bucket->own_count++] = own;
    b->own_count++;
}

static void list_own(builder *b, zb_bucket *bucket)
{
    bucket->own = b->plan->own + b->own_count;
    for (size_t i = 0; i < b->slice_count; i++) {
        const slice *s = &b->slices[i];
        if (b->rule->owns_all || s->owner == b->rank)
            add_own(b, bucket, (zb_bucket_own){ .at = s->at, .numel = s->numel, .to = destination(b, s) });
    }
}

static void add_send(builder *b, zb_bucket *bucket, size_t begin, size_t numel, int root)
{
    bucket->sends[bucket->send_count++] = (zb_bucket_send){ .begin = begin, .numel = numel, .root = root };
    b->send_count++;
}

/* Neighbours with one owner are a run; a call ends with the run that takes it beyond the limit. */
static void send_runs(builder *b, zb_bucket *bucket, int root)
{
    const int rooted = bucket->transport == ZB_TRANSPORT_ROOTED;
    size_t begin = 0, numel = 0;
    for (size_t i = 0; i < b->slice_count; i++) {
        const slice *s = &b->slices[i];
        if (rooted && s->owner != root) continue;
        if (numel == 0) begin = s->at;
        numel += s->numel;
        const int ends_run = i + 1 == b->slice_count || b->slices[i + 1].owner != s->owner;
        if (!ends_run || numel <= b->rule->limit_numel) continue;
        add_send(b, bucket, begin, numel, root);
        numel = 0;
    }
    if (numel > 0) add_send(b, bucket, begin, numel, root);
}

static void list_sends(builder *b, zb_bucket *bucket)
{
    bucket->sends = b->plan->sends + b->send_count;
    if (bucket->transport == ZB_TRANSPORT_ALL_REDUCE) add_send(b, bucket, 0, bucket->numel, 0);
    if (bucket->transport == ZB_TRANSPORT_OWNERS) send_runs(b, bucket, 0);
    for (size_t i = 0; bucket->transport == ZB_TRANSPORT_ROOTED && i < b->slice_count; i++) {
        const int owner = b->slices[i].owner;
        if (b->owned[owner] > 0) send_runs(b, bucket, owner);
        b->owned[owner] = 0; /* all its slices are on their way */
    }
}

static void fill_flat(builder *b, zb_bucket *bucket, size_t *counts)
{
    const size_t world = (size_t)b->layout->world_size;
    if (bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER_V)
        sort_by(b->layout->offset, bucket->params, bucket->param_count);
    cut_at_owners(b, bucket);
    place_slices(b, bucket);
    list_pieces(b);
    list_own(b, bucket);
    list_sends(b, bucket);
    bucket->flat_offset = b->layout->offset[bucket->params[0]];
    if (bucket->transport != ZB_TRANSPORT_REDUCE_SCATTER_V) return;
    bucket->counts = counts;
    memcpy(counts, b->owned, world * sizeof *counts);
    bucket->share_numel = counts[b->rank];
    for (int r = 0; r < b->rank; r++) bucket->share_begin += counts[r];
}

/* Stage 3: every rank's share has its parts of the parameters, in their order. */
static void fill_spread(builder *b, zb_bucket *bucket)
{
    const zb_layout *layout = b->layout;
    size_t cursor = 0, elements = 0;
    sort_by(layout->offset, bucket->params, bucket->param_count);
    for (int i = 0; i < bucket->param_count; i++) {
        b->plan->slot[bucket->params[i]] = cursor;
        b->plan->piece_count[bucket->params[i]] = layout->world_size;
        cursor += layout->part_numel[bucket->params[i]];
        elements += param_numel(b, bucket->params[i]);
    }
    bucket->numel = cursor * (size_t)layout->world_size;
    bucket->share_numel = cursor;
    bucket->padded = bucket->numel != elements;
    bucket->share_begin = cursor * (size_t)b->rank;
    bucket->own = b->plan->own + b->own_count;
    for (int i = 0; i < bucket->param_count; i++) {
        const zb_slice own = zb_layout_slice(layout, bucket->params[i], b->rank);
        const size_t at = bucket->share_begin + b->plan->slot[bucket->params[i]];
        if (own.numel > 0)
            add_own(b, bucket, (zb_bucket_own){ .at = at, .numel = own.numel, .to = own.shard_offset });
    }
}

/* Stage 3, reduced to all: what a rank owns of a parameter is not where a flat space would be cut. */
static void fill_whole(builder *b, zb_bucket *bucket)
{
    bucket->own = b->plan->own + b->own_count;
    for (int i = 0; i < bucket->param_count; i++) {
        const int param = bucket->params[i];
        const zb_slice own = zb_layout_slice(b->layout, param, b->rank);
        b->plan->slot[param] = b->piece_count;
        b->plan->piece_count[param] = 1;
        b->plan->pieces[b->piece_count++] = (zb_bucket_piece){ .numel = param_numel(b, param),
                                                               .at = bucket->numel };
        if (own.numel > 0)
            add_own(b, bucket,
                    (zb_bucket_own){
                        .at = bucket->numel + own.first, .numel = own.numel, .to = own.shard_offset });
        bucket->numel += param_numel(b, param);
    }
    list_sends(b, bucket);
}

/* An oversized gradient is scattered even where the others are reduced to all. Source: stage3.py,
 * __reduce_and_partition_ipg_grads. */
static zb_transport bucket_transport(const builder *b, const zb_bucket *bucket)
{
    const int oversized = b->layout->stage == 3 && param_numel(b, bucket->params[0]) > b->rule->limit_numel;
    return oversized ? ZB_TRANSPORT_REDUCE_SCATTER : b->rule->transport;
}

static void fill_buckets(builder *b, const int *order, int order_count)
{
    zb_buckets *plan = b->plan;
    int first = 0;
    plan->send_capacity = 1;
    for (int i = 0; i < plan->bucket_count; i++) {
        const int end = bucket_end(b, order, order_count, first);
        zb_bucket *bucket = &plan->buckets[i];
        bucket->params = plan->params + first;
        bucket->param_count = end - first;
        bucket->transport = bucket_transport(b, bucket);
        for (int p = first; p < end; p++) plan->bucket_of[order[p]] = i;
        if (b->layout->stage < 3)
            fill_flat(b, bucket, plan->counts + (size_t)i * (size_t)b->layout->world_size);
        else if (bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER)
            fill_spread(b, bucket);
        else
            fill_whole(b, bucket);
        if (bucket->numel > plan->capacity) plan->capacity = bucket->numel;
        if (bucket->send_count > plan->send_capacity) plan->send_capacity = bucket->send_count;
        first = end;
    }
}

/* A group has W - 1 cuts at most, each of which makes one slice more. */
static size_t slice_bound(const zb_layout *layout, int order_count)
{
    const int is_cut = layout->stage == 1 || layout->stage == 2;
    const size_t cuts = (size_t)layout->group_count * ((size_t)layout->world_size - 1);
    return (size_t)order_count + (is_cut ? cuts : 0);
}

/* A rank owns one slice of a parameter at most. Slices stay apart as pieces only where owners are put
 * together, and as collectives only where these are cut at owners: world sizes in the thousands would show.
 */
static zb_status allocate_plan(const builder *b, int order_count, zb_buckets *plan)
{
    const size_t params = (size_t)b->layout->model->param_count, buckets = (size_t)plan->bucket_count;
    const size_t whole = (size_t)order_count, cut = slice_bound(b->layout, order_count);
    const zb_transport transport = b->rule->transport;
    const int has_counts = transport == ZB_TRANSPORT_REDUCE_SCATTER_V;
    const int cut_sends = transport == ZB_TRANSPORT_OWNERS || transport == ZB_TRANSPORT_ROOTED;
    const int cut_pieces = transport == ZB_TRANSPORT_ROOTED || (has_counts && b->layout->group_count > 1);
    plan->buckets = zb_alloc_array(buckets, sizeof *plan->buckets);
    plan->params = zb_alloc_array(whole, sizeof *plan->params);
    plan->counts = zb_alloc_array(has_counts ? buckets * (size_t)b->layout->world_size : 0,
                                  sizeof *plan->counts);
    plan->sends = zb_alloc_array(cut_sends ? cut : whole, sizeof *plan->sends);
    plan->own = zb_alloc_array(whole, sizeof *plan->own);
    plan->pieces = zb_alloc_array(cut_pieces ? cut : whole, sizeof *plan->pieces);
    plan->bucket_of = zb_alloc_array(params, sizeof *plan->bucket_of);
    plan->slot = zb_alloc_array(params, sizeof *plan->slot);
    plan->piece_count = zb_alloc_array(params, sizeof *plan->piece_count);
    const int complete = plan->buckets != NULL && plan->params != NULL && plan->counts != NULL &&
                         plan->sends != NULL && plan->own != NULL && plan->pieces != NULL &&
                         plan->bucket_of != NULL && plan->slot != NULL && plan->piece_count != NULL;
    return complete ? ZB_OK : ZB_NO_MEMORY;
}

static zb_status build(builder *b, const int *order, int order_count)
{
    const size_t slices = slice_bound(b->layout, order_count), world = (size_t)b->layout->world_size;
    for (int first = 0; first < order_count; b->plan->bucket_count++)
        first = bucket_end(b, order, order_count, first);
    b->slices = zb_alloc_array(slices, sizeof *b->slices);
    b->cursor = zb_alloc_array(world, sizeof *b->cursor);
    b->owned = zb_alloc_array(world, sizeof *b->owned);
    if (b->slices == NULL || b->cursor == NULL || b->owned == NULL) return ZB_NO_MEMORY;
    ZB_TRY(allocate_plan(b, order_count, b->plan));
    memcpy(b->plan->params, order, (size_t)order_count * sizeof *order);
    for (int p = 0; p < b->layout->model->param_count; p++) b->plan->bucket_of[p] = -1;
    fill_buckets(b, order, order_count);
    return ZB_OK;
}

zb_status zb_buckets_create(const zb_layout *layout, const zb_bucket_rule *rule, const int *order,
                            int order_count, int rank, zb_buckets *buckets)
{
    zb_buckets plan = { .layout = layout };
    builder b = { .layout = layout, .rule = rule, .rank = rank, .plan = &plan };
    const zb_status status = build(&b, order, order_count);
    zb_free(b.slices);
    zb_free(b.cursor);
    zb_free(b.owned);
    if (status != ZB_OK) {
        zb_buckets_destroy(&plan);
        return status;
    }
    *buckets = plan;
    return ZB_OK;
}

void zb_buckets_destroy(zb_buckets *buckets)
{
    zb_free(buckets->buckets);
    zb_free(buckets->params);
    zb_free(buckets->counts);
    zb_free(buckets->sends);
    zb_free(buckets->own);
    zb_free(buckets->pieces);
    zb_free(buckets->bucket_of);
    zb_free(buckets->slot);
    zb_free(buckets->piece_count);
    memset(buckets, 0, sizeof *buckets);
}

zb_collective_kind zb_transport_collective(const zb_bucket *bucket)
{
    switch (bucket->transport) {
    case ZB_TRANSPORT_REDUCE_SCATTER_V:
        return ZB_COLLECTIVE_REDUCE_SCATTER_V;
    case ZB_TRANSPORT_REDUCE_SCATTER:
        return ZB_COLLECTIVE_REDUCE_SCATTER;
    case ZB_TRANSPORT_ROOTED:
        return ZB_COLLECTIVE_REDUCE;
    default:
        return ZB_COLLECTIVE_ALL_REDUCE;
    }
}

zb_bucket_piece zb_buckets_piece(const zb_buckets *b, int param, int index)
{
    const zb_bucket *bucket = &b->buckets[b->bucket_of[param]];
    if (bucket->transport != ZB_TRANSPORT_REDUCE_SCATTER) return b->pieces[b->slot[param] + (size_t)index];
    const zb_slice part = zb_layout_slice(b->layout, param, index);
    return (zb_bucket_piece){ .first = part.first,
                              .numel = part.numel,
                              .at = (size_t)index * bucket->share_numel + b->slot[param],
                              .padding = b->layout->part_numel[param] - part.numel };
}
