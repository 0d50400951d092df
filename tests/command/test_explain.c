/* `zerobit explain` of safetensors files, from outside: exit codes, what it says, and what it refuses. */
#include "tests/orders/support.h"
#include "tests/command/run.h"
#include "tests/verify/support.h"

#include <cjson/cJSON.h>

enum { NUMEL = 600, WORLD = 4, TENSOR_MAX = 12 };

/* --- safetensors files --- */

typedef struct written {
    char name[32];
    zb_dtype dtype;
    size_t numel;
    const void *data;
} written;

static const char *type_name(zb_dtype dtype)
{
    static const char *const names[] = {
        [ZB_FP32] = "F32",  [ZB_FP16] = "F16",  [ZB_BF16] = "BF16", [ZB_FP64] = "F64",
        [ZB_INT32] = "I32", [ZB_INT64] = "I64", [ZB_UINT8] = "U8"
    };
    return names[dtype];
}

/* As PyTorch writes them, shapes in two dimensions where that goes. */
static void write_tensors(const char *name, const written *tensors, size_t count)
{
    static unsigned char file[1 << 18];
    char *header = (char *)file + 8;
    size_t used = (size_t)sprintf(header, "{\"__metadata__\":{\"format\":\"pt\"}"), at = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t bytes = tensors[i].numel * zb_dtype_bytes(tensors[i].dtype);
        used += (size_t)sprintf(
            header + used, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%zu,%d],\"data_offsets\":[%zu,%zu]}",
            tensors[i].name, type_name(tensors[i].dtype), tensors[i].numel / (tensors[i].numel % 2 ? 1 : 2),
            tensors[i].numel % 2 ? 1 : 2, at, at + bytes);
        at += bytes;
    }
    header[used++] = '}';
    while (used % 8 != 0) header[used++] = ' ';
    for (int k = 0; k < 8; k++) file[k] = (unsigned char)(used >> 8 * k);
    used += 8;
    assert_true(used + at <= sizeof file);
    for (size_t i = 0; i < count; i++) {
        const size_t bytes = tensors[i].numel * zb_dtype_bytes(tensors[i].dtype);
        memcpy(file + used, tensors[i].data, bytes);
        used += bytes;
    }
    write_whole(in_folder(name), file, used);
}

/* Contributions of four ranks in file "c". */
static contributions write_contributions(rng *r, zb_dtype dtype, size_t numel)
{
    contributions c = contributions_random(r, WORLD, numel, dtype, FILL_UNIFORM);
    written tensors[WORLD];
    for (int rank = 0; rank < WORLD; rank++) {
        tensors[rank] = (written){ .dtype = dtype, .numel = numel, .data = c.inputs[rank] };
        sprintf(tensors[rank].name, "rank%d", rank);
    }
    write_tensors("c", tensors, WORLD);
    return c;
}

static void write_result(const void *data, zb_dtype dtype, size_t numel)
{
    write_tensors("r", &(written){ .name = "result", .dtype = dtype, .numel = numel, .data = data }, 1);
}

/* Their sum in file "r". */
static void write_sum(const contributions *c, const char *source, zb_reduction_call call)
{
    static uint64_t result[NUMEL];
    zb_reduction reduction = derived(source, &call);
    assert_ok(zb_reduction_run(&reduction, (const void *const *)c->inputs, 0, c->numel, result));
    write_result(result, call.dtype, c->numel);
    zb_reduction_destroy(&reduction);
}

static zb_reduction_call call_of(zb_collective_kind kind, zb_dtype dtype, zb_redop op)
{
    return (zb_reduction_call){
        .kind = kind, .world_size = WORLD, .numel = NUMEL, .dtype = dtype, .op = op, .factor = 0.25, .root = 2
    };
}

/* --- what it finds --- */

static void every_type_is_read(void **state)
{
    (void)state;
    rng r = { 301 };
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_FP64, ZB_INT32, ZB_INT64 };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        contributions c = write_contributions(&r, dtypes[i], NUMEL);
        write_sum(&c, "mpi-recursive-doubling", call_of(ZB_COLLECTIVE_ALL_REDUCE, dtypes[i], ZB_SUM));
        const int whole = dtypes[i] == ZB_INT32 || dtypes[i] == ZB_INT64;
        expect("explain @/c @/r --expect mpi-recursive-doubling", 0, "order: as mpi-recursive-doubling\n",
               "");
        expect("explain @/c @/r", 0, whole ? "order: as rank\n" : "order: as mpi-default\n", "");
        expect("explain @/c @/r --expect mpi-ring", whole ? 0 : 1,
               whole ? "order: as mpi-ring\n"
                     : "; expected: mpi-ring, which would have given another element ",
               "");
        contributions_free(&c);
    }
}

