/* Groups of ranks, and the memory that their operations come from and go back to. */
#include "engine/mpi/world.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- groups --- */

zb_status zb_mpi_group_create(mpi_world *world, int ranks_max, mpi_group **group_p)
{
    mpi_group *group = zb_alloc(sizeof *group);
    if (group == NULL) return ZB_NO_MEMORY;
    const size_t n = (size_t)ranks_max;
    group->world = world;
    group->messages = MPI_COMM_NULL;
    for (int k = 0; k < ZB_COLLECTIVE_COUNT; k++) group->native[k] = MPI_COMM_NULL;
    group->world_ranks = zb_alloc_array(n, sizeof *group->world_ranks);
    group->sent = zb_alloc_array(n, sizeof *group->sent);
    group->received = zb_alloc_array(n, sizeof *group->received);
    group->next = world->groups;
    world->groups = group;
    if (group->world_ranks == NULL || group->sent == NULL || group->received == NULL) {
        zb_mpi_group_destroy(group);
        return ZB_NO_MEMORY;
    }
    *group_p = group;
    return ZB_OK;
}

static zb_status find_world_ranks(mpi_group *group)
{
    MPI_Group all, members;
    MPI_TRY(MPI_Comm_group(MPI_COMM_WORLD, &all));
    MPI_TRY(MPI_Comm_group(group->messages, &members));
    for (int r = 0; r < group->base.world_size; r++)
        MPI_TRY(MPI_Group_translate_ranks(members, 1, &r, all, &group->world_ranks[r]));
    MPI_TRY(MPI_Group_free(&members));
    MPI_TRY(MPI_Group_free(&all));
    return ZB_OK;
}

static zb_status find_tag_count(mpi_group *group)
{
    int found = 0, *largest = NULL;
    MPI_TRY(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest, &found));
    group->tag_count = (found ? *largest : 32767) / TAG_KINDS; /* what MPI promises at least */
    return ZB_OK;
}

zb_status zb_mpi_group_open(mpi_group *group, MPI_Comm messages, const char *name, uint64_t id)
{
    group->base.ops = &zb_mpi_comm_ops;
    group->messages = messages;
    group->id = id;
    snprintf(group->name, sizeof group->name, "%s", name);
    MPI_TRY(MPI_Comm_set_errhandler(messages, MPI_ERRORS_RETURN));
    MPI_TRY(MPI_Comm_rank(messages, &group->base.rank));
    MPI_TRY(MPI_Comm_size(messages, &group->base.world_size));
    ZB_TRY(find_world_ranks(group));
    ZB_TRY(find_tag_count(group));
    return zb_mpi_native_open(group);
}

/* After a failure messages may still be under way: MPI keeps its communicators then, and so do we what MPI
 * reads or writes. */
static void close_communicators(mpi_group *group)
{
    if (group->world->failure.set) return;
    for (int k = 0; k < ZB_COLLECTIVE_COUNT; k++)
        if (group->native[k] != MPI_COMM_NULL) MPI_Comm_free(&group->native[k]);
    if (group->messages != MPI_COMM_NULL) MPI_Comm_free(&group->messages);
}

void zb_mpi_group_destroy(mpi_group *group)
{
    mpi_group **link = &group->world->groups;
    while (*link != group) link = &(*link)->next;
    *link = group->next;
    close_communicators(group);
    for (mpi_op *op = group->free_ops, *next; op != NULL; op = next) {
        next = op->next;
        zb_free(op);
    }
    zb_reduction_cache_destroy(&group->reductions);
    zb_free(group->world_ranks);
    zb_free(group->sent);
    zb_free(group->received);
    zb_free(group);
}

/* --- operations --- */

/* Where the next array begins in a block of memory of which *used bytes are taken. */
static size_t carve(size_t *used, size_t count, size_t size)
{
    const size_t offset = *used;
    *used += (count * size + 15) / 16 * 16;
    return offset;
}

/* An operation and its arrays lie in one block. */
static mpi_op *create_block(size_t ranks)
{
    size_t bytes = (sizeof(mpi_op) + 15) / 16 * 16;
    mpi_op *op;
    const size_t firsts = carve(&bytes, ranks + 1, sizeof *op->firsts);
    const size_t inputs = carve(&bytes, ranks, sizeof *op->inputs);
    const size_t requests = carve(&bytes, 2 * ranks, sizeof *op->requests);
    const size_t indices = carve(&bytes, 2 * ranks, sizeof *op->indices);
    const size_t statuses = carve(&bytes, 2 * ranks, sizeof *op->statuses);
    char *block = zb_alloc(bytes);
    if (block == NULL) return NULL;
    op = (mpi_op *)block;
    op->firsts = (size_t *)(block + firsts);
    op->inputs = (const void **)(block + inputs);
    op->requests = (MPI_Request *)(block + requests);
    op->indices = (int *)(block + indices);
    op->statuses = (MPI_Status *)(block + statuses);
    return op;
}

static zb_status create_op(mpi_group *group, mpi_op **op_p)
{
    /* A group of one needs no messages, but room for a signature. */
    const size_t ranks = (size_t)group->base.world_size + 1;
    mpi_op *op = create_block(ranks);
    if (op == NULL) return ZB_NO_MEMORY;
    op->group = group;
    *op_p = op;
    return ZB_OK;
}

zb_status zb_mpi_op_take(mpi_group *group, const zb_collective *call, mpi_op **op_p)
{
    mpi_op *op = group->free_ops;
    if (op != NULL)
        group->free_ops = op->next;
    else
        ZB_TRY(create_op(group, &op));
    op->next = op->previous = NULL;
    op->call = *call;
    op->state = OP_SIGNING;
    op->agrees_only = 0;
    op->reduction = NULL;
    op->calls = NULL;
    op->scratch = NULL;
    op->round = op->rounds = op->slot_numel = 0;
    op->request_count = 0;
    *op_p = op;
    return ZB_OK;
}

void zb_mpi_op_give(mpi_op *op)
{
    zb_mpi_scratch_give(op->group->world, op->scratch);
    op->scratch = NULL;
    op->next = op->group->free_ops;
    op->group->free_ops = op;
}

/* --- scratch memory, in powers of two --- */

typedef struct scratch_block {
    struct scratch_block *next;
    size_t class;
    char padding[48];
} scratch_block;
_Static_assert(sizeof(scratch_block) == 64, "what follows the header must stay 64-byte aligned");

zb_status zb_mpi_scratch_take(mpi_world *world, size_t bytes, unsigned char **scratch_p)
{
    size_t class = 8;
    while (class < SCRATCH_CLASSES - 1 && (size_t)1 << class < bytes) class ++;
    scratch_block *block = world->free_scratch[class];
    if (block != NULL) {
        world->free_scratch[class] = block->next;
    } else {
        block = zb_alloc(sizeof *block + ((size_t)1 << class));
        if (block == NULL) return ZB_NO_MEMORY;
        block->class = class;
    }
    *scratch_p = (unsigned char *)(block + 1);
    return ZB_OK;
}

void zb_mpi_scratch_give(mpi_world *world, unsigned char *scratch)
{
    if (scratch == NULL) return;
    scratch_block *block = (scratch_block *)scratch - 1;
    block->next = world->free_scratch[block->class];
    world->free_scratch[block->class] = block;
}

void zb_mpi_scratch_destroy(mpi_world *world)
{
    for (int class = 0; class < SCRATCH_CLASSES; class ++)
        while (world->free_scratch[class] != NULL) {
            scratch_block *block = world->free_scratch[class];
            world->free_scratch[class] = block->next;
            zb_free(block);
        }
}
