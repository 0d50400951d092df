/* An engine's observations held against the oracle's. */
#include "verify/compare.h"

#include "verify/coverage.h"
#include "verify/difference.h"
#include "verify/quantity.h"

#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- the reference --- */

/* The values that one observation of the oracle, or several, gave to one tensor. */
typedef struct slot {
    unsigned char *data;
    zb_dtype dtype;
    size_t numel, capacity_bytes;
    int is_shown;
} slot;

struct zb_reference {
    const zb_model *model;
    int world_size;
    int64_t micro_count;
    int with_contributions;
    int64_t step;
    slot *slots;
    size_t slot_count;
    size_t first_slot[ZB_QUANTITY_COUNT];
};

static size_t slots_of_quantity(const zb_reference *reference, zb_quantity quantity)
{
    const zb_quantity_facts *facts = zb_quantity_get(quantity);
    size_t count = 1;
    if (quantity == ZB_Q_CONTRIBUTION && !reference->with_contributions) return 0; /* there may be many */
    if (facts->scope == ZB_SCOPE_PARAM) count = (size_t)reference->model->param_count;
    if (facts->scope == ZB_SCOPE_RANK) count = (size_t)reference->world_size;
    if (facts->scope == ZB_SCOPE_RANK_PARAM)
        count = (size_t)reference->world_size * (size_t)reference->model->param_count;
    return facts->of_micro_batch ? count * (size_t)reference->micro_count : count;
}

/* NULL for a micro-batch that the plan does not have, and for a contribution that nobody wants. */
static slot *find_slot(const zb_reference *reference, const zb_observation *o)
{
    const zb_quantity_facts *facts = zb_quantity_get(o->quantity);
    if (slots_of_quantity(reference, o->quantity) == 0) return NULL;
    size_t index = 0;
    if (facts->scope == ZB_SCOPE_PARAM) index = (size_t)o->param;
    size_t per_micro = (size_t)reference->world_size;
    if (facts->scope == ZB_SCOPE_RANK) index = (size_t)o->rank;
    if (facts->scope == ZB_SCOPE_RANK_PARAM) {
        index = (size_t)o->rank * (size_t)reference->model->param_count + (size_t)o->param;
        per_micro *= (size_t)reference->model->param_count;
    }
    if (facts->of_micro_batch) {
        if (o->micro >= reference->micro_count) return NULL;
        index += (size_t)o->micro * per_micro;
    }
    return &reference->slots[reference->first_slot[o->quantity] + index];
}

zb_status zb_reference_create(const zb_model *model, const zb_plan *plan, int with_contributions,
                              zb_reference **reference_p)
{
    zb_reference *reference = zb_alloc(sizeof *reference);
    if (reference == NULL) return ZB_NO_MEMORY;
    reference->model = model;
    reference->world_size = plan->world_size;
    reference->micro_count = plan->accumulation_steps;
    reference->with_contributions = with_contributions;
    for (int q = 0; q < ZB_QUANTITY_COUNT; q++) {
        reference->first_slot[q] = reference->slot_count;
        reference->slot_count += slots_of_quantity(reference, (zb_quantity)q);
    }
    reference->slots = zb_alloc_array(reference->slot_count, sizeof *reference->slots);
    if (reference->slots == NULL) {
        zb_free(reference);
        return ZB_NO_MEMORY;
    }
    *reference_p = reference;
    return ZB_OK;
}

void zb_reference_destroy(zb_reference *reference)
{
    if (reference == NULL) return;
    for (size_t i = 0; i < reference->slot_count; i++) zb_free(reference->slots[i].data);
    zb_free(reference->slots);
    zb_free(reference);
}

void zb_reference_begin(zb_reference *reference, int64_t step)
{
    reference->step = step;
    for (size_t i = 0; i < reference->slot_count; i++) {
        reference->slots[i].numel = 0;
        reference->slots[i].is_shown = 0;
    }
}

