/* A report that another process has written as JSON; see report_read.h. */
#include "tools/report_read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zerobit/orders.h>

#include "core/json.h"

/* --- members --- */

static zb_status read_int(const zb_json_at *object, const char *key, int64_t *out)
{
    zb_json_at at = zb_json_member(object, key);
    return zb_json_int64(&at, -1, ZB_JSON_MAX_INTEGER, out);
}

static zb_status read_double(const zb_json_at *object, const char *key, double *out)
{
    zb_json_at at = zb_json_member(object, key);
    return zb_json_double(&at, out);
}

static zb_status read_string(const zb_json_at *object, const char *key, const char **out)
{
    zb_json_at at = zb_json_member(object, key);
    return zb_json_string(&at, out);
}

/* "" when it is not there. */
static zb_status copy_string(const zb_json_at *object, const char *key, char *text, size_t text_bytes)
{
    const char *found = "";
    zb_json_at at = zb_json_member(object, key);
    if (zb_json_given(&at)) ZB_TRY(zb_json_string(&at, &found));
    snprintf(text, text_bytes, "%s", found);
    return ZB_OK;
}

static zb_status read_dtype(const zb_json_at *object, zb_dtype *dtype)
{
    const char *text;
    zb_json_at at = zb_json_member(object, "dtype");
    ZB_TRY(zb_json_string(&at, &text));
    if (!zb_dtype_parse(text, dtype)) return zb_json_fail(&at, ZB_CORRUPT, "an element type");
    return ZB_OK;
}

static zb_status read_status(const zb_json_at *object, zb_status *status)
{
    const char *text;
    zb_json_at at = zb_json_member(object, "status");
    *status = ZB_OK;
    if (!zb_json_given(&at)) return ZB_OK;
    ZB_TRY(zb_json_string(&at, &text));
    for (int s = ZB_OK; s <= ZB_INTERNAL; s++)
        if (strcmp(zb_status_string((zb_status)s), text) == 0) {
            *status = (zb_status)s;
            return ZB_OK;
        }
    return zb_json_fail(&at, ZB_CORRUPT, "the words of a status");
}

/* --- a difference --- */

static zb_status read_quantity(const zb_json_at *object, zb_quantity *quantity)
{
    const char *text;
    zb_json_at at = zb_json_member(object, "quantity");
    ZB_TRY(zb_json_string(&at, &text));
    for (int q = 0; q < ZB_QUANTITY_COUNT; q++)
        if (strcmp(zb_quantity_name((zb_quantity)q), text) == 0) {
            *quantity = (zb_quantity)q;
            return ZB_OK;
        }
    return zb_json_fail(&at, ZB_CORRUPT, "the name of a quantity");
}

static zb_status read_bits(const zb_json_at *object, const char *key, uint64_t *bits)
{
    const char *text;
    int64_t number;
    zb_json_at at = zb_json_member(object, key);
    if (zb_json_int64(&at, -ZB_JSON_MAX_INTEGER, ZB_JSON_MAX_INTEGER, &number) == ZB_OK) {
        *bits = (uint64_t)number;
        return ZB_OK;
    }
    ZB_TRY(zb_json_string(&at, &text));
    *bits = strtoull(text, NULL, 16);
    return ZB_OK;
}

static zb_status read_difference(const zb_json_at *of_case, zb_difference *d)
{
    int64_t rank, element;
    const char *missing;
    zb_json_at object = zb_json_member(of_case, "difference"),
               missing_at = zb_json_member(&object, "missing_in");
    if (!zb_json_given(&object)) return ZB_OK;
    d->found = 1;
    d->rank_a = ZB_EVERY_RANK;
    ZB_TRY(read_int(&object, "step", &d->step));
    ZB_TRY(read_int(&object, "micro", &d->micro));
    ZB_TRY(read_int(&object, "rank", &rank));
    ZB_TRY(read_int(&object, "element", &element));
    ZB_TRY(read_quantity(&object, &d->quantity));
    ZB_TRY(read_dtype(&object, &d->dtype));
    ZB_TRY(copy_string(&object, "tensor", d->tensor, sizeof d->tensor));
    d->rank_b = (int)rank;
    d->element = (uint64_t)element;
    if (zb_json_given(&missing_at)) {
        ZB_TRY(zb_json_string(&missing_at, &missing));
        d->missing = strcmp(missing, "oracle") == 0 ? ZB_MISSING_A : ZB_MISSING_B;
        return ZB_OK;
    }
    ZB_TRY(read_bits(&object, "oracle", &d->bits_a));
    return read_bits(&object, "engine", &d->bits_b);
}

/* --- cases --- */

static zb_verify_case *find_case(const report_target *target, int64_t stage, int64_t world, zb_dtype dtype)
{
    for (int i = 0; i < target->case_count; i++) {
        zb_verify_case *c = &target->cases[i];
        if (c->stage == stage && c->world_size == world && c->dtype == dtype) return c;
    }
    return NULL;
}

