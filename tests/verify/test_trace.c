/* A trace reads back as it was written, is the same file for the same run, and is refused when anything is
 * wrong. */
#include "support.h"

#include "verify/trace_reader.h"

#include <signal.h>
#include <sys/resource.h>
#include <zerobit/memory.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const shown run[] = {
    { ZB_Q_MASTER, -1, -1, 0, SMALL_WEIGHT, 0, 3, { .f = { 1, 2, 3 } } },
    { ZB_Q_MASTER, -1, -1, 1, SMALL_WEIGHT, 3, 3, { .f = { 4, 5, 6 } } },
    { ZB_Q_PARAM, -1, -1, 0, SMALL_EMPTY, 0, 0, { .f = { 0 } } },
    { ZB_Q_SAMPLES, 0, 0, 0, ZB_NO_PARAM, 0, 2, { .i = { 7, 9 } } },
    { ZB_Q_SAMPLES, 0, 0, 1, ZB_NO_PARAM, 0, 2, { .i = { 1, 3 } } },
    { ZB_Q_LOSS, 0, 0, 0, ZB_NO_PARAM, 0, 1, { .f = { 2.5f } } },
    { ZB_Q_LOSS, 0, 0, 1, ZB_NO_PARAM, 0, 1, { .f = { 2.25f } } },
    { ZB_Q_GRAD, 0, -1, 0, SMALL_BIAS, 0, 2, { .bits = { 0x7fc00001, 0xffc00000 } } },
    { ZB_Q_NORM, 0, -1, 0, ZB_NO_PARAM, 0, 1, { .d = { 0.1 } } },
    { ZB_Q_COUNTERS, 0, -1, 0, ZB_NO_PARAM, 0, 4, { .i = { 1, 1, 4, 0 } } },
    { ZB_Q_LR, 1, -1, 1, ZB_NO_PARAM, 0, 1, { .d = { 1e-3 } } },
};

static void reads_back_as_written(void **state)
{
    (void)state;
    const char *path = in_folder("run.trace");
    assert_int_equal(write_trace(path, 1, 2, run, COUNT(run)), ZB_OK);

    zb_trace_reader *reader;
    assert_int_equal(zb_trace_reader_open(path, &reader), ZB_OK);
    const zb_trace_info *info = zb_trace_reader_info(reader);
    assert_string_equal(info->model, "small");
    assert_int_equal(info->stage, 1);
    assert_int_equal(info->world_size, 2);
    assert_int_equal(info->param_count, SMALL_PARAM_COUNT);
    assert_string_equal(info->params[SMALL_WEIGHT].name, "fc.weight");
    assert_int_equal(info->params[SMALL_WEIGHT].numel, 6);
    assert_int_equal(info->params[SMALL_EMPTY].numel, 0);
    assert_false(info->params[SMALL_FROZEN].requires_grad);

    size_t at = 0;
    const zb_record_list *step;
    for (;;) {
        assert_int_equal(zb_trace_reader_next_step(reader, &step), ZB_OK);
        if (step->count == 0) break;
        for (size_t i = 0; i < step->count; i++, at++) {
            zb_observation written = shown_observation(&run[at]);
            const zb_observation *read = &step->records[i];
            assert_int_equal(read->quantity, written.quantity);
            assert_int_equal(read->step, written.step);
            assert_int_equal(read->micro, written.micro);
            assert_int_equal(read->rank, written.rank);
            assert_int_equal(read->param, written.param);
            assert_int_equal(read->first, written.first);
            assert_int_equal(read->numel, written.numel);
            assert_memory_equal(read->data, written.data, written.numel * zb_dtype_bytes(written.dtype));
        }
    }
    assert_int_equal(at, COUNT(run));
    zb_trace_reader_destroy(reader);
}

/* Ranks are scheduled differently every time; the file must not tell. */
static void same_run_same_file(void **state)
{
    (void)state;
    assert_int_equal(write_trace(in_folder("a"), 1, 2, run, COUNT(run)), ZB_OK);
    shown shuffled[COUNT(run)];
    size_t bytes_a, bytes_b;
    unsigned char *a = read_whole(in_folder("a"), &bytes_a);
    srand(1);
    for (int round = 0; round < 50; round++) {
        memcpy(shuffled, run, sizeof run);
        for (size_t i = COUNT(run) - 1; i > 0; i--) {
            size_t j = (size_t)rand() % (i + 1);
            if (shuffled[i].step != shuffled[j].step) continue; /* steps themselves are in order */
            shown held = shuffled[i];
            shuffled[i] = shuffled[j];
            shuffled[j] = held;
        }
        assert_int_equal(write_trace(in_folder("b"), 1, 2, shuffled, COUNT(run)), ZB_OK);
        unsigned char *b = read_whole(in_folder("b"), &bytes_b);
        assert_int_equal(bytes_a, bytes_b);
        assert_memory_equal(a, b, bytes_a);
        free(b);
    }
    free(a);
}

