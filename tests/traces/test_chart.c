/* Laws of the time chart, and two charts as they should look. */
#include "traces/chart.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STAGES = 4, MICRO = 8, N_BARS = 2 * MICRO + 2 };
static const double forward_s = 1e-3, backward_s = 2e-3;

/* The 1F1B step of a pipeline of uniform stages: (m + p - 1)(f + b), then gradients and the
 * optimizer. */
typedef struct {
    td_chart_bar bars[STAGES][N_BARS];
    char labels[STAGES][48];
    td_chart_row rows[STAGES];
    double span_s;
} pipeline;

static void build(pipeline *p)
{
    const double flush_s = (MICRO + STAGES - 1) * (forward_s + backward_s);
    p->span_s = flush_s + 2.5e-3;
    for (int s = 0; s < STAGES; s++) {
        td_chart_bar *bar = p->bars[s];
        for (int j = 0; j < MICRO; j++) {
            /* closed form: warm-up forwards run back to back, later ones directly before the
             * backward they pair with */
            const int ahead = STAGES - 1 - s;
            const double end_b =
                STAGES * forward_s + ahead * backward_s + j * (forward_s + backward_s) + backward_s;
            const double start_f = j <= ahead
                                       ? (s + j) * forward_s
                                       : STAGES * forward_s + ahead * backward_s +
                                             (j - ahead) * (forward_s + backward_s) - forward_s;
            *bar++ = (td_chart_bar){start_f, start_f + forward_s, TD_CHART_FORWARD, j};
            *bar++ = (td_chart_bar){end_b - backward_s, end_b, TD_CHART_BACKWARD, j};
        }
        *bar++ = (td_chart_bar){flush_s, flush_s + 1.5e-3, TD_CHART_COLLECTIVE, -1};
        *bar++ = (td_chart_bar){flush_s + 1.5e-3, flush_s + 2.5e-3, TD_CHART_OPTIMIZER, -1};
        snprintf(p->labels[s], sizeof p->labels[s], "rank %d language %d", s, s);
        p->rows[s] = (td_chart_row){p->labels[s], p->bars[s], N_BARS};
    }
}

/* The chart as text; the caller frees it. */
static char *draw(const td_chart_row *rows, int32_t n_rows, double span_s, td_chart_options o)
{
    char *text = NULL;
    size_t size = 0;
    td_err err = {0};
    FILE *out = open_memstream(&text, &size);
    cr_assert_not_null(out);
    cr_assert_eq(td_chart_print(out, rows, n_rows, span_s, &o, &err), TD_OK, "%s", err.text);
    fclose(out);
    return text;
}

static char *draw_pipeline(td_chart_options o)
{
    pipeline p;
    build(&p);
    return draw(p.rows, STAGES, p.span_s, o);
}

/* The columns of the first row between its frames, without the label. */
static char *draw_row(const td_chart_bar *bars, int64_t n, double span_s, td_chart_options o)
{
    const td_chart_row row = {"r", bars, n};
    char *text = draw(&row, 1, span_s, o);
    char *from = strchr(text, '|') + 1;
    *strchr(from, '|') = '\0';
    memmove(text, from, strlen(from) + 1);
    return text;
}

static int columns(const char *line, size_t n)
{
    int count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)line[i] & 0xc0) != 0x80;
    return count;
}

struct golden {
    char file[64];
    td_chart_options options;
};

ParameterizedTestParameters(chart, looks_as_it_should)
{
    static struct golden table[] = {
        {.file = "chart_1f1b_utf8.txt", .options = {.width = 120, .utf8 = true}},
        {.file = "chart_1f1b_ascii.txt", .options = {0}},
        {.file = "chart_1f1b_colour.txt", .options = {.width = 120, .utf8 = true, .colour = true}},
    };
    return cr_make_param_array(struct golden, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct golden *g, chart, looks_as_it_should)
{
    char path[4096], expected[16384];
    snprintf(path, sizeof path, "%s/tests/golden/%s", TD_SOURCE_DIR, g->file);
    FILE *in = fopen(path, "r");
    cr_assert_not_null(in, "%s", path);
    expected[fread(expected, 1, sizeof expected - 1, in)] = '\0';
    fclose(in);
    char *text = draw_pipeline(g->options);
    cr_assert_str_eq(text, expected, "%s is not\n%s\nbut\n%s", g->file, expected, text);
    free(text);
}

Test(chart, fills_the_width_and_never_more)
{
    for (int32_t width = 60; width <= 240; width++) {
        char *text = draw_pipeline((td_chart_options){.width = width, .utf8 = true});
        int row = 0;
        for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, row++) {
            const int n = columns(line, (size_t)(end - line));
            cr_assert_leq(n, row == STAGES + 2 ? 240 : width, "row %d of %d columns: %d", row,
                          width, n);
            if (row < STAGES)
                cr_assert_eq(n, width, "row %d of %d columns: %d", row, width, n);
        }
        cr_assert_geq(row, STAGES + 3);
        free(text);
    }
}

