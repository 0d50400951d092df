/* The keys of a recorded run that tools/capture writes beyond those of the first runs: what is read of them,
 * and what is refused. tests/golden/test_replay.c has the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/replay.h>

#include "core/safetensors.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define FILE_NAME    ZB_BINARY_DIR "/run_file.json"
#define TENSORS      ZB_BINARY_DIR "/run_file.safetensors"

/* Three parameters, the second of them frozen; one rank, one step. */
static const char captured_text[] =
    "[{\"name\": \"captured\", \"world\": 1, \"sizes\": [2, 1, 3], \"names\": [\"a.weight\", \"a.bias\", "
    "\"b\"],\n"
    "\"frozen\": [1], \"modules\": [{\"name\": \"\", \"params\": [2]}, {\"name\": \"a\", \"params\": [0, "
    "1]}],\n"
    "\"forward\": [0, 1], \"backward\": [1, 0], \"gradient_order\": [2, 0],\n"
    "\"config\": {\"train_batch_size\": 1, \"zero_optimization\": {\"stage\": 1},\n"
    "  \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.5}}},\n"
    "\"optimizer\": {\"class\": \"FusedAdam\", \"arithmetic\": \"deepspeed-cpu\", \"simd_width\": 16},\n"
    "\"init\": [[\"3f800000\", \"40000000\"], [\"40400000\"], \"run_file.safetensors#init\"],\n"
    "\"local_grads\": [[[[\"run_file.safetensors#two\", null, [\"3f800000\", \"3f800000\", "
    "\"3f800000\"]]]]],\n"
    "\"ranks\": [{\"wrapper\": \"DeepSpeedZeroOptimizer\", \"steps\": [\n"
    "  {\"step\": -1, \"hp\": [{\"sha256\": "
    "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\",\n"
    "     \"numel\": 6}], \"comm\": []},\n"
    "  {\"step\": 0, \"hp\": [\"run_file.safetensors#init\"], \"norm\": null, \"scale\": null, \"reduced\": "
    "null,\n"
    "   \"lr\": [\"0x1p-1\", \"0x1p-2\"], \"skipped\": 0, \"error\": null,\n"
    "   \"comm\": [[\"all_reduce\", \"float32\", 6, \"sum\"], [\"broadcast\", \"int64\", 1, 0, {\"ranks\": "
    "[0, 2]}]]}]}]}]\n";

static void write_text(const char *from, const char *to)
{
    const char *at = strstr(captured_text, from);
    assert_non_null(at);
    FILE *file = fopen(FILE_NAME, "wb");
    assert_non_null(file);
    fprintf(file, "%.*s%s%s", (int)(at - captured_text), captured_text, to, at + strlen(from));
    assert_int_equal(fclose(file), 0);
}

static int write_tensors(void **state)
{
    static const float init[] = { 5.0f, 6.0f, 7.0f }, two[] = { 0.5f, -0.5f };
    static const zb_shape three = { 1, { 3 } }, pair = { 1, { 2 } };
    const zb_safetensors_source tensors[] = {
        { .name = "init", .shape = &three, .numel = 3, .values = init },
        { .name = "two", .shape = &pair, .numel = 2, .values = two },
    };
    (void)state;
    return zb_safetensors_write(TENSORS, tensors, COUNT(tensors)) == ZB_OK ? 0 : -1;
}

static void assert_list(zb_index_list list, int first, int second)
{
    assert_int_equal(list.count, 2);
    assert_int_equal(list.items[0], first);
    assert_int_equal(list.items[1], second);
}