static zb_status read_verdict(const zb_json_at *object, zb_verify_case *c)
{
    const char *text;
    zb_json_at at = zb_json_member(object, "verdict");
    if (!zb_json_given(&at)) return ZB_OK;
    ZB_TRY(zb_json_string(&at, &text));
    for (int v = ZB_VERDICT_NAMED; v <= ZB_VERDICT_VALUE; v++)
        if (strcmp(zb_verdict_name((zb_verdict)v), text) == 0) {
            c->is_explained = 1;
            c->verdict = (zb_verdict)v;
            return ZB_OK;
        }
    return zb_json_fail(&at, ZB_CORRUPT, "the name of a verdict");
}

static zb_status read_case(const zb_json_at *at, report_target *target)
{
    int64_t stage, world, class, values, micro, accumulation;
    zb_dtype dtype;
    ZB_TRY(read_int(at, "stage", &stage));
    ZB_TRY(read_int(at, "world", &world));
    ZB_TRY(read_dtype(at, &dtype));
    zb_verify_case *c = find_case(target, stage, world, dtype);
    if (c == NULL || c->ranks != NULL)
        return zb_json_fail(at, ZB_CORRUPT, "each case that was asked for, once");
    c->ranks = target->ranks != NULL ? target->ranks : "mpi";
    ZB_TRY(read_int(at, "class", &class));
    ZB_TRY(read_int(at, "micro_batch_size", &micro));
    ZB_TRY(read_int(at, "accumulation_steps", &accumulation));
    ZB_TRY(read_int(at, "steps_equal", &c->steps_done));
    ZB_TRY(read_int(at, "values_compared", &values));
    ZB_TRY(read_double(at, "seconds", &c->seconds));
    ZB_TRY(read_status(at, &c->status));
    ZB_TRY(copy_string(at, "message", c->message, sizeof c->message));
    c->equality_class = (int)class;
    c->plan.micro_batch_size = micro;
    c->plan.accumulation_steps = accumulation;
    c->values_compared = (uint64_t)values;
    const zb_json_at ended = zb_json_member(at, "ended");
    c->ended = zb_json_given(&ended);
    if (c->ended) ZB_TRY(copy_string(at, "ended", c->message, sizeof c->message));
    ZB_TRY(copy_string(at, "explanation", c->explanation, sizeof c->explanation));
    ZB_TRY(read_verdict(at, c));
    return read_difference(at, &c->difference);
}

static zb_status read_relation(const zb_json_at *at, zb_verify_relation *r)
{
    int64_t world, a, b, roundings, elements, differ;
    const char *result;
    const zb_json_at bounded = zb_json_member(at, "bounded");
    ZB_TRY(read_int(at, "world", &world));
    ZB_TRY(read_dtype(at, &r->dtype));
    ZB_TRY(read_int(at, "class_a", &a));
    ZB_TRY(read_int(at, "class_b", &b));
    ZB_TRY(zb_json_bool(&bounded, &r->is_bounded));
    ZB_TRY(read_int(at, "roundings", &roundings));
    ZB_TRY(read_double(at, "largest", &r->largest));
    ZB_TRY(read_int(at, "elements", &elements));
    ZB_TRY(read_int(at, "elements_differ", &differ));
    ZB_TRY(read_string(at, "result", &result));
    ZB_TRY(copy_string(at, "message", r->message, sizeof r->message));
    r->world_size = (int)world;
    r->class_a = (int)a;
    r->class_b = (int)b;
    r->roundings = (int)roundings;
    r->elements = (uint64_t)elements;
    r->elements_differ = (uint64_t)differ;
    r->status = strcmp(result, "equal") == 0 ? ZB_OK : ZB_DIFFERENT;
    return ZB_OK;
}

static zb_status read_relations(const zb_json_at *list, report_target *target)
{
    size_t count;
    ZB_TRY(zb_json_array(list, &count));
    if (count > (size_t)(target->relation_capacity - target->relation_count))
        return zb_json_fail(list, ZB_CORRUPT, "%d relations at most", target->relation_capacity);
    for (zb_json_at at = zb_json_first(list); at.value != NULL; at = zb_json_next(&at)) {
        zb_verify_relation *r = &target->relations[target->relation_count];
        *r = (zb_verify_relation){ 0 };
        ZB_TRY(read_relation(&at, r));
        target->relation_count++;
    }
    return ZB_OK;
}

static zb_status read_report(const zb_json_at *root, report_target *target)
{
    size_t count;
    const zb_json_at cases = zb_json_member(root, "cases"), relations = zb_json_member(root, "relations");
    ZB_TRY(copy_string(root, "order", target->order, sizeof target->order));
    ZB_TRY(zb_json_array(&cases, &count));
    if (count != (size_t)target->case_count)
        return zb_json_fail(&cases, ZB_CORRUPT, "%d cases", target->case_count);
    for (zb_json_at at = zb_json_first(&cases); at.value != NULL; at = zb_json_next(&at))
        ZB_TRY(read_case(&at, target));
    return read_relations(&relations, target);
}

zb_status report_read(const char *text, size_t bytes, const char *label, report_target *target)
{
    zb_json *json;
    ZB_TRY(zb_json_parse(text, bytes, label, &json));
    const zb_json_at root = zb_json_root(json);
    const zb_status status = read_report(&root, target);
    zb_json_destroy(json);
    return status;
}
