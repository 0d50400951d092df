/*
 * The stand-in of NCCL itself: what its callers must not do it finds, and what NCCL would hang in does not go
 * through. One thread plays both ranks: their communicators do not block.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "sim/cuda/standin.h"
#include "sim/nccl/standin.h"

enum { RANKS = 2, NUMEL = 256 };

typedef struct rig {
    ncclComm_t comms[RANKS];
    cudaStream_t streams[RANKS];
    float *memory[RANKS];
} rig;

static ncclResult_t settle(ncclComm_t comm)
{
    ncclResult_t found = ncclInProgress;
    for (int i = 0; i < 100 && found == ncclInProgress; i++)
        assert_int_equal(ncclCommGetAsyncError(comm, &found), ncclSuccess);
    return found;
}

static void begin(rig *r)
{
    ncclUniqueId id;
    assert_int_equal(
        zb_standin_begin(&(zb_standin_options){ .seed = 1, .device_count = RANKS, .stall_ms = 200 }), ZB_OK);
    assert_int_equal(zb_nccl_standin_begin(&(zb_nccl_standin_options){ .seed = 1 }), ZB_OK);
    assert_int_equal(ncclGetUniqueId(&id), ncclSuccess);
    for (int k = 0; k < RANKS; k++) {
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        assert_int_equal(cudaSetDevice(k), cudaSuccess);
        assert_int_equal(ncclCommInitRankConfig(&r->comms[k], RANKS, id, k, &config), ncclInProgress);
        assert_int_equal(cudaStreamCreateWithFlags(&r->streams[k], cudaStreamNonBlocking), cudaSuccess);
        assert_int_equal(cudaMalloc((void **)&r->memory[k], NUMEL * sizeof(float)), cudaSuccess);
    }
    for (int k = 0; k < RANKS; k++) assert_int_equal(settle(r->comms[k]), ncclSuccess);
}

/* The first mistake contains `want`; NULL: there is none. */
static void end(rig *r, int aborts, const char *want)
{
    for (int k = 0; k < RANKS; k++) {
        assert_int_equal(cudaSetDevice(k), cudaSuccess);
        if (aborts) assert_int_equal(ncclCommAbort(r->comms[k]), ncclSuccess);
        assert_int_equal(cudaStreamSynchronize(r->streams[k]), cudaSuccess);
        if (!aborts) {
            const ncclResult_t code = ncclCommFinalize(r->comms[k]);
            assert_true(code == ncclSuccess || code == ncclInProgress);
            assert_int_equal(settle(r->comms[k]), ncclSuccess);
            assert_int_equal(ncclCommDestroy(r->comms[k]), ncclSuccess);
        }
        cudaStreamDestroy(r->streams[k]);
        cudaFree(r->memory[k]);
    }
    const zb_status status = zb_nccl_standin_end();
    if (want == NULL ? status != ZB_OK : status == ZB_OK || strstr(zb_error_message(), want) == NULL)
        fail_msg("found %s, want %s", status == ZB_OK ? "nothing" : zb_error_message(),
                 want != NULL ? want : "nothing");
    assert_int_equal(zb_standin_end(), ZB_OK);
}

