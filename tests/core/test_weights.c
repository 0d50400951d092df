/* Weights: from a seed, from and into safetensors files; files of the real package, damaged files, failing
 * writes. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/model.h>
#include <zerobit/random.h>
#include "tests/cjson_memory.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define FIXTURES     ZB_SOURCE_DIR "/fixtures/safetensors/"

/* --- files --- */

static char folder[256];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s/test-weights-XXXXXX", ZB_BINARY_DIR);
    return mkdtemp(folder) == NULL;
}

/* Calls `visit` for every file of the folder, with its whole path; returns how many there are. */
static int each_file(void (*visit)(const char *path))
{
    DIR *directory = opendir(folder);
    assert_non_null(directory);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (visit != NULL) visit(path);
        count++;
    }
    closedir(directory);
    return count;
}

static void remove_file(const char *path)
{
    assert_int_equal(unlink(path), 0);
}

static int remove_folder(void **state)
{
    (void)state;
    each_file(remove_file);
    return rmdir(folder);
}

static int empty_folder(void **state)
{
    (void)state;
    each_file(remove_file);
    return 0;
}

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

typedef struct bytes {
    unsigned char *data;
    size_t count;
} bytes;

static bytes read_bytes(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("%s cannot be opened", path);
    bytes content = { .data = malloc(1 << 20) };
    assert_non_null(content.data);
    content.count = fread(content.data, 1, 1 << 20, file);
    fclose(file);
    return content;
}

static void write_bytes(const char *path, const void *data, size_t count)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

/* A file with this header, written with ' for ", and this data. */
static void write_safetensors(const char *path, const char *header, const void *data, size_t data_bytes)
{
    size_t length = strlen(header);
    unsigned char *content = calloc(1, 8 + length + data_bytes);
    assert_non_null(content);
    for (size_t i = 0; i < 8; i++) content[i] = (unsigned char)((uint64_t)length >> (8 * i));
    for (size_t i = 0; i < length; i++) content[8 + i] = (unsigned char)(header[i] == '\'' ? '"' : header[i]);
    if (data_bytes > 0) memcpy(content + 8 + length, data, data_bytes);
    write_bytes(path, content, 8 + length + data_bytes);
    free(content);
}

/* --- models and weights --- */

static zb_model *open_model(const char *name)
{
    zb_model *model = NULL;
    if (zb_model_open(name, &model) != ZB_OK) fail_msg("refused: %s", zb_error_message());
    return model;
}

static zb_model *small_model(void)
{
    return open_model("mlp-mse:3-4-2");
}

/* One parameter of this shape beside a relu. */
static zb_model *one_parameter(zb_shape shape)
{
    zb_model *model = NULL;
    zb_shape input = { 1, { 1 } };
    assert_int_equal(zb_model_create("m", &input, ZB_LOSS_MSE, &model), ZB_OK);
    zb_module_spec relu = { .kind = ZB_MODULE_RELU, .name = "r" };
    zb_module_spec parameter = { .kind = ZB_MODULE_PARAMETER, .name = "p", .shape = shape };
    assert_int_equal(zb_model_add(model, &relu), ZB_OK);
    assert_int_equal(zb_model_add(model, &parameter), ZB_OK);
    assert_int_equal(zb_model_finish(model), ZB_OK);
    return model;
}

static zb_weights load_ok(const zb_model *model, const char *path)
{
    zb_weights weights = { 0 };
    if (zb_weights_load(model, path, &weights) != ZB_OK) fail_msg("refused: %s", zb_error_message());
    return weights;
}

static void save_ok(const zb_model *model, const zb_weights *weights, const char *path)
{
    if (zb_weights_save(model, weights, path) != ZB_OK) fail_msg("refused: %s", zb_error_message());
}

static void assert_same_weights(const zb_model *model, const zb_weights *a, const zb_weights *b)
{
    assert_int_equal(a->param_count, model->param_count);
    assert_int_equal(b->param_count, model->param_count);
    for (int i = 0; i < model->param_count; i++)
        assert_memory_equal(a->values[i], b->values[i], model->params[i].numel * sizeof(float));
}

