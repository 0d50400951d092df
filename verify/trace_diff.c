/*
 * Two traces held against one another, step by step.
 *
 * Within a step the records of both sides are taken in the order in which a step computes them. What one side
 * shows of a tensor, in ranges from any number of ranks, becomes one cover of the tensor: a list of segments
 * that do not overlap. A range that meets a segment already there is a replica and must agree with it. Then
 * the two covers are walked side by side. So ranks are never paired with ranks, and the work is linear in
 * what the files hold.
 */
#include <zerobit/trace.h>

#include "verify/difference.h"
#include "verify/quantity.h"
#include "verify/trace_reader.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- covers --- */

typedef struct segment {
    size_t first, end;
    const zb_observation *record; /* shows these elements; the lowest rank that does */
} segment;

typedef struct cover {
    segment *segments; /* ascending, not overlapping */
    size_t count, capacity;
} cover;

/* The records of one side that belong to one tensor (or to one rank's numbers), and who the side is. */
typedef struct side {
    const char *name;
    const zb_observation *records;
    size_t count;
    cover cover;
} side;

static uint64_t bits_at(const zb_observation *record, size_t element)
{
    return zb_element_bits(record->dtype, record->data, element - record->first);
}

static const void *values_at(const zb_observation *record, size_t element)
{
    return (const unsigned char *)record->data + (element - record->first) * zb_dtype_bytes(record->dtype);
}

static zb_status insert_segment(cover *c, size_t at, segment fresh)
{
    if (c->count == c->capacity) {
        size_t capacity = 2 * c->capacity + 16;
        segment *grown = zb_realloc(c->segments, capacity * sizeof *grown);
        if (grown == NULL) return ZB_NO_MEMORY;
        c->segments = grown;
        c->capacity = capacity;
    }
    memmove(c->segments + at + 1, c->segments + at, (c->count - at) * sizeof fresh);
    c->segments[at] = fresh;
    c->count++;
    return ZB_OK;
}

/* The first segment that ends behind `element`. */
static size_t find_segment(const cover *c, size_t element)
{
    size_t low = 0, high = c->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c->segments[middle].end > element)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* --- the first difference within one group of records --- */

typedef struct finding {
    int found;
    zb_disagreement what;
} finding;

static void keep_earlier(finding *kept, const zb_disagreement *candidate)
{
    if (!kept->found || zb_disagreement_before(candidate, &kept->what)) kept->what = *candidate;
    kept->found = 1;
}

static void compare_overlap(const zb_observation *a, const char *name_a, const zb_observation *b,
                            const char *name_b, size_t first, size_t end, finding *kept)
{
    size_t equal = zb_equal_prefix(a->dtype, values_at(a, first), values_at(b, first), end - first);
    if (equal == end - first) return;
    size_t element = first + equal;
    zb_disagreement d = { .step = a->step,
                          .micro = a->micro,
                          .quantity = a->quantity,
                          .dtype = a->dtype,
                          .param = a->param,
                          .element = element,
                          .rank_a = a->rank,
                          .rank_b = b->rank,
                          .bits_a = bits_at(a, element),
                          .bits_b = bits_at(b, element),
                          .name_a = name_a,
                          .name_b = name_b };
    keep_earlier(kept, &d);
}

/* Add a range to its side's cover; where the cover has it already, the two must agree. */
static zb_status cover_range(side *s, const zb_observation *record, finding *kept)
{
    size_t at = record->first, end = record->first + record->numel;
    size_t index = find_segment(&s->cover, at);
    while (at < end) {
        const segment *next = index < s->cover.count ? &s->cover.segments[index] : NULL;
        if (next != NULL && next->first <= at) {
            size_t stop = next->end < end ? next->end : end;
            compare_overlap(next->record, s->name, record, s->name, at, stop, kept);
            at = stop;
        } else {
            size_t stop = next != NULL && next->first < end ? next->first : end;
            ZB_TRY(insert_segment(&s->cover, index, (segment){ at, stop, record }));
            at = stop;
        }
        index++;
    }
    return ZB_OK;
}

static zb_status build_cover(side *s, finding *kept)
{
    s->cover.count = 0;
    for (size_t i = 0; i < s->count; i++) ZB_TRY(cover_range(s, &s->records[i], kept));
    return ZB_OK;
}

