/* Named orders: their trees written out, which elements have which, worked examples, and what is refused. */
#include "tests/orders/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#define NCCL_ONE "nccl-ring version=2.28 protocol=simple channels=1"

static zb_reduction_call call_of(zb_collective_kind kind, int n, size_t numel, zb_dtype dtype)
{
    return (zb_reduction_call){ .kind = kind, .world_size = n, .numel = numel, .dtype = dtype, .op = ZB_SUM };
}

/* --- trees written out --- */

static const struct tree_case {
    const char *source;
    zb_collective_kind kind;
    int world_size;
    size_t numel, element; /* the tree of this one */
    const char *sum;
} tree_cases[] = {
    { "rank", ZB_COLLECTIVE_ALL_REDUCE, 1, 5, 0, "0" },
    { "rank", ZB_COLLECTIVE_ALL_REDUCE, 4, 5, 0, "((0 + 1) + 2) + 3" },

    { "mpi-recursive-doubling", ZB_COLLECTIVE_ALL_REDUCE, 2, 100, 0, "0 + 1" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_ALL_REDUCE, 3, 100, 0, "(0 + 1) + 2" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_ALL_REDUCE, 4, 100, 0, "(0 + 1) + (2 + 3)" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_ALL_REDUCE, 5, 100, 0, "((0 + 1) + 2) + (3 + 4)" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_ALL_REDUCE, 6, 100, 0, "((0 + 1) + (2 + 3)) + (4 + 5)" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_ALL_REDUCE, 7, 100, 0, "((0 + 1) + (2 + 3)) + ((4 + 5) + 6)" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_ALL_REDUCE, 8, 100, 99,
      "((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))" },
    { "mpi-rabenseifner", ZB_COLLECTIVE_ALL_REDUCE, 7, 4, 0, "((0 + 1) + (2 + 3)) + ((4 + 5) + 6)" },
    { "mpi-butterfly", ZB_COLLECTIVE_REDUCE_SCATTER, 5, 100, 0, "((0 + 1) + 2) + (3 + 4)" },

    { "mpi-recursive-halving", ZB_COLLECTIVE_REDUCE_SCATTER, 3, 100, 0, "(0 + 1) + 2" },
    { "mpi-recursive-halving", ZB_COLLECTIVE_REDUCE_SCATTER, 4, 100, 0, "(0 + 2) + (1 + 3)" },
    { "mpi-recursive-halving", ZB_COLLECTIVE_REDUCE_SCATTER, 5, 100, 0, "((0 + 1) + 3) + (2 + 4)" },
    { "mpi-recursive-halving", ZB_COLLECTIVE_REDUCE_SCATTER, 6, 100, 0, "((0 + 1) + 4) + ((2 + 3) + 5)" },
    { "mpi-recursive-halving", ZB_COLLECTIVE_REDUCE_SCATTER, 7, 100, 0,
      "((0 + 1) + (4 + 5)) + ((2 + 3) + 6)" },
    { "mpi-recursive-halving", ZB_COLLECTIVE_REDUCE_SCATTER, 8, 100, 0,
      "((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))" },

    { "mpi-recursive-doubling", ZB_COLLECTIVE_REDUCE_SCATTER, 5, 100, 0, "((0 + 1) + (2 + 3)) + 4" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_REDUCE_SCATTER, 6, 100, 0, "((0 + 1) + (2 + 3)) + (4 + 5)" },
    { "mpi-recursive-doubling", ZB_COLLECTIVE_REDUCE_SCATTER, 7, 100, 0,
      "((0 + 1) + (2 + 3)) + ((4 + 5) + 6)" },

    { "mpi-linear", ZB_COLLECTIVE_ALL_REDUCE, 4, 100, 0, "((3 + 2) + 1) + 0" },
    { "mpi-ring", ZB_COLLECTIVE_ALL_REDUCE, 4, 10, 2, "((0 + 1) + 2) + 3" }, /* blocks of 3, 3, 2, 2 */
    { "mpi-ring", ZB_COLLECTIVE_ALL_REDUCE, 4, 10, 3, "((1 + 2) + 3) + 0" },
    { "mpi-ring", ZB_COLLECTIVE_ALL_REDUCE, 4, 10, 6, "((2 + 3) + 0) + 1" },
    { "mpi-segmented-ring", ZB_COLLECTIVE_ALL_REDUCE, 4, 10, 8, "((3 + 0) + 1) + 2" },
    { "mpi-ring", ZB_COLLECTIVE_REDUCE_SCATTER, 3, 4, 4, "(2 + 0) + 1" },
    { "mpi-ring", ZB_COLLECTIVE_ALL_REDUCE, 5, 4, 0, "((0 + 1) + 2) + (3 + 4)" }, /* too few: doubling */
    { "mpi-rabenseifner", ZB_COLLECTIVE_ALL_REDUCE, 5, 3, 0,
      "(((4 + 3) + 2) + 1) + 0" }, /* too few: linear */

    /* 1, 65535 and 65536 fp32 elements: each side of a limit in the default choice */
    { "mpi-default", ZB_COLLECTIVE_ALL_REDUCE, 3, 1, 0, "(0 + 1) + 2" },
    { "mpi-default", ZB_COLLECTIVE_ALL_REDUCE, 3, 65535, 65534, "(2 + 0) + 1" },
    { "mpi-default", ZB_COLLECTIVE_ALL_REDUCE, 3, 65536, 65535, "(0 + 1) + 2" },
    { "mpi-default", ZB_COLLECTIVE_REDUCE_SCATTER, 4, 1, 0, "(0 + 2) + (1 + 3)" },
    { "mpi-default", ZB_COLLECTIVE_REDUCE_SCATTER, 4, 2, 0, "(0 + 1) + (2 + 3)" },
    { "mpi-default", ZB_COLLECTIVE_REDUCE_SCATTER, 3, 32768, 0, "(2 + 1) + 0" }, /* a reduce, pipelined */
    { "mpi-default", ZB_COLLECTIVE_REDUCE, 8, 1, 0, "(0 + ((1 + (3 + 7)) + 5)) + ((2 + 4) + 6)" },

    { NCCL_ONE, ZB_COLLECTIVE_ALL_REDUCE, 3, 1000, 335, "(1 + 2) + 0" }, /* chunks of 336, 336 and 328 */
    { NCCL_ONE, ZB_COLLECTIVE_ALL_REDUCE, 3, 1000, 336, "(2 + 0) + 1" },
    { NCCL_ONE, ZB_COLLECTIVE_ALL_REDUCE, 3, 1000, 671, "(2 + 0) + 1" },
    { NCCL_ONE, ZB_COLLECTIVE_ALL_REDUCE, 3, 1000, 672, "(0 + 1) + 2" },
    { NCCL_ONE, ZB_COLLECTIVE_REDUCE_SCATTER, 3, 10, 0, "(1 + 2) + 0" },
    { NCCL_ONE, ZB_COLLECTIVE_REDUCE_SCATTER, 3, 10, 29, "(0 + 1) + 2" },
    { NCCL_ONE " ring=0,2,3,1", ZB_COLLECTIVE_ALL_REDUCE, 4, 16, 0, "((2 + 3) + 1) + 0" },
    { NCCL_ONE " ring=0,2,3,1", ZB_COLLECTIVE_ALL_REDUCE, 4, 16, 4, "((3 + 1) + 0) + 2" },
    { NCCL_ONE " ring=0,2,3,1", ZB_COLLECTIVE_REDUCE_SCATTER, 4, 4, 4,
      "((0 + 2) + 3) + 1" }, /* block of rank 1 */
    { "nccl-tree version=2.28 protocol=simple channels=1 tree=1/-1/-1,2/-1/-1,3/-1/-1,-1/-1/-1",
      ZB_COLLECTIVE_ALL_REDUCE, 4, 100, 0, "((3 + 2) + 1) + 0" },
    { "nccl-tree version=2.28 protocol=simple channels=1 tree=-1/-1/-1,0/2/-1,-1/-1/-1",
      ZB_COLLECTIVE_ALL_REDUCE, 3, 100, 0, "(1 + 0) + 2" },

    { "gloo", ZB_COLLECTIVE_ALL_REDUCE, 3, 60, 0, "(2 + 1) + 0" }, /* 6 segments of 10, chunks of 20 */
    { "gloo", ZB_COLLECTIVE_ALL_REDUCE, 3, 60, 20, "(0 + 2) + 1" },
    { "gloo", ZB_COLLECTIVE_ALL_REDUCE, 3, 60, 59, "(1 + 0) + 2" },
    { "gloo", ZB_COLLECTIVE_ALL_REDUCE, 2, 1, 0, "1 + 0" },
    { "gloo", ZB_COLLECTIVE_REDUCE_SCATTER, 3, 20, 20, "(0 + 2) + 1" },
};