/* --- good files --- */

static void seed_gives_the_initial_values(void **state)
{
    (void)state;
    zb_model *model = open_model(ZB_SOURCE_DIR "/examples/models/tied-frozen.json");
    zb_weights weights;
    assert_int_equal(zb_weights_from_seed(model, 5, &weights), ZB_OK);
    assert_int_equal(weights.param_count, model->param_count);
    for (int i = 0; i < model->param_count; i++) {
        float values[64];
        zb_model_init_param(model, i, 5, 0, model->params[i].numel, values);
        assert_memory_equal(weights.values[i], values, model->params[i].numel * sizeof(float));
    }
    zb_weights_destroy(&weights);
    assert_null(weights.values);
    zb_weights_destroy(&weights); /* fine to repeat */
    zb_model_destroy(model);
}

static void saved_weights_load_to_the_same_bits(void **state)
{
    (void)state;
    static const uint32_t special[] = { 0x80000000, 0x7fc01234, 0xff800000, 0x00000001, 0x7fa00001 };
    static const char *const models[] = { "cifar10-net", ZB_SOURCE_DIR "/examples/models/tied-frozen.json" };
    for (size_t i = 0; i < COUNT(models); i++) {
        zb_model *model = open_model(models[i]);
        zb_weights weights;
        assert_int_equal(zb_weights_from_seed(model, 1, &weights), ZB_OK);
        memcpy(weights.values[1], special, sizeof special);
        save_ok(model, &weights, in_folder("a.safetensors"));
        save_ok(model, &weights, in_folder("a.safetensors")); /* over the first */
        assert_int_equal(each_file(NULL), 1);
        zb_weights loaded = load_ok(model, in_folder("a.safetensors"));
        assert_same_weights(model, &weights, &loaded);
        zb_weights_destroy(&loaded);
        zb_weights_destroy(&weights);
        zb_model_destroy(model);
    }
}

static void a_name_with_quotes_survives(void **state)
{
    (void)state;
    zb_model *model = NULL;
    zb_shape input = { 1, { 2 } };
    zb_module_spec spec = { .kind = ZB_MODULE_LINEAR, .name = "a\"b\\c/d {}", .out_features = 2 };
    assert_int_equal(zb_model_create("m", &input, ZB_LOSS_MSE, &model), ZB_OK);
    assert_int_equal(zb_model_add(model, &spec), ZB_OK);
    assert_int_equal(zb_model_finish(model), ZB_OK);
    zb_weights weights;
    assert_int_equal(zb_weights_from_seed(model, 1, &weights), ZB_OK);
    save_ok(model, &weights, in_folder("q.safetensors"));
    zb_weights loaded = load_ok(model, in_folder("q.safetensors"));
    assert_same_weights(model, &weights, &loaded);
    zb_weights_destroy(&loaded);
    zb_weights_destroy(&weights);
    zb_model_destroy(model);
}

/* fixtures/safetensors/make.py */
static void a_file_of_the_real_package_loads(void **state)
{
    (void)state;
    zb_model *model = small_model();
    zb_weights weights = load_ok(model, FIXTURES "mixed.safetensors");
    FILE *expected = fopen(FIXTURES "mixed.expected.txt", "r");
    assert_non_null(expected);
    for (int i = 0; i < model->param_count; i++) {
        char name[ZB_NAME_BYTES];
        assert_int_equal(fscanf(expected, "%95s", name), 1);
        int param = zb_model_find_param(model, name);
        assert_true(param >= 0);
        for (size_t j = 0; j < model->params[param].numel; j++) {
            unsigned wanted;
            uint32_t got;
            assert_int_equal(fscanf(expected, "%x", &wanted), 1);
            memcpy(&got, &weights.values[param][j], sizeof got);
            if (got != wanted) fail_msg("%s[%zu] is %08x, want %08x", name, j, got, wanted);
        }
    }
    fclose(expected);
    zb_weights_destroy(&weights);
    zb_model_destroy(model);
}

