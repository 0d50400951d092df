/*
 * What the files of sim/cuda share: the session with its devices, allocations, streams, operations, hosts and
 * vector clocks. One recursive lock guards all of it; every function here is called with it held.
 *
 * An operation waits in its stream's queue until it is at the head and may run. Its accesses are checked when
 * it is queued: the clocks know then all that will ever order it with what was queued before.
 */
#ifndef ZB_SIM_CUDA_STATE_H
#define ZB_SIM_CUDA_STATE_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <zerobit/types.h>

#include "sim/cuda/standin.h"

enum { SI_POISON = 0xFF, SI_FINDINGS = 64, SI_TEXT = 1024, SI_RANGES = 4096, SI_GUARD = 256 };

typedef struct si_stream si_stream;
typedef struct si_host si_host;

/* --- clocks: what is known to have happened, an epoch for each stream and host (its slot) --- */

typedef struct si_clock {
    uint32_t *epochs; /* [length]; those beyond are 0 */
    int length, capacity;
} si_clock;

uint32_t si_clock_get(const si_clock *clock, int slot);
void si_clock_set(si_clock *clock, int slot, uint32_t epoch);
void si_clock_join(si_clock *clock, const si_clock *other);
void si_clock_destroy(si_clock *clock);

/* --- memory --- */

/* One access as the checker remembers it. */
typedef struct si_mark {
    int slot;
    uint32_t epoch; /* 0: none */
    const char *operation, *argument;
    const si_stream *stream; /* NULL: by the host itself */
    const si_host *host;
} si_mark;

/* Bytes that were last written by one operation and have been read by the same ones since. */
typedef struct si_segment {
    size_t first, end;
    si_mark write;
    si_mark *reads; /* no two of them ordered */
    int read_count, read_capacity;
} si_segment;

typedef enum si_kind { SI_MALLOC, SI_MALLOC_ASYNC, SI_PINNED } si_kind;

typedef struct si_allocation {
    char *base; /* as the host sees it */
    size_t bytes;
    si_kind kind;
    int device, id;
    int gone;     /* given back: by gone_by */
    int reusable; /* and that has run */
    si_mark gone_by;
    si_segment *segments; /* ascending, without gaps */
    int segment_count, segment_capacity;
} si_allocation;

/* Bytes of one allocation that an operation touches. */
typedef struct si_range {
    si_allocation *allocation;
    size_t first, end;
    const char *argument;
    int reads, writes;
} si_range;

typedef struct si_device {
    char *front;  /* PROT_NONE: the addresses that hosts have */
    char *shadow; /* the same memory, for operations */
    size_t span, cursor, used, peak;
    cudaError_t sticky;
    si_stream *null_stream;
    struct si_pool *pool; /* the default one */
} si_device;

typedef struct si_pool {
    int device, gone, is_default;
} si_pool;

/* --- streams, events, hosts --- */

/* One recording of an event. */
typedef struct si_record {
    int references, done;
    si_clock clock;
    si_stream *stream;
} si_record;

typedef enum si_step { SI_WORK, SI_RECORD, SI_WAIT } si_step;

typedef struct si_operation {
    struct si_operation *next;
    si_step step;
    const char *name;
    si_record *record; /* SI_RECORD, SI_WAIT */
    zb_standin_progress (*run)(void *user);
    void (*release)(void *user);
    void *user;
} si_operation;

struct si_stream {
    cudaStream_t handle;
    const char *name; /* given by zb_cuda_name_stream; NULL: none */
    int device, slot, gone, blocking;
    int owner_number; /* of its host's streams, in the order of creation */
    const si_host *owner;
    uint64_t priority;
    int busy_index; /* in the session's list; -1: idle */
    si_operation *head, **tail;
    si_clock clock;
};

typedef struct si_event {
    int device, gone;
    si_record *record; /* the latest; NULL: never recorded */
} si_event;

struct si_host {
    const void *key,
        *world; /* a rank and its simulated world, or a thread and NULL; maybe gone: not followed */
    int rank;   /* -1: a thread outside */
    int slot, stream_count;
    si_clock clock;
    uint64_t stuck_at; /* the session's progress when it last found nothing to run */
    int stuck_passes;
};

typedef struct si_list {
    void **items;
    int count, capacity;
} si_list;
void si_list_add(si_list *list, void *item);

