/*
 * CIFAR-10 files (good, truncated, wrong), the generator and its in-memory twin, and the synthetic data set.
 * Wanted bytes and values were computed by a Python program that follows the descriptions in docs/data.md.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zerobit/data.h>
#include <zerobit/memory.h>

enum { RECORD = ZB_CIFAR10_RECORD_BYTES, PIXELS = RECORD - 1 };

/* --- a folder of one's own, in the working directory, for each test --- */

typedef struct folder {
    char path[64];
} folder;

static void folder_make(folder *f)
{
    snprintf(f->path, sizeof f->path, "test_dataset.XXXXXX");
    assert_non_null(mkdtemp(f->path));
}

static const char *folder_file(const folder *f, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    return path;
}

static int folder_file_count(const folder *f)
{
    DIR *dir = opendir(f->path);
    assert_non_null(dir);
    int count = 0;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static void folder_remove(const folder *f)
{
    DIR *dir = opendir(f->path);
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.') assert_int_equal(remove(folder_file(f, entry->d_name)), 0);
    closedir(dir);
    assert_int_equal(rmdir(f->path), 0);
}

static void write_file(const folder *f, const char *name, const void *data, size_t bytes)
{
    FILE *stream = fopen(folder_file(f, name), "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(data, 1, bytes, stream), bytes);
    assert_int_equal(fclose(stream), 0);
}

static size_t read_file(const char *path, uint8_t *data, size_t room)
{
    FILE *stream = fopen(path, "rb");
    assert_non_null(stream);
    size_t bytes = fread(data, 1, room, stream);
    assert_int_equal(fclose(stream), 0);
    return bytes;
}

/* A record whose label is `label` and whose pixel p is first + p mod 256. */
static void fill_record(uint8_t *record, uint8_t label, int first)
{
    record[0] = label;
    for (int p = 0; p < PIXELS; p++) record[1 + p] = (uint8_t)(first + p);
}

static int32_t fetch_label(const zb_dataset *dataset, int64_t index)
{
    static float input[PIXELS];
    int32_t label = -1;
    zb_dataset_fetch(dataset, index, input, &label, NULL);
    return label;
}

/* --- what a fetch gives --- */

static const struct pixel_case {
    uint8_t byte;
    uint32_t want; /* fp32 bits of (byte / 255 - 0.5) / 0.5 */
} pixel_cases[] = {
    { 0, 0xbf800000 },   { 1, 0xbf7dfdfe },   { 127, 0xbb808080 },
    { 128, 0x3b808100 }, { 254, 0x3f7dfdfe }, { 255, 0x3f800000 },
};

static void pixels_and_labels_arrive(void **state)
{
    (void)state;
    folder f;
    folder_make(&f);
    static uint8_t records[2 * RECORD];
    fill_record(records, 9, 0);
    fill_record(records + RECORD, 0, 100);
    write_file(&f, "two.bin", records, sizeof records);

    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_open_cifar10(folder_file(&f, "two.bin"), 0, &dataset), ZB_OK);
    assert_int_equal(dataset->size, 2);
    assert_int_equal(dataset->classes, 10);
    assert_int_equal(dataset->target_numel, 0);
    assert_int_equal(dataset->input.dims, 3);
    assert_int_equal(dataset->input.extent[0], 3);
    assert_int_equal(dataset->input.extent[1], 32);
    assert_int_equal(dataset->input.extent[2], 32);

    static float input[PIXELS];
    int32_t label = -1;
    zb_dataset_fetch(dataset, 0, input, &label, NULL);
    assert_int_equal(label, 9);
    for (size_t i = 0; i < sizeof pixel_cases / sizeof pixel_cases[0]; i++)
        for (int p = pixel_cases[i].byte; p < PIXELS; p += 256)
            assert_memory_equal(&input[p], &pixel_cases[i].want, sizeof input[p]);

    zb_dataset_fetch(dataset, 1, input, &label, NULL);
    assert_int_equal(label, 0);
    assert_memory_equal(&input[28], &pixel_cases[3].want, sizeof input[28]); /* byte 128 */
    zb_dataset_destroy(dataset);
    folder_remove(&f);
}

static void folder_gives_batches_in_order_and_the_test_batch(void **state)
{
    (void)state;
    folder f;
    folder_make(&f);
    /* The second is missing, the fourth has two records; labels tell which came from where. */
    static uint8_t records[2 * RECORD];
    static const struct {
        const char *name;
        uint8_t label;
        size_t count;
    } files[] = { { "data_batch_5.bin", 5, 1 }, { "data_batch_4.bin", 4, 2 }, { "data_batch_1.bin", 1, 1 },
                  { "data_batch_3.bin", 3, 1 }, { "test_batch.bin", 8, 1 },   { "data_batch_6.bin", 6, 1 } };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        fill_record(records, files[i].label, 0);
        fill_record(records + RECORD, files[i].label, 0);
        write_file(&f, files[i].name, records, files[i].count * RECORD);
    }
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_open_cifar10(f.path, 0, &dataset), ZB_OK);
    static const int32_t want[] = { 1, 3, 4, 4, 5 };
    assert_int_equal(dataset->size, 5);
    for (int i = 0; i < 5; i++) assert_int_equal(fetch_label(dataset, i), want[i]);
    zb_dataset_destroy(dataset);

    assert_int_equal(zb_dataset_open_cifar10(f.path, 1, &dataset), ZB_OK);
    assert_int_equal(dataset->size, 1);
    assert_int_equal(fetch_label(dataset, 0), 8);
    zb_dataset_destroy(dataset);
    folder_remove(&f);
}

