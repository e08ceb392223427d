/* Folders are locked, not numbered: a process number says nothing in another container. */
#include "exec/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PREFIX "tandem-"
enum { FRESH_S = 60 }; /* a folder this young may not have been locked yet */

static void remove_folder(const char *path)
{
    DIR *folder = opendir(path);
    for (struct dirent *d = folder == NULL ? NULL : readdir(folder); d != NULL;
         d = readdir(folder)) {
        char below[4096];
        if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
            continue;
        const int n = snprintf(below, sizeof below, "%s/%s", path, d->d_name);
        if (n > 0 && n < (int)sizeof below && unlink(below) != 0)
            remove_folder(below);
    }
    if (folder != NULL)
        closedir(folder);
    rmdir(path);
}

/* Open and locked, or -1 if a process that lives has it. */
static int lock(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* Removes what runs of this user left that were killed together with whoever should have tidied up.
 */
static void sweep(const char *place)
{
    DIR *folder = opendir(place);
    for (struct dirent *d = folder == NULL ? NULL : readdir(folder); d != NULL;
         d = readdir(folder)) {
        char path[1024];
        struct stat s;
        const int n = snprintf(path, sizeof path, "%s/%s", place, d->d_name);
        if (strncmp(d->d_name, PREFIX, sizeof PREFIX - 1) != 0 || n < 0 || n >= (int)sizeof path ||
            lstat(path, &s) != 0 || !S_ISDIR(s.st_mode) || s.st_uid != getuid() ||
            time(NULL) - s.st_mtime < FRESH_S)
            continue;
        const int fd = lock(path);
        if (fd >= 0) {
            remove_folder(path);
            close(fd);
        }
    }
    if (folder != NULL)
        closedir(folder);
}

td_status td_scratch_open(td_scratch *out, td_err *err)
{
    const char *named = getenv("TMPDIR");
    const char *place = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : named != NULL ? named : "/tmp";
    sweep(place);
    out->fd = -1;
    const int n =
        snprintf(out->path, sizeof out->path, "%s/" PREFIX "%ld-XXXXXX", place, (long)getpid());
    if (n >= (int)sizeof out->path || mkdtemp(out->path) == NULL)
        return td_fail(err, TD_RUN, "cannot make a folder for mpirun's files in %s: %s", place,
                       strerror(errno));
    out->fd = lock(out->path);
    if (out->fd >= 0)
        return TD_OK;
    rmdir(out->path);
    return td_fail(err, TD_RUN, "cannot lock %s: %s", out->path, strerror(errno));
}

void td_scratch_close(td_scratch *s)
{
    if (s->fd < 0)
        return;
    remove_folder(s->path);
    close(s->fd);
    s->fd = -1;
}
