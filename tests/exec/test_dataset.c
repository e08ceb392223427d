/* A plan's own samples: which are read, how they wrap, and what a bad file is told. */
#include "exec/data.h"
#include "exec/dataset.h"
#include "tests/model/plans.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <criterion/theories.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One encoder, 8 positions of 12 numbers, before a language sequence of 64 tokens below 128. */
enum { SEQ = 64, TEXT = 8, ROWS = 8, DIM = 12, N = 3, VOCAB = 128 };

static char folder[] = "/tmp/tandem-dataset-XXXXXX";
static char paths[2][64];

static void open_folder(void)
{
    cr_assert_not_null(mkdtemp(folder));
}

static void close_folder(void)
{
    for (int i = 0; i < 2; i++)
        if (paths[i][0] != '\0')
            unlink(paths[i]);
    rmdir(folder);
}

TestSuite(dataset, .init = open_folder, .fini = close_folder);

/* Writes a file and gives its path. */
static const char *file_of(int which, const char *name, const void *content, size_t size)
{
    if (paths[which][0] != '\0')
        unlink(paths[which]);
    snprintf(paths[which], sizeof paths[which], "%s/%s", folder, name);
    FILE *f = fopen(paths[which], "wb");
    cr_assert(f != NULL && fwrite(content, 1, size, f) == size && fclose(f) == 0);
    return paths[which];
}

/* The plan with these files; NULL for synthetic. */
static const td_plan *plan_with(td_arena *a, const char *tokens, const char *images)
{
    td_plan *plan = TD_NEW(a, td_plan, 1);
    struct td_data_file *data = TD_NEW(a, struct td_data_file, 2);
    *plan = *plan_of(a, &(plan_shape){.n_encoders = 1});
    cr_assert(plan->modules[0].seq == ROWS && plan->modules[0].input_dim == DIM);
    cr_assert(plan->modules[1].seq == SEQ && plan->modules[1].vocab == VOCAB);
    if (tokens != NULL)
        data[plan->n_data++] = (struct td_data_file){.name = "tokens", .file = tokens};
    if (images != NULL)
        data[plan->n_data++] = (struct td_data_file){.name = "images", .file = images};
    plan->data = data;
    return plan;
}

static td_dataset *dataset_of(td_arena *a, const td_plan *plan)
{
    td_dataset *d = NULL;
    td_err err = {0};
    cr_assert_eq(td_dataset_open(a, plan, &d, &err), TD_OK, "%s", err.text);
    return d;
}

/* Token t of sample n in the files below; far out of the vocabulary under placeholders. */
static int32_t token_of(int64_t n, int32_t t)
{
    return t < TEXT ? 60000 : (int32_t)(n * 31 + t) % VOCAB;
}

static const char *tokens_file(bool wide)
{
    uint32_t wide_ones[N * SEQ];
    uint16_t short_ones[N * SEQ];
    for (int i = 0; i < N * SEQ; i++)
        short_ones[i] = (uint16_t)(wide_ones[i] = (uint32_t)token_of(i / SEQ, i % SEQ));
    return wide ? file_of(0, "text.u32", wide_ones, sizeof wide_ones)
                : file_of(0, "text.u16", short_ones, sizeof short_ones);
}

static float number_of(int64_t i)
{
    return (float)(i % 100 - 50) / 8; /* 7 bits: a bfloat16 holds it */
}

static const char *images_file(bool wide)
{
    float wide_ones[N * ROWS * DIM];
    uint16_t short_ones[N * ROWS * DIM];
    for (int i = 0; i < N * ROWS * DIM; i++) {
        uint32_t word;
        wide_ones[i] = number_of(i);
        memcpy(&word, &wide_ones[i], sizeof word);
        short_ones[i] = (uint16_t)(word >> 16);
    }
    return wide ? file_of(1, "x.y.f32", wide_ones, sizeof wide_ones)
                : file_of(1, "x.y.bf16", short_ones, sizeof short_ones);
}

TheoryDataPoints(dataset, sample_n_is_sample_n_mod_N_of_the_files) = {DataPoints(int, 0, 1),
                                                                      DataPoints(int, 0, 1)};
Theory((int wide_tokens, int wide_images), dataset, sample_n_is_sample_n_mod_N_of_the_files)
{
    td_arena *a = td_arena_new();
    td_dataset *d =
        dataset_of(a, plan_with(a, tokens_file(wide_tokens != 0), images_file(wide_images != 0)));
    int32_t tokens[SEQ], target[SEQ];
    float x[ROWS * DIM];
    cr_assert_eq(td_dataset_samples(d), N);
    cr_assert_eq(td_dataset_check(d, NULL), TD_OK);
    for (int64_t sample = 0; sample < 3 * N; sample++) {
        cr_assert_eq(td_dataset_tokens(d, sample, tokens, target, NULL), TD_OK);
        for (int32_t t = 0; t < SEQ; t++) {
            const bool counts = t >= TEXT && t + 1 < SEQ;
            cr_assert_eq(tokens[t], t < TEXT ? -1 : token_of(sample % N, t));
            cr_assert_eq(target[t], counts ? token_of(sample % N, t + 1) : -1);
        }
        td_dataset_input(d, 0, sample, x);
        for (int64_t i = 0; i < ROWS * DIM; i++)
            cr_assert_eq(x[i], number_of(sample % N * ROWS * DIM + i));
    }
    td_dataset_close(d);
    td_arena_free(a);
}

