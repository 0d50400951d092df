/*
 * kernels/access.c against the operations themselves. Every array lies between pages that cannot be accessed,
 * once flush with its end and once with its beginning, so that an access outside of what is declared stops
 * the program; an array that is moved by one element into such a page must be missed; one that is said to be
 * read only is mapped so; one that is said to be written only must come out the same whatever it held; one
 * that is read and written must not.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/access.h"
#include "tests/kernels/support.h"

enum { ROUNDS = 6, PAGE = 4096, ROOM = 16 * PAGE, ARRAYS_MAX = 16, INPUTS_MAX = 5, STOPPED = 42 };

typedef union any_args {
#define ARGS_MEMBER(name) zb_##name##_args name;
    ZB_KERNEL_MAP(ARGS_MEMBER)
#undef ARGS_MEMBER
} any_args;

typedef struct array {
    const char *name;
    size_t offset, bytes, element;
    int reads, writes;
    char *room;       /* a page that cannot be accessed, ROOM bytes, another page */
    char *initial[2]; /* two things to hold before */
    char *at;         /* of the first byte that is touched */
} array;

typedef struct subject {
    zb_kernel kernel;
    size_t args_bytes;
    any_args args;
    rng r;
    zb_dtype dtype, second; /* of most arrays; of the other ones, where there are two */
    size_t limit;           /* of int32 indices: labels, argmax */
    int finite;             /* find_nonfinite finds nothing, and leaves its flag alone */
    int array_count;
    array arrays[ARRAYS_MAX];
    const void *inputs[INPUTS_MAX];
    int32_t tree[2 * INPUTS_MAX], order[INPUTS_MAX];
} subject;

static char *nowhere; /* where pointers lead that are not declared */

/* --- arguments --- */

static size_t size_below(subject *s, size_t bound)
{
    return 1 + rng_below(&s->r, bound);
}

static zb_dtype any_tensor(subject *s)
{
    return tensor_dtypes[rng_below(&s->r, TENSOR_DTYPES)];
}

static float scalar(subject *s)
{
    return 0.25f + (float)rng_below(&s->r, 100) / 256;
}

static void draw_matmul(subject *s, zb_matmul_args *a)
{
    a->dtype = s->dtype;
    a->m = size_below(s, 40), a->n = size_below(s, 40), a->k = size_below(s, 40);
    const size_t step = size_below(s, 2), pad = rng_below(&s->r, 3);
    a->a_col = rng_below(&s->r, 2) ? step : a->m + pad;
    a->a_row = a->a_col == step ? a->k * step + pad : 1;
    a->b_col = rng_below(&s->r, 2) ? step : a->k + pad;
    a->b_row = a->b_col == step ? a->n * step + pad : 1;
    a->c_row = a->n + (rng_below(&s->r, 2) ? 0 : pad);
    a->accumulate = s->dtype == ZB_FP32 && rng_below(&s->r, 2);
    if (rng_below(&s->r, 2)) a->bias = NULL;
}

static zb_conv2d_shape draw_conv2d(subject *s)
{
    zb_conv2d_shape g = { .rows = size_below(s, 2), .ic = size_below(s, 3), .oc = size_below(s, 3) };
    g.oh = size_below(s, 4), g.ow = size_below(s, 4);
    g.stride = size_below(s, 2), g.kernel = g.stride + rng_below(&s->r, 2), g.padding = g.kernel > 2;
    g.ih = (g.oh - 1) * g.stride + g.kernel - 2 * g.padding;
    g.iw = (g.ow - 1) * g.stride + g.kernel - 2 * g.padding;
    return g;
}

static zb_maxpool2d_shape draw_maxpool2d(subject *s)
{
    zb_maxpool2d_shape g = { .rows = size_below(s, 3), .channels = size_below(s, 3), .oh = size_below(s, 5) };
    g.ow = size_below(s, 5), g.stride = size_below(s, 2), g.kernel = g.stride + rng_below(&s->r, 2);
    g.ih = (g.oh - 1) * g.stride + g.kernel, g.iw = (g.ow - 1) * g.stride + g.kernel;
    s->limit = g.ih * g.iw;
    return g;
}