/* The oracle has no bug of the user's to report: what it shows wrongly is an internal error. */
static zb_status reference_observe(void *user, const zb_observation *o)
{
    zb_reference *reference = user;
    const char *fault = zb_observation_fault(o, reference->model->params, reference->model->param_count,
                                             reference->world_size);
    if (fault == NULL && o->step != reference->step) fault = "another step";
    if (fault == NULL && zb_quantity_get(o->quantity)->scope == ZB_SCOPE_RANK && o->rank == ZB_EVERY_RANK)
        fault = "no rank";
    slot *s = fault == NULL ? find_slot(reference, o) : NULL;
    if (fault == NULL && s == NULL)
        fault = o->quantity == ZB_Q_CONTRIBUTION ? "nobody asking" : "a micro-batch too many";
    if (fault == NULL && o->first != s->numel) fault = "ranges that do not follow one another";
    if (fault != NULL)
        return zb_fail(ZB_INTERNAL, "the oracle shows %s with %s (step %" PRId64 ", rank %d)",
                       zb_quantity_name(o->quantity), fault, o->step, o->rank);

    size_t element_bytes = zb_dtype_bytes(o->dtype), bytes = (o->first + o->numel) * element_bytes;
    if (bytes > s->capacity_bytes) {
        unsigned char *grown = zb_realloc(s->data, bytes);
        if (grown == NULL) return ZB_NO_MEMORY;
        s->data = grown;
        s->capacity_bytes = bytes;
    }
    if (o->numel > 0) memcpy(s->data + o->first * element_bytes, o->data, o->numel * element_bytes);
    s->dtype = o->dtype;
    s->numel = o->first + o->numel;
    s->is_shown = 1;
    return ZB_OK;
}

zb_observer zb_reference_observer(zb_reference *reference)
{
    return (zb_observer){ reference_observe, reference };
}

int zb_reference_is_skipped(const zb_reference *reference)
{
    const slot *s = &reference->slots[reference->first_slot[ZB_Q_OVERFLOW]];
    int64_t overflow = 0;
    if (s->is_shown) memcpy(&overflow, s->data, sizeof overflow);
    return overflow != 0;
}

/* --- the comparison --- */

/* What one rank has shown in this step. Written by that rank's thread alone. */
typedef struct rank_tally {
    uint64_t shown[ZB_QUANTITY_COUNT]; /* elements */
    uint64_t compared;
} rank_tally;

struct zb_compare {
    const zb_reference *reference;
    int whole_param_on_every_rank;
    const uint64_t *owned_numel;
    int64_t bytes_held[ZB_MEM_COUNT];
    int64_t calls[ZB_COLLECTIVE_COUNT], bytes_sent[ZB_COLLECTIVE_COUNT]; /* in this step */
    rank_tally *tallies;                                                 /* [world_size] */

    pthread_mutex_t lock;  /* of what follows */
    zb_coverage *coverage; /* [slot_count of the reference]; used for tensors of parameters */
    int found;
    zb_disagreement earliest;
};

zb_status zb_compare_create(const zb_compare_options *options, zb_compare **compare_p)
{
    const zb_reference *reference = options->reference;
    zb_compare *compare = zb_alloc(sizeof *compare);
    if (compare == NULL) return ZB_NO_MEMORY;
    pthread_mutex_init(&compare->lock, NULL);
    compare->reference = reference;
    compare->whole_param_on_every_rank = options->whole_param_on_every_rank;
    compare->owned_numel = options->owned_numel;
    for (int i = 0; i < ZB_MEM_COUNT; i++) compare->bytes_held[i] = (int64_t)options->bytes_held[i];
    compare->tallies = zb_alloc_array((size_t)reference->world_size, sizeof *compare->tallies);
    compare->coverage = zb_alloc_array(reference->slot_count, sizeof *compare->coverage);
    if (compare->tallies == NULL || compare->coverage == NULL) {
        zb_compare_destroy(compare);
        return ZB_NO_MEMORY;
    }
    *compare_p = compare;
    return ZB_OK;
}

void zb_compare_destroy(zb_compare *compare)
{
    if (compare == NULL) return;
    for (size_t i = 0; compare->coverage != NULL && i < compare->reference->slot_count; i++)
        zb_coverage_destroy(&compare->coverage[i]);
    zb_free(compare->coverage);
    zb_free(compare->tallies);
    pthread_mutex_destroy(&compare->lock);
    zb_free(compare);
}

void zb_compare_begin(zb_compare *compare, const zb_traffic *traffic)
{
    for (int i = 0; traffic != NULL && i < ZB_COLLECTIVE_COUNT; i++) {
        compare->calls[i] = (int64_t)traffic[i].calls;
        compare->bytes_sent[i] = (int64_t)traffic[i].bytes;
    }
    compare->found = 0;
    for (size_t i = 0; i < compare->reference->slot_count; i++) zb_coverage_clear(&compare->coverage[i]);
    for (int r = 0; r < compare->reference->world_size; r++)
        memset(compare->tallies[r].shown, 0, sizeof compare->tallies[r].shown);
}

static void keep_earlier(zb_compare *compare, const zb_disagreement *candidate)
{
    if (!compare->found || zb_disagreement_before(candidate, &compare->earliest))
        compare->earliest = *candidate;
    compare->found = 1;
}

