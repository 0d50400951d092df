/*
 * kernels/access.c against the operations themselves. Every array lies between pages that cannot be accessed,
 * once flush with its end and once with its beginning, so that an access outside of what is declared stops
 * the program; an array that is moved by one element into such a page must be missed; one that is said to be
 * read only is mapped so; one that is said to be written only must come out the same whatever it held; one
 * that is read and written must not.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/kernels/draw.h"

enum { ROUNDS = 6, PAGE = 4096, ROOM = 16 * PAGE, ARRAYS_MAX = 16, STOPPED = 42 };

typedef struct array {
    const char *name;
    size_t offset, bytes, element;
    int reads, writes;
    char *room;       /* a page that cannot be accessed, ROOM bytes, another page */
    char *initial[2]; /* two things to hold before */
    char *at;         /* of the first byte that is touched */
} array;

typedef struct subject {
    drawn_launch launch;
    int array_count;
    array arrays[ARRAYS_MAX];
} subject;

static char *nowhere; /* where pointers lead that are not declared */

/* --- arrays --- */

static zb_status take_array(void *user, const zb_access *access)
{
    subject *s = user;
    array *a = &s->arrays[s->array_count];
    if (*access->pointer != nowhere)
        fail_msg("%s (%s) is shown with another pointer", zb_kernel_name(s->launch.kernel), access->name);
    *a = (array){ .name = access->name,
                  .offset = access->offset,
                  .bytes = access->bytes,
                  .element = drawn_element_bytes(&s->launch, access->name),
                  .reads = access->reads,
                  .writes = access->writes };
    assert_int_equal(access->bytes % a->element, 0);
    a->room = mmap(NULL, ROOM + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(a->room != MAP_FAILED && access->offset + access->bytes <= ROOM);
    for (int i = 0; i < 2; i++) {
        a->initial[i] = calloc(1, a->offset + a->bytes + 8);
        assert_non_null(a->initial[i]);
        draw_contents(&s->launch, a->name, a->offset + a->bytes, a->initial[i]);
    }
    s->array_count++;
    return ZB_OK;
}

static void take_arrays(subject *s)
{
    any_args args = s->launch.args;
    const void *inputs[DRAW_INPUTS_MAX];
    memcpy(inputs, s->launch.inputs, sizeof inputs);
    assert_ok(zb_kernel_accesses(s->launch.kernel, &args, s->launch.args_bytes, take_array, s));
    assert_memory_equal(inputs, s->launch.inputs, sizeof inputs);
}

static void start(subject *s, zb_kernel kernel, uint64_t round, int over_nothing)
{
    memset(s, 0, sizeof *s);
    draw_launch(&s->launch, kernel, round, over_nothing, nowhere);
}

static void drop_arrays(subject *s)
{
    for (int i = 0; i < s->array_count; i++) {
        munmap(s->arrays[i].room, ROOM + 2 * PAGE);
        for (int j = 0; j < 2; j++) free(s->arrays[i].initial[j]);
    }
}

/* --- runs --- */

typedef struct layout {
    int flush_with_end; /* else with the beginning */
    int moved;          /* the array that is moved by an element into the page; -1: none */
    int protected;      /* the array that is read only whatever is declared; -1: none */
    int other;          /* the array that holds its other initial content; -1: none */
} layout;
static const layout plain_layout = { 1, -1, -1, -1 };

static void set_up_array(array *a, const layout *l, int index)
{
    char *first = a->room + PAGE, *end = first + ROOM;
    const int content = l->other == index;
    assert_int_equal(mprotect(first, ROOM, PROT_READ | PROT_WRITE), 0);
    a->at = l->flush_with_end ? end - a->bytes : first;
    memcpy(a->at, a->initial[content] + a->offset, a->bytes);
    if (l->moved == index) { /* the element that falls into the page is not missed by anybody else */
        a->at += l->flush_with_end ? (ptrdiff_t)a->element : -(ptrdiff_t)a->element;
    }
    const int read_only = (!a->writes && l->moved != index) || l->protected == index;
    if (read_only) assert_int_equal(mprotect(first, ROOM, PROT_READ), 0);
}

typedef struct placing {
    const subject *s;
    int next;
} placing;

static zb_status place_array(void *user, const zb_access *access)
{
    placing *p = user;
    *access->pointer = p->s->arrays[p->next].at - p->s->arrays[p->next].offset;
    p->next++;
    return ZB_OK;
}

static zb_status run_in(subject *s, const layout *l)
{
    any_args args = s->launch.args;
    const void *inputs[DRAW_INPUTS_MAX];
    placing p = { .s = s };
    memcpy(inputs, s->launch.inputs, sizeof inputs);
    if (s->launch.kernel == ZB_KERNEL_ordered_reduce) args.ordered_reduce.inputs = inputs;
    if (s->launch.kernel == ZB_KERNEL_tree_reduce) args.tree_reduce.inputs = inputs;
    for (int i = 0; i < s->array_count; i++) set_up_array(&s->arrays[i], l, i);
    ZB_TRY(zb_kernel_accesses(s->launch.kernel, &args, s->launch.args_bytes, place_array, &p));
    return zb_cpu_launch(s->launch.kernel, &args, s->launch.args_bytes);
}

static void stop(int number)
{
    (void)number;
    _exit(STOPPED);
}

/* Whether the operation is stopped by a page it may not access. */
static int is_stopped(subject *s, const layout *l)
{
    int status;
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, stop);
        signal(SIGBUS, stop);
        _exit(run_in(s, l) == ZB_OK ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == STOPPED));
    return WEXITSTATUS(status) == STOPPED;
}

