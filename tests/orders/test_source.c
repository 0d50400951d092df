/* The source of an order as a line of text: read, written, and refused with the value and what is wanted. */
#include "tests/orders/support.h"

#include <string.h>
#include <zerobit/memory.h>

static const struct round_trip {
    const char *text, *written; /* NULL: as it was */
} round_trips[] = {
    { "rank", NULL },
    { "gloo", NULL },
    { "mpi-default", NULL },
    { "mpi-linear", NULL },
    { "mpi-recursive-doubling", NULL },
    { "mpi-ring", NULL },
    { "mpi-segmented-ring", NULL },
    { "mpi-rabenseifner", NULL },
    { "mpi-recursive-halving", NULL },
    { "mpi-butterfly", NULL },
    { "nccl-ring version=2.28 protocol=simple channels=1", NULL },
    { "nccl-ring version=2.28 protocol=ll128 channels=24 used-channels=8 threads=256 chunk-bytes=131072 "
      "fusion=unfused",
      NULL },
    { "nccl-ring version=2.30 protocol=ll channels=2 ring=0,2,1 ring=0,1,2", NULL },
    { "nccl-tree version=2.29 protocol=simple channels=2 tree=1/-1/-1,2/-1/-1,-1/-1/-1 "
      "tree=-1/-1/-1,0/2/-1,-1/-1/-1",
      NULL },
    { "  nccl-ring\tchannels=2  fusion=released version=2.28.9 protocol=simple\n",
      "nccl-ring version=2.28 protocol=simple channels=2" },
};

static void check_round_trip(void **state)
{
    const struct round_trip *c = *state;
    zb_order_source source = source_of(c->text);
    char *text = zb_order_source_text(&source);
    assert_string_equal(text, c->written != NULL ? c->written : c->text);
    zb_order_source again = source_of(text);
    char *text_again = zb_order_source_text(&again);
    assert_string_equal(text_again, text);
    zb_free(text);
    zb_free(text_again);
    zb_order_source_destroy(&source);
    zb_order_source_destroy(&source); /* fine to repeat */
    zb_order_source_destroy(&again);
}

#define RING "nccl-ring version=2.28 protocol=simple channels=1 "

static const struct refusal {
    const char *text, *says;
    zb_status status;
} refused[] = {
    { "", "the order \"\" is not known; want rank, gloo", ZB_INVALID_ARGUMENT },
    { "mpi-rings", "\"mpi-rings\" is not known", ZB_INVALID_ARGUMENT },
    { "rank channels=1", "\"channels=1\" after rank, which has no settings", ZB_INVALID_ARGUMENT },
    { "nccl-pat", "PAT", ZB_UNSUPPORTED },
    { "nccl-nvls version=2.28", "the switch adds", ZB_UNSUPPORTED },
    { "nccl-nvlstree", "the switch adds", ZB_UNSUPPORTED },
    { "nccl-collnet", "the network adds", ZB_UNSUPPORTED },
    { "nccl-symmetric", "symmetric windows", ZB_UNSUPPORTED },
    { "mpi-nonoverlapping", "name mpi-linear or mpi-default", ZB_UNSUPPORTED },
    { "nccl-ring", "nccl-ring without version=", ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2.28 channels=1", "without protocol=", ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2.28 protocol=ll", "without channels=", ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2 protocol=ll channels=1", "version=2; want MAJOR.MINOR", ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2.28x protocol=ll channels=1", "version=2.28x; want", ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2.28 protocol=LL channels=1", "protocol=LL; want simple, ll or ll128",
      ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2.28 protocol=ll channels=0", "channels=0; want a whole number from 1",
      ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2.28 protocol=ll channels=2x", "channels=2x; want", ZB_INVALID_ARGUMENT },
    { "nccl-ring version=2.28 protocol=ll channels=", "channels=; want", ZB_INVALID_ARGUMENT },
    { RING "channels=2", "channels is given twice", ZB_INVALID_ARGUMENT },
    { RING "chunk-bytes=99999999999999999999", "chunk-bytes=99999999999999999999; want",
      ZB_INVALID_ARGUMENT },
    { RING "chunk-bytes=-1", "chunk-bytes=-1; want", ZB_INVALID_ARGUMENT },
    { RING "fusion=no", "fusion=no; want released, fused, unfused or fused-ll128", ZB_INVALID_ARGUMENT },
    { RING "rings=0,1", "\"rings=0,1\" of nccl-ring; want version=", ZB_INVALID_ARGUMENT },
    { RING "ring", "\"ring\" of nccl-ring; want", ZB_INVALID_ARGUMENT },
    { RING "ring=1,0", "ring=1,0; want a ring that begins at rank 0", ZB_INVALID_ARGUMENT },
    { RING "ring=0,1,3", "ring=0,1,3; want ranks with commas", ZB_INVALID_ARGUMENT },
    { RING "ring=0,1,", "ring=0,1,; want ranks with commas", ZB_INVALID_ARGUMENT },
    { RING "ring=0;1", "ring=0;1; want ranks with commas", ZB_INVALID_ARGUMENT },
    { RING "ring=0,1 ring=0,1,2", "ring=0,1,2 has 3 ranks, what came before has 2", ZB_INVALID_ARGUMENT },
    { "nccl-tree version=2.28 protocol=ll channels=1 tree=1/-1,-1/-1/-1", "want CHILD/CHILD/CHILD",
      ZB_INVALID_ARGUMENT },
    { "nccl-tree version=2.28 protocol=ll channels=1 tree=1/-1/-1,2/-1/-1", "want CHILD/CHILD/CHILD",
      ZB_INVALID_ARGUMENT },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    zb_order_source source = { .version = 77 };
    assert_int_equal(zb_order_source_parse(c->text, &source), c->status);
    if (strstr(zb_error_message(), c->says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", zb_error_message(), c->says);
    assert_int_equal(source.version, 77);
}

int main(void)
{
    enum { TRIPS = sizeof round_trips / sizeof round_trips[0], REFUSED = sizeof refused / sizeof refused[0] };
    struct CMUnitTest tests[TRIPS + REFUSED];
    for (size_t i = 0; i < TRIPS; i++)
        tests[i] = (struct CMUnitTest){ round_trips[i].text, check_round_trip, NULL, NULL,
                                        (void *)&round_trips[i] };
    for (size_t i = 0; i < REFUSED; i++)
        tests[TRIPS + i] = (struct CMUnitTest){ refused[i].text, check_refusal, NULL, NULL,
                                                (void *)&refused[i] };
    return cmocka_run_group_tests_name("orders_source", tests, NULL, NULL);
}
