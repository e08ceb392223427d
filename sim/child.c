/* fork(), shared memory for what the child finds out, and a parent that waits as long as there is
 * progress. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS is not in POSIX.1-2008 */

#include "sim/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Written by the child. */
typedef struct {
    volatile int64_t progress;
    td_err err; /* TD_OK with `whole` set: done */
    bool whole;
    int64_t n_done, n_flows, n_promoted;
    double peak;
    double times[]; /* of each actor: starts, then ends */
} report;

static double *times_of(report *r, const td_loop *l, int32_t actor, double *at)
{
    return actor == 0 ? r->times : at + 2 * l->actors[actor - 1].script->n_ops;
}

/* What has happened so far. */
static void put_times(const td_loop *l, report *r)
{
    double *at = r->times;
    for (int32_t i = 0; i < l->n_actors; i++) {
        const size_t n = (size_t)l->actors[i].script->n_ops;
        at = times_of(r, l, i, at);
        if (n > 0) {
            memcpy(at, l->actors[i].start, n * sizeof *at);
            memcpy(at + n, l->actors[i].end, n * sizeof *at);
        }
    }
}

/* From here on the loop's times are in the report, so that they outlive the child. */
static void use_times(td_loop *l, report *r)
{
    double *at = r->times;
    for (int32_t i = 0; i < l->n_actors; i++) {
        at = times_of(r, l, i, at);
        l->actors[i].start = at;
        l->actors[i].end = at + l->actors[i].script->n_ops;
    }
}

static void take_times(td_loop *l, report *r)
{
    double *at = r->times;
    for (int32_t i = 0; i < l->n_actors; i++) {
        const size_t n = (size_t)l->actors[i].script->n_ops;
        at = times_of(r, l, i, at);
        if (n > 0) {
            memcpy(l->actors[i].start, at, n * sizeof *at);
            memcpy(l->actors[i].end, at + n, n * sizeof *at);
        }
    }
}

/* The child's life; what it or its libraries print goes to `log`. */
static void live(td_loop *l, const td_net *net, const uint8_t *flows, report *r, int log)
{
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    use_times(l, r);
    l->progress = &r->progress;
    r->whole = td_contention_run(l, net, flows, &r->err) == TD_OK;
    r->n_done = l->n_done;
    r->n_flows = l->n_flows;
    r->n_promoted = l->n_promoted;
    r->peak = td_loads_peak(l->loads);
    _exit(0);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Waits for the child; kills it when it has not moved for `stall_s`. */
static bool outlives(pid_t child, const report *r, double stall_s, int *status)
{
    int64_t seen = r->progress;
    double since = seconds();
    long nap_ns = 100000;
    pid_t got = 0;
    bool stalled = false;
    while ((got = waitpid(child, status, WNOHANG)) == 0 || (got < 0 && errno == EINTR)) {
        const struct timespec nap = {.tv_nsec = nap_ns};
        nanosleep(&nap, NULL);
        nap_ns = nap_ns < 10000000 ? nap_ns * 2 : nap_ns;
        if (r->progress != seen) {
            seen = r->progress;
            since = seconds();
        } else if (!stalled && seconds() - since > stall_s) {
            stalled = true;
            kill(child, SIGKILL);
        }
    }
    return !stalled;
}

/* The end of what the child printed, on one line. */
static void last_words(int log, char *text, size_t size)
{
    const off_t end = lseek(log, 0, SEEK_END);
    const off_t from = end > (off_t)size - 1 ? end - (off_t)size + 1 : 0;
    ssize_t n = end > 0 ? pread(log, text, size - 1, from) : 0;
    n = n < 0 ? 0 : n;
    while (n > 0 && text[n - 1] == '\n')
        n--;
    text[n] = '\0';
    for (ssize_t i = 0; i < n; i++)
        if (text[i] == '\n')
            text[i] = ' ';
}

static int open_log(void)
{
    FILE *file = tmpfile(); /* has no name: gone with the last descriptor */
    const int log = file == NULL ? -1 : dup(fileno(file));
    if (file != NULL)
        fclose(file);
    return log;
}

/* The child is gone: was it all well? */
static td_status judge(td_loop *l, report *r, const char *name, bool in_time, double stall_s,
                       int status, int log, td_err *err)
{
    td_status st = TD_OK;
    char stuck[700], words[160];
    const bool left = in_time && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    take_times(l, r);
    if (left && r->whole)
        return st;
    if (left && r->err.status != TD_RUN)
        return td_fail(err, r->err.status, "%s", r->err.text);
    td_stuck_text(l, stuck, sizeof stuck);
    last_words(log, words, sizeof words);
    if (left)
        st = td_fail(err, TD_RUN, "%s; %s", r->err.text, stuck);
    else if (!in_time)
        st = td_fail(err, TD_RUN, "%s made no progress for %g s and was stopped: %s", name, stall_s,
                     stuck);
    else if (WIFSIGNALED(status))
        st = td_fail(err, TD_RUN, "%s died of signal %d (%s%s%s): %s", name, WTERMSIG(status),
                     strsignal(WTERMSIG(status)), words[0] != '\0' ? "; " : "", words, stuck);
    else
        st = td_fail(err, TD_RUN, "%s gave up with code %d (%s): %s", name, WEXITSTATUS(status),
                     words, stuck);
    return st;
}

td_status td_child_run(td_loop *l, const td_net *net, const uint8_t *flows, double stall_s,
                       td_err *err)
{
    td_status st = TD_OK;
    const size_t size = sizeof(report) + 2 * (size_t)l->n_ops * sizeof(double);
    int status = 0;
    const int log = open_log();
    report *r = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (r == MAP_FAILED)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to share %zu bytes with %s: %s", size,
                           net->name, strerror(errno)));
    if (log < 0)
        TD_TRY(st, td_fail(err, TD_RUN, "no temporary file for what %s says: %s", net->name,
                           strerror(errno)));
    put_times(l, r);
    fflush(NULL); /* or the child writes what is still in our buffers */
    const pid_t child = fork();
    if (child < 0)
        TD_TRY(st, td_fail(err, TD_RUN, "cannot start a process for %s: %s", net->name,
                           strerror(errno)));
    if (child == 0)
        live(l, net, flows, r, log);
    const bool in_time = outlives(child, r, stall_s, &status);
    TD_TRY(st, judge(l, r, net->name, in_time, stall_s, status, log, err));
    l->n_done = r->n_done;
    l->n_flows = r->n_flows;
    l->n_promoted = r->n_promoted;
    l->peak = r->peak;
done:
    if (r != MAP_FAILED)
        munmap(r, size);
    if (log >= 0)
        close(log);
    return st;
}