static void draw_inputs(subject *s, const void *const **inputs, int *count)
{
    *count = (int)size_below(s, INPUTS_MAX);
    *inputs = s->inputs;
    for (int i = 0; i < *count; i++) {
        s->inputs[i] = nowhere;
        s->order[i] = *count - 1 - i;
        s->tree[i == 0 ? 0 : 2 * i - 1] = i;
        if (i > 0) s->tree[2 * i] = ZB_TREE_ADD;
    }
}

/* Everything but the sizes of elementwise operations, which draw() sets where there is a numel. */
static void draw_special(subject *s)
{
    any_args *a = &s->args;
    switch (s->kernel) {
    case ZB_KERNEL_fill_bytes:
        a->fill_bytes.bytes = size_below(s, 300);
        break;
    case ZB_KERNEL_copy:
        a->copy.bytes = size_below(s, 300);
        break;
    case ZB_KERNEL_matmul:
        draw_matmul(s, &a->matmul);
        break;
#define LAYER(name, first, second_, third)                                                                   \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.dtype = s->dtype;                                                                            \
        a->name.first = size_below(s, 40), a->name.second_ = size_below(s, 40);                              \
        a->name.third = size_below(s, 40);                                                                   \
        break;
        LAYER(linear_forward, rows, in, out)
        LAYER(linear_backward_input, rows, in, out)
        LAYER(linear_backward_weight, rows, in, out)
        LAYER(linear_backward_bias, rows, rows, out)
#undef LAYER
#define SHAPED(name, draw_shape)                                                                             \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.dtype = s->dtype;                                                                            \
        a->name.shape = draw_shape(s);                                                                       \
        break;
        SHAPED(conv2d_forward, draw_conv2d)
        SHAPED(conv2d_backward_input, draw_conv2d)
        SHAPED(conv2d_backward_weight, draw_conv2d)
        SHAPED(conv2d_backward_bias, draw_conv2d)
        SHAPED(maxpool2d_forward, draw_maxpool2d)
        SHAPED(maxpool2d_backward, draw_maxpool2d)
#undef SHAPED
    case ZB_KERNEL_cross_entropy_forward:
        a->cross_entropy_forward.dtype = s->dtype;
        a->cross_entropy_forward.rows = size_below(s, 9);
        a->cross_entropy_forward.classes = s->limit = size_below(s, 40);
        break;
    case ZB_KERNEL_cross_entropy_backward:
        a->cross_entropy_backward.dtype = s->dtype;
        a->cross_entropy_backward.rows = size_below(s, 9);
        a->cross_entropy_backward.classes = s->limit = size_below(s, 40);
        a->cross_entropy_backward.seed = a->cross_entropy_backward.divisor = 1;
        break;
    default:
        break;
    }
}

#define ELEMENTWISE(X)                                                                                       \
    X(scale)                                                                                                 \
    X(divide)                                                                                                \
    X(relu_forward) X(relu_backward) X(mse_forward) X(mse_backward) X(sum_squares) X(norm) X(find_nonfinite)

#define OPTIMIZERS(X) X(adam) X(sgd) X(adagrad) X(lion)