static void every_kind_and_operation(void **state)
{
    (void)state;
    rng r = { 302 };
    static const size_t counts[] = { 100, 200, 100, 200 };
    static const struct {
        zb_collective_kind kind;
        zb_redop op;
        const char *source, *options;
    } cases[] = {
        { ZB_COLLECTIVE_ALL_REDUCE, ZB_SUM, "mpi-ring", "" },
        { ZB_COLLECTIVE_REDUCE_SCATTER, ZB_SUM, "mpi-ring", "--kind reduce_scatter" },
        { ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_SUM, "mpi-ring",
          "--kind reduce_scatter_v --counts 100,200,100,200" },
        { ZB_COLLECTIVE_REDUCE, ZB_SUM, "mpi-linear", "--kind reduce --root 2" },
        { ZB_COLLECTIVE_ALL_REDUCE, ZB_AVG, "mpi-ring", "--op avg" },
        { ZB_COLLECTIVE_ALL_REDUCE, ZB_PREMUL_SUM, "mpi-ring", "--op premul_sum --factor 0.25" },
    };
    contributions c = write_contributions(&r, ZB_FP32, NUMEL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zb_reduction_call call = call_of(cases[i].kind, ZB_FP32, cases[i].op);
        if (call.kind == ZB_COLLECTIVE_REDUCE_SCATTER) call.numel = NUMEL / WORLD;
        if (call.kind == ZB_COLLECTIVE_REDUCE_SCATTER_V) call.counts = counts;
        write_sum(&c, cases[i].source, call);
        char line[160], out[64];
        snprintf(line, sizeof line, "explain @/c @/r %s --expect %s", cases[i].options, cases[i].source);
        snprintf(out, sizeof out, "order: as %s\n", cases[i].source);
        expect(line, 0, out, "");
    }
    contributions_free(&c);
}

/* Every rank's block as a tensor of its own. */
static void blocks_are_put_together(void **state)
{
    (void)state;
    rng r = { 303 };
    static float result[NUMEL];
    zb_reduction_call call = call_of(ZB_COLLECTIVE_REDUCE_SCATTER, ZB_FP32, ZB_SUM);
    call.numel = NUMEL / WORLD;
    contributions c = write_contributions(&r, ZB_FP32, NUMEL);
    zb_reduction reduction = derived("mpi-ring", &call);
    assert_ok(zb_reduction_run(&reduction, (const void *const *)c.inputs, 0, NUMEL, result));
    written blocks[WORLD];
    for (int rank = 0; rank < WORLD; rank++) {
        blocks[rank] = (written){ .dtype = ZB_FP32,
                                  .numel = call.numel,
                                  .data = result + (size_t)rank * call.numel };
        sprintf(blocks[rank].name, "rank%d", rank);
    }
    write_tensors("r", blocks, WORLD);
    expect("explain @/c @/r --kind reduce_scatter --expect mpi-ring", 0, "order: as mpi-ring\n", "");
    expect("explain @/c @/r", 2, "", "/r: has tensor \"rank0\", which is no result of what ");
    write_tensors("r", blocks, WORLD - 1);
    expect("explain @/c @/r --kind reduce_scatter", 2, "",
           "/r: has no tensor \"result\", and not every rank's block either\n");
    blocks[1].numel--;
    write_tensors("r", blocks, WORLD);
    expect("explain @/c @/r --kind reduce_scatter", 2, "",
           "/r: tensor \"rank1\" has 149 elements, want 150\n");
    zb_reduction_destroy(&reduction);
    contributions_free(&c);
}

