/* What the engine derives from a model: ready order, who needs a gradient, which buffers are shared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "engine/graph.h"
#include "tests/engine/models.h"

enum { LIST_MAX = 10 };

static const struct graph_case {
    const char *model;
    const char *ready[LIST_MAX];       /* parameters, first to last        */
    const char *needs_grad[LIST_MAX];  /* modules whose bit is set, in order */
    const char *shares_grad[LIST_MAX]; /* likewise                         */
    const char *reads_weight[LIST_MAX];
    size_t max_param, shared_grad;
} cases[] = {
    { "mlp",
      { "b.bias", "b.weight", "a.bias", "a.weight" },
      { "a", "r", "b" },
      { NULL },
      { "b" },
      .max_param = 35 },
    { "conv",
      { "fc.bias", "fc.weight", "conv2.bias", "conv2.weight", "conv1.bias", "conv1.weight" },
      { "conv1", "relu1", "pool1", "conv2", "flat", "fc" },
      { "flat" },
      { "conv2", "fc" },
      .max_param = 64 },
    /* a's weight is used by a, b and c: complete only when a, the first in forward, has given its part */
    { "tied",
      { "d.bias", "d.weight", "b.bias", "a.bias", "a.weight" },
      { "a", "r", "b", "c", "d" },
      { NULL },
      { "b", "c", "d" },
      .max_param = 16 },
    { "frozen prefix", { "b.bias", "b.weight" }, { "b" }, { NULL }, { NULL }, .max_param = 15 },
    { "frozen in the middle",
      { "c.bias", "c.weight", "a.bias", "a.weight" },
      { "a", "b", "c" },
      { NULL },
      { "b", "c" },
      .max_param = 20 },
    { "tied and frozen", { "c.weight", "b.bias" }, { "b", "c" }, { NULL }, { "c" }, .max_param = 8 },
    { "unused", { "a.bias", "a.weight", "last", "first" }, { "a" }, { NULL }, { NULL }, .max_param = 9 },
    { "only an unused parameter trains", { "only" }, { NULL }, { NULL }, { NULL }, .max_param = 1 },
    /* conv feeds two flattens: neither may write into its gradient */
    { "branches",
      { "right.bias", "right.weight", "left.bias", "left.weight", "conv.bias", "conv.weight" },
      { "conv", "flat1", "flat2", "left", "right", "sum", "twice" },
      { NULL },
      { "left", "right" },
      .max_param = 192,
      .shared_grad = 32 },
    { "output is flattened",
      { "conv.bias", "conv.weight" },
      { "conv", "flat1", "flat2" },
      { "flat1", "flat2" },
      { NULL },
      .max_param = 8 },
};

/* The modules for which `is_set` holds are exactly those of the list. */
static void assert_set(const zb_model *model, const char *what, const unsigned char *is_set,
                       const char *const *names)
{
    for (int m = 0; m < model->module_count; m++) {
        int listed = *names != NULL && strcmp(*names, model->modules[m].name) == 0;
        if (!is_set[m] != !listed)
            fail_msg("%s of module %s is %d, want %d", what, model->modules[m].name, is_set[m], listed);
        names += listed;
    }
    assert_null(*names);
}

static void check_graph(void **state)
{
    const struct graph_case *c = *state;
    zb_model *model = test_model(c->model);
    zb_graph graph;
    unsigned char reads[LIST_MAX] = { 0 };
    assert_int_equal(zb_graph_create(model, &graph), ZB_OK);
    for (int i = 0; i < graph.ready_count; i++) {
        if (c->ready[i] == NULL) fail_msg("%s is ready too", model->params[graph.ready_order[i]].name);
        assert_string_equal(model->params[graph.ready_order[i]].name, c->ready[i]);
    }
    assert_null(c->ready[graph.ready_count]);
    assert_set(model, "needs_grad", graph.needs_grad, c->needs_grad);
    assert_set(model, "shares_grad", graph.shares_grad, c->shares_grad);
    for (int m = 0; m < model->module_count; m++)
        reads[m] = graph.needs_grad[m] && zb_graph_backward_reads_weight(&graph, m);
    assert_set(model, "backward_reads_weight", reads, c->reads_weight);
    assert_int_equal(graph.max_param_numel, c->max_param);
    assert_int_equal(graph.shared_grad_numel, c->shared_grad);
    zb_graph_destroy(&graph);
    zb_model_destroy(model);
}

static void a_flatten_has_no_value_of_its_own(void **state)
{
    (void)state;
    zb_model *model = test_model("conv");
    zb_graph graph;
    assert_int_equal(zb_graph_create(model, &graph), ZB_OK);
    static const size_t want[] = { 108, 108, 27, 16, 0, 4 };
    for (int m = 0; m < model->module_count; m++) assert_int_equal(graph.value_numel[m], want[m]);
    zb_graph_destroy(&graph);
    zb_model_destroy(model);
}

/* The largest of two convolutions', whichever comes first. */
static void conv_workspace_is_the_largest(void **state)
{
    (void)state;
    zb_model *model = test_model("conv");
    zb_graph graph;
    assert_int_equal(zb_graph_create(model, &graph), ZB_OK);
    zb_conv2d_shape first = zb_graph_conv2d_shape(&model->modules[0], 1);
    zb_conv2d_shape second = zb_graph_conv2d_shape(&model->modules[3], 1);
    size_t a = zb_conv2d_workspace_numel(&first), b = zb_conv2d_workspace_numel(&second);
    assert_int_equal(first.padding, 1);
    assert_int_equal(second.oh, 2);
    assert_int_equal(graph.conv_workspace_numel, a > b ? a : b);
    zb_graph_destroy(&graph);
    zb_model_destroy(model);
}

static void out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    zb_model *model = test_model("branches");
    uint64_t live = zb_alloc_get_stats().live;
    int fired = 1;
    for (int n = 0; fired; n++) {
        zb_graph graph;
        zb_alloc_fail_at(n);
        zb_status status = zb_graph_create(model, &graph);
        fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (!fired) zb_graph_destroy(&graph);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    zb_model_destroy(model);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(cases) + 3] = {
        cmocka_unit_test(a_flatten_has_no_value_of_its_own),
        cmocka_unit_test(conv_workspace_is_the_largest),
        cmocka_unit_test(out_of_memory_leaves_nothing),
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        tests[i + 3] = (struct CMUnitTest){ cases[i].model, check_graph, NULL, NULL, (void *)&cases[i] };
    return cmocka_run_group_tests_name("graph", tests, NULL, NULL);
}
