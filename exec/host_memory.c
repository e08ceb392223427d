/* The memory model of the plan against what the kernel says is available. */
#include "exec/host_memory.h"
#include "model/memory.h"

#include <mpi.h>
#include <stdio.h>
#include <string.h>

enum { LINE = 256 };

/* The number behind `key` at the begin of a line (an empty key: the first line); `missing` where
 * there is none. */
static double number_in(const char *path, const char *key, double missing)
{
    char line[LINE];
    double value = missing;
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, key, strlen(key)) == 0) {
            if (sscanf(line + strlen(key), "%lf", &value) != 1)
                value = missing;
            break;
        }
    if (file != NULL)
        fclose(file);
    return value;
}

/*
 * What can still be allocated: of the machine, and of the container (cgroup versions 2 and 1) if
 * one sets a limit. Cached files that nobody has open give way.
 */
static double available_bytes(void)
{
    static const struct {
        const char *limit, *used, *stat, *cached;
    } groups[] = {{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                   "/sys/fs/cgroup/memory.stat", "inactive_file "},
                  {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
                   "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                   "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file "}};
    double available = 1024 * number_in("/proc/meminfo", "MemAvailable:", 1e18);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        const double left = number_in(groups[i].limit, "", 1e18) -
                            number_in(groups[i].used, "", 0) +
                            number_in(groups[i].stat, groups[i].cached, 0);
        available = left < available ? left : available;
    }
    return available;
}

td_status td_host_memory_check(td_arena *a, const td_program *p, int32_t rank, td_err *err)
{
    td_memory own;
    struct {
        double bytes;
        int rank;
    } most;
    double sum, available = available_bytes();
    const double gib = 1024.0 * 1024.0 * 1024.0;
    MPI_Comm machine;
    int n;
    const td_status st = td_memory_of_rank(a, p, rank, &own, err);
    most.bytes = sum = st == TD_OK ? (double)own.total : 0; /* the others wait in the collectives */
    most.rank = rank;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &machine);
    MPI_Comm_size(machine, &n);
    MPI_Allreduce(MPI_IN_PLACE, &most, 1, MPI_DOUBLE_INT, MPI_MAXLOC, machine);
    MPI_Allreduce(MPI_IN_PLACE, &sum, 1, MPI_DOUBLE, MPI_SUM, machine);
    MPI_Allreduce(MPI_IN_PLACE, &available, 1, MPI_DOUBLE, MPI_MIN, machine);
    MPI_Comm_free(&machine);
    if (st == TD_OK && sum > available)
        return td_fail(err, TD_RUN,
                       "%d ranks on one machine need %.1f GiB, most of all rank %d with %.1f GiB, "
                       "but %.1f GiB are available",
                       n, sum / gib, most.rank, most.bytes / gib, available / gib);
    return st;
}
