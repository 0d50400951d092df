/* NCCL's log lines to the source of an order. The lines are written after NCCL's format, with what else
 * stands between them. */
#include "tests/orders/support.h"

#include <string.h>
#include <zerobit/memory.h>

#define I(rank) "node1:41" #rank ":42" #rank " [" #rank "] NCCL INFO "
#define VERSION "NCCL version 2.28.9+cuda13.0\n"
#define RINGS   I(0) "Channel 00/02 : 0 1 2\n" I(0) "Channel 01/02 : 0 2 1\n"
#define TREES                                                                                                \
    I(2)                                                                                                     \
    "Trees [0] -1/-1/-1->2->1 [1] 0/-1/-1->2->-1\n" I(0) "Trees [0] 1/-1/-1->0->-1 [1] 1/-1/-1->0->2\n" I(   \
        1) "Trees [0] 2/-1/-1->1->0 [1] -1/-1/-1->1->0\n"
#define NOISE                                                                                                \
    "step 3 loss 2.5\n" I(0) "Channel 00/0 : 0[0] -> 1[1] via P2P/IPC\n" I(                                  \
        1) "Connected all rings, use ring PXN 0 GDR 1\n" I(0) "2 coll channels, 2 collnet channels, 0 nvls " \
                                                              "channels, 2 p2p channels, 2 p2p channels "    \
                                                              "per peer\n"
#define RING_4000 I(0) "AllReduce: 4000 Bytes -> Algo RING proto SIMPLE channel{Lo..Hi}={0..1}\n"

static const struct reading {
    const char *name, *text;
    size_t index;
    const char *source;
} readings[] = {
    { "a ring", VERSION RINGS NOISE RING_4000, 0,
      "nccl-ring version=2.28 protocol=simple channels=2 used-channels=2 ring=0,1,2 ring=0,2,1" },
    { "the second collective, in another spelling",
      VERSION NOISE RINGS RING_4000 I(
          0) "ReduceScatter: 96 Bytes -> Algo Ring proto LL128 channel{Lo..Hi}={0..0} comm 0x55\n",
      1, "nccl-ring version=2.28 protocol=ll128 channels=2 used-channels=1 ring=0,1,2 ring=0,2,1" },
    { "trees, before the rings",
      VERSION TREES NOISE RINGS I(0) "AllReduce: 12 Bytes -> Algo TREE proto LL channel{Lo..Hi}={0..1}", 0,
      "nccl-tree version=2.28 protocol=ll channels=2 used-channels=2 tree=1/-1/-1,2/-1/-1,-1/-1/-1 "
      "tree=1/-1/-1,-1/-1/-1,0/-1/-1" },
    { "wide columns",
      "x NCCL version 2.30.7\n" I(
          0) "Channel 00/01 :    0   2   1   3   4   5   6   7   8   9  10\n" RING_4000,
      0, NULL },
};

static void check_reading(void **state)
{
    const struct reading *c = *state;
    zb_nccl_log log;
    assert_ok(zb_nccl_log_read(c->text, &log));
    zb_order_source source;
    if (c->source == NULL) { /* two channels are used, there is one */
        assert_int_equal(log.source.world_size, 11);
        assert_int_equal(log.source.rings[10], 10);
        assert_int_equal(log.source.version, 230);
        assert_int_equal(zb_nccl_log_source(&log, c->index, &source), ZB_UNSUPPORTED);
    } else {
        assert_ok(zb_nccl_log_source(&log, c->index, &source));
        char *text = zb_order_source_text(&source);
        assert_string_equal(text, c->source);
        zb_order_source again = source_of(text);
        zb_free(text);
        zb_order_source_destroy(&again);
        const zb_reduction_call call = {
            .kind = ZB_COLLECTIVE_ALL_REDUCE, .world_size = 3, .numel = 1000, .dtype = ZB_FP32
        };
        zb_reduction reduction;
        assert_ok(zb_reduction_derive(&source, &call, &reduction));
        zb_reduction_destroy(&reduction);
        zb_order_source_destroy(&source);
    }
    zb_nccl_log_destroy(&log);
    zb_nccl_log_destroy(&log);
}

