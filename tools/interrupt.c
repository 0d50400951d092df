/* Ctrl-C: a flag that long work looks at between two steps. */
#include "tools/interrupt.h"

#include <stdlib.h>

volatile sig_atomic_t interrupt_flag;

static void on_signal(int number)
{
    interrupt_flag = number;
}

void interrupt_watch(void)
{
    /* SA_RESETHAND: who asks twice does not want to wait for the end of a step. */
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = (int)(SA_RESETHAND | SA_RESTART) };
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

_Noreturn void interrupt_end(void)
{
    int number = interrupt_flag != 0 ? interrupt_flag : SIGINT;
    signal(number, SIG_DFL);
    raise(number);
    abort();
}
