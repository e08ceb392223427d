/* Loads: the manifest is held against the plan, files against the manifest, and every rank takes
 * the pieces that intersect its slices. */
#include "exec/checkpoint.h"
#include "model/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 };

/* ---- the manifest against itself ---- */

static td_status read_manifest(const char *path, json_t **out, td_err *err)
{
    td_status st = TD_OK;
    json_error_t why;
    const char *format = NULL;
    int version = 0;
    char sum[65];
    json_t *claimed = NULL, *m;
    if (access(path, F_OK) != 0)
        return td_fail(err, TD_FILE, "%s: there is no checkpoint: %s", path, strerror(errno));
    m = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (m == NULL)
        TD_TRY(st, td_fail(err, TD_FILE, "%s:%d: damaged, or not the manifest of a checkpoint: %s",
                           path, why.line, why.text));
    if (json_unpack(m, "{s:s, s:i}", "format", &format, "version", &version) != 0 ||
        strcmp(format, "tandem checkpoint") != 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: not the manifest of a checkpoint", path));
    if (version != 1)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: has version %d, but this program reads version 1",
                           path, version));
    claimed = json_incref(json_object_get(m, "sha256"));
    json_object_del(m, "sha256");
    if (!td_checkpoint_sum(m, sum))
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for it", path));
    if (claimed == NULL || !json_is_string(claimed) || strcmp(json_string_value(claimed), sum) != 0)
        TD_TRY(st,
               td_fail(err, TD_FILE, "%s: damaged: its checksum is not the one it states", path));
    *out = json_incref(m);
done:
    json_decref(claimed);
    json_decref(m);
    return st;
}

static td_status no_sense(const char *path, const char *where, td_err *err)
{
    return td_fail(err, TD_FILE, "%s: `%s` is not as a checkpoint has it", path, where);
}

/* A plain name that begins so: what is read lies in the checkpoint's own folder. */
static bool plain(const char *name, const char *begin)
{
    return name != NULL && strncmp(name, begin, strlen(begin)) == 0 && strchr(name, '/') == NULL;
}

