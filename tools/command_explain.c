/* zerobit explain: in which order a sum over ranks was added up, of two safetensors files or of two traces.
 */
#include "tools/command.h"
#include "tools/explain.h"
#include "tools/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zerobit/trace.h>

typedef struct explain_options {
    const char *kind, *op, *factor, *counts, *expect, *tensor;
    int64_t root, step;
    int json;
} explain_options;

/* --- options --- */

static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER,
                                            ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE };
enum { KIND_COUNT = sizeof kinds / sizeof kinds[0] };

static zb_status read_kind(const char *text, zb_collective_kind *kind)
{
    for (int i = 0; i < KIND_COUNT; i++)
        if (strcmp(text, zb_collective_name(kinds[i])) == 0) {
            *kind = kinds[i];
            return ZB_OK;
        }
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "--kind %s: want all_reduce, reduce_scatter, reduce_scatter_v or reduce", text);
}

/* Minimum and maximum have no order to be found. */
static zb_status read_op(const char *text, zb_redop *op)
{
    if (zb_redop_parse(text, op) && *op != ZB_MIN && *op != ZB_MAX) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "--op %s: want sum, avg or premul_sum", text);
}

static zb_status read_factor(const char *text, double *factor)
{
    char *stop;
    errno = 0;
    *factor = strtod(text, &stop);
    if (stop == text || *stop != '\0' || errno != 0 || *text == ' ' || !isfinite(*factor) || *factor == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--factor %s: want a finite number that is not 0", text);
    return ZB_OK;
}

/* "100,100,50" */
static zb_status read_counts(const char *text, explain_request *request)
{
    while (request->count_count < EXPLAIN_WORLD_MAX) {
        char *stop;
        errno = 0;
        const unsigned long long value = *text >= '0' && *text <= '9' ? strtoull(text, &stop, 10) : 0;
        if (*text < '0' || *text > '9' || errno != 0 || value > (1ull << 48) ||
            (*stop != ',' && *stop != '\0'))
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "--counts: \"%s\": want a number of elements for each rank, a,b,c", text);
        request->counts[request->count_count++] = (size_t)value;
        if (*stop == '\0') return ZB_OK;
        text = stop + 1;
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "--counts: more than %d ranks", EXPLAIN_WORLD_MAX);
}

/* Options that mean nothing beside the others are refused, not overlooked. */
static zb_status read_request(const explain_options *options, explain_request *request)
{
    request->tensor = options->tensor;
    request->json = options->json;
    request->root = (int)options->root;
    ZB_TRY(read_kind(options->kind, &request->kind));
    ZB_TRY(read_op(options->op, &request->op));
    if ((request->op == ZB_PREMUL_SUM) != (options->factor != NULL))
        return zb_fail(ZB_INVALID_ARGUMENT,
                       options->factor != NULL ? "--factor %s: only with --op premul_sum"
                                               : "--op premul_sum wants --factor F",
                       options->factor);
    if (options->factor != NULL) ZB_TRY(read_factor(options->factor, &request->factor));
    const int scatters_v = request->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    if (scatters_v != (options->counts != NULL))
        return zb_fail(ZB_INVALID_ARGUMENT,
                       scatters_v ? "--kind reduce_scatter_v wants --counts LIST"
                                  : "--counts %s: only with --kind reduce_scatter_v",
                       options->counts);
    if (options->counts != NULL) ZB_TRY(read_counts(options->counts, request));
    if (request->root != 0 && request->kind != ZB_COLLECTIVE_REDUCE)
        return zb_fail(ZB_INVALID_ARGUMENT, "--root %d: only with --kind reduce", request->root);
    if (options->expect == NULL) return ZB_OK;
    ZB_TRY(zb_orders_parse(options->expect, &request->expected));
    request->is_expected = 1;
    return ZB_OK;
}

/* --- two traces --- */

