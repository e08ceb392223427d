/* mpirun as a supervised child, or nothing at all under a launcher. */
#include "exec/launch.h"
#include "exec/scratch.h"
#include "exec/watch.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    LOOK_MS = 20,    /* between two looks at the board */
    SECOND_MS = 100, /* a failed rank may only have noticed that another died: look twice */
    TIDY_MS = 4000,  /* for mpirun to end by itself, with its files, once its ranks are gone */
    REAP_MS = 3000,  /* for what was killed to be gone */
};

bool td_launched(void)
{
    static const char *const signs[] = {"OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK",
                                        "SLURM_PROCID"};
    bool found = false;
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        found = found || getenv(signs[i]) != NULL;
    return found;
}

td_status td_launch_find(const char *name, char *path, int size, td_err *err)
{
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;
    if (n <= 0)
        return td_fail(err, TD_RUN, "cannot find this program's own folder: %s", strerror(errno));
    self[n] = '\0';
    slash = strrchr(self, '/');
    snprintf(path, (size_t)size, "%.*s/%s", (int)(slash - self), self, name);
    if (access(path, X_OK) != 0)
        return td_fail(err, TD_ABSENT,
                       "%s is not there: this build has no such backend; tools/setup installs what "
                       "it needs and builds it",
                       path);
    return TD_OK;
}

/* ---- what the ranks and mpirun print ---- */

/* Ranks write into pipes of their own, so that mpirun's remarks can be told from what they say. */
typedef enum { RANK_OUT, RANK_ERR, MPIRUN_OUT, MPIRUN_ERR, N_PIPES } source;

typedef struct {
    char *text;
    size_t n, cap;
} buffer;

typedef struct {
    const td_launch_job *job;
    pid_t mpirun;
    bool gone;  /* mpirun was waited for, and `status` is how it ended */
    bool ended; /* by us */
    int status;
    int pipes[N_PIPES][2]; /* read, write */
    td_watch watch;
    buffer answer, remarks;
    uint64_t *beats;   /* [n_ranks] as last seen */
    int64_t *since_ms; /* [n_ranks] when they last changed */
    int64_t latest_ms; /* of them */
    bool no_memory;
} run;

static int64_t now_ms(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void keep(run *r, buffer *b, const char *text, size_t n)
{
    if (b->n + n > b->cap) {
        char *grown = realloc(b->text, 2 * (b->n + n));
        if (grown == NULL) {
            r->no_memory = true;
            return;
        }
        b->text = grown;
        b->cap = 2 * (b->n + n);
    }
    memcpy(b->text + b->n, text, n);
    b->n += n;
}

static void pass_on(const char *text, size_t n)
{
    while (n > 0) {
        const ssize_t written = write(STDERR_FILENO, text, n);
        if (written < 0 && errno != EINTR)
            break; /* nobody listens */
        text += written > 0 ? written : 0;
        n -= written > 0 ? (size_t)written : 0;
    }
}

/* Waits up to `ms` for output and takes what is there. */
static void listen_to(run *r, int ms)
{
    struct pollfd fds[N_PIPES];
    char text[65536];
    for (int i = 0; i < N_PIPES; i++)
        fds[i] = (struct pollfd){.fd = r->pipes[i][0], .events = POLLIN};
    if (poll(fds, N_PIPES, ms) <= 0)
        return;
    for (int i = 0; i < N_PIPES; i++) {
        const ssize_t n = fds[i].revents == 0 ? 0 : read(fds[i].fd, text, sizeof text);
        if (n <= 0)
            continue;
        if (i == RANK_ERR)
            pass_on(text, (size_t)n);
        else
            keep(r, i == MPIRUN_ERR ? &r->remarks : &r->answer, text, (size_t)n);
    }
}

static void listen_to_the_rest(run *r)
{
    struct pollfd fds[N_PIPES];
    for (int i = 0; i < N_PIPES; i++)
        fds[i] = (struct pollfd){.fd = r->pipes[i][0], .events = POLLIN};
    while (poll(fds, N_PIPES, 0) > 0)
        listen_to(r, 0);
}

/* ---- processes ---- */

/* State and session of a process; false if there is none. */
static bool process(long pid, char *state, long *session)
{
    char path[64], text[1024];
    long parent, group;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    const size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = '\0';
    fclose(file);
    const char *end = strrchr(text, ')'); /* the name before it may hold anything */
    return end != NULL && sscanf(end + 1, " %c %ld %ld %ld", state, &parent, &group, session) == 4;
}

/* Kills what mpirun started: ranks have groups of their own but share its session. Number of those
 * still there. */
static int kill_session(const run *r, bool mpirun_too)
{
    int n = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *d = proc == NULL ? NULL : readdir(proc); d != NULL; d = readdir(proc)) {
        char state;
        long session;
        const long pid = isdigit((unsigned char)d->d_name[0]) ? strtol(d->d_name, NULL, 10) : 0;
        if (pid > 0 && (mpirun_too || pid != r->mpirun) && process(pid, &state, &session) &&
            session == r->mpirun && state != 'Z') {
            kill((pid_t)pid, SIGKILL);
            n++;
        }
    }
    if (proc != NULL)
        closedir(proc);
    return n;
}

