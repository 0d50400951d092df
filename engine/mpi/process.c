/* The process's world: MPI's beginning and end, and what every rank agrees upon before anything else moves.
 */
#include "engine/mpi/world.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

static mpi_world *the_world;
static int initialised_here;

zb_status zb_mpi_check(int code, const char *call)
{
    if (code == MPI_SUCCESS) return ZB_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0, name_length = (int)strcspn(call, "(");
    MPI_Error_string(code, text, &length);
    return zb_fail(ZB_INTERNAL, "%.*s: %s", name_length, call, text);
}

/* --- MPI itself --- */

static zb_status initialise(int with_dynamic_rules)
{
    int initialised = 0, finalized = 0, provided;
    MPI_TRY(MPI_Initialized(&initialised));
    MPI_TRY(MPI_Finalized(&finalized));
    if (finalized) return zb_fail(ZB_INVALID_ARGUMENT, "MPI has been finalized, and cannot begin again");
    if (initialised) return ZB_OK;
    /* Without it Open MPI ignores which algorithm it is told to use. It is read once, here. */
    if (with_dynamic_rules) setenv("OMPI_MCA_coll_tuned_use_dynamic_rules", "1", 0);
    MPI_TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided));
    initialised_here = 1;
    return ZB_OK;
}

zb_status zb_mpi_read_native(zb_orders *orders_p)
{
    ZB_TRY(initialise(0));
    return zb_mpi_native_read(orders_p);
}

/* --- the beginning --- */

static zb_status check_options(const zb_mpi_options *options)
{
    if (!(options->timeout_seconds >= 0))
        return zb_fail(ZB_INVALID_ARGUMENT, "timeout_seconds is %g, want 0 or more",
                       options->timeout_seconds);
    const size_t bytes = options->message_bytes_max;
    if (bytes != 0 && (bytes < 64 || bytes > INT_MAX))
        return zb_fail(ZB_INVALID_ARGUMENT, "message_bytes_max is %zu, want 64 to %d, or 0", bytes, INT_MAX);
    return ZB_OK;
}

static zb_status create_outgoing(int size, outgoing **outgoing_p)
{
    *outgoing_p = zb_alloc(sizeof **outgoing_p + (size_t)size * sizeof(MPI_Request));
    return *outgoing_p != NULL ? ZB_OK : ZB_NO_MEMORY;
}

static void destroy_world(mpi_world *world)
{
    zb_mpi_stop_listening(world);
    while (world->groups != NULL) zb_mpi_group_destroy(world->groups);
    zb_mpi_scratch_destroy(world);
    for (int i = 0; i < 2; i++)
        if (world->half_sums[i] != MPI_OP_NULL) MPI_Op_free(&world->half_sums[i]);
    zb_orders_destroy(&world->native);
    zb_free(world->failed);
    zb_free(world->ended);
    zb_free(world->ended_codes);
    zb_free(world);
}

/* Everything that may fail on one rank alone. */
static zb_status prepare(const zb_mpi_options *options, mpi_world *world)
{
    ZB_TRY(check_options(options));
    world->timeout_seconds = options->timeout_seconds > 0 ? options->timeout_seconds : 300;
    world->message_bytes_max = options->message_bytes_max > 0 ? options->message_bytes_max : (size_t)1 << 30;
    world->unchecked = options->unchecked;
    ZB_TRY(zb_orders_copy(options->native, &world->native));
    ZB_TRY(zb_mpi_native_check(&world->native));
    ZB_TRY(create_outgoing(world->size, &world->failed));
    ZB_TRY(create_outgoing(world->size, &world->ended));
    world->ended_codes = zb_alloc_array((size_t)world->size, sizeof *world->ended_codes);
    if (world->ended_codes == NULL) return ZB_NO_MEMORY;
    for (int r = 0; r < world->size; r++) world->ended_codes[r] = -1;
    return zb_mpi_group_create(world, world->size, &world->world);
}

/* No rank goes on where another cannot: it would wait for it forever. */
static zb_status agree(const mpi_world *world, zb_status status)
{
    int failing = status == ZB_OK ? INT_MAX : world->rank, first = 0;
    MPI_TRY(MPI_Allreduce(&failing, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD));
    if (first == INT_MAX) return ZB_OK;
    char message[ZB_ERROR_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", first == world->rank ? zb_error_message() : "");
    MPI_TRY(MPI_Bcast(message, sizeof message, MPI_CHAR, first, MPI_COMM_WORLD));
    return status != ZB_OK ? status : zb_fail(ZB_REMOTE, "rank %d failed: %s", first, message);
}

/* What follows from the options must be the same everywhere, or messages would not fit. */
static zb_status compare_options(const mpi_world *world)
{
    static const char *const names[] = { "message_bytes_max", "unchecked", "native" };
    enum { COUNT = sizeof names / sizeof names[0] };
    uint64_t mine[2 * COUNT] = { world->message_bytes_max, world->unchecked != 0,
                                 zb_mpi_hash_orders(&world->native) };
    uint64_t largest[2 * COUNT];
    for (int i = 0; i < COUNT; i++) mine[COUNT + i] = ~mine[i];
    MPI_TRY(MPI_Allreduce(mine, largest, 2 * COUNT, MPI_UINT64_T, MPI_MAX, MPI_COMM_WORLD));
    for (int i = 0; i < COUNT; i++)
        if (largest[i] != ~largest[COUNT + i])
            return zb_fail(ZB_MISMATCH, "ranks were given different options: %s differs", names[i]);
    return ZB_OK;
}

static zb_status open_world(mpi_world *world)
{
    MPI_Comm messages;
    MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &world->notices));
    MPI_TRY(MPI_Comm_set_errhandler(world->notices, MPI_ERRORS_RETURN));
    MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &messages));
    ZB_TRY(zb_mpi_group_open(world->world, messages, "world", 1));
    return zb_mpi_listen(world);
}

