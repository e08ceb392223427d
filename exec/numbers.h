/*
 * Random numbers that do not depend on the layout: Philox4x32-10 (Salmon et al., "Parallel random
 * numbers: as easy as 1, 2, 3", SC'11) keyed by (seed, FNV-1a-32 of a name); element i is a fixed
 * word of a fixed block, so a shard of a tensor is a slice of the same numbers.
 */
#ifndef TANDEM_EXEC_NUMBERS_H
#define TANDEM_EXEC_NUMBERS_H

#include <stdint.h>

typedef struct {
    uint32_t key[2];
} td_numbers;

uint32_t td_fnv1a(const char *text);
td_numbers td_numbers_of(uint32_t seed, const char *name);
/* One block: multipliers 0xD2511F53, 0xCD9E8D57, Weyl 0x9E3779B9, 0xBB67AE85. */
void td_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* Word of element i: block counter (i/4 low, i/4 high, 0, 0), word i mod 4. */
uint32_t td_numbers_word(const td_numbers *n, uint64_t i);
/* (word + 0.5) * 2^-32 */
double td_numbers_uniform(const td_numbers *n, uint64_t i);
/* Box-Muller on words (0, 1) and (2, 3); computed in double, rounded to float. */
float td_numbers_normal(const td_numbers *n, uint64_t i);
/* out[k] = normal(i0 + k) * sigma, rounded once; as fast as it can be. */
void td_numbers_fill_normal(const td_numbers *n, uint64_t i0, int64_t count, double sigma,
                            float *out);
/* Rounds to bf16, ties to even, as devices do; NaN stays NaN. `to`: 16 bits each. */
void td_bf16_of(const float *from, int64_t n, void *to);
void td_bf16_widen(const void *from, int64_t n, float *to);
/* +1 if the word of element i is even, else -1. */
int td_numbers_sign(const td_numbers *n, uint64_t i);

#endif