Test(chart, without_utf8_is_ascii_and_without_colour_has_no_escapes)
{
    pipeline p;
    build(&p);
    p.rows[0].label = "größe \x1b[31m \xff";
    char *text = draw(p.rows, STAGES, p.span_s, (td_chart_options){0});
    for (const char *c = text; *c != '\0'; c++)
        cr_assert(*c == '\n' || (*c >= 0x20 && *c < 0x7f), "byte %d", *c);
    free(text);
    text = draw(p.rows, STAGES, p.span_s, (td_chart_options){.utf8 = true});
    cr_assert_null(strchr(text, '\x1b'));
    cr_assert_null(strchr(text, '\xff'));
    cr_assert_not_null(strstr(text, "größe"));
    free(text);
}

Test(chart, every_colour_is_switched_off_again)
{
    char *text = draw_pipeline((td_chart_options){.colour = true, .utf8 = true});
    bool on = false;
    for (const char *c = strchr(text, '\x1b'); c != NULL; c = strchr(c + 1, '\x1b')) {
        const bool off = strncmp(c, "\x1b[0m", 4) == 0;
        cr_assert_eq(on, off);
        on = !off;
    }
    cr_assert_not(on);
    free(text);
}

/* 60 columns less label 1, blank 1, frames 2 and share 4 (less the right frame's) leave 52 cells.
 */
enum { CELLS = 60 - 1 - 2 - 5 };

Test(chart, a_column_shows_the_kind_that_fills_most_of_it)
{
    /* in every cell: 30 % forward, 55 % backward, 15 % idle */
    td_chart_bar bars[2 * CELLS];
    for (int i = 0; i < CELLS; i++) {
        bars[2 * i] = (td_chart_bar){i, i + 0.3, TD_CHART_FORWARD, -1};
        bars[2 * i + 1] = (td_chart_bar){i + 0.3, i + 0.85, TD_CHART_BACKWARD, -1};
    }
    char *text = draw_row(bars, 2 * CELLS, CELLS, (td_chart_options){.width = 60});
    cr_assert_eq(strlen(text), CELLS);
    cr_assert_eq(strspn(text, "="), CELLS, "%s", text);
    free(text);
    for (int i = 0; i < CELLS; i++)
        bars[2 * i + 1].end_s = i + 0.31; /* now 69 % idle */
    text = draw_row(bars, 2 * CELLS, CELLS, (td_chart_options){.width = 60});
    cr_assert_eq(strspn(text, " "), CELLS, "%s", text);
    free(text);
}

Test(chart, does_not_depend_on_the_order_of_the_bars)
{
    pipeline p;
    build(&p);
    char *text = draw(p.rows, STAGES, p.span_s, (td_chart_options){.utf8 = true});
    for (int s = 0; s < STAGES; s++)
        for (int i = 0; i < N_BARS / 2; i++) {
            const td_chart_bar b = p.bars[s][i];
            p.bars[s][i] = p.bars[s][N_BARS - 1 - i];
            p.bars[s][N_BARS - 1 - i] = b;
        }
    char *reversed = draw(p.rows, STAGES, p.span_s, (td_chart_options){.utf8 = true});
    cr_assert_str_eq(text, reversed);
    free(text);
    free(reversed);
}

Test(chart, computing_wins_over_what_runs_behind_it)
{
    const td_chart_bar bars[] = {{0, 10, TD_CHART_TRANSFER, -1}, {0, 10, TD_CHART_BACKWARD, 7}};
    char *text = draw_row(bars, 2, 10, (td_chart_options){.width = 60});
    cr_assert_eq(text[0], '7');
    cr_assert_eq(strspn(text + 1, "="), CELLS - 1, "%s", text);
    free(text);
}

Test(chart, writes_a_number_only_where_fill_is_left_beside_it)
{
    const td_chart_bar bars[] = {{0, 3, TD_CHART_FORWARD, 123}, {3, 7, TD_CHART_BACKWARD, 124}};
    char *text = draw_row(bars, 2, CELLS, (td_chart_options){.width = 60});
    cr_assert_eq(strncmp(text, "...124= ", 8), 0, "%s", text);
    free(text);
}

Test(chart, cuts_bars_that_leave_the_span)
{
    const td_chart_bar bars[] = {{-1e300, 0.5 * CELLS, TD_CHART_FORWARD, -1},
                                 {CELLS - 1, 1e300, TD_CHART_BACKWARD, -1},
                                 {1e200, 1e300, TD_CHART_OPTIMIZER, -1},
                                 {-2, -1, TD_CHART_OPTIMIZER, -1}};
    char *text = draw_row(bars, 4, CELLS, (td_chart_options){.width = 60});
    cr_assert_eq(strspn(text, "."), CELLS / 2, "%s", text);
    cr_assert_eq(text[CELLS - 1], '=');
    cr_assert_null(strchr(text, '#'));
    free(text);
}

