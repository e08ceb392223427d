/* Profiles: what is read is what was written, and what is wrong is said with its place. */
#include "model/profile.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The same number for each. */
#define COLLECTIVES(x)                                                                             \
    "\"sendrecv\": " x ", \"all_reduce\": " x ", \"reduce_scatter\": " x ", \"all_gather\": " x    \
    ", \"broadcast\": " x ", \"all_to_all\": " x

/* A whole profile but for what `more` adds, one thing a line. */
#define HEAD                                                                                       \
    "{\"format\": \"tandem-profile\", \"version\": 1, \"name\": \"x\",\n"                          \
    "\"gpu\": \"X1\", \"trust\": \"calibrated\", \"source\": \"a test\",\n"                        \
    "\"peak\": {\"bf16_tflop_s\": 100, \"fp32_tflop_s\": 10, \"memory_gb_s\": 1000, "              \
    "\"memory_gb\": 64},\n"                                                                        \
    "\"kernel_gap_us\": 2, \"efficiency\": {\"gemm_fwd\": 0.5, \"gemm_dgrad\": 0.6, "              \
    "\"gemm_wgrad\": 0.45, \"attention_fwd\": 0.4, \"attention_bwd\": 0.3, " COLLECTIVES(          \
        "0.7") ", \"memory\": 0.9}, \"latency_us\": {\"gemm_fwd\": 3, \"gemm_dgrad\": 4, "         \
               "\"gemm_wgrad\": 0, "                                                               \
               "\"attention_fwd\": 5, \"attention_bwd\": 6, " COLLECTIVES("7") "}"

typedef struct {
    td_arena *arena;
    char path[32];
    td_err err;
    td_status status;
    const td_profile *profile;
} loaded;

static loaded load(const char *text)
{
    loaded l = {.arena = td_arena_new(), .path = "/tmp/profile-XXXXXX"};
    const int fd = mkstemp(l.path);
    cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    l.status = td_profile_load(l.arena, l.path, &l.profile, &l.err);
    unlink(l.path);
    return l;
}

Test(profile, values_are_read_in_seconds_bytes_and_flops)
{
    loaded l = load(HEAD ",\n\"gemm\": {\"columns\": [\"m\", \"n\", \"k\", \"fwd_us\", "
                         "\"dgrad_us\", \"wgrad_us\"],\n\"rows\": [[8, 16, 32, 3, null, 5], "
                         "[4, 16, 32, 1, 2, 3]]},\n"
                         "\"overlap\": {\"all_reduce\": {\"wait_us\": 50, \"transfer\": 1.5, "
                         "\"compute\": 1.1}}}");
    cr_assert_eq(l.status, TD_OK, "%s", l.err.text);
    const td_profile *p = l.profile;
    cr_assert_str_eq(p->gpu, "X1");
    cr_assert_eq(p->trust, TD_TRUST_CALIBRATED);
    cr_assert_eq(p->bf16_flops_per_s, 100e12);
    cr_assert_eq(p->memory_bytes, 64e9);
    cr_assert_float_eq(p->kernel_gap_s, 2e-6, 1e-20);
    cr_assert_eq(p->efficiency.gemm[TD_PASS_DGRAD], 0.6);
    cr_assert_eq(p->efficiency.attention[1], 0.3);
    cr_assert_eq(p->efficiency.collective[TD_COLL_ALL_TO_ALL], 0.7);
    cr_assert_eq(p->memory_efficiency, 0.9);
    cr_assert_float_eq(p->latency_s.gemm[TD_PASS_DGRAD], 4e-6, 1e-18);
    cr_assert_float_eq(p->latency_s.attention[1], 6e-6, 1e-18);
    cr_assert_float_eq(p->latency_s.collective[TD_COLL_SENDRECV], 7e-6, 1e-18);
    cr_assert_eq(p->n_gemms, 2);
    cr_assert_eq(p->gemms[0].m, 4, "rows of one weight are sorted by m");
    cr_assert_float_eq(p->gemms[1].s[0], 3e-6, 1e-20);
    cr_assert_lt(p->gemms[1].s[1], 0, "null is not measured");
    cr_assert_float_eq(p->overlap[TD_COLL_ALL_REDUCE].wait_s, 50e-6, 1e-18);
    cr_assert_eq(p->overlap[TD_COLL_SENDRECV].transfer, 1, "not measured: no slow-down");
    td_arena_free(l.arena);
}