static zb_status create(const zb_mpi_options *options, mpi_world **world_p)
{
    mpi_world *world = zb_alloc(sizeof *world);
    mpi_world nobody = { .notices = MPI_COMM_NULL }; /* to say that there is no memory */
    if (world == NULL) {
        MPI_TRY(MPI_Comm_rank(MPI_COMM_WORLD, &nobody.rank));
        return agree(&nobody, ZB_NO_MEMORY);
    }
    world->notices = MPI_COMM_NULL;
    world->listening = MPI_REQUEST_NULL;
    world->ender = -1;
    world->half_sums[0] = world->half_sums[1] = MPI_OP_NULL;
    MPI_Comm_rank(MPI_COMM_WORLD, &world->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world->size);
    zb_status status = agree(world, prepare(options, world));
    if (status == ZB_OK) status = compare_options(world);
    if (status == ZB_OK) status = agree(world, open_world(world));
    if (status != ZB_OK) {
        destroy_world(world);
        return status;
    }
    *world_p = world;
    return ZB_OK;
}

zb_status zb_comm_mpi_create(const zb_mpi_options *options, zb_comm **comm_p)
{
    const zb_mpi_options defaults = { 0 };
    if (options == NULL) options = &defaults;
    if (the_world != NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "this process has a world over MPI already: want one at a time");
    ZB_TRY(initialise(options->native != NULL));
    ZB_TRY(create(options, &the_world));
    /* A world that fails from here on is left to zb_mpi_end, as after any other collective. */
    ZB_TRY(zb_mpi_probe(&the_world->world->base));
    zb_mpi_place_clear();
    *comm_p = &the_world->world->base;
    return ZB_OK;
}

/* --- the end --- */

/* Until all ranks have come here in order, or one has failed. */
static zb_status meet(mpi_world *world)
{
    MPI_Request request;
    int all = 0;
    if (world->first != NULL) {
        char call[512];
        zb_mpi_describe(world->first, call, sizeof call);
        return zb_mpi_settle(world, NULL, -1,
                             zb_fail(ZB_INVALID_ARGUMENT, "ended without waiting for %s", call));
    }
    ZB_TRY(zb_mpi_look(world));
    MPI_TRY(MPI_Ibarrier(world->notices, &request));
    for (unsigned idle = 0; !all; idle++) {
        MPI_TRY(MPI_Test(&request, &all, MPI_STATUS_IGNORE));
        if (!all) ZB_TRY(zb_mpi_look(world));
        zb_mpi_back_off(idle);
    }
    return ZB_OK;
}

static int finalize(int exit_code)
{
    int finalized = 0;
    if (initialised_here) MPI_Finalized(&finalized);
    if (initialised_here && !finalized) MPI_Finalize();
    return exit_code;
}

enum { GRACE_SECONDS = 2 };

/* Something is wrong, and the caller does not know yet: nobody else could say so. */
static void print_failure(const mpi_world *world)
{
    fprintf(stderr, "rank %d: %s\n", world->rank, world->failure.message);
}

static void make_failure(int exit_code)
{
    char message[64];
    snprintf(message, sizeof message, "ended with status %d", exit_code);
    zb_mpi_fail(ZB_INTERNAL, zb_error_message()[0] != '\0' ? zb_error_message() : message);
}

/* Until all have said what they have to say, or time is up. */
static void wait_for_others(mpi_world *world)
{
    /* One rank ends the job; the others only if it is stuck. */
    const double patience = world->ender == world->rank ? GRACE_SECONDS : GRACE_SECONDS + 1;
    const double deadline = zb_mpi_now() + patience;
    for (unsigned idle = 0; zb_mpi_now() < deadline; idle++) {
        zb_mpi_look(world);
        if (world->ender == world->rank && world->ended_count == world->size) return;
        zb_mpi_back_off(idle);
    }
}

static _Noreturn void end_job(mpi_world *world, int exit_code)
{
    if (!world->failure.set) make_failure(exit_code);
    if (exit_code == 0) print_failure(world);
    fflush(NULL); /* what this rank has said */
    zb_mpi_say_ended(world, exit_code != 0 ? exit_code : 1);
    wait_for_others(world);
    const int code = world->ended_codes[world->ender];
    MPI_Abort(MPI_COMM_WORLD, code > 0 ? code : world->ended_codes[world->rank]);
    abort();
}

int zb_mpi_end(int exit_code)
{
    mpi_world *world = the_world;
    zb_mpi_place_clear();
    if (world == NULL) return finalize(exit_code);
    if (exit_code != 0 || world->failure.set || meet(world) != ZB_OK) end_job(world, exit_code);
    the_world = NULL;
    destroy_world(world);
    return finalize(0);
}

void zb_mpi_fail(zb_status status, const char *message)
{
    if (the_world == NULL || the_world->failure.set || status == ZB_OK) return;
    zb_mpi_tell(the_world, NULL, -1, status, message);
}