static zb_disagreement disagreement_at(const zb_compare *compare, zb_quantity quantity, int64_t micro,
                                       int param, uint64_t element, int rank)
{
    const zb_model *model = compare->reference->model;
    return (zb_disagreement){ .step = compare->reference->step,
                              .micro = micro,
                              .quantity = quantity,
                              .dtype = zb_quantity_get(quantity)->dtype,
                              .param = param,
                              .tensor = param >= 0 ? model->params[param].name : NULL,
                              .element = element,
                              .rank_a = ZB_EVERY_RANK,
                              .rank_b = rank,
                              .name_a = "the oracle",
                              .name_b = "the engine" };
}

/* Hold [o->first, o->first + o->numel) against `reference`, which has `numel` elements. */
static void compare_values(zb_compare *compare, const zb_observation *o, const void *reference, size_t numel)
{
    size_t element_bytes = zb_dtype_bytes(o->dtype);
    size_t common = o->first >= numel ? 0 : numel - o->first < o->numel ? numel - o->first : o->numel;
    /* What the oracle does not show has no address to count from. */
    const unsigned char *expected = common > 0 ? (const unsigned char *)reference + o->first * element_bytes
                                               : NULL;
    size_t equal = zb_equal_prefix(o->dtype, expected, o->data, common);
    compare->tallies[o->rank].compared += common;
    if (equal == o->numel) return;

    zb_disagreement d = disagreement_at(compare, o->quantity, o->micro, o->param, o->first + equal, o->rank);
    if (equal < common) {
        d.dtype = o->dtype;
        d.bits_a = zb_element_bits(o->dtype, expected, equal);
        d.bits_b = zb_element_bits(o->dtype, o->data, equal);
    } else {
        d.missing = ZB_MISSING_A;
    }
    pthread_mutex_lock(&compare->lock);
    keep_earlier(compare, &d);
    pthread_mutex_unlock(&compare->lock);
}

static zb_status note_coverage(zb_compare *compare, const zb_observation *o, const slot *s)
{
    pthread_mutex_lock(&compare->lock);
    zb_status status = zb_coverage_add(&compare->coverage[s - compare->reference->slots], o->first, o->numel);
    pthread_mutex_unlock(&compare->lock);
    return status;
}

static zb_status compare_observe(void *user, const zb_observation *o)
{
    zb_compare *compare = user;
    const zb_reference *reference = compare->reference;
    const char *fault = zb_observation_fault(o, reference->model->params, reference->model->param_count,
                                             reference->world_size);
    if (fault == NULL && o->rank == ZB_EVERY_RANK) fault = "no rank";
    if (fault == NULL && o->step != reference->step) fault = "another step than the one under way";
    slot *s = fault == NULL ? find_slot(reference, o) : NULL;
    if (fault == NULL && s == NULL)
        fault = o->quantity == ZB_Q_CONTRIBUTION ? "nobody asking" : "a micro-batch too many";
    if (fault == NULL && s->is_shown && s->dtype != o->dtype)
        fault = "another element type than the oracle's";
    if (fault != NULL)
        return zb_fail(ZB_DIFFERENT,
                       "step %" PRId64 ", rank %d: the engine shows %s with %s (its step is %" PRId64 ")",
                       reference->step, o->rank, zb_quantity_name(o->quantity), fault, o->step);

    compare->tallies[o->rank].shown[o->quantity] += o->numel;
    if (o->quantity == ZB_Q_BYTES_HELD) {
        compare_values(compare, o, compare->bytes_held, ZB_MEM_COUNT);
    } else if (o->quantity == ZB_Q_CALLS || o->quantity == ZB_Q_BYTES_SENT) {
        /* The formula is of a training step; what initialize sends is not in it. */
        const int64_t *formula = o->quantity == ZB_Q_CALLS ? compare->calls : compare->bytes_sent;
        if (o->step >= 0) compare_values(compare, o, formula, ZB_COLLECTIVE_COUNT);
    } else if (s->is_shown || o->step >= 0) {
        /* Before training the oracle shows weights only; an engine may show more of itself. */
        compare_values(compare, o, s->data, s->numel);
        if (zb_quantity_get(o->quantity)->scope == ZB_SCOPE_PARAM) return note_coverage(compare, o, s);
    }
    return ZB_OK;
}

zb_observer zb_compare_observer(zb_compare *compare)
{
    return (zb_observer){ compare_observe, compare };
}

/* --- what must have been shown --- */

/* Over all ranks, every element of every tensor that the oracle shows; a frozen one only as the model's
 * weight. */
