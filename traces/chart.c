/* Each column of a row shows the bar that fills most of it; runs of one bar get its microbatch
 * written into them. */
#include "traces/chart.h"
#include "traces/json_pull.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_WIDTH = 100,
    MIN_WIDTH = 60,
    MAX_WIDTH = 1000,
    DEFAULT_ROWS = 32,
    SHARE_COLUMNS = 5
};

typedef struct {
    const char *name, *fill;
    char ascii;
    int even, odd, ink;
    bool computes;
} kind_traits;

static const kind_traits kinds[TD_N_CHART_KINDS] = {
#define X(kind, n, f, a, e, o, i, c)                                                               \
    [TD_CHART_##                                                                                   \
        kind] = {.name = n, .fill = f, .ascii = a, .even = e, .odd = o, .ink = i, .computes = c},
    TD_CHART_MAP(X)
#undef X
};

/* What one column of the row in work shows. */
typedef struct {
    double cover[TD_N_CHART_KINDS]; /* seconds */
    double best[TD_N_CHART_KINDS];  /* the longest stay of one bar, and that bar */
    int64_t bar[TD_N_CHART_KINDS];
} column;

typedef struct {
    FILE *out;
    bool colour, utf8;
    int32_t label_width, n_columns;
    double span_s;
    column *columns;
    int64_t *shown;              /* bar of each column, -1: idle */
    bool seen[TD_N_CHART_KINDS]; /* for the legend */
} canvas;

/* ---- labels ---- */

/* Columns that a text takes; what cannot be shown is drawn as one '?'. */
static int32_t text_columns(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    int32_t n = 0;
    for (; *s != '\0'; n++) {
        const int size = td_utf8_length(s);
        s += size == 0 ? 1 : size;
    }
    return n;
}

static void put_label(const canvas *c, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    int32_t room = c->label_width;
    const bool cut = text_columns(text) > room;
    while (*s != '\0' && room > cut) {
        const int size = td_utf8_length(s);
        const bool shown = size == 1 ? *s >= 0x20 && *s != 0x7f : size > 1 && c->utf8 && *s != 0xc2;
        if (shown)
            fwrite(s, 1, (size_t)size, c->out);
        else
            fputc('?', c->out);
        s += size == 0 ? 1 : size;
        room--;
    }
    if (cut) {
        fputs(c->utf8 ? "…" : "~", c->out);
        room--;
    }
    fprintf(c->out, "%*s ", (int)room, "");
}

/* ---- one row ---- */

/* Adds up what each bar takes of each column that it touches. */
static void cover(canvas *c, const td_chart_row *row)
{
    const double cell_s = c->span_s / c->n_columns;
    for (int32_t i = 0; i < c->n_columns; i++)
        c->columns[i] = (column){{0}, {0}, {0}};
    for (int64_t b = 0; b < row->n_bars; b++) {
        const td_chart_bar *bar = &row->bars[b];
        const double start = fmin(fmax(bar->start_s, 0.0), c->span_s),
                     end = fmin(bar->end_s, c->span_s);
        for (int32_t i = (int32_t)(start / cell_s); i < c->n_columns && i * cell_s < end; i++) {
            column *cell = &c->columns[i];
            const double part = fmin(end, (i + 1) * cell_s) - fmax(start, i * cell_s);
            cell->cover[bar->kind] += part;
            if (part > cell->best[bar->kind]) {
                cell->best[bar->kind] = part;
                cell->bar[bar->kind] = b;
            }
        }
    }
}

/* A column is idle if less than half of it is taken; the tolerance makes ties between rounded times
 * stay ties. */
static int64_t winner(const column *cell, double cell_s)
{
    const double tie = 1e-6 * cell_s;
    double busy = 0;
    int best = 0;
    for (int k = 0; k < TD_N_CHART_KINDS; k++) {
        busy += cell->cover[k];
        if (cell->cover[k] > cell->cover[best] + tie)
            best = k;
    }
    return busy + tie < 0.5 * cell_s || busy <= 0 ? -1 : cell->bar[best];
}

static void put_fill(const canvas *c, const kind_traits *k, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (c->colour)
            fputc(' ', c->out);
        else if (c->utf8)
            fputs(k->fill, c->out);
        else
            fputc(k->ascii, c->out);
    }
}

/* `n` columns of one bar. Without colour one column of fill stays, because it alone tells forward
 * from backward. */
