/* mpirun as a child, or nothing at all under a launcher. */
#include "exec/launch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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
        return td_fail(
            err, TD_ABSENT,
            "%s is not there: this build has no such backend; tools/setup installs what it needs "
            "and builds it",
            path);
    return TD_OK;
}

/* Ranks share cores where there are more of them, also as root in a container; they yield while
 * they wait. */
static const char *const mpirun[] = {"mpirun",
                                     "--allow-run-as-root",
                                     "--oversubscribe",
                                     "--bind-to",
                                     "none",
                                     "--quiet",
                                     "--mca",
                                     "mpi_yield_when_idle",
                                     "1",
                                     "--mca",
                                     "btl_vader_single_copy_mechanism",
                                     "none",
                                     "-np"};
enum { N_MPIRUN = sizeof mpirun / sizeof *mpirun };

td_status td_launch(const char *program, char *const argv[], int32_t n_ranks, int *code,
                    td_err *err)
{
    td_status st = TD_OK;
    int n = 0, status = 0;
    char ranks[16];
    char **all;
    pid_t child;
    while (argv[n] != NULL)
        n++;
    all = calloc((size_t)(N_MPIRUN + n + 3), sizeof *all);
    if (all == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to start %d ranks", (int)n_ranks));
    if (td_launched()) {
        execv(program, argv);
        TD_TRY(st, td_fail(err, TD_RUN, "cannot start %s: %s", program, strerror(errno)));
    }
    snprintf(ranks, sizeof ranks, "%d", (int)n_ranks);
    for (int i = 0; i < N_MPIRUN; i++)
        all[i] = (char *)mpirun[i]; /* execvp() takes them so, and does not write */
    all[N_MPIRUN] = ranks;
    all[N_MPIRUN + 1] = (char *)program;
    for (int i = 1; i < n; i++)
        all[N_MPIRUN + 1 + i] = argv[i];
    fflush(NULL);
    child = fork();
    if (child == 0) {
        execvp(all[0], all);
        _exit(127);
    }
    if (child < 0)
        TD_TRY(st, td_fail(err, TD_RUN, "cannot start mpirun: %s", strerror(errno)));
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            TD_TRY(st, td_fail(err, TD_RUN, "lost sight of mpirun: %s", strerror(errno)));
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 5;
    if (*code == 127)
        TD_TRY(st, td_fail(err, TD_ABSENT,
                           "mpirun cannot be started; tools/setup installs it (openmpi-bin)"));
done:
    free(all);
    return st;
}
