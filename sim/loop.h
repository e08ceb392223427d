/*
 * The inside of the event loop, shared by the files that are part of it: loop.c plays events,
 * contend.c hands flows to a back-end, stuck.c explains a standstill. Nothing else includes this.
 *
 * The loop plays *actors*: ranks, or classes of ranks that behave alike. Communicators are the
 * program's, or classes of them, accordingly. What is alive at one instant is small: per actor and
 * lane at most one op.
 */
#ifndef TANDEM_SIM_LOOP_H
#define TANDEM_SIM_LOOP_H

#include "sim/cores.h"
#include "sim/fold.h"
#include "sim/heap.h"
#include "sim/loads.h"
#include "sim/net.h"
#include "sim/tariff.h"

/*
 * Where work stands: work w (in lone seconds) is reached at origin + w * factor. As long as nothing
 * slowed it down, origin is its start and factor is 1, so that its end is exactly start + duration.
 */
typedef struct {
    double origin, factor;
} td_pace;

static inline double td_pace_time(const td_pace *p, double work)
{
    return p->origin + work * p->factor;
}

static inline double td_pace_work(const td_pace *p, double time)
{
    return (time - p->origin) / p->factor;
}

/* From `now` on the work takes `factor` times its lone time. */
static inline void td_pace_change(td_pace *p, double now, double factor)
{
    p->origin = now - td_pace_work(p, now) * factor;
    p->factor = factor;
}

typedef enum {
    TD_X_FREE,
    TD_X_GATHER, /* not everybody has issued it */
    TD_X_TIMER,  /* runs for its lone time, loads nothing */
    TD_X_ALPHA,  /* latency; flows afterwards */
    TD_X_WAIT,   /* waits for a running kernel's blocks to retire */
    TD_X_FLUID,  /* flows */
    TD_X_EAGER,  /* a message under way whose sender does not wait */
    TD_X_ARRIVED /* such a message, not yet received */
} td_x_phase;

/* The ordinal-th exchange of a communicator. */
typedef struct {
    int32_t comm, ordinal, next; /* next in the communicator's list of exchanges, or of free ones */
    int32_t n_arrived;
    uint8_t phase, lane;
    bool dirty;
    uint32_t seq;         /* of its event that counts; 0: none */
    int32_t n_busy;       /* members that compute, while FLUID */
    int32_t n_analytic;   /* strands that flow at their lone rate */
    int32_t n_promoted;   /* strands with the back-end */
    double start, issued; /* issued: when an eager message's receiver was there */
    td_pace pace;
    const td_op_cost *cost;
} td_exchange;

typedef struct {
    const td_script *script;
    const td_tariff *tariff;
    const td_chan *chans;
    uint16_t *n_waits;            /* [n_ops] what an op still waits for */
    double *start, *end;          /* [n_ops]; end < 0: not ended */
    int32_t op[TD_N_LANES];       /* op that has been issued on the lane; -1 */
    int32_t exchange[TD_N_LANES]; /* that it takes part in; -1 */
    td_pace pace;                 /* of the compute op */
    int32_t point;                /* next point of the compute op */
    uint32_t seq;                 /* of its event that counts */
    bool computing, dirty;
} td_actor;

typedef struct {
    int32_t *items;
    size_t n, cap;
} td_list;

struct td_contention;

typedef struct {
    const td_program *program;
    const td_fold *fold;              /* NULL: every rank is an actor */
    td_loads *loads;                  /* NULL: links are infinite */
    const td_cores *cores;            /* NULL: every actor has a core of its own */
    int32_t *n_computing;             /* [nodes] ranks that compute, where they share cores */
    bool overlap;                     /* some transfers and compute slow each other down */
    bool all;                         /* every flow goes to the back-end */
    struct td_contention *contention; /* NULL until there is a back-end */

    int32_t n_actors;
    td_actor *actors;
    int32_t *live; /* [communicators] first exchange of each; -1 */
    td_exchange *exchanges;
    int32_t n_exchanges, cap_exchanges, free_exchange;

    double now;
    td_heap heap;
    uint32_t seq;
    td_list ready; /* pairs (actor, op) that may be issued now */
    td_list dirty_actors, dirty_exchanges;
    td_list fresh; /* exchanges that began to flow at this instant, kept only if `all` */
    bool nomem;
    int64_t n_ops, n_done, n_flows, n_promoted;
    double peak;                /* td_loads_peak() of a run that ended in a child */
    volatile int64_t *progress; /* counts for whoever watches; may be NULL */
} td_loop;

typedef enum {
    TD_LOOP_DRY,       /* nothing more will happen: all is done, or nothing can go on */
    TD_LOOP_CONTENDED, /* a back-end is needed to go on; call again with one */
    TD_LOOP_NOMEM
} td_loop_end;

/* Plays until nothing happens any more. A loop that was stopped by contention goes on where it
 * stood. */
td_loop_end td_loop_run(td_loop *l);

/* Everything at time 0. `start` and `end` of the actors are set; the rest of the loop's memory is
 * taken here. */
td_status td_loop_open(td_loop *l, td_arena *a, const td_script *scripts, const td_tariffs *tariffs,
                       td_err *err);
void td_loop_close(td_loop *l);

/* ---- for contend.c ---- */

/* The members of a communicator (class), one actor each. */
const int32_t *td_loop_members(const td_loop *l, int32_t comm, int32_t *n);

/* The communicator of the program that stands for it. */
const td_comm *td_loop_comm(const td_loop *l, int32_t comm);

/* An exchange whose last flow has ended. */
void td_loop_finish(td_loop *l, int32_t x);

/* Takes the event of its analytic flows away. */
void td_loop_unschedule(td_loop *l, int32_t x);

bool td_list_push(td_list *list, int32_t item);

/* ---- contend.c: flows with a back-end ---- */

/*
 * Runs the loop to its end in this process, with a back-end for the flows that need one. `flows`
 * [n_comms of the program]: bit l: flows go over the communicator on lane l. The loop has loads,
 * and they are even if it is folded. Fails as the back-end does, or with TD_NOMEM.
 */
td_status td_contention_run(td_loop *l, const td_net *net, const uint8_t *flows, td_err *err);

bool td_contention_promote(td_loop *l);          /* at an instant's end; false without memory */
void td_contention_limit(td_loop *l, int32_t x); /* the exchange's factor has changed */
void td_contention_settle(td_loop *l,
                          int32_t x); /* its analytic flows have ended: unload their links */
void td_contention_forget(td_loop *l, int32_t x);  /* the exchange is over */
bool td_contention_busy(const td_loop *l);         /* flows are with the back-end */
bool td_contention_wait(td_loop *l, double until); /* true: flows have ended, `now` is their time */

/* ---- stuck.c ---- */

/* What stands still and why, for a message: judged from the times alone, so that it works on a dead
 * child's as well. */
void td_stuck_text(const td_loop *l, char *text, size_t size);

#endif