static void draw_reduction(subject *s, size_t numel)
{
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_FP64, ZB_INT32, ZB_INT64, ZB_UINT8 };
    any_args *a = &s->args;
    const zb_dtype dtype = dtypes[rng_below(&s->r, sizeof dtypes / sizeof dtypes[0])];
    if (s->kernel == ZB_KERNEL_ordered_reduce || s->kernel == ZB_KERNEL_tree_reduce) s->dtype = dtype;
    if (s->kernel == ZB_KERNEL_ordered_reduce) {
        a->ordered_reduce.dtype = s->dtype;
        a->ordered_reduce.numel = numel;
        draw_inputs(s, &a->ordered_reduce.inputs, &a->ordered_reduce.count);
    } else if (s->kernel == ZB_KERNEL_tree_reduce) {
        a->tree_reduce.dtype = s->dtype;
        a->tree_reduce.numel = numel;
        a->tree_reduce.first = rng_below(&s->r, 20);
        a->tree_reduce.rounding = (zb_rounding){ .wide = 0 };
        a->tree_reduce.tree = s->tree, a->tree_reduce.order = s->order;
        draw_inputs(s, &a->tree_reduce.inputs, &a->tree_reduce.count);
    }
}

static void draw_numel(subject *s, size_t numel)
{
    any_args *a = &s->args;
    switch (s->kernel) {
#define ONE_TYPE(name)                                                                                       \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.dtype = s->dtype;                                                                            \
        a->name.numel = numel;                                                                               \
        break;
        ELEMENTWISE(ONE_TYPE)
#undef ONE_TYPE
    case ZB_KERNEL_cast:
        a->cast = (zb_cast_args){ nowhere, s->dtype, nowhere, s->second, numel };
        break;
    case ZB_KERNEL_add:
        a->add = (zb_add_args){ s->dtype, nowhere, s->second, nowhere, numel };
        break;
#define OPTIMIZER(name)                                                                                      \
    case ZB_KERNEL_##name:                                                                                   \
        a->name.grad_dtype = s->dtype, a->name.param_dtype = s->second;                                      \
        a->name.numel = numel;                                                                               \
        a->name.grad_scale = scalar(s), a->name.lr = scalar(s), a->name.weight_decay = scalar(s);            \
        a->name.arithmetic = ZB_ARITHMETIC_PLAIN;                                                            \
        if (rng_below(&s->r, 2)) a->name.param = NULL;                                                       \
        break;
        OPTIMIZERS(OPTIMIZER)
#undef OPTIMIZER
    case ZB_KERNEL_lamb_moments:
        a->lamb_moments.grad_dtype = s->dtype;
        a->lamb_moments.numel = numel;
        a->lamb_moments.grad_scale = a->lamb_moments.beta1 = a->lamb_moments.beta2 = scalar(s);
        a->lamb_moments.one_minus_beta1 = a->lamb_moments.one_minus_beta2 = a->lamb_moments.eps = scalar(s);
        break;
    case ZB_KERNEL_lamb_apply:
        a->lamb_apply.param_dtype = s->second;
        a->lamb_apply.numel = numel;
        a->lamb_apply.factor = a->lamb_apply.eps = scalar(s);
        break;
    default:
        draw_reduction(s, numel);
        break;
    }
}

static void draw_scalars(subject *s)
{
    any_args *a = &s->args;
    if (s->kernel == ZB_KERNEL_adam) {
        zb_adam_args *t = &a->adam;
        t->beta1 = t->beta2 = t->one_minus_beta1 = t->one_minus_beta2 = scalar(s);
        t->eps = t->correction1 = t->correction2 = scalar(s);
    } else if (s->kernel == ZB_KERNEL_lion) {
        a->lion.beta1 = a->lion.beta2 = a->lion.one_minus_beta1 = a->lion.one_minus_beta2 = scalar(s);
        a->lion.decay = scalar(s);
    } else if (s->kernel == ZB_KERNEL_sgd) {
        a->sgd.momentum = rng_below(&s->r, 3) ? scalar(s) : 0;
        a->sgd.one_minus_dampening = scalar(s);
        a->sgd.first_step = (int)rng_below(&s->r, 2);
        if (a->sgd.momentum == 0 && rng_below(&s->r, 2)) a->sgd.buf = NULL;
    } else if (s->kernel == ZB_KERNEL_scale) {
        a->scale.factor = 3;
    } else if (s->kernel == ZB_KERNEL_divide) {
        a->divide.divisor = 3;
    } else if (s->kernel == ZB_KERNEL_fill_bytes) {
        a->fill_bytes.value = 0x5a;
    }
}

