/* Internal to core/: synthetic records in CIFAR-10's binary format, for a file and for memory. */
#ifndef ZB_CORE_CIFAR10_SYNTHETIC_H
#define ZB_CORE_CIFAR10_SYNTHETIC_H

#include <zerobit/data.h>

enum { ZB_CIFAR10_CLASSES = 10, ZB_CIFAR10_CHANNELS = 3, ZB_CIFAR10_SIDE = 32 };
enum { ZB_CIFAR10_PIXELS = ZB_CIFAR10_CHANNELS * ZB_CIFAR10_SIDE * ZB_CIFAR10_SIDE };
_Static_assert(ZB_CIFAR10_RECORD_BYTES == 1 + ZB_CIFAR10_PIXELS, "a record is a label and its pixels");

/** One noise-free picture per class; the same for every seed, so that a second seed makes a test set. */
typedef struct zb_cifar10_patterns {
    uint8_t pixels[ZB_CIFAR10_CLASSES][ZB_CIFAR10_PIXELS];
} zb_cifar10_patterns;

void zb_cifar10_patterns_init(zb_cifar10_patterns *patterns);

/** record: [ZB_CIFAR10_RECORD_BYTES]; depends on (seed, index) only. */
void zb_cifar10_make_record(const zb_cifar10_patterns *patterns, uint64_t seed, int64_t index,
                            uint8_t *record);

#endif