static void what_is_wrong_is_told(void **state)
{
    (void)state;
    rng r = { 304 };
    static float result[NUMEL];
    contributions c = write_contributions(&r, ZB_FP32, NUMEL);
    const float *const *x = (const float *const *)(void *)c.inputs;
    for (size_t i = 0; i < NUMEL; i++) result[i] = (x[0][i] + x[1][i]) + x[3][i];
    write_result(result, ZB_FP32, NUMEL);
    expect("explain @/c @/r", 1, "value: elements 0 to 599 are the sum of ranks 0, 1, 3: rank 2 is missing; ",
           "");
    for (size_t i = 0; i < NUMEL; i++) result[i] = ((x[2][i] + x[3][i]) + x[0][i]) + x[1][i];
    write_result(result, ZB_FP32, NUMEL);
    expect("explain @/c @/r", 0, "order: none that has a name, but elements 0 to 599 are ((2 + 3) + 0) + 1",
           "");
    expect("explain @/c @/r --expect rank", 1, "; expected: rank, which would have given another element ",
           "");
    result[17] += 1;
    write_result(result, ZB_FP32, NUMEL);
    expect("explain @/c @/r", 1, "value: element 17 of 600 is 0x", "");
    contributions_free(&c);
}

static void several_tensors(void **state)
{
    (void)state;
    rng r = { 305 };
    contributions c = contributions_random(&r, 2, 30, ZB_FP32, FILL_UNIFORM);
    float right[30], wrong[30];
    for (size_t i = 0; i < 30; i++) right[i] = ((float *)c.inputs[0])[i] + ((float *)c.inputs[1])[i];
    for (size_t i = 0; i < 30; i++) wrong[i] = ((float *)c.inputs[0])[i];
    const written contributed[] = { { "fc.weight.rank0", ZB_FP32, 30, c.inputs[0] },
                                    { "fc.weight.rank1", ZB_FP32, 30, c.inputs[1] },
                                    { "bias.rank1", ZB_FP32, 30, c.inputs[1] },
                                    { "bias.rank0", ZB_FP32, 30, c.inputs[0] } };
    const written results[] = { { "bias", ZB_FP32, 30, wrong },
                                { "fc.weight", ZB_FP32, 30, right },
                                { "more", ZB_FP32, 30, right } };
    write_tensors("c", contributed, 4);
    write_tensors("r", results, 2);
    expect("explain @/c @/r", 1,
           "fc.weight: order: as rank\nbias: value: elements 0 to 29 are the sum of rank 0: ", "");
    expect("explain @/c @/r --tensor fc.weight", 0, "fc.weight: order: as rank\n", "");
    expect("explain @/c @/r --tensor bias", 1, "bias: value: ", "");
    expect("explain @/c @/r --tensor fc", 2, "", "--tensor fc: ");
    outcome o = run("explain @/c @/r --json");
    assert_int_equal(o.exit, 1);
    cJSON *json = cJSON_Parse(o.out);
    const cJSON *tensors = cJSON_GetObjectItem(json, "tensors"), *bias = cJSON_GetArrayItem(tensors, 1);
    assert_int_equal(cJSON_GetArraySize(tensors), 2);
    assert_string_equal(cJSON_GetObjectItem(bias, "tensor")->valuestring, "bias");
    assert_string_equal(cJSON_GetObjectItem(bias, "verdict")->valuestring, "value");
    assert_string_equal(cJSON_GetObjectItem(bias, "cause")->valuestring,
                        "the sum of rank 0: rank 1 is missing");
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(bias, "within_rounding")));
    assert_string_equal(cJSON_GetObjectItem(cJSON_GetArrayItem(tensors, 0), "order")->valuestring, "rank");
    cJSON_Delete(json);
    outcome_free(&o);
    write_tensors("r", results, 3);
    expect("explain @/c @/r", 2, "", "/r: has tensor \"more\", which is no result of what ");
    contributions_free(&c);
}

static void json_is_one_value(void **state)
{
    (void)state;
    rng r = { 306 };
    contributions c = write_contributions(&r, ZB_FP32, NUMEL);
    write_sum(&c, "mpi-ring", call_of(ZB_COLLECTIVE_ALL_REDUCE, ZB_FP32, ZB_SUM));
    outcome o = run("explain @/c @/r --json --expect rank");
    assert_int_equal(o.exit, 1);
    cJSON *json = cJSON_ParseWithOpts(o.out, NULL, 1);
    assert_non_null(json);
    const cJSON *only = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "tensors"), 0);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(only, "tensor")));
    assert_string_equal(cJSON_GetObjectItem(only, "order")->valuestring, "mpi-ring");
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(only, "as_expected")));
    assert_int_equal(cJSON_GetObjectItem(only, "world")->valueint, WORLD);
    assert_int_equal(cJSON_GetObjectItem(only, "numel")->valueint, NUMEL);
    cJSON_Delete(json);
    outcome_free(&o);
    contributions_free(&c);
}