/* Sets *is_trace_p by the first bytes of a file. */
static zb_status look_at(const char *path, int *is_trace_p)
{
    char magic[8] = "";
    struct stat info;
    /* Before it is opened: a pipe would wait for somebody to write. */
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return zb_fail(ZB_IO, "%s: cannot be read: not a regular file", path);
    FILE *file = fopen(path, "rb");
    if (file == NULL) return zb_fail(ZB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    const size_t got = fread(magic, 1, sizeof magic, file);
    const int failed = ferror(file);
    fclose(file);
    if (failed) return zb_fail(ZB_IO, "%s: cannot be read: %s", path, strerror(errno));
    *is_trace_p = got == sizeof magic && memcmp(magic, "ZBTRACE\n", sizeof magic) == 0;
    return ZB_OK;
}

static zb_status refuse_tensor_options(const explain_options *options)
{
    const char *given = options->expect != NULL   ? "--expect"
                        : options->tensor != NULL ? "--tensor"
                        : options->factor != NULL ? "--factor"
                        : options->counts != NULL ? "--counts"
                                                  : NULL;
    if (strcmp(options->kind, "all_reduce") != 0) given = "--kind";
    if (strcmp(options->op, "sum") != 0) given = "--op";
    if (options->root != 0) given = "--root";
    if (given == NULL) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s: only for tensors; traces say it themselves", given);
}

static zb_status explain_traces(const char *const *paths, const explain_options *options, int *is_right_p)
{
    zb_trace_explanation told;
    ZB_TRY(refuse_tensor_options(options));
    ZB_TRY(zb_trace_explain(paths[0], paths[1], options->step, &told));
    const zb_status status = options->json ? explain_print_trace_json(paths, &told) : ZB_OK;
    *is_right_p = 1;
    for (size_t i = 0; i < told.count; i++) {
        *is_right_p &= told.collectives[i].explanation.as_expected;
        if (!options->json) printf("%s\n", told.collectives[i].text);
    }
    if (told.step < 0 && !options->json)
        printf("equal: the reduced gradients of %s and %s\n", paths[0], paths[1]);
    zb_trace_explanation_destroy(&told);
    return status;
}

/* --- */

static zb_status explain_tensors(const char *const *paths, const explain_options *options, int *is_right_p)
{
    static explain_request request; /* large */
    if (options->step >= 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--step %d: only for traces", (int)options->step);
    zb_status status = read_request(options, &request);
    if (status == ZB_OK) status = explain_safetensors(paths[0], paths[1], &request, is_right_p);
    zb_orders_destroy(&request.expected);
    return status;
}

static zb_status run(const char *const *paths, const explain_options *options, int *is_right_p)
{
    int is_trace[2];
    for (int i = 0; i < 2; i++) ZB_TRY(look_at(paths[i], &is_trace[i]));
    if (is_trace[0] != is_trace[1])
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "%s is a trace and %s is none: want two traces or two safetensors files",
                       paths[is_trace[0] ? 0 : 1], paths[is_trace[0] ? 1 : 0]);
    return (is_trace[0] ? explain_traces : explain_tensors)(paths, options, is_right_p);
}

exit_code command_explain(int argc, char **argv)
{
    explain_options o = { .kind = "all_reduce", .op = "sum", .step = -1 };
    int help = 0, is_right = 0;
    const option_spec options[] = {
        { "--kind", OPTION_TEXT, &o.kind, "KIND",
          "all_reduce, reduce_scatter, reduce_scatter_v or reduce (all_reduce)", 0, 0 },
        { "--op", OPTION_TEXT, &o.op, "OP", "sum, avg or premul_sum (sum)", 0, 0 },
        { "--factor", OPTION_TEXT, &o.factor, "F", "of a premul_sum", 0, 0 },
        { "--counts", OPTION_TEXT, &o.counts, "LIST",
          "of a reduce_scatter_v: the elements of each rank's block", 0, 0 },
        { "--root", OPTION_INT, &o.root, "R", "of a reduce (0)", 0, EXPLAIN_WORLD_MAX - 1 },
        { "--expect", OPTION_TEXT, &o.expect, "ORDER", "the order that it should be, e.g. mpi-ring", 0, 0 },
        { "--tensor", OPTION_TEXT, &o.tensor, "NAME", "one of several tensors (all of them)", 0, 0 },
        { "--step", OPTION_INT, &o.step, "N", "of two traces (the first whose gradients differ)", 0,
          INT64_MAX },
        { "--json", OPTION_FLAG, &o.json, NULL, "as JSON", 0, 0 },
        { 0 },
    };
    const command_spec spec = {
        "explain",
        "Says in which order ranks were added: RESULT by the ranks' CONTRIBUTIONS, two safetensors files "
        "with\n"
        "tensors rank0, rank1, .. (or NAME.rank0, ..) and result (or NAME). Or of two traces: the reduced\n"
        "gradients of the second by the contributions and the route of the first.",
        { "CONTRIBUTIONS", "RESULT" },
        options
    };
    const char *paths[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, paths, &help);
    if (status == ZB_OK && help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    if (status == ZB_OK) status = run(paths, &o, &is_right);
    if (status != ZB_OK) return command_failed(spec.name, status);
    return is_right ? EXIT_EQUAL : EXIT_DIFFERENT;
}