static void keep_missing(const zb_observation *like, zb_missing missing, size_t element, int rank_a,
                         int rank_b, const side *a, const side *b, finding *kept)
{
    zb_disagreement d = { .step = like->step,
                          .micro = like->micro,
                          .quantity = like->quantity,
                          .param = like->param,
                          .element = element,
                          .rank_a = rank_a,
                          .rank_b = rank_b,
                          .missing = missing,
                          .name_a = a->name,
                          .name_b = b->name };
    keep_earlier(kept, &d);
}

/* Walk both covers over [0, numel): compare what both have; with `complete`, what one lacks is a difference.
 */
static void compare_covers(const side *a, const side *b, size_t numel, int complete, finding *kept)
{
    const zb_observation *like = a->count > 0 ? a->records : b->records;
    size_t at = 0, ia = 0, ib = 0;
    while (at < numel) {
        while (ia < a->cover.count && a->cover.segments[ia].end <= at) ia++;
        while (ib < b->cover.count && b->cover.segments[ib].end <= at) ib++;
        const segment *sa = ia < a->cover.count ? &a->cover.segments[ia] : NULL;
        const segment *sb = ib < b->cover.count ? &b->cover.segments[ib] : NULL;
        int in_a = sa != NULL && sa->first <= at, in_b = sb != NULL && sb->first <= at;

        size_t stop = numel;
        size_t stop_a = sa == NULL ? numel : in_a ? sa->end : sa->first;
        size_t stop_b = sb == NULL ? numel : in_b ? sb->end : sb->first;
        if (stop_a < stop) stop = stop_a;
        if (stop_b < stop) stop = stop_b;
        if (in_a && in_b) {
            compare_overlap(sa->record, a->name, sb->record, b->name, at, stop, kept);
        } else if (complete) {
            zb_missing missing = in_a ? ZB_MISSING_B : in_b ? ZB_MISSING_A : ZB_MISSING_BOTH;
            keep_missing(like, missing, at, in_a ? sa->record->rank : ZB_EVERY_RANK,
                         in_b ? sb->record->rank : ZB_EVERY_RANK, a, b, kept);
            return;
        }
        at = stop;
    }
}

/* --- the walk --- */

typedef struct diff {
    const char *path_a, *path_b;
    zb_trace_reader *reader_a, *reader_b;
    const zb_trace_info *info_a, *info_b;
    side a, b; /* of the group being compared */
} diff;

static int factors_equal(zb_factor a, zb_factor b)
{
    return a.kind == b.kind && (a.kind == ZB_FACTOR_NONE || a.by == b.by);
}

/* Whether equal gradients on a rank are equal contributions. */
static int send_alike(const zb_trace_plan *a, const zb_trace_plan *b)
{
    const int same_micro_batches = a->accumulation_steps == b->accumulation_steps &&
                                   (a->reduce_when == b->reduce_when || a->accumulation_steps == 1);
    int same_factors = factors_equal(a->averaging.in_bucket, b->averaging.in_bucket);
    for (int k = 0; k < 2; k++) same_factors &= factors_equal(a->averaging.before[k], b->averaging.before[k]);
    return same_micro_batches && same_factors && a->local_dtype == b->local_dtype &&
           a->bucket_dtype == b->bucket_dtype && a->comm_dtype == b->comm_dtype;
}

/* Ranks of different worlds have nothing in common but what all of them agree on. */
static int is_compared(const diff *d, zb_quantity quantity)
{
    int same_world = d->info_a->world_size == d->info_b->world_size;
    if (quantity == ZB_Q_BYTES_HELD || quantity == ZB_Q_CALLS || quantity == ZB_Q_BYTES_SENT)
        return same_world && d->info_a->stage == d->info_b->stage;
    if (quantity == ZB_Q_CONTRIBUTION) return same_world && send_alike(&d->info_a->plan, &d->info_b->plan);
    if (quantity == ZB_Q_COUNTERS || zb_quantity_get(quantity)->scope == ZB_SCOPE_RANK) return same_world;
    return 1;
}

/* Before training only the weights are everyone's to show; an engine may show more of itself than an oracle.
 * A frozen tensor has no gradient, moments or master weight that a stage must keep. */