static void look_for_mpirun(run *r)
{
    if (!r->gone && waitpid(r->mpirun, &r->status, WNOHANG) == r->mpirun)
        r->gone = true;
}

/* Nothing of the run is left afterwards: orphans have become children of this process. */
static void end_all(run *r)
{
    const int64_t start = now_ms();
    while (!r->gone && now_ms() - start < TIDY_MS) {
        kill_session(r, false);
        listen_to(r, LOOK_MS);
        look_for_mpirun(r);
    }
    r->ended = !r->gone;
    while (kill_session(r, true) > 0 && now_ms() - start < TIDY_MS + REAP_MS)
        listen_to(r, LOOK_MS / 4);
    look_for_mpirun(r);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
    listen_to_the_rest(r);
}

/* ---- who failed ---- */

/* A rank that is gone and had not come to its end; -1: none. */
static int32_t find_dead(const run *r)
{
    for (int32_t i = 0; i < r->job->n_ranks; i++) {
        const td_watch_slot *s = &r->watch.board->slots[i];
        if (s->pid != 0 && s->phase != TD_AT_END && s->failed == 0 && kill(s->pid, 0) != 0)
            return i;
    }
    return -1;
}

/* The rank that gave up first; -1: none. */
static int32_t find_failed(const run *r)
{
    const td_watch_slot *slots = r->watch.board->slots;
    int32_t first = -1;
    for (int32_t i = 0; i < r->job->n_ranks; i++)
        if (slots[i].failed != 0 && (first < 0 || slots[i].failed_ns < slots[first].failed_ns))
            first = i;
    return first;
}

/* How much a rank that does not get on looks like the cause: 0 waits for another, 2 was stopped. */
static int suspicion(const td_watch_slot *s)
{
    char state = 'R';
    long session;
    if (s->pid != 0 && process(s->pid, &state, &session) && (state == 'T' || state == 't'))
        return 2;
    return s->phase == TD_AT_END || (s->phase == TD_AT_STEP && s->waits >= 0) ? 0 : 1;
}

/* The rank to blame once none got on for the time allowed; -1: some did. */
static int32_t find_hanging(run *r)
{
    const td_watch_slot *slots = r->watch.board->slots;
    const int64_t now = now_ms();
    int32_t worst = 0;
    for (int32_t i = 0; i < r->job->n_ranks; i++)
        if (slots[i].beats != r->beats[i]) {
            r->beats[i] = slots[i].beats;
            r->since_ms[i] = r->latest_ms = now;
        }
    if (r->job->timeout_s == 0 || now - r->latest_ms < (int64_t)r->job->timeout_s * 1000)
        return -1;
    for (int32_t i = 1; i < r->job->n_ranks; i++) {
        const int more = suspicion(&slots[i]) - suspicion(&slots[worst]);
        if (more > 0 || (more == 0 && r->since_ms[i] < r->since_ms[worst]))
            worst = i;
    }
    return worst;
}

