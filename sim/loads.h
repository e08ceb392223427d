/*
 * What the flows in the air ask of every link: the sum of their lone rates. Kept in integers (1/256
 * byte/s), so that it is exactly zero when nothing flows and does not depend on the order of
 * events. A link is over-subscribed when two or more flows ask for more than it carries.
 *
 * In a folded run alike links are one entry and alike edges of a communicator class one *strand*:
 * every link of an entry is crossed by the same number of flows of each strand, and every flow of a
 * strand crosses the same entries. What the strands do therefore says exactly what every link of
 * the cluster carries, and, max-min fair shares being unique, alike flows get alike shares.
 * Unfolded, entries are links and strands are edges.
 */
#ifndef TANDEM_SIM_LOADS_H
#define TANDEM_SIM_LOADS_H

#include "sim/fold.h"
#include "sim/topology.h"

typedef struct {
    int64_t load, peak, room; /* room: capacity, with one part in 10^9 to spare */
    int64_t n_flows;
    bool hot; /* stands in the list of hot links */
} td_link_load;

typedef struct td_loads {
    const td_program *program;
    const td_topology *topo;
    const td_fold *fold; /* NULL: entries are links and communicators are the program's */
    int32_t n_links;
    td_link_load *links;
    int32_t n_hot;
    int32_t *hot; /* links that have been over-subscribed since the list was last emptied */
    /* Folded: strands of communicator class c are [strand_first[c], strand_first[c + 1]). */
    const int32_t *strand_first;
    const int64_t *strand_flows;   /* [strands] flows of the whole program that it stands for */
    const int64_t *crossing_first; /* [strands + 1] entries that a strand crosses ... */
    const struct td_crossing {
        int32_t link, times; /* ... each link of the entry `times` times */
    } * crossings;
    /* Folded: capacities that one flow of each strand sees; false where strands cross an entry
     * unequally often. */
    bool even;
    const double *share; /* [n_links] bytes/s */
} td_loads;

/*
 * `flows` [n_comms of the program]: communicators over which flows go at all. Fails with TD_PLAN if
 * a link that one of them uses carries nothing, TD_NOMEM.
 */
td_status td_loads_build(td_arena *a, const td_program *p, const td_topology *topo,
                         const td_fold *fold, const uint8_t *flows, td_loads *out, td_err *err);

/* Directed edges of a communicator: one for a pair, the ring's for a group, none for one rank. */
int32_t td_comm_edges(const td_comm *c);
void td_comm_edge(const td_comm *c, int32_t edge, int32_t *from, int32_t *to);

/* Strands of a communicator (class, if folded). */
int32_t td_loads_strands(const td_loads *l, int32_t comm);

/* Flows of the program that a strand stands for: 1 unless folded. */
int64_t td_loads_flows(const td_loads *l, int32_t comm, int32_t strand);

/* Links (entries) that a flow of the strand crosses, each once; returns how many. */
int32_t td_loads_path(const td_loads *l, int32_t comm, int32_t strand, int32_t link[TD_MAX_ROUTE]);

/* What a link can give to the strands that cross it, bytes/s. */
double td_loads_capacity(const td_loads *l, int32_t link);

/* All strands of a communicator begin or stop flowing, each flow at `rate` bytes/s. */
void td_loads_add(td_loads *l, int32_t comm, double rate);
void td_loads_remove(td_loads *l, int32_t comm, double rate);

/* One strand stops. */
void td_loads_remove_strand(td_loads *l, int32_t comm, int32_t strand, double rate);

static inline bool td_link_over(const td_link_load *l)
{
    return l->load > l->room && l->n_flows > 1;
}

/* Highest load over capacity that any link has seen; a flow alone on its link counts as at most 1.
 */
double td_loads_peak(const td_loads *l);

#endif