static int must_be_shown(const diff *d, const zb_observation *like)
{
    zb_quantity quantity = like->quantity;
    if (zb_quantity_is_optional(quantity)) return 0;
    if (like->step < 0 && quantity != ZB_Q_MASTER && quantity != ZB_Q_PARAM) return 0;
    if (zb_quantity_get(quantity)->scope != ZB_SCOPE_PARAM || quantity == ZB_Q_PARAM) return 1;
    return d->info_a->params[like->param].requires_grad;
}

static size_t extent(const side *a, const side *b)
{
    size_t end = 0;
    for (size_t i = 0; i < a->count; i++)
        if (a->records[i].first + a->records[i].numel > end) end = a->records[i].first + a->records[i].numel;
    for (size_t i = 0; i < b->count; i++)
        if (b->records[i].first + b->records[i].numel > end) end = b->records[i].first + b->records[i].numel;
    return end;
}

/* The numel that a quantity must have: known, or (samples of a micro-batch) what the longer side shows. */
static size_t group_numel(const diff *d, const side *a, const side *b)
{
    const zb_observation *like = a->count > 0 ? a->records : b->records;
    const zb_quantity_facts *facts = zb_quantity_get(like->quantity);
    if (zb_quantity_is_of_param(like->quantity)) return d->info_a->params[like->param].numel;
    return facts->numel != 0 ? facts->numel : extent(a, b);
}

/* A tensor in two precisions has no bits in common; that is no difference in a run but two kinds of run. */
static zb_status check_types(const zb_observation *like, const side *s)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->records[i].dtype != like->dtype)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "%s shows %s as %s where it is %s elsewhere: traces of different "
                           "precisions cannot be compared",
                           s->name, zb_quantity_name(like->quantity), zb_dtype_name(s->records[i].dtype),
                           zb_dtype_name(like->dtype));
    return ZB_OK;
}

static zb_status compare_group(const diff *d, side *a, side *b, finding *kept)
{
    const zb_observation *like = a->count > 0 ? a->records : b->records;
    ZB_TRY(check_types(like, a));
    ZB_TRY(check_types(like, b));
    ZB_TRY(build_cover(a, kept));
    ZB_TRY(build_cover(b, kept));
    size_t numel = group_numel(d, a, b);
    if (numel == 0 && must_be_shown(d, like) && (a->count == 0 || b->count == 0))
        keep_missing(like, a->count == 0 ? ZB_MISSING_A : ZB_MISSING_B, 0,
                     a->count ? a->records->rank : ZB_EVERY_RANK, b->count ? b->records->rank : ZB_EVERY_RANK,
                     a, b, kept);
    compare_covers(a, b, numel, must_be_shown(d, like), kept);
    return ZB_OK;
}

/* The records of one rank, from the front of what is left; a record for every rank serves each of them. */
static void split_rank(side *s, side *left, int rank)
{
    s->records = left->records;
    s->count = 0;
    if (left->count > 0 && left->records->rank == ZB_EVERY_RANK) {
        while (s->count < left->count && s->records[s->count].rank == ZB_EVERY_RANK) s->count++;
        return;
    }
    while (s->count < left->count && s->records[s->count].rank == rank) s->count++;
    left->records += s->count;
    left->count -= s->count;
}

static int front_rank(const side *left)
{
    if (left->count == 0) return INT32_MAX;
    return left->records->rank;
}

/* Each rank's numbers against the same rank's. */
static zb_status compare_ranks(diff *d, side left_a, side left_b, finding *kept)
{
    while (left_a.count > 0 || left_b.count > 0) {
        int rank_a = front_rank(&left_a), rank_b = front_rank(&left_b);
        int every_a = rank_a == ZB_EVERY_RANK, every_b = rank_b == ZB_EVERY_RANK;
        if ((every_a && left_b.count == 0) || (every_b && left_a.count == 0)) break; /* served its purpose */
        int rank = every_a ? rank_b : every_b ? rank_a : rank_a < rank_b ? rank_a : rank_b;
        split_rank(&d->a, &left_a, rank);
        split_rank(&d->b, &left_b, rank);
        ZB_TRY(compare_group(d, &d->a, &d->b, kept));
        if (every_a && every_b) break;
    }
    return ZB_OK;
}