/* The real package reads this very file (make.py): the writer must go on writing it. */
static void the_writer_writes_what_the_real_package_reads(void **state)
{
    (void)state;
    zb_model *model = small_model();
    zb_weights weights;
    assert_int_equal(zb_weights_from_seed(model, 0, &weights), ZB_OK);
    for (int i = 0; i < model->param_count; i++)
        for (size_t j = 0; j < model->params[i].numel; j++) weights.values[i][j] = (float)j / 8.0f - (float)i;
    save_ok(model, &weights, in_folder("w.safetensors"));
    bytes written = read_bytes(in_folder("w.safetensors")),
          fixture = read_bytes(FIXTURES "zerobit.safetensors");
    assert_int_equal(written.count, fixture.count);
    assert_memory_equal(written.data, fixture.data, written.count);
    free(written.data);
    free(fixture.data);
    zb_weights_destroy(&weights);
    zb_model_destroy(model);
}

/* The value of a small float, by its definition. */
static double value_of(unsigned bits, int exponent_bits, int mantissa_bits)
{
    int exponent = (int)(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double mantissa = (double)(bits & ((1u << mantissa_bits) - 1)), sign = bits & 0x8000u ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) return mantissa == 0.0 ? sign * (double)INFINITY : (double)NAN;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + ldexp(1.0, mantissa_bits), exponent - bias - mantissa_bits);
}

static void every_16_bit_value_is_widened_exactly(void **state)
{
    (void)state;
    static const struct {
        const char *dtype;
        int exponent_bits, mantissa_bits;
    } formats[] = { { "F16", 5, 10 }, { "BF16", 8, 7 } };
    static unsigned char data[2 * 65536];
    for (unsigned bits = 0; bits < 65536; bits++) {
        data[2 * bits] = (unsigned char)bits;
        data[2 * bits + 1] = (unsigned char)(bits >> 8);
    }
    zb_model *model = one_parameter((zb_shape){ 1, { 65536 } });
    for (size_t f = 0; f < COUNT(formats); f++) {
        char header[128];
        snprintf(header, sizeof header, "{'p':{'dtype':'%s','shape':[65536],'data_offsets':[0,131072]}}",
                 formats[f].dtype);
        write_safetensors(in_folder("all.safetensors"), header, data, sizeof data);
        zb_weights weights = load_ok(model, in_folder("all.safetensors"));
        for (unsigned bits = 0; bits < 65536; bits++) {
            double wanted = value_of(bits, formats[f].exponent_bits, formats[f].mantissa_bits);
            double got = (double)weights.values[0][bits];
            int same = isnan(wanted) ? isnan(got) : got == wanted && signbit(got) == signbit(wanted);
            if (!same) fail_msg("%s 0x%04x is read as %a, want %a", formats[f].dtype, bits, got, wanted);
        }
        zb_weights_destroy(&weights);
    }
    zb_model_destroy(model);
}

/* --- bad files --- */

#define P(dtype, shape, offsets) "'p':{'dtype':'" dtype "','shape':" shape ",'data_offsets':" offsets "}"

