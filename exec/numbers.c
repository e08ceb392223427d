/* Philox4x32-10 and what is drawn from it: words, uniform and normal numbers, signs. */
#include "exec/numbers.h"

#include <math.h>
#include <string.h>

static const double two_pi = 6.283185307179586476925286766559;

/* FNV-1a, 32 bits: offset basis and prime of Fowler, Noll and Vo (RFC 9923). */
uint32_t td_fnv1a(const char *text)
{
    uint32_t hash = 0x811C9DC5u;
    for (; *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * 0x01000193u;
    return hash;
}

td_numbers td_numbers_of(uint32_t seed, const char *name)
{
    return (td_numbers){.key = {seed, td_fnv1a(name)}};
}

void td_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = UINT64_C(0xD2511F53) * c0, p1 = UINT64_C(0xCD9E8D57) * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static void words_of(const td_numbers *n, uint64_t block, uint32_t words[4])
{
    td_philox(n->key, (const uint32_t[4]){(uint32_t)block, (uint32_t)(block >> 32)}, words);
}

static double uniform(uint32_t word)
{
    return (word + 0.5) * 0x1p-32;
}

/* Box-Muller: two words make two numbers. */
static void normals_of(const td_numbers *n, uint64_t block, double z[4])
{
    uint32_t words[4];
    words_of(n, block, words);
    for (int i = 0; i < 4; i += 2) {
        const double radius = sqrt(-2.0 * log(uniform(words[i])));
        const double angle = two_pi * uniform(words[i + 1]);
        z[i] = radius * cos(angle);
        z[i + 1] = radius * sin(angle);
    }
}

uint32_t td_numbers_word(const td_numbers *n, uint64_t i)
{
    uint32_t words[4];
    words_of(n, i / 4, words);
    return words[i % 4];
}

double td_numbers_uniform(const td_numbers *n, uint64_t i)
{
    return uniform(td_numbers_word(n, i));
}

float td_numbers_normal(const td_numbers *n, uint64_t i)
{
    double z[4];
    normals_of(n, i / 4, z);
    return (float)z[i % 4];
}

void td_numbers_fill_normal(const td_numbers *n, uint64_t i0, int64_t count, double sigma,
                            float *out)
{
    double z[4];
    for (int64_t k = 0; k < count;) { /* blocks, the first and the last perhaps in part */
        const uint64_t i = i0 + (uint64_t)k;
        normals_of(n, i / 4, z);
        for (uint64_t j = i % 4; j < 4 && k < count; j++)
            out[k++] = (float)(z[j] * sigma);
    }
}

int td_numbers_sign(const td_numbers *n, uint64_t i)
{
    return td_numbers_word(n, i) % 2 == 0 ? 1 : -1;
}

void td_bf16_of(const float *from, int64_t n, void *to)
{
    uint16_t *out = to;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        const uint32_t even = bits >> 16 & 1;
        out[i] = from[i] != from[i] ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + even) >> 16);
    }
}

void td_bf16_widen(const void *from, int64_t n, float *to)
{
    const uint16_t *in = from;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)in[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}
