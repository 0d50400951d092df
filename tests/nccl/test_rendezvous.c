/* Ranks find each other by real connections between processes, or say why not; and what they send arrives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zerobit/memory.h>

#include "engine/nccl/control.h"
#include "engine/nccl/rendezvous.h"
#include "tests/nccl/processes.h"

/* What process `index` says that it is, and how long it waits before it comes. */
typedef struct rank_plan {
    int rank, world_size;
    const char *job;
    int delay_ms;
    uint64_t option;
    int junk; /* it is no rank, but sends this many bytes of something else */
} rank_plan;

typedef struct job_plan {
    int port;
    double timeout_seconds;
    zb_status (*then)(nccl_control *control, const zb_nccl_environment *here);
    rank_plan ranks[PROCESSES_MAX];
} job_plan;

static zb_status send_junk(const job_plan *job, int bytes)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)job->port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    const int s = socket(AF_INET, SOCK_STREAM, 0);
    char junk[4096];
    memset(junk, 'x', sizeof junk);
    for (int tries = 0; tries < 100 && connect(s, (struct sockaddr *)&address, sizeof address) != 0; tries++)
        poll(NULL, 0, 20);
    const ssize_t sent = send(s, junk, (size_t)bytes, MSG_NOSIGNAL);
    poll(NULL, 0, 300);
    close(s);
    return sent == bytes ? ZB_OK : zb_fail(ZB_IO, "the junk did not go");
}

static zb_status run_rank(void *user, int index)
{
    const job_plan *job = user;
    const rank_plan *plan = &job->ranks[index];
    zb_nccl_environment here = { .rank = plan->rank, .world_size = plan->world_size, .port = job->port };
    nccl_meeting meeting = { .here = &here,
                             .timeout_seconds = job->timeout_seconds,
                             .names = { "first", "second", "third", "fourth" },
                             .words = { 7, plan->option, 1, 2 } };
    int sockets[PROCESSES_MAX];
    nccl_control *control;
    snprintf(here.address, sizeof here.address, "127.0.0.1");
    snprintf(here.job, sizeof here.job, "%s", plan->job != NULL ? plan->job : "");
    if (plan->rank == 0) memset(meeting.gift, 0x2a, sizeof meeting.gift);
    poll(NULL, 0, plan->delay_ms);
    if (plan->junk > 0) return send_junk(job, plan->junk);
    ZB_TRY(zb_nccl_meet(&meeting, sockets));
    for (size_t i = 0; i < sizeof meeting.gift; i++)
        if (meeting.gift[i] != 0x2a) return zb_fail(ZB_DIFFERENT, "the gift has come wrong");
    if (here.world_size == 1) return ZB_OK;
    ZB_TRY(zb_control_create(here.rank, here.world_size, sockets, &control));
    const zb_status status = job->then != NULL ? job->then(control, &here) : ZB_OK;
    zb_control_destroy(control, 5);
    return status;
}

static void assert_end(const process_end *end, zb_status status, const char *text)
{
    if (end->status != status || (text != NULL && strstr(end->message, text) == NULL))
        fail_msg("ended with status %d, \"%s\"; want %d and \"%s\"", (int)end->status, end->message,
                 (int)status, text != NULL ? text : "");
}

/* --- it works --- */

enum { FRAME_COUNT = 40 };

static size_t frame_bytes(int from, int k)
{
    static const size_t sizes[] = { 0, 1, 31, 4096, 100003, FRAME_BYTES_MAX };
    return sizes[(size_t)(from + k) % (sizeof sizes / sizeof sizes[0])];
}

static unsigned char frame_byte(int from, int to, int k, size_t i)
{
    return (unsigned char)(i * 31 + (size_t)(from * 7 + to * 3 + k));
}

static zb_status send_frames(nccl_control *control, int from, int to)
{
    for (int k = 0; k < FRAME_COUNT; k++) {
        const size_t bytes = frame_bytes(from, k);
        unsigned char *body = zb_alloc(bytes);
        if (body == NULL) return ZB_NO_MEMORY;
        for (size_t i = 0; i < bytes; i++) body[i] = frame_byte(from, to, k, i);
        const zb_status status = zb_control_send(control, to, FRAME_PAYLOAD, 3, (uint64_t)k, body, bytes);
        zb_free(body);
        ZB_TRY(status);
    }
    return ZB_OK;
}