/* Are both those of this synthetic sample? */
static void synthetic_as(const td_dataset *d, const td_plan *plan, int64_t sample, int64_t as,
                         bool tokens, bool images)
{
    int32_t own[2][SEQ], other[2][SEQ];
    float x[ROWS * DIM], y[ROWS * DIM];
    td_data_tokens(plan, as, own[0], own[1]);
    cr_assert_eq(td_dataset_tokens(d, sample, other[0], other[1], NULL), TD_OK);
    cr_assert_eq(memcmp(own, other, sizeof own) == 0, tokens, "sample %d", (int)sample);
    td_data_input(plan, 0, as, x);
    td_dataset_input(d, 0, sample, y);
    cr_assert_eq(memcmp(x, y, sizeof x) == 0, images, "sample %d", (int)sample);
}

Test(dataset, what_no_file_is_named_for_is_synthetic_and_wraps_with_the_files)
{
    td_arena *a = td_arena_new();
    const td_plan *plans[] = {plan_with(a, NULL, NULL), plan_with(a, tokens_file(false), NULL),
                              plan_with(a, NULL, images_file(true))};
    for (int i = 0; i < 3; i++) {
        td_dataset *d = dataset_of(a, plans[i]);
        for (int64_t sample = 0; sample < 2 * N; sample++)
            synthetic_as(d, plans[i], sample, i == 0 ? sample : sample % N, i != 1, i != 2);
        td_dataset_close(d);
    }
    td_arena_free(a);
}

Test(dataset, a_token_outside_the_vocabulary_is_told_where_it_is_used_and_before)
{
    td_arena *a = td_arena_new();
    uint32_t content[N * SEQ] = {0};
    int32_t tokens[SEQ], target[SEQ];
    td_err err = {0}, before = {0};
    content[SEQ + TEXT] = VOCAB - 1;
    content[2 * SEQ + SEQ - 1] = UINT32_MAX; /* as an int32_t it would pass for a placeholder */
    td_dataset *d = dataset_of(
        a, plan_with(a, file_of(0, "text.u32", content, sizeof content), images_file(true)));
    for (int64_t sample = 0; sample < 2; sample++)
        cr_assert_eq(td_dataset_tokens(d, sample, tokens, target, &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_dataset_tokens(d, N + 2, tokens, target, &err), TD_FILE);
    cr_assert_not_null(strstr(err.text,
                              "text.u32: sample 2, position 63: token 4294967295; expected "
                              "less than 128"),
                       "%s", err.text);
    cr_assert_eq(td_dataset_check(d, &before), TD_FILE);
    cr_assert_str_eq(before.text, err.text);
    td_dataset_close(d);
    td_arena_free(a);
}

/* What is wrong with files of so many bytes. */
struct wrong {
    char tokens[16], images[16];
    size_t tokens_bytes, images_bytes;
    char expected[96];
};

ParameterizedTestParameters(dataset, a_file_that_is_not_what_the_plan_says_is_refused_by_name)
{
    static struct wrong table[] = {
        {"t.u16", "", 0, 0, "t.u16: is empty; expected at least one sample"},
        {"t.u16", "", 130, 0, "t.u16: holds 130 bytes, not a whole number of samples; expected"},
        {"t.u16", "", 64, 0,
         "expected a multiple of 128 (modules.language: seq 64, 2 bytes a token)"},
        {"t.u32", "", 384, 0,
         "expected a multiple of 256 (modules.language: seq 64, 4 bytes a token)"},
        {"", "x.f32", 0, 192,
         "multiple of 384 (modules.images: seq 8, input_dim 12, 4 bytes a number)"},
        {"", "x.bf16", 0, 191,
         "multiple of 192 (modules.images: seq 8, input_dim 12, 2 bytes a number)"},
        {"t.u16", "x.f32", 256, 1152, "x.f32: holds 3 samples, but "},
        {"t.u16", "x.f32", 256, 384, "t.u16 holds 2; expected as many in every file"},
        {"t.f32", "", 256, 0,
         "t.f32: holds no tokens, by the ending of the name; expected .u16 or .u32"},
        {"", "x.u16", 0, 384, "expected .f32 or .bf16"},
        {"", "x", 0, 384, "expected .f32 or .bf16"}};
    return cr_make_param_array(struct wrong, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct wrong *w, dataset,
                  a_file_that_is_not_what_the_plan_says_is_refused_by_name)
{
    static const char zeros[2048];
    td_arena *a = td_arena_new();
    td_dataset *d = NULL;
    td_err err = {0};
    const char *tokens =
        w->tokens[0] == '\0' ? NULL : file_of(0, w->tokens, zeros, w->tokens_bytes);
    const char *images =
        w->images[0] == '\0' ? NULL : file_of(1, w->images, zeros, w->images_bytes);
    cr_assert_eq(td_dataset_open(a, plan_with(a, tokens, images), &d, &err), TD_FILE);
    cr_assert_not_null(strstr(err.text, w->expected), "%s", err.text);
    cr_assert_not_null(strstr(err.text, folder), "%s", err.text);
    cr_assert_null(d);
    td_arena_free(a);
}

Test(dataset, a_file_that_is_not_there_or_not_a_file_is_refused)
{
    td_arena *a = td_arena_new();
    td_dataset *d = NULL;
    td_err missing = {0}, directory = {0};
    char path[64];
    snprintf(path, sizeof path, "%s/none.u16", folder);
    cr_assert_eq(td_dataset_open(a, plan_with(a, path, NULL), &d, &missing), TD_FILE);
    cr_assert_not_null(strstr(missing.text, "none.u16: cannot open the data: No such file"));
    snprintf(path, sizeof path, "%s/d.u16", folder);
    cr_assert_eq(mkdir(path, 0700), 0);
    cr_assert_eq(td_dataset_open(a, plan_with(a, path, NULL), &d, &directory), TD_FILE);
    cr_assert_not_null(strstr(directory.text, "d.u16: is not a regular file"));
    rmdir(path);
    td_arena_free(a);
}
