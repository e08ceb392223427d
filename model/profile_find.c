/*
 * Where shipped profiles are: the folders of $TANDEM_PROFILES (one, or several with `:` between
 * them), then examples/profiles of the tree it was built from, then share/tandem/profiles beside
 * the folder of the running program. The first folder that has a name wins.
 */
#include "model/profile.h"

#include "model/text.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef TD_PROFILE_DIR /* the build says where the tree is */
#define TD_PROFILE_DIR ""
#endif

enum { MAX_FOLDERS = 32, MAX_NAMES = 256, MAX_PATH = 4096 };

typedef struct {
    td_arena *arena;
    td_err *err;
    const char *folders[MAX_FOLDERS];
    int32_t n_folders, n_given; /* the given ones come first */
    struct {
        const char *name, *path;
    } shipped[MAX_NAMES]; /* by name */
    int32_t n_shipped;
} finder;

static td_status no_memory(const finder *f)
{
    return td_fail(f->err, TD_NOMEM, "no memory for the profiles");
}

static td_status add_folder(finder *f, const char *folder)
{
    if (folder == NULL)
        return no_memory(f);
    if (f->n_folders < MAX_FOLDERS)
        f->folders[f->n_folders++] = folder;
    return TD_OK;
}

/* /usr/bin/tandem has /usr/share/tandem/profiles. */
static td_status add_installed(finder *f)
{
    char program[MAX_PATH];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n < 0 ? 0 : n] = '\0';
    const char *beside = td_text_beside(f->arena, program, "../share/tandem/profiles");
    return program[0] == '\0' ? TD_OK : add_folder(f, beside);
}

static td_status add_folders(finder *f)
{
    td_status st = TD_OK;
    const char *given = getenv("TANDEM_PROFILES");
    while (given != NULL && *given != '\0') {
        const size_t n = strcspn(given, ":");
        if (n > 0)
            TD_TRY(st, add_folder(f, td_arena_printf(f->arena, "%.*s", (int)n, given)));
        given += n + (given[n] == ':');
    }
    f->n_given = f->n_folders;
    TD_TRY(st, add_folder(f, TD_PROFILE_DIR));
    TD_TRY(st, add_installed(f));
done:
    return st;
}

/* Keeps the names in order; a name that an earlier folder had stays that one's. */
static td_status add_shipped(finder *f, const char *folder, const char *entry)
{
    const size_t n = strlen(entry);
    if (n < 6 || entry[0] == '.' || strcmp(entry + n - 5, ".json") != 0)
        return TD_OK;
    const char *name = td_arena_printf(f->arena, "%.*s", (int)(n - 5), entry);
    const char *path = td_arena_printf(f->arena, "%s/%s", folder, entry);
    if (name == NULL || path == NULL)
        return no_memory(f);
    int32_t at = 0;
    while (at < f->n_shipped && strcmp(f->shipped[at].name, name) < 0)
        at++;
    if (at < f->n_shipped && strcmp(f->shipped[at].name, name) == 0)
        return TD_OK;
    if (f->n_shipped == MAX_NAMES)
        return td_fail(f->err, TD_FILE, "%s: more than %d profiles", folder, MAX_NAMES);
    for (int32_t i = f->n_shipped++; i > at; i--)
        f->shipped[i] = f->shipped[i - 1];
    f->shipped[at].name = name;
    f->shipped[at].path = path;
    return TD_OK;
}

/* Of the places tandem looks in by itself most do not exist; what the user names does. */
static td_status look_in(finder *f, const char *folder, bool given)
{
    td_status st = TD_OK;
    DIR *dir = opendir(folder);
    const bool absent = dir == NULL && (errno == ENOENT || errno == ENOTDIR || errno == EACCES);
    if (dir == NULL && given)
        return td_fail(f->err, TD_FILE, "%s: cannot open the folder that TANDEM_PROFILES names: %s",
                       folder, strerror(errno));
    if (dir == NULL && !absent)
        return td_fail(f->err, TD_FILE, "%s: cannot open the folder: %s", folder, strerror(errno));
    for (const struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;)
        TD_TRY(st, add_shipped(f, folder, e->d_name));
done:
    if (dir != NULL)
        closedir(dir);
    return st;
}

static td_status look(finder *f)
{
    td_status st = TD_OK;
    TD_TRY(st, add_folders(f));
    for (int32_t i = 0; i < f->n_folders; i++)
        TD_TRY(st, look_in(f, f->folders[i], i < f->n_given));
done:
    return st;
}

static const char *names(const finder *f)
{
    const char *list[MAX_NAMES + 1] = {NULL};
    for (int32_t i = 0; i < f->n_shipped; i++)
        list[i] = f->shipped[i].name;
    return f->n_shipped == 0 ? "none (is TANDEM_PROFILES set?)" : td_text_list(f->arena, list);
}

static td_status find_name(const finder *f, const char *name, const td_profile **out)
{
    for (int32_t i = 0; i < f->n_shipped; i++) {
        if (strcmp(f->shipped[i].name, name) == 0)
            return td_profile_load(f->arena, f->shipped[i].path, out, f->err);
    }
    return td_fail(f->err, TD_FILE, "%s: no such profile; a shipped one (%s) or a path to a file",
                   td_text_show(f->arena, name, strlen(name)), names(f));
}

static td_status find_gpu(const finder *f, const char *gpu, const td_profile **out)
{
    td_status st = TD_OK;
    const td_profile *found = NULL;
    for (int32_t i = 0; i < f->n_shipped && found == NULL; i++) {
        const td_profile *p = NULL;
        TD_TRY(st, td_profile_load(f->arena, f->shipped[i].path, &p, f->err));
        if (strcmp(p->gpu, gpu) == 0)
            found = p;
    }
    if (found == NULL)
        TD_TRY(st, td_fail(f->err, TD_FILE,
                           "no shipped profile for the GPU `%s`; name one with `profile`: %s",
                           td_text_show(f->arena, gpu, strlen(gpu)), names(f)));
    *out = found;
done:
    return st;
}

/* Names of files have a folder or an ending; names of profiles have neither. */
static bool is_path(const char *spec)
{
    return strchr(spec, '/') != NULL || strchr(spec, '.') != NULL;
}

td_status td_profile_find(td_arena *a, const char *spec, const char *gpu_name, const char *named_in,
                          const td_profile **out, td_err *err)
{
    td_status st = TD_OK;
    finder f = {.arena = a, .err = err};
    if (spec != NULL && is_path(spec)) {
        const char *path = named_in == NULL ? spec : td_text_beside(a, named_in, spec);
        if (path == NULL)
            TD_TRY(st, no_memory(&f));
        TD_TRY(st, td_profile_load(a, path, out, err));
    } else {
        TD_TRY(st, look(&f));
        TD_TRY(st, spec != NULL ? find_name(&f, spec, out)
                                : find_gpu(&f, gpu_name == NULL ? "" : gpu_name, out));
    }
done:
    return st;
}

td_status td_profile_list(td_arena *a, int32_t *n, const td_profile *const **out, td_err *err)
{
    td_status st = TD_OK;
    finder f = {.arena = a, .err = err};
    TD_TRY(st, look(&f));
    const td_profile **list = TD_NEW(a, const td_profile *, f.n_shipped);
    if (list == NULL)
        TD_TRY(st, no_memory(&f));
    for (int32_t i = 0; i < f.n_shipped; i++)
        TD_TRY(st, td_profile_load(a, f.shipped[i].path, &list[i], err));
    *n = f.n_shipped;
    *out = list;
done:
    return st;
}