typedef struct si_session {
    int open;
    unsigned number;
    zb_standin_options options;
    zb_standin_schedule schedule;
    unsigned eagerness; /* of 256: the chance that something runs unasked */
    uint64_t random, progress;
    si_device *devices;
    si_list streams, events, pools, hosts, busy, names;
    si_list allocations; /* of all devices and pinned ones, by address */
    int allocation_count, slot_count;
    int outside_called_last;
    zb_standin_counters counters;
    char *findings[SI_FINDINGS];
    char last_finding[SI_TEXT];
    zb_status first_status;
    uint64_t finding_count;
    int deadlock;
    const char *running; /* the operation that runs; NULL: none */
    void (*yield)(void);
    const char *fail_call;
    int64_t fail_call_in, fail_operation_in;
    cudaError_t fail_call_error, fail_operation_error;
    int fault_fired;
} si_session;
extern si_session si;

/* --- standin.c --- */

/* Memory of the stand-in itself: not the library's, whose failures tests provoke. Stops the program when
 * there is none. */
void *si_calloc(size_t count, size_t size);
void *si_grow(void *pointer, size_t count, size_t size);
uint64_t si_random(void);
/** Whether something of this chance, of 256, happens. */
int si_chance(unsigned of_256);
/** A copy that lives as long as the session; the same for the same text. */
const char *si_intern(const char *text);
void si_find(zb_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/** As si_find with ZB_INVALID_ARGUMENT; counts as a misuse. Returns cudaErrorInvalidValue. */
cudaError_t si_misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Every call: takes the lock, counts, and says whether the call has failed already. The second is for calls
 * that give something back, which they must do even then. Each is followed by si_leave with the outcome,
 * which it returns.
 */
cudaError_t si_enter(const char *call);
cudaError_t si_enter_release(const char *call);
cudaError_t si_leave(cudaError_t error);
/** The call under way on this thread. */
const char *si_call_name(void);
int si_current_device(void);
void si_set_current_device(int device);
cudaError_t si_take_last_error(int keep);
/* What belongs to the call under way and must survive others that run on this thread while it yields. */
typedef struct si_call {
    const char *name;
    cudaError_t injected;
    si_host *host;
} si_call;
si_call si_call_save(void);
void si_call_restore(si_call call);

/* --- host.c --- */

si_host *si_host_now(void); /* of the call under way */
si_host *si_host_find(void);
void si_host_name(const si_host *host, char *text, size_t text_bytes);

/* --- memory.c --- */

int si_memory_open(void); /* 0: no memory */
void si_memory_close(void);
/** NULL: none near. May be gone. */
si_allocation *si_allocation_at(const void *pointer);
/** The device whose address range holds the pointer; -1: none. */
int si_device_of(const void *pointer);
char *si_shadow(const void *pointer);
int si_is_pinned(const void *pointer);
/** [pointer + offset, + bytes) as a range of one live allocation; a misuse otherwise. */
cudaError_t si_resolve(const char *operation, const char *argument, const void *pointer, size_t offset,
                       size_t bytes, int device, si_range *range);
/** Poisoned. Runs what is queued where memory is short, since that may give some back. */
cudaError_t si_allocate(int device, size_t bytes, si_kind kind, si_allocation **allocation_p);
si_allocation *si_allocation_add(char *base, size_t bytes, si_kind kind, int device);
/** It has gone: its bytes are poisoned and may be allocated again. */
void si_give_back(si_allocation *allocation);
void si_describe_allocation(const si_allocation *allocation, char *text, size_t text_bytes);
void si_fault_handler_install(void);
void si_fault_handler_remove(void);

/* --- race.c --- */

void si_check(const si_clock *now, const si_mark *mark, const si_range *range);
void si_describe_mark(const si_mark *mark, char *text, size_t text_bytes);
void si_stream_name(const si_stream *stream, char *text, size_t text_bytes);
void si_allocation_forget(si_allocation *allocation);

/* --- queue.c --- */

typedef struct si_work {
    const char *name; /* lives as long as the session */
    const si_range *ranges;
    int range_count;
    zb_standin_progress (*run)(void *user);
    void (*release)(void *user);
    void *user;
} si_work;
/** Returns the operation's place in time, for marks of the caller's own. */
si_mark si_enqueue(si_stream *stream, const si_work *work);
si_record *si_enqueue_record(si_stream *stream);
void si_enqueue_wait(si_stream *stream, si_record *record);
void si_record_release(si_record *record);
/** Runs one operation, of all that may run; towards `wanted` (NULL: none in particular). 0: none may run. */
int si_run_one(si_stream *wanted);
/** Until `ready`: runs operations and yields. */
cudaError_t si_wait(int (*ready)(void *user), void *user, si_stream *wanted, const char *what);
/** Lets go of the lock, and lets others run. */
void si_yield(void);
/** Drops what is queued on a device that has failed, or on all (-1). */
void si_drop(int device);

/* --- stream.c --- */

cudaError_t si_stream_of(cudaStream_t handle, si_stream **stream_p);

#endif
