/* Ctrl-C and other requests to end: a flag that long work looks at between two steps. */
#include "tools/interrupt.h"

#include <stdlib.h>

volatile sig_atomic_t interrupt_flag;

static void on_signal(int number)
{
    interrupt_flag = number;
}

static void watch(int number, unsigned flags)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = (int)(flags | SA_RESTART) }, before;
    sigemptyset(&action.sa_mask);
    /* nohup, or a shell that runs the command in the background, has switched it off on purpose. */
    if (sigaction(number, NULL, &before) == 0 && before.sa_handler == SIG_IGN) return;
    sigaction(number, &action, NULL);
}

void interrupt_watch(void)
{
    /* Who asks twice does not want to wait for the end of a step. */
    watch(SIGINT, SA_RESETHAND);
    watch(SIGTERM, SA_RESETHAND);
    watch(SIGHUP, SA_RESETHAND);
    /* Comes with every line printed, until the flag is looked at. */
    watch(SIGPIPE, 0);
}

_Noreturn void interrupt_end(void)
{
    int number = interrupt_flag != 0 ? interrupt_flag : SIGINT;
    signal(number, SIG_DFL);
    raise(number);
    abort();
}
