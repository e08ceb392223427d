/* Carries the texts of a checkpoint between ranks, and lets none go on alone. */
#include "exec/host_checkpoint.h"

#include <mpi.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    td_arena *a; /* of this call */
    int rank, world;
} crew;

static td_status open_crew(crew *c, td_err *err)
{
    MPI_Comm_rank(MPI_COMM_WORLD, &c->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &c->world);
    c->a = td_arena_new();
    return c->a == NULL ? td_fail(err, TD_NOMEM, "no memory for a checkpoint") : TD_OK;
}

/* All go on, or all end with the failure of the first rank that has one. */
static td_status agree(const crew *c, td_status own, td_err *err)
{
    td_err told = {.status = own};
    int first = own == TD_OK ? c->world : c->rank;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (first == c->world)
        return TD_OK;
    if (first == c->rank)
        told = *err;
    MPI_Bcast(&told, (int)sizeof told, MPI_BYTE, first, MPI_COMM_WORLD);
    *err = told;
    return told.status;
}

/* Rank 0 gets what every rank wrote down, NULL without memory. */
static const char **collect(const crew *c, const char *own)
{
    const char **all = c->rank == 0 ? TD_NEW(c->a, const char *, c->world) : NULL;
    bool whole = c->rank != 0 || all != NULL;
    if (c->rank != 0)
        MPI_Send(own, (int)strlen(own) + 1, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
    for (int r = 1; r < c->world && c->rank == 0; r++) {
        MPI_Message message;
        MPI_Status status;
        int n = 0;
        MPI_Mprobe(r, 0, MPI_COMM_WORLD, &message, &status);
        MPI_Get_count(&status, MPI_CHAR, &n);
        char *text = TD_NEW(c->a, char, n), spare;
        MPI_Mrecv(text == NULL ? &spare : text, text == NULL ? 0 : n, MPI_CHAR, &message,
                  MPI_STATUS_IGNORE);
        whole = whole && text != NULL;
        if (all != NULL)
            all[r] = text;
    }
    if (all != NULL)
        all[0] = own;
    return whole ? all : NULL;
}

td_status td_host_save(const char *dir, const td_plan *plan, int64_t step,
                       const td_run_state *state, td_err *err)
{
    td_status st = TD_OK;
    crew c = {0};
    char folder[TD_CHECKPOINT_FOLDER] = "";
    const char *record = NULL, **records;
    TD_TRY(st, open_crew(&c, err));
    TD_TRY(st, agree(&c, c.rank == 0 ? td_checkpoint_begin(dir, step, folder, err) : TD_OK, err));
    MPI_Bcast(folder, TD_CHECKPOINT_FOLDER, MPI_CHAR, 0, MPI_COMM_WORLD);
    st = agree(&c, td_checkpoint_write(c.a, dir, folder, c.rank, state, &record, err), err);
    if (st == TD_OK) {
        records = collect(&c, record);
        if (c.rank == 0)
            st = records == NULL
                     ? td_fail(err, TD_NOMEM, "no memory for the checkpoint's records")
                     : td_checkpoint_commit(c.a, dir, folder, plan, step, c.world, records, err);
        st = agree(&c, st, err);
    } else if (c.rank == 0) {
        td_checkpoint_abandon(dir, folder);
    }
done:
    td_arena_free(c.a);
    return st;
}

td_status td_host_load(const char *dir, const td_plan *plan, bool quiet, const td_run_state *state,
                       int64_t *step, td_err *err)
{
    td_status st = TD_OK;
    crew c = {0};
    const td_checkpoint *found;
    TD_TRY(st, open_crew(&c, err));
    TD_TRY(st, agree(&c, td_checkpoint_open(c.a, dir, plan, &found, err), err));
    TD_TRY(st, agree(&c, td_checkpoint_verify(found, c.rank, c.world, err), err));
    TD_TRY(st, agree(&c, td_checkpoint_read(found, state, err), err));
    *step = found->step;
    if (c.rank == 0 && !quiet)
        fprintf(stderr, "%s: goes on at step %lld%s\n", dir, (long long)found->step, found->note);
done:
    td_arena_free(c.a);
    return st;
}