/* Sums without their order of writing: "1 + 0" is "0 + 1". Equal trees give equal sums of these numbers,
 * others hardly. */
static double evaluate(const char **at);
static double operand(const char **at)
{
    if (**at != '(') {
        char *end;
        const long rank = strtol(*at, &end, 10);
        *at = end;
        return 1.0 / (double)(3 + rank * rank);
    }
    (*at)++;
    const double inner = evaluate(at);
    (*at)++; /* the parenthesis */
    return inner;
}
static double evaluate(const char **at)
{
    double sum = operand(at);
    while (strncmp(*at, " + ", 3) == 0) {
        *at += 3;
        sum = sin(sum + operand(at)); /* commutes, and does not associate */
    }
    return sum;
}

static void check_tree(void **state)
{
    const struct tree_case *c = *state;
    const zb_reduction_call call = call_of(c->kind, c->world_size, c->numel, ZB_FP32);
    zb_reduction reduction = derived(c->source, &call);
    char sum[256];
    zb_reduction_describe(&reduction, zb_reduction_range_of(&reduction, c->element), sum, sizeof sum);
    const char *got = sum, *want = c->sum;
    if (evaluate(&got) != evaluate(&want)) fail_msg("%s, want %s", sum, c->sum);
    zb_reduction_destroy(&reduction);
}

