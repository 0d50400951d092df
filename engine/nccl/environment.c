/* Who this process is, by the variables that launchers set. */
#include <zerobit/nccl.h>

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number that is given has to be one. */
static zb_status read_number(const char *name, int least, int largest, int *value_p)
{
    const char *text = getenv(name);
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < least || value > largest)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s is \"%s\", want a whole number from %d to %d", name, text,
                       least, largest);
    *value_p = (int)value;
    return ZB_OK;
}

/* The first of two names that is set. */
static zb_status find(const char *name, const char *name_of_mpi, const char **found_p)
{
    *found_p = getenv(name) != NULL ? name : name_of_mpi;
    if (getenv(*found_p) != NULL) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "neither %s nor %s is set; start the ranks by torchrun, mpirun or \"zerobit train --gpus "
                   "N\", or set RANK, "
                   "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT",
                   name, name_of_mpi);
}

static zb_status read_ranks(zb_nccl_environment *here)
{
    const char *name;
    ZB_TRY(find("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", &name));
    ZB_TRY(read_number(name, 1, 1 << 20, &here->world_size));
    ZB_TRY(find("RANK", "OMPI_COMM_WORLD_RANK", &name));
    ZB_TRY(read_number(name, 0, here->world_size - 1, &here->rank));
    ZB_TRY(find("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", &name));
    return read_number(name, 0, here->world_size - 1, &here->local_rank);
}

/* Open MPI does not say where rank 0 is; where all ranks are on one machine, it is here. */
static int all_are_here(int world_size)
{
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    return local != NULL && atoi(local) == world_size;
}

static zb_status copy_text(const char *name, const char *text, char *to, size_t bytes)
{
    if (strlen(text) < bytes) {
        snprintf(to, bytes, "%s", text);
        return ZB_OK;
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "%s has %zu characters, want fewer than %zu", name, strlen(text),
                   bytes);
}

static zb_status read_address(zb_nccl_environment *here)
{
    const char *address = getenv("MASTER_ADDR");
    const int here_all = all_are_here(here->world_size) || here->world_size == 1;
    if (address == NULL && !here_all)
        return zb_fail(ZB_INVALID_ARGUMENT, "MASTER_ADDR is not set, want the address of rank 0's machine");
    ZB_TRY(copy_text("MASTER_ADDR", address != NULL ? address : "127.0.0.1", here->address,
                     sizeof here->address));
    if (getenv("MASTER_PORT") != NULL) return read_number("MASTER_PORT", 1, 65535, &here->port);
    if (!here_all)
        return zb_fail(ZB_INVALID_ARGUMENT, "MASTER_PORT is not set, want the port where rank 0 listens");
    here->port = 29500;
    return ZB_OK;
}

zb_status zb_nccl_environment_read(zb_nccl_environment *environment_p)
{
    zb_nccl_environment here = { 0 };
    ZB_TRY(read_ranks(&here));
    ZB_TRY(read_address(&here));
    const char *name = getenv("TORCHELASTIC_RUN_ID") != NULL ? "TORCHELASTIC_RUN_ID" : "PMIX_NAMESPACE";
    if (getenv(name) != NULL) ZB_TRY(copy_text(name, getenv(name), here.job, sizeof here.job));
    *environment_p = here;
    return ZB_OK;
}