/* In falling order: whatever has come before is kept. */
static zb_status receive_frames(nccl_control *control, int from, int me)
{
    for (int k = FRAME_COUNT - 1; k >= 0; k--) {
        frame *f;
        while ((f = zb_control_take(control, from, FRAME_PAYLOAD, 3, (uint64_t)k)) == NULL) {
            if (zb_control_peer(control, from) == PEER_LOST)
                return zb_fail(ZB_REMOTE, "rank %d is lost: %s", from, zb_control_why_lost(control, from));
            ZB_TRY(zb_control_pump(control, 10, NULL));
        }
        int same = f->bytes == frame_bytes(from, k);
        for (size_t i = 0; i < f->bytes && same; i++) same = f->body[i] == frame_byte(from, me, k, i);
        zb_free(f);
        if (!same) return zb_fail(ZB_DIFFERENT, "frame %d of rank %d has come wrong", k, from);
    }
    return ZB_OK;
}

static zb_status exchange_frames(nccl_control *control, const zb_nccl_environment *here)
{
    for (int r = 0; r < here->world_size; r++)
        if (r != here->rank) ZB_TRY(send_frames(control, here->rank, r));
    for (int r = 0; r < here->world_size; r++)
        if (r != here->rank) ZB_TRY(receive_frames(control, r, here->rank));
    return ZB_OK;
}

static void test_worlds(void **state)
{
    (void)state;
    for (int world = 1; world <= 5; world++) {
        job_plan job = { .port = find_free_port(), .timeout_seconds = 20, .then = exchange_frames };
        process_end ends[PROCESSES_MAX];
        for (int r = 0; r < world; r++) /* some come late, rank 0 among them */
            job.ranks[r] = (rank_plan){ .rank = r, .world_size = world, .delay_ms = r % 2 == 0 ? 100 : 0 };
        run_processes(world, run_rank, &job, ends);
        for (int r = 0; r < world; r++) assert_end(&ends[r], ZB_OK, NULL);
    }
}

/* A stranger's connection, one that says nothing and one that says too much, keep nobody from meeting. */
static void test_strangers(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 20, .then = exchange_frames };
    process_end ends[PROCESSES_MAX];
    job.ranks[0] = (rank_plan){ .rank = 0, .world_size = 2 };
    job.ranks[1] = (rank_plan){ .rank = 1, .world_size = 2, .delay_ms = 500 };
    job.ranks[2] = (rank_plan){ .junk = 3 };
    job.ranks[3] = (rank_plan){ .junk = 4000 };
    run_processes(4, run_rank, &job, ends);
    for (int i = 0; i < 4; i++) assert_end(&ends[i], ZB_OK, NULL);
}

static void test_another_job(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 20, .then = exchange_frames };
    process_end ends[PROCESSES_MAX];
    job.ranks[0] = (rank_plan){ .rank = 0, .world_size = 2, .job = "left" };
    job.ranks[1] = (rank_plan){ .rank = 1, .world_size = 2, .job = "left", .delay_ms = 400 };
    job.ranks[2] = (rank_plan){ .rank = 1, .world_size = 2, .job = "right" };
    run_processes(3, run_rank, &job, ends);
    assert_end(&ends[0], ZB_OK, NULL);
    assert_end(&ends[1], ZB_OK, NULL);
    assert_end(&ends[2], ZB_IO, "rank 1 of job \"right\" has come to 127.0.0.1");
}

/* --- it does not --- */

static void test_missing_rank(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 0.5 };
    process_end ends[PROCESSES_MAX];
    job.ranks[0] = (rank_plan){ .rank = 0, .world_size = 4 };
    job.ranks[1] = (rank_plan){ .rank = 2, .world_size = 4 };
    job.timeout_seconds = 1;
    run_processes(2, run_rank, &job, ends);
    assert_end(&ends[0], ZB_IO, "ranks 1,3 of 4 have not come to rank 0 within 1 s");
    if (strstr(ends[1].message, "ranks 1,3 of 4 have not come") == NULL &&
        strstr(ends[1].message, "rank 0 has not answered") == NULL)
        fail_msg("rank 2: %s", ends[1].message);
}

static void test_no_first_rank(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 0.3 };
    process_end ends[PROCESSES_MAX];
    char want[64];
    job.ranks[0] = (rank_plan){ .rank = 1, .world_size = 2 };
    run_processes(1, run_rank, &job, ends);
    snprintf(want, sizeof want, "found no rank 0 at 127.0.0.1:%d within 0.3 s: Connection refused", job.port);
    assert_end(&ends[0], ZB_IO, want);
}

static void test_world_sizes(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 5 };
    process_end ends[PROCESSES_MAX];
    job.ranks[0] = (rank_plan){ .rank = 0, .world_size = 2 };
    job.ranks[1] = (rank_plan){ .rank = 1, .world_size = 3 };
    run_processes(2, run_rank, &job, ends);
    assert_end(&ends[0], ZB_MISMATCH, "rank 0 has a world of 2 ranks, rank 1 one of 3");
    assert_end(&ends[1], ZB_MISMATCH, "rank 0 has a world of 2 ranks, rank 1 one of 3");
}

