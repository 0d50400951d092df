/* Tensors as a user of PyTorch writes them, to contributions and results, and what was found to text. */
#include "tools/explain.h"

#include "core/safetensors.h"
#include "verify/json_writer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

/* One tensor of the user's: where its contributions and its result are. */
typedef struct subject {
    char *name; /* owned; "" when the tensors are rank0, rank1, .. alone */
    int world_size;
    size_t numel; /* of a contribution */
    zb_dtype dtype;
    const zb_safetensors_tensor *first;
} subject;

typedef struct answer {
    subject subject;
    zb_reduction_call call;
    zb_explanation explanation;
} answer;

typedef struct files {
    zb_safetensors contributions, result;
    const explain_request *request;
} files;

/* --- names --- */

/* "rank7" or "NAME.rank7": how long NAME is, and 7. Returns 0 when it is neither. */
static int split_name(const char *name, size_t *length_p, int *rank_p)
{
    const char *dot = strrchr(name, '.'), *word = dot != NULL ? dot + 1 : name;
    int64_t rank = 0;
    if (strncmp(word, "rank", 4) != 0 || word[4] == '\0' || (word[4] == '0' && word[5] != '\0')) return 0;
    for (const char *digit = word + 4; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9') return 0;
        rank = 10 * rank + (*digit - '0');
        if (rank >= EXPLAIN_WORLD_MAX) return 0;
    }
    *length_p = dot != NULL ? (size_t)(dot - name) : 0;
    *rank_p = (int)rank;
    return 1;
}

/* The tensor of a rank, NULL when there is none. ZB_NO_MEMORY otherwise. */
static zb_status find_rank(const zb_safetensors *file, const char *name, int rank,
                           const zb_safetensors_tensor **tensor_p)
{
    const size_t bytes = strlen(name) + 32;
    char *full = zb_alloc(bytes);
    if (full == NULL) return ZB_NO_MEMORY;
    snprintf(full, bytes, "%s%srank%d", name, name[0] != '\0' ? "." : "", rank);
    *tensor_p = zb_safetensors_find(file, full);
    zb_free(full);
    return ZB_OK;
}

static int is_named(const subject *s, const char *name, size_t length)
{
    return strlen(s->name) == length && memcmp(s->name, name, length) == 0;
}

static zb_status wrong_tensor(const zb_safetensors *file, const char *name)
{
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s: has tensor \"%s\", want rank0, rank1, .. or NAME.rank0, NAME.rank1, ..", file->path,
                   name);
}

/* Every name with contributions, in the order of the file. */
static zb_status list_subjects(const files *f, subject **subjects_p, size_t *count_p)
{
    const zb_safetensors *file = &f->contributions;
    subject *subjects = zb_alloc_array(file->count, sizeof *subjects);
    if (subjects == NULL) return ZB_NO_MEMORY;
    *subjects_p = subjects;
    for (size_t i = 0; i < file->count; i++) {
        const char *name = file->tensors[i].name;
        size_t length, s = 0;
        int rank;
        if (!split_name(name, &length, &rank)) return wrong_tensor(file, name);
        while (s < *count_p && !is_named(&subjects[s], name, length)) s++;
        if (s == *count_p) {
            subjects[s].name = zb_alloc(length + 1);
            if (subjects[s].name == NULL) return ZB_NO_MEMORY;
            memcpy(subjects[s].name, name, length);
            ++*count_p;
        }
        if (rank >= subjects[s].world_size) subjects[s].world_size = rank + 1;
    }
    if (*count_p > 0) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s: has no tensor, want rank0, rank1, ..", file->path);
}

/* --- shapes and types --- */

static zb_status check_like_first(const zb_safetensors *file, const subject *s,
                                  const zb_safetensors_tensor *tensor, size_t numel)
{
    if (tensor->dtype != s->dtype)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: tensor \"%s\" is of %s, want %s as \"%s\" is", file->path,
                       tensor->name, zb_dtype_name(tensor->dtype), zb_dtype_name(s->dtype), s->first->name);
    if (tensor->numel != numel)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: tensor \"%s\" has %zu elements, want %zu", file->path,
                       tensor->name, tensor->numel, numel);
    return ZB_OK;
}