/* --- what it refuses --- */

static const struct refusal {
    const char *options, *err;
} refusals[] = {
    { "--kind all_gather",
      "--kind all_gather: want all_reduce, reduce_scatter, reduce_scatter_v or reduce\n" },
    { "--op max", "--op max: want sum, avg or premul_sum\n" },
    { "--op premul_sum", "--op premul_sum wants --factor F\n" },
    { "--factor 2", "--factor 2: only with --op premul_sum\n" },
    { "--op premul_sum --factor 2x", "--factor 2x: want a finite number that is not 0\n" },
    { "--op premul_sum --factor inf", "--factor inf: want a finite number" },
    { "--op premul_sum --factor 0", "--factor 0: want a finite number" },
    { "--kind reduce_scatter_v", "--kind reduce_scatter_v wants --counts LIST\n" },
    { "--counts 1,2", "--counts 1,2: only with --kind reduce_scatter_v\n" },
    { "--kind reduce_scatter_v --counts 1,x", "--counts: \"x\": want a number of elements for each rank" },
    { "--kind reduce_scatter_v --counts 300,300",
      "--counts: 2 ranks with 600 elements, want 4 with 600 as " },
    { "--kind reduce_scatter_v --counts 1,2,3,4", "--counts: 4 ranks with 10 elements, want 4 with 600 as " },
    { "--root 1", "--root 1: only with --kind reduce\n" },
    { "--kind reduce --root 4", "--root 4: want 0 to 3, for " },
    { "--expect mpi-rin", "mpi-rin" },
    { "--expect mpi-rabenseifner --kind reduce_scatter", "mpi-rabenseifner does not offer reduce_scatter" },
    { "--step 3", "--step 3: only for traces\n" },
};