static const struct bad_case {
    const char *name;
    const char *header;
    size_t data_bytes;
    zb_status status;
    const char *message;
} bad_cases[] = {
    { "header is no object", "[]", 0, ZB_CORRUPT, "its header does not begin with {" },
    { "header is empty", "", 0, ZB_CORRUPT, "its header does not begin with {" },
    { "header is cut", "{'p':", 0, ZB_CORRUPT, "bad.safetensors:1:6: " },
    { "name twice", "{" P("F32", "[1]", "[0,4]") "," P("F32", "[1]", "[4,8]") "}", 8, ZB_CORRUPT,
      "p: is given more than once" },
    { "tensor is a list", "{'p':[]}", 0, ZB_CORRUPT, "p: is [], want an object" },
    { "unknown key", "{'p':{'dtype':'F32','shape':[0],'data_offsets':[0,0],'x':1}}", 0, ZB_CORRUPT,
      "p.x: is not a key" },
    { "no dtype", "{'p':{'shape':[0],'data_offsets':[0,0]}}", 0, ZB_CORRUPT, "p.dtype: is missing" },
    { "no shape", "{'p':{'dtype':'F32','data_offsets':[0,0]}}", 0, ZB_CORRUPT, "p.shape: is missing" },
    { "no offsets", "{'p':{'dtype':'F32','shape':[0]}}", 0, ZB_CORRUPT, "p.data_offsets: is missing" },
    { "F64", "{" P("F64", "[1]", "[0,8]") "}", 8, ZB_UNSUPPORTED,
      "p.dtype: is \"F64\", want F32, F16 or BF16" },
    { "dtype is a number", "{'p':{'dtype':32,'shape':[1],'data_offsets':[0,4]}}", 4, ZB_CORRUPT,
      "p.dtype: is 32, want a string" },
    { "five dimensions", "{" P("F32", "[1,1,1,1,1]", "[0,4]") "}", 4, ZB_UNSUPPORTED,
      "want at most 4 dimensions" },
    { "negative extent", "{" P("F32", "[-1]", "[0,4]") "}", 4, ZB_CORRUPT, "p.shape[0]: is -1" },
    { "broken extent", "{" P("F32", "[1.5]", "[0,4]") "}", 4, ZB_CORRUPT, "p.shape[0]: is 1.5" },
    { "product overflows", "{" P("F32", "[4294967296,4294967296]", "[0,0]") "}", 0, ZB_CORRUPT,
      "want at most 1152921504606846975 elements" },
    { "one offset", "{" P("F32", "[1]", "[4]") "}", 4, ZB_CORRUPT,
      "p.data_offsets: is [4], want [first byte, end]" },
    { "offset of text", "{" P("F32", "[1]", "[0,'4']") "}", 4, ZB_CORRUPT, "p.data_offsets[1]: is \"4\"" },
    { "offset too large", "{" P("F32", "[1]", "[18446744073709551612,18446744073709551616]") "}", 4,
      ZB_CORRUPT, "p.data_offsets[0]" },
    { "end before begin", "{" P("F32", "[1]", "[4,0]") "}", 4, ZB_CORRUPT,
      "p.data_offsets: is [4,0], want 4 bytes for 1 elements of fp32" },
    { "too few bytes", "{" P("F32", "[2]", "[0,4]") "}", 4, ZB_CORRUPT,
      "is [0,4], want 8 bytes for 2 elements of fp32" },
    { "too many bytes", "{" P("BF16", "[2]", "[0,8]") "}", 8, ZB_CORRUPT,
      "is [0,8], want 4 bytes for 2 elements of bf16" },
    { "gap", "{" P("F32", "[1]", "[4,8]") "}", 8, ZB_CORRUPT,
      "tensor \"p\" begins at byte 4 of the data, expected 0" },
    { "overlap", "{'a':{'dtype':'F32','shape':[2],'data_offsets':[0,8]}," P("F32", "[2]", "[4,12]") "}", 12,
      ZB_CORRUPT, "tensor \"p\" begins at byte 4 of the data, expected 8, where a ends" },
    { "one place for two",
      "{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}," P("F32", "[1]", "[0,4]") "}", 4, ZB_CORRUPT,
      "begins at byte 0 of the data, expected 4" },
    { "data too short", "{" P("F32", "[2]", "[0,8]") "}", 7, ZB_CORRUPT,
      "the tensors take 8 bytes, the file has 7" },
    { "bytes behind the last", "{" P("F32", "[2]", "[0,8]") "}", 9, ZB_CORRUPT,
      "the tensors take 8 bytes, the file has 9" },
    { "metadata is text", "{'__metadata__':'x'," P("F32", "[2]", "[0,8]") "}", 8, ZB_CORRUPT,
      "__metadata__: is \"x\", want an object" },
    { "metadata holds a number", "{'__metadata__':{'a':1}," P("F32", "[2]", "[0,8]") "}", 8, ZB_CORRUPT,
      "__metadata__.a: is 1, want a string" },
    { "tensor missing", "{}", 0, ZB_INVALID_ARGUMENT,
      "has no tensor \"p\", which model \"m\" needs with shape [2]" },
    { "other shape", "{" P("F32", "[1,2]", "[0,8]") "}", 8, ZB_INVALID_ARGUMENT,
      "tensor \"p\" has shape [1,2], model \"m\" expects [2]" },
    { "scalar", "{" P("F32", "[]", "[0,4]") "}", 4, ZB_INVALID_ARGUMENT,
      "tensor \"p\" has shape [], model \"m\" expects [2]" },
    { "extra tensor", "{'a':{'dtype':'F16','shape':[2],'data_offsets':[8,12]}," P("F32", "[2]", "[0,8]") "}",
      12, ZB_INVALID_ARGUMENT, "tensor \"a\" is no parameter of model \"m\"" },
    /* not bad at all: the order in the header is free, an empty tensor lies between others, spaces pad the
       header */
    { "control: this one loads", "{'__metadata__':{'a':'b'}," P("F32", "[2]", "[0,8]") "}   ", 8, ZB_OK, "" },
};