/* --- worked examples: 3 and 4 ranks, one element for each --- */

static const struct example {
    const char *name, *source;
    zb_collective_kind kind;
    zb_dtype dtype;
    zb_redop op;
    int world_size;
    double x[4];
    uint64_t want[4]; /* bits, block by block */
} examples[] = {
    { "fp32 sum of 1, 2^-24, 2^-24",
      NCCL_ONE,
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_FP32,
      ZB_SUM,
      3,
      { 1, 0x1p-24, 0x1p-24 },
      { 0x3f800001, 0x3f800000, 0x3f800000 } },
    { "bf16 sum of 256, 1, 1",
      NCCL_ONE,
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_BF16,
      ZB_SUM,
      3,
      { 256, 1, 1 },
      { 0x4381, 0x4380, 0x4380 } },
    { "bf16 sum of 256, 1, 1, rounded once",
      "rank",
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_BF16,
      ZB_SUM,
      3,
      { 256, 1, 1 },
      { 0x4381, 0x4381, 0x4381 } },
    { "fp16 sum of 2048, 1, 1, 1",
      NCCL_ONE,
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_FP16,
      ZB_SUM,
      4,
      { 2048, 1, 1, 1 },
      { 0x6802, 0x6802, 0x6800, 0x6800 } },
    { "fp32 avg of 1, 1, 7, fused",
      NCCL_ONE,
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_FP32,
      ZB_AVG,
      3,
      { 1, 1, 7 },
      { 0, 0, 0x40400000 } },
    { "fp32 avg of 1, 1, 7, unfused",
      NCCL_ONE " fusion=unfused",
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_FP32,
      ZB_AVG,
      3,
      { 1, 1, 7 },
      { 0, 0, 0x40400001 } },
    { "bf16 avg of 1, 1, 7, fused",
      NCCL_ONE,
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_BF16,
      ZB_AVG,
      3,
      { 1, 1, 7 },
      { 0, 0, 0x4040 } },
    { "bf16 avg of 1, 1, 7, LL128",
      "nccl-ring version=2.28 protocol=ll128 channels=1",
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_BF16,
      ZB_AVG,
      3,
      { 1, 1, 7 },
      { 0, 0, 0x4041 } },
#define NEAR_2_24                                                                                            \
    {                                                                                                        \
        0x1p24, 1, 1, 1                                                                                      \
    }
#define F24(add) (0x4b800000 + (add) / 2) /* 2^24 + add in fp32 */
    { "4 ranks, NCCL's owners",
      NCCL_ONE,
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_FP32,
      ZB_SUM,
      4,
      NEAR_2_24,
      { F24(4), F24(4), F24(0), F24(0) } },
    { "4 ranks, Open MPI's ring",
      "mpi-ring",
      ZB_COLLECTIVE_ALL_REDUCE,
      ZB_FP32,
      ZB_SUM,
      4,
      NEAR_2_24,
      { F24(0), F24(4), F24(4), F24(0) } },
    { "4 ranks, recursive doubling",
      "mpi-recursive-doubling",
      ZB_COLLECTIVE_ALL_REDUCE,
      ZB_FP32,
      ZB_SUM,
      4,
      NEAR_2_24,
      { F24(2), F24(2), F24(2), F24(2) } },
    { "4 ranks, Rabenseifner",
      "mpi-rabenseifner",
      ZB_COLLECTIVE_ALL_REDUCE,
      ZB_FP32,
      ZB_SUM,
      4,
      NEAR_2_24,
      { F24(2), F24(2), F24(2), F24(2) } },
    { "4 ranks, recursive halving",
      "mpi-recursive-halving",
      ZB_COLLECTIVE_REDUCE_SCATTER,
      ZB_FP32,
      ZB_SUM,
      4,
      NEAR_2_24,
      { F24(2), F24(2), F24(2), F24(2) } },
    { "4 ranks, linear",
      "mpi-linear",
      ZB_COLLECTIVE_ALL_REDUCE,
      ZB_FP32,
      ZB_SUM,
      4,
      NEAR_2_24,
      { F24(4), F24(4), F24(4), F24(4) } },
};