static td_status say_dead(const run *r, int32_t rank, td_err *err)
{
    char where[128];
    const int code = WIFEXITED(r->status) ? WEXITSTATUS(r->status) : 0;
    td_watch_where(&r->watch.board->slots[rank], where, sizeof where);
    if (!r->ended && WIFSIGNALED(r->status)) /* and its ranks with it */
        return td_fail(err, TD_RUN, "mpirun was killed by signal %d", WTERMSIG(r->status));
    if (code > 128) /* mpirun ends as the first of its ranks did */
        return td_fail(err, TD_RUN, "rank %d was killed by signal %d %s", (int)rank, code - 128,
                       where);
    if (code > 0)
        return td_fail(err, TD_RUN, "rank %d ended with exit code %d %s", (int)rank, code, where);
    return td_fail(err, TD_RUN, "rank %d died %s", (int)rank, where);
}

static td_status say_failed(const run *r, int32_t rank, td_err *err)
{
    const td_watch_slot *s = &r->watch.board->slots[rank];
    char where[128], own[32];
    const size_t skip = (size_t)snprintf(own, sizeof own, "rank %d: ", (int)rank);
    const char *text = strncmp(s->text, own, skip) == 0 ? s->text + skip : s->text;
    if (s->everywhere)
        return td_fail(err, (td_status)s->failed, "%s", s->text);
    if (s->phase != TD_AT_STEP)
        return td_fail(err, (td_status)s->failed, "%s%s", own, text);
    td_watch_where(s, where, sizeof where);
    return td_fail(err, (td_status)s->failed, "rank %d failed %s: %s", (int)rank, where, text);
}

static td_status say_hanging(const run *r, int32_t rank, td_err *err)
{
    const td_watch_slot *s = &r->watch.board->slots[rank];
    char where[128], waits[48] = "";
    td_watch_where(s, where, sizeof where);
    if (s->phase == TD_AT_STEP && s->waits >= 0)
        snprintf(waits, sizeof waits, ", waiting for op %d", (int)s->waits);
    return td_fail(err, TD_RUN, "no rank got on for %d s; rank %d %s %s%s", (int)r->job->timeout_s,
                   (int)rank, suspicion(s) == 2 ? "was stopped" : "hangs", where, waits);
}

/* The rank that mpirun says it lost, in its own words; -1 if it does not. */
static int32_t named_by_mpirun(const run *r)
{
    static const char before[] = "process rank ";
    int32_t rank = -1;
    for (size_t i = 0; rank < 0 && i + sizeof before <= r->remarks.n; i++)
        if (memcmp(r->remarks.text + i, before, sizeof before - 1) == 0)
            for (size_t k = i + sizeof before - 1;
                 k < r->remarks.n && isdigit((unsigned char)r->remarks.text[k]); k++)
                rank = 10 * (rank < 0 ? 0 : rank) + (r->remarks.text[k] - '0');
    return rank >= 0 && rank < r->job->n_ranks ? rank : -1;
}

/* mpirun ended and no rank had anything to say. */
static td_status say_mpirun(const run *r, td_err *err)
{
    if (WIFSIGNALED(r->status))
        return td_fail(err, TD_RUN, "mpirun was killed by signal %d", WTERMSIG(r->status));
    if (WEXITSTATUS(r->status) == 0)
        return TD_OK;
    if (WEXITSTATUS(r->status) == 127 && r->remarks.n == 0)
        return td_fail(err, TD_ABSENT,
                       "mpirun cannot be started; tools/setup installs it (openmpi-bin)");
    const int32_t rank = named_by_mpirun(r); /* gone before or after it was on the board */
    if (rank >= 0)
        return say_dead(r, rank, err);
    pass_on(r->remarks.text, r->remarks.n);
    return td_fail(err, TD_RUN, "mpirun ended with exit code %d", WEXITSTATUS(r->status));
}

