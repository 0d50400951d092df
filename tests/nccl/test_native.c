/*
 * Reductions by NCCL itself, here by its stand-in, which adds in an order of its own choice: zerobit learns
 * the order from NCCL's report, and then its own addition, NCCL's, and the record of the order agree in every
 * bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/memory.h>

#include "sim/nccl/standin.h"
#include "tests/nccl/native_sums.h"
#include "tests/nccl/threads.h"

enum { WORLD = 3, NUMEL = 5003 };

static const char order_of_nccl[] = "nccl-ring version=2.28 protocol=simple channels=2 ring=0,2,1 ring=0,1,2";
static const char order_learned[] =
    "nccl-ring version=2.28 protocol=simple channels=2 used-channels=2 ring=0,2,1 ring=0,1,2";

static void run(const thread_world *world, thread_main *main, void *user)
{
    thread_ends ends;
    run_threads(world, main, user, NULL, &ends);
    if (first_failure(world, &ends) != ZB_OK) fail_msg("%s", zb_error_message());
}

/* --- learning --- */

static zb_status expect_order(zb_comm *comm, zb_collective_kind kind, const char *want)
{
    zb_order_source source;
    ZB_TRY(zb_nccl_learn(comm, kind, ZB_FP32, NUMEL, &source));
    char *text = zb_order_source_text(&source);
    const int same = text != NULL && strcmp(text, want) == 0;
    const zb_status status = same ? ZB_OK : zb_fail(ZB_DIFFERENT, "rank %d has learned %s", comm->rank, text);
    zb_free(text);
    zb_order_source_destroy(&source);
    return status;
}

static zb_status main_learn(void *user, zb_comm *comm)
{
    (void)user;
    zb_comm *part;
    ZB_TRY(expect_order(comm, ZB_COLLECTIVE_ALL_REDUCE, order_learned));
    ZB_TRY(expect_order(comm, ZB_COLLECTIVE_REDUCE_SCATTER, order_learned));
    /* A group has rings of its own. */
    ZB_TRY(zb_comm_split(comm, comm->rank > 0 ? 0 : -1, 0, &part));
    if (part == NULL) return expect_order(comm, ZB_COLLECTIVE_ALL_REDUCE, order_learned);
    zb_status status = expect_order(
        part, ZB_COLLECTIVE_ALL_REDUCE,
        "nccl-ring version=2.28 protocol=simple channels=2 used-channels=2 ring=0,1 ring=0,1");
    if (status == ZB_OK) status = expect_order(comm, ZB_COLLECTIVE_ALL_REDUCE, order_learned);
    zb_comm_destroy(part);
    return status;
}

static void test_learn(void **state)
{
    (void)state;
    run(&(thread_world){ .size = WORLD, .seed = 1, .order = order_of_nccl }, main_learn, NULL);
}

static zb_status main_learn_wrongly(void *user, zb_comm *comm)
{
    (void)user;
    zb_order_source source;
    if (zb_nccl_learn(comm, ZB_COLLECTIVE_REDUCE, ZB_FP32, 10, &source) != ZB_INVALID_ARGUMENT ||
        zb_nccl_learn(comm, ZB_COLLECTIVE_ALL_REDUCE, ZB_FP32, 0, &source) != ZB_INVALID_ARGUMENT)
        return zb_fail(ZB_DIFFERENT, "what cannot be learned was");
    return ZB_OK;
}

static void test_learn_mistakes(void **state)
{
    (void)state;
    run(&(thread_world){ .size = 2, .seed = 2 }, main_learn_wrongly, NULL);
    assert_int_equal(zb_nccl_report_to("/tmp/late"), ZB_INVALID_ARGUMENT);
    assert_true(strstr(zb_error_message(), "NCCL has been called in this process") != NULL);
}

/* --- adding --- */

static atomic_ullong counted[2];

/* The same orders, added by NCCL and not. */
static zb_status main_add(void *user, zb_comm *comm)
{
    const zb_orders *orders = user;
    const zb_collective call = { .kind = ZB_COLLECTIVE_ALL_REDUCE,
                                 .order = &orders->of[ZB_COLLECTIVE_ALL_REDUCE] };
    const int native = zb_nccl_native(comm, &call);
    zb_status status = compare_native_sums(comm, orders, NUMEL);
    if (status == ZB_OK) status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BARRIER);
    atomic_store(&counted[native], zb_nccl_standin_reductions());
    return status;
}