static void check_example(void **state)
{
    const struct example *e = *state;
    const size_t n = (size_t)e->world_size, bytes = zb_dtype_bytes(e->dtype);
    const int scatters = e->kind == ZB_COLLECTIVE_REDUCE_SCATTER;
    zb_reduction_call call = call_of(e->kind, e->world_size, scatters ? 1 : n, e->dtype);
    call.op = e->op;
    zb_reduction reduction = derived(e->source, &call);
    unsigned char room[4][16], got[16], plain[16];
    const void *inputs[4] = { room[0], room[1], room[2], room[3] };
    for (size_t rank = 0; rank < n; rank++)
        for (size_t i = 0; i < n; i++) store_value(e->dtype, room[rank], i, e->x[rank]);
    assert_ok(zb_reduction_run(&reduction, inputs, 0, n, got));
    zb_ref_reduction_run(&reduction, inputs, 0, n, plain);
    assert_memory_equal(got, plain, n * bytes);
    for (size_t i = 0; i < n; i++)
        if (e->want[i] != 0 && load_bits(e->dtype, got, i) != e->want[i])
            fail_msg("element %zu is %#llx, want %#llx", i, (unsigned long long)load_bits(e->dtype, got, i),
                     (unsigned long long)e->want[i]);
    zb_reduction_destroy(&reduction);
}

/* --- NCCL's map of elements, against the published formulas element by element --- */

typedef struct nccl_map {
    int version;
    const char *protocol;
    int weight; /* of LL: 4 */
    size_t chunk_bytes, thread_bytes, threads;
} nccl_map;

static size_t up(size_t a, size_t b)
{
    return (a + b - 1) / b * b;
}

/* The chunk of element i of an all_reduce in rank order, and its channel. */
static size_t plain_chunk(const nccl_map *m, size_t i, size_t count, size_t esz, size_t n, size_t channels,
                          size_t *channel_p)
{
    const size_t bytes = count * esz, w = 2 * (size_t)m->weight, least = m->version == 228 ? 16384 : 32768;
    size_t granted = channels;
    while (granted > 1 && bytes < granted * m->threads * m->thread_bytes * (m->weight == 4 ? n : 1))
        granted--;
    const size_t traffic = bytes * w > least ? bytes * w : least;
    size_t per_channel = traffic / granted;
    per_channel = m->version == 228 ? (per_channel > least ? per_channel : least) : up(per_channel, 16);
    const size_t cell = up((least + w - 1) / w, 16), cells = (bytes + cell - 1) / cell;
    size_t per = (per_channel + cell * w - 1) / (cell * w);
    if (per > cells) per = cells;
    const size_t lo = channels == 1 ? cells : per;
    size_t mid = (cells - lo) / per, hi = (cells - lo) % per;
    if ((lo != 0) + mid + (hi != 0) > channels) {
        mid = channels - 2;
        per = (cells - lo) / (mid + 1);
        hi = per + (cells - lo) % (mid + 1);
    }
    if (hi == 0 && mid > 0) {
        hi = per;
        mid--;
    }
    size_t channel = 0, first = 0, part = lo * cell / esz;
    while (i >= first + part) {
        first += part;
        channel++;
        part = (channel <= mid ? per : hi) * cell / esz;
    }
    if (first + part > count) part = count - first;
    *channel_p = channel;
    const size_t largest = m->chunk_bytes / esz;
    for (size_t o = first;; o += n * largest) {
        const size_t left = first + part - o;
        const size_t length = left >= n * largest ? largest : up((left + n - 1) / n, 16 / esz);
        if (i < o + n * length) return (i - o) / length;
    }
}