static zb_status diff_with_itself(const char *path)
{
    zb_difference difference;
    return zb_trace_diff(path, path, &difference);
}

static void every_truncation_is_found(void **state)
{
    (void)state;
    size_t bytes;
    assert_int_equal(write_trace(in_folder("whole"), 1, 2, run, COUNT(run)), ZB_OK);
    unsigned char *data = read_whole(in_folder("whole"), &bytes);
    const char *path = in_folder("cut");
    for (size_t kept = 0; kept < bytes; kept++) {
        write_whole(path, data, kept);
        if (diff_with_itself(path) != ZB_CORRUPT) fail_msg("cut to %zu of %zu bytes: accepted", kept, bytes);
        assert_non_null(strstr(zb_error_message(), path));
        assert_non_null(strstr(zb_error_message(), "at byte"));
    }
    data[bytes] = 0;
    write_whole(path, data, bytes + 1);
    assert_int_equal(diff_with_itself(path), ZB_CORRUPT);
    free(data);
}

static void every_flipped_bit_is_found(void **state)
{
    (void)state;
    size_t bytes;
    assert_int_equal(write_trace(in_folder("whole"), 1, 2, run, COUNT(run)), ZB_OK);
    unsigned char *data = read_whole(in_folder("whole"), &bytes);
    const char *path = in_folder("flipped");
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        write_whole(path, data, bytes);
        if (diff_with_itself(path) != ZB_CORRUPT) fail_msg("bit %zu of %zu: accepted", bit, 8 * bytes);
        data[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    free(data);
}

static void bad_observations_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *message;
        shown shown;
    } cases[] = {
        { "elements outside the tensor", { ZB_Q_MASTER, 0, -1, 0, SMALL_WEIGHT, 4, 3, { .f = { 0 } } } },
        { "elements outside the tensor",
          { ZB_Q_MASTER, 0, -1, 0, SMALL_WEIGHT, SIZE_MAX, 2, { .f = { 0 } } } },
        { "elements outside the tensor", { ZB_Q_NORM, 0, -1, 0, ZB_NO_PARAM, 0, 2, { .d = { 0 } } } },
        { "parameter outside the model", { ZB_Q_MASTER, 0, -1, 0, SMALL_PARAM_COUNT, 0, 1, { .f = { 0 } } } },
        { "parameter outside the model", { ZB_Q_MASTER, 0, -1, 0, ZB_NO_PARAM, 0, 1, { .f = { 0 } } } },
        { "parameter does not belong", { ZB_Q_NORM, 0, -1, 0, SMALL_BIAS, 0, 1, { .d = { 0 } } } },
        { "rank outside the world", { ZB_Q_NORM, 0, -1, 2, ZB_NO_PARAM, 0, 1, { .d = { 0 } } } },
        { "rank outside the world", { ZB_Q_NORM, 0, -1, -2, ZB_NO_PARAM, 0, 1, { .d = { 0 } } } },
        { "micro-batch does not belong", { ZB_Q_NORM, 0, 0, 0, ZB_NO_PARAM, 0, 1, { .d = { 0 } } } },
        { "micro-batch does not belong", { ZB_Q_LOSS, 0, -1, 0, ZB_NO_PARAM, 0, 1, { .f = { 0 } } } },
        { "step below -1", { ZB_Q_NORM, -2, -1, 0, ZB_NO_PARAM, 0, 1, { .d = { 0 } } } },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_int_equal(write_trace(in_folder("bad"), 0, 2, &cases[i].shown, 1), ZB_INVALID_ARGUMENT);
        assert_non_null(strstr(zb_error_message(), cases[i].message));
    }
    const shown backwards[] = { { ZB_Q_NORM, 1, -1, 0, ZB_NO_PARAM, 0, 1, { .d = { 0 } } },
                                { ZB_Q_NORM, 0, -1, 0, ZB_NO_PARAM, 0, 1, { .d = { 0 } } } };
    assert_int_equal(write_trace(in_folder("bad"), 0, 2, backwards, 2), ZB_INVALID_ARGUMENT);
    const shown twice[] = { backwards[0], backwards[0] };
    assert_int_equal(write_trace(in_folder("bad"), 0, 2, twice, 2), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "twice"));
    assert_int_equal(folder_entries(), 0);
}