static void check_bad(void **state)
{
    const struct bad_case *c = *state;
    static const unsigned char data[16] = { 0 };
    zb_model *model = one_parameter((zb_shape){ 1, { 2 } });
    write_safetensors(in_folder("bad.safetensors"), c->header, data, c->data_bytes);
    uint64_t live = zb_alloc_get_stats().live;
    zb_weights weights = { 0 };
    zb_status status = zb_weights_load(model, in_folder("bad.safetensors"), &weights);
    if (status != c->status) fail_msg("status %d: %s", (int)status, zb_error_message());
    if (status == ZB_OK) {
        zb_weights_destroy(&weights);
    } else {
        assert_null(weights.values);
        if (strstr(zb_error_message(), c->message) == NULL)
            fail_msg("the message \"%s\" does not contain \"%s\"", zb_error_message(), c->message);
        assert_non_null(strstr(zb_error_message(), in_folder("bad.safetensors")));
    }
    assert_int_equal(zb_alloc_get_stats().live, live);
    zb_model_destroy(model);
}

static void check_refused(const zb_model *model, const char *path, zb_status status, const char *message)
{
    zb_weights weights;
    assert_int_equal(zb_weights_load(model, path, &weights), status);
    if (strstr(zb_error_message(), message) == NULL)
        fail_msg("the message \"%s\" does not contain \"%s\"", zb_error_message(), message);
}

static void what_is_no_safetensors_file_is_refused(void **state)
{
    (void)state;
    zb_model *model = small_model();
    check_refused(model, in_folder("none"), ZB_IO, "none: cannot be opened: No such file");
    check_refused(model, folder, ZB_IO, "is no regular file");
    check_refused(model, "/dev/null", ZB_IO, "/dev/null: is no regular file");
    write_bytes(in_folder("f"), "1234567", 7);
    check_refused(model, in_folder("f"), ZB_CORRUPT, "has 7 bytes, a safetensors file has at least 8");
    write_bytes(in_folder("f"), "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    check_refused(model, in_folder("f"), ZB_CORRUPT,
                  "says that its header has 18446744073709551615 bytes, but only 2 follow");
    zb_model_destroy(model);
}

