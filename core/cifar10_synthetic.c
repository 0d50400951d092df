/*
 * Synthetic CIFAR-10 records: a smooth picture per class plus noise, easy enough that a small net learns it
 * in a few steps. Integer arithmetic and counter-based draws only, so that the bytes are the same everywhere
 * and record i does not depend on how many are made.
 */
#include "core/cifar10_synthetic.h"

#include <inttypes.h>
#include <zerobit/memory.h>
#include <zerobit/random.h>
#include "core/output_file.h"

/* A stream for each kind of draw. */
enum { STREAM_LABEL, STREAM_NOISE, STREAM_PATTERN };

enum {
    CELL = 8,                                  /* pixels between two control points          */
    GRID = ZB_CIFAR10_SIDE / CELL + 1,         /* control points along a side                */
    NOISE_MAX = 48,                            /* noise is in -48..48                        */
    PATTERN_LEVELS = 256 - 2 * NOISE_MAX,      /* so that pattern + noise stays within 0..255 */
    NOISE_WORDS = (ZB_CIFAR10_PIXELS + 3) / 4, /* one byte of a draw per pixel            */
};

static uint32_t control_point(int label, int channel, int row, int column)
{
    int element = ((label * ZB_CIFAR10_CHANNELS + channel) * GRID + row) * GRID + column;
    return NOISE_MAX + zb_random_bits(0, STREAM_PATTERN, (uint64_t)element) % PATTERN_LEVELS;
}

/* Bilinear between the four control points around the pixel. */
static uint8_t pattern_pixel(int label, int channel, int y, int x)
{
    int row = y / CELL, column = x / CELL;
    uint32_t down = (uint32_t)(y % CELL), right = (uint32_t)(x % CELL);
    uint32_t top = control_point(label, channel, row, column) * (CELL - right) +
                   control_point(label, channel, row, column + 1) * right;
    uint32_t bottom = control_point(label, channel, row + 1, column) * (CELL - right) +
                      control_point(label, channel, row + 1, column + 1) * right;
    return (uint8_t)((top * (CELL - down) + bottom * down) / (CELL * CELL));
}

void zb_cifar10_patterns_init(zb_cifar10_patterns *patterns)
{
    for (int label = 0; label < ZB_CIFAR10_CLASSES; label++) {
        uint8_t *pixel = patterns->pixels[label];
        for (int channel = 0; channel < ZB_CIFAR10_CHANNELS; channel++)
            for (int y = 0; y < ZB_CIFAR10_SIDE; y++)
                for (int x = 0; x < ZB_CIFAR10_SIDE; x++) *pixel++ = pattern_pixel(label, channel, y, x);
    }
}

void zb_cifar10_make_record(const zb_cifar10_patterns *patterns, uint64_t seed, int64_t index,
                            uint8_t *record)
{
    uint32_t label = zb_random_bits(seed, STREAM_LABEL, (uint64_t)index) % ZB_CIFAR10_CLASSES;
    const uint8_t *pattern = patterns->pixels[label];
    record[0] = (uint8_t)label;
    uint32_t draw = 0;
    for (int p = 0; p < ZB_CIFAR10_PIXELS; p++) {
        if (p % 4 == 0)
            draw = zb_random_bits(seed, STREAM_NOISE, (uint64_t)index * NOISE_WORDS + (uint64_t)(p / 4));
        uint32_t noise = (draw & 0xff) * (2 * NOISE_MAX + 1) / 256; /* 0..2 NOISE_MAX */
        record[1 + p] = (uint8_t)(pattern[p] + noise - NOISE_MAX);
        draw >>= 8;
    }
}

/* --- to a file --- */

static zb_status write_records(zb_output_file *file, const zb_cifar10_patterns *patterns, int64_t records,
                               uint64_t seed, const volatile sig_atomic_t *interrupt)
{
    for (int64_t i = 0; i < records; i++) {
        if (interrupt != NULL && *interrupt != 0)
            return zb_fail(ZB_INTERRUPTED,
                           "%s: interrupted before record %" PRId64 " of %" PRId64 "; nothing was written",
                           file->path, i, records);
        uint8_t record[ZB_CIFAR10_RECORD_BYTES];
        zb_cifar10_make_record(patterns, seed, i, record);
        ZB_TRY(zb_output_file_write(file, record, sizeof record));
    }
    return zb_output_file_finish(file);
}

zb_status zb_cifar10_generate(const char *path, int64_t records, uint64_t seed,
                              const volatile sig_atomic_t *interrupt)
{
    if (records < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: %" PRId64 " records asked for, want >= 1", path, records);
    zb_cifar10_patterns *patterns = zb_alloc(sizeof *patterns);
    if (patterns == NULL) return ZB_NO_MEMORY;
    zb_cifar10_patterns_init(patterns);
    zb_output_file file;
    zb_status status = zb_output_file_open(&file, path, ZB_OUTPUT_KEEP);
    if (status == ZB_OK) {
        status = write_records(&file, patterns, records, seed, interrupt);
        zb_output_file_discard(&file);
    }
    zb_free(patterns);
    return status;
}
