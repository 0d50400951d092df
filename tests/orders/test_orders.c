/* The orders of all kinds of reduction as a line of text: read, written, cut, compared, refused. */
#include "tests/orders/support.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#define NCCL "nccl-ring version=2.28 protocol=simple channels=2"

static zb_orders orders_of(const char *text)
{
    zb_orders orders;
    assert_ok(zb_orders_parse(text, &orders));
    return orders;
}

/* --- there and back --- */

static const struct round_trip {
    const char *text, *written; /* NULL: as it was */
} round_trips[] = {
    { "rank", NULL },
    { "mpi-ring", NULL },
    { "mpi-default", NULL },
    { NCCL " ring=0,2,1", NULL },
    { "all_reduce: mpi-rabenseifner; reduce_scatter: mpi-butterfly", NULL },
    { "reduce_scatter_v: mpi-ring", NULL },
    { "all_reduce: " NCCL " ring=0,2,1 ring=0,1,2; reduce: mpi-linear", NULL },
    { "all_reduce: gloo; reduce_scatter: mpi-ring; reduce_scatter_v: mpi-butterfly; reduce: mpi-linear",
      NULL },
    { "  mpi-ring\t", "mpi-ring" },
    { "reduce:mpi-linear ;all_reduce:\tmpi-ring", "all_reduce: mpi-ring; reduce: mpi-linear" },
    { "all_reduce: mpi-ring;", "all_reduce: mpi-ring" },
    { " ; all_reduce: mpi-ring; ; ", "all_reduce: mpi-ring" },
    { "all_reduce: rank", "rank" },
    { "all_reduce: rank; reduce_scatter: mpi-ring", "reduce_scatter: mpi-ring" },
    { "all_reduce: gloo; reduce_scatter: gloo; reduce_scatter_v: gloo; reduce: gloo", "gloo" },
};

