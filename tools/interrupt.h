/* Ctrl-C and other requests to end: a flag that long work looks at between two steps. */
#ifndef TOOLS_INTERRUPT_H
#define TOOLS_INTERRUPT_H

#include <signal.h>

/**
 * From now on SIGINT, SIGTERM, SIGHUP and SIGPIPE set the flag, unless the caller of the command had them
 * ignored. A second one of the first three ends the process at once.
 */
void interrupt_watch(void);
extern volatile sig_atomic_t interrupt_flag;

/**
 * Whether a second request is only noted, in interrupt_again: for who has processes of his own to end first,
 * and looks at it all the time.
 */
void interrupt_hold(int is_held);
extern volatile sig_atomic_t interrupt_again;

/** End the process by the signal that came, as a shell expects it. Call when everything is put away. */
_Noreturn void interrupt_end(void);

#endif