static void test_same_bits(void **state)
{
    (void)state;
    zb_orders native;
    assert_int_equal(zb_orders_parse(order_learned, &native), ZB_OK);
    const thread_world by_zerobit = { .size = WORLD, .seed = 3, .order = order_of_nccl };
    const thread_world by_nccl = { .size = WORLD, .seed = 3, .order = order_of_nccl, .native = &native };
    const thread_world on_device = {
        .size = WORLD, .seed = 4, .order = order_of_nccl, .native = &native, .on_device = 1
    };
    run(&by_zerobit, main_add, &native);
    assert_int_equal(atomic_load(&counted[0]), 0);
    run(&by_nccl, main_add, &native);
    run(&on_device, main_add, &native);
    assert_int_equal(atomic_load(&counted[0]), 20); /* the last run: its wrapper is not NCCL's communicator */
    assert_int_equal(atomic_load(&counted[1]), NATIVE_SUMS);
    zb_orders_destroy(&native);
}

static zb_status main_which(void *user, zb_comm *comm)
{
    const zb_order_source *order = user;
    static const zb_order_source rank = { 0 };
    zb_collective c = { .kind = ZB_COLLECTIVE_ALL_REDUCE, .order = order };
    int right = zb_nccl_native(comm, &c) == 1;
    c.op = ZB_MAX;
    right = right && zb_nccl_native(comm, &c) == 0;
    c = (zb_collective){ .kind = ZB_COLLECTIVE_ALL_REDUCE, .order = &rank };
    right = right && zb_nccl_native(comm, &c) == 0;
    c = (zb_collective){ .kind = ZB_COLLECTIVE_ALL_REDUCE };
    right = right && zb_nccl_native(comm, &c) == 0;
    c = (zb_collective){ .kind = ZB_COLLECTIVE_REDUCE, .order = order };
    right = right && zb_nccl_native(comm, &c) == 0;
    return right ? ZB_OK : zb_fail(ZB_DIFFERENT, "zb_nccl_native is wrong");
}

static void test_which_are_native(void **state)
{
    (void)state;
    zb_orders native;
    assert_int_equal(zb_orders_parse(order_learned, &native), ZB_OK);
    run(&(thread_world){ .size = WORLD, .seed = 5, .native = &native }, main_which,
        (void *)(uintptr_t)&native.of[ZB_COLLECTIVE_ALL_REDUCE]);
    zb_orders_destroy(&native);
}

/* --- what NCCL cannot be told --- */

static zb_status main_nothing(void *user, zb_comm *comm)
{
    (void)user;
    (void)comm;
    return ZB_OK;
}

static void test_refused(void **state)
{
    static const struct {
        const char *order, *want;
    } cases[] = {
        { "nccl-ring version=2.29 protocol=simple channels=2",
          "the native order is of NCCL 2.29; this is NCCL 2.28" },
        { "nccl-ring version=2.28 protocol=ll channels=2", "NCCL_PROTO is \"Simple\", want \"LL\"" },
        { "nccl-tree version=2.28 protocol=simple channels=1 tree=1/-1/-1,-1/-1/-1",
          "NCCL_ALGO is \"Ring\", want \"Tree\"" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zb_orders native;
        thread_ends ends;
        assert_int_equal(zb_orders_parse(cases[i].order, &native), ZB_OK);
        run_threads(&(thread_world){ .size = 2, .seed = 6, .native = &native }, main_nothing, NULL, NULL,
                    &ends);
        for (int r = 0; r < 2; r++)
            if (ends.ranks[r].status == ZB_OK || strstr(ends.ranks[r].message, cases[i].want) == NULL)
                fail_msg("rank %d: %s; want %s", r, ends.ranks[r].message, cases[i].want);
        zb_orders_destroy(&native);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learn),     cmocka_unit_test(test_learn_mistakes),
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_which_are_native),
        cmocka_unit_test(test_refused),
    };
    char path[] = "/tmp/zerobit-nccl-report-XXXXXX";
    const int file = mkstemp(path);
    /* All threads would set them at once. */
    if (file < 0 || setenv("NCCL_ALGO", "Ring", 1) != 0 || setenv("NCCL_PROTO", "Simple", 1) != 0 ||
        zb_nccl_report_to(path) != ZB_OK) {
        fprintf(stderr, "%s\n", zb_error_message());
        return 1;
    }
    close(file);
    const int failed = cmocka_run_group_tests_name("NCCL's own reductions", tests, NULL, NULL);
    unlink(path);
    return failed;
}