static void put_bar(const canvas *c, const td_chart_bar *bar, bool odd, int32_t n)
{
    const kind_traits *k = &kinds[bar->kind];
    char digits[16] = "";
    int32_t n_digits = 0;
    if (bar->mb >= 0)
        n_digits = (int32_t)snprintf(digits, sizeof digits, "%d", (int)bar->mb);
    if (n_digits + !c->colour > n)
        n_digits = 0;
    const int32_t before = c->colour ? (n - n_digits) / 2 : 0;
    if (c->colour)
        fprintf(c->out, "\x1b[48;5;%d;38;5;%dm", odd ? k->odd : k->even, k->ink);
    put_fill(c, k, before);
    fwrite(digits, 1, (size_t)n_digits, c->out);
    put_fill(c, k, n - n_digits - before);
    if (c->colour)
        fputs("\x1b[0m", c->out);
}

/* Time in which the rank computes; its compute bars do not overlap, as they come from one lane. */
static double computing_s(const canvas *c, const td_chart_row *row)
{
    double sum = 0;
    for (int64_t b = 0; b < row->n_bars; b++)
        if (kinds[row->bars[b].kind].computes)
            sum += fmax(0.0, fmin(row->bars[b].end_s, c->span_s) - fmax(row->bars[b].start_s, 0.0));
    return fmin(sum, c->span_s);
}

static void put_row(canvas *c, const td_chart_row *row)
{
    bool odd = false;
    put_label(c, row->label);
    fputs(c->utf8 ? "│" : "|", c->out);
    cover(c, row);
    for (int32_t i = 0; i < c->n_columns; i++)
        c->shown[i] = winner(&c->columns[i], c->span_s / c->n_columns);
    for (int32_t i = 0, end; i < c->n_columns; i = end) {
        for (end = i + 1; end < c->n_columns && c->shown[end] == c->shown[i];)
            end++;
        if (c->shown[i] < 0) {
            fprintf(c->out, "%*s", (int)(end - i), "");
            continue;
        }
        put_bar(c, &row->bars[c->shown[i]], odd, end - i);
        c->seen[row->bars[c->shown[i]].kind] = true;
        odd = !odd; /* neighbours differ in shade, so that bars without a number are told apart */
    }
    fprintf(c->out, "%s%3.0f%%\n", c->utf8 ? "│" : "|", 100 * computing_s(c, row) / c->span_s);
}

/* ---- axis and legend ---- */

/* The unit in which times are written, from which span on it is used. */
typedef struct {
    const char *name, *ascii;
    double s, from_s;
} unit;

static const unit *choose_unit(double span_s)
{
    static const unit units[] = {{"s", "s", 1, 10},
                                 {"ms", "ms", 1e-3, 1e-3},
                                 {"µs", "us", 1e-6, 1e-6},
                                 {"ns", "ns", 1e-9, 0}};
    const unit *u = units;
    while (span_s < u->from_s)
        u++;
    return u;
}

/* Between ticks: 1, 2 or 5 times a power of ten. */
static double choose_step(double span, int32_t n_columns)
{
    static const double factors[] = {1, 2, 5, 10};
    const double least = span * 10 / n_columns; /* ten columns hold any label */
    const double power = pow(10, floor(log10(least)));
    size_t i = 0;
    while (i < 3 && factors[i] * power < least * (1 - 1e-9))
        i++;
    return factors[i] * power;
}

static int32_t tick_column(const canvas *c, double s)
{
    return (int32_t)(s / c->span_s * c->n_columns + 1e-9);
}

static void put_axis(const canvas *c)
{
    const unit *u = choose_unit(c->span_s);
    const double span = c->span_s / u->s, step = choose_step(span, c->n_columns);
    const int decimals = step < 1 ? (int)ceil(-log10(step) - 1e-9) : 0;
    fprintf(c->out, "%*s %s", (int)c->label_width, "", c->utf8 ? "└" : "+");
    for (int32_t i = 0, tick = 0; i < c->n_columns; i++) {
        const bool here = tick_column(c, tick * step * u->s) == i;
        fputs(here ? (c->utf8 ? "┴" : "+") : (c->utf8 ? "─" : "-"), c->out);
        tick += here;
    }
    fprintf(c->out, "%s\n%*s  ", c->utf8 ? "┘" : "+", (int)c->label_width, "");
    int32_t at = 0;
    for (int32_t tick = 0; tick_column(c, tick * step * u->s) + 8 < c->n_columns; tick++) {
        const int32_t to = tick_column(c, tick * step * u->s);
        at += (int32_t)fprintf(c->out, "%*s%.*f", (int)(to - at), "", decimals, tick * step);
    }
    fprintf(c->out, " %s\n", c->utf8 ? u->name : u->ascii);
}

/* Goes to the next entry of the legend, `n` columns wide, on a new line if it does not fit behind
 * the `*at` taken. */
