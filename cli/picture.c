/* Picks what a chart shows: compute ops, and communication where nothing computes. */
#include "cli/picture.h"
#include "traces/chart.h"

#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ROWS = 32 };

static td_chart_kind kind_of(const td_op *op)
{
    if (op->kind == TD_OP_FORWARD)
        return TD_CHART_FORWARD;
    if (op->kind == TD_OP_BACKWARD)
        return TD_CHART_BACKWARD;
    if (op->lane == TD_LANE_COMPUTE)
        return TD_CHART_OPTIMIZER;
    return op->lane == TD_LANE_FWD || op->lane == TD_LANE_BWD ? TD_CHART_TRANSFER
                                                              : TD_CHART_COLLECTIVE;
}

static td_status row(td_arena *a, const td_prediction *p, int32_t rank, td_chart_row *out,
                     td_err *err)
{
    const td_stream *s = td_program_stream(p->program, rank);
    td_chart_bar *bars = TD_NEW(a, td_chart_bar, s->n_ops);
    int64_t n = 0;
    out->label = s->module < 0
                     ? td_arena_printf(a, "rank %d idle", (int)rank)
                     : td_arena_printf(a, "rank %d %s %d", (int)rank,
                                       p->program->plan->modules[s->module].name, (int)s->pp_rank);
    if (bars == NULL || out->label == NULL)
        return td_fail(err, TD_NOMEM, "no memory for the chart");
    for (int32_t i = 0; i < s->n_ops; i++) {
        const double start = td_timeline_start(p->timeline, rank, i),
                     end = td_timeline_end(p->timeline, rank, i);
        if (end > start)
            bars[n++] = (td_chart_bar){.start_s = start,
                                       .end_s = end,
                                       .kind = (uint8_t)kind_of(&s->ops[i]),
                                       .mb = s->ops[i].mb};
    }
    out->bars = bars;
    out->n_bars = n;
    return TD_OK;
}

static bool speaks_utf8(void)
{
    const char *names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL && value[0] != '\0')
            return strstr(value, "UTF-8") != NULL || strstr(value, "utf8") != NULL ||
                   strstr(value, "UTF8") != NULL;
    }
    return false;
}

/* A dumb terminal shows escapes as text. */
static bool shows_colour(FILE *out)
{
    const char *term = getenv("TERM");
    const bool dumb = term != NULL && strcmp(term, "dumb") == 0;
    return isatty(fileno(out)) != 0 && !dumb && getenv("NO_COLOR") == NULL;
}

/* Columns of the terminal, as the shell knows them. */
static int32_t columns(void)
{
    const char *text = getenv("COLUMNS");
    const long n = text == NULL ? 0 : strtol(text, NULL, 10);
    return n < 60 ? 0 : n > 1000 ? 1000 : (int32_t)n;
}

/*
 * Marks in `begins` [n_streams] the streams whose first rank is the first of its stage: ranks of
 * one stage need not be neighbours, and may play several streams, which are numbered by their first
 * rank.
 */
static void mark_stages(const td_program *p, bool *begins)
{
    for (int32_t i = 0; i < p->n_streams; i++) {
        int32_t first = 0;
        while (p->streams[first].module != p->streams[i].module ||
               p->streams[first].pp_rank != p->streams[i].pp_rank)
            first++;
        begins[i] = first == i;
    }
}

td_status td_picture_print(td_arena *a, FILE *out, const td_prediction *p, int32_t rank,
                           td_err *err)
{
    td_status st = TD_OK;
    const td_chart_options o = {
        .width = columns(), .colour = shows_colour(out), .utf8 = speaks_utf8()};
    const int32_t world = p->program->world_size;
    const bool stages = rank < 0 && world > MAX_ROWS; /* more would not be read */
    int32_t n = 0;
    td_chart_row *rows = TD_NEW(a, td_chart_row,
                                stages     ? p->program->n_streams
                                : rank < 0 ? world
                                           : 1);
    bool *begins = TD_NEW(a, bool, p->program->n_streams);
    if (rows == NULL || begins == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the chart"));
    if (p->step_s <= 0)
        goto done;
    mark_stages(p->program, begins);
    for (int32_t r = 0; r < world; r++) {
        bool *first = &begins[p->program->ranks[r].stream];
        if (rank < 0 ? !stages || *first : r == rank)
            TD_TRY(st, row(a, p, r, &rows[n++], err));
        *first = false;
    }
    if (stages)
        fprintf(out, "the first rank of every stage, of %d ranks\n", (int)world);
    TD_TRY(st, td_chart_print(out, rows, n, p->step_s, &o, err));
done:
    return st;
}
