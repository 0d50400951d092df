/* Which SIMD level runs, how it is named from outside, and the front door of launches. */
#include "tests/kernels/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The environment is read once per process, so each case has its own: a child that has not asked for a level
 * yet. */
static int in_child(const char *value, int (*body)(void))
{
    fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (value != NULL)
            setenv("ZEROBIT_SIMD", value, 1);
        else
            unsetenv("ZEROBIT_SIMD");
        _exit(body());
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int says_portable(void)
{
    return zb_simd_level() != NULL && strcmp(zb_simd_level(), "portable") == 0 ? 0 : 1;
}
static int says_some_level(void)
{
    return zb_simd_level() != NULL ? 0 : 1;
}

static int refuses(void)
{
    float y = 1;
    if (zb_simd_level() != NULL) return 1;
    if (strstr(zb_error_message(), "ZEROBIT_SIMD") == NULL || strstr(zb_error_message(), "\"sse9\"") == NULL)
        return 2;
    return zb_cpu_scale(&(zb_scale_args){ ZB_FP32, &y, 2, 1 }) == ZB_INVALID_ARGUMENT && y == 1 ? 0 : 3;
}

static void environment(void **state)
{
    (void)state;
    assert_int_equal(in_child(NULL, says_some_level), 0);
    assert_int_equal(in_child("", says_some_level), 0);
    assert_int_equal(in_child("portable", says_portable), 0);
    assert_int_equal(in_child("sse9", refuses), 0);
}

static void unknown_name(void **state)
{
    (void)state;
    assert_ok(zb_cpu_set_simd_level("portable"));
    assert_int_equal(zb_cpu_set_simd_level("neon"), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "\"neon\""));
    assert_string_equal(zb_simd_level(), "portable"); /* unchanged */
}

static void launch(void **state)
{
    use_level(state);
    float y = 3;
    zb_scale_args args = { ZB_FP32, &y, 2, 1 };
    assert_ok(zb_cpu_launch(ZB_KERNEL_scale, &args, sizeof args));
    assert_true(y == 6);
    assert_int_equal(zb_cpu_launch(ZB_KERNEL_scale, &args, sizeof args - 1), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "scale"));
    assert_int_equal(zb_cpu_launch(ZB_KERNEL_COUNT, &args, sizeof args), ZB_INVALID_ARGUMENT);
    assert_true(y == 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(environment), cmocka_unit_test(unknown_name),
                                        AT_EACH_LEVEL(launch) };
    return cmocka_run_group_tests_name("level", tests, NULL, NULL);
}