static const size_t args_bytes[] = {
#define ARGS_BYTES(name) sizeof(zb_##name##_args),
    ZB_KERNEL_MAP(ARGS_BYTES)
#undef ARGS_BYTES
};

/* Every pointer leads nowhere at first: all members of a struct are drawn after that. */
static void point_nowhere(subject *s)
{
    any_args *a = &s->args;
#define POINT(name, member)                                                                                  \
    if (s->kernel == ZB_KERNEL_##name) a->name.member = (void *)nowhere
    POINT(fill_bytes, data);
    POINT(copy, to), a->copy.from = nowhere;
    POINT(scale, y);
    POINT(divide, y);
#undef POINT
#define POINTS(name, ...)                                                                                    \
    if (s->kernel == ZB_KERNEL_##name) a->name = (zb_##name##_args){ __VA_ARGS__ }
#define AT(member) .member = (void *)nowhere
    POINTS(matmul, AT(a), AT(b), AT(c), AT(bias));
    POINTS(linear_forward, AT(x), AT(w), AT(b), AT(y));
    POINTS(linear_backward_input, AT(dy), AT(w), AT(dx));
    POINTS(linear_backward_weight, AT(dy), AT(x), AT(dw));
    POINTS(linear_backward_bias, AT(dy), AT(db));
    POINTS(conv2d_forward, AT(x), AT(w), AT(b), AT(y), AT(workspace));
    POINTS(conv2d_backward_input, AT(dy), AT(w), AT(dx), AT(workspace));
    POINTS(conv2d_backward_weight, AT(dy), AT(x), AT(dw), AT(workspace));
    POINTS(conv2d_backward_bias, AT(dy), AT(db));
    POINTS(maxpool2d_forward, AT(x), AT(y), AT(argmax));
    POINTS(maxpool2d_backward, AT(dy), AT(argmax), AT(dx));
    POINTS(relu_forward, AT(x), AT(y));
    POINTS(relu_backward, AT(y), AT(dy), AT(dx));
    POINTS(cross_entropy_forward, AT(x), AT(labels), AT(log_probs), AT(row_loss), AT(loss));
    POINTS(cross_entropy_backward, AT(log_probs), AT(labels), AT(dx));
    POINTS(mse_forward, AT(x), AT(t), AT(loss));
    POINTS(mse_backward, AT(x), AT(t), AT(dx), .seed = 1, .divisor = 1);
    POINTS(sum_squares, AT(x), AT(accumulator));
    POINTS(norm, AT(x), AT(norm));
    POINTS(find_nonfinite, AT(x), AT(flag));
    POINTS(adam, AT(p), AT(grad), AT(m), AT(v), AT(param));
    POINTS(sgd, AT(p), AT(grad), AT(buf), AT(param));
    POINTS(adagrad, AT(p), AT(grad), AT(sum), AT(param), .eps = 1);
    POINTS(lion, AT(p), AT(grad), AT(m), AT(param));
    POINTS(lamb_moments, AT(p), AT(grad), AT(m), AT(v), AT(accumulators));
    POINTS(lamb_apply, AT(p), AT(m), AT(v), AT(param));
    POINTS(ordered_reduce, AT(out));
    POINTS(tree_reduce, AT(out));
#undef POINTS
#undef AT
}

static void draw(subject *s, zb_kernel kernel, uint64_t round, int over_nothing)
{
    memset(s, 0, sizeof *s);
    s->kernel = kernel;
    s->args_bytes = args_bytes[kernel];
    s->r.state = (round * 1000 + (unsigned)kernel) * 2 + 1;
    s->dtype = any_tensor(s), s->second = any_tensor(s);
    s->finite = kernel == ZB_KERNEL_find_nonfinite && round % 2;
    point_nowhere(s);
    draw_numel(s, over_nothing ? 0 : size_below(s, 100));
    if (!over_nothing) draw_special(s);
    draw_scalars(s);
}

/* --- arrays --- */

static int is_one_of(const char *name, const char *names)
{
    char word[32];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(names, word) != NULL;
}

static size_t element_bytes(const subject *s, const char *name)
{
    if (s->kernel == ZB_KERNEL_fill_bytes || s->kernel == ZB_KERNEL_copy || strcmp(name, "flag") == 0)
        return 1;
    if (is_one_of(name, " accumulator accumulators norm ")) return 8;
    if (is_one_of(name, " labels argmax log_probs row_loss loss t m v buf sum p workspace ")) return 4;
    if (is_one_of(name, " param from ") || (s->kernel == ZB_KERNEL_add && strcmp(name, "x") == 0))
        return zb_dtype_bytes(s->second);
    return zb_dtype_bytes(s->dtype);
}

/* Numbers near 1 in every floating type; 16-bit words above that decide about fp32 and fp64. */
static void fill_initial(subject *s, array *a, char *initial)
{
    uint16_t *words = (uint16_t *)(void *)initial;
    for (size_t i = 0; i < (a->offset + a->bytes + 1) / 2; i++)
        words[i] = (uint16_t)(0x3f80 + rng_below(&s->r, 0x60));
    if (is_one_of(a->name, " labels argmax "))
        for (size_t i = 0; i < a->bytes / 4; i++)
            ((int32_t *)(void *)initial)[i] = (int32_t)rng_below(&s->r, s->limit);
    /* What is no number reaches the counters of infinities and NaNs, and the flag. */
    const int squares = s->kernel == ZB_KERNEL_sum_squares ||
                        (s->kernel == ZB_KERNEL_find_nonfinite && !s->finite);
    if ((squares && strcmp(a->name, "x") == 0) ||
        (s->kernel == ZB_KERNEL_lamb_moments && strcmp(a->name, "p") == 0))
        memset(initial, 0xff, a->element);
}

static zb_status take_array(void *user, const zb_access *access)
{
    subject *s = user;
    array *a = &s->arrays[s->array_count];
    if (*access->pointer != nowhere)
        fail_msg("%s (%s) is shown with another pointer", zb_kernel_name(s->kernel), access->name);
    *a = (array){ .name = access->name,
                  .offset = access->offset,
                  .bytes = access->bytes,
                  .element = element_bytes(s, access->name),
                  .reads = access->reads,
                  .writes = access->writes };
    assert_int_equal(access->bytes % a->element, 0);
    a->room = mmap(NULL, ROOM + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(a->room != MAP_FAILED && access->offset + access->bytes <= ROOM);
    for (int i = 0; i < 2; i++) {
        a->initial[i] = calloc(1, a->offset + a->bytes + 8);
        assert_non_null(a->initial[i]);
        fill_initial(s, a, a->initial[i]);
    }
    s->array_count++;
    return ZB_OK;
}

static void take_arrays(subject *s)
{
    any_args args = s->args;
    const void *inputs[INPUTS_MAX];
    memcpy(inputs, s->inputs, sizeof inputs);
    assert_ok(zb_kernel_accesses(s->kernel, &args, s->args_bytes, take_array, s));
    assert_memory_equal(inputs, s->inputs, sizeof inputs);
}

static void drop_arrays(subject *s)
{
    for (int i = 0; i < s->array_count; i++) {
        munmap(s->arrays[i].room, ROOM + 2 * PAGE);
        for (int j = 0; j < 2; j++) free(s->arrays[i].initial[j]);
    }
}

/* --- runs --- */

typedef struct layout {
    int flush_with_end; /* else with the beginning */
    int moved;          /* the array that is moved by an element into the page; -1: none */
    int protected;      /* the array that is read only whatever is declared; -1: none */
    int other;          /* the array that holds its other initial content; -1: none */
} layout;
static const layout plain_layout = { 1, -1, -1, -1 };

static void set_up_array(array *a, const layout *l, int index)
{
    char *first = a->room + PAGE, *end = first + ROOM;
    const int content = l->other == index;
    assert_int_equal(mprotect(first, ROOM, PROT_READ | PROT_WRITE), 0);
    a->at = l->flush_with_end ? end - a->bytes : first;
    memcpy(a->at, a->initial[content] + a->offset, a->bytes);
    if (l->moved == index) { /* the element that falls into the page is not missed by anybody else */
        a->at += l->flush_with_end ? (ptrdiff_t)a->element : -(ptrdiff_t)a->element;
    }
    const int read_only = (!a->writes && l->moved != index) || l->protected == index;
    if (read_only) assert_int_equal(mprotect(first, ROOM, PROT_READ), 0);
}

typedef struct placing {
    const subject *s;
    int next;
} placing;

static zb_status place_array(void *user, const zb_access *access)
{
    placing *p = user;
    *access->pointer = p->s->arrays[p->next].at - p->s->arrays[p->next].offset;
    p->next++;
    return ZB_OK;
}

static zb_status run_in(subject *s, const layout *l)
{
    any_args args = s->args;
    const void *inputs[INPUTS_MAX];
    placing p = { .s = s };
    memcpy(inputs, s->inputs, sizeof inputs);
    if (s->kernel == ZB_KERNEL_ordered_reduce) args.ordered_reduce.inputs = inputs;
    if (s->kernel == ZB_KERNEL_tree_reduce) args.tree_reduce.inputs = inputs;
    for (int i = 0; i < s->array_count; i++) set_up_array(&s->arrays[i], l, i);
    ZB_TRY(zb_kernel_accesses(s->kernel, &args, s->args_bytes, place_array, &p));
    return zb_cpu_launch(s->kernel, &args, s->args_bytes);
}

static void stop(int number)
{
    (void)number;
    _exit(STOPPED);
}

/* Whether the operation is stopped by a page it may not access. */
static int is_stopped(subject *s, const layout *l)
{
    int status;
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, stop);
        signal(SIGBUS, stop);
        _exit(run_in(s, l) == ZB_OK ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == STOPPED));
    return WEXITSTATUS(status) == STOPPED;
}

static char *results(const subject *s)
{
    size_t bytes = 0;
    for (int i = 0; i < s->array_count; i++) bytes += s->arrays[i].bytes;
    char *all = malloc(bytes + 1), *at = all;
    assert_non_null(all);
    for (int i = 0; i < s->array_count; i++, at += s->arrays[i - 1].bytes)
        memcpy(at, s->arrays[i].at, s->arrays[i].bytes);
    return all;
}

static int same_results(subject *s, int other)
{
    layout l = plain_layout;
    assert_ok(run_in(s, &l));
    char *first = results(s);
    l.other = other;
    assert_ok(run_in(s, &l));
    char *second = results(s);
    size_t bytes = 0;
    for (int i = 0; i < s->array_count; i++) bytes += s->arrays[i].bytes;
    const int same = memcmp(first, second, bytes) == 0;
    free(first);
    free(second);
    return same;
}

/* Flush with a page, and moved into it by an element, it is missed at that end. */
static void check_ends(subject *s, int index)
{
    const array *a = &s->arrays[index];
    for (int end = 0; end < 2; end++) {
        const layout moved = { end, index, -1, -1 };
        if (!is_stopped(s, &moved))
            fail_msg("%s does not touch the %s of %s (%zu bytes)", zb_kernel_name(s->kernel),
                     end ? "end" : "beginning", a->name, a->bytes);
    }
}

static void check_array(subject *s, int index)
{
    const array *a = &s->arrays[index];
    const char *name = zb_kernel_name(s->kernel);
    const int workspace = strcmp(a->name, "workspace") == 0; /* how much of it is used is not promised */
    const int flag = strcmp(a->name, "flag") == 0, untouched = flag && s->finite;
    const layout protected = { 1, -1, index, -1 };
    if (!workspace && !untouched) check_ends(s, index);
    if (a->writes && !untouched && !is_stopped(s, &protected))
        fail_msg("%s does not write %s", name, a->name);
    if (!a->writes || workspace || (flag && !s->finite))
        return; /* a flag that is set tells nothing of before */
    const int same = same_results(s, index);
    if (a->reads && same) fail_msg("%s: nothing depends on what %s held", name, a->name);
    if (!a->reads && !same) fail_msg("%s: something depends on what %s held", name, a->name);
}

static void check(void **state)
{
    const zb_kernel kernel = (zb_kernel)(uintptr_t)*state;
    static subject s;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        draw(&s, kernel, round, 0);
        take_arrays(&s);
        assert_true(s.array_count > 0);
        for (int end = 0; end < 2; end++) {
            const layout l = { end, -1, -1, -1 };
            if (is_stopped(&s, &l))
                fail_msg("%s, round %d: touches more than is declared", zb_kernel_name(kernel), (int)round);
        }
        for (int i = 0; i < s.array_count; i++) check_array(&s, i);
        drop_arrays(&s);
    }
}

