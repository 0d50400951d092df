/* A file is whole or not there: what is put in place, what is refused before and after the work, and that
 * nothing temporary is left, wherever it breaks off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <zerobit/memory.h>

#include "core/output_file.h"
#include "tests/folder.h"

static zb_status write_once(const char *path, const char *text, zb_output_existing existing)
{
    zb_output_file file;
    ZB_TRY(zb_output_file_open(&file, path, existing));
    zb_status status = zb_output_file_write(&file, text, strlen(text));
    if (status == ZB_OK) status = zb_output_file_finish(&file);
    zb_output_file_discard(&file);
    return status;
}

static void expect_content(const char *path, const char *text)
{
    size_t bytes;
    unsigned char *data = read_whole(path, &bytes);
    assert_int_equal(bytes, strlen(text));
    assert_memory_equal(data, text, bytes);
    free(data);
}

static void a_finished_file_is_whole_and_obeys_the_umask(void **state)
{
    (void)state;
    mode_t before = umask(027);
    assert_int_equal(write_once(in_folder("a"), "new", ZB_OUTPUT_KEEP), ZB_OK);
    umask(before);
    struct stat info;
    assert_int_equal(stat(in_folder("a"), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
    assert_int_equal(write_once(in_folder("a"), "newer", ZB_OUTPUT_REPLACE), ZB_OK);
    expect_content(in_folder("a"), "newer");
    assert_int_equal(folder_entries(), 1);
}

static void until_finish_the_old_file_stands(void **state)
{
    (void)state;
    write_whole(in_folder("a"), "old", 3);
    zb_output_file file;
    assert_int_equal(zb_output_file_open(&file, in_folder("a"), ZB_OUTPUT_REPLACE), ZB_OK);
    assert_int_equal(zb_output_file_write(&file, "new", 3), ZB_OK);
    expect_content(in_folder("a"), "old");
    zb_output_file_discard(&file);
    zb_output_file_discard(&file); /* fine to repeat */
    expect_content(in_folder("a"), "old");
    assert_int_equal(folder_entries(), 1);
}

/* What a signal handler does: of more files than it can know of, all that it knows of. */
static void temporary_files_are_removed_at_once(void **state)
{
    (void)state;
    zb_output_file files[ZB_OUTPUT_NAMED_MAX + 1];
    for (int round = 0; round < 2; round++) { /* names are given back */
        for (int i = 0; i <= ZB_OUTPUT_NAMED_MAX; i++) {
            char name[16];
            snprintf(name, sizeof name, "f%d", i);
            assert_int_equal(zb_output_file_open(&files[i], in_folder(name), ZB_OUTPUT_REPLACE), ZB_OK);
            assert_int_equal(zb_output_file_write(&files[i], "x", 1), ZB_OK);
        }
        if (round == 0) /* finished and discarded ones are not theirs to remove */
            for (int i = 0; i <= ZB_OUTPUT_NAMED_MAX; i++)
                if (i % 2 == 0) assert_int_equal(zb_output_file_finish(&files[i]), ZB_OK);
        zb_output_files_remove();
        assert_int_equal(folder_entries(), ZB_OUTPUT_NAMED_MAX / 2 + 1 + round);
        for (int i = 0; i <= ZB_OUTPUT_NAMED_MAX; i++) zb_output_file_discard(&files[i]);
    }
    assert_int_equal(folder_entries(), ZB_OUTPUT_NAMED_MAX / 2 + 1);
}

/* Somebody else's file under the temporary name is passed by. */
static void a_stranger_under_the_temporary_name_is_left_alone(void **state)
{
    (void)state;
    char name[64];
    snprintf(name, sizeof name, "a.tmp-%ld-0", (long)getpid());
    write_whole(in_folder(name), "precious", 8);
    assert_int_equal(write_once(in_folder("a"), "new", ZB_OUTPUT_KEEP), ZB_OK);
    expect_content(in_folder(name), "precious");
    expect_content(in_folder("a"), "new");
    assert_int_equal(folder_entries(), 2);
}

/* --- places where no file can be put --- */

static void make_folder(const char *path)
{
    assert_int_equal(mkdir(path, 0777), 0);
}
static void make_pipe(const char *path)
{
    assert_int_equal(mkfifo(path, 0666), 0);
}
static void make_link_to_a_device(const char *path)
{
    assert_int_equal(symlink("/dev/null", path), 0);
}
static void make_dangling_link(const char *path)
{
    assert_int_equal(symlink("nowhere", path), 0);
}
static void make_file(const char *path)
{
    write_whole(path, "old", 3);
}
static void make_nothing(const char *path)
{
    (void)path;
}