static void nccl_maps(void **state)
{
    (void)state;
    static const nccl_map maps[] = {
        { 228, "simple", 1, 2097152, 64, 512 }, { 229, "simple", 1, 2097152, 64, 512 },
        { 228, "ll", 4, 32768, 8, 512 },        { 230, "ll", 4, 32768, 8, 512 },
        { 228, "ll128", 1, 576000, 8, 640 },    { 230, "ll128", 1, 576000, 8, 640 },
    };
    static const size_t counts[] = { 1, 3, 1000, 4096, 16385, 100003, 1000000, 5000011 };
    rng r = { 75 };
    for (size_t k = 0; k < sizeof maps / sizeof maps[0]; k++)
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            for (size_t n = 2; n <= 8; n += 3)
                for (size_t channels = 1; channels <= 24; channels = channels * 3 - 1) {
                    const zb_dtype dtype = c % 2 ? ZB_BF16 : ZB_FP32;
                    char text[128];
                    snprintf(text, sizeof text, "nccl-ring version=2.%d protocol=%s channels=%zu",
                             maps[k].version - 200, maps[k].protocol, channels);
                    const zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, (int)n, counts[c],
                                                           dtype);
                    zb_reduction reduction = derived(text, &call);
                    for (int probe = 0; probe < 200; probe++) {
                        const size_t i = rng_below(&r, counts[c]);
                        size_t channel;
                        const size_t chunk = plain_chunk(&maps[k], i, counts[c], zb_dtype_bytes(dtype), n,
                                                         channels, &channel);
                        const zb_reduction_range *range = zb_reduction_range_of(&reduction, i);
                        if ((size_t)range->start != (chunk + 1) % n)
                            fail_msg("%s, %zu elements, %zu ranks: element %zu starts at %d, want %zu", text,
                                     counts[c], n, i, range->start, (chunk + 1) % n);
                    }
                    zb_reduction_destroy(&reduction);
                }
}

/* Channels with rings of their own: every element's ring is its channel's. */
static void rings_by_channel(void **state)
{
    (void)state;
    const zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 100000, ZB_FP32);
    zb_reduction reduction = derived(
        "nccl-ring version=2.28 protocol=simple channels=4 used-channels=4 ring=0,1,2 ring=0,2,1", &call);
    const nccl_map map = { 228, "simple", 1, 2097152, 0, 0 };
    for (size_t i = 0; i < 100000; i += 13) {
        size_t channel;
        plain_chunk(&map, i, 100000, 4, 3, 4, &channel);
        assert_int_equal(zb_reduction_range_of(&reduction, i)->order, channel % 2);
    }
    assert_int_equal(zb_reduction_range_of(&reduction, 99999)->order, 1); /* four channels are in use */
    zb_reduction_destroy(&reduction);

    const zb_reduction_call scatter = call_of(ZB_COLLECTIVE_REDUCE_SCATTER, 3, 40000, ZB_FP32);
    reduction = derived(
        "nccl-ring version=2.28 protocol=simple channels=2 used-channels=2 ring=0,1,2 ring=0,2,1", &scatter);
    char sum[64];
    zb_reduction_describe(&reduction, zb_reduction_range_of(&reduction, 40000), sum,
                          sizeof sum); /* rank 1's, channel 0 */
    assert_string_equal(sum, "(2 + 0) + 1");
    zb_reduction_describe(&reduction, zb_reduction_range_of(&reduction, 79999), sum,
                          sizeof sum); /* channel 1 */
    assert_string_equal(sum, "(0 + 2) + 1");
    zb_reduction_destroy(&reduction);
}