/* --- files that are refused --- */

static const struct file_case {
    const char *name;
    long bytes; /* of three good records, cut or extended */
    int bad_record, bad_label;
    zb_status want;
    const char *says[3];
} file_cases[] = {
    { "refused: empty", 0, -1, 0, ZB_CORRUPT, { "0 bytes", "multiple of 3073", "30730000" } },
    { "refused: one byte", 1, -1, 0, ZB_CORRUPT, { "1 bytes", "multiple of 3073", "" } },
    { "refused: label missing a pixel", 3072, -1, 0, ZB_CORRUPT, { "3072 bytes", "multiple of 3073", "" } },
    { "refused: one byte too many", 3074, -1, 0, ZB_CORRUPT, { "3074 bytes", "multiple of 3073", "" } },
    { "refused: cut in the third record", 9218, -1, 0, ZB_CORRUPT, { "9218 bytes", "multiple of 3073", "" } },
    { "refused: label 10 in record 0", 9219, 0, 10, ZB_CORRUPT, { "record 0 ", "label 10", "0..9" } },
    { "refused: label 255 in the last record",
      9219,
      2,
      255,
      ZB_CORRUPT,
      { "record 2 ", "label 255", "6146" } },
};

static void check_bad_file(void **state)
{
    const struct file_case *c = *state;
    folder f;
    folder_make(&f);
    static uint8_t records[3 * RECORD];
    for (int i = 0; i < 3; i++) fill_record(records + i * RECORD, (uint8_t)i, i);
    write_file(&f, "data_batch_1.bin", records, RECORD); /* a good one before it */
    if (c->bad_record >= 0) records[c->bad_record * RECORD] = (uint8_t)c->bad_label;
    write_file(&f, "data_batch_2.bin", records, (size_t)c->bytes);

    uint64_t live = zb_alloc_get_stats().live;
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_open_cifar10(f.path, 0, &dataset), c->want);
    assert_null(dataset);
    assert_non_null(strstr(zb_error_message(), "data_batch_2.bin"));
    for (int i = 0; i < 3; i++) assert_non_null(strstr(zb_error_message(), c->says[i]));
    assert_int_equal(zb_alloc_get_stats().live, live);
    folder_remove(&f);
}

