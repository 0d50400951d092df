/* Ctrl-C and other requests to end: a flag that long work looks at between two steps. */
#include "tools/interrupt.h"

#include "core/output_file.h"

#include <stdlib.h>

volatile sig_atomic_t interrupt_flag, interrupt_again;
static volatile sig_atomic_t held;

static void on_signal(int number)
{
    interrupt_flag = number;
}

/* Who asks twice does not want to wait for the end of a step. */
static void on_request(int number)
{
    static volatile sig_atomic_t asked[NSIG];
    if (asked[number] && held) {
        interrupt_again = 1;
        return;
    }
    if (asked[number]) {
        zb_output_files_remove();
        signal(number, SIG_DFL);
        raise(number); /* comes when this handler is left */
        return;
    }
    asked[number] = 1;
    on_signal(number);
}

void interrupt_hold(int is_held)
{
    held = is_held;
}

static void watch(int number, void (*handler)(int))
{
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART }, before;
    sigemptyset(&action.sa_mask);
    /* nohup, or a shell that runs the command in the background, has switched it off on purpose. */
    if (sigaction(number, NULL, &before) == 0 && before.sa_handler == SIG_IGN) return;
    sigaction(number, &action, NULL);
}

void interrupt_watch(void)
{
    watch(SIGINT, on_request);
    watch(SIGTERM, on_request);
    watch(SIGHUP, on_request);
    /* Comes with every line printed, until the flag is looked at. */
    watch(SIGPIPE, on_signal);
}

_Noreturn void interrupt_end(void)
{
    int number = interrupt_flag != 0 ? interrupt_flag : SIGINT;
    signal(number, SIG_DFL);
    raise(number);
    abort();
}