static const struct refusal {
    const char *text, *says;
    zb_status status;
} refusals[] = {
    { "", "no line \"NCCL version\"", ZB_INVALID_ARGUMENT },
    { "NCCL version two\n", "line 1: want NCCL version MAJOR.MINOR", ZB_INVALID_ARGUMENT },
    { VERSION NOISE, "no rings", ZB_INVALID_ARGUMENT },
    { VERSION I(0) "Channel 00/02 : 0 1 2\n", "no ring of channel 1 of 2", ZB_INVALID_ARGUMENT },
    { VERSION I(0) "Channel 02/02 : 0 1 2\n", "line 2: want Channel K/N", ZB_INVALID_ARGUMENT },
    { VERSION I(0) "Channel 00/02 : 0 one 2\n", "line 2: want Channel K/N", ZB_INVALID_ARGUMENT },
    { VERSION I(0) "Channel 00/02 :\n", "line 2: want Channel K/N", ZB_INVALID_ARGUMENT },
    { VERSION I(0) "Channel 00/01 : 1 0\n", "begins at rank 0", ZB_INVALID_ARGUMENT },
    { VERSION I(0) "Channel 00/01 :  0  1  2  3...\n", "cut the ring short", ZB_INVALID_ARGUMENT },
    { VERSION RINGS RINGS, "line 4: a second ring of this channel", ZB_INVALID_ARGUMENT },
    { VERSION RINGS I(0) "Channel 00/01 : 0 1\n", "line 4: a ring of another size", ZB_INVALID_ARGUMENT },
    { VERSION RINGS I(0) "Trees [0] 1/-1->0->-1\n", "line 4: want [CHANNEL] CHILD", ZB_INVALID_ARGUMENT },
    { VERSION RINGS I(0) "Trees [2] 1/-1/-1->0->-1\n", "has no ring", ZB_INVALID_ARGUMENT },
    { VERSION RINGS I(0) "AllReduce: many Bytes -> Algo RING\n", "line 4: want FUNCTION: N Bytes",
      ZB_INVALID_ARGUMENT },
    { VERSION RINGS I(0) "AllReduce: 4 Bytes -> Algo RING proto LL256 channel{Lo..Hi}={0..1}\n", "want proto",
      ZB_INVALID_ARGUMENT },
    /* read, but no order follows */
    { VERSION RINGS, "collective 0 of an NCCL log with 0", ZB_INVALID_ARGUMENT },
    { VERSION RINGS I(0) "AllReduce: 4 Bytes -> Algo NVLS_TREE proto SIMPLE channel{Lo..Hi}={0..1}\n",
      "line 4: the order of algorithm nvls_tree", ZB_UNSUPPORTED },
    { VERSION RINGS I(0) "AllReduce: 4 Bytes -> Algo RING proto LL channel{Lo..Hi}={1..1}\n",
      "channels 1 to 1 of 2", ZB_UNSUPPORTED },
    { VERSION RINGS I(0) "Trees [0] 1/-1/-1->0->-1 [1] 1/-1/-1->0->2\n" I(
          0) "AllReduce: 4 Bytes -> Algo TREE proto LL channel{Lo..Hi}={0..1}\n",
      "no place of rank 1 in tree 0", ZB_INVALID_ARGUMENT },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    zb_nccl_log log = { .collective_count = 77 };
    zb_order_source source;
    zb_status status = zb_nccl_log_read(c->text, &log);
    if (status != ZB_OK) {
        assert_int_equal(log.collective_count, 77);
    } else {
        status = zb_nccl_log_source(&log, 0, &source);
        zb_nccl_log_destroy(&log);
    }
    assert_int_equal(status, c->status);
    if (strstr(zb_error_message(), c->says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", zb_error_message(), c->says);
}

static void every_failing_allocation(void **state)
{
    (void)state;
    const uint64_t live = zb_alloc_get_stats().live;
    for (int64_t n = 0;; n++) {
        zb_nccl_log log = { 0 };
        zb_order_source source = { 0 };
        zb_alloc_fail_at(n);
        zb_status status = zb_nccl_log_read(VERSION RINGS TREES RING_4000 RING_4000, &log);
        if (status == ZB_OK) status = zb_nccl_log_source(&log, 0, &source);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        zb_order_source_destroy(&source);
        zb_nccl_log_destroy(&log);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (!fired) break;
    }
}

int main(void)
{
    enum { READ = sizeof readings / sizeof readings[0], REFUSED = sizeof refusals / sizeof refusals[0] };
    struct CMUnitTest tests[READ + REFUSED + 1];
    for (size_t i = 0; i < READ; i++)
        tests[i] = (struct CMUnitTest){ readings[i].name, check_reading, NULL, NULL, (void *)&readings[i] };
    for (size_t i = 0; i < REFUSED; i++)
        tests[READ + i] = (struct CMUnitTest){ refusals[i].says, check_refusal, NULL, NULL,
                                               (void *)&refusals[i] };
    tests[READ + REFUSED] = (struct CMUnitTest)cmocka_unit_test(every_failing_allocation);
    return cmocka_run_group_tests_name("orders_nccl_log", tests, NULL, NULL);
}