/* A sparse file of 101 MB: the length alone must be refused. */
static void a_header_too_long_is_refused_unread(void **state)
{
    (void)state;
    static const struct {
        uint32_t header_bytes;
        zb_status status;
    } cases[] = { { 100000001, ZB_CORRUPT }, { 16 * 1024 * 1024 + 1, ZB_UNSUPPORTED } };
    zb_model *model = small_model();
    for (size_t i = 0; i < COUNT(cases); i++) {
        unsigned char length[8] = { 0 };
        for (int j = 0; j < 4; j++) length[j] = (unsigned char)(cases[i].header_bytes >> (8 * j));
        write_bytes(in_folder("long"), length, sizeof length);
        assert_int_equal(truncate(in_folder("long"), 101000000), 0);
        zb_alloc_stats before = zb_alloc_get_stats();
        check_refused(model, in_folder("long"), cases[i].status, "expected at most");
        assert_int_equal(zb_alloc_get_stats().calls, before.calls);
    }
    zb_model_destroy(model);
}

/* --- damaged files --- */

static void load_damaged(const zb_model *model, const void *data, size_t count, int may_load)
{
    uint64_t live = zb_alloc_get_stats().live;
    write_bytes(in_folder("damaged"), data, count);
    zb_weights weights;
    zb_status status = zb_weights_load(model, in_folder("damaged"), &weights);
    if (status == ZB_OK && may_load)
        zb_weights_destroy(&weights);
    else if (status != ZB_CORRUPT && status != ZB_UNSUPPORTED && status != ZB_INVALID_ARGUMENT)
        fail_msg("%zu bytes: status %d: %s", count, (int)status, zb_error_message());
    assert_int_equal(zb_alloc_get_stats().live, live);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    zb_model *model = small_model();
    bytes whole = read_bytes(FIXTURES "zerobit.safetensors");
    for (size_t count = 0; count < whole.count; count++) load_damaged(model, whole.data, count, 0);
    whole.data[whole.count] = 0;
    load_damaged(model, whole.data, whole.count + 1, 0);
    free(whole.data);
    zb_model_destroy(model);
}

static void flipped_bytes_are_refused_or_load(void **state)
{
    (void)state;
    zb_model *model = small_model();
    static const char *const files[] = { FIXTURES "zerobit.safetensors", FIXTURES "mixed.safetensors" };
    for (size_t f = 0; f < COUNT(files); f++) {
        bytes whole = read_bytes(files[f]);
        unsigned char *damaged = malloc(whole.count);
        assert_non_null(damaged);
        for (uint64_t i = 0; i < 2000; i++) {
            memcpy(damaged, whole.data, whole.count);
            for (uint64_t flip = 0; flip <= i % 3; flip++) {
                uint32_t draw = zb_random_bits(f, (uint32_t)flip, i);
                damaged[draw / 256 % whole.count] ^= (unsigned char)draw;
            }
            load_damaged(model, damaged, whole.count, 1);
        }
        free(damaged);
        free(whole.data);
    }
    zb_model_destroy(model);
}

/* --- failures while writing, and memory --- */

static void weights_of_another_model_are_not_saved(void **state)
{
    (void)state;
    zb_model *model = small_model(), *other = open_model("mlp:3-4");
    zb_weights weights;
    assert_int_equal(zb_weights_from_seed(other, 0, &weights), ZB_OK);
    assert_int_equal(zb_weights_save(model, &weights, in_folder("o")), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "weights of 2 parameters cannot be those of model"));
    assert_int_equal(each_file(NULL), 0);
    zb_weights_destroy(&weights);
    zb_model_destroy(other);
    zb_model_destroy(model);
}