static ncclResult_t on(rig *r, int k)
{
    (void)r;
    return cudaSetDevice(k) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

static ncclResult_t send_to_other(rig *r, int k, size_t count)
{
    on(r, k);
    return ncclSend(r->memory[k], count, ncclFloat32, 1 - k, r->comms[k], r->streams[k]);
}

static ncclResult_t receive_from_other(rig *r, int k, size_t count)
{
    on(r, k);
    return ncclRecv(r->memory[k] + NUMEL / 2, count, ncclFloat32, 1 - k, r->comms[k], r->streams[k]);
}

static void test_clean(void **state)
{
    (void)state;
    rig r;
    begin(&r);
    for (int k = 0; k < RANKS; k++) {
        on(&r, k);
        assert_int_equal(ncclGroupStart(), ncclSuccess);
        assert_int_equal(send_to_other(&r, k, 16), ncclSuccess);
        assert_int_equal(receive_from_other(&r, k, 16), ncclSuccess);
        const ncclResult_t code = ncclGroupEnd();
        assert_true(code == ncclSuccess || code == ncclInProgress);
        assert_int_equal(settle(r.comms[k]), ncclSuccess);
    }
    end(&r, 0, NULL);
}

/* Two ranks that send to each other, and receive only then, wait forever. */
static void test_sends_without_receives(void **state)
{
    (void)state;
    rig r;
    begin(&r);
    for (int k = 0; k < RANKS; k++) {
        send_to_other(&r, k, 16);
        settle(r.comms[k]);
        receive_from_other(&r, k, 16);
        settle(r.comms[k]);
    }
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    assert_int_equal(cudaStreamQuery(r.streams[0]), cudaErrorNotReady);
    assert_int_equal(cudaStreamQuery(r.streams[0]), cudaErrorNotReady);
    end(&r, 1, NULL);
}

static void test_other_sizes(void **state)
{
    (void)state;
    rig r;
    begin(&r);
    send_to_other(&r, 0, 16);
    receive_from_other(&r, 1, 8);
    cudaStreamQuery(r.streams[1]);
    on(&r, 0);
    cudaStreamQuery(r.streams[0]);
    end(&r, 1, "ncclSend of 64 bytes from rank 0 meets ncclRecv of 32 at rank 1");
}

static void test_other_collectives(void **state)
{
    (void)state;
    rig r;
    begin(&r);
    on(&r, 0);
    ncclAllReduce(r.memory[0], r.memory[0], 8, ncclFloat32, ncclSum, r.comms[0], r.streams[0]);
    on(&r, 1);
    ncclBroadcast(r.memory[1], r.memory[1], 8, ncclFloat32, 0, r.comms[1], r.streams[1]);
    cudaStreamQuery(r.streams[1]);
    on(&r, 0);
    cudaStreamQuery(r.streams[0]);
    end(&r, 1, "rank 0 calls ncclAllReduce of 8, rank 1 ncclBroadcast of 8");
}

/* The seed lets a call stay in progress for a while; a next one may not come before it is asked for. */
static void test_before_it_has_finished(void **state)
{
    (void)state;
    rig r;
    begin(&r);
    ncclResult_t code = ncclSuccess;
    for (int i = 0; i < 20 && code == ncclSuccess; i++) code = send_to_other(&r, 0, 1);
    assert_int_equal(code, ncclInProgress);
    assert_int_equal(send_to_other(&r, 0, 1), ncclInvalidUsage);
    end(&r, 1, "ncclSend before the communicator's previous call has finished");
}

static void test_arguments(void **state)
{
    float host;
    rig r;
    (void)state;
    begin(&r);
    on(&r, 0);
    assert_int_equal(ncclSend(&host, 1, ncclFloat32, 1, r.comms[0], r.streams[0]), ncclInvalidArgument);
    assert_int_equal(ncclSend(NULL, 1, ncclFloat32, 1, r.comms[0], r.streams[0]), ncclInvalidArgument);
    assert_int_equal(ncclSend(r.memory[1], 1, ncclFloat32, 1, r.comms[0], r.streams[0]), ncclInvalidArgument);
    assert_int_equal(ncclSend(r.memory[0], 1, ncclFloat32, 2, r.comms[0], r.streams[0]), ncclInvalidArgument);
    assert_int_equal(ncclSend(r.memory[0], 1, ncclNumTypes, 1, r.comms[0], r.streams[0]),
                     ncclInvalidArgument);
    assert_int_equal(ncclAllReduce(r.memory[0], r.memory[0], 1, ncclInt32, ncclAvg, r.comms[0], r.streams[0]),
                     ncclInvalidArgument);
    assert_int_equal(ncclBroadcast(r.memory[0], r.memory[0], 1, ncclInt32, -1, r.comms[0], r.streams[0]),
                     ncclInvalidArgument);
    assert_int_equal(ncclSend(r.memory[0], 1, ncclFloat32, 1, NULL, r.streams[0]), ncclInvalidArgument);
    assert_int_equal(ncclGroupEnd(), ncclInvalidUsage);
    on(&r, 1); /* not the communicator's */
    assert_int_equal(ncclSend(r.memory[0], 1, ncclFloat32, 1, r.comms[0], r.streams[0]), ncclInvalidUsage);
    end(&r, 0, "sendbuff is not on device 0, the communicator's (and 9 more)");
}

static void test_given_back(void **state)
{
    (void)state;
    rig r;
    begin(&r);
    for (int k = 0; k < RANKS; k++) {
        on(&r, k);
        if (k == 1) assert_int_equal(ncclCommAbort(r.comms[1]), ncclSuccess);
        assert_int_equal(ncclCommAbort(k == 1 ? r.comms[1] : NULL), ncclInvalidArgument);
        cudaStreamDestroy(r.streams[k]);
        cudaFree(r.memory[k]);
    }
    assert_int_equal(send_to_other(&r, 1, 1), ncclInvalidArgument);
    assert_int_equal(zb_nccl_standin_end(), ZB_INVALID_ARGUMENT); /* rank 0's communicator is left */
    assert_true(strstr(zb_error_message(), "(and 3 more)") != NULL);
    assert_int_equal(zb_standin_end(), ZB_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clean),
        cmocka_unit_test(test_sends_without_receives),
        cmocka_unit_test(test_other_sizes),
        cmocka_unit_test(test_other_collectives),
        cmocka_unit_test(test_before_it_has_finished),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_given_back),
    };
    return cmocka_run_group_tests_name("the stand-in of NCCL", tests, NULL, NULL);
}
