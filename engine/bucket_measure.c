/* Bucket plans measured without making them; see bucket.h. Packs on its own, sharing nothing with bucket.c:
 * the formulas are what a plan is held to. */
#include "engine/bucket.h"

typedef struct packer {
    const zb_layout *layout;
    const zb_bucket_rule *rule;
    zb_bucket_measure *measure;
    uint64_t filled; /* elements of parameters in the bucket */
    uint64_t buffer; /* elements of its buffer               */
    int last_param;
} packer;

static size_t numel_of(const packer *k, int param)
{
    return k->layout->model->params[param].numel;
}

static void count(packer *k, zb_collective_kind kind, uint64_t numel)
{
    k->measure->calls[kind]++;
    k->measure->numel[kind] += numel;
}

static int owner_of(const packer *k, int param, size_t element)
{
    const zb_layout_group *g = &k->layout->groups[k->layout->group_of[param]];
    return (int)((k->layout->offset[param] - g->flat_begin + element) / g->rank_numel);
}

/* Elements of the parameter, from `first` on, that belong to the owner of `first`. */
static size_t run_of(const packer *k, int param, size_t first)
{
    const zb_layout_group *g = &k->layout->groups[k->layout->group_of[param]];
    const size_t left = g->rank_numel - (k->layout->offset[param] - g->flat_begin + first) % g->rank_numel;
    return left < numel_of(k, param) - first ? left : numel_of(k, param) - first;
}

/* Calls of one owner (or of all of them: -1), whose runs end a call when they take it beyond the limit. */
static void count_runs(packer *k, const int *params, int param_count, int owner, zb_collective_kind kind)
{
    uint64_t run = 0, call = 0;
    int run_owner = -1;
    for (int i = 0; i <= param_count; i++) {
        const size_t numel = i < param_count ? numel_of(k, params[i]) : 1;
        for (size_t first = 0, step; first < numel; first += step) {
            const int next = i < param_count ? owner_of(k, params[i], first) : -1;
            step = i < param_count ? run_of(k, params[i], first) : 1;
            if (next != run_owner) { /* the run is over */
                call += run;
                if (call > k->rule->limit_numel) {
                    count(k, kind, call);
                    call = 0;
                }
                run = 0;
                run_owner = next;
            }
            if (owner < 0 || next == owner) run += step;
        }
    }
    if (call > 0) count(k, kind, call);
}

static void close_bucket(packer *k, const int *params, int param_count)
{
    zb_bucket_measure *m = k->measure;
    m->bucket_count++;
    if (k->buffer > m->capacity) m->capacity = (size_t)k->buffer;
    const int oversized = k->layout->stage == 3 && k->filled > k->rule->limit_numel;
    switch (oversized ? ZB_TRANSPORT_REDUCE_SCATTER : k->rule->transport) {
    case ZB_TRANSPORT_ALL_REDUCE:
        count(k, ZB_COLLECTIVE_ALL_REDUCE, k->buffer);
        break;
    case ZB_TRANSPORT_REDUCE_SCATTER_V:
        count(k, ZB_COLLECTIVE_REDUCE_SCATTER_V, k->buffer);
        break;
    case ZB_TRANSPORT_REDUCE_SCATTER:
        count(k, ZB_COLLECTIVE_REDUCE_SCATTER, k->buffer);
        break;
    case ZB_TRANSPORT_OWNERS:
        count_runs(k, params, param_count, -1, ZB_COLLECTIVE_ALL_REDUCE);
        break;
    case ZB_TRANSPORT_ROOTED:
        for (int owner = 0; owner < k->layout->world_size; owner++)
            count_runs(k, params, param_count, owner, ZB_COLLECTIVE_REDUCE);
        break;
    case ZB_TRANSPORT_NONE:
        break;
    }
    k->filled = k->buffer = 0;
}

static size_t padding_after(const packer *k, int param)
{
    const zb_layout_group *g = &k->layout->groups[k->layout->group_of[param]];
    const int is_last = k->layout->offset[param] + numel_of(k, param) == g->flat_begin + g->numel;
    return k->rule->whole_groups && is_last ? g->padded_numel - g->numel : 0;
}

static int must_close_before(const packer *k, int param)
{
    const zb_bucket_rule *rule = k->rule;
    if (rule->in_place && k->layout->group_of[k->last_param] != k->layout->group_of[param]) return 1;
    if (rule->close == ZB_CLOSE_BEFORE_LIMIT) return k->filled + numel_of(k, param) > rule->limit_numel;
    const int may = !rule->whole_groups || k->layout->group_of[k->last_param] != k->layout->group_of[param];
    return may && k->filled > rule->limit_numel;
}

zb_bucket_measure zb_buckets_measure(const zb_layout *layout, const zb_bucket_rule *rule, const int *order,
                                     int order_count)
{
    zb_bucket_measure measure = { 0 };
    packer k = { .layout = layout, .rule = rule, .measure = &measure };
    int first = 0;
    for (int i = 0; i < order_count; i++) {
        if (i > first && must_close_before(&k, order[i])) {
            close_bucket(&k, order + first, i - first);
            first = i;
        }
        const size_t numel = numel_of(&k, order[i]) + padding_after(&k, order[i]);
        const int is_spread = rule->transport == ZB_TRANSPORT_REDUCE_SCATTER ||
                              (layout->stage == 3 && numel > rule->limit_numel);
        k.filled += numel;
        k.buffer += is_spread ? layout->part_numel[order[i]] * (size_t)layout->world_size : numel;
        k.last_param = order[i];
    }
    if (first < order_count) close_bucket(&k, order + first, order_count - first);
    return measure;
}