static zb_status check_contributions(const files *f, subject *s)
{
    const zb_safetensors *file = &f->contributions;
    for (int rank = 0; rank < s->world_size; rank++) {
        const zb_safetensors_tensor *tensor;
        ZB_TRY(find_rank(file, s->name, rank, &tensor));
        if (tensor == NULL)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s: has no tensor \"%s%srank%d\", but one of rank %d",
                           file->path, s->name, s->name[0] != '\0' ? "." : "", rank, s->world_size - 1);
        if (rank == 0) {
            s->first = tensor;
            s->dtype = tensor->dtype;
            s->numel = tensor->numel;
        }
        ZB_TRY(check_like_first(file, s, tensor, s->numel));
    }
    return ZB_OK;
}

static size_t block_of(const explain_request *request, const zb_reduction_call *call, int rank)
{
    return request->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V ? request->counts[rank] : call->numel;
}

static zb_status make_call(const files *f, const subject *s, zb_reduction_call *call)
{
    const explain_request *request = f->request;
    *call = (zb_reduction_call){ .kind = request->kind,
                                 .world_size = s->world_size,
                                 .numel = s->numel,
                                 .dtype = s->dtype,
                                 .op = request->op,
                                 .factor = request->factor,
                                 .root = request->root };
    const size_t n = (size_t)s->world_size;
    if (request->kind == ZB_COLLECTIVE_REDUCE && request->root >= s->world_size)
        return zb_fail(ZB_INVALID_ARGUMENT, "--root %d: want 0 to %d, for %s has %d ranks", request->root,
                       s->world_size - 1, f->contributions.path, s->world_size);
    if (request->kind == ZB_COLLECTIVE_REDUCE_SCATTER) {
        if (s->numel % n != 0)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "%s: tensor \"%s\" has %zu elements, which are no equal blocks for %d ranks",
                           f->contributions.path, s->first->name, s->numel, s->world_size);
        call->numel = s->numel / n;
    }
    if (request->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return ZB_OK;
    size_t total = 0;
    for (int rank = 0; rank < request->count_count; rank++) total += request->counts[rank];
    if (request->count_count != s->world_size || total != s->numel)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "--counts: %d ranks with %zu elements, want %d with %zu as %s has",
                       request->count_count, total, s->world_size, s->numel, f->contributions.path);
    call->counts = request->counts;
    return ZB_OK;
}

/* --- reading --- */

static zb_status read_inputs(const files *f, const subject *s, unsigned char *values, const void **inputs)
{
    const size_t bytes = s->numel * zb_dtype_bytes(s->dtype);
    for (int rank = 0; rank < s->world_size; rank++) {
        const zb_safetensors_tensor *tensor;
        ZB_TRY(find_rank(&f->contributions, s->name, rank, &tensor));
        inputs[rank] = values + (size_t)rank * bytes;
        ZB_TRY(zb_safetensors_read_as_is(&f->contributions, tensor, values + (size_t)rank * bytes));
    }
    return ZB_OK;
}

static const char *result_name(const subject *s)
{
    return s->name[0] != '\0' ? s->name : "result";
}

/* One tensor with everything, or of a reduce_scatter each rank's block. */
static zb_status read_result(const files *f, const subject *s, const zb_reduction_call *call,
                             unsigned char *values)
{
    const zb_safetensors *file = &f->result;
    const char *name = result_name(s);
    const int scatters = call->kind == ZB_COLLECTIVE_REDUCE_SCATTER ||
                         call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    const zb_safetensors_tensor *tensor = zb_safetensors_find(file, name);
    if (tensor != NULL) {
        ZB_TRY(check_like_first(file, s, tensor, s->numel));
        return zb_safetensors_read_as_is(file, tensor, values);
    }
    for (int rank = 0; rank < s->world_size; rank++) {
        if (scatters) ZB_TRY(find_rank(file, s->name, rank, &tensor));
        if (tensor == NULL)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s: has no tensor \"%s\"%s", file->path, name,
                           scatters ? ", and not every rank's block either" : "");
        const size_t numel = block_of(f->request, call, rank);
        ZB_TRY(check_like_first(file, s, tensor, numel));
        ZB_TRY(zb_safetensors_read_as_is(file, tensor, values));
        values += numel * zb_dtype_bytes(s->dtype);
    }
    return ZB_OK;
}

/* --- one tensor --- */

/* An order that is not offered for such a call cannot have been expected of it. */
static zb_status find_expected(const explain_request *request, const zb_reduction_call *call,
                               const zb_order_source **expected_p)
{
    static const zb_order_source rank = { 0 };
    zb_reduction reduction;
    *expected_p = NULL;
    if (!request->is_expected) return ZB_OK;
    const zb_order_source *source = zb_orders_source(&request->expected, call->kind);
    if (source == NULL) source = &rank;
    ZB_TRY(zb_reduction_derive(source, call, &reduction));
    zb_reduction_destroy(&reduction);
    *expected_p = source;
    return ZB_OK;
}

