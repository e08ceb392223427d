/* `tandem compare`: how far a prediction is from a measurement, and through what. */
#include "cli/cli.h"
#include "traces/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- words and numbers of a table ---- */

/* `-2.7 %`, `-` where there is nothing to compare with; 0 has no sign. */
static const char *percent(double x, char *text, size_t size)
{
    if (!isfinite(x))
        snprintf(text, size, "-");
    else
        snprintf(text, size, x == 0 ? "%.1f %%" : "%+.1f %%", 100 * x);
    return text;
}

static const char *noise(double x, char *text, size_t size)
{
    if (!isfinite(x))
        snprintf(text, size, "-");
    else
        snprintf(text, size, "± %.1f %%", 100 * x);
    return text;
}

/* Pads to the right or left by characters, not bytes: µ and ± have two. */
static void cell(const char *text, int width)
{
    int n = 0;
    for (const char *p = text; *p != '\0'; p++)
        n += ((unsigned char)*p & 0xc0) != 0x80;
    const int pad = abs(width) > n ? abs(width) - n : 0;
    printf("%*s%s%*s", width > 0 ? pad : 0, "", text, width < 0 ? pad : 0, "");
}

static void seconds_cell(double s, int width)
{
    char text[32];
    cell(s == 0 ? "0" : td_compare_seconds(s, text, sizeof text), width);
}

/* predicted, measured, error, noise */
static void pair_cells(const td_pair *p)
{
    char text[32];
    seconds_cell(p->s[TD_PREDICTED], 11);
    seconds_cell(p->s[TD_MEASURED], 11);
    cell(percent(p->rel_error, text, sizeof text), 10);
    cell(noise(p->noise, text, sizeof text), 11);
}

static const char *const pair_titles = "  predicted   measured     error      noise";

/* ---- tables ---- */

static void print_kinds(const td_comparison *c)
{
    char text[32];
    printf("\n%-20s %6s%s%9s%9s%13s%13s\n", "op", "count", pair_titles, "p50", "p95", "pred. wait",
           "meas. wait");
    for (int32_t i = 0; i < c->n_kinds; i++) {
        const td_compare_kind *k = &c->kinds[i];
        printf("%-20s %6d", k->kind, (int)k->count);
        pair_cells(&k->work);
        snprintf(text, sizeof text, isfinite(k->p50) ? "%.1f %%" : "-", 100 * k->p50);
        cell(text, 9);
        snprintf(text, sizeof text, isfinite(k->p95) ? "%.1f %%" : "-", 100 * k->p95);
        cell(text, 9);
        seconds_cell(k->wait_s[TD_PREDICTED], 13);
        seconds_cell(k->wait_s[TD_MEASURED], 13);
        printf("\n");
    }
    printf(
        "times summed over the ranks, of a step; p50, p95 of the ops' |error|; waits are for the "
        "other members\n");
}

static void print_parts(const td_comparison *c)
{
    if (c->n_parts == 0)
        return;
    printf("\n%-13s %-13s %6s%s\n", "part", "module", "count", pair_titles);
    for (int32_t i = 0; i < c->n_parts; i++) {
        printf("%-13.13s %-13.13s %6lld", c->parts[i].kind, c->parts[i].module,
               (long long)c->parts[i].count);
        pair_cells(&c->parts[i].work);
        printf("\n");
    }
}

static void print_causes(const td_comparison *c)
{
    printf("\n%-34s  predicted   measured  difference\n", "the compute lane stands still for");
    for (int i = 0; i < TD_N_CAUSES; i++) {
        const double p = c->still_s[TD_PREDICTED][i], m = c->still_s[TD_MEASURED][i];
        if (p == 0 && m == 0)
            continue;
        printf("  %-32s", td_cause_words[i]);
        seconds_cell(p, 11);
        seconds_cell(m, 11);
        seconds_cell(m - p, 12);
        printf("\n");
    }
    printf("mean over the ranks, of the median step; nothing at all runs in %.1f %% of it "
           "(predicted %.1f %%)\n",
           100 * c->bubble_fraction[TD_MEASURED], 100 * c->bubble_fraction[TD_PREDICTED]);
}