static void unreadable_files_are_named(void **state)
{
    (void)state;
    assert_int_equal(diff_with_itself(in_folder("nothing-here")), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "nothing-here"));
    assert_int_equal(diff_with_itself(folder), ZB_IO);
    assert_int_equal(write_trace(in_folder("no/such/place"), 0, 1, run, 0), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "no/such/place"));
}

static void without_finish_nothing_is_left(void **state)
{
    (void)state;
    zb_trace_header header = small_header(0, 2);
    zb_trace_writer *writer;
    write_whole(in_folder("kept"), "old", 3);
    assert_int_equal(zb_trace_writer_create(in_folder("kept"), &header, &writer), ZB_OK);
    zb_observation observation = shown_observation(&run[0]);
    assert_int_equal(zb_trace_write(writer, &observation), ZB_OK);
    zb_trace_writer_destroy(writer);
    size_t bytes;
    unsigned char *data = read_whole(in_folder("kept"), &bytes);
    assert_int_equal(bytes, 3);
    free(data);
    assert_int_equal(folder_entries(), 1);
}

/* One rank's write fails; the others, which do not know it yet, come with theirs. */
static void after_a_failure_nothing_goes_on(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        rlim_t room;
        zb_status status;
    } cases[] = { { "disk full", 4096, ZB_IO }, { "shown twice", RLIM_INFINITY, ZB_INVALID_ARGUMENT } };
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct rlimit before, limit;
        assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
        limit = before;
        limit.rlim_cur = cases[i].room;
        zb_trace_header header = small_header(1, 2);
        zb_trace_writer *writer;
        assert_int_equal(zb_trace_writer_create(in_folder("trace"), &header, &writer), ZB_OK);
        int64_t samples[2000] = { 0 };
        zb_observation o = {
            .quantity = ZB_Q_SAMPLES, .param = ZB_NO_PARAM, .dtype = ZB_INT64, .numel = 2000, .data = samples
        };
        assert_int_equal(zb_trace_write(writer, &o), ZB_OK);
        if (cases[i].room == RLIM_INFINITY) assert_int_equal(zb_trace_write(writer, &o), ZB_OK);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        o.step = 1;
        for (o.rank = 0; o.rank < 2; o.rank++) assert_int_equal(zb_trace_write(writer, &o), cases[i].status);
        assert_int_equal(zb_trace_writer_finish(writer), cases[i].status);
        assert_non_null(strstr(zb_error_message(), "earlier failure"));
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        zb_trace_writer_destroy(writer);
        assert_int_equal(folder_entries(), 0);
    }
    signal(SIGXFSZ, SIG_DFL);
}

static void a_trace_is_finished_once(void **state)
{
    (void)state;
    zb_trace_header header = small_header(1, 2);
    zb_trace_writer *writer;
    assert_int_equal(zb_trace_writer_create(in_folder("trace"), &header, &writer), ZB_OK);
    assert_int_equal(zb_trace_writer_finish(writer), ZB_OK);
    assert_int_equal(zb_trace_writer_finish(writer), ZB_INVALID_ARGUMENT);
    zb_observation o = shown_observation(&run[0]);
    assert_int_equal(zb_trace_write(writer, &o), ZB_INVALID_ARGUMENT);
    zb_trace_writer_destroy(writer);
    assert_int_equal(folder_entries(), 1);
}

static void allocation_failures_are_survived(void **state)
{
    (void)state;
    for (int64_t n = 0;; n++) {
        uint64_t live = zb_alloc_get_stats().live;
        zb_alloc_fail_at(n);
        zb_status status = write_trace(in_folder("trace"), 1, 2, run, COUNT(run));
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        assert_int_equal(folder_entries(), fired ? 0 : 1);
        if (!fired) break;
        assert_true(n < 1000);
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_create, folder_remove)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(reads_back_as_written),          IN_FOLDER(same_run_same_file),
        IN_FOLDER(every_truncation_is_found),      IN_FOLDER(every_flipped_bit_is_found),
        IN_FOLDER(bad_observations_are_refused),   IN_FOLDER(unreadable_files_are_named),
        IN_FOLDER(without_finish_nothing_is_left), IN_FOLDER(after_a_failure_nothing_goes_on),
        IN_FOLDER(a_trace_is_finished_once),       IN_FOLDER(allocation_failures_are_survived),
    };
    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
