/* Saves: a file per writer, then the manifest, each whole on disk before its name appears. */
#include "exec/checkpoint.h"
#include "model/sha256.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PATH = 4096, CHUNK = 1 << 20 };

/* ---- files that appear whole ---- */

typedef struct {
    int fd;
    char path[MAX_PATH], temp[MAX_PATH];
    td_sha256 sum;
    int64_t bytes;
} sink;

static td_status name_path(char path[MAX_PATH], const char *dir, const char *middle,
                           const char *name, td_err *err)
{
    const int n = middle == NULL ? snprintf(path, MAX_PATH, "%s/%s", dir, name)
                                 : snprintf(path, MAX_PATH, "%s/%s/%s", dir, middle, name);
    if (n >= MAX_PATH)
        return td_fail(err, TD_FILE, "%.200s...: the path is too long", dir);
    return TD_OK;
}

static td_status sync_folder(const char *path, td_err *err)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY);
    const bool ok = fd >= 0 && fsync(fd) == 0;
    const int why = errno;
    if (fd >= 0)
        close(fd);
    return ok ? TD_OK : td_fail(err, TD_RUN, "%s: cannot sync the folder: %s", path, strerror(why));
}

static td_status sink_open(sink *s, const char *dir, const char *middle, const char *name,
                           td_err *err)
{
    td_status st = TD_OK;
    char temp[64];
    s->fd = -1;
    s->bytes = 0;
    td_sha256_begin(&s->sum);
    snprintf(temp, sizeof temp, "%s.tmp", name);
    TD_TRY(st, name_path(s->path, dir, middle, name, err));
    TD_TRY(st, name_path(s->temp, dir, middle, temp, err));
    s->fd = open(s->temp, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (s->fd < 0)
        TD_TRY(st, td_fail(err, TD_RUN, "%s: cannot write the checkpoint: %s", s->temp,
                           strerror(errno)));
done:
    return st;
}

static td_status sink_put(sink *s, const void *data, size_t size, td_err *err)
{
    const char *p = data;
    while (size > 0) {
        const ssize_t n = write(s->fd, p, size < CHUNK ? size : CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return td_fail(err, TD_RUN, "%s: cannot write the checkpoint: %s", s->temp,
                           strerror(n < 0 ? errno : ENOSPC));
        td_sha256_add(&s->sum, p, (size_t)n);
        s->bytes += n;
        p += n;
        size -= (size_t)n;
    }
    return TD_OK;
}

/* The name appears. The folder is still to be synced. */
static td_status sink_finish(sink *s, td_err *err)
{
    const bool flushed = fsync(s->fd) == 0, closed = close(s->fd) == 0;
    s->fd = -1;
    if (!flushed || !closed || rename(s->temp, s->path) != 0)
        return td_fail(err, TD_RUN, "%s: cannot finish the checkpoint's file: %s", s->path,
                       strerror(errno));
    return TD_OK;
}

static void sink_abandon(sink *s)
{
    if (s->fd >= 0) {
        close(s->fd);
        unlink(s->temp);
    }
}

/* ---- folders ---- */

static bool is_ours(const char *name)
{
    return strncmp(name, "rank-", 5) == 0;
}

/* Removes a checkpoint's folder with what checkpoints put into it, and nothing else. */
static void remove_folder(const char *dir, const char *folder)
{
    char path[MAX_PATH];
    DIR *d = name_path(path, dir, NULL, folder, NULL) == TD_OK ? opendir(path) : NULL;
    if (d == NULL)
        return;
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        if (is_ours(e->d_name))
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(path); /* stays if somebody else keeps files there */
}

static void remove_others(const char *dir, const char *folder)
{
    DIR *d = opendir(dir);
    for (const struct dirent *e = d == NULL ? NULL : readdir(d); e != NULL; e = readdir(d))
        if (strncmp(e->d_name, "step-", 5) == 0 && strcmp(e->d_name, folder) != 0)
            remove_folder(dir, e->d_name);
    if (d != NULL)
        closedir(d);
}

/* The folder of the checkpoint that stands in DIR; empty if there is none. */
static td_status standing(const char *dir, char folder[TD_CHECKPOINT_FOLDER], td_err *err)
{
    td_status st = TD_OK;
    char path[MAX_PATH];
    const char *format = NULL, *named = NULL;
    json_t *m = NULL;
    folder[0] = '\0';
    TD_TRY(st, name_path(path, dir, NULL, "manifest.json", err));
    if (access(path, F_OK) != 0)
        goto done;
    m = json_load_file(path, 0, NULL);
    if (json_unpack(m, "{s:s, s:s}", "format", &format, "folder", &named) != 0 ||
        strcmp(format, "tandem checkpoint") != 0 || strlen(named) >= TD_CHECKPOINT_FOLDER)
        TD_TRY(st, td_fail(err, TD_FILE,
                           "%s: is not the manifest of a checkpoint, and nothing is saved over it; "
                           "remove it or name another folder",
                           path));
    snprintf(folder, TD_CHECKPOINT_FOLDER, "%s", named);
done:
    json_decref(m);
    return st;
}

td_status td_checkpoint_prepare(const char *dir, td_err *err)
{
    char folder[TD_CHECKPOINT_FOLDER];
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return td_fail(err, TD_FILE, "%s: cannot make the folder of the checkpoint: %s", dir,
                       strerror(errno));
    struct stat s;
    if (stat(dir, &s) != 0 || !S_ISDIR(s.st_mode) || access(dir, W_OK | X_OK) != 0)
        return td_fail(err, TD_FILE, "%s: is not a folder that a checkpoint can be saved in", dir);
    return standing(dir, folder, err);
}

td_status td_checkpoint_begin(const char *dir, int64_t step, char folder[TD_CHECKPOINT_FOLDER],
                              td_err *err)
{
    td_status st = TD_OK;
    char path[MAX_PATH], now[TD_CHECKPOINT_FOLDER];
    TD_TRY(st, td_checkpoint_prepare(dir, err));
    TD_TRY(st, standing(dir, now, err));
    snprintf(folder, TD_CHECKPOINT_FOLDER, "step-%lld", (long long)step);
    if (strcmp(folder, now) == 0)
        snprintf(folder, TD_CHECKPOINT_FOLDER, "step-%lld-again", (long long)step);
    remove_folder(dir, folder); /* of a save that was cut off */
    TD_TRY(st, name_path(path, dir, NULL, folder, err));
    if (mkdir(path, 0777) != 0)
        TD_TRY(st, td_fail(err, TD_RUN, "%s: cannot make the folder of the checkpoint: %s", path,
                           strerror(errno)));
    TD_TRY(st, sync_folder(dir, err));
done:
    return st;
}

void td_checkpoint_abandon(const char *dir, const char *folder)
{
    remove_folder(dir, folder);
}

/* ---- a rank's file ---- */

typedef struct {
    sink out;
    json_t *pieces;
} writer;

static td_status write_piece(writer *w, const td_run_state *s, const td_state_span *p, td_err *err)
{
    td_status st = TD_OK;
    const td_tensor *t = p->tensor;
    const float *arrays[] = {s->w + t->offset + p->first, p->m, p->v};
    json_t *piece =
        json_pack("{s:s, s:[I,I], s:[I,I], s:[I,I], s:b}", "tensor", t->name, "rows",
                  (json_int_t)t->row0, (json_int_t)(t->row0 + t->rows), "cols", (json_int_t)t->col0,
                  (json_int_t)(t->col0 + t->cols), "elements", (json_int_t)p->first,
                  (json_int_t)(p->first + p->n), "moments", p->m != NULL);
    if (json_array_append_new(w->pieces, piece) != 0)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the checkpoint's pieces"));
    for (int32_t k = 0; k < (p->m == NULL ? 1 : 3); k++)
        TD_TRY(st, sink_put(&w->out, arrays[k], (size_t)p->n * sizeof(float), err));
done:
    return st;
}

static td_status write_pieces(writer *w, const td_run_state *s, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t i = 0; i < s->n_spans; i++)
        if (s->spans[i].tensor->counts && (s->sharded || s->lane == 0))
            TD_TRY(st, write_piece(w, s, &s->spans[i], err));
    for (int32_t i = 0; i < s->tensors.n; i++) {
        const td_tensor *t = &s->tensors.all[i];
        const td_state_span frozen = {.tensor = t, .n = t->rows * t->cols};
        if (!t->param.trainable && t->counts && s->lane == 0)
            TD_TRY(st, write_piece(w, s, &frozen, err));
    }
done:
    return st;
}

/* The text of a JSON value, in the arena. */
static const char *text_of(td_arena *a, const json_t *value, size_t flags)
{
    char *text = json_dumps(value, flags);
    const char *kept = text == NULL ? NULL : td_arena_printf(a, "%s", text);
    free(text);
    return kept;
}

td_status td_checkpoint_write(td_arena *a, const char *dir, const char *folder, int32_t rank,
                              const td_run_state *state, const char **record, td_err *err)
{
    td_status st = TD_OK;
    char name[32], path[MAX_PATH], sum[65];
    writer w = {.out.fd = -1, .pieces = json_array()};
    json_t *all = NULL;
    snprintf(name, sizeof name, "rank-%d.f32", (int)rank);
    TD_TRY(st, sink_open(&w.out, dir, folder, name, err));
    TD_TRY(st, write_pieces(&w, state, err));
    td_sha256_end(&w.out.sum, sum);
    const int64_t n_pieces = (int64_t)json_array_size(w.pieces);
    all = json_pack("{s:I, s:s, s:s, s:I, s:O}", "updates", (json_int_t)*state->n_updates, "file",
                    name, "sha256", sum, "bytes", (json_int_t)w.out.bytes, "pieces", w.pieces);
    *record = text_of(a, all, JSON_COMPACT);
    if (*record == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the checkpoint's record"));
    if (n_pieces > 0) { /* who has nothing to write leaves no file */
        TD_TRY(st, sink_finish(&w.out, err));
        TD_TRY(st, name_path(path, dir, NULL, folder, err));
        TD_TRY(st, sync_folder(path, err));
    }
done:
    sink_abandon(&w.out);
    json_decref(w.pieces);
    json_decref(all);
    return st;
}

/* ---- the manifest ---- */

static td_status add_module(td_arena *a, const td_plan *plan, int32_t m, json_t *all, td_err *err)
{
    td_status st = TD_OK;
    const td_module *module = &plan->modules[m];
    json_t *tensors = json_object();
    json_t *one =
        json_pack("{s:s, s:i, s:i, s:i, s:s, s:O}", "type", module->type->name, "heads",
                  (int)module->heads, "kv_heads", (int)module->kv_heads, "head_dim",
                  (int)module->head_dim, "mlp", td_mlp_names[module->mlp], "tensors", tensors);
    if (json_object_set_new(all, module->name, one) != 0)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the checkpoint's manifest"));
    for (int32_t pp = 0; pp < module->pp; pp++) {
        const td_stage stage = td_stage_of(plan, m, pp);
        td_tensors of;
        TD_TRY(st, td_tensors_of_stage(a, &stage, 0, &of, err));
        for (int32_t i = 0; i < of.n; i++)
            if (json_object_set_new(tensors, of.all[i].name,
                                    json_pack("[I,I]", (json_int_t)of.all[i].param.out,
                                              (json_int_t)of.all[i].param.in)) != 0)
                TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the checkpoint's manifest"));
    }
done:
    json_decref(tensors);
    return st;
}

json_t *td_checkpoint_model(td_arena *a, const td_plan *plan, td_err *err)
{
    td_status st = TD_OK;
    json_t *modules = json_object(), *all = NULL;
    for (int32_t m = 0; m < plan->n_modules; m++)
        TD_TRY(st, add_module(a, plan, m, modules, err));
    all = json_pack("{s:s, s:I, s:I, s:O}", "plan", plan->name, "seed", (json_int_t)plan->seed,
                    "global_batch",
                    (json_int_t)plan->step.microbatches * plan->step.micro_batch *
                        plan->modules[plan->language].dp,
                    "modules", modules);
    if (all == NULL)
        td_fail(err, TD_NOMEM, "no memory for the checkpoint's manifest");
done:
    json_decref(modules);
    return all;
}

bool td_checkpoint_sum(const json_t *manifest, char hex[65])
{
    td_sha256 sum;
    char *text = json_dumps(manifest, JSON_COMPACT | JSON_SORT_KEYS);
    if (text == NULL)
        return false;
    td_sha256_begin(&sum);
    td_sha256_add(&sum, text, strlen(text));
    td_sha256_end(&sum, hex);
    free(text);
    return true;
}

/* Adds a rank's record to the files; the updates are those of the rank that knows of most, for an
 * idle one makes none. */
static td_status add_record(json_t *files, json_int_t *updates, const char *record, td_err *err)
{
    td_status st = TD_OK;
    json_t *one = json_loads(record, 0, NULL), *pieces;
    const char *name;
    json_int_t own;
    if (json_unpack(one, "{s:I, s:s, s:o}", "updates", &own, "file", &name, "pieces", &pieces) != 0)
        TD_TRY(st, td_fail(err, TD_RUN, "a rank's record of the checkpoint is garbled"));
    *updates = own > *updates ? own : *updates;
    if (json_array_size(pieces) > 0 && json_object_set(files, name, one) != 0)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the checkpoint's manifest"));
    json_object_del(one, "updates");
    json_object_del(one, "file");
done:
    json_decref(one);
    return st;
}

static td_status write_manifest(const char *dir, const json_t *manifest, td_err *err)
{
    td_status st = TD_OK;
    sink out;
    char *text = json_dumps(manifest, JSON_COMPACT | JSON_SORT_KEYS);
    TD_TRY(st, sink_open(&out, dir, NULL, "manifest.json", err));
    if (text == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the checkpoint's manifest"));
    TD_TRY(st, sink_put(&out, text, strlen(text), err));
    TD_TRY(st, sink_put(&out, "\n", 1, err));
    TD_TRY(st, sink_finish(&out, err));
    TD_TRY(st, sync_folder(dir, err));
done:
    sink_abandon(&out);
    free(text);
    return st;
}

td_status td_checkpoint_commit(td_arena *a, const char *dir, const char *folder,
                               const td_plan *plan, int64_t step, int32_t n_records,
                               const char *const *records, td_err *err)
{
    td_status st = TD_OK;
    char sum[65];
    json_int_t updates = 0;
    json_t *files = json_object(), *more = NULL, *manifest = td_checkpoint_model(a, plan, err);
    if (manifest == NULL)
        TD_TRY(st, TD_NOMEM);
    for (int32_t i = 0; i < n_records; i++)
        TD_TRY(st, add_record(files, &updates, records[i], err));
    more =
        json_pack("{s:s, s:i, s:s, s:I, s:I, s:O}", "format", "tandem checkpoint", "version", 1,
                  "folder", folder, "step", (json_int_t)step, "updates", updates, "files", files);
    if (json_object_update(manifest, more) != 0 || !td_checkpoint_sum(manifest, sum) ||
        json_object_set_new(manifest, "sha256", json_string(sum)) != 0)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the checkpoint's manifest"));
    TD_TRY(st, write_manifest(dir, manifest, err));
    remove_others(dir, folder);
done:
    json_decref(files);
    json_decref(more);
    json_decref(manifest);
    return st;
}