static zb_status explain_subject(const files *f, answer *a)
{
    subject *s = &a->subject;
    const zb_order_source *expected;
    ZB_TRY(check_contributions(f, s));
    ZB_TRY(make_call(f, s, &a->call));
    ZB_TRY(find_expected(f->request, &a->call, &expected));
    const size_t n = (size_t)s->world_size, bytes = s->numel * zb_dtype_bytes(s->dtype);
    const void **inputs = zb_alloc_array(n, sizeof *inputs);
    unsigned char *values = zb_alloc_array(n + 1, bytes > 0 ? bytes : 1);
    zb_status status = inputs != NULL && values != NULL ? read_inputs(f, s, values, inputs) : ZB_NO_MEMORY;
    if (status == ZB_OK) status = read_result(f, s, &a->call, values + n * bytes);
    if (status == ZB_OK)
        status = zb_reduction_explain(&a->call, expected, inputs, values + n * bytes, &a->explanation);
    zb_free((void *)inputs);
    zb_free(values);
    return status;
}

/* --- printing --- */

static void put_explanation(zb_json_writer *json, const zb_explanation *e, int is_expected)
{
    const size_t kept = e->part_count < ZB_EXPLAINED_PARTS ? e->part_count : ZB_EXPLAINED_PARTS;
    zb_json_put_string(json, "verdict", zb_verdict_name(e->verdict));
    if (is_expected) {
        zb_json_put_bool(json, "as_expected", e->as_expected);
        if (!e->as_expected) zb_json_put_uint(json, "first_unexpected", e->unexpected);
    }
    zb_json_put_string(json, "order", e->source[0] != '\0' ? e->source : NULL);
    if (e->verdict == ZB_VERDICT_ORDER) {
        zb_json_put_uint(json, "part_count", e->part_count);
        zb_json_begin_array(json, "parts");
        for (size_t i = 0; i < kept; i++) {
            zb_json_begin_object(json, NULL);
            zb_json_put_uint(json, "first", e->parts[i].first);
            zb_json_put_uint(json, "numel", e->parts[i].numel);
            zb_json_put_string(json, "sum", e->parts[i].sum);
            zb_json_put_string(json, "rounding", e->parts[i].rounding);
            zb_json_end_object(json);
        }
        zb_json_end_array(json);
    }
    if (e->verdict == ZB_VERDICT_VALUE) {
        zb_json_put_uint(json, "element", e->element);
        zb_json_put_bool(json, "within_rounding", e->within_rounding);
        zb_json_put_string(json, "cause", e->cause[0] != '\0' ? e->cause : NULL);
        zb_json_put_uint(json, "cause_numel", e->cause_numel);
    }
    zb_json_put_string(json, "text", e->text);
}

static zb_status finish_json(zb_json_writer *json)
{
    const zb_status status = zb_json_writer_finish(json);
    if (status == ZB_OK) puts(json->text);
    zb_json_writer_destroy(json);
    return status;
}

static zb_status print_json(const files *f, const answer *answers, size_t count)
{
    zb_json_writer json = { .indented = 1 };
    zb_json_begin_object(&json, NULL);
    zb_json_put_string(&json, "contributions", f->contributions.path);
    zb_json_put_string(&json, "result", f->result.path);
    zb_json_begin_array(&json, "tensors");
    for (size_t i = 0; i < count; i++) {
        const answer *a = &answers[i];
        zb_json_begin_object(&json, NULL);
        zb_json_put_string(&json, "tensor", a->subject.name[0] != '\0' ? a->subject.name : NULL);
        zb_json_put_string(&json, "kind", zb_collective_name(a->call.kind));
        zb_json_put_int(&json, "world", a->subject.world_size);
        zb_json_put_uint(&json, "numel", a->subject.numel);
        zb_json_put_string(&json, "dtype", zb_dtype_name(a->subject.dtype));
        put_explanation(&json, &a->explanation, f->request->is_expected);
        zb_json_end_object(&json);
    }
    zb_json_end_array(&json);
    zb_json_end_object(&json);
    return finish_json(&json);
}

