/* The same numbers on every machine, for every slice: known answers, and laws of what is drawn. */
#include "exec/numbers.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MANY = 1000000 };

static const td_numbers some = {.key = {1234, 5678}};

struct block {
    uint32_t key[2], counter[4], expected[4];
};

ParameterizedTestParameters(numbers, philox_gives_the_published_words)
{
    /* Random123 1.14, kat_vectors, philox4x32 with 10 rounds */
    static struct block table[] = {
        {{0, 0}, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0xa4093822, 0x299f31d0},
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    return cr_make_param_array(struct block, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct block *b, numbers, philox_gives_the_published_words)
{
    uint32_t words[4];
    td_philox(b->key, b->counter, words);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(words[i], b->expected[i], "word %d: %08x", i, (unsigned)words[i]);
}

struct hash {
    char text[16];
    uint32_t expected;
};

ParameterizedTestParameters(numbers, names_hash_as_fnv_1a)
{
    /* but for `tokens`: RFC 9923, appendix C */
    static struct hash table[] = {
        {"", 0x811c9dc5}, {"a", 0xe40c292c}, {"foobar", 0xbf9cf968}, {"tokens", 0xfcebc453}};
    return cr_make_param_array(struct hash, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct hash *h, numbers, names_hash_as_fnv_1a)
{
    cr_assert_eq(td_fnv1a(h->text), h->expected, "`%s`: %08x", h->text,
                 (unsigned)td_fnv1a(h->text));
}

Test(numbers, the_key_is_the_seed_and_then_the_name)
{
    const td_numbers n = td_numbers_of(1234, "tokens");
    cr_assert_eq(n.key[0], 1234);
    cr_assert_eq(n.key[1], 0xfcebc453);
}

Test(numbers, uniform_and_normal_numbers_are_the_agreed_ones)
{
    static const double u[] = {0.15416984, 0.810196, 0.89015313};
    static const float z[] = {-0.49794102f, 0.5231111f, 0.6277571f, -0.02866322f, -0.5730288f};
    const td_numbers tokens = td_numbers_of(1234, "tokens"),
                     embed = td_numbers_of(1234, "language.embed.weight");
    for (uint64_t i = 0; i < sizeof u / sizeof *u; i++)
        cr_assert_float_eq(td_numbers_uniform(&tokens, i), u[i], 5e-9);
    for (uint64_t i = 0; i < sizeof z / sizeof *z; i++)
        cr_assert_float_eq(td_numbers_normal(&embed, i), z[i], 5e-8);
}

/* Around the blocks' edges, and where a block's number outgrows its low word (4 * 2^32). */
#define PLACES                                                                                     \
    DataPoints(uint64_t, 0, 1, 2, 3, 4, 1001, 0xfffffffe, UINT64_C(0x3fffffffe),                   \
               UINT64_C(0x400000001), UINT64_C(0x123456789abcdef0))

TheoryDataPoints(numbers, an_element_is_its_word_of_its_block) = {PLACES};
Theory((uint64_t i), numbers, an_element_is_its_word_of_its_block)
{
    const uint32_t counter[4] = {(uint32_t)(i / 4), (uint32_t)(i / 4 >> 32), 0, 0};
    uint32_t words[4];
    td_philox(some.key, counter, words);
    const uint32_t word = words[i % 4];
    cr_assert_eq(td_numbers_word(&some, i), word);
    cr_assert_eq(td_numbers_uniform(&some, i), ((double)word + 0.5) / 4294967296.0);
    cr_assert_eq(td_numbers_sign(&some, i), word % 2 == 0 ? 1 : -1);
}

TheoryDataPoints(numbers, a_filled_range_is_a_slice_of_the_elements) = {
    PLACES, DataPoints(int64_t, 0, 1, 2, 3, 4, 5, 17)};
Theory((uint64_t i0, int64_t count), numbers, a_filled_range_is_a_slice_of_the_elements)
{
    float out[18];
    for (int64_t k = 0; k < 18; k++)
        out[k] = 42;
    td_numbers_fill_normal(&some, i0, count, 1.0, out);
    for (int64_t k = 0; k < count; k++)
        cr_assert_eq(out[k], td_numbers_normal(&some, i0 + (uint64_t)k), "%d", (int)k);
    for (int64_t k = count; k < 18; k++)
        cr_assert_eq(out[k], 42, "wrote behind the end, at %d", (int)k);
}

/* Independent of the order of evaluation: from the uniform numbers, in long double. */
static long double box_muller(uint64_t i)
{
    const long double pi = 3.14159265358979323846264338327950288L;
    const long double radius = sqrtl(-2 * logl((long double)td_numbers_uniform(&some, i & ~1ull)));
    const long double angle = 2 * pi * (long double)td_numbers_uniform(&some, i | 1);
    return radius * (i % 2 == 0 ? cosl(angle) : sinl(angle));
}

Test(numbers, scaled_normals_are_rounded_to_float_only_once)
{
    static float x[100000];
    const int64_t n = sizeof x / sizeof *x;
    const long double sigma = 0.02 / 3;
    int64_t twice = 0;
    td_numbers_fill_normal(&some, 0, n, 0.02 / 3, x);
    for (int64_t k = 0; k < n; k++) {
        /* half a unit in the last place, and 1e-15 for what double loses before */
        const long double z = box_muller((uint64_t)k), exact = z * sigma;
        const long double ulp = fabsl((long double)nextafterf(x[k], INFINITY) - x[k]);
        cr_assert_leq(fabsl(x[k] - exact), 0.5L * ulp + 1e-15L, "element %d", (int)k);
        twice += x[k] != (float)((float)z * (0.02 / 3));
    }
    cr_assert_gt(twice, n / 100); /* the law above would see the second rounding */
}

Test(numbers, uniform_numbers_fill_the_open_unit_interval_evenly)
{
    enum { CELLS = 100 };
    int64_t count[CELLS] = {0};
    double chi2 = 0;
    for (uint64_t i = 0; i < MANY; i++) {
        const double u = td_numbers_uniform(&some, i);
        cr_assert(u > 0 && u < 1);
        count[(int)(u * CELLS)]++;
    }
    for (int c = 0; c < CELLS; c++)
        chi2 += pow((double)count[c] - (double)MANY / CELLS, 2) / ((double)MANY / CELLS);
    cr_assert_float_eq(chi2, CELLS - 1, 4 * sqrt(2.0 * (CELLS - 1))); /* 4 sigma */
}

Test(numbers, normal_numbers_have_the_moments_of_a_normal_distribution)
{
    float *z = malloc(MANY * sizeof *z);
    double sum[5] = {0}, pairs = 0;
    td_numbers_fill_normal(&some, 0, MANY, 1.0, z);
    for (int i = 0; i < MANY; i++)
        for (int power = 1; power <= 4; power++)
            sum[power] += pow(z[i], power);
    for (int i = 1; i < MANY; i++)
        pairs += (double)z[i] * (double)z[i - 1];
    /* means of z^k with standard errors sqrt((E z^2k - (E z^k)^2) / n); 4 sigma */
    cr_assert_float_eq(sum[1] / MANY, 0, 4 * sqrt(1.0 / MANY));
    cr_assert_float_eq(sum[2] / MANY, 1, 4 * sqrt(2.0 / MANY));
    cr_assert_float_eq(sum[3] / MANY, 0, 4 * sqrt(15.0 / MANY));
    cr_assert_float_eq(sum[4] / MANY, 3, 4 * sqrt(96.0 / MANY));
    cr_assert_float_eq(pairs / MANY, 0, 4 * sqrt(1.0 / MANY)); /* neighbours do not correlate */
    free(z);
}

Test(numbers, both_signs_are_equally_frequent)
{
    int64_t sum = 0;
    for (uint64_t i = 0; i < MANY; i++)
        sum += td_numbers_sign(&some, i);
    cr_assert_leq(llabs(sum), 4 * 1000); /* 4 sigma of a sum of MANY signs */
}

Test(numbers, other_seeds_and_other_names_give_other_numbers)
{
    const td_numbers all[] = {td_numbers_of(1, "a"), td_numbers_of(2, "a"), td_numbers_of(1, "b"),
                              td_numbers_of(2, "b")};
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < a; b++)
            cr_assert_neq(td_numbers_word(&all[a], 0), td_numbers_word(&all[b], 0));
}

Test(numbers, ten_million_normals_take_less_than_a_second_of_one_core)
{
    const int64_t n = 10000000;
    float *z = calloc((size_t)n, sizeof *z);
    const clock_t start = clock(); /* of this process: neighbours do not count */
    td_numbers_fill_normal(&some, 0, n, 0.02, z);
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    cr_assert_lt(seconds, 1.0, "%g s", seconds);
    free(z);
}
