/* SHA-256 (FIPS 180-4) of bytes that come piece by piece. */
#ifndef ZB_CORE_SHA256_H
#define ZB_CORE_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { ZB_SHA256_TEXT_BYTES = 65 };

typedef struct zb_sha256 {
    uint32_t state[8];
    uint64_t bytes;          /* taken so far */
    unsigned char block[64]; /* what does not fill a block yet */
} zb_sha256;

void zb_sha256_init(zb_sha256 *sha);
void zb_sha256_add(zb_sha256 *sha, const void *data, size_t bytes);
/* 64 lower-case hexadecimal digits. Nothing can be added afterwards. */
void zb_sha256_finish(zb_sha256 *sha, char text[ZB_SHA256_TEXT_BYTES]);

#endif