/* Order of two groups: (quantity, micro, param). */
static int group_order(const zb_observation *a, const zb_observation *b)
{
    if (a->quantity != b->quantity) return a->quantity < b->quantity ? -1 : 1;
    if (a->micro != b->micro) return a->micro < b->micro ? -1 : 1;
    if (a->param != b->param) return a->param < b->param ? -1 : 1;
    return 0;
}

static void take_group(side *s, const zb_record_list *list, size_t *next, const zb_observation *like)
{
    s->records = list->records + *next;
    s->count = 0;
    while (*next < list->count && group_order(&list->records[*next], like) == 0) {
        s->count++;
        ++*next;
    }
}

static zb_status compare_step(diff *d, const zb_record_list *list_a, const zb_record_list *list_b,
                              finding *kept)
{
    size_t next_a = 0, next_b = 0;
    while (!kept->found && (next_a < list_a->count || next_b < list_b->count)) {
        const zb_observation *front_a = next_a < list_a->count ? &list_a->records[next_a] : NULL;
        const zb_observation *front_b = next_b < list_b->count ? &list_b->records[next_b] : NULL;
        const zb_observation *like = front_a;
        if (front_a == NULL || (front_b != NULL && group_order(front_b, front_a) < 0)) like = front_b;

        take_group(&d->a, list_a, &next_a, like);
        take_group(&d->b, list_b, &next_b, like);
        if (!is_compared(d, like->quantity)) continue;
        const zb_scope scope = zb_quantity_get(like->quantity)->scope;
        if (scope == ZB_SCOPE_RANK || scope == ZB_SCOPE_RANK_PARAM)
            ZB_TRY(compare_ranks(d, d->a, d->b, kept));
        else
            ZB_TRY(compare_group(d, &d->a, &d->b, kept));
    }
    return ZB_OK;
}

static void missing_step(const diff *d, const zb_record_list *a, const zb_record_list *b, finding *kept)
{
    int in_a = a->count > 0 && (b->count == 0 || a->records->step < b->records->step);
    const zb_observation *like = in_a ? a->records : b->records;
    keep_missing(like, in_a ? ZB_MISSING_B : ZB_MISSING_A, like->first, in_a ? like->rank : ZB_EVERY_RANK,
                 in_a ? ZB_EVERY_RANK : like->rank, &d->a, &d->b, kept);
}

static zb_status compare_traces(diff *d, finding *kept)
{
    const zb_record_list *step_a, *step_b;
    do {
        ZB_TRY(zb_trace_reader_next_step(d->reader_a, &step_a));
        ZB_TRY(zb_trace_reader_next_step(d->reader_b, &step_b));
        /* After the first difference both files are only read on: a damaged file gets no verdict. */
        if (kept->found || (step_a->count == 0 && step_b->count == 0)) continue;
        if (step_a->count == 0 || step_b->count == 0 || step_a->records->step != step_b->records->step)
            missing_step(d, step_a, step_b, kept);
        else
            ZB_TRY(compare_step(d, step_a, step_b, kept));
    } while (step_a->count > 0 || step_b->count > 0);
    return ZB_OK;
}

/* --- */

static zb_status run_diff(diff *d, zb_difference *difference)
{
    ZB_TRY(zb_trace_reader_open(d->path_a, &d->reader_a));
    ZB_TRY(zb_trace_reader_open(d->path_b, &d->reader_b));
    d->info_a = zb_trace_reader_info(d->reader_a);
    d->info_b = zb_trace_reader_info(d->reader_b);
    ZB_TRY(zb_trace_check_models(d->path_a, d->info_a, d->path_b, d->info_b));

    finding kept = { 0 };
    ZB_TRY(compare_traces(d, &kept));
    *difference = (zb_difference){ 0 };
    if (kept.found) {
        kept.what.tensor = kept.what.param >= 0 ? d->info_a->params[kept.what.param].name : NULL;
        zb_difference_describe(&kept.what, difference);
    }
    return ZB_OK;
}

zb_status zb_trace_diff(const char *path_a, const char *path_b, zb_difference *difference)
{
    diff d = { .path_a = path_a, .path_b = path_b, .a = { .name = path_a }, .b = { .name = path_b } };
    zb_status status = run_diff(&d, difference);
    zb_trace_reader_destroy(d.reader_a);
    zb_trace_reader_destroy(d.reader_b);
    zb_free(d.a.cover.segments);
    zb_free(d.b.cover.segments);
    return status;
}
