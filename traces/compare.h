/*
 * Where a prediction and a measurement of the same step program part. Two traces are joined by
 * (rank, op), never by name, and every number below is derived from them alone, by one definition
 * for both sides.
 *
 * Waiting and working. A rank may issue its half of an exchange long before the others do. An
 * exchange therefore *begins* when the last of its members has issued it; before that an op waits,
 * from then to its end it works. Only the work counts as the op's time; waiting is reported beside
 * it. The two halves of a transfer are found through the peer that their names tell (`send 3 to
 * rank 5`, td_op_name()), the k-th send with the k-th receive; without such names a transfer works
 * all the time. The members of a collective are the ranks of the module's stage (gradients,
 * parameters, broadcasts), of the module (module_norm) or of the world, as far as they issued it
 * before it ended. A send of a shape waits for nobody.
 *
 * Steps. A step lasts from the end of the rank's last op on lane `ctrl` in the step before to the
 * end of that in this one (the first step: from the trace's first start), and as long as on the
 * rank where that is longest. An op's time is the median over the steps examined: all of them, or
 * an even sample of at least three if more would not fit TD_COMPARE_BYTES. What must add up (ranks,
 * bubbles, critical path) is that of the *median step*: the examined one whose time is nearest to
 * the median.
 */
#ifndef TANDEM_TRACES_COMPARE_H
#define TANDEM_TRACES_COMPARE_H

#include "model/version.h"
#include "traces/trace.h"

#include <stdio.h>

enum { TD_COMPARE_BYTES = 256 << 20 }; /* of op times that are kept of one trace */
enum { TD_COMPARE_WORST = 20 };

typedef enum { TD_PREDICTED, TD_MEASURED, TD_N_SIDES } td_side_name;

/*
 * Why the compute lane of a rank stands still. What a gap waited for is told by the compute op that
 * ends it.
 *
 * A gap before a forward or backward waited for the transfer or broadcast that ended last in it
 * (also a send: one call may send and receive); the rest of the gap after that end, or all of it if
 * nothing ended, is `issue`. The cause of the wait is `fill` up to the start of the rank's first
 * backward (without one: of its first forward), `drain` after its last forward, and between them
 * `bridge` if the other end is in another module, else `imbalance` while that was not ready and
 * `transfer` while the message travelled. So a uniform 1F1B pipeline has fill + drain =
 * (p - 1)(f + b) on every rank and no imbalance (Narayanan et al., SC'21).
 *
 * A gap before any other compute op, or after the last, is cut at the ends of the communication
 * that ended in it, each piece being the op's that ended it: gradients and parameters are
 * `data_parallel`; transfers are `drain`; collectives over the world or a module are `optimizer`
 * while they work, and while they wait for their last rank `drain` if they are the first on lane
 * `ctrl`, else `straggler`. What is left before the compute op is `issue` before the first
 * compute op of the step, else `optimizer`.
 */
#define TD_CAUSE_MAP(X)                                                                            \
    X(FILL, "fill", "pipeline fill")                                                               \
    X(DRAIN, "drain", "pipeline drain")                                                            \
    X(IMBALANCE, "imbalance", "waiting for another stage")                                         \
    X(TRANSFER, "transfer", "transfers between stages")                                            \
    X(BRIDGE, "bridge", "bridges between modules")                                                 \
    X(DATA_PARALLEL, "data_parallel", "gradient and parameter exchange")                           \
    X(OPTIMIZER, "optimizer", "optimizer collectives")                                             \
    X(STRAGGLER, "straggler", "waiting for the slowest rank")                                      \
    X(ISSUE, "issue", "launch and host work")

typedef enum {
#define X(cause, name, words) TD_CAUSE_##cause,
    TD_CAUSE_MAP(X)
#undef X
        TD_N_CAUSES
} td_cause;
extern const char *const td_cause_names[TD_N_CAUSES], *const td_cause_words[TD_N_CAUSES];

/* One quantity on both sides. */
typedef struct {
    double s[TD_N_SIDES]; /* seconds */
    double rel_error;     /* (predicted - measured) / measured; 0 if equal, else +-INFINITY where
                             measured is 0 */
    double noise; /* of `measured` between steps, relative: 1.4826 MAD / median; NAN if only one
                     step was examined */
} td_pair;

typedef struct {
    const char *kind;
    int32_t count;             /* ops */
    td_pair work;              /* summed over the ops */
    double wait_s[TD_N_SIDES]; /* likewise */
    double p50, p95;           /* of the ops' |rel_error| */
    int32_t n_instant;         /* ops without p50 and p95: measured as 0, predicted as more */
} td_compare_kind;

/* Class of parts, when both traces have them (`--trace fine`). Seconds a step. */
typedef struct {
    const char *kind, *module;
    int64_t count; /* a step, in the measurement */
    td_pair work;
} td_compare_part;

