/*
 * SimGrid as the contention back-end, in C only. A path is a host whose route to itself is the
 * path's links with a link of its own before them: SimGrid 3.32 reads such routes from XML in a
 * zone of kind Cluster, so that there is one flat zone whatever the fabric, and the private link's
 * bandwidth is the flow's own limit. Flows are sg_host_sendto() calls of worker actors; the loop
 * runs in an actor as well and waits for them on a semaphore.
 *
 * The network model is plain max-min sharing (CM02, no window limit, no cross traffic, no latency
 * on links: CM02 would share by latency); events less than 1e-12 s apart are one.
 */
#include "sim/net.h"

#include <errno.h>
#include <math.h>
#include <simgrid/actor.h>
#include <simgrid/engine.h>
#include <simgrid/host.h>
#include <simgrid/link.h>
#include <simgrid/semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double precision_s = 1e-12;

/* Carries one flow at a time. */
typedef struct worker {
    td_net_session *session;
    struct worker *next; /* of the idle ones */
    struct worker *older;
    sg_sem_t go;
    int32_t path;
    double bytes;
} worker;

/* Of the flow on a path: none; a worker has been told to send; it does. */
typedef enum { IDLE, WANTED, SENDING } flow_state;

struct td_net_session {
    void (*body)(void *self, td_net_session *s);
    void *self;
    bool over;         /* body has returned */
    sg_host_t *host;   /* [n_paths] */
    sg_link_t *own;    /* [n_paths] */
    double *rate;      /* [n_paths] of the own link */
    flow_state *state; /* [n_paths] */
    worker *idle, *workers;
    sg_sem_t ended; /* counts what stands in `done` */
    int32_t *done;  /* [n_paths] paths whose flow has ended, a ring */
    int32_t n_paths, n_done, next_done;
};

/* ---- platform ---- */

static void write_platform(FILE *f, const td_net_platform *p, const bool *used)
{
    fputs("<?xml version='1.0'?>\n<!DOCTYPE platform SYSTEM \"https://simgrid.org/simgrid.dtd\">\n"
          "<platform version=\"4.1\">\n<zone id=\"z\" routing=\"Cluster\">\n",
          f);
    for (int32_t i = 0; i < p->n_paths; i++)
        fprintf(f,
                "<host id=\"p%d\" speed=\"1f\"/>\n<link id=\"own%d\" bandwidth=\"1Bps\" "
                "latency=\"0s\"/>\n",
                i, i);
    for (int32_t i = 0; i < p->n_links; i++)
        if (used[i])
            fprintf(f, "<link id=\"l%d\" bandwidth=\"%.17gBps\" latency=\"0s\"/>\n", i,
                    p->capacity[i]);
    for (int32_t i = 0; i < p->n_paths; i++) {
        fprintf(f, "<route src=\"p%d\" dst=\"p%d\" symmetrical=\"NO\"><link_ctn id=\"own%d\"/>", i,
                i, i);
        for (int32_t k = 0; k < p->paths[i].n; k++)
            fprintf(f, "<link_ctn id=\"l%d\"/>", p->paths[i].link[k]);
        fputs("</route>\n", f);
    }
    fputs("</zone>\n</platform>\n", f);
}