static void share_cells(const td_pair *p, const td_comparison *c)
{
    char text[48];
    snprintf(text, sizeof text, "%.1f|%.1f %%", 100 * p->s[TD_PREDICTED] / c->step.s[TD_PREDICTED],
             100 * p->s[TD_MEASURED] / c->step.s[TD_MEASURED]);
    cell(text, 16);
}

static void print_ranks(const td_comparison *c)
{
    enum { MOST = 32 };
    printf("\n%-6s %-16s%16s%16s%16s%16s%12s%11s\n", "rank", "stage", "busy p|m", "collective p|m",
           "transfer p|m", "bubble p|m", "busy error", "noise");
    for (int32_t i = 0; i < c->n_ranks && i < MOST; i++) {
        const td_compare_rank *r = &c->ranks[i];
        char stage[64] = "idle", text[32];
        if (r->stage >= 0)
            snprintf(stage, sizeof stage, "%.12s %d", r->module, (int)r->stage);
        printf("%-6d %-16s", (int)r->rank, stage);
        share_cells(&r->busy, c);
        share_cells(&r->collective, c);
        share_cells(&r->transfer, c);
        share_cells(&r->bubble, c);
        cell(percent(r->busy.rel_error, text, sizeof text), 12);
        cell(noise(r->busy.noise, text, sizeof text), 11);
        printf("\n");
    }
    if (c->n_ranks > MOST)
        printf("... %d more; --json has every rank\n", (int)c->n_ranks - MOST);
}

static void print_microbatches(const td_comparison *c)
{
    enum { MOST = 8 };
    if (c->n_mbs == 0)
        return;
    printf("\nmicrobatch   forward error      noise  backward error      noise\n");
    for (int32_t i = 0; i < c->n_mbs && i < MOST; i++) {
        const td_compare_mb *m = &c->mbs[i];
        char text[32];
        printf("%10d", (int)m->mb);
        cell(percent(m->forward.rel_error, text, sizeof text), 16);
        cell(noise(m->forward.noise, text, sizeof text), 11);
        cell(percent(m->backward.rel_error, text, sizeof text), 16);
        cell(noise(m->backward.noise, text, sizeof text), 11);
        printf("\n");
    }
    if (c->n_mbs > MOST)
        printf("... %d more; --json has them\n", (int)c->n_mbs - MOST);
}

static void print_path(const td_comparison *c)
{
    enum { MOST = 10 };
    printf("\n%-58s  predicted   measured  difference\n", "on the critical path");
    for (int32_t i = 0; i < c->n_items && i < MOST; i++) {
        const td_compare_item *k = &c->items[i];
        printf("  ");
        cell(k->what, -56);
        seconds_cell(k->path_s[TD_PREDICTED], 11);
        seconds_cell(k->path_s[TD_MEASURED], 11);
        seconds_cell(k->path_s[TD_MEASURED] - k->path_s[TD_PREDICTED], 12);
        printf("\n");
    }
    const td_compare_path *p = &c->path[TD_PREDICTED], *m = &c->path[TD_MEASURED];
    if (c->n_common < p->n_ops && c->n_common < m->n_ops)
        printf(
            "the paths part %d ops before the end: predicted by op %d of rank %d, measured by op "
            "%d of rank %d\n",
            (int)c->n_common, (int)p->ops[c->n_common].op, (int)p->ops[c->n_common].rank,
            (int)m->ops[c->n_common].op, (int)m->ops[c->n_common].rank);
    else
        printf("both paths go through the same ops\n");
}

static void print_memory(const td_comparison *c)
{
    enum { MOST = 32 };
    if (c->memory[TD_PREDICTED] == NULL || c->memory[TD_MEASURED] == NULL)
        return;
    printf("\nrank   predicted peak   measured peak\n");
    for (int32_t r = 0; r < c->n_ranks && r < MOST; r++) {
        char text[2][32] = {"-", "-"};
        for (int side = 0; side < TD_N_SIDES; side++)
            if (c->memory[side][r] >= 0)
                td_text_bytes(c->memory[side][r], text[side], sizeof text[side]);
        printf("%-6d %14s  %14s\n", (int)r, text[TD_PREDICTED], text[TD_MEASURED]);
    }
}