Test(profile, curves_are_sorted_and_made_monotone_without_changing_their_mean)
{
    loaded l = load(HEAD ", \"collectives\": {\"broadcast\": {\"ranks\": [2, 3], \"rows\": "
                         "[[64, 9, 1], [8, 5, null], [16, 7, 1], [32, 3, null]]}}}");
    cr_assert_eq(l.status, TD_OK, "%s", l.err.text);
    const td_coll_curve *c = l.profile->collectives[TD_COLL_BROADCAST];
    static const double x[] = {8, 16, 32, 64}, us[] = {5, 5, 5, 9};
    cr_assert_eq(l.profile->n_collectives[TD_COLL_BROADCAST], 2);
    cr_assert_eq(c[0].time.n, 4);
    cr_assert_eq(c[1].time.n, 2, "a null is left out");
    cr_assert_eq(c[1].ranks, 3);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(c[0].time.x[i], x[i]);
        cr_assert_float_eq(c[0].time.y[i], us[i] * 1e-6, 1e-18);
    }
    td_arena_free(l.arena);
}

struct bad {
    char text[400];     /* after HEAD, or the whole file when it does not start with a comma */
    char expected[160]; /* part of the message */
};

ParameterizedTestParameters(profile, what_is_wrong_is_said_with_its_place)
{
    static struct bad table[] = {
        {"", "empty"},
        {"{\"format\": ", ":1:"},
        {"[1, 2]", "expected a mapping"},
        {"{\"format\": \"tandem-profile\"}", "no `version`"},
        {", \"gem\": 1}", ":4:"},
        {", \"gem\": 1}", "did you mean `gemm`?"},
        {", \"gemm\": 1}", "gemm: `1`; expected a mapping"},
        {", \"name\": \"y\"}", "each key once"},
        {", \"duty\": {\"columns\": [\"busy\", \"factor\"], \"rows\": [[0.5, 1], [0.5, 2]]}}",
         "each size once"},
        {", \"duty\": {\"columns\": [\"busy\", \"factor\"], \"rows\": [[0.5, 0.9]]}}",
         "duty: `0.9`; expected a factor from 1 on"},
        {", \"duty\": {\"columns\": [\"busy\", \"factor\"], \"rows\": [[1.5, 1]]}}",
         "duty: `1.5`; expected a share"},
        {", \"duty\": {\"columns\": [\"busy\", \"factr\"], \"rows\": []}}", "expected factor"},
        {", \"duty\": {\"columns\": [\"busy\", \"factor\"], \"rows\": [[1]]}}", "row of 2 values"},
        {", \"memory\": {\"copy\": {\"columns\": [\"bytes\", \"us\"], \"rows\": [[8, nan]]}}}",
         "`nan`; expected a time"},
        {", \"memory\": {\"copy\": {\"columns\": [\"bytes\", \"us\"], \"rows\": [[8, 0x1p3]]}}}",
         "`0x1p3`; expected a time"},
        {", \"memory\": {\"copy\": {\"columns\": [\"bytes\", \"us\"], \"rows\": [[8, 0]]}}}",
         "`0`; expected a time above 0"},
        {", \"memory\": {\"copy\": {\"columns\": [\"bytes\", \"us\"], \"rows\": [[8.5, 1]]}}}",
         "`8.5`; expected a whole number"},
        {", \"memory\": {\"gemm\": {}}}", "expected one of copy, norm"},
        {", \"collectives\": {\"all_reduce\": {\"ranks\": [4, 2], \"rows\": []}}}", "ascending"},
        {", \"collectives\": {\"all_reduce\": {\"ranks\": [1], \"rows\": []}}}", "from 2 on"},
        {", \"collectives\": {\"all_reduce\": {\"ranks\": [], \"rows\": []}}}", "1 to 32"},
        {", \"collectives\": {\"all_reduce\": {\"ranks\": [2], \"rows\": [[8, null]]}}}",
         "at least one time"},
        {", \"gemm\": {\"columns\": [\"m\", \"n\", \"k\", \"fwd_us\", \"dgrad_us\", \"wgrad_us\"], "
         "\"rows\": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]}}",
         "m=1 n=2 k=3 stands there twice"},
    };
    return cr_make_param_array(struct bad, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct bad *b, profile, what_is_wrong_is_said_with_its_place)
{
    char text[2000];
    snprintf(text, sizeof text, "%s%s", b->text[0] == ',' ? HEAD : "", b->text);
    loaded l = load(text);
    cr_assert_eq(l.status, TD_FILE, "%s was accepted", b->text);
    cr_assert_not_null(strstr(l.err.text, b->expected), "%s: `%s` lacks `%s`", b->text, l.err.text,
                       b->expected);
    cr_assert_not_null(strstr(l.err.text, l.path), "no file in `%s`", l.err.text);
    td_arena_free(l.arena);
}

static void check_curve(const td_curve *c, const char *where)
{
    for (int32_t i = 1; i < c->n; i++) {
        cr_assert_gt(c->x[i], c->x[i - 1], "%s", where);
        cr_assert_geq(c->y[i], c->y[i - 1], "%s", where);
    }
}

Test(profile, every_shipped_one_loads_monotone_and_within_its_own_peaks)
{
    td_arena *a = td_arena_new();
    const td_profile *const *list = NULL;
    int32_t n = 0;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_profile_list(a, &n, &list, &err), TD_OK, "%s", err.text);
    cr_assert_geq(n, 4);
    for (int32_t i = 0; i < n; i++) {
        const td_profile *p = list[i];
        check_curve(&p->copy, p->name);
        check_curve(&p->duty, p->name);
        for (int32_t k = 0; k < TD_N_PARTS; k++)
            check_curve(&p->memory[k], p->name);
        for (int32_t c = 0; c < TD_N_COLLS; c++)
            for (int32_t r = 0; r < p->n_collectives[c]; r++)
                check_curve(&p->collectives[c][r].time, p->name);
        for (int32_t k = 0; k < p->copy.n; k++)
            cr_assert_leq(p->copy.x[k] / p->copy.y[k], p->memory_bytes_per_s, "%s", p->name);
        for (int32_t k = 0; k < p->n_gemms; k++) {
            const td_gemm_row *g = &p->gemms[k];
            for (int pass = 0; pass < 3; pass++)
                cr_assert_leq(2.0 * (double)g->m * (double)g->n * (double)g->k / fabs(g->s[pass]),
                              p->bf16_flops_per_s, "%s", p->name);
        }
    }
    td_arena_free(a);
}