/* At each instant of the median step the first that applies: a compute op runs, a collective works,
 * a transfer works, nothing does. They add up to the rank's step. */
typedef struct {
    double busy_s, collective_s, transfer_s, bubble_s;
} td_compare_split;

typedef struct {
    int32_t rank, stage; /* stage -1: idle */
    const char *module;  /* "": idle */
    td_compare_split split[TD_N_SIDES];
    td_pair busy, collective, transfer, bubble; /* the same, with errors */
    double still_s[TD_N_SIDES][TD_N_CAUSES];    /* adds up to the step without busy_s */
} td_compare_rank;

typedef struct {
    int32_t mb;
    td_pair forward, backward; /* work summed over the ranks */
} td_compare_mb;

/* A line of the difference of the critical paths: the ops of one kind, of one module or between two
 * of them. */
typedef struct {
    char what[128];
    double path_s[TD_N_SIDES];
    int32_t n_path[TD_N_SIDES];             /* ops on the path */
    double each_s[TD_N_SIDES];              /* mean work of all such ops, on the path or not */
    double beside_forward, beside_backward; /* share of the measured work of communication during
                                               which its rank computes */
    int32_t n_ranks;  /* that have such an op on the measured path (else: the predicted one) */
    int32_t ranks[8]; /* the first of them */
} td_compare_item;

/*
 * The chain of ops that decides how long the median step takes: from the op that ends last, back to
 * the member that issued its exchange last, there to whatever ended last before that, and so on. Of
 * two that end together the one on the same lane, then the later in the stream.
 */
typedef struct {
    double compute_s, collective_s, transfer_s, wait_s; /* add up to the step */
    double kind_s[TD_N_OPS];
    int32_t n_ops;
    const struct td_path_op {
        int32_t rank, op;
        double s; /* that the path spends in it */
    } * ops;      /* last first */
} td_compare_path;

typedef struct {
    int32_t rank, op, stage, mb;
    const char *kind, *module;
    char name[64];
    td_pair work;
    double wait_s[TD_N_SIDES];
} td_compare_op;

typedef struct td_side td_side; /* traces/compare_side.h */

typedef struct {
    const td_side *side[TD_N_SIDES];
    double tolerance;
    bool ok;         /* |step.rel_error| <= tolerance */
    char text[2048]; /* the answer in words, one line */

    /* Where the GPU, or the driver or a library of rank 0, is another than the profile was measured
     * with; none where the traces do not tell. */
    int32_t n_versions;
    struct td_compare_version {
        const char *what, *profile, *measured;
    } versions[TD_N_LIBRARIES + 1];

    td_pair step; /* medians; noise: of the measured steps */
    int32_t n_steps[TD_N_SIDES], n_examined[TD_N_SIDES];
    double step_mad_s;                       /* 1.4826 MAD of the measured steps */
    double step_low_s, step_high_s;          /* 90 % bootstrap interval of their median */
    double bubble_fraction[TD_N_SIDES];      /* bubble_s over all ranks / their steps */
    double still_s[TD_N_SIDES][TD_N_CAUSES]; /* mean over the ranks */

    int32_t n_kinds, n_parts, n_ranks, n_mbs, n_items, n_worst;
    const td_compare_kind *kinds;
    const td_compare_part *parts;
    const td_compare_rank *ranks;
    const td_compare_mb *mbs;
    const td_compare_item *items; /* largest difference first; the differences add up to the median
                                     steps' */
    const td_compare_op *worst;   /* largest |measured - predicted| work first; none that is 0 */

    td_compare_path path[TD_N_SIDES];
    int32_t n_common; /* ops at the end of both paths that are alike (module, stage, kind, mb) */

    /* Peak bytes of a rank, from the metadata `peak_memory_bytes.RANK`; -1: not told. */
    const double *memory[TD_N_SIDES]; /* [world_size]; NULL: the trace tells none */
} td_comparison;

/*
 * Reads both files, each two or three times, in memory that grows with the number of ops, not of
 * events. Everything lives in `a`, the texts of `out` included. Fails with TD_FILE: a file that is
 * not a trace, is cut off or damaged, lacks ops or has them twice, runs backwards (an op that ends
 * before it begins, overlaps another of its lane or its stream's order, a part outside its op), or
 * the two are of different programs.
 */
td_status td_compare(td_arena *a, const char *predicted, const char *measured, double tolerance,
                     const td_comparison **out, td_err *err);

/* One JSON object, as `tandem compare --json` prints it. */
td_status td_comparison_print_json(const td_comparison *c, FILE *out, td_err *err);

/*
 * One self-contained page with both timelines, written to a temporary file that is renamed when it
 * is whole. Of many ranks or ops an even sample is shown, and the page says so.
 */
td_status td_comparison_write_html(const td_comparison *c, const char *path, td_err *err);

/* `12.3 ms`, `456 µs`, also below 0 */
const char *td_compare_seconds(double s, char *text, int size);

#endif