static void next_entry(const canvas *c, int32_t *at, int32_t n)
{
    enum { GAP = 3 };
    if (*at > 0 && *at + GAP + n <= c->n_columns + SHARE_COLUMNS) {
        fprintf(c->out, "%*s", GAP, "");
        *at += GAP + n;
    } else {
        fprintf(c->out, "%s%*s  ", *at == 0 ? "" : "\n", (int)c->label_width, "");
        *at = n;
    }
}

static void put_legend(const canvas *c, int32_t shown, int32_t n_rows)
{
    static const char share[] = "%: time spent computing";
    int32_t at = 0;
    for (int k = 0; k < TD_N_CHART_KINDS; k++) {
        if (!c->seen[k])
            continue;
        next_entry(c, &at, (int32_t)strlen(kinds[k].name) + 3);
        put_bar(c, &(td_chart_bar){.kind = (uint8_t)k, .mb = -1}, false, 2);
        fprintf(c->out, " %s", kinds[k].name);
    }
    next_entry(c, &at, (int32_t)sizeof share - 1);
    fprintf(c->out, "%s\n", share);
    if (shown < n_rows)
        fprintf(c->out, "%*s  %d of %d ranks are shown\n", (int)c->label_width, "", (int)shown,
                (int)n_rows);
}

/* ---- the chart ---- */

static td_status check_rows(const td_chart_row *rows, int32_t n_rows, double span_s, td_err *err)
{
    if (!(span_s >= 1e-9 && span_s <= 1e7))
        return td_fail(err, TD_USAGE, "a chart of %g s, expected 1e-9 to 1e7", span_s);
    for (int32_t r = 0; r < n_rows; r++)
        for (int64_t b = 0; b < rows[r].n_bars; b++) {
            const td_chart_bar *bar = &rows[r].bars[b];
            if (!isfinite(bar->start_s) || !isfinite(bar->end_s) || bar->end_s < bar->start_s)
                return td_fail(err, TD_USAGE,
                               "%s: bar %lld runs from %g to %g s, expected finite times in order",
                               rows[r].label, (long long)b, bar->start_s, bar->end_s);
            if (bar->kind >= TD_N_CHART_KINDS)
                return td_fail(err, TD_USAGE, "%s: bar %lld is of kind %d, there are %d kinds",
                               rows[r].label, (long long)b, (int)bar->kind, (int)TD_N_CHART_KINDS);
        }
    return TD_OK;
}

td_status td_chart_print(FILE *out, const td_chart_row *rows, int32_t n_rows, double span_s,
                         const td_chart_options *o, td_err *err)
{
    static const td_chart_options defaults = {0};
    td_status st = TD_OK;
    canvas c = {.out = out, .span_s = span_s};
    o = o == NULL ? &defaults : o;
    const int32_t width = o->width == 0 ? DEFAULT_WIDTH : o->width;
    const int32_t max_rows = o->max_rows == 0 ? DEFAULT_ROWS : o->max_rows;
    const int32_t shown = n_rows < max_rows ? n_rows : max_rows;
    if (width < MIN_WIDTH || width > MAX_WIDTH || max_rows < 1)
        TD_TRY(st, td_fail(err, TD_USAGE,
                           "a chart of %d columns and %d rows, expected %d to %d columns and a row",
                           (int)width, (int)max_rows, MIN_WIDTH, MAX_WIDTH));
    TD_TRY(st, check_rows(rows, n_rows, span_s, err));
    c.colour = o->colour;
    c.utf8 = o->utf8;
    for (int32_t i = 0; i < n_rows; i++) {
        const int32_t n = text_columns(rows[i].label);
        c.label_width = n > c.label_width ? n : c.label_width;
    }
    c.label_width = c.label_width > width / 3 ? width / 3 : c.label_width;
    c.n_columns = width - c.label_width - 2 - SHARE_COLUMNS;
    c.columns = calloc((size_t)c.n_columns, sizeof *c.columns);
    c.shown = calloc((size_t)c.n_columns, sizeof *c.shown);
    if (c.columns == NULL || c.shown == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a chart of %d columns", (int)width));
    for (int32_t i = 0; i < shown; i++) /* the first and the last rank are always among a sample */
        put_row(&c, &rows[shown == n_rows ? i
                                          : (int32_t)((int64_t)i * (n_rows - 1) /
                                                      (shown > 1 ? shown - 1 : 1))]);
    put_axis(&c);
    put_legend(&c, shown, n_rows);
    if (ferror(out))
        TD_TRY(st, td_fail(err, TD_FILE, "cannot write the chart"));
done:
    free(c.columns);
    free(c.shown);
    return st;
}