static void test_options(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 5 };
    process_end ends[PROCESSES_MAX];
    job.ranks[0] = (rank_plan){ .rank = 0, .world_size = 3, .option = 1 };
    job.ranks[1] = (rank_plan){ .rank = 1, .world_size = 3, .option = 1 };
    job.ranks[2] = (rank_plan){ .rank = 2, .world_size = 3, .option = 9, .delay_ms = 300 };
    run_processes(3, run_rank, &job, ends);
    assert_end(&ends[0], ZB_MISMATCH, "second differs: rank 0 has 1, rank 2 has 9");
    assert_end(&ends[1], ZB_MISMATCH, "rank 0 failed: ranks were given different options: second differs");
    assert_end(&ends[2], ZB_MISMATCH, "second differs: rank 0 has 1, rank 2 has 9");
}

static void test_twice_the_same_rank(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 1 };
    process_end ends[PROCESSES_MAX];
    job.ranks[0] = (rank_plan){ .rank = 0, .world_size = 3 };
    job.ranks[1] = (rank_plan){ .rank = 1, .world_size = 3 };
    job.ranks[2] = (rank_plan){ .rank = 1, .world_size = 3, .delay_ms = 300 };
    run_processes(3, run_rank, &job, ends);
    assert_end(&ends[0], ZB_IO, "rank 2 of 3 has not come to rank 0");
    assert_end(&ends[2], ZB_IO,
               "a rank 1 has come to rank 0 of 3, which does not wait for it: it is there already");
}

static int listen_on_free_port(int *port_p)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t bytes = sizeof address;
    const int s = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(s >= 0 && bind(s, (struct sockaddr *)&address, bytes) == 0 && listen(s, 4) == 0);
    assert_int_equal(getsockname(s, (struct sockaddr *)&address, &bytes), 0);
    *port_p = ntohs(address.sin_port);
    return s;
}

static void test_port_in_use(void **state)
{
    (void)state;
    job_plan job = { .timeout_seconds = 1 };
    process_end ends[PROCESSES_MAX];
    char want[64];
    const int s = listen_on_free_port(&job.port);
    job.ranks[0] = (rank_plan){ .rank = 0, .world_size = 2 };
    run_processes(1, run_rank, &job, ends);
    close(s);
    snprintf(want, sizeof want, "rank 0 cannot listen at 127.0.0.1:%d: Address already in use", job.port);
    assert_end(&ends[0], ZB_IO, want);
}

/* Another program's server, which greets whoever comes. */
static zb_status greet_or_come(void *user, int index)
{
    const job_plan *job = ((void **)user)[0];
    const int listener = *(int *)((void **)user)[1];
    if (index == 1) return run_rank((void *)(uintptr_t)job, 0);
    const int s = accept(listener, NULL, NULL);
    static const char greeting[] = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n";
    if (send(s, greeting, sizeof greeting - 1, MSG_NOSIGNAL) < 0) return zb_fail(ZB_IO, "nobody to greet");
    poll(NULL, 0, 300);
    close(s);
    return ZB_OK;
}

static void test_another_program(void **state)
{
    (void)state;
    job_plan job = { .timeout_seconds = 5 };
    process_end ends[PROCESSES_MAX];
    int s = listen_on_free_port(&job.port);
    job.ranks[0] = (rank_plan){ .rank = 1, .world_size = 2 };
    run_processes(2, greet_or_come, (void *[]){ &job, &s }, ends);
    close(s);
    assert_end(&ends[0], ZB_OK, NULL);
    assert_end(&ends[1], ZB_IO, "is not rank 0 of a zerobit job: another program uses the port");
}

/* --- ranks that go --- */

static zb_status leave_or_watch(nccl_control *control, const zb_nccl_environment *here)
{
    if (here->rank == 1) _exit(0); /* as if killed: nobody is told */
    if (here->rank == 2) {
        for (int r = 0; r < 2; r++) ZB_TRY(zb_control_send(control, r, FRAME_ENDED, 0, 0, NULL, 0));
        return ZB_OK;
    }
    while (zb_control_peer(control, 1) == PEER_OPEN || zb_control_peer(control, 2) == PEER_OPEN)
        ZB_TRY(zb_control_pump(control, 10, NULL));
    if (zb_control_peer(control, 1) != PEER_LOST || zb_control_peer(control, 2) != PEER_ENDED)
        return zb_fail(ZB_DIFFERENT, "rank 1 is %d, rank 2 is %d", (int)zb_control_peer(control, 1),
                       (int)zb_control_peer(control, 2));
    return zb_fail(ZB_REMOTE, "%s", zb_control_why_lost(control, 1));
}