static void missing_paths_are_named(void **state)
{
    (void)state;
    folder f;
    folder_make(&f);
    zb_dataset *dataset = NULL;
    uint64_t live = zb_alloc_get_stats().live;

    assert_int_equal(zb_dataset_open_cifar10(folder_file(&f, "nowhere"), 0, &dataset), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "nowhere: No such file"));

    assert_int_equal(zb_dataset_open_cifar10(f.path, 0, &dataset), ZB_IO);
    assert_non_null(strstr(zb_error_message(), f.path));
    assert_non_null(strstr(zb_error_message(), "no data_batch_1.bin .. data_batch_5.bin"));
    assert_non_null(strstr(zb_error_message(), "30730000"));

    assert_int_equal(zb_dataset_open_cifar10(f.path, 1, &dataset), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "test_batch.bin: cannot open: No such file"));

    /* A link that leads nowhere is not the same as no batch. */
    assert_int_equal(symlink("/nowhere/at/all", folder_file(&f, "data_batch_4.bin")), 0);
    assert_int_equal(zb_dataset_open_cifar10(f.path, 0, &dataset), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "data_batch_4.bin: cannot open: No such file"));

    assert_int_equal(mkdir(folder_file(&f, "data_batch_3.bin"), 0777), 0);
    assert_int_equal(zb_dataset_open_cifar10(f.path, 0, &dataset), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "data_batch_3.bin: not a regular file"));

    assert_null(dataset);
    assert_int_equal(zb_alloc_get_stats().live, live);
    folder_remove(&f);
}

static void unreadable_file_is_named(void **state)
{
    (void)state;
    if (geteuid() == 0) skip(); /* root may read everything */
    folder f;
    folder_make(&f);
    write_file(&f, "locked.bin", "x", 1);
    assert_int_equal(chmod(folder_file(&f, "locked.bin"), 0), 0);
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_open_cifar10(folder_file(&f, "locked.bin"), 0, &dataset), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "locked.bin: cannot open: Permission denied"));
    folder_remove(&f);
}

/* --- synthetic CIFAR-10 --- */

static const struct record_case {
    const char *name;
    uint64_t seed;
    int64_t index;
    uint8_t head[6];
    uint64_t hash; /* h = h * 1000003 + byte */
} record_cases[] = {
    { "synthetic record (0, 0)", 0, 0, { 1, 242, 152, 159, 171, 173 }, UINT64_C(17476025490189358535) },
    { "synthetic record (0, 1)", 0, 1, { 3, 40, 32, 17, 95, 93 }, UINT64_C(120717433100816960) },
    { "synthetic record (2^40, 3)",
      UINT64_C(1) << 40,
      3,
      { 4, 86, 83, 44, 121, 155 },
      UINT64_C(662285964885907577) },
};

static void check_record(void **state)
{
    const struct record_case *c = *state;
    folder f;
    folder_make(&f);
    assert_int_equal(zb_cifar10_generate(folder_file(&f, "made.bin"), c->index + 1, c->seed, NULL), ZB_OK);
    static uint8_t made[5 * RECORD];
    size_t bytes = read_file(folder_file(&f, "made.bin"), made, sizeof made);
    assert_int_equal(bytes, (size_t)(c->index + 1) * RECORD);
    const uint8_t *record = made + c->index * RECORD;
    assert_memory_equal(record, c->head, sizeof c->head);
    uint64_t hash = 0;
    for (int b = 0; b < RECORD; b++) hash = hash * 1000003 + record[b];
    assert_true(hash == c->hash);
    folder_remove(&f);
}

enum { MADE = 200 };