/* Over nothing, no array is touched but those that are still shown. */
static void check_over_nothing(void **state)
{
    const zb_kernel kernel = (zb_kernel)(uintptr_t)*state;
    static subject s;
    draw(&s, kernel, 17, 1);
    take_arrays(&s);
    if (is_stopped(&s, &plain_layout)) fail_msg("%s over nothing touches something", zb_kernel_name(kernel));
    drop_arrays(&s);
}

/* --- what is refused --- */

static zb_status refuse(void *user, const zb_access *access)
{
    (void)access;
    ++*(int *)user;
    return ZB_NO_MEMORY;
}

static void wrong_arguments(void **state)
{
    (void)state;
    int calls = 0;
    char x[8];
    zb_copy_args copy = { .to = x, .from = x + 4, .bytes = 4 };
    assert_int_equal(zb_kernel_accesses(ZB_KERNEL_copy, &copy, sizeof copy - 1, refuse, &calls),
                     ZB_INVALID_ARGUMENT);
    assert_int_equal(zb_kernel_accesses(ZB_KERNEL_COUNT, &copy, sizeof copy, refuse, &calls),
                     ZB_INVALID_ARGUMENT);
    assert_int_equal(calls, 0);
    assert_int_equal(zb_kernel_accesses(ZB_KERNEL_copy, &copy, sizeof copy, refuse, &calls), ZB_NO_MEMORY);
    assert_int_equal(calls, 1); /* the first one that fails is the last */
    assert_string_equal(zb_kernel_name(ZB_KERNEL_copy), "copy");
    assert_string_equal(zb_kernel_name(ZB_KERNEL_COUNT), "?");
}

int main(void)
{
    struct CMUnitTest tests[2 * ZB_KERNEL_COUNT + 1];
    char names[ZB_KERNEL_COUNT][64];
    nowhere = mmap(NULL, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (nowhere == MAP_FAILED) return 1;
    for (int i = 0; i < ZB_KERNEL_COUNT; i++) {
        void *const kernel = (void *)(uintptr_t)i;
        snprintf(names[i], sizeof names[i], "%s over nothing", zb_kernel_name((zb_kernel)i));
        tests[2 * i] = (struct CMUnitTest){ zb_kernel_name((zb_kernel)i), check, NULL, NULL, kernel };
        tests[2 * i + 1] = (struct CMUnitTest){ names[i], check_over_nothing, NULL, NULL, kernel };
    }
    tests[2 * ZB_KERNEL_COUNT] = (struct CMUnitTest)cmocka_unit_test(wrong_arguments);
    return cmocka_run_group_tests_name("access", tests, NULL, NULL);
}