static void check_coverage(zb_compare *compare, zb_quantity quantity)
{
    const zb_reference *reference = compare->reference;
    for (int param = 0; param < reference->model->param_count; param++) {
        size_t index = reference->first_slot[quantity] + (size_t)param;
        const slot *s = &reference->slots[index];
        if (!s->is_shown) continue;
        if (!reference->model->params[param].requires_grad && quantity != ZB_Q_PARAM) continue;
        size_t gap = zb_coverage_gap(&compare->coverage[index], s->numel);
        if (gap >= s->numel) continue;
        zb_disagreement d = disagreement_at(compare, quantity, -1, param, gap, ZB_EVERY_RANK);
        d.missing = ZB_MISSING_B;
        keep_earlier(compare, &d);
    }
}

static int any_shown(const zb_reference *reference, zb_quantity quantity)
{
    for (int param = 0; param < reference->model->param_count; param++)
        if (reference->slots[reference->first_slot[quantity] + (size_t)param].is_shown) return 1;
    return 0;
}

/* What the oracle shows of a rank's contributions. */
static uint64_t contributed_elements(const zb_reference *reference, int rank)
{
    const int params = reference->model->param_count;
    const slot *slots = &reference->slots[reference->first_slot[ZB_Q_CONTRIBUTION]];
    uint64_t sum = 0;
    for (int64_t micro = 0; reference->with_contributions && micro < reference->micro_count; micro++)
        for (int param = 0; param < params; param++)
            sum += slots[(micro * reference->world_size + rank) * params + param].numel;
    return sum;
}

/* How many elements of a quantity each rank must show; UINT64_MAX: as many as it likes. */
static uint64_t expected_elements(const zb_compare *compare, zb_quantity quantity, int rank)
{
    const zb_reference *reference = compare->reference;
    const slot *slots = &reference->slots[reference->first_slot[quantity]];
    if (quantity == ZB_Q_BYTES_HELD) return ZB_MEM_COUNT;
    if (quantity == ZB_Q_CALLS || quantity == ZB_Q_BYTES_SENT)
        return reference->step >= 0 ? ZB_COLLECTIVE_COUNT : UINT64_MAX;
    if (quantity == ZB_Q_PARAM)
        return compare->whole_param_on_every_rank ? reference->model->param_numel : UINT64_MAX;

    switch (zb_quantity_get(quantity)->scope) {
    case ZB_SCOPE_PARAM:
        return compare->owned_numel != NULL && any_shown(reference, quantity) ? compare->owned_numel[rank]
                                                                              : UINT64_MAX;
    case ZB_SCOPE_WORLD:
        return slots->is_shown || reference->step >= 0 ? slots->numel : UINT64_MAX;
    case ZB_SCOPE_RANK:
        break;
    case ZB_SCOPE_RANK_PARAM:
        return contributed_elements(reference, rank);
    }
    uint64_t sum = 0;
    for (int64_t micro = 0; micro < reference->micro_count; micro++)
        sum += slots[micro * reference->world_size + rank].numel;
    return sum;
}

static void check_tally(zb_compare *compare, zb_quantity quantity, int rank)
{
    uint64_t expected = expected_elements(compare, quantity, rank);
    uint64_t shown = compare->tallies[rank].shown[quantity];
    if (expected == UINT64_MAX || shown == expected) return;
    zb_disagreement d = disagreement_at(compare, quantity, -1, ZB_NO_PARAM,
                                        shown < expected ? shown : expected, rank);
    d.missing = shown < expected ? ZB_MISSING_B : ZB_MISSING_A;
    keep_earlier(compare, &d);
}

void zb_compare_finish(zb_compare *compare, zb_difference *difference)
{
    for (int q = 0; q < ZB_QUANTITY_COUNT; q++) {
        if (zb_quantity_get((zb_quantity)q)->scope == ZB_SCOPE_PARAM) check_coverage(compare, (zb_quantity)q);
        for (int rank = 0; rank < compare->reference->world_size; rank++)
            check_tally(compare, (zb_quantity)q, rank);
    }
    zb_compare_break_off(compare, difference);
}

void zb_compare_break_off(zb_compare *compare, zb_difference *difference)
{
    *difference = (zb_difference){ 0 };
    if (compare->found) zb_difference_describe(&compare->earliest, difference);
}

uint64_t zb_compare_value_count(const zb_compare *compare)
{
    uint64_t sum = 0;
    for (int r = 0; r < compare->reference->world_size; r++) sum += compare->tallies[r].compared;
    return sum;
}