static void test_leaving(void **state)
{
    (void)state;
    job_plan job = { .port = find_free_port(), .timeout_seconds = 10, .then = leave_or_watch };
    process_end ends[PROCESSES_MAX];
    for (int r = 0; r < 3; r++) job.ranks[r] = (rank_plan){ .rank = r, .world_size = 3 };
    run_processes(3, run_rank, &job, ends);
    assert_end(&ends[0], ZB_REMOTE, "its connection was closed without a word");
    assert_end(&ends[2], ZB_OK, NULL);
}

/* --- the environment --- */

static const char *const names[] = { "RANK",
                                     "WORLD_SIZE",
                                     "LOCAL_RANK",
                                     "MASTER_ADDR",
                                     "MASTER_PORT",
                                     "OMPI_COMM_WORLD_RANK",
                                     "OMPI_COMM_WORLD_SIZE",
                                     "OMPI_COMM_WORLD_LOCAL_RANK",
                                     "OMPI_COMM_WORLD_LOCAL_SIZE",
                                     "TORCHELASTIC_RUN_ID",
                                     "PMIX_NAMESPACE" };
enum { NAME_COUNT = sizeof names / sizeof names[0] };

/* Exactly these, in the order of `names`; NULL: not set. */
static zb_status read_with(const char *const values[NAME_COUNT], zb_nccl_environment *here)
{
    for (int i = 0; i < NAME_COUNT; i++) {
        if (values[i] != NULL)
            setenv(names[i], values[i], 1);
        else
            unsetenv(names[i]);
    }
    return zb_nccl_environment_read(here);
}

static void test_environment(void **state)
{
    (void)state;
    zb_nccl_environment here;
    assert_int_equal(read_with((const char *const[NAME_COUNT]){ "3", "4", "1", "node1", "1234" }, &here),
                     ZB_OK);
    assert_int_equal(here.rank * 1000 + here.world_size * 100 + here.local_rank * 10, 3410);
    assert_string_equal(here.address, "node1");
    assert_int_equal(here.port, 1234);
    assert_string_equal(here.job, "");
    assert_int_equal(
        read_with((const char *const[NAME_COUNT]){ [5] = "1", "2", "1", "2", [10] = "job.7" }, &here), ZB_OK);
    assert_int_equal(here.rank, 1);
    assert_string_equal(here.address, "127.0.0.1");
    assert_int_equal(here.port, 29500);
    assert_string_equal(here.job, "job.7");
}

static void test_environment_mistakes(void **state)
{
    (void)state;
    static const struct {
        const char *values[NAME_COUNT], *want;
    } cases[] = {
        { { NULL }, "neither WORLD_SIZE nor OMPI_COMM_WORLD_SIZE is set" },
        { { NULL, "4" }, "neither RANK nor OMPI_COMM_WORLD_RANK is set" },
        { { "0", "4" }, "neither LOCAL_RANK nor OMPI_COMM_WORLD_LOCAL_RANK is set" },
        { { "4", "4", "0", "a", "1" }, "RANK is \"4\", want a whole number from 0 to 3" },
        { { "x", "4", "0", "a", "1" }, "RANK is \"x\"" },
        { { "0", "", "0", "a", "1" }, "WORLD_SIZE is \"\"" },
        { { "0", "0", "0", "a", "1" }, "WORLD_SIZE is \"0\", want a whole number from 1" },
        { { "0", "4", "-1", "a", "1" }, "LOCAL_RANK is \"-1\"" },
        { { "0", "4", "0" }, "MASTER_ADDR is not set" },
        { { "0", "4", "0", "a" }, "MASTER_PORT is not set" },
        { { "0", "4", "0", "a", "65536" }, "MASTER_PORT is \"65536\", want a whole number from 1 to 65535" },
        { { [5] = "0", "4", "0", "2" }, "MASTER_ADDR is not set" }, /* two machines */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zb_nccl_environment here;
        const zb_status status = read_with(cases[i].values, &here);
        if (status != ZB_INVALID_ARGUMENT || strstr(zb_error_message(), cases[i].want) == NULL)
            fail_msg("case %zu: %s; want %s", i, zb_error_message(), cases[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worlds),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_another_job),
        cmocka_unit_test(test_missing_rank),
        cmocka_unit_test(test_no_first_rank),
        cmocka_unit_test(test_world_sizes),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_twice_the_same_rank),
        cmocka_unit_test(test_port_in_use),
        cmocka_unit_test(test_another_program),
        cmocka_unit_test(test_leaving),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_environment_mistakes),
    };
    return cmocka_run_group_tests_name("rendezvous", tests, NULL, NULL);
}
