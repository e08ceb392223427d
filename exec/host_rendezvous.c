/* Where ranks run and what one of them hands to others, through MPI; memory of a machine, through a
 * file without a name. */
#define _GNU_SOURCE /* memfd_create */
#include "exec/host_rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GIVE_TAG = 3, CLOCK_TAG, CLOCK_ROUNDS = 32 };

static td_status mpi_failed(const char *what, int code, td_err *err)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n, rank = -1;
    if (code == MPI_SUCCESS)
        return TD_OK;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (MPI_Error_string(code, text, &n) != MPI_SUCCESS || text[0] == '\0')
        snprintf(text, sizeof text, "MPI's error %d", code);
    return td_fail(err, TD_RUN, "rank %d: %s: %s", rank, what, text);
}

/* The ranks of this machine, by rank. */
static td_status split(MPI_Comm *out, td_err *err)
{
    td_status st = TD_OK;
    int rank;
    *out = MPI_COMM_NULL;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    TD_TRY(st, mpi_failed("finding the ranks of this machine",
                          MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank,
                                              MPI_INFO_NULL, out),
                          err));
    MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN);
done:
    return st;
}

td_status td_rendezvous_open(td_arena *a, int32_t world_size, td_rendezvous *out, td_err *err)
{
    td_status st = TD_OK;
    MPI_Comm node = MPI_COMM_NULL;
    int size, rank, local_rank, local_size;
    int32_t first, *node_of = TD_NEW(a, int32_t, world_size);
    td_rendezvous r = {.node_of = node_of};
    if (node_of == NULL)
        TD_TRY(st,
               td_fail(err, TD_NOMEM, "no memory for the machines of %d ranks", (int)world_size));
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (size != world_size)
        TD_TRY(st, td_fail(err, TD_RUN, "rank %d: started with %d ranks, the program has %d", rank,
                           size, (int)world_size));
    TD_TRY(st, split(&node, err));
    MPI_Comm_rank(node, &local_rank);
    MPI_Comm_size(node, &local_size);
    r.local_rank = local_rank;
    r.local_size = local_size;
    first = rank; /* of this machine, once the lowest rank has told */
    TD_TRY(st, mpi_failed("naming this machine", MPI_Bcast(&first, 1, MPI_INT32_T, 0, node), err));
    TD_TRY(st, mpi_failed(
                   "naming the machines",
                   MPI_Allgather(&first, 1, MPI_INT32_T, node_of, 1, MPI_INT32_T, MPI_COMM_WORLD),
                   err));
    for (int32_t i = 0; i < world_size; i++) /* node_of[i] <= i is the first rank of its machine */
        node_of[i] = node_of[i] == i ? r.n_nodes++ : node_of[node_of[i]];
    *out = r;
done:
    if (node != MPI_COMM_NULL)
        MPI_Comm_free(&node);
    return st;
}

td_status td_rendezvous_give(const td_comm *c, int32_t me, int32_t from, void *blob, size_t bytes,
                             td_err *err)
{
    td_status st = TD_OK;
    for (int32_t i = 0; me == from && i < c->n_ranks; i++)
        if (i != me)
            TD_TRY(st, mpi_failed("telling the ranks of a communicator",
                                  MPI_Send(blob, (int)bytes, MPI_BYTE, c->ranks[i], GIVE_TAG,
                                           MPI_COMM_WORLD),
                                  err));
    if (me != from)
        TD_TRY(st, mpi_failed("hearing from a rank of a communicator",
                              MPI_Recv(blob, (int)bytes, MPI_BYTE, c->ranks[from], GIVE_TAG,
                                       MPI_COMM_WORLD, MPI_STATUS_IGNORE),
                              err));
done:
    return st;
}

/* ---- memory of a machine ---- */

/* A file of zeros that goes with its last user; -1 and errno on failure. */
static int nameless_file(size_t bytes)
{
    const int fd = memfd_create("tandem", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
        const int failure = errno;
        close(fd);
        errno = failure;
        return -1;
    }
    return fd;
}

/* The machine's first rank makes the file, the others open it through /proc. MAP_FAILED and errno
 * on failure; `fd` is the caller's to close once all have it. */
static void *map_together(MPI_Comm node, bool owner, size_t bytes, int *fd)
{
    int place[2] = {0, -1}; /* process, its number of the file */
    char path[64];
    if (owner) {
        *fd = nameless_file(bytes);
        place[0] = (int)getpid();
        place[1] = *fd;
    }
    const int failure = errno; /* of nameless_file */
    if (MPI_Bcast(place, 2, MPI_INT, 0, node) != MPI_SUCCESS) {
        errno = ECOMM;
        return MAP_FAILED;
    }
    if (place[1] < 0) {
        errno = owner ? failure : ENOENT;
        return MAP_FAILED;
    }
    if (!owner) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", place[0], place[1]);
        *fd = open(path, O_RDWR | O_CLOEXEC);
    }
    return *fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
}

td_status td_rendezvous_memory(const td_rendezvous *r, size_t bytes, void **out, td_err *err)
{
    td_status st = TD_OK;
    MPI_Comm node = MPI_COMM_NULL;
    void *memory = MAP_FAILED;
    int fd = -1, ours, all = 0;
    TD_TRY(st, split(&node, err));
    memory = map_together(node, r->local_rank == 0, bytes, &fd);
    const int failure = errno;
    ours = memory != MAP_FAILED;
    /* Also what lets the owner close: everybody has opened the file or given up. */
    TD_TRY(st, mpi_failed("sharing memory on this machine",
                          MPI_Allreduce(&ours, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD), err));
    if (!ours)
        TD_TRY(st, td_fail(err, TD_RUN,
                           "local rank %d cannot share %zu bytes of memory with the %d ranks of "
                           "its machine: %s",
                           (int)r->local_rank, bytes, (int)r->local_size, strerror(failure)));
    if (!all)
        TD_TRY(st, td_fail(err, TD_RUN, "another rank cannot share memory with its machine"));
    *out = memory;
done:
    if (fd >= 0)
        close(fd);
    if (st != TD_OK && memory != MAP_FAILED)
        munmap(memory, bytes);
    if (node != MPI_COMM_NULL)
        MPI_Comm_free(&node);
    return st;
}

/* ---- clocks ---- */

void td_rendezvous_clock(int32_t world_size, double (*now)(void), double *offset, double *error)
{
    double best = 1e9;
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    *offset = *error = 0;
    for (int32_t r = 1; r < world_size; r++)
        for (int i = 0; i < CLOCK_ROUNDS; i++) {
            double theirs = 0;
            if (rank == 0) {
                MPI_Recv(NULL, 0, MPI_BYTE, r, CLOCK_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                theirs = now();
                MPI_Send(&theirs, 1, MPI_DOUBLE, r, CLOCK_TAG, MPI_COMM_WORLD);
            } else if (rank == r) {
                const double sent = now();
                MPI_Send(NULL, 0, MPI_BYTE, 0, CLOCK_TAG, MPI_COMM_WORLD);
                MPI_Recv(&theirs, 1, MPI_DOUBLE, 0, CLOCK_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                const double back = now();
                if (back - sent < best) {
                    best = back - sent;
                    *offset = theirs - (sent + back) / 2;
                    *error = best / 2;
                }
            }
        }
    MPI_Allreduce(MPI_IN_PLACE, error, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
}
