/* Every operation, launched on the stand-in: the bits of the CPU, however late it runs. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/kernels/draw.h"
#include "tests/standin/support.h"

enum { ROUNDS = 8, ARRAYS_MAX = 16 };

static char nowhere[1];

/* One array, twice. */
typedef struct twin {
    size_t bytes; /* from where the argument points on */
    char *on_host, *on_device, *result;
} twin;

typedef struct pair {
    drawn_launch launch;
    cudaStream_t stream;
    twin twins[ARRAYS_MAX];
    int count, next, device;
} pair;

static zb_status make_twin(void *user, const zb_access *access)
{
    pair *p = user;
    twin *t = &p->twins[p->count++];
    t->bytes = access->offset + access->bytes;
    t->on_host = calloc(1, t->bytes + 8);
    t->result = calloc(1, t->bytes + 8);
    assert_true(t->on_host != NULL && t->result != NULL);
    t->on_device = new_memory(t->bytes);
    draw_contents(&p->launch, access->name, t->bytes, t->on_host);
    OK(cudaMemcpyAsync(t->on_device, t->on_host, t->bytes, cudaMemcpyHostToDevice, p->stream));
    return ZB_OK;
}

static zb_status point_to_twin(void *user, const zb_access *access)
{
    pair *p = user;
    const twin *t = &p->twins[p->next++];
    *access->pointer = p->device ? t->on_device : t->on_host;
    return ZB_OK;
}

/* Overwrites what a launch may have been given by reference, before it runs. */
static void launch(pair *p, int device)
{
    drawn_launch copy = p->launch;
    p->next = 0;
    p->device = device;
    if (copy.kernel == ZB_KERNEL_ordered_reduce) copy.args.ordered_reduce.inputs = copy.inputs;
    if (copy.kernel == ZB_KERNEL_tree_reduce) {
        copy.args.tree_reduce.inputs = copy.inputs;
        copy.args.tree_reduce.tree = copy.tree, copy.args.tree_reduce.order = copy.order;
    }
    assert_int_equal(zb_kernel_accesses(copy.kernel, &copy.args, copy.args_bytes, point_to_twin, p), ZB_OK);
    assert_int_equal(device ? zb_cuda_launch(p->stream, copy.kernel, &copy.args, copy.args_bytes)
                            : zb_cpu_launch(copy.kernel, &copy.args, copy.args_bytes),
                     ZB_OK);
    memset(&copy, 0xff, sizeof copy);
}

static void compare(pair *p)
{
    for (int i = 0; i < p->count; i++) {
        twin *t = &p->twins[i];
        OK(cudaMemcpyAsync(t->result, t->on_device, t->bytes, cudaMemcpyDeviceToHost, p->stream));
    }
    OK(cudaStreamSynchronize(p->stream));
    for (int i = 0; i < p->count; i++) {
        const twin *t = &p->twins[i];
        if (memcmp(t->result, t->on_host, t->bytes) != 0)
            fail_msg("%s: array %d differs", zb_kernel_name(p->launch.kernel), i);
    }
}

static void check(void **state)
{
    const zb_kernel kernel = (zb_kernel)(uintptr_t)*state;
    static pair p;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        memset(&p, 0, sizeof p);
        begin(round);
        p.stream = new_stream();
        draw_launch(&p.launch, kernel, round, 0, nowhere);
        any_args args = p.launch.args;
        assert_int_equal(zb_kernel_accesses(kernel, &args, p.launch.args_bytes, make_twin, &p), ZB_OK);
        launch(&p, 1);
        OK(cudaStreamSynchronize(p.stream)); /* what is copied in is what the CPU changes next */
        launch(&p, 0);
        compare(&p);
        for (int i = 0; i < p.count; i++) {
            free(p.twins[i].on_host);
            free(p.twins[i].result);
            OK(cudaFree(p.twins[i].on_device));
        }
        OK(cudaStreamDestroy(p.stream));
        end_clean();
    }
}

int main(void)
{
    struct CMUnitTest tests[ZB_KERNEL_COUNT];
    for (int i = 0; i < ZB_KERNEL_COUNT; i++)
        tests[i] = (struct CMUnitTest){ zb_kernel_name((zb_kernel)i), check, NULL, NULL,
                                        (void *)(uintptr_t)i };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