/* SimGrid takes a platform only as a file. `name` is a template for mkstemp(). */
static td_status load_platform(const td_net_platform *p, char *name, td_err *err)
{
    td_status st = TD_OK;
    FILE *f = NULL;
    bool *used = calloc((size_t)p->n_links + 1, sizeof *used);
    const int fd = mkstemp(name);
    if (fd < 0 || (f = fdopen(fd, "w")) == NULL)
        TD_TRY(st, td_fail(err, TD_RUN, "%s: cannot write the platform for SimGrid: %s", name,
                           strerror(errno)));
    if (used == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d links", p->n_links));
    for (int32_t i = 0; i < p->n_paths; i++)
        for (int32_t k = 0; k < p->paths[i].n; k++)
            used[p->paths[i].link[k]] = true;
    write_platform(f, p, used);
    if (fflush(f) != 0 || ferror(f))
        TD_TRY(st, td_fail(err, TD_RUN, "%s: cannot write the platform for SimGrid: %s", name,
                           strerror(errno)));
    simgrid_load_platform(name);
done:
    if (f != NULL)
        fclose(f);
    if (fd >= 0)
        unlink(name);
    free(used);
    return st;
}

/* ---- actors ---- */

static void carry(int argc, char **argv)
{
    worker *w = sg_actor_self_get_data();
    td_net_session *s = w->session;
    (void)argc;
    (void)argv;
    for (sg_sem_acquire(w->go); !s->over; sg_sem_acquire(w->go)) {
        s->state[w->path] = SENDING;
        sg_host_sendto(s->host[w->path], s->host[w->path], w->bytes);
        s->state[w->path] = IDLE;
        s->done[(s->next_done + s->n_done++) % s->n_paths] = w->path;
        w->next = s->idle;
        s->idle = w;
        sg_sem_release(s->ended);
    }
}

static void drive(int argc, char **argv)
{
    td_net_session *s = sg_actor_self_get_data();
    (void)argc;
    (void)argv;
    s->body(s->self, s);
    s->over = true;
    for (worker *w = s->workers; w != NULL; w = w->older)
        sg_sem_release(w->go);
}

static void spawn(td_net_session *s, const char *name, void (*code)(int, char **), void *data)
{
    sg_actor_t actor = sg_actor_init(name, s->host[0]);
    sg_actor_set_data(actor, data);
    sg_actor_start(actor, code, 0, NULL);
}

/* Workers are made when all others are busy and live as long as the process. */
static worker *idle_worker(td_net_session *s)
{
    worker *w = s->idle;
    if (w != NULL) {
        s->idle = w->next;
        return w;
    }
    w = calloc(1, sizeof *w);
    if (w == NULL)
        abort(); /* a process of its own: its parent reports it */
    w->session = s;
    w->go = sg_sem_init(0);
    w->older = s->workers;
    s->workers = w;
    spawn(s, "flow", carry, w);
    return w;
}

/* ---- the port ---- */

static void set_own(td_net_session *s, int32_t path, double rate)
{
    if (s->rate[path] != rate) {
        s->rate[path] = rate;
        sg_link_set_bandwidth(s->own[path], rate);
    }
}

/*
 * CM02 never lets a flow go faster than its links were when it started, so a flow starts at its
 * most and is held back afterwards.
 */
static void limit(td_net_session *s, double now, int32_t path, double rate)
{
    (void)now; /* the clock is there already: flows are under way */
    if (s->rate[path] == rate)
        return;
    while (s->state[path] == WANTED)
        sg_actor_yield();
    if (s->state[path] == SENDING) { /* else it has just ended */
        sg_actor_yield(); /* by now the call that the worker was about to make has been made */
        set_own(s, path, rate);
    }
}

static void start(td_net_session *s, double now, int32_t path, uint64_t bytes, double rate,
                  double most)
{
    const double behind = now - simgrid_get_clock();
    if (behind > precision_s)
        sg_actor_sleep_for(behind);
    set_own(s, path, most);
    worker *w = idle_worker(s);
    w->path = path;
    w->bytes = (double)bytes;
    s->state[path] = WANTED;
    sg_sem_release(w->go);
    limit(s, now, path, rate);
}

static int32_t wait_end(td_net_session *s, double until, double *when)
{
    const double left = until - simgrid_get_clock();
    bool ended = s->n_done > 0 || isinf(until);
    if (ended)
        sg_sem_acquire(s->ended);
    else if (left > 0)
        ended = sg_sem_acquire_timeout(s->ended, left) == 0;
    if (!ended)
        return -1;
    const int32_t path = s->done[s->next_done];
    s->next_done = (s->next_done + 1) % s->n_paths;
    s->n_done--;
    *when = simgrid_get_clock();
    return path;
}

static td_status look_up(td_net_session *s, td_err *err)
{
    char name[32];
    for (int32_t i = 0; i < s->n_paths; i++) {
        snprintf(name, sizeof name, "p%d", i);
        s->host[i] = sg_host_by_name(name);
        snprintf(name, sizeof name, "own%d", i);
        s->own[i] = sg_link_by_name(name);
        if (s->host[i] == NULL || s->own[i] == NULL)
            return td_fail(err, TD_RUN,
                           "SimGrid does not know path %d of the platform it was given", i);
    }
    return TD_OK;
}

static td_status run(const td_net_platform *platform, void (*body)(void *self, td_net_session *s),
                     void *self, td_err *err)
{
    td_status st = TD_OK;
    char program[] = "tandem", model[] = "--cfg=network/model:CM02",
         gamma[] = "--cfg=network/TCP-gamma:0";
    char cross[] = "--cfg=network/crosstraffic:0", precision[] = "--cfg=surf/precision:1e-12";
    char weight[] = "--cfg=network/weight-S:0";
    char stack[] = "--cfg=contexts/stack-size:256", guard[] = "--cfg=contexts/guard-size:0";
    char log[] = "--log=root.thres:critical", no_loc[] = "--log=no_loc";
    char *argv[] = {program,   log,    no_loc, model, gamma, cross,
                    precision, weight, stack,  guard, NULL};
    int argc = sizeof argv / sizeof *argv - 1;
    const char *tmp = getenv("TMPDIR");
    char name[512];
    const size_t n = (size_t)platform->n_paths;
    td_net_session s = {.body = body, .self = self, .n_paths = platform->n_paths};
    s.host = calloc(n + 1, sizeof *s.host);
    s.own = calloc(n + 1, sizeof *s.own);
    s.rate = calloc(n + 1, sizeof *s.rate);
    s.state = calloc(n + 1, sizeof *s.state);
    s.done = calloc(n + 1, sizeof *s.done);
    if (s.host == NULL || s.own == NULL || s.rate == NULL || s.state == NULL || s.done == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d paths", platform->n_paths));
    if (n == 0)
        TD_TRY(st, td_fail(err, TD_RUN, "a platform without paths has nothing to simulate"));
    if (tmp == NULL || snprintf(name, sizeof name, "%s/tandem-XXXXXX", tmp) >= (int)sizeof name)
        snprintf(name, sizeof name, "/tmp/tandem-XXXXXX");
    simgrid_init(&argc, argv);
    TD_TRY(st, load_platform(platform, name, err));
    TD_TRY(st, look_up(&s, err));
    s.ended = sg_sem_init(0);
    spawn(&s, "loop", drive, &s);
    simgrid_run(); /* returns as if all were well when every actor is stuck */
    if (!s.over)
        TD_TRY(st,
               td_fail(err, TD_RUN, "SimGrid stopped %g s into the step with flows that cannot end",
                       simgrid_get_clock()));
done:
    free(s.host);
    free(s.own);
    free(s.rate);
    free(s.state);
    free(s.done);
    return st;
}

const td_net td_net_simgrid = {
    .name = "SimGrid", .run = run, .start = start, .limit = limit, .wait = wait_end};
