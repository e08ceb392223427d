/* SHA-256 against published answers; the digest of a program changes with the program alone. */
#include "tests/model/plans.h"

#include "model/program.h"
#include "model/sha256.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdlib.h>
#include <string.h>

/* ---- SHA-256: FIPS 180-4 and the examples of NIST's CSRC ---- */

struct answer {
    char text[128];
    int32_t repeat;
    char hex[65];
};

ParameterizedTestParameters(sha256, gives_the_published_answers)
{
    static struct answer table[] = {
        {"", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrl"
         "mnopqrsmnopqrstnopqrstu",
         1, "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
        {"a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
    };
    return cr_make_param_array(struct answer, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct answer *x, sha256, gives_the_published_answers)
{
    td_sha256 s;
    char hex[65];
    td_sha256_begin(&s);
    for (int32_t i = 0; i < x->repeat; i++)
        td_sha256_add(&s, x->text, strlen(x->text));
    td_sha256_end(&s, hex);
    cr_assert_str_eq(hex, x->hex);
}

Test(sha256, does_not_care_how_the_bytes_are_cut)
{
    unsigned char bytes[300];
    char whole[65], cut[65];
    td_sha256 s;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7);
    for (size_t size = 0; size <= sizeof bytes; size += 7) {
        td_sha256_begin(&s);
        td_sha256_add(&s, bytes, size);
        td_sha256_end(&s, whole);
        for (size_t step = 1; step < 130; step += 9) {
            td_sha256_begin(&s);
            for (size_t i = 0; i < size; i += step)
                td_sha256_add(&s, bytes + i, size - i < step ? size - i : step);
            td_sha256_end(&s, cut);
            cr_assert_str_eq(cut, whole, "%zu bytes by %zu", size, step);
        }
    }
}

Test(sha256, takes_numbers_as_little_endian_bytes)
{
    static const unsigned char bytes[8] = {8, 7, 6, 5, 4, 3, 2, 1};
    char a[65], b[65];
    td_sha256 s;
    td_sha256_begin(&s);
    td_sha256_add(&s, bytes, 8);
    td_sha256_end(&s, a);
    td_sha256_begin(&s);
    td_sha256_add_u64(&s, UINT64_C(0x0102030405060708));
    td_sha256_end(&s, b);
    cr_assert_str_eq(a, b);
}

/* ---- programs ---- */

static const char *digest_of(td_arena *a, const plan_shape *s)
{
    const td_program *p = NULL;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_lower(a, plan_of(a, s), &p, &err), TD_OK, "%s", err.text);
    cr_assert_eq(strlen(p->digest), 64);
    return p->digest;
}

static const plan_shape base = {.n_encoders = 1,
                                .encoder = {{.tp = 2, .pp = 2, .dp = 2}},
                                .language = {.tp = 2, .pp = 2, .dp = 4},
                                .kv_heads = 4,
                                .scale = 16,
                                .microbatches = 5,
                                .micro_batch = 4};

Test(digest, of_one_plan_is_always_the_same)
{
    td_arena *a = td_arena_new(), *b = td_arena_new();
    (void)TD_NEW(b, char, 12345); /* other addresses */
    for (const plan_shape *s = plan_shapes; s->name != NULL; s++)
        cr_assert_str_eq(digest_of(a, s), digest_of(b, s), "%s", s->name);
    td_arena_free(a);
    td_arena_free(b);
}

Test(digest, differs_between_any_two_layouts)
{
    td_arena *a = td_arena_new();
    const char *digests[128];
    int32_t n = 0;
    for (; plan_shapes[n].name != NULL; n++) {
        cr_assert_lt(n, 128);
        digests[n] = digest_of(a, &plan_shapes[n]);
        for (int32_t i = 0; i < n; i++)
            cr_assert_str_neq(digests[i], digests[n], "%s, %s", plan_shapes[i].name,
                              plan_shapes[n].name);
    }
    td_arena_free(a);
}

Test(digest, changes_with_everything_that_changes_the_step)
{
    td_arena *a = td_arena_new();
    plan_shape changed[24];
    int32_t n = 0;
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++)
        changed[i] = base;
    changed[n++].microbatches = 6;
    changed[n++].micro_batch = 8;
    changed[n++].fp32 = true;
    changed[n++].pp_before_dp = true;
    changed[n++].idle = 1;
    changed[n++].language_first = true;
    changed[n++].scale = 32;
    changed[n++].kv_heads = 8;
    changed[n++].kv_heads = 1;
    changed[n++].encoder[0].frozen = "true";
    changed[n++].encoder[0].frozen = "backbone";
    changed[n++].language.frozen = "true";
    changed[n++].language.stage_layers = "[3, 1]";
    changed[n++].encoder[0].stage_layers = "[3, 1]";
    changed[n++].encoder[0].tp = 1;
    changed[n++].language.dp = 2;
    changed[n++].step = "shape_exchange: false";
    changed[n++].step = "grad_overlap: false";
    changed[n++].step = "sequence_parallel: true";
    changed[n++].step = "recompute: selective";
    changed[n++].step = "recompute: full";
    changed[n++].step = "bucket_elements: 1";
    changed[n++].step = "bucket_policy: reference";
    changed[n++].optimizer = "sharded: false";
    cr_assert_eq(n, (int32_t)(sizeof changed / sizeof *changed));
    const char *digests[sizeof changed / sizeof *changed], *unchanged = digest_of(a, &base);
    for (int32_t i = 0; i < n; i++) {
        digests[i] = digest_of(a, &changed[i]);
        cr_assert_str_neq(digests[i], unchanged, "change %d", (int)i);
        for (int32_t k = 0; k < i; k++)
            cr_assert_str_neq(digests[i], digests[k], "changes %d and %d", (int)i, (int)k);
    }
    td_arena_free(a);
}

static const char *digest_of_text(td_arena *a, const char *head, const char *tail)
{
    const td_program *p = NULL;
    const char *text = td_arena_printf(a,
                                       "%smodules:\n  language: {type: language, layers: 2, "
                                       "hidden: 64, heads: 4, ffn: 64, vocab: 128, "
                                       "seq: 64, parallel: {dp: 2}}\n%s",
                                       head, tail);
    cr_assert_eq(td_lower(a, plan_parse(a, text), &p, NULL), TD_OK);
    return p->digest;
}

Test(digest, does_not_change_with_what_does_not_change_the_step)
{
    static const char *const tails[] = {
        "seed: 7\n", "optimizer: {lr: 0.5, clip_grad: 0, nonfinite: propagate}\n",
        "step: {micro_batch: 1, schedule: 1f1b}\n"};
    td_arena *a = td_arena_new();
    const char *plain = digest_of_text(a, "", "");
    cr_assert_str_eq(digest_of_text(a, "name: another\n", ""), plain);
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++)
        cr_assert_str_eq(digest_of_text(a, "", tails[i]), plain, "%s", tails[i]);
    td_arena_free(a);
}

/* One layer more: the same ops with the same bytes over the wires. */
Test(digest, tells_apart_what_only_compute_tells_apart)
{
    td_arena *a = td_arena_new();
    const plan_shape one = {.language = {.layers = 4}}, other = {.language = {.layers = 5}};
    cr_assert_str_neq(digest_of(a, &one), digest_of(a, &other));
    td_arena_free(a);
}
