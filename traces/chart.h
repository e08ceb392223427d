/*
 * A time chart for the terminal: one line per rank, time to the right, so that a schedule and its
 * bubbles are seen at a glance. Bars carry their microbatch where there is room; forward and
 * backward differ in fill as well as in colour.
 */
#ifndef TANDEM_TRACES_CHART_H
#define TANDEM_TRACES_CHART_H

#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* kind, name in the legend, fill in UTF-8 and in ASCII, the two background colours (ANSI 256) of
 * neighbouring bars, ink, whether the time counts as computing */
#define TD_CHART_MAP(X)                                                                            \
    X(FORWARD, "forward", "░", '.', 68, 110, 16, true)                                             \
    X(BACKWARD, "backward", "▓", '=', 71, 114, 16, true)                                           \
    X(COLLECTIVE, "collective", "≈", '~', 139, 182, 16, false)                                     \
    X(TRANSFER, "transfer", "─", '-', 173, 216, 16, false)                                         \
    X(OPTIMIZER, "optimizer", "█", '#', 179, 222, 16, true)

typedef enum {
#define X(kind, name, fill, ascii, even, odd, ink, computes) TD_CHART_##kind,
    TD_CHART_MAP(X)
#undef X
        TD_N_CHART_KINDS
} td_chart_kind;

typedef struct {
    double start_s, end_s;
    uint8_t kind; /* td_chart_kind */
    int32_t mb;   /* -1: none */
} td_chart_bar;

/* Bars in any order; they may overlap: what fills most of a column is drawn, at a tie the kind that
 * comes first above. */
typedef struct {
    const char *label; /* `rank 3 language 1` */
    const td_chart_bar *bars;
    int64_t n_bars;
} td_chart_row;

typedef struct {
    int32_t width;     /* columns of the terminal, 60 to 1000; 0: 100 */
    bool colour, utf8; /* ANSI 256 colours; without utf8 the chart is plain ASCII */
    int32_t max_rows;  /* 0: 32; of more ranks an even sample is shown, and the chart says so */
} td_chart_options;

/*
 * Draws the time from 0 to `span_s` (1e-9 to 1e7); bars beyond are cut. `o` may be NULL. A row ends
 * with the share of the span in which the rank computes. Fails with TD_USAGE on a bar that is not a
 * finite time, with TD_FILE when `out` cannot be written, and with TD_NOMEM.
 */
td_status td_chart_print(FILE *out, const td_chart_row *rows, int32_t n_rows, double span_s,
                         const td_chart_options *o, td_err *err);

#endif