static void everything_is_read(void **state)
{
    static const float init[] = { 1.0f, 2.0f, 3.0f, 5.0f, 6.0f, 7.0f };
    static const float gradient[] = { 0.5f, -0.5f, 0.0f, 1.0f, 1.0f, 1.0f };
    zb_replay_file *file = NULL;
    (void)state;
    write_text("", "");
    if (zb_replay_load(FILE_NAME, &file) != ZB_OK) fail_msg("%s", zb_error_message());
    const zb_replay_run *run = &file->runs[0];
    assert_string_equal(run->param_names[1], "a.bias");
    assert_true(!run->frozen[0] && run->frozen[1] && !run->frozen[2]);
    assert_int_equal(run->trainable_numel, 5);
    assert_int_equal(run->order.layer_count, 2);
    assert_int_equal(run->order.layers[0].count, 1);
    assert_int_equal(run->order.layers[0].items[0], 2);
    assert_list(run->order.layers[1], 0, 1);
    assert_list(run->order.forward, 0, 1);
    assert_list(run->order.backward, 1, 0);
    assert_list(run->order.ready, 2, 0);
    assert_true(run->grads_are_local);
    assert_int_equal(run->config->optimizer.arithmetic, ZB_ARITHMETIC_DEEPSPEED_CPU);
    assert_int_equal(run->config->groups[0].optimizer.arithmetic, ZB_ARITHMETIC_DEEPSPEED_CPU);
    assert_int_equal(run->config->groups[0].optimizer.vector_width, 16);
    assert_memory_equal(run->init, init, sizeof init);
    assert_memory_equal(run->grads[0][0], gradient, sizeof gradient);

    const zb_replay_entry *entries = run->ranks[0].entries;
    assert_null(entries[0].masters[0].data);
    assert_int_equal(entries[0].masters[0].numel, 6);
    assert_string_equal(entries[0].masters[0].digest,
                        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    assert_int_equal(entries[1].masters[0].numel, 3);
    assert_memory_equal(entries[1].masters[0].data, init + 3, 3 * sizeof *init);
    assert_int_equal(entries[1].lr_count, 2);
    assert_true(entries[1].lr[1] == 0.25);
    assert_int_equal(entries[1].call_count, 2);
    assert_string_equal(entries[1].calls[0].text, "all_reduce float32 6 sum");
    assert_string_equal(entries[1].calls[1].text, "broadcast int64 1 0 0 2");
    zb_replay_destroy(file);
}

static const struct refusal {
    const char *from, *to;
    zb_status status;
    const char *words;
} refusals[] = {
    { captured_text, "[]", ZB_INVALID_CONFIG, "run_file.json: is [], want at least one run" },
    { "[\"a.weight\", \"a.bias\", \"b\"]", "[\"a\", \"b\"]", ZB_INVALID_CONFIG, "[0].names: is" },
    { "\"b\"],", "3],", ZB_INVALID_CONFIG, "[0].names[2]: is 3, want a string" },
    { "\"frozen\": [1]", "\"frozen\": [3]", ZB_INVALID_CONFIG,
      "[0].frozen[0]: is 3, want an integer from 0 to 2" },
    { "\"params\": [2]", "\"params\": [3]", ZB_INVALID_CONFIG, "[0].modules[0].params[0]: is 3" },
    { "\"params\": [2]", "\"parms\": [2]", ZB_INVALID_CONFIG, "[0].modules[0].params: is missing" },
    { "\"modules\"", "\"moduls\"", ZB_INVALID_CONFIG,
      "[0].forward: is [0,1], want [] or modules for it to list" },
    { "\"forward\": [0, 1]", "\"forward\": [0, 2]", ZB_INVALID_CONFIG, "[0].forward[1]: is 2" },
    { "\"backward\": [1, 0]", "\"backward\": 7", ZB_INVALID_CONFIG, "[0].backward: is 7, want an array" },
    { "\"gradient_order\": [2, 0]", "\"gradient_order\": [-1]", ZB_INVALID_CONFIG,
      "[0].gradient_order[0]: is -1" },
    { "\"init\": [[", "\"init\": [null, [", ZB_INVALID_CONFIG, "[0].init: is" },
    { "\"local_grads\"", "\"grads\": [], \"local_grads\"", ZB_INVALID_CONFIG,
      "[0].grads: is [], want none beside" },
    { "null, [\"3f8", "[\"3f800000\"], null], [[\"3f8", ZB_INVALID_CONFIG, "[0].local_grads[0][0]: is" },
    { "[\"3f800000\", \"3f800000\", \"3f800000\"]]", "null]", ZB_UNSUPPORTED,
      "[0].local_grads[0][0][0][2]: is null, want a gradient of b, which is trained" },
    { "run_file.safetensors#two", "run_file.safetensors#init", ZB_INVALID_CONFIG, "want an array of 2" },
    { "run_file.safetensors#two", "run_file.safetensors#none", ZB_INVALID_CONFIG, "want a tensor that" },
    { "run_file.safetensors#two", "run_file.safetensors", ZB_INVALID_CONFIG, "want FILE#NAME" },
    { "run_file.safetensors#two", "#two", ZB_INVALID_CONFIG, "want FILE#NAME" },
    { "run_file.safetensors#two", "../run_file.safetensors#two", ZB_INVALID_CONFIG, "want FILE#NAME" },
    { "run_file.safetensors#two", "nowhere#two", ZB_IO, "nowhere" },
    { "run_file.safetensors#two", "run_file.json#two", ZB_CORRUPT, "run_file.json" },
    { "abcdef\",", "abcdeg\",", ZB_INVALID_CONFIG, "hp[0].sha256: is" },
    { "{\"sha256\": \"0", "{\"sha256\": \"", ZB_INVALID_CONFIG, "want 64 lower-case hexadecimal digits" },
    { "\"deepspeed-cpu\"", "\"plain\"", ZB_UNSUPPORTED, "want an arithmetic that Adam is known in" },
    { "\"deepspeed-cpu\"", "\"torch-2\", \"cpu_capability\": \"DEFAULT\"", ZB_UNSUPPORTED,
      "[0].optimizer.cpu_capability: is \"DEFAULT\", want AVX2" },
    { "\"simd_width\": 16", "\"simd_width\": 0", ZB_INVALID_CONFIG, "[0].optimizer.simd_width: is 0" },
    { "\"simd_width\": 16", "\"simd_width\": 12", ZB_INVALID_CONFIG,
      "[0].optimizer.simd_width: is 12, want 8 (AVX2) or 16 (AVX-512)" },
    { "{\"ranks\": [0, 2]}", "{}", ZB_INVALID_CONFIG, "comm[1][4].ranks: is missing" },
    { "\"numel\": 6", "\"numel\": -6", ZB_INVALID_CONFIG, "hp[0].numel: is -6" },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    const uint64_t live = zb_alloc_get_stats().live;
    zb_replay_file *file = NULL;
    write_text(c->from, c->to);
    if (c->status == ZB_UNSUPPORTED) { /* concerns the run, not the file */
        assert_int_equal(zb_replay_load(FILE_NAME, &file), ZB_OK);
        assert_int_equal(zb_replay_check(&file->runs[0]), ZB_UNSUPPORTED);
        zb_replay_destroy(file);
        file = NULL;
    } else {
        assert_int_equal(zb_replay_load(FILE_NAME, &file), c->status);
    }
    if (strstr(zb_error_message(), c->words) == NULL) fail_msg("%s", zb_error_message());
    assert_null(file);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const uint64_t live = zb_alloc_get_stats().live;
    write_text("", "");
    for (int64_t n = 0;; n++) {
        zb_replay_file *file = NULL;
        zb_alloc_fail_at(n);
        const zb_status status = zb_replay_load(FILE_NAME, &file);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        zb_replay_destroy(file);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (!fired) {
            assert_true(n > 50);
            return;
        }
    }
}

int main(void)
{
    struct CMUnitTest tests[COUNT(refusals) + 2] = {
        cmocka_unit_test(everything_is_read),
        cmocka_unit_test(every_allocation_may_fail),
    };
    for (size_t i = 0; i < COUNT(refusals); i++)
        tests[i + 2] = (struct CMUnitTest){ refusals[i].words, check_refusal, NULL, NULL,
                                            (void *)&refusals[i] };
    return cmocka_run_group_tests_name("run_file", tests, write_tensors, NULL);
}