Test(profile, the_largest_shipped_one_loads_in_ten_milliseconds)
{
    double best = 1;
    for (int i = 0; i < 5; i++) {
        td_arena *a = td_arena_new();
        const td_profile *p = NULL;
        td_err err = {TD_OK, ""};
        const clock_t start = clock();
        cr_assert_eq(td_profile_find(a, "h200", NULL, NULL, &p, &err), TD_OK, "%s", err.text);
        best = fmin(best, (double)(clock() - start) / CLOCKS_PER_SEC);
        td_arena_free(a);
    }
    cr_assert_lt(best, 0.010, "%g s", best);
}

Test(profile, is_found_by_gpu_by_name_and_by_path_and_else_the_shipped_ones_are_listed)
{
    td_arena *a = td_arena_new();
    const td_profile *p = NULL, *q = NULL;
    td_err err = {TD_OK, ""}, other = {TD_OK, ""};
    cr_assert_eq(td_profile_find(a, NULL, "NVIDIA H200", NULL, &p, &err), TD_OK, "%s", err.text);
    cr_assert_str_eq(p->name, "h200");
    cr_assert_eq(p->trust, TD_TRUST_CALIBRATED);
    const char *cluster = td_arena_printf(a, "%s.d/../../clusters/x.yaml", p->file);
    cr_assert_eq(td_profile_find(a, p->file, NULL, cluster, &q, &err), TD_OK, "%s", err.text);
    cr_assert_str_eq(q->source, p->source);
    cr_assert_eq(td_profile_find(a, "h2000", NULL, NULL, &q, &err), TD_FILE);
    cr_assert_not_null(strstr(err.text, "b200, h100, h200, h200-tables"), "%s", err.text);
    cr_assert_eq(td_profile_find(a, NULL, "Abacus", NULL, &q, &other), TD_FILE);
    cr_assert_not_null(strstr(other.text, "`Abacus`"), "%s", other.text);
    cr_assert_not_null(strstr(other.text, "h200"), "%s", other.text);
    td_arena_free(a);
}

Test(profile, a_relative_path_is_taken_from_the_folder_of_the_file_that_names_it)
{
    char folder[] = "/tmp/profiles-XXXXXX";
    cr_assert_not_null(mkdtemp(folder));
    td_arena *a = td_arena_new();
    const td_profile *p = NULL;
    td_err err = {TD_OK, ""};
    const char *path = td_arena_printf(a, "%s/mine.json", folder);
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    fputs(HEAD "}", file);
    fclose(file);
    const char *plan = td_arena_printf(a, "%s/plan.yaml", folder);
    cr_assert_eq(td_profile_find(a, "./mine.json", NULL, plan, &p, &err), TD_OK, "%s", err.text);
    setenv("TANDEM_PROFILES", folder, 1);
    cr_expect_eq(td_profile_find(a, "mine", NULL, NULL, &p, &err), TD_OK, "%s", err.text);
    cr_expect_eq(td_profile_find(a, NULL, "X1", NULL, &p, &err), TD_OK, "%s", err.text);
    unlink(path);
    rmdir(folder);
    cr_expect_eq(td_profile_find(a, "h200", NULL, NULL, &p, &err), TD_FILE,
                 "TANDEM_PROFILES names what is not there");
    cr_expect_not_null(strstr(err.text, folder), "%s", err.text);
    td_arena_free(a);
}