/* ---- the run ---- */

static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
    interrupted = number;
}

static const int interrupts[] = {SIGINT, SIGTERM, SIGHUP};
enum { N_INTERRUPTS = sizeof interrupts / sizeof *interrupts };

static void catch_interrupts(struct sigaction old[N_INTERRUPTS])
{
    struct sigaction ours = {.sa_handler = interrupt};
    sigemptyset(&ours.sa_mask);
    interrupted = 0;
    for (int i = 0; i < N_INTERRUPTS; i++) {
        sigaction(interrupts[i], &ours, &old[i]);
        if (old[i].sa_handler == SIG_IGN) /* as under nohup */
            sigaction(interrupts[i], &old[i], NULL);
    }
}

/* Until mpirun has ended or all must end, and then until they have. */
static td_status supervise(run *r, int *signal_number, td_err *err)
{
    td_status st = TD_OK;
    int32_t dead = -1, failed = -1, hanging = -1;
    while (!r->gone && interrupted == 0 && dead < 0 && failed < 0 && hanging < 0) {
        listen_to(r, LOOK_MS);
        look_for_mpirun(r);
        dead = find_dead(r);
        failed = find_failed(r);
        hanging = find_hanging(r);
    }
    for (const int64_t start = now_ms(); failed >= 0 && now_ms() - start < SECOND_MS;)
        listen_to(r, LOOK_MS);
    dead = find_dead(r);
    failed = find_failed(r);
    if (hanging >= 0 && dead < 0 && failed < 0 && interrupted == 0)
        st = say_hanging(r, hanging, err); /* as long as it can be looked at */
    end_all(r);
    if (st != TD_OK)
        return st;
    if (dead >= 0)
        return say_dead(r, dead, err);
    if (failed >= 0)
        return say_failed(r, failed, err);
    *signal_number = interrupted;
    if (interrupted != 0)
        return td_fail(err, TD_RUN, "interrupted by signal %d; all ranks have been ended",
                       (int)interrupted);
    if (r->no_memory)
        return td_fail(err, TD_NOMEM, "no memory for the answer of the ranks");
    return say_mpirun(r, err);
}

/* Ranks share cores where there are more of them, also as root in a container; they yield while
 * they wait. */
static const char *const mpirun[] = {"mpirun",
                                     "--allow-run-as-root",
                                     "--oversubscribe",
                                     "--bind-to",
                                     "none",
                                     "--mca",
                                     "mpi_yield_when_idle",
                                     "1",
                                     "--mca",
                                     "btl_vader_single_copy_mechanism",
                                     "none"};
enum { N_MPIRUN = sizeof mpirun / sizeof *mpirun, N_OWN = 11 };

/* The words of mpirun's command line, which point into the arguments; NULL without memory. */
static char **command_line(const td_launch_job *job, const char *ranks, const char *board,
                           const char *files)
{
    const char *const own[] = {
        "--mca", "orte_tmpdir_base", files, "--mca", "btl_vader_backing_directory", files, "-np",
        ranks,   job->program};
    const char *const last[] = {"--watch", board};
    int n = 0, at = 0;
    while (job->argv[n] != NULL)
        n++;
    char **all = calloc((size_t)(N_MPIRUN + N_OWN + n + 1), sizeof *all);
    if (all == NULL)
        return NULL;
    for (int i = 0; i < N_MPIRUN; i++)
        all[at++] = (char *)mpirun[i]; /* execvp() takes them so, and does not write */
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        all[at++] = (char *)own[i];
    for (int i = 1; i < n; i++)
        all[at++] = job->argv[i];
    for (size_t i = 0; i < sizeof last / sizeof *last; i++)
        all[at++] = (char *)last[i];
    return all;
}

