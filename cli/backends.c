/* Joins the halves: which backends this build was given. */
#include "cli/backends.h"

#include <string.h>

const td_backend td_backends[] = {
#ifdef TD_HAVE_SIMGRID
    {"simgrid", "event loop; transfers that share an over-subscribed link go through SimGrid", true,
     TD_FLOWS_SHARED, &td_net_simgrid},
#else
    {"simgrid", "not in this build: install libsimgrid-dev and build again", false, TD_FLOWS_SHARED,
     NULL},
#endif
    {"ideal", "event loop; every transfer has its links to itself", true, TD_FLOWS_IDEAL, NULL},
    {NULL, NULL, false, TD_FLOWS_IDEAL, NULL},
};

td_status td_backend_find(const char *name, const td_backend **out, td_err *err)
{
    for (const td_backend *b = td_backends; b->name != NULL; b++) {
        if (name == NULL ? !b->present : strcmp(name, b->name) != 0)
            continue;
        if (!b->present)
            return td_fail(err, TD_ABSENT, "backend `%s` is %s", b->name, b->summary);
        *out = b;
        return TD_OK;
    }
    return td_fail(err, TD_USAGE,
                   "`%s` does not predict; the predicting backends are simgrid and ideal", name);
}