Test(chart, ends_a_row_with_its_share_of_computing)
{
    /* F + B of m microbatches and the optimizer's 1 ms in the span of the step */
    char expected[16];
    pipeline p;
    build(&p);
    snprintf(expected, sizeof expected, "|%3.0f%%\n",
             100 * (MICRO * (forward_s + backward_s) + 1e-3) / p.span_s);
    char *text = draw(p.rows, STAGES, p.span_s, (td_chart_options){0});
    int found = 0;
    for (const char *c = text; (c = strstr(c, expected)) != NULL; c++)
        found++;
    cr_assert_eq(found, STAGES, "%s", text);
    free(text);
}

Test(chart, of_many_ranks_shows_a_sample_with_both_ends_and_says_so)
{
    enum { RANKS = 4096 };
    const td_chart_bar bar = {0, 1, TD_CHART_FORWARD, 0};
    static char labels[RANKS][24];
    static td_chart_row rows[RANKS];
    for (int r = 0; r < RANKS; r++) {
        snprintf(labels[r], sizeof labels[r], "rank %d.", r);
        rows[r] = (td_chart_row){labels[r], &bar, 1};
    }
    char *text = draw(rows, RANKS, 1, (td_chart_options){.max_rows = 10});
    int lines = 0;
    for (const char *c = text; *c != '\0'; c++)
        lines += *c == '\n';
    cr_assert_eq(lines, 10 + 4);
    cr_assert_not_null(strstr(text, "rank 0."));
    cr_assert_not_null(strstr(text, "rank 4095."));
    cr_assert_not_null(strstr(text, "10 of 4096 ranks are shown"));
    free(text);
}

Test(chart, cuts_a_long_label_with_a_mark)
{
    char label[200];
    memset(label, 'x', sizeof label - 1);
    label[sizeof label - 1] = '\0';
    const td_chart_row row = {label, NULL, 0};
    char *text = draw(&row, 1, 1, (td_chart_options){.width = 90});
    cr_assert_eq(strspn(text, "x"), 90 / 3 - 1);
    cr_assert_eq(text[90 / 3 - 1], '~');
    cr_assert_eq(strcspn(text, "\n"), 90);
    free(text);
}

struct span {
    double span_s;
    char unit[16];
};

ParameterizedTestParameters(chart, names_the_unit_of_its_axis)
{
    static struct span table[] = {{1e-9, " ns\n"}, {5e-6, " us\n"}, {9e-4, " us\n"},
                                  {1e-3, " ms\n"}, {0.5, " ms\n"},  {9.5, " ms\n"},
                                  {10, " s\n"},    {86400, " s\n"}, {1e7, " s\n"}};
    return cr_make_param_array(struct span, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct span *s, chart, names_the_unit_of_its_axis)
{
    for (int32_t width = 60; width <= 240; width += 20) {
        char *text = draw(NULL, 0, s->span_s, (td_chart_options){.width = width});
        char *labels = strchr(text, '\n') + 1;
        labels[strcspn(labels, "\n") + 1] = '\0';
        cr_assert_not_null(strstr(labels, s->unit), "%s", labels);
        cr_assert_not_null(strchr(labels, '0'), "%s", labels);
        cr_assert_leq(strlen(labels), (size_t)width, "%s", labels);
        free(text);
    }
}

struct refusal {
    double start_s, end_s, span_s;
    int32_t width, kind, max_rows;
};

ParameterizedTestParameters(chart, refuses_what_is_not_a_time)
{
    static struct refusal table[] = {
        {.start_s = NAN, .end_s = 1, .span_s = 1},
        {.end_s = INFINITY, .span_s = 1},
        {.start_s = 2, .end_s = 1, .span_s = 1},
        {.end_s = 1, .span_s = 0},
        {.end_s = 1, .span_s = -1},
        {.end_s = 1, .span_s = NAN},
        {.end_s = 1, .span_s = INFINITY},
        {.end_s = 1, .span_s = 1, .kind = TD_N_CHART_KINDS},
        {.end_s = 1, .span_s = 1, .width = 59},
        {.end_s = 1, .span_s = 1, .width = 1001},
        {.end_s = 1, .span_s = 1, .max_rows = -1},
    };
    return cr_make_param_array(struct refusal, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct refusal *r, chart, refuses_what_is_not_a_time)
{
    const td_chart_bar bar = {r->start_s, r->end_s, (uint8_t)r->kind, 0};
    const td_chart_row row = {"rank 0", &bar, 1};
    const td_chart_options o = {.width = r->width, .max_rows = r->max_rows};
    td_err err = {0};
    cr_assert_eq(td_chart_print(stderr, &row, 1, r->span_s, &o, &err), TD_USAGE);
    cr_assert_neq(err.text[0], '\0');
}

Test(chart, says_when_it_cannot_be_written)
{
    td_err err = {0};
    FILE *out = fopen("/dev/null", "r");
    cr_assert_not_null(out);
    cr_assert_eq(td_chart_print(out, NULL, 0, 1, NULL, &err), TD_FILE);
    fclose(out);
}