static char *results(const subject *s)
{
    size_t bytes = 0;
    for (int i = 0; i < s->array_count; i++) bytes += s->arrays[i].bytes;
    char *all = malloc(bytes + 1), *at = all;
    assert_non_null(all);
    for (int i = 0; i < s->array_count; i++, at += s->arrays[i - 1].bytes)
        memcpy(at, s->arrays[i].at, s->arrays[i].bytes);
    return all;
}

static int same_results(subject *s, int other)
{
    layout l = plain_layout;
    assert_ok(run_in(s, &l));
    char *first = results(s);
    l.other = other;
    assert_ok(run_in(s, &l));
    char *second = results(s);
    size_t bytes = 0;
    for (int i = 0; i < s->array_count; i++) bytes += s->arrays[i].bytes;
    const int same = memcmp(first, second, bytes) == 0;
    free(first);
    free(second);
    return same;
}

/* Flush with a page, and moved into it by an element, it is missed at that end. */
static void check_ends(subject *s, int index)
{
    const array *a = &s->arrays[index];
    for (int end = 0; end < 2; end++) {
        const layout moved = { end, index, -1, -1 };
        if (!is_stopped(s, &moved))
            fail_msg("%s does not touch the %s of %s (%zu bytes)", zb_kernel_name(s->launch.kernel),
                     end ? "end" : "beginning", a->name, a->bytes);
    }
}

static void check_array(subject *s, int index)
{
    const array *a = &s->arrays[index];
    const char *name = zb_kernel_name(s->launch.kernel);
    const int workspace = strcmp(a->name, "workspace") == 0; /* how much of it is used is not promised */
    const int flag = strcmp(a->name, "flag") == 0, untouched = flag && s->launch.finite;
    const layout protected = { 1, -1, index, -1 };
    if (!workspace && !untouched) check_ends(s, index);
    if (a->writes && !untouched && !is_stopped(s, &protected))
        fail_msg("%s does not write %s", name, a->name);
    if (!a->writes || workspace || (flag && !s->launch.finite))
        return; /* a flag that is set tells nothing of before */
    const int same = same_results(s, index);
    if (a->reads && same) fail_msg("%s: nothing depends on what %s held", name, a->name);
    if (!a->reads && !same) fail_msg("%s: something depends on what %s held", name, a->name);
}

static void check(void **state)
{
    const zb_kernel kernel = (zb_kernel)(uintptr_t)*state;
    static subject s;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        start(&s, kernel, round, 0);
        take_arrays(&s);
        assert_true(s.array_count > 0);
        for (int end = 0; end < 2; end++) {
            const layout l = { end, -1, -1, -1 };
            if (is_stopped(&s, &l))
                fail_msg("%s, round %d: touches more than is declared", zb_kernel_name(kernel), (int)round);
        }
        for (int i = 0; i < s.array_count; i++) check_array(&s, i);
        drop_arrays(&s);
    }
}

/* Over nothing, no array is touched but those that are still shown. */
static void check_over_nothing(void **state)
{
    const zb_kernel kernel = (zb_kernel)(uintptr_t)*state;
    static subject s;
    start(&s, kernel, 17, 1);
    take_arrays(&s);
    if (is_stopped(&s, &plain_layout)) fail_msg("%s over nothing touches something", zb_kernel_name(kernel));
    drop_arrays(&s);
}

/* --- what is refused --- */

static zb_status refuse(void *user, const zb_access *access)
{
    (void)access;
    ++*(int *)user;
    return ZB_NO_MEMORY;
}

static void wrong_arguments(void **state)
{
    (void)state;
    int calls = 0;
    char x[8];
    zb_copy_args copy = { .to = x, .from = x + 4, .bytes = 4 };
    assert_int_equal(zb_kernel_accesses(ZB_KERNEL_copy, &copy, sizeof copy - 1, refuse, &calls),
                     ZB_INVALID_ARGUMENT);
    assert_int_equal(zb_kernel_accesses(ZB_KERNEL_COUNT, &copy, sizeof copy, refuse, &calls),
                     ZB_INVALID_ARGUMENT);
    assert_int_equal(calls, 0);
    assert_int_equal(zb_kernel_accesses(ZB_KERNEL_copy, &copy, sizeof copy, refuse, &calls), ZB_NO_MEMORY);
    assert_int_equal(calls, 1); /* the first one that fails is the last */
    assert_string_equal(zb_kernel_name(ZB_KERNEL_copy), "copy");
    assert_string_equal(zb_kernel_name(ZB_KERNEL_COUNT), "?");
}

int main(void)
{
    struct CMUnitTest tests[2 * ZB_KERNEL_COUNT + 1];
    char names[ZB_KERNEL_COUNT][64];
    nowhere = mmap(NULL, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (nowhere == MAP_FAILED) return 1;
    for (int i = 0; i < ZB_KERNEL_COUNT; i++) {
        void *const kernel = (void *)(uintptr_t)i;
        snprintf(names[i], sizeof names[i], "%s over nothing", zb_kernel_name((zb_kernel)i));
        tests[2 * i] = (struct CMUnitTest){ zb_kernel_name((zb_kernel)i), check, NULL, NULL, kernel };
        tests[2 * i + 1] = (struct CMUnitTest){ names[i], check_over_nothing, NULL, NULL, kernel };
    }
    tests[2 * ZB_KERNEL_COUNT] = (struct CMUnitTest)cmocka_unit_test(wrong_arguments);
    return cmocka_run_group_tests_name("access", tests, NULL, NULL);
}
