/*
 * The inside of traces/compare*.c: what is kept of one trace, who exchanges with whom, and the
 * parts of the comparison. An op is addressed by its index in one array over all ranks.
 */
#ifndef TANDEM_TRACES_COMPARE_SIDE_H
#define TANDEM_TRACES_COMPARE_SIDE_H

#include "traces/compare.h"

/* What the program says of an op, as far as a trace tells it. */
typedef struct {
    uint8_t kind, lane;      /* td_op_kind, td_lane */
    int16_t module;          /* index in td_side.modules; -1: none */
    int32_t stage, mb, peer; /* -1: none, or not told */
    uint64_t bytes;
} td_side_op;

typedef struct {
    int64_t start_ns, begin_ns, end_ns; /* begin: when it stops waiting and works */
} td_span;

enum { TD_SIDE_MODULES = TD_MAX_MODULES, TD_SIDE_PARTS = 4096 };

/* Parts of one class in one module. */
typedef struct {
    char kind[32];
    int16_t module;
    int64_t count;
    double s; /* over all steps */
} td_side_part;

struct td_side {
    const char *path;
    td_trace_meta meta;
    int32_t world_size, n_steps, n_rows; /* rows: ranks that have ops */
    int32_t *row;                        /* [world_size]; -1: none */
    int64_t n_ops, n_children;
    int64_t *first; /* [world_size + 1]: where a rank's ops begin */
    int32_t *rank;  /* [n_ops] */
    td_side_op *ops;
    int32_t n_modules;
    const char *modules[TD_SIDE_MODULES];

    int64_t origin_ns; /* first start of the trace */
    int64_t *end_ns;   /* [n_rows][n_steps]: end of a rank's step */
    double *step_s;    /* [n_steps] */
    double step_median_s;

    int32_t n_examined, median; /* examined[median] is the median step */
    int32_t *examined;          /* [n_examined], ascending */
    td_span *spans;             /* [n_examined][n_ops] */

    int32_t n_parts;
    td_side_part *parts;
};

/* Counts: enough to know whether two traces can be compared. Fails as td_compare() does. */
td_status td_side_count(td_arena *a, const char *path, td_side *out, td_err *err);

/* Reads the times of a side that was counted; `begin_ns` is `start_ns` until exchanges are known.
 */
td_status td_side_read(td_arena *a, td_side *s, td_err *err);

static inline const td_span *td_side_step(const td_side *s, int32_t examined)
{
    return s->spans + (int64_t)examined * s->n_ops;
}

/* Where a rank's step begins and ends. */
static inline int64_t td_side_end_ns(const td_side *s, int32_t rank, int32_t step)
{
    return step < 0 ? s->origin_ns : s->end_ns[(int64_t)s->row[rank] * s->n_steps + step];
}

/* `forward 3`, `send 3 to rank 5`; written to text, which is returned. */
const char *td_side_name_op(const td_side *s, int64_t op, char *text, int size);

/* "" for none */
static inline const char *td_side_module(const td_side *s, int16_t module)
{
    return module < 0 ? "" : s->modules[module];
}

/* Sorts `x`. */
double td_median(double *x, int64_t n);
/* 1.4826 * the median distance from the median `of`, which estimates a standard deviation; `x` is
 * overwritten. */
double td_spread(double *x, int64_t n, double of);

/* ---- what both sides share ---- */

typedef struct {
    const td_side *side; /* the program, as the predicted trace tells it */
    int64_t n;           /* exchanges */
    int64_t *first;      /* [n + 1] */
    int64_t *members;    /* ops */
    int64_t *of;         /* [n_ops]: the exchange of an op, -1: none */
    int64_t *lane_first; /* [world_size * TD_N_LANES + 1] */
    int64_t *lane_ops;   /* ops by rank and lane, in stream order */
} td_structure;

td_status td_structure_build(td_arena *a, const td_side *s, td_structure *out, td_err *err);

/* Fills `begin_ns` of all examined steps. */
void td_structure_begin(const td_structure *x, td_side *s);

/* The member that began the exchange of `op` by coming last; `op` itself if it waited for nobody.
 */
int64_t td_structure_last(const td_structure *x, const td_span *spans, int64_t op);

/* Where the time of a rank goes in an examined step, in and out of the compute lane. */
void td_split_of(const td_structure *x, const td_side *s, int32_t rank, int32_t examined,
                 td_compare_split *out);
void td_still_of(const td_structure *x, const td_side *s, int32_t rank, int32_t examined,
                 double out[TD_N_CAUSES]);

/* The critical path of the median step. */
td_status td_path_of(td_arena *a, const td_structure *x, const td_side *s, td_compare_path *out,
                     td_err *err);

/* How two paths differ: c->items and c->n_common, from c->path and the work of every op. */
td_status td_attribute(td_arena *a, const td_structure *x, const double *const work_s[TD_N_SIDES],
                       td_comparison *c, td_err *err);

/* c->versions, from the metadata of both. TD_NOMEM. */
td_status td_compare_versions(td_arena *a, td_comparison *c, td_err *err);

/* c->text, from everything else. */
void td_compare_say(td_comparison *c);

/* The page around the data: it follows head, and tail follows it. */
extern const char *const td_page_head[], *const td_page_tail[]; /* end with NULL */

#endif
