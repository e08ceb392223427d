/*
 * The narrow port between the event loop and whatever decides how flows share links. A back-end
 * owns a process from run() to its end (SimGrid has one engine per process and no reset); the loop
 * runs as its `body`.
 *
 * A flow takes one path, never faster than its own rate; at most one flow is on a path at a time.
 * Flows on one link share it max-min fairly.
 */
#ifndef TANDEM_SIM_NET_H
#define TANDEM_SIM_NET_H

#include "model/status.h"

#include <stdint.h>

enum { TD_NET_MAX_LINKS = 6 };

typedef struct {
    int32_t n;
    int32_t link[TD_NET_MAX_LINKS];
} td_net_path;

typedef struct {
    int32_t n_links, n_paths;
    const double *capacity; /* [n_links] bytes/s; > 0 where a path uses the link */
    const td_net_path *paths;
} td_net_platform;

typedef struct td_net_session td_net_session;

typedef struct td_net {
    const char *name;
    /* Calls body(self, session) once, the clock at 0. Fails with TD_RUN if the body was not run to
     * its end. */
    td_status (*run)(const td_net_platform *platform, void (*body)(void *self, td_net_session *s),
                     void *self, td_err *err);
    /*
     * At `now`, never before a time already named, `bytes` > 0 set out on a path with at most
     * `rate` > 0 bytes/s; no later limit() of this flow will be above `most`.
     */
    void (*start)(td_net_session *s, double now, int32_t path, uint64_t bytes, double rate,
                  double most);
    /* From `now` on the flow on `path` is limited to `rate` > 0 bytes/s. */
    void (*limit)(td_net_session *s, double now, int32_t path, double rate);
    /*
     * Lets time go on to `until` (INFINITY: no limit) or to the end of a flow, whichever comes
     * first: returns the path of the flow and sets `*when`; -1 at `until`. Flows that end together
     * come one by one.
     */
    int32_t (*wait)(td_net_session *s, double until, double *when);
} td_net;

/* In builds with SimGrid. */
extern const td_net td_net_simgrid;

#endif