zb_status explain_print_trace_json(const char *const *paths, const zb_trace_explanation *told)
{
    zb_json_writer json = { .indented = 1 };
    zb_json_begin_object(&json, NULL);
    zb_json_put_string(&json, "contributions", paths[0]);
    zb_json_put_string(&json, "gradients", paths[1]);
    zb_json_put_int(&json, "step", told->step);
    zb_json_begin_array(&json, "collectives");
    for (size_t i = 0; i < told->count; i++) {
        const zb_trace_collective *c = &told->collectives[i];
        zb_json_begin_object(&json, NULL);
        zb_json_put_uint(&json, "collective", c->index);
        zb_json_put_string(&json, "kind", zb_collective_name(c->kind));
        zb_json_put_uint(&json, "numel", c->numel);
        put_explanation(&json, &c->explanation, 1);
        if (c->explanation.verdict == ZB_VERDICT_VALUE)
            zb_json_put_string(&json, "place", c->place[0] != '\0' ? c->place : NULL);
        zb_json_end_object(&json);
    }
    zb_json_end_array(&json);
    zb_json_end_object(&json);
    return finish_json(&json);
}

static void print_text(const answer *answers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("%s%s%s\n", answers[i].subject.name, answers[i].subject.name[0] != '\0' ? ": " : "",
               answers[i].explanation.text);
}

/* --- all of them --- */

static int is_right(const files *f, const answer *a)
{
    return f->request->is_expected ? a->explanation.as_expected : a->explanation.verdict != ZB_VERDICT_VALUE;
}

/* Without --tensor everything is explained, so that nothing in RESULT may be left over. */
/* Of a scatter each rank may have its block, where there is no tensor with everything. */
static int has_blocks(const files *f, const subject *s)
{
    const int scatters = f->request->kind == ZB_COLLECTIVE_REDUCE_SCATTER ||
                         f->request->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    return scatters && zb_safetensors_find(&f->result, result_name(s)) == NULL;
}

static zb_status check_results(const files *f, const subject *subjects, size_t count)
{
    const zb_safetensors *file = &f->result;
    for (size_t i = 0; i < file->count && f->request->tensor == NULL; i++) {
        const char *name = file->tensors[i].name;
        size_t length = 0, s = 0;
        int rank;
        const int is_block = split_name(name, &length, &rank);
        while (s < count && strcmp(result_name(&subjects[s]), name) != 0 &&
               !(is_block && is_named(&subjects[s], name, length) && rank < subjects[s].world_size &&
                 has_blocks(f, &subjects[s])))
            s++;
        if (s == count)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "%s: has tensor \"%s\", which is no result of what %s has contributions to",
                           file->path, name, f->contributions.path);
    }
    return ZB_OK;
}

static zb_status explain_all(const files *f, const subject *subjects, size_t count, answer *answers,
                             int *is_right_p)
{
    size_t done = 0;
    *is_right_p = 1;
    ZB_TRY(check_results(f, subjects, count));
    for (size_t i = 0; i < count; i++) {
        if (f->request->tensor != NULL && strcmp(subjects[i].name, f->request->tensor) != 0) continue;
        answers[done].subject = subjects[i];
        ZB_TRY(explain_subject(f, &answers[done]));
        *is_right_p &= is_right(f, &answers[done++]);
    }
    if (done == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--tensor %s: %s has no tensor \"%s.rank0\"", f->request->tensor,
                       f->contributions.path, f->request->tensor);
    if (f->request->json) return print_json(f, answers, done);
    print_text(answers, done);
    return ZB_OK;
}

static zb_status explain_files(const files *f, int *is_right_p)
{
    subject *subjects = NULL;
    answer *answers = NULL;
    size_t count = 0;
    zb_status status = list_subjects(f, &subjects, &count);
    if (status == ZB_OK) answers = zb_alloc_array(count, sizeof *answers);
    if (status == ZB_OK && answers == NULL) status = ZB_NO_MEMORY;
    if (status == ZB_OK) status = explain_all(f, subjects, count, answers, is_right_p);
    for (size_t i = 0; i < count; i++) zb_free(subjects[i].name);
    zb_free(subjects);
    zb_free(answers);
    return status;
}

zb_status explain_safetensors(const char *contributions_path, const char *result_path,
                              const explain_request *request, int *is_right_p)
{
    files f = { .request = request };
    ZB_TRY(zb_safetensors_open_numbers(contributions_path, &f.contributions));
    zb_status status = zb_safetensors_open_numbers(result_path, &f.result);
    if (status == ZB_OK) {
        status = explain_files(&f, is_right_p);
        zb_safetensors_close(&f.result);
    }
    zb_safetensors_close(&f.contributions);
    return status;
}