static void file_and_memory_hold_the_same_records(void **state)
{
    (void)state;
    folder f;
    folder_make(&f);
    static uint8_t first[(MADE + 1) * RECORD], again[(MADE + 1) * RECORD], other[(MADE + 1) * RECORD];
    assert_int_equal(zb_cifar10_generate(folder_file(&f, "first.bin"), MADE, 11, NULL), ZB_OK);
    assert_int_equal(zb_cifar10_generate(folder_file(&f, "again.bin"), MADE / 2, 11, NULL), ZB_OK);
    assert_int_equal(zb_cifar10_generate(folder_file(&f, "other.bin"), MADE, 12, NULL), ZB_OK);
    assert_int_equal(read_file(folder_file(&f, "first.bin"), first, sizeof first), MADE * RECORD);
    assert_int_equal(read_file(folder_file(&f, "again.bin"), again, sizeof again), MADE / 2 * RECORD);
    assert_int_equal(read_file(folder_file(&f, "other.bin"), other, sizeof other), MADE * RECORD);
    assert_memory_equal(first, again, MADE / 2 * RECORD); /* however many are made */

    zb_dataset *from_file = NULL, *in_memory = NULL;
    assert_int_equal(zb_dataset_open_cifar10(folder_file(&f, "first.bin"), 0, &from_file), ZB_OK);
    assert_int_equal(zb_dataset_synthetic_cifar10(MADE, 11, &in_memory), ZB_OK);
    assert_int_equal(in_memory->size, MADE);
    int seen[10] = { 0 };
    for (int64_t i = 0; i < MADE; i++) {
        static float left[PIXELS], right[PIXELS];
        int32_t left_label = -1, right_label = -2;
        zb_dataset_fetch(from_file, i, left, &left_label, NULL);
        zb_dataset_fetch(in_memory, i, right, &right_label, NULL);
        assert_int_equal(left_label, right_label);
        assert_memory_equal(left, right, sizeof left);
        assert_in_range(left_label, 0, 9);
        seen[left_label]++;
        /* Records differ from one another, and from those of another seed. */
        assert_memory_not_equal(first + i * RECORD + 1, other + i * RECORD + 1, PIXELS);
        if (i > 0) assert_memory_not_equal(first + i * RECORD + 1, first + (i - 1) * RECORD + 1, PIXELS);
    }
    for (int label = 0; label < 10; label++) assert_true(seen[label] > 0);
    zb_dataset_destroy(from_file);
    zb_dataset_destroy(in_memory);
    folder_remove(&f);
}

/* Pictures of one class resemble those of another seed: what is learned from one set holds for the other. */
static void nearest_class_mean_of_another_seed_is_the_label(void **state)
{
    (void)state;
    zb_dataset *train = NULL, *test = NULL;
    assert_int_equal(zb_dataset_synthetic_cifar10(MADE, 1, &train), ZB_OK);
    assert_int_equal(zb_dataset_synthetic_cifar10(50, 2, &test), ZB_OK);
    static float sums[10][PIXELS], input[PIXELS];
    int counts[10] = { 0 };
    int32_t label = -1;
    for (int64_t i = 0; i < MADE; i++) {
        zb_dataset_fetch(train, i, input, &label, NULL);
        counts[label]++;
        for (int p = 0; p < PIXELS; p++) sums[label][p] += input[p];
    }
    for (int64_t i = 0; i < 50; i++) {
        zb_dataset_fetch(test, i, input, &label, NULL);
        int32_t nearest = -1;
        double nearest_distance = 1e300;
        for (int32_t k = 0; k < 10; k++) {
            double distance = 0;
            for (int p = 0; p < PIXELS; p++) {
                double d = (double)input[p] - (double)sums[k][p] / counts[k];
                distance += d * d;
            }
            if (distance < nearest_distance) {
                nearest = k;
                nearest_distance = distance;
            }
        }
        assert_int_equal(nearest, label);
    }
    zb_dataset_destroy(train);
    zb_dataset_destroy(test);
}

static void generator_refuses_and_leaves_nothing_behind(void **state)
{
    (void)state;
    folder f;
    folder_make(&f);
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_cifar10_generate(folder_file(&f, "a.bin"), 0, 1, NULL), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "a.bin: 0 records"));
    assert_int_equal(zb_dataset_synthetic_cifar10(-4, 1, &dataset), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "-4 records"));
    assert_null(dataset);

    assert_int_equal(zb_cifar10_generate(folder_file(&f, "no/such/folder.bin"), 1, 1, NULL), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "folder.bin: cannot be written: No such file"));
    assert_int_equal(folder_file_count(&f), 0);

    write_file(&f, "mine.bin", "precious", 8);
    assert_int_equal(zb_cifar10_generate(folder_file(&f, "mine.bin"), 1, 1, NULL), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "mine.bin: exists already"));
    uint8_t kept[16];
    assert_int_equal(read_file(folder_file(&f, "mine.bin"), kept, sizeof kept), 8);
    assert_memory_equal(kept, "precious", 8);
    assert_int_equal(folder_file_count(&f), 1);
    folder_remove(&f);
}