static const struct place_case {
    const char *name, *path;
    void (*make)(const char *path);
    zb_output_existing existing;
    const char *says;
} place_cases[] = {
    { "a folder is not replaced", "a", make_folder, ZB_OUTPUT_REPLACE, "Is a directory" },
    { "a pipe is not replaced", "a", make_pipe, ZB_OUTPUT_REPLACE, "not a regular file" },
    { "a device is not replaced", "a", make_link_to_a_device, ZB_OUTPUT_REPLACE, "not a regular file" },
    { "a file is kept", "a", make_file, ZB_OUTPUT_KEEP, "exists already" },
    { "a dangling link is kept", "a", make_dangling_link, ZB_OUTPUT_KEEP, "exists already" },
    { "a folder is kept", "a", make_folder, ZB_OUTPUT_KEEP, "exists already" },
    { "no folder to put it in", "none/a", make_nothing, ZB_OUTPUT_KEEP, "No such file" },
};

/* Refused at open, before any work; and at finish, when it came in between. */
static void check_place(void **state)
{
    const struct place_case *c = *state;
    const char *path = in_folder(c->path);
    zb_output_file file;
    int came_later = c->make != make_nothing;
    if (came_later) {
        assert_int_equal(zb_output_file_open(&file, path, c->existing), ZB_OK);
        assert_int_equal(zb_output_file_write(&file, "new", 3), ZB_OK);
    }
    c->make(path);
    if (came_later) {
        assert_int_equal(zb_output_file_finish(&file), ZB_IO);
        assert_non_null(strstr(zb_error_message(), c->says));
        assert_int_equal(folder_entries(), 1);
    }
    assert_int_equal(zb_output_file_open(&file, path, c->existing), ZB_IO);
    assert_non_null(strstr(zb_error_message(), c->says));
    assert_non_null(strstr(zb_error_message(), path));
    assert_null(file.stream);
    assert_int_equal(folder_entries(), came_later);
    if (c->make == make_folder) assert_int_equal(rmdir(path), 0); /* folder_remove takes away files only */
}

/* --- no room, no memory --- */

static void a_full_disk_leaves_the_old_file(void **state)
{
    (void)state;
    static const char block[100000];
    write_whole(in_folder("a"), "old", 3);
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    /* In the middle of a write, or only at the flush; told by write, or (as with fprintf) not looked at. */
    static const struct {
        rlim_t room;
        size_t bytes;
        int looked_at;
    } cases[] = { { 10000, sizeof block, 1 }, { 10, 100, 1 }, { 10000, sizeof block, 0 }, { 0, 1, 0 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zb_output_file file;
        assert_int_equal(zb_output_file_open(&file, in_folder("a"), ZB_OUTPUT_REPLACE), ZB_OK);
        small = before;
        small.rlim_cur = cases[i].room;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        zb_status written = ZB_OK, finished;
        if (cases[i].looked_at)
            written = zb_output_file_write(&file, block, cases[i].bytes);
        else
            (void)!fwrite(block, 1, cases[i].bytes, file.stream);
        finished = zb_output_file_finish(&file);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(written, cases[i].room == 10000 && cases[i].looked_at ? ZB_IO : ZB_OK);
        assert_int_equal(finished, ZB_IO);
        assert_non_null(strstr(zb_error_message(), "/a: cannot be written: "));
        expect_content(in_folder("a"), "old");
        assert_int_equal(folder_entries(), 1);
    }
    signal(SIGXFSZ, handler);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    uint64_t live = zb_alloc_get_stats().live;
    for (int n = 0;; n++) {
        zb_alloc_fail_at(n);
        zb_status status = write_once(in_folder("a"), "new", ZB_OUTPUT_REPLACE);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        assert_int_equal(folder_entries(), !fired);
        if (fired) continue;
        assert_int_equal(n, 2);
        return;
    }
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_create, folder_remove)

int main(void)
{
    static const struct CMUnitTest single[] = {
        IN_FOLDER(a_finished_file_is_whole_and_obeys_the_umask),
        IN_FOLDER(until_finish_the_old_file_stands),
        IN_FOLDER(a_stranger_under_the_temporary_name_is_left_alone),
        IN_FOLDER(temporary_files_are_removed_at_once),
        IN_FOLDER(a_full_disk_leaves_the_old_file),
        IN_FOLDER(every_allocation_may_fail),
    };
    enum { SINGLE = sizeof single / sizeof single[0], PLACES = sizeof place_cases / sizeof place_cases[0] };
    static struct CMUnitTest tests[SINGLE + PLACES];
    for (size_t i = 0; i < SINGLE; i++) tests[i] = single[i];
    for (size_t i = 0; i < PLACES; i++)
        tests[SINGLE + i] = (struct CMUnitTest){ place_cases[i].name, check_place, folder_create,
                                                 folder_remove, (void *)&place_cases[i] };
    return cmocka_run_group_tests_name("output_file", tests, NULL, NULL);
}
