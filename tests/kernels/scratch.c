/* A matrix product on a machine that has no room for it: an error, and the next one goes on as if nothing had
 * been. */
#include "tests/kernels/support.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static zb_status multiply(float *c)
{
    static const float a[4] = { 1, 2, 3, 4 }, b[4] = { 5, 6, 7, 8 };
    return zb_cpu_matmul(&(zb_matmul_args){ .m = 2,
                                            .n = 2,
                                            .k = 2,
                                            .a = a,
                                            .a_row = 2,
                                            .a_col = 1,
                                            .b = b,
                                            .b_row = 2,
                                            .b_col = 1,
                                            .c = c,
                                            .c_row = 2 });
}

/* In a process of its own: the limit holds for all that it maps. The answer is which of its checks failed. */
static int starved(void)
{
    struct rlimit given, none;
    float c[4] = { -1, -1, -1, -1 };
    if (getrlimit(RLIMIT_AS, &given) != 0) return 1;
    none = given;
    none.rlim_cur = 4096;
    if (setrlimit(RLIMIT_AS, &none) != 0) return 2;
    for (int i = 0; i < 100; i++) /* no slot gets lost on the way */
        if (multiply(c) != ZB_NO_MEMORY || c[0] != -1) return 3;
    if (setrlimit(RLIMIT_AS, &given) != 0) return 4;
    return multiply(c) == ZB_OK && c[0] == 19 && c[3] == 50 ? 0 : 5;
}

static void without_memory(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) _exit(starved());
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(without_memory) };
    return cmocka_run_group_tests_name("scratch", tests, NULL, NULL);
}
