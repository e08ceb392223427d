/* The board, from both sides. */
#include "exec/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char magic[16] = "tandem-watch-1";

/* ---- the supervisor ---- */

td_status td_watch_open(int32_t n_ranks, int out_fd, int err_fd, td_watch *out, td_err *err)
{
    td_status st = TD_OK;
    td_watch w = {.fd = -1, .bytes = sizeof *w.board + (size_t)n_ranks * sizeof *w.board->slots};
    char name[64];
    void *board = MAP_FAILED;
    snprintf(name, sizeof name, "/tandem-%ld", (long)getpid());
    w.fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (w.fd >= 0)
        shm_unlink(name);
    if (w.fd >= 0 && ftruncate(w.fd, (off_t)w.bytes) == 0)
        board = mmap(NULL, w.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w.fd, 0);
    if (board == MAP_FAILED)
        TD_TRY(st, td_fail(err, TD_RUN, "cannot share %zu bytes of memory with the ranks: %s",
                           w.bytes, strerror(errno)));
    w.board = board;
    w.board->n_ranks = n_ranks;
    w.board->supervisor = (int32_t)getpid();
    w.board->out_fd = out_fd;
    w.board->err_fd = err_fd;
    memcpy(w.board->magic, magic, sizeof magic);
done:
    if (st != TD_OK && w.fd >= 0)
        close(w.fd);
    if (st == TD_OK)
        *out = w;
    return st;
}

void td_watch_close(td_watch *w)
{
    if (w->board == NULL)
        return;
    munmap(w->board, w->bytes);
    close(w->fd);
    w->board = NULL;
}

const char *td_watch_where(const td_watch_slot *slot, char *text, int size)
{
    static const char *const words[TD_N_AT] = {
#define X(phase, where) [TD_AT_##phase] = where,
        TD_AT_MAP(X)
#undef X
    };
    char label[32];
    if (slot->phase != TD_AT_STEP)
        snprintf(text, (size_t)size, "%s", words[slot->phase]);
    else if (slot->index < 0)
        snprintf(text, (size_t)size, "in step %lld, before its first op", (long long)slot->step);
    else {
        td_op_label(&slot->op, label, sizeof label);
        snprintf(text, (size_t)size, "in step %lld, op %d (%s)", (long long)slot->step,
                 (int)slot->index, label);
    }
    return text;
}

/* ---- a rank ---- */

/* The board behind a path, or NULL if it is another file, or of another node. */
static td_watch_board *board_at(const char *fd_path, int32_t rank)
{
    td_watch_board *board = NULL;
    struct stat file;
    const int fd = open(fd_path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    if (fstat(fd, &file) == 0 && S_ISREG(file.st_mode) &&
        (size_t)file.st_size >= sizeof *board + ((size_t)rank + 1) * sizeof *board->slots) {
        void *at = mmap(NULL, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        board = at == MAP_FAILED ? NULL : at;
        if (board != NULL &&
            (memcmp(board->magic, magic, sizeof magic) != 0 || rank >= board->n_ranks)) {
            munmap(at, (size_t)file.st_size);
            board = NULL;
        }
    }
    close(fd);
    return board;
}

static void redirect(const td_watch_board *board, int32_t theirs, int ours)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)board->supervisor, (int)theirs);
    const int fd = open(path, O_WRONLY);
    if (fd >= 0) {
        dup2(fd, ours);
        close(fd);
    }
}

td_watch_slot *td_watch_join(const char *fd_path)
{
    const pid_t parent = getppid();
    const char *number = getenv("OMPI_COMM_WORLD_RANK"); /* known before MPI is */
    const int32_t rank = number == NULL ? -1 : (int32_t)strtol(number, NULL, 10);
    td_watch_board *board = rank < 0 || fd_path == NULL ? NULL : board_at(fd_path, rank);
    if (board == NULL)
        return NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || parent == board->supervisor) /* the launcher died before */
        raise(SIGKILL);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_DFL); /* mpirun was started without */
    redirect(board, board->out_fd, STDOUT_FILENO);
    redirect(board, board->err_fd, STDERR_FILENO);
    td_watch_slot *slot = &board->slots[rank];
    slot->index = -1;
    slot->waits = -1;
    slot->pid = (int32_t)getpid();
    td_watch_phase(slot, TD_AT_START);
    return slot;
}

void td_watch_phase(td_watch_slot *slot, td_at phase)
{
    if (slot == NULL)
        return;
    slot->phase = (int32_t)phase;
    slot->beats++;
}

void td_watch_step(td_watch_slot *slot, int64_t step)
{
    if (slot == NULL)
        return;
    slot->step = step;
    slot->index = -1;
    slot->waits = -1;
    td_watch_phase(slot, TD_AT_STEP);
}

void td_watch_op(td_watch_slot *slot, int32_t index, const td_op *op)
{
    if (slot == NULL)
        return;
    slot->op = *op;
    slot->index = index;
    slot->beats++;
}

void td_watch_wait(td_watch_slot *slot, int32_t index)
{
    if (slot != NULL)
        slot->waits = index;
}

bool td_watch_failed(td_watch_slot *slot, td_status st, const td_err *err, bool everywhere)
{
    struct timespec now = {0};
    if (slot == NULL)
        return false;
    clock_gettime(CLOCK_MONOTONIC, &now);
    slot->failed_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    snprintf(slot->text, sizeof slot->text, "%s", err->text);
    slot->everywhere = everywhere;
    slot->failed = (int32_t)st;
    return true;
}
