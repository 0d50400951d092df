/*
 * Status codes and the one place where a failure is described.
 *
 * Whoever detects a failure calls zb_fail() once, with the values; whoever passes it on is silent
 * (ZB_TRY). The message stays readable through zb_error_message() until the next failure of the same
 * thread of execution: an OS thread, or a simulated rank, which brings its own zb_error (zb_error_bind).
 */
#ifndef ZEROBIT_STATUS_H
#define ZEROBIT_STATUS_H

#include <zerobit/export.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_STATUS_MAP(X)                                                                                   \
    X(OK, "success")                                                                                       \
    X(INVALID_ARGUMENT, "invalid argument")                                                                \
    X(INVALID_CONFIG, "invalid config")                                                                    \
    X(IO, "input/output error")                                                                            \
    X(CORRUPT, "corrupt or truncated file")                                                                \
    X(NO_MEMORY, "out of memory")                                                                          \
    X(UNSUPPORTED, "not supported")                                                                        \
    X(REMOTE, "a peer rank failed")                                                                        \
    X(MISMATCH, "ranks called different collectives")                                                      \
    X(DEADLOCK, "no rank can go on")                                                                       \
    X(RACE, "a buffer was touched while an operation owned it")                                            \
    X(LOSS_SCALE, "the loss scale cannot be lowered any further")                                          \
    X(DIFFERENT, "results differ")                                                                         \
    X(INTERRUPTED, "interrupted")                                                                          \
    X(INTERNAL, "internal error")

typedef enum zb_status {
#define ZB_STATUS_ENUM(name, text) ZB_##name,
    ZB_STATUS_MAP(ZB_STATUS_ENUM)
#undef ZB_STATUS_ENUM
} zb_status;

enum { ZB_ERROR_MESSAGE_BYTES = 2048 };

typedef struct zb_error {
    zb_status status;
    char message[ZB_ERROR_MESSAGE_BYTES]; /* one line or several, no trailing newline, always terminated */
} zb_error;

/** The words of the map above; "unknown status" for a value outside the enum. Never NULL. */
ZB_API const char *zb_status_string(zb_status status);

/** Record a failure for the current thread of execution and return `status` (must not be ZB_OK). */
ZB_API zb_status zb_fail(zb_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Put `prefix: ` (formatted) in front of the message recorded last; returns its status. */
ZB_API zb_status zb_fail_context(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** Message of the last zb_fail() here; "" when nothing failed yet. */
ZB_API const char *zb_error_message(void);

/**
 * Make `error` (owned by the caller, NULL: the OS thread's own) receive the failures of whatever runs on
 * this OS thread from now on. Returns what was bound before. A fiber scheduler calls it at every switch.
 */
ZB_API zb_error *zb_error_bind(zb_error *error);

#define ZB_TRY(expression)                                                                                 \
    do {                                                                                                   \
        zb_status zb_try_status_ = (expression);                                                           \
        if (zb_try_status_ != ZB_OK) return zb_try_status_;                                                \
    } while (0)

/** Stops the program with file, line and text: our bug, never the user's. On in release builds too. */
#define ZB_ASSERT(condition)                                                                               \
    ((condition) ? (void)0 : zb_assert_failed(#condition, __FILE__, __LINE__))
ZB_API ZB_NORETURN void zb_assert_failed(const char *condition, const char *file, int line);

#ifdef __cplusplus
}
#endif
#endif