/* By setsid(), apart from the terminal: a ^C on the terminal reaches `tandem run` alone, which then
 * ends all. */
static void become_mpirun(const run *r, char **words, pid_t parent)
{
    const int null = open("/dev/null", O_RDONLY);
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* with time to tidy up */
    signal(SIGPIPE, SIG_IGN);         /* a rank that is gone at once would take mpirun with it */
    if (getppid() != parent)
        _exit(1);
    dup2(null, STDIN_FILENO);
    dup2(r->pipes[MPIRUN_OUT][1], STDOUT_FILENO);
    dup2(r->pipes[MPIRUN_ERR][1], STDERR_FILENO);
    execvp(words[0], words);
    _exit(127);
}

static td_status open_pipes(run *r, td_err *err)
{
    for (int i = 0; i < N_PIPES; i++) {
        if (pipe(r->pipes[i]) != 0)
            return td_fail(err, TD_RUN, "cannot open a pipe to the ranks: %s", strerror(errno));
        for (int k = 0; k < 2; k++)
            fcntl(r->pipes[i][k], F_SETFD, FD_CLOEXEC);
        fcntl(r->pipes[i][0], F_SETFL, O_NONBLOCK);
    }
    return TD_OK;
}

td_status td_launch(const td_launch_job *job, int *signal_number, td_err *err)
{
    td_status st = TD_OK;
    char ranks[16], board[64];
    td_scratch files = {.fd = -1};
    char **words = NULL;
    struct sigaction old[N_INTERRUPTS];
    bool caught = false;
    const pid_t self = getpid();
    run r = {.job = job, .pipes = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}}};
    *signal_number = 0;
    if (td_launched()) {
        fflush(NULL);
        execv(job->program, job->argv);
        TD_TRY(st, td_fail(err, TD_RUN, "cannot start %s: %s", job->program, strerror(errno)));
    }
    TD_TRY(st, open_pipes(&r, err));
    TD_TRY(st,
           td_watch_open(job->n_ranks, r.pipes[RANK_OUT][1], r.pipes[RANK_ERR][1], &r.watch, err));
    r.beats = calloc((size_t)job->n_ranks, sizeof *r.beats);
    r.since_ms = calloc((size_t)job->n_ranks, sizeof *r.since_ms);
    snprintf(ranks, sizeof ranks, "%d", (int)job->n_ranks);
    snprintf(board, sizeof board, "/proc/%ld/fd/%d", (long)self, r.watch.fd);
    TD_TRY(st, td_scratch_open(&files, err));
    words = command_line(job, ranks, board, files.path);
    if (words == NULL || r.beats == NULL || r.since_ms == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to start %d ranks", (int)job->n_ranks));
    for (int32_t i = 0; i < job->n_ranks; i++)
        r.since_ms[i] = r.latest_ms = now_ms();
    catch_interrupts(old);
    caught = true;
    prctl(PR_SET_CHILD_SUBREAPER, 1L); /* orphans come here, to be waited for */
    fflush(NULL);
    r.mpirun = fork();
    if (r.mpirun == 0)
        become_mpirun(&r, words, self);
    if (r.mpirun < 0)
        TD_TRY(st, td_fail(err, TD_RUN, "cannot start mpirun: %s", strerror(errno)));
    TD_TRY(st, supervise(&r, signal_number, err));
    fwrite(r.answer.text, 1, r.answer.n, stdout);
done:
    prctl(PR_SET_CHILD_SUBREAPER, 0L);
    for (int i = 0; caught && i < N_INTERRUPTS; i++)
        sigaction(interrupts[i], &old[i], NULL);
    td_scratch_close(&files);
    td_watch_close(&r.watch);
    for (int i = 0; i < 2 * N_PIPES; i++)
        if (r.pipes[i / 2][i % 2] >= 0)
            close(r.pipes[i / 2][i % 2]);
    free(words);
    free(r.beats);
    free(r.since_ms);
    free(r.answer.text);
    free(r.remarks.text);
    return st;
}