static void check_round_trip(void **state)
{
    const struct round_trip *c = *state;
    const uint64_t live = zb_alloc_get_stats().live;
    zb_orders orders = orders_of(c->text);
    char *text = zb_orders_text(&orders);
    assert_string_equal(text, c->written != NULL ? c->written : c->text);
    zb_orders again = orders_of(text);
    char *text_again = zb_orders_text(&again);
    assert_string_equal(text_again, text);
    assert_true(zb_orders_equal(&orders, &again));
    zb_free(text);
    zb_free(text_again);
    zb_orders_destroy(&orders);
    zb_orders_destroy(&orders); /* fine to repeat */
    zb_orders_destroy(&again);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

/* --- refused --- */

#define A20 "aaaaaaaaaaaaaaaaaaaa"

static const struct refusal {
    const char *text, *says;
    zb_status status;
} refused[] = {
    { "", "the order \"\" is not known; want rank, gloo", ZB_INVALID_ARGUMENT },
    { "mpi-rings", "\"mpi-rings\" is not known", ZB_INVALID_ARGUMENT },
    { "mpi-ring; mpi-linear", "is not known", ZB_INVALID_ARGUMENT },
    { "all_reduce:", "the order \"\" is not known", ZB_INVALID_ARGUMENT },
    { "all_reduce: mpi-rings", "\"mpi-rings\" is not known", ZB_INVALID_ARGUMENT },
    { "all_reduce: mpi-ring; reduce: nccl-pat", "PAT", ZB_UNSUPPORTED },
    { "all_reduce: nccl-ring", "nccl-ring without version=", ZB_INVALID_ARGUMENT },
    { "all_gather: rank",
      "the order of \"all_gather\"; want all_reduce, reduce_scatter, reduce_scatter_v or reduce",
      ZB_INVALID_ARGUMENT },
    { "reduce_scatte: rank", "the order of \"reduce_scatte\"; want", ZB_INVALID_ARGUMENT },
    { "reduce_scatter_: rank", "the order of \"reduce_scatter_\"; want", ZB_INVALID_ARGUMENT },
    { ": rank", "the order of \"\"; want", ZB_INVALID_ARGUMENT },
    { A20 A20 A20 A20 A20 ": rank", "the order of \"" A20 A20 A20 A20 "\"; want", ZB_INVALID_ARGUMENT },
    { "all_reduce: mpi-ring; all_reduce: gloo", "the order of all_reduce is given twice",
      ZB_INVALID_ARGUMENT },
    { "reduce: rank; reduce: rank", "the order of reduce is given twice", ZB_INVALID_ARGUMENT },
    { "all_reduce: mpi-ring; mpi-linear", "\"mpi-linear\" among the orders; want COLLECTIVE: ORDER",
      ZB_INVALID_ARGUMENT },
    { "mpi-linear; all_reduce: mpi-ring", "\"mpi-linear\" among the orders; want COLLECTIVE: ORDER",
      ZB_INVALID_ARGUMENT },
    { "all_reduce: " NCCL " ring=0,1 ; reduce: mpi-rings", "\"mpi-rings\" is not known",
      ZB_INVALID_ARGUMENT },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    const uint64_t live = zb_alloc_get_stats().live;
    zb_orders orders = { .of[0].version = 77 };
    assert_int_equal(zb_orders_parse(c->text, &orders), c->status);
    if (strstr(zb_error_message(), c->says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", zb_error_message(), c->says);
    assert_int_equal(orders.of[0].version, 77);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

/* --- looked up, compared --- */

static void test_sources(void **state)
{
    (void)state;
    zb_orders orders = orders_of("all_reduce: mpi-ring; reduce: mpi-linear");
    const zb_order_source *all_reduce = zb_orders_source(&orders, ZB_COLLECTIVE_ALL_REDUCE);
    assert_non_null(all_reduce);
    assert_int_equal(all_reduce->algorithm, ZB_ALGORITHM_MPI_RING);
    assert_int_equal(zb_orders_source(&orders, ZB_COLLECTIVE_REDUCE)->algorithm, ZB_ALGORITHM_MPI_LINEAR);
    assert_null(zb_orders_source(&orders, ZB_COLLECTIVE_REDUCE_SCATTER));
    assert_null(zb_orders_source(&orders, ZB_COLLECTIVE_REDUCE_SCATTER_V));
    assert_null(zb_orders_source(NULL, ZB_COLLECTIVE_ALL_REDUCE));
    zb_orders_destroy(&orders);
    orders = orders_of("gloo"); /* for all kinds that add, and no other */
    assert_int_equal(zb_orders_source(&orders, ZB_COLLECTIVE_REDUCE_SCATTER_V)->algorithm, ZB_ALGORITHM_GLOO);
    assert_null(zb_orders_source(&orders, ZB_COLLECTIVE_ALL_GATHER));
    zb_orders_destroy(&orders);
}

static void test_equal(void **state)
{
    (void)state;
    static const char *const different[] = {
        "rank",
        "mpi-ring",
        "gloo",
        NCCL,
        NCCL " ring=0,1,2",
        NCCL " ring=0,2,1",
        NCCL " ring=0,2,1 ring=0,1,2",
        "all_reduce: mpi-ring",
        "reduce_scatter: mpi-ring",
        "reduce_scatter_v: mpi-ring",
        "reduce: mpi-linear",
        "all_reduce: mpi-ring; reduce: mpi-linear",
    };
    enum { COUNT = sizeof different / sizeof different[0] };
    zb_orders all[COUNT];
    for (int i = 0; i < COUNT; i++) all[i] = orders_of(different[i]);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(zb_orders_equal(NULL, &all[i]), i == 0);
        assert_int_equal(zb_orders_equal(&all[i], NULL), i == 0);
        for (int k = 0; k < COUNT; k++)
            if (zb_orders_equal(&all[i], &all[k]) != (i == k))
                fail_msg("\"%s\" and \"%s\" are %s", different[i], different[k],
                         i == k ? "unequal" : "equal");
    }
    assert_true(zb_orders_equal(NULL, NULL));
    for (int i = 0; i < COUNT; i++) zb_orders_destroy(&all[i]);
}

/* --- cut --- */

static void test_describe(void **state)
{
    (void)state;
    static const char text[] = "all_reduce: " NCCL " ring=0,2,1; reduce: mpi-linear";
    zb_orders orders = orders_of(text);
    char room[sizeof text + 8];
    for (size_t bytes = 5; bytes < sizeof text + 4; bytes++) {
        memset(room, '#', sizeof room);
        zb_orders_describe(&orders, room, bytes);
        assert_int_equal(room[bytes], '#');
        if (bytes >= sizeof text) {
            assert_string_equal(room, text);
        } else {
            assert_int_equal(strlen(room), bytes - 1);
            assert_memory_equal(room, text, bytes - 4);
            assert_string_equal(room + bytes - 4, "...");
        }
    }
    zb_orders_describe(NULL, room, sizeof room);
    assert_string_equal(room, "rank");
    zb_orders_describe(NULL, room, 5); /* just fits */
    assert_string_equal(room, "rank");
    zb_orders_destroy(&orders);
    char *rank = zb_orders_text(NULL);
    assert_string_equal(rank, "rank");
    zb_free(rank);
}

/* --- no memory --- */

static void test_allocation_failures(void **state)
{
    (void)state;
    static const char text[] = "all_reduce: " NCCL " ring=0,2,1; reduce_scatter: " NCCL " ring=0,1,2";
    int64_t n = 0;
    for (int fired = 1; fired; n++) {
        const uint64_t live = zb_alloc_get_stats().live;
        zb_orders orders = { 0 };
        char *written = NULL;
        zb_alloc_fail_at(n);
        zb_status status = zb_orders_parse(text, &orders);
        if (status == ZB_OK && (written = zb_orders_text(&orders)) == NULL) status = ZB_NO_MEMORY;
        fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (!fired) assert_string_equal(written, text);
        zb_free(written);
        zb_orders_destroy(&orders);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    assert_true(n > 4);
}

static void operations_have_names(void **state)
{
    (void)state;
    static const struct {
        zb_redop op;
        const char *name;
    } rows[] = { { ZB_SUM, "sum" },
                 { ZB_AVG, "avg" },
                 { ZB_MIN, "min" },
                 { ZB_MAX, "max" },
                 { ZB_PREMUL_SUM, "premul_sum" } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        zb_redop op;
        assert_string_equal(zb_redop_name(rows[i].op), rows[i].name);
        assert_true(zb_redop_parse(rows[i].name, &op));
        assert_int_equal(op, rows[i].op);
    }
    zb_redop untouched = ZB_MAX;
    assert_false(zb_redop_parse("SUM", &untouched));
    assert_false(zb_redop_parse("", &untouched));
    assert_false(zb_redop_parse("?", &untouched));
    assert_int_equal(untouched, ZB_MAX);
    assert_string_equal(zb_redop_name((zb_redop)5), "?");
    assert_string_equal(zb_redop_name((zb_redop)-1), "?");
}

int main(void)
{
    enum { TRIPS = sizeof round_trips / sizeof round_trips[0], REFUSED = sizeof refused / sizeof refused[0] };
    struct CMUnitTest texts[TRIPS + REFUSED];
    for (size_t i = 0; i < TRIPS; i++)
        texts[i] = (struct CMUnitTest){ round_trips[i].text, check_round_trip, NULL, NULL,
                                        (void *)&round_trips[i] };
    for (size_t i = 0; i < REFUSED; i++)
        texts[TRIPS + i] = (struct CMUnitTest){ refused[i].text, check_refusal, NULL, NULL,
                                                (void *)&refused[i] };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sources),
        cmocka_unit_test(test_equal),
        cmocka_unit_test(test_describe),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(operations_have_names),
    };
    int failed = cmocka_run_group_tests_name("orders as text", texts, NULL, NULL);
    return failed + cmocka_run_group_tests_name("orders_orders", tests, NULL, NULL);
}