static void bad_options_are_refused(void **state)
{
    (void)state;
    rng r = { 307 };
    contributions c = write_contributions(&r, ZB_FP32, NUMEL);
    write_sum(&c, "rank", call_of(ZB_COLLECTIVE_ALL_REDUCE, ZB_FP32, ZB_SUM));
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        char line[160];
        snprintf(line, sizeof line, "explain @/c @/r %s", refusals[i].options);
        outcome o = run(line);
        if (o.exit != 2 || strstr(o.err, refusals[i].err) == NULL || o.out[0] != '\0')
            fail_msg("%s: exit %d, %s%s, want: %s", line, o.exit, o.out, o.err, refusals[i].err);
        outcome_free(&o);
    }
    contributions_free(&c);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    static const float x[8] = { 0 };
    static const struct {
        written c[3], r[2];
        const char *options, *err;
    } cases[] = {
        { { { "rank0", ZB_FP32, 4, x }, { "rank2", ZB_FP32, 4, x } },
          { { "result", ZB_FP32, 4, x } },
          "",
          "/c: has no tensor \"rank1\", but one of rank 2\n" },
        { { { "rank0", ZB_FP32, 4, x }, { "rank1", ZB_FP16, 4, x } },
          { { "result", ZB_FP32, 4, x } },
          "",
          "/c: tensor \"rank1\" is of fp16, want fp32 as \"rank0\" is\n" },
        { { { "rank0", ZB_FP32, 4, x }, { "rank1", ZB_FP32, 6, x } },
          { { "result", ZB_FP32, 4, x } },
          "",
          "/c: tensor \"rank1\" has 6 elements, want 4\n" },
        { { { "rank0", ZB_FP32, 4, x }, { "loss", ZB_FP32, 4, x } },
          { { "result", ZB_FP32, 4, x } },
          "",
          "/c: has tensor \"loss\", want rank0, rank1, .. or NAME.rank0, NAME.rank1, ..\n" },
        { { { "rank0", ZB_FP32, 4, x }, { "rank01", ZB_FP32, 4, x } },
          { { "result", ZB_FP32, 4, x } },
          "",
          "/c: has tensor \"rank01\", want" },
        { { { "rank0", ZB_FP32, 4, x } },
          { { "result", ZB_FP32, 6, x } },
          "",
          "/r: tensor \"result\" has 6 elements, want 4\n" },
        { { { "rank0", ZB_FP32, 4, x } },
          { { "result", ZB_BF16, 4, x } },
          "",
          "/r: tensor \"result\" is of bf16, want fp32 as \"rank0\" is\n" },
        { { { "rank0", ZB_FP32, 4, x } },
          { { "sum", ZB_FP32, 4, x } },
          "",
          "/r: has tensor \"sum\", which is no result of what " },
        { { { "rank0", ZB_FP32, 4, x } },
          { { "result", ZB_FP32, 4, x }, { "rank0", ZB_FP32, 4, x } },
          "",
          "/r: has tensor \"rank0\", which is no result of what " },
        { { { "rank0", ZB_FP32, 4, x } },
          { { "result", ZB_FP32, 4, x }, { "rank0", ZB_FP32, 4, x } },
          "--kind reduce_scatter",
          "/r: has tensor \"rank0\", which is no result of what " },
        { { { "rank0", ZB_FP32, 4, x } },
          { { "rank0", ZB_FP32, 4, x } },
          "",
          "/r: has tensor \"rank0\", which is no result of what " },
        { { { "rank0", ZB_FP32, 4, x } }, { { .numel = 0 } }, "", "/r: has no tensor \"result\"\n" },
        { { { .numel = 0 } }, { { .numel = 0 } }, "", "/c: has no tensor, want rank0, rank1, ..\n" },
        { { { "rank0", ZB_FP32, 3, x }, { "rank1", ZB_FP32, 3, x } },
          { { "result", ZB_FP32, 3, x } },
          "--kind reduce_scatter",
          "/c: tensor \"rank0\" has 3 elements, which are no equal blocks for 2 ranks\n" },
        { { { "rank0", ZB_INT32, 4, x } },
          { { "result", ZB_INT32, 4, x } },
          "--op avg",
          "the average of int32 is not defined" },
        { { { "rank0", ZB_UINT8, 4, x } },
          { { "result", ZB_FP32, 4, x } },
          "",
          "rank0.dtype: is \"U8\", want F32, F16, BF16, F64, I32 or I64\n" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t c = 0, r = 0;
        while (c < 3 && cases[i].c[c].name[0] != '\0') c++;
        while (r < 2 && cases[i].r[r].name[0] != '\0') r++;
        write_tensors("c", cases[i].c, c);
        write_tensors("r", cases[i].r, r);
        char line[80];
        snprintf(line, sizeof line, "explain @/c @/r %s", cases[i].options);
        outcome o = run(line);
        if (o.exit != 2 || strstr(o.err, cases[i].err) == NULL || o.out[0] != '\0')
            fail_msg("exit %d, %s%s, want: %s", o.exit, o.out, o.err, cases[i].err);
        outcome_free(&o);
    }
    write_whole(in_folder("c"), "ZBTRACE\n", 8);
    expect("explain @/c @/r", 2, "", "/c is a trace and ");
    write_whole(in_folder("c"), "", 0);
    expect("explain @/c @/r", 2, "", "/c: has 0 bytes, a safetensors file has at least 8\n");
}

/* --- traces --- */

/* One step of three ranks, whose reduced gradients are summed from `start` on. */
static zb_route_piece pieces[] = { { SMALL_WEIGHT, 0, 6, 0 }, { SMALL_BIAS, 0, 2, 6 } };