/* --- every source, every kind, both executors --- */

static const char *const sources[] = {
    "rank",
    "gloo",
    "mpi-default",
    "mpi-linear",
    "mpi-recursive-doubling",
    "mpi-ring",
    "mpi-segmented-ring",
    "mpi-rabenseifner",
    "mpi-recursive-halving",
    "mpi-butterfly",
    NCCL_ONE,
    "nccl-ring version=2.30 protocol=ll channels=3 chunk-bytes=64",
    "nccl-ring version=2.29 protocol=ll128 channels=2 used-channels=2",
    "nccl-ring version=2.29 protocol=ll128 channels=2 fusion=fused",
};
enum { SOURCE_COUNT = sizeof sources / sizeof sources[0] };

static void every_source_runs_as_ref(void **state)
{
    use_level(state);
    rng r = { 76 };
    static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER,
                                                ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE };
    static const zb_redop ops[] = { ZB_SUM, ZB_AVG, ZB_PREMUL_SUM };
    int derived_count = 0;
    for (int s = 0; s < SOURCE_COUNT; s++)
        for (int k = 0; k < 4; k++)
            for (int o = 0; o < 3; o++)
                for (int n = 1; n <= 8; n++) {
                    const zb_dtype dtype = tensor_dtypes[rng_below(&r, TENSOR_DTYPES)];
                    size_t counts[8];
                    for (int i = 0; i < 8; i++) counts[i] = rng_below(&r, 4) == 0 ? 0 : rng_below(&r, 90);
                    zb_reduction_call call = call_of(
                        kinds[k], n, rng_below(&r, 3) == 0 ? rng_below(&r, 9) : 1 + rng_below(&r, 300),
                        dtype);
                    call.op = ops[o];
                    call.counts = counts;
                    call.factor = 0.7;
                    call.root = (int)rng_below(&r, (size_t)n);
                    zb_order_source source = source_of(sources[s]);
                    zb_reduction reduction;
                    const zb_status status = zb_reduction_derive(&source, &call, &reduction);
                    zb_order_source_destroy(&source);
                    if (status == ZB_UNSUPPORTED) continue;
                    assert_ok(status);
                    assert_ok(zb_reduction_check(&reduction));
                    contributions c = contributions_random(&r, n, reduction.numel, dtype,
                                                           (fill_kind)rng_below(&r, FILL_KINDS));
                    assert_runs_as_ref(&r, &reduction, &c, sources[s]);
                    contributions_free(&c);
                    zb_reduction_destroy(&reduction);
                    derived_count++;
                }
    assert_true(derived_count > 600);
}

/* Whichever side of an addition is the deep one: few sums wait. */
static void large_worlds(void **state)
{
    use_level(state);
    enum { N = 1000 };
    static char text[32 * N];
    size_t used = (size_t)snprintf(text, sizeof text,
                                   "nccl-tree version=2.28 protocol=simple channels=1 tree=");
    for (int rank = 0; rank < N; rank++) /* each adds its own to the sum of all behind it */
        used += (size_t)snprintf(text + used, sizeof text - used, "%d/-1/-1%s", rank + 1 < N ? rank + 1 : -1,
                                 rank + 1 < N ? "," : "");
    const char *const large[] = { text, "mpi-ring", "mpi-recursive-doubling", "mpi-linear" };
    rng r = { 77 };
    for (int i = 0; i < 4; i++) {
        const zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, N, 2 * N, ZB_FP32);
        zb_reduction reduction = derived(large[i], &call); /* checks the depth */
        char sum[40];
        zb_reduction_describe(&reduction, &reduction.ranges[0], sum, sizeof sum);
        assert_string_equal(sum + strlen(sum) - 3, "...");
        contributions c = contributions_random(&r, N, 2 * N, ZB_FP32, FILL_WIDE);
        assert_runs_as_ref(&r, &reduction, &c, "large");
        contributions_free(&c);
        zb_reduction_destroy(&reduction);
    }
}

/* --- refusals --- */