static void print_worst(const td_comparison *c)
{
    if (c->n_worst == 0)
        return;
    printf("\n%-5s %-5s %-12s %-26s%s\n", "rank", "op", "module", "furthest off", pair_titles);
    for (int32_t i = 0; i < c->n_worst; i++) {
        const td_compare_op *w = &c->worst[i];
        printf("%-5d %-5d %-12.12s %-26.26s", (int)w->rank, (int)w->op, w->module, w->name);
        pair_cells(&w->work);
        printf("\n");
    }
}

static void print_versions(const td_comparison *c)
{
    for (int32_t i = 0; i < c->n_versions; i++)
        printf(
            "The prediction's profile was measured with %s %s, this run with %s: its times may not "
            "hold here.\n",
            c->versions[i].what, c->versions[i].profile, c->versions[i].measured);
}

static void print_text(const td_comparison *c)
{
    char low[32], high[32];
    printf("%s.\n", c->text);
    printf("%s the tolerance of %g %%", c->ok ? "Within" : "NOT within", 100 * c->tolerance);
    if (c->n_steps[TD_MEASURED] > 1)
        printf("; the median of %d measured steps lies between %s and %s (90 %%)",
               (int)c->n_steps[TD_MEASURED], td_compare_seconds(c->step_low_s, low, sizeof low),
               td_compare_seconds(c->step_high_s, high, sizeof high));
    else
        printf("; one measured step says nothing about noise");
    printf(".\n");
    print_versions(c);
    print_path(c);
    print_kinds(c);
    print_parts(c);
    print_causes(c);
    print_ranks(c);
    print_microbatches(c);
    print_memory(c);
    print_worst(c);
}

static td_status read_tolerance(const char *text, double *out, td_err *err)
{
    char *end = NULL;
    *out = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(*out) || *out < 0)
        return td_fail(err, TD_USAGE, "--tolerance %s: expected a share from 0 on, like 0.05",
                       text);
    return TD_OK;
}

static int run(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    td_arena *a = td_arena_new();
    const td_comparison *c;
    const char *predicted = NULL, *measured = NULL, *tolerance = "0.05", *html = NULL;
    double share;
    bool json = false, helped;
    const td_option options[] = {
        {NULL, "PREDICTED", "a trace that `tandem predict -o` wrote", NULL, &predicted, true},
        {NULL, "MEASURED", "a trace of the same program that `tandem run -o` wrote", NULL,
         &measured, true},
        {"--tolerance", "SHARE", "exit 1 if the step is further off than this (0.05)", NULL,
         &tolerance, false},
        {"--json", NULL, "one JSON object", &json, NULL, false},
        {"--html", "FILE", "write a page with both timelines, that needs nothing else", NULL, &html,
         false},
        {0}};
    int code = td_options_read(&td_command_compare, options, argc, argv, &helped);
    if (code != TD_EXIT_DONE || helped)
        goto done;
    if (a == NULL)
        TD_TRY(st, td_fail(&err, TD_NOMEM, "no memory"));
    TD_TRY(st, read_tolerance(tolerance, &share, &err));
    TD_TRY(st, td_compare(a, predicted, measured, share, &c, &err));
    if (html != NULL)
        TD_TRY(st, td_comparison_write_html(c, html, &err));
    if (json)
        TD_TRY(st, td_comparison_print_json(c, stdout, &err));
    else
        print_text(c);
    if (html != NULL)
        fprintf(stderr, "wrote %s: open it in a browser\n", html);
    code = c->ok ? TD_EXIT_DONE : TD_EXIT_NO;
done:
    if (st != TD_OK)
        code = td_exit(st, &err);
    td_arena_free(a);
    return code;
}

const td_command td_command_compare = {
    .name = "compare",
    .usage = "PREDICTED MEASURED [--tolerance 0.05] [--json] [--html F]",
    .summary = "say how far a prediction is from a measurement, op by op, and through what",
    .example = "tandem compare predicted.json measured.json --html why.html",
    .run = run,
};