/* Gradients of three ranks, added from rank `start` on. */
static void write_step(zb_trace_writer *writer, int64_t step, int start, int has_contributions)
{
    float x[3][8], sums[8];
    for (int rank = 0; rank < 3; rank++)
        for (int i = 0; i < 8; i++)
            x[rank][i] = 0.1f * (float)(i + 1) * ((float)rank + 0.7f) * (i % 2 ? 1.0f : -3.3f);
    for (int i = 0; i < 8; i++) sums[i] = (x[start][i] + x[(start + 1) % 3][i]) + x[(start + 2) % 3][i];
    for (int rank = 0; rank < 3 && has_contributions; rank++)
        for (int p = 0; p < 2; p++) {
            const zb_observation sent = { .quantity = ZB_Q_CONTRIBUTION,
                                          .step = step,
                                          .rank = rank,
                                          .param = pieces[p].param,
                                          .dtype = ZB_FP32,
                                          .numel = pieces[p].numel,
                                          .data = x[rank] + pieces[p].at };
            assert_ok(zb_trace_write(writer, &sent));
        }
    for (int p = 0; p < 2; p++) {
        const zb_observation sum = { .quantity = ZB_Q_GRAD,
                                     .step = step,
                                     .micro = -1,
                                     .param = pieces[p].param,
                                     .dtype = ZB_FP32,
                                     .numel = pieces[p].numel,
                                     .data = sums + pieces[p].at };
        assert_ok(zb_trace_write(writer, &sum));
    }
    const zb_observation empty = {
        .quantity = ZB_Q_GRAD, .step = step, .micro = -1, .param = SMALL_EMPTY, .data = sums
    };
    assert_ok(zb_trace_write(writer, &empty));
}

static void write_trace_of(const char *name, int start, int has_contributions)
{
    static zb_route_collective collective = { .call = { .kind = ZB_COLLECTIVE_ALL_REDUCE,
                                                        .world_size = 3,
                                                        .numel = 8,
                                                        .dtype = ZB_FP32,
                                                        .op = ZB_SUM },
                                              .pieces = pieces,
                                              .piece_count = 2 };
    const zb_route route = { .world_size = 3, .collectives = &collective, .count = 1 };
    zb_trace_header header = small_header(0, 3);
    zb_trace_writer *writer;
    header.route = &route;
    assert_ok(zb_trace_writer_create(in_folder(name), &header, &writer));
    for (int64_t step = 0; step < 3; step++) write_step(writer, step, start, has_contributions);
    assert_ok(zb_trace_writer_finish(writer));
    zb_trace_writer_destroy(writer);
}

/* Its end is missing, or a bit there has changed. */
static void write_damaged(const char *from, const char *to, size_t cut, unsigned char flip)
{
    size_t count;
    unsigned char *bytes = read_whole(in_folder(from), &count);
    assert_true(count > 40);
    bytes[count - 20] ^= flip;
    write_whole(in_folder(to), bytes, count - cut);
    free(bytes);
}

static void traces_are_explained(void **state)
{
    (void)state;
    write_trace_of("a", 0, 1);
    write_trace_of("b", 2, 0);
    expect(
        "explain @/a @/b", 1,
        "step 0, collective 0 (all_reduce, 8 elements): order: none that has a name, but elements 0 to 7 are "
        "(2 + 0) + 1, each addition rounded; expected: rank, which would have given another element ",
        "");
    expect("explain @/a @/a", 0, "equal: the reduced gradients of ", "");
    expect("explain @/a @/a --step 0", 0, "step 0, collective 0 (all_reduce, 8 elements): order: as rank\n",
           "");
    expect("explain @/a @/b --json", 1, "\"sum\": \"(2 + 0) + 1\"", "");
    expect(
        "diff @/a @/b", 1,
        "/b: step 0, collective 0 (all_reduce, 8 elements): order: none that has a name, but elements 0 to 7",
        "");
    write_damaged("a", "shorter", 1, 0);
    write_damaged("b", "changed", 0, 4);
    expect("explain @/shorter @/b", 2, "", "/shorter: ");
    expect("explain @/a @/changed --step 0", 2, "", "/changed: ");
    expect("explain @/b @/a", 2, "", "/b: step 0 holds no contributions, so no order can be told\n");
    expect("explain @/a @/b --step 4", 2, "", "/a: holds no step 4\n");
    expect("explain @/a @/b --expect rank", 2, "", "--expect: only for tensors; traces say it themselves\n");
    expect("explain @/a @/b --op avg", 2, "", "--op: only for tensors");
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_create, folder_remove)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(every_type_is_read),      IN_FOLDER(every_kind_and_operation),
        IN_FOLDER(blocks_are_put_together), IN_FOLDER(what_is_wrong_is_told),
        IN_FOLDER(several_tensors),         IN_FOLDER(json_is_one_value),
        IN_FOLDER(traces_are_explained),    IN_FOLDER(bad_options_are_refused),
        IN_FOLDER(bad_files_are_refused),
    };
    return cmocka_run_group_tests_name("command_explain", tests, NULL, NULL);
}