static void refusals(void **state)
{
    (void)state;
    static const size_t counts[] = { SIZE_MAX / 2, SIZE_MAX / 2, 7 };
    static const struct {
        const char *source, *says;
        zb_reduction_call call;
        zb_status status;
    } cases[] = {
#define CALL(kind_, n, dtype_, op_)                                                                          \
    { .kind = ZB_COLLECTIVE_##kind_, .world_size = n, .numel = 9, .dtype = dtype_, .op = op_ }
        { "rank", "over 0 ranks", CALL(ALL_REDUCE, 0, ZB_FP32, ZB_SUM), ZB_INVALID_ARGUMENT },
        { "rank", "all_gather is no reduction", CALL(ALL_GATHER, 2, ZB_FP32, ZB_SUM), ZB_INVALID_ARGUMENT },
        { "rank", "type 7", CALL(ALL_REDUCE, 2, ZB_DTYPE_COUNT, ZB_SUM), ZB_INVALID_ARGUMENT },
        { "rank", "maximum has none", CALL(ALL_REDUCE, 2, ZB_FP32, ZB_MAX), ZB_UNSUPPORTED },
        { "rank", "average of int32", CALL(ALL_REDUCE, 2, ZB_INT32, ZB_AVG), ZB_UNSUPPORTED },
        { "rank", "without counts", CALL(REDUCE_SCATTER_V, 2, ZB_FP32, ZB_SUM), ZB_INVALID_ARGUMENT },
        { "rank",
          "root 2 of 2",
          { .kind = ZB_COLLECTIVE_REDUCE, .world_size = 2, .root = 2 },
          ZB_INVALID_ARGUMENT },
        { "rank",
          "too many",
          { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .world_size = 3, .counts = counts },
          ZB_INVALID_ARGUMENT },
        { "mpi-ring", "want mpi-linear or mpi-default for a reduce", CALL(REDUCE, 2, ZB_FP32, ZB_SUM),
          ZB_UNSUPPORTED },
        { "mpi-butterfly", "for reduce_scatter only", CALL(ALL_REDUCE, 2, ZB_FP32, ZB_SUM), ZB_UNSUPPORTED },
        { "mpi-linear", "for all_reduce only", CALL(REDUCE_SCATTER, 2, ZB_FP32, ZB_SUM), ZB_UNSUPPORTED },
        { "mpi-default", "up to 127", CALL(ALL_REDUCE, 128, ZB_FP32, ZB_SUM), ZB_UNSUPPORTED },
        { "nccl-ring version=2.27 protocol=simple channels=1", "2.28 to 2.30",
          CALL(ALL_REDUCE, 2, ZB_FP32, ZB_SUM), ZB_UNSUPPORTED },
        { NCCL_ONE, "a ring is for", CALL(REDUCE, 2, ZB_FP32, ZB_SUM), ZB_UNSUPPORTED },
        { NCCL_ONE, "averages of fp64", CALL(ALL_REDUCE, 2, ZB_FP64, ZB_AVG), ZB_UNSUPPORTED },
        { NCCL_ONE " fusion=fused-ll128", "is for fp32", CALL(ALL_REDUCE, 2, ZB_BF16, ZB_AVG),
          ZB_UNSUPPORTED },
        { NCCL_ONE " ring=0,1,2", "rings over 3 ranks for a collective of 4",
          CALL(ALL_REDUCE, 4, ZB_FP32, ZB_SUM), ZB_INVALID_ARGUMENT },
        { NCCL_ONE " ring=0,1,1", "rank 1, which it has had", CALL(ALL_REDUCE, 3, ZB_FP32, ZB_SUM),
          ZB_INVALID_ARGUMENT },
        { NCCL_ONE " used-channels=2", "2 of 1 channels", CALL(ALL_REDUCE, 3, ZB_FP32, ZB_SUM),
          ZB_INVALID_ARGUMENT },
        { NCCL_ONE " chunk-bytes=100", "chunks of 100 bytes", CALL(ALL_REDUCE, 3, ZB_FP32, ZB_SUM),
          ZB_INVALID_ARGUMENT },
#define TREE "nccl-tree version=2.28 protocol=simple channels=1"
        { TREE, "without a tree", CALL(ALL_REDUCE, 3, ZB_FP32, ZB_SUM), ZB_INVALID_ARGUMENT },
        { TREE " tree=1/-1/-1,-1/-1/-1", "a tree is for all_reduce", CALL(REDUCE_SCATTER, 2, ZB_FP32, ZB_SUM),
          ZB_UNSUPPORTED },
        { TREE " tree=1/-1/-1,-1/-1/-1", "a tree's averages", CALL(ALL_REDUCE, 2, ZB_FP32, ZB_AVG),
          ZB_UNSUPPORTED },
        { TREE " tree=1/-1/-1,0/-1/-1", "does not reach", CALL(ALL_REDUCE, 2, ZB_FP32, ZB_SUM),
          ZB_INVALID_ARGUMENT }, /* a cycle */
        { TREE " tree=-1/-1/-1,-1/-1/-1", "does not reach", CALL(ALL_REDUCE, 2, ZB_FP32, ZB_SUM),
          ZB_INVALID_ARGUMENT }, /* two roots */
        { TREE " tree=1/1/-1,-1/-1/-1", "does not reach", CALL(ALL_REDUCE, 2, ZB_FP32, ZB_SUM),
          ZB_INVALID_ARGUMENT }, /* twice */
        { TREE " tree=-1/-1/-1,2/-1/-1,1/-1/-1", "does not reach", CALL(ALL_REDUCE, 3, ZB_FP32, ZB_SUM),
          ZB_INVALID_ARGUMENT }, /* apart */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zb_order_source source = source_of(cases[i].source);
        zb_reduction untouched = { .world_size = 77 };
        const zb_status status = zb_reduction_derive(&source, &cases[i].call, &untouched);
        zb_order_source_destroy(&source);
        if (status != cases[i].status || strstr(zb_error_message(), cases[i].says) == NULL)
            fail_msg("case %zu: %s: \"%s\" does not say \"%s\"", i, zb_status_string(status),
                     zb_error_message(), cases[i].says);
        assert_int_equal(untouched.world_size, 77);
    }
}

static void every_failing_allocation(void **state)
{
    (void)state;
    static const char *const texts[] = { "rank",
                                         "gloo",
                                         "mpi-ring",
                                         "mpi-recursive-doubling",
                                         NCCL_ONE " ring=0,1,2",
                                         TREE " tree=1/2/-1,-1/-1/-1,-1/-1/-1" };
    for (size_t t = 0; t < sizeof texts / sizeof texts[0]; t++) {
        const zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 1000, ZB_FP32);
        const uint64_t live = zb_alloc_get_stats().live;
        for (int64_t n = 0;; n++) {
            zb_order_source source = { 0 };
            zb_reduction reduction = { 0 };
            zb_alloc_fail_at(n);
            zb_status status = zb_order_source_parse(texts[t], &source);
            if (status == ZB_OK) status = zb_reduction_derive(&source, &call, &reduction);
            if (status == ZB_OK) {
                char *text = zb_order_source_text(&source);
                if (text == NULL) status = ZB_NO_MEMORY;
                zb_free(text);
            }
            const int fired = zb_alloc_fault_fired();
            zb_alloc_fail_at(-1);
            zb_order_source_destroy(&source);
            zb_reduction_destroy(&reduction);
            assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
            assert_int_equal(zb_alloc_get_stats().live, live);
            if (!fired) break;
        }
    }
}

int main(void)
{
    enum {
        TREES = sizeof tree_cases / sizeof tree_cases[0],
        EXAMPLES = sizeof examples / sizeof examples[0]
    };
    static const struct CMUnitTest others[] = { cmocka_unit_test(nccl_maps),
                                                cmocka_unit_test(rings_by_channel),
                                                AT_EACH_LEVEL(every_source_runs_as_ref),
                                                AT_EACH_LEVEL(large_worlds),
                                                cmocka_unit_test(refusals),
                                                cmocka_unit_test(every_failing_allocation) };
    enum { OTHERS = sizeof others / sizeof others[0] };
    struct CMUnitTest tests[TREES + EXAMPLES + OTHERS];
    for (size_t i = 0; i < TREES; i++)
        tests[i] = (struct CMUnitTest){ tree_cases[i].source, check_tree, NULL, NULL,
                                        (void *)&tree_cases[i] };
    for (size_t i = 0; i < EXAMPLES; i++)
        tests[TREES + i] = (struct CMUnitTest){ examples[i].name, check_example, NULL, NULL,
                                                (void *)&examples[i] };
    memcpy(tests + TREES + EXAMPLES, others, sizeof others);
    return cmocka_run_group_tests_name("orders_derive", tests, NULL, NULL);
}
