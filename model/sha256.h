/* SHA-256 (FIPS 180-4), for digests of programs: two of them are the same exactly when their
 * digests are. */
#ifndef TANDEM_MODEL_SHA256_H
#define TANDEM_MODEL_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t h[8];
    uint64_t bytes;
    unsigned char block[64];
} td_sha256;

void td_sha256_begin(td_sha256 *s);
void td_sha256_add(td_sha256 *s, const void *data, size_t size);
void td_sha256_add_u64(td_sha256 *s, uint64_t v); /* little-endian whatever the machine */
void td_sha256_end(td_sha256 *s, char hex[65]);

#endif
