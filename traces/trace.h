/*
 * A trace says when each op of a step program ran: predicted by sim/ or measured by exec/, in the
 * same form. On disk it is Chrome/Perfetto Trace Event JSON (gzip when the name ends in .gz): one
 * process per rank, one thread per lane, complete events (`ph: "X"`, microseconds) whose `args`
 * hold step, op, kind, module, stage, mb, bytes.
 */
#ifndef TANDEM_TRACES_TRACE_H
#define TANDEM_TRACES_TRACE_H

#include "model/program.h"

typedef struct {
    int32_t rank, lane; /* td_lane */
    int32_t step;       /* 0-based */
    int32_t op;         /* index in the rank's stream */
    int32_t part;      /* -1: the op itself; else flattened part index inside op (children, `--trace
                          fine`) */
    int32_t stage, mb; /* -1: none */
    int64_t start_ns, duration_ns;
    uint64_t bytes;
    const char *kind;   /* td_op_table name, or the part class of a child */
    const char *module; /* "" for none */
    const char *name;   /* what the viewer writes on the bar: `F3`, `recv images->language`, ... */
} td_event;

/* Bounds what reading a hostile file can take: pairs in the metadata, bytes of a text. */
enum { TD_TRACE_MAX_EXTRA = 256, TD_TRACE_MAX_TEXT = 4096 };

typedef struct {
    char digest[65];
    const char *backend, *plan, *profile,
        *trust;           /* trust: datasheet, provisional, calibrated, measured */
    const char *version;  /* of tandem */
    double clock_error_s; /* between ranks; 0 for a prediction */
    int32_t world_size, n_steps;
    int32_t n_extra; /* <= TD_TRACE_MAX_EXTRA */
    const char *const
        *extra; /* further key, value pairs (2 * n_extra texts), e.g. library versions */
} td_trace_meta;

/* ---- writing: streams, so that memory does not grow with the trace ---- */

typedef struct td_trace_writer td_trace_writer;

/* Writes to a temporary file beside `path`; the name appears only when td_trace_close() succeeds.
 */
td_status td_trace_create(const char *path, const td_trace_meta *meta, td_trace_writer **out,
                          td_err *err);

/* Names a rank's row (`rank 3: language stage 1`); call once per rank, before its events. */
td_status td_trace_rank(td_trace_writer *w, int32_t rank, const char *label, td_err *err);
td_status td_trace_event(td_trace_writer *w, const td_event *e, td_err *err);

/* Finishes and renames. After a failure of any call, td_trace_abandon() instead removes the
 * temporary file. */
td_status td_trace_close(td_trace_writer *w, td_err *err);
void td_trace_abandon(td_trace_writer *w); /* NULL is fine */

/* ---- reading ---- */

typedef struct {
    td_trace_meta meta;
    int64_t n_events;
    const td_event *events; /* in file order; only `ph: "X"` events that carry args.op */
} td_trace;

/* Called for each event in file order; a status other than TD_OK stops the reading. The event is
 * valid in the call. */
typedef td_status (*td_event_visit)(void *self, const td_event *e, td_err *err);

/*
 * Reads a trace event by event in memory that does not grow with the number of events. `meta` is
 * complete when the call returns (the metadata may stand behind the events). Fails with TD_FILE:
 * not JSON, truncated, not a tandem trace, a number out of range, with byte offset or line.
 */
td_status td_trace_visit(td_arena *a, const char *path, td_trace_meta *meta, td_event_visit visit,
                         void *self, td_err *err);

/* The whole trace in memory. */
td_status td_trace_load(td_arena *a, const char *path, const td_trace **out, td_err *err);

/* The same from memory (plain or gzip): for tests and the fuzzer. */
td_status td_trace_parse(td_arena *a, const void *data, size_t size, const td_trace **out,
                         td_err *err);

/*
 * The laws of a valid trace: times >= 0 and finite; ranks, ops and lanes in range; per rank and
 * lane the parents do not overlap; each (rank, step, op) occurs once; children lie within their
 * parent; no step is missing an op that another step of the rank has. Fails with TD_FILE naming
 * rank, lane and op of the first violation.
 */
td_status td_trace_check(const td_trace *t, td_err *err);

/*
 * Does the trace belong to the program: same digest, every op of every rank present in every step,
 * each on its lane, ops of one lane in stream order, and no op before the end of a dependency
 * (within `slack_ns`)? TD_FILE otherwise.
 */
td_status td_trace_check_program(const td_trace *t, const td_program *p, int64_t slack_ns,
                                 td_err *err);

#endif
