/* `zerobit verify` as the processes of mpirun; see launch_verify.h. */
#include "tools/launch_verify.h"

#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/launch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- the words --- */

static zb_status add_list(word_list *words, const char *name, const int *values, int count)
{
    char text[16 * OPTION_LIST_MAX] = "";
    for (int i = 0; i < count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i > 0 ? "," : "", values[i]);
    ZB_TRY(words_add(words, "%s", name));
    return words_add(words, "%s", text);
}

static zb_status add_text(word_list *words, const char *name, const char *value)
{
    if (value == NULL) return ZB_OK;
    ZB_TRY(words_add(words, "%s", name));
    return words_add(words, "%s", value);
}

/* 0: not given. */
static zb_status add_number(word_list *words, const char *name, int64_t value)
{
    if (value == 0) return ZB_OK;
    ZB_TRY(words_add(words, "%s", name));
    return words_add(words, "%" PRId64, value);
}

static zb_status add_dtypes(word_list *words, const dtype_list *dtypes)
{
    ZB_TRY(words_add(words, "--dtypes"));
    char text[8 * ZB_DTYPE_COUNT] = "";
    for (int i = 0; i < dtypes->count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i > 0 ? "," : "",
                 zb_dtype_name(dtypes->values[i]));
    return words_add(words, "%s", text);
}

static zb_status add_inputs(const input_options *input, word_list *words)
{
    ZB_TRY(add_text(words, "--semantics", input->semantics));
    ZB_TRY(add_text(words, "--order", input->order));
    ZB_TRY(add_text(words, "--model", input->model));
    ZB_TRY(add_text(words, "--data", input->data));
    ZB_TRY(add_text(words, "--weights", input->weights));
    ZB_TRY(add_number(words, "--records", input->records));
    ZB_TRY(add_number(words, "--seed", input->seed));
    ZB_TRY(add_number(words, "--train-batch", input->train_batch));
    ZB_TRY(add_number(words, "--micro-batch", input->micro_batch));
    return add_number(words, "--accumulation", input->accumulation);
}

static const char *comm_of(const launch_request *request)
{
    return request->on_gpus ? "nccl" : "mpi";
}

/* The same command on each process, which is told the world and writes its report to standard output. */
static zb_status list_words(const launch_request *request, int world_size, word_list *words)
{
    ZB_TRY(request->on_gpus ? launch_begin_ranks(world_size, words)
                            : launch_begin(request->mpirun, world_size, words));
    ZB_TRY(words_add(words, "verify"));
    ZB_TRY(words_add(words, "%s", request->input->config_path));
    ZB_TRY(add_inputs(request->input, words));
    ZB_TRY(add_list(words, "--stages", request->stages->values, request->stages->count));
    ZB_TRY(add_list(words, "--worlds", &world_size, 1));
    ZB_TRY(add_dtypes(words, request->dtypes));
    ZB_TRY(add_number(words, "--steps", request->steps));
    ZB_TRY(add_text(words, "--comm", comm_of(request)));
    if (request->shared_gpu) ZB_TRY(words_add(words, "--shared-gpu"));
    if (request->is_native) ZB_TRY(words_add(words, "--native"));
    if (request->with_contributions) ZB_TRY(words_add(words, "--contributions"));
    ZB_TRY(add_number(words, "--timeout", request->timeout));
    ZB_TRY(add_text(words, "--json", "-"));
    return words_add(words, "--quiet");
}

/* --- one world --- */

enum { NOT_EXECUTABLE = 126, NOT_FOUND = 127 }; /* as a shell says it of a program */

/* Without a report the processes have failed, and have said so on standard error. */
static zb_status fail_world(const char *comm, zb_verify_case *cases, int case_count, int world_size,
                            int ended_with)
{
    zb_status status = ZB_REMOTE;
    switch (ended_with) {
    case EXIT_USAGE:
        status = ZB_INVALID_ARGUMENT;
        break;
    case EXIT_LACKING:
    case NOT_EXECUTABLE:
    case NOT_FOUND:
        status = ZB_UNSUPPORTED;
        break;
    case EXIT_INTERNAL:
        status = ZB_INTERNAL;
        break;
    }
    zb_fail(status,
            "the %d processes ended without a report, with exit status %d; what they said stands above",
            world_size, ended_with);
    if (status != ZB_REMOTE) return status;
    for (int i = 0; i < case_count; i++) {
        cases[i].ranks = comm;
        cases[i].status = status;
        snprintf(cases[i].message, sizeof cases[i].message, "%s", zb_error_message());
    }
    return ZB_OK;
}

/* Whoever ends otherwise than the report says has failed behind it, and what it calls equal is not shown. */
static void check_end(zb_verify_case *cases, int case_count, int world_size, int ended_with)
{
    const exit_code want = exit_code_of_cases(cases, case_count);
    if (ended_with == (int)want) return;
    for (int i = 0; i < case_count; i++) {
        if (cases[i].status != ZB_OK) continue;
        cases[i].status = ZB_REMOTE;
        snprintf(cases[i].message, sizeof cases[i].message,
                 "the %d processes ended with exit status %d behind their report, want %d; what they said "
                 "stands above",
                 world_size, ended_with, (int)want);
    }
}

static zb_status check_interrupted(int world_size, const char *how_far)
{
    if (interrupt_flag == 0) return ZB_OK;
    return zb_fail(ZB_INTERRUPTED, "interrupted: world %d on processes, %s", world_size, how_far);
}

/* All cases of a world, in one start of its processes. */
static zb_status launch_world(const launch_request *request, int world_size, report_target *target)
{
    word_list words = { 0 };
    char *output = NULL, label[96];
    size_t bytes = 0;
    int ended_with = 0;
    zb_status status = check_interrupted(world_size, "before they were started");
    if (status == ZB_OK) status = list_words(request, world_size, &words);
    if (status == ZB_OK) status = launch_run(&words, &output, &bytes, &ended_with);
    words_destroy(&words);
    /* Before what may be half a report is read. */
    if (status == ZB_OK) status = check_interrupted(world_size, "which have ended");
    snprintf(label, sizeof label, "standard output of %d processes, which should be their report",
             world_size);
    if (status == ZB_OK && bytes > 0) {
        status = report_read(output, bytes, label, target);
        if (status == ZB_OK) check_end(target->cases, target->case_count, world_size, ended_with);
    } else if (status == ZB_OK) {
        status = fail_world(comm_of(request), target->cases, target->case_count, world_size, ended_with);
    }
    zb_free(output);
    return status;
}

/* --- all worlds --- */

zb_status launch_verify(const launch_request *request, report_target *target)
{
    const int of_world = request->stages->count * request->dtypes->count;
    ZB_ASSERT(target->case_count == of_world * request->worlds->count);
    for (int w = 0; w < request->worlds->count; w++) {
        const int world_size = request->worlds->values[w];
        report_target part = *target;
        part.cases += w * of_world;
        part.case_count = of_world;
        ZB_TRY(launch_world(request, world_size, &part));
        target->relation_count = part.relation_count;
        memcpy(target->order, part.order, sizeof part.order);
    }
    return ZB_OK;
}
