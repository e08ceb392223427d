/*
 * Where every rank is, told without a message: a board in shared memory with one slot per rank. A
 * rank writes what it is about to do and nothing else (two stores an op), so its slot still says
 * where it was after it has been killed; `tandem run` reads. The board has no name that could be
 * left behind: ranks open it, and the pipes for what they print, through the supervisor's open
 * files in /proc. Ranks on other nodes do not find it and run unwatched.
 */
#ifndef TANDEM_EXEC_WATCH_H
#define TANDEM_EXEC_WATCH_H

#include "model/program.h"
#include "model/status.h"

#include <stdbool.h>

/* phase, where a rank in it is said to be */
#define TD_AT_MAP(X)                                                                               \
    X(NOWHERE, "before it had started")                                                            \
    X(START, "before the first step")                                                              \
    X(STEP, "")                                                                                    \
    X(ANSWER, "after the last step")                                                               \
    X(END, "while it ended")
typedef enum {
#define X(phase, words) TD_AT_##phase,
    TD_AT_MAP(X)
#undef X
        TD_N_AT
} td_at;

typedef struct {
    _Atomic int32_t pid;    /* 0: not there yet */
    _Atomic int32_t phase;  /* td_at */
    _Atomic int32_t failed; /* td_status: the rank gave up by itself, `text` says why */
    _Atomic uint64_t beats; /* grows whenever the rank gets on */
    int64_t step;           /* STEP: counts all steps, warm-up included */
    int32_t index;          /* op of the rank's program, -1 before the first */
    _Atomic int32_t waits;  /* op whose communication it waits for; -1: it does not */
    td_op op;
    int64_t failed_ns; /* CLOCK_MONOTONIC */
    bool everywhere;   /* `text` holds for all ranks */
    char text[1024];
} td_watch_slot;

typedef struct {
    char magic[16];
    int32_t n_ranks, supervisor; /* pid */
    int32_t out_fd, err_fd;      /* of the supervisor: pipes for what the ranks print */
    td_watch_slot slots[];
} td_watch_board;

/* ---- the supervisor ---- */

typedef struct {
    td_watch_board *board;
    size_t bytes;
    int fd;
} td_watch;

td_status td_watch_open(int32_t n_ranks, int out_fd, int err_fd, td_watch *out, td_err *err);
void td_watch_close(td_watch *w);

/* `in step 3, op 17 (F2)` or the words of the phase; written to `text`, which is returned. */
const char *td_watch_where(const td_watch_slot *slot, char *text, int size);

/* ---- a rank ---- */

/*
 * Takes this rank's slot on the board that the supervisor has open as `fd_path` (/proc/PID/fd/N).
 * From then on stdout and stderr go straight to the supervisor, the rank dies with its parent, and
 * SIGTERM is left to the supervisor, so that the launcher's own tidying up does not hide who died
 * first. NULL where there is no such board; the functions below take that as well.
 */
td_watch_slot *td_watch_join(const char *fd_path);

void td_watch_phase(td_watch_slot *slot, td_at phase);
void td_watch_step(td_watch_slot *slot, int64_t step);
void td_watch_op(td_watch_slot *slot, int32_t index, const td_op *op);
void td_watch_wait(td_watch_slot *slot, int32_t index); /* -1: over */
/* False if there is no slot: then nobody has been told. */
bool td_watch_failed(td_watch_slot *slot, td_status st, const td_err *err, bool everywhere);

#endif