static td_status read_piece(td_arena *a, const char *path, const json_t *from, int64_t *offset,
                            td_checkpoint_piece *p, td_err *err)
{
    const char *tensor;
    json_int_t at[6];
    int moments;
    if (json_unpack((json_t *)from, "{s:s, s:[I,I], s:[I,I], s:[I,I], s:b}", "tensor", &tensor,
                    "rows", &at[0], &at[1], "cols", &at[2], &at[3], "elements", &at[4], &at[5],
                    "moments", &moments) != 0)
        return no_sense(path, "pieces", err);
    for (int k = 0; k < 6; k += 2)
        if (at[k] < 0 || at[k] >= at[k + 1] || at[k + 1] > INT64_MAX / 32)
            return no_sense(path, tensor, err);
    *p = (td_checkpoint_piece){.tensor = td_arena_printf(a, "%s", tensor),
                               .row0 = at[0],
                               .rows = at[1] - at[0],
                               .col0 = at[2],
                               .cols = at[3] - at[2],
                               .first = at[4],
                               .n = at[5] - at[4],
                               .moments = moments != 0,
                               .offset = *offset};
    if (p->tensor == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory for its pieces", path);
    if (at[1] > INT64_MAX / 32 / at[3] || at[5] > p->rows * p->cols)
        return no_sense(path, tensor, err);
    *offset += p->n * (int64_t)sizeof(float) * (p->moments ? 3 : 1);
    return TD_OK;
}

static td_status check_size(const td_checkpoint_file *f, td_err *err)
{
    struct stat s;
    if (stat(f->path, &s) != 0)
        return td_fail(err, TD_FILE, "%s: missing from the checkpoint: %s", f->path,
                       strerror(errno));
    if (!S_ISREG(s.st_mode) || s.st_size != f->bytes)
        return td_fail(err, TD_FILE, "%s: damaged: has %lld bytes, but the manifest says %lld",
                       f->path, (long long)s.st_size, (long long)f->bytes);
    return TD_OK;
}

static td_status read_file(td_arena *a, const char *path, const char *name, const json_t *from,
                           td_checkpoint_file *f, td_err *err)
{
    td_status st = TD_OK;
    const char *sum;
    const json_t *pieces;
    json_int_t bytes;
    int64_t offset = 0;
    if (json_unpack((json_t *)from, "{s:I, s:s, s:o}", "bytes", &bytes, "sha256", &sum, "pieces",
                    &pieces) != 0)
        TD_TRY(st, no_sense(path, name, err));
    td_checkpoint_piece *all = TD_NEW(a, td_checkpoint_piece, json_array_size(pieces));
    f->bytes = bytes;
    f->sha256 = td_arena_printf(a, "%s", sum);
    f->n_pieces = (int32_t)json_array_size(pieces);
    f->pieces = all;
    if (all == NULL || f->sha256 == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for its pieces", path));
    for (int32_t i = 0; i < f->n_pieces; i++)
        TD_TRY(st, read_piece(a, path, json_array_get(pieces, (size_t)i), &offset, &all[i], err));
    if (offset != bytes)
        TD_TRY(st, no_sense(path, name, err));
    TD_TRY(st, check_size(f, err));
done:
    return st;
}

static td_status read_files(td_arena *a, const char *dir, json_t *m, td_checkpoint *c, td_err *err)
{
    td_status st = TD_OK;
    json_t *files, *one;
    const char *folder, *name;
    json_int_t step, updates;
    if (json_unpack(m, "{s:s, s:I, s:I, s:o}", "folder", &folder, "step", &step, "updates",
                    &updates, "files", &files) != 0 ||
        !plain(folder, "step-") || step < 0 || updates < 0)
        TD_TRY(st, no_sense(c->manifest, "folder, step, updates, files", err));
    td_checkpoint_file *all = TD_NEW(a, td_checkpoint_file, json_object_size(files));
    if (all == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for its files", c->manifest));
    c->step = step;
    c->n_updates = updates;
    c->files = all;
    json_object_foreach(files, name, one)
    {
        td_checkpoint_file *f = &all[c->n_files++];
        if (!plain(name, "rank-"))
            TD_TRY(st, no_sense(c->manifest, name, err));
        f->path = td_arena_printf(a, "%s/%s/%s", dir, folder, name);
        if (f->path == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for its files", c->manifest));
        TD_TRY(st, read_file(a, c->manifest, name, one, f, err));
    }
done:
    return st;
}

/* ---- the manifest against the plan ---- */

static td_status compare_tensors(const char *path, json_t *theirs, json_t *ours, td_err *err)
{
    const char *name;
    json_t *shape;
    json_object_foreach(theirs, name, shape) if (
        json_object_get(ours, name) ==
        NULL) return td_fail(err, TD_FILE,
                             "%s: holds tensor `%s`, which the plan's model does not have", path,
                             name);
    json_object_foreach(ours, name, shape)
    {
        json_int_t is[2], wanted[2];
        json_t *there = json_object_get(theirs, name);
        if (there == NULL)
            return td_fail(err, TD_FILE, "%s: has no tensor `%s`, which the plan's model needs",
                           path, name);
        if (json_unpack(there, "[I,I]", &is[0], &is[1]) != 0 ||
            json_unpack(shape, "[I,I]", &wanted[0], &wanted[1]) != 0)
            return no_sense(path, name, err);
        if (is[0] != wanted[0] || is[1] != wanted[1])
            return td_fail(err, TD_FILE,
                           "%s: tensor `%s` is [%lld, %lld], but the plan's is [%lld, %lld]", path,
                           name, (long long)is[0], (long long)is[1], (long long)wanted[0],
                           (long long)wanted[1]);
    }
    return TD_OK;
}

/* What a tensor's shape does not show. */
static td_status compare_module(const char *path, const char *name, json_t *theirs, json_t *ours,
                                td_err *err)
{
    td_status st = TD_OK;
    static const char *const keys[] = {"type", "heads", "kv_heads", "head_dim", "mlp"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *is = json_object_get(theirs, keys[i]), *wanted = json_object_get(ours, keys[i]);
        if (json_equal(is, wanted))
            continue;
        char *a = json_dumps(is, JSON_ENCODE_ANY), *b = json_dumps(wanted, JSON_ENCODE_ANY);
        st =
            td_fail(err, TD_FILE, "%s: of another model: modules.%s.%s is %s, but the plan's is %s",
                    path, name, keys[i], a == NULL ? "missing" : a, b == NULL ? "?" : b);
        free(a);
        free(b);
        return st;
    }
    TD_TRY(st, compare_tensors(path, json_object_get(theirs, "tensors"),
                               json_object_get(ours, "tensors"), err));
done:
    return st;
}

static td_status compare_models(const char *path, const json_t *theirs, const json_t *ours,
                                td_err *err)
{
    td_status st = TD_OK;
    json_t *had = json_object_get(theirs, "modules"), *wanted = json_object_get(ours, "modules");
    json_t *one;
    const char *name;
    json_object_foreach(had, name, one) if (json_object_get(wanted, name) == NULL)
        TD_TRY(st, td_fail(err, TD_FILE,
                           "%s: of another model: holds module `%s`, which the plan does not have",
                           path, name));
    json_object_foreach(wanted, name, one)
    {
        if (json_object_get(had, name) == NULL)
            TD_TRY(st,
                   td_fail(err, TD_FILE, "%s: of another model: has no module `%s`", path, name));
        TD_TRY(st, compare_module(path, name, json_object_get(had, name), one, err));
    }
done:
    return st;
}

/* Elements of the tensor that the files hold; *moments: of its moments. */
static int64_t held(const td_checkpoint *c, const char *tensor, int64_t *moments)
{
    int64_t n = 0;
    *moments = 0;
    for (int32_t f = 0; f < c->n_files; f++)
        for (int32_t i = 0; i < c->files[f].n_pieces; i++)
            if (strcmp(c->files[f].pieces[i].tensor, tensor) == 0) {
                n += c->files[f].pieces[i].n;
                *moments += c->files[f].pieces[i].moments ? c->files[f].pieces[i].n : 0;
            }
    return n;
}

/* Every tensor whole, its moments too or not at all; counts those that train now and did not. */
static td_status check_whole(td_arena *a, const td_checkpoint *c, const td_plan *plan,
                             int32_t *thawed, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t m = 0; m < plan->n_modules; m++)
        for (int32_t pp = 0; pp < plan->modules[m].pp; pp++) {
            const td_stage stage = td_stage_of(plan, m, pp);
            td_tensors of;
            TD_TRY(st, td_tensors_of_stage(a, &stage, 0, &of, err));
            for (int32_t i = 0; i < of.n; i++) {
                const td_param *p = &of.all[i].param;
                int64_t moments;
                if (held(c, of.all[i].name, &moments) != p->out * p->in ||
                    (moments != 0 && moments != p->out * p->in))
                    TD_TRY(st, td_fail(err, TD_FILE, "%s: its files do not hold the whole of `%s`",
                                       c->manifest, of.all[i].name));
                *thawed += p->trainable && moments == 0;
            }
        }
done:
    return st;
}

static td_status take_note(td_arena *a, td_checkpoint *c, const json_t *theirs, const json_t *ours,
                           int32_t thawed, td_err *err)
{
    const char *parts[3] = {"", "", ""};
    const json_int_t seed = json_integer_value(json_object_get(theirs, "seed")),
                     seed_now = json_integer_value(json_object_get(ours, "seed"));
    const json_int_t batch = json_integer_value(json_object_get(theirs, "global_batch")),
                     batch_now = json_integer_value(json_object_get(ours, "global_batch"));
    if (thawed > 0)
        parts[0] = td_arena_printf(a, "; %d tensors were frozen, their moments start at zero",
                                   (int)thawed);
    if (seed != seed_now)
        parts[1] = td_arena_printf(a, "; seed was %lld and is %lld: other data", (long long)seed,
                                   (long long)seed_now);
    if (batch != batch_now)
        parts[2] = td_arena_printf(
            a, "; the global batch was %lld and is %lld: samples go on at step %lld of the new one",
            (long long)batch, (long long)batch_now, (long long)c->step);
    for (int i = 0; i < 3; i++)
        if (parts[i] == NULL)
            return td_fail(err, TD_NOMEM, "%s: no memory for a note", c->manifest);
    c->note = td_arena_printf(a, "%s%s%s", parts[0], parts[1], parts[2]);
    if (c->note == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory for a note", c->manifest);
    return TD_OK;
}

td_status td_checkpoint_open(td_arena *a, const char *dir, const td_plan *plan,
                             const td_checkpoint **out, td_err *err)
{
    td_status st = TD_OK;
    int32_t thawed = 0;
    json_t *theirs = NULL, *ours = NULL;
    td_checkpoint *c = TD_NEW(a, td_checkpoint, 1);
    const char *path = td_arena_printf(a, "%s/manifest.json", dir);
    if (c == NULL || path == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for the checkpoint", dir));
    c->manifest = path;
    TD_TRY(st, read_manifest(path, &theirs, err));
    ours = td_checkpoint_model(a, plan, err);
    if (ours == NULL)
        TD_TRY(st, TD_NOMEM);
    TD_TRY(st, compare_models(path, theirs, ours, err));
    TD_TRY(st, read_files(a, dir, theirs, c, err));
    TD_TRY(st, check_whole(a, c, plan, &thawed, err));
    TD_TRY(st, take_note(a, c, theirs, ours, thawed, err));
    *out = c;
done:
    json_decref(theirs);
    json_decref(ours);
    return st;
}

/* ---- checksums ---- */

static td_status verify_file(const td_checkpoint_file *f, char *buffer, td_err *err)
{
    td_status st = TD_OK;
    td_sha256 sum;
    char hex[65];
    int64_t total = 0;
    ssize_t n = 1;
    const int fd = open(f->path, O_RDONLY);
    if (fd < 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot read the checkpoint: %s", f->path,
                           strerror(errno)));
    td_sha256_begin(&sum);
    while (n != 0) {
        n = read(fd, buffer, CHUNK);
        if (n < 0 && errno != EINTR)
            TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot read the checkpoint: %s", f->path,
                               strerror(errno)));
        if (n > 0)
            td_sha256_add(&sum, buffer, (size_t)n);
        total += n > 0 ? n : 0;
    }
    td_sha256_end(&sum, hex);
    if (total != f->bytes || strcmp(hex, f->sha256) != 0)
        TD_TRY(st,
               td_fail(err, TD_FILE, "%s: damaged: its checksum is not the manifest's", f->path));
done:
    if (fd >= 0)
        close(fd);
    return st;
}

td_status td_checkpoint_verify(const td_checkpoint *c, int32_t rank, int32_t world, td_err *err)
{
    td_status st = TD_OK;
    char *buffer = malloc(CHUNK);
    if (buffer == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to check its files", c->manifest));
    for (int32_t f = rank; f < c->n_files; f += world)
        TD_TRY(st, verify_file(&c->files[f], buffer, err));
done:
    free(buffer);
    return st;
}

/* ---- pieces into slices ---- */

/* Elements [first, first + n), row by row, of a block of a tensor with `width` columns. */
typedef struct {
    int64_t row0, rows, col0, cols, first, n;
} block;

/* Rows of full width are one long row. */
static block unrolled(block b, int64_t width)
{
    return (block){
        .rows = 1, .col0 = b.row0 * width, .cols = b.rows * width, .first = b.first, .n = b.n};
}

/* The columns of the tensor's row that the block has: [*begin, *end), and which element of its
 * numbers the first is. */
static void columns(const block *b, int64_t row, int64_t *begin, int64_t *end, int64_t *at)
{
    const int64_t base = (row - b->row0) * b->cols;
    const int64_t from = b->first > base ? b->first - base : 0, rest = b->first + b->n - base,
                  to = rest < b->cols ? rest : b->cols;
    *begin = b->col0 + from;
    *end = b->col0 + to;
    *at = base + from - b->first;
}

/* Copies what both have; how many elements. `from` and `to` hold the numbers of their blocks. */
static int64_t copy_common(block src, const float *from, block dst, float *to, int64_t width)
{
    int64_t copied = 0;
    if (src.cols == width && dst.cols == width) {
        src = unrolled(src, width);
        dst = unrolled(dst, width);
    }
    const int64_t row0 = src.row0 > dst.row0 ? src.row0 : dst.row0;
    const int64_t src_end = src.row0 + src.rows, dst_end = dst.row0 + dst.rows;
    for (int64_t row = row0; row < (src_end < dst_end ? src_end : dst_end); row++) {
        int64_t s0, s1, s_at, d0, d1, d_at;
        columns(&src, row, &s0, &s1, &s_at);
        columns(&dst, row, &d0, &d1, &d_at);
        const int64_t begin = s0 > d0 ? s0 : d0, end = s1 < d1 ? s1 : d1;
        if (begin >= end)
            continue;
        memcpy(to + d_at + begin - d0, from + s_at + begin - s0,
               (size_t)(end - begin) * sizeof(float));
        copied += end - begin;
    }
    return copied;
}

static block block_of(const td_tensor *t, int64_t first, int64_t n)
{
    return (block){
        .row0 = t->row0, .rows = t->rows, .col0 = t->col0, .cols = t->cols, .first = first, .n = n};
}

/* What there is to fill in, and how much of it is. */
typedef struct {
    const td_run_state *state;
    int64_t weights, moments;
} filling;

static void take_piece(filling *f, const td_checkpoint_piece *p, const char *file)
{
    const td_run_state *s = f->state;
    const block src = {.row0 = p->row0,
                       .rows = p->rows,
                       .col0 = p->col0,
                       .cols = p->cols,
                       .first = p->first,
                       .n = p->n};
    const float *w = (const float *)(const void *)(file + p->offset);
    for (int32_t i = 0; i < s->tensors.n; i++) {
        const td_tensor *t = &s->tensors.all[i];
        if (strcmp(t->name, p->tensor) == 0)
            f->weights += copy_common(src, w, block_of(t, 0, t->rows * t->cols), s->w + t->offset,
                                      t->param.in);
    }
    for (int32_t i = 0; p->moments && i < s->n_spans; i++) {
        const td_state_span *span = &s->spans[i];
        const block dst = block_of(span->tensor, span->first, span->n);
        if (strcmp(span->tensor->name, p->tensor) != 0)
            continue;
        f->moments += copy_common(src, w + p->n, dst, span->m, span->tensor->param.in);
        copy_common(src, w + 2 * p->n, dst, span->v, span->tensor->param.in);
    }
}

static td_status take_file(filling *f, const td_checkpoint_file *file, td_err *err)
{
    td_status st = TD_OK;
    void *map = MAP_FAILED;
    const int fd = open(file->path, O_RDONLY);
    if (fd < 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot read the checkpoint: %s", file->path,
                           strerror(errno)));
    TD_TRY(st, check_size(file, err));
    map = mmap(NULL, (size_t)file->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot read the checkpoint: %s", file->path,
                           strerror(errno)));
    for (int32_t i = 0; i < file->n_pieces; i++)
        take_piece(f, &file->pieces[i], map);
done:
    if (map != MAP_FAILED)
        munmap(map, (size_t)file->bytes);
    if (fd >= 0)
        close(fd);
    return st;
}

static bool wants(const td_run_state *s, const td_checkpoint_file *file)
{
    for (int32_t i = 0; i < file->n_pieces; i++)
        for (int32_t k = 0; k < s->tensors.n; k++)
            if (strcmp(file->pieces[i].tensor, s->tensors.all[k].name) == 0)
                return true;
    return false;
}

td_status td_checkpoint_read(const td_checkpoint *c, const td_run_state *state, td_err *err)
{
    td_status st = TD_OK;
    filling f = {.state = state};
    int64_t weights = 0, moments = 0;
    for (int32_t i = 0; i < state->tensors.n; i++)
        weights += state->tensors.all[i].rows * state->tensors.all[i].cols;
    for (int32_t i = 0; i < state->n_spans; i++) {
        int64_t there;
        held(c, state->spans[i].tensor->name, &there);
        moments += there > 0 ? state->spans[i].n : 0;
        memset(state->spans[i].m, 0, (size_t)state->spans[i].n * sizeof(float));
        memset(state->spans[i].v, 0, (size_t)state->spans[i].n * sizeof(float));
    }
    for (int32_t i = 0; i < c->n_files; i++)
        if (wants(state, &c->files[i]))
            TD_TRY(st, take_file(&f, &c->files[i], err));
    if (f.weights != weights || f.moments != moments)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: its pieces overlap or leave gaps", c->manifest));
    *state->n_updates = c->n_updates;
done:
    return st;
}