static void a_save_that_fails_changes_nothing(void **state)
{
    (void)state;
    zb_model *model = open_model("cifar10-net");
    zb_weights weights;
    assert_int_equal(zb_weights_from_seed(model, 0, &weights), ZB_OK);
    write_bytes(in_folder("old"), "old", 3);

    /* no such folder */
    assert_int_equal(zb_weights_save(model, &weights, in_folder("none/w")), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "cannot be written: No such file"));
    assert_int_equal(zb_weights_save(model, &weights, folder), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "cannot be written: Is a directory"));

    /* no room: at every length up to the file's */
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t room = 0; room < 248000; room += 24799) {
        struct rlimit limit = { .rlim_cur = room, .rlim_max = before.rlim_max };
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        zb_status status = zb_weights_save(model, &weights, in_folder("old"));
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(status, ZB_IO);
        assert_non_null(strstr(zb_error_message(), "cannot be written: File too large"));
        bytes old = read_bytes(in_folder("old"));
        assert_int_equal(old.count, 3);
        free(old.data);
        assert_int_equal(each_file(NULL), 1);
    }
    signal(SIGXFSZ, SIG_DFL);
    zb_weights_destroy(&weights);
    zb_model_destroy(model);
}

static zb_status seed_once(const zb_model *model)
{
    zb_weights weights;
    ZB_TRY(zb_weights_from_seed(model, 0, &weights));
    zb_weights_destroy(&weights);
    return ZB_OK;
}

static zb_status load_once(const zb_model *model)
{
    zb_weights weights;
    ZB_TRY(zb_weights_load(model, FIXTURES "mixed.safetensors", &weights));
    zb_weights_destroy(&weights);
    return ZB_OK;
}

static zb_weights to_save;
static zb_status save_once(const zb_model *model)
{
    return zb_weights_save(model, &to_save, in_folder("s"));
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    static zb_status (*const operations[])(const zb_model *) = { seed_once, load_once, save_once };
    zb_model *model = small_model();
    assert_int_equal(zb_weights_from_seed(model, 0, &to_save), ZB_OK);
    for (size_t i = 0; i < COUNT(operations); i++) {
        for (int64_t n = 0;; n++) {
            uint64_t live = zb_alloc_get_stats().live;
            zb_alloc_fail_at(n);
            zb_status status = operations[i](model);
            int fired = zb_alloc_fault_fired();
            zb_alloc_fail_at(-1);
            assert_int_equal(zb_alloc_get_stats().live, live);
            assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
            if (!fired) {
                assert_true(n >= 3);
                break;
            }
            assert_int_equal(each_file(NULL), 0);
        }
    }
    zb_weights_destroy(&to_save);
    zb_model_destroy(model);
}

#define IN_EMPTY_FOLDER(test) cmocka_unit_test_setup(test, empty_folder)

int main(void)
{
    cjson_allocates_here();
    static const struct CMUnitTest single[] = {
        IN_EMPTY_FOLDER(seed_gives_the_initial_values),
        IN_EMPTY_FOLDER(saved_weights_load_to_the_same_bits),
        IN_EMPTY_FOLDER(a_name_with_quotes_survives),
        IN_EMPTY_FOLDER(a_file_of_the_real_package_loads),
        IN_EMPTY_FOLDER(the_writer_writes_what_the_real_package_reads),
        IN_EMPTY_FOLDER(every_16_bit_value_is_widened_exactly),
        IN_EMPTY_FOLDER(what_is_no_safetensors_file_is_refused),
        IN_EMPTY_FOLDER(a_header_too_long_is_refused_unread),
        IN_EMPTY_FOLDER(every_truncation_is_refused),
        IN_EMPTY_FOLDER(flipped_bytes_are_refused_or_load),
        IN_EMPTY_FOLDER(weights_of_another_model_are_not_saved),
        IN_EMPTY_FOLDER(a_save_that_fails_changes_nothing),
        IN_EMPTY_FOLDER(every_allocation_may_fail),
    };
    static struct CMUnitTest tests[COUNT(single) + COUNT(bad_cases)];
    size_t count = 0;
    for (; count < COUNT(single); count++) tests[count] = single[count];
    for (size_t i = 0; i < COUNT(bad_cases); i++)
        tests[count++] = (struct CMUnitTest){ bad_cases[i].name, check_bad, empty_folder, NULL,
                                              (void *)&bad_cases[i] };
    return cmocka_run_group_tests_name("weights", tests, make_folder, remove_folder);
}