static void failed_write_is_reported_and_removed(void **state)
{
    (void)state;
    folder f;
    folder_make(&f);
    /* A file size limit stands for a full disk. */
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 10000;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    zb_status in_the_middle = zb_cifar10_generate(folder_file(&f, "full.bin"), 100, 1, NULL);
    int said = strstr(zb_error_message(), "full.bin: cannot be written: File too large") != NULL;
    small.rlim_cur = 2000; /* less than a buffer: only the flush at the end notices */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    zb_status at_the_end = zb_cifar10_generate(folder_file(&f, "full.bin"), 1, 1, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(in_the_middle, ZB_IO);
    assert_true(said);
    assert_int_equal(at_the_end, ZB_IO);
    assert_non_null(strstr(zb_error_message(), "full.bin: cannot be written: File too large"));
    assert_int_equal(folder_file_count(&f), 0);
    folder_remove(&f);
}

/* --- synthetic data for any model --- */

static const struct synthetic_case {
    const char *name, *model;
    int classes;
    size_t target_numel;
} synthetic_cases[] = {
    { "synthetic: cross entropy", "mlp:70-3", 3, 0 },
    { "synthetic: mean squared error", "mlp-mse:4-2", 0, 2 },
};

static void check_synthetic(void **state)
{
    const struct synthetic_case *c = *state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_open(c->model, &model), ZB_OK);
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_synthetic(model, 8, 5, &dataset), ZB_OK);
    zb_model_destroy(model); /* the data set does not need it any more */
    assert_int_equal(dataset->size, 8);
    assert_int_equal(dataset->classes, c->classes);
    assert_int_equal(dataset->target_numel, c->target_numel);

    if (c->classes > 0) {
        static const int32_t want[8] = { 2, 2, 2, 1, 2, 0, 0, 0 };
        static const uint32_t want_last[8] = { 0x3ecf8660, 0x3f1329d2, 0x3f542760, 0x3f557886,
                                               0x3e44a868, 0x3f424762, 0xbe9bcbcc, 0xbf3b1e18 };
        for (int64_t i = 0; i < 8; i++) {
            float input[70];
            int32_t label = -1;
            zb_dataset_fetch(dataset, i, input, &label, NULL);
            assert_int_equal(label, want[i]);
            assert_memory_equal(&input[69], &want_last[i], sizeof input[69]);
            for (int e = 0; e < 70; e++) assert_true(input[e] >= -1.0f && input[e] < 1.0f);
        }
    } else {
        static const uint32_t want_input[4] = { 0x3f1104a8, 0x3e9d5914, 0xbf2d550e, 0x3e98fb54 };
        static const uint32_t want_target[2] = { 0x3ea72e45, 0xbf080c36 };
        float input[4], target[2];
        zb_dataset_fetch(dataset, 3, input, NULL, target);
        assert_memory_equal(input, want_input, sizeof input);
        assert_memory_equal(target, want_target, sizeof target);
    }
    zb_dataset_destroy(dataset);
}

static void synthetic_refuses_an_empty_set(void **state)
{
    (void)state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_open("mlp:4-2", &model), ZB_OK);
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_synthetic(model, 0, 5, &dataset), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "size is 0"));
    assert_null(dataset);
    zb_model_destroy(model);
}

static void synthetic_refuses_a_model_without_output(void **state)
{
    (void)state;
    zb_model *model = NULL;
    assert_int_equal(zb_model_create("none", &(zb_shape){ 1, { 4 } }, ZB_LOSS_MSE, &model), ZB_OK);
    zb_dataset *dataset = NULL;
    assert_int_equal(zb_dataset_synthetic(model, 1, 5, &dataset), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "none: the model has no module with an output"));
    assert_null(dataset);
    zb_model_destroy(model);
}

