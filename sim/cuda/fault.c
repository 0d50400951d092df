/* A host that touches device memory is stopped, and told which. */
#include "sim/cuda/state.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const int signals[] = { SIGSEGV, SIGBUS };
enum { SIGNALS = sizeof signals / sizeof signals[0] };
static struct sigaction before[SIGNALS];

static void say(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0) return; /* nobody is left to be told */
}

static void describe(const void *address, int device)
{
    char text[SI_TEXT], memory[128] = "no allocation";
    const si_allocation *a = si_allocation_at(address);
    const size_t byte = a != NULL ? (size_t)((const char *)address - a->base) : 0;
    const char *call = si_call_name();
    if (a != NULL) si_describe_allocation(a, memory, sizeof memory);
    snprintf(text, sizeof text,
             "host access to device memory: address %p of device %d, byte %zu of %s%s; %s %s\n", address,
             device, byte, memory, a != NULL && a->gone ? ", given back" : "",
             si.running != NULL ? "while this ran:" : "last call:",
             si.running != NULL ? si.running
             : call != NULL     ? call
                                : "none");
    say(text);
}

/* The fault happens again when this returns, and whoever was asked before is asked. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    const int device = si_device_of(info->si_addr);
    if (device >= 0) describe(info->si_addr, device);
    for (int i = 0; i < SIGNALS; i++)
        if (signals[i] == number) sigaction(number, &before[i], NULL);
}

void si_fault_handler_install(void)
{
    struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
    for (int i = 0; i < SIGNALS; i++) sigaction(signals[i], &action, &before[i]);
}

void si_fault_handler_remove(void)
{
    for (int i = 0; i < SIGNALS; i++) sigaction(signals[i], &before[i], NULL);
}
