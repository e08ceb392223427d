/* Any bytes are read as a trace or refused with a sentence, and what is read is checked. */
#include "traces/trace.h"

#include <stddef.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Not assert(): the target must also find bugs in a build without it. */
static void demand(bool law)
{
    if (!law)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const td_trace *t = NULL;
    td_err err = {0};
    td_arena *a = td_arena_new();
    demand(a != NULL);
    td_status st = td_trace_parse(a, data, size, &t, &err);
    if (st == TD_OK) {
        for (int64_t i = 0; i < t->n_events; i++)
            demand(t->events[i].kind != NULL && t->events[i].module != NULL &&
                   t->events[i].name != NULL);
        demand(t->meta.digest[0] != '\0' && t->meta.world_size >= 1 && t->meta.n_steps >= 1);
        st = td_trace_check(t, &err);
    }
    demand(st == err.status && (st == TD_OK) == (err.text[0] == '\0'));
    td_arena_free(a);
    return 0;
}
