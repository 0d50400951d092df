/* Status words, and the failure record of the current thread of execution. */
#include <zerobit/status.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A rank of a simulated world never leaves its OS thread, so that a thread-local pointer, switched together
 * with the fiber, is enough. */
static _Thread_local zb_error thread_error;
static _Thread_local zb_error *bound_error;

static zb_error *current_error(void)
{
    return bound_error != NULL ? bound_error : &thread_error;
}

const char *zb_status_string(zb_status status)
{
    switch (status) {
#define ZB_STATUS_CASE(name, text)                                                                           \
    case ZB_##name:                                                                                          \
        return text;
        ZB_STATUS_MAP(ZB_STATUS_CASE)
#undef ZB_STATUS_CASE
    }
    return "unknown status";
}

zb_status zb_fail(zb_status status, const char *format, ...)
{
    ZB_ASSERT(status != ZB_OK);
    /* The arguments may point into the present message: format first, then replace. */
    char message[ZB_ERROR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);

    zb_error *error = current_error();
    error->status = status;
    memcpy(error->message, message, sizeof message);
    return status;
}

zb_status zb_fail_context(const char *format, ...)
{
    zb_error *error = current_error();
    ZB_ASSERT(error->status != ZB_OK);
    char message[ZB_ERROR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    int used = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof message)
        snprintf(message + used, sizeof message - (size_t)used, ": %s", error->message);
    memcpy(error->message, message, sizeof message);
    return error->status;
}

const char *zb_error_message(void)
{
    return current_error()->message;
}

zb_error *zb_error_bind(zb_error *error)
{
    zb_error *previous = bound_error;
    bound_error = error;
    return previous;
}

void zb_assert_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "zerobit: internal error: %s:%d: %s does not hold\n", file, line, condition);
    abort();
}