/* --- memory --- */

static zb_model *failing_model;
static folder failing_folder;

static zb_status open_folder(zb_dataset **dataset_p)
{
    return zb_dataset_open_cifar10(failing_folder.path, 0, dataset_p);
}
static zb_status open_test(zb_dataset **dataset_p)
{
    return zb_dataset_open_cifar10(failing_folder.path, 1, dataset_p);
}
static zb_status open_file(zb_dataset **dataset_p)
{
    return zb_dataset_open_cifar10(folder_file(&failing_folder, "test_batch.bin"), 0, dataset_p);
}
static zb_status make_cifar10(zb_dataset **dataset_p)
{
    return zb_dataset_synthetic_cifar10(3, 1, dataset_p);
}
static zb_status make_synthetic(zb_dataset **dataset_p)
{
    return zb_dataset_synthetic(failing_model, 3, 1, dataset_p);
}
static zb_status generate(zb_dataset **dataset_p)
{
    (void)dataset_p;
    remove(folder_file(&failing_folder, "made.bin"));
    return zb_cifar10_generate(folder_file(&failing_folder, "made.bin"), 2, 1, NULL);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const struct {
        zb_status (*create)(zb_dataset **dataset_p);
        int allocations;
    } creators[] = { { open_folder, 7 },  { open_test, 3 },      { open_file, 3 },
                     { make_cifar10, 3 }, { make_synthetic, 2 }, { generate, 3 } };
    folder_make(&failing_folder);
    static uint8_t record[RECORD];
    write_file(&failing_folder, "data_batch_2.bin", record, sizeof record);
    write_file(&failing_folder, "test_batch.bin", record, sizeof record);
    assert_int_equal(zb_model_open("mlp:4-2", &failing_model), ZB_OK);
    uint64_t live = zb_alloc_get_stats().live;
    for (size_t i = 0; i < sizeof creators / sizeof creators[0]; i++) {
        int n = 0;
        for (;; n++) {
            zb_dataset *dataset = NULL;
            zb_alloc_fail_at(n);
            zb_status status = creators[i].create(&dataset);
            int fired = zb_alloc_fault_fired();
            zb_alloc_fail_at(-1);
            assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
            if (fired) assert_null(dataset);
            zb_dataset_destroy(dataset);
            assert_int_equal(zb_alloc_get_stats().live, live);
            if (!fired) break;
        }
        assert_int_equal(n, creators[i].allocations);
    }
    assert_int_equal(folder_file_count(&failing_folder), 3); /* no temporary file either */
    zb_model_destroy(failing_model);
    folder_remove(&failing_folder);
}

#define ADD_CASES(table, check)                                                                              \
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) tests[count++] = (struct CMUnitTest)         \
        {                                                                                                    \
            table[i].name, check, NULL, NULL, (void *)&table[i]                                              \
        }

int main(void)
{
    static const struct CMUnitTest single[] = {
        cmocka_unit_test(pixels_and_labels_arrive),
        cmocka_unit_test(folder_gives_batches_in_order_and_the_test_batch),
        cmocka_unit_test(missing_paths_are_named),
        cmocka_unit_test(unreadable_file_is_named),
        cmocka_unit_test(file_and_memory_hold_the_same_records),
        cmocka_unit_test(nearest_class_mean_of_another_seed_is_the_label),
        cmocka_unit_test(generator_refuses_and_leaves_nothing_behind),
        cmocka_unit_test(failed_write_is_reported_and_removed),
        cmocka_unit_test(synthetic_refuses_an_empty_set),
        cmocka_unit_test(synthetic_refuses_a_model_without_output),
        cmocka_unit_test(every_allocation_may_fail),
    };
    struct CMUnitTest tests[64];
    size_t count = sizeof single / sizeof single[0];
    memcpy(tests, single, sizeof single);
    ADD_CASES(file_cases, check_bad_file);
    ADD_CASES(record_cases, check_record);
    ADD_CASES(synthetic_cases, check_synthetic);
    return _cmocka_run_group_tests("dataset", tests, count, NULL, NULL);
}
