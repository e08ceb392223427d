/* Whatever layout saves, any other loads the same numbers; what is not whole or not ours is
 * refused. */
#include "exec/checkpoint.h"
#include "tests/model/plans.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- layouts of one model ---- */

#define WHOLE "sharded: false"
static const plan_shape layouts[] = {
    {.name = "one rank each", .n_encoders = 1, .kv_heads = 2},
    {.name = "tensors and stages",
     .n_encoders = 1,
     .kv_heads = 2,
     .encoder = {{.tp = 2}},
     .language = {.tp = 2, .pp = 2}},
    {.name = "shards",
     .n_encoders = 1,
     .kv_heads = 2,
     .encoder = {{.dp = 2}},
     .language = {.dp = 4}},
    {.name = "replicas",
     .n_encoders = 1,
     .kv_heads = 2,
     .encoder = {{.dp = 2}},
     .language = {.dp = 2},
     .optimizer = WHOLE},
    {.name = "kv heads on several ranks",
     .n_encoders = 1,
     .kv_heads = 2,
     .encoder = {{.tp = 4, .pp = 2}},
     .language = {.tp = 4, .dp = 2}},
    {.name = "uneven stages",
     .n_encoders = 1,
     .kv_heads = 2,
     .encoder = {{.pp = 2, .stage_layers = "[1, 3]"}},
     .language = {.tp = 2, .pp = 2, .dp = 2, .stage_layers = "[3, 1]"}},
    {.name = "idle ranks", .n_encoders = 1, .kv_heads = 2, .idle = 2, .language = {.pp = 4}},
};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

/* ---- all ranks of a run, in one process ---- */

enum { MAX_CREW = 64 };

typedef struct {
    td_arena *a;
    const td_plan *plan;
    int32_t n;
    td_run_state ranks[MAX_CREW];
    int64_t *updates; /* [MAX_CREW] */
} crew;

/* Cuts the trainable elements into one run per lane, at the borders of tensors. */
static void cut(crew *c, td_run_state *s, int32_t lanes)
{
    int64_t end = 0;
    for (int32_t i = 0; i < s->tensors.n; i++)
        if (s->tensors.all[i].param.trainable)
            end = s->tensors.all[i].offset + s->tensors.all[i].param.local;
    const int64_t low = end * s->lane / lanes, high = end * (s->lane + 1) / lanes;
    td_state_span *spans = TD_NEW(c->a, td_state_span, s->tensors.n);
    for (int32_t i = 0; i < s->tensors.n; i++) {
        const td_tensor *t = &s->tensors.all[i];
        const int64_t stop = t->offset + t->param.local;
        const int64_t from = t->offset > low ? t->offset : low, to = stop < high ? stop : high;
        if (t->param.trainable && from < to)
            spans[s->n_spans++] = (td_state_span){.tensor = t,
                                                  .first = from - t->offset,
                                                  .n = to - from,
                                                  .m = TD_NEW(c->a, float, to - from),
                                                  .v = TD_NEW(c->a, float, to - from)};
    }
    s->spans = spans;
}

static void add_rank(crew *c, const td_stage *stage, int32_t tp_rank, int32_t lane)
{
    td_run_state *s = &c->ranks[c->n];
    td_err err = {0};
    const int32_t dp = stage->module->dp;
    *s = (td_run_state){.lane = lane, .sharded = c->plan->optimizer.sharded && dp > 1};
    s->n_updates = &c->updates[c->n++];
    cr_assert_eq(td_tensors_of_stage(c->a, stage, tp_rank, &s->tensors, &err), TD_OK, "%s",
                 err.text);
    s->w = TD_NEW(c->a, float, s->tensors.elements);
    td_run_state whole = *s;
    whole.lane = 0;
    cut(c, s->sharded ? s : &whole, s->sharded ? dp : 1);
    s->spans = s->sharded ? s->spans : whole.spans;
    s->n_spans = s->sharded ? s->n_spans : whole.n_spans;
}

static crew crew_of(const plan_shape *shape)
{
    crew c = {.a = td_arena_new()};
    c.plan = plan_of(c.a, shape);
    c.updates = TD_NEW(c.a, int64_t, MAX_CREW);
    for (; c.n < shape->idle; c.n++)
        c.ranks[c.n].n_updates = &c.updates[c.n];
    for (int32_t m = 0; m < c.plan->n_modules; m++)
        for (int32_t pp = 0; pp < c.plan->modules[m].pp; pp++) {
            const td_stage stage = td_stage_of(c.plan, m, pp);
            for (int32_t i = 0; i < stage.module->tp * stage.module->dp; i++)
                add_rank(&c, &stage, i % stage.module->tp, i / stage.module->tp);
        }
    cr_assert_leq(c.n, (int32_t)MAX_CREW);
    return c;
}

/* Number `index` of a whole tensor: a float of its own for weights and either moment. */
static float number_of(const td_tensor *t, int64_t local, int kind)
{
    const int64_t row = t->row0 + local / t->cols, col = t->col0 + local % t->cols;
    uint64_t h = 1469598103934665603u + (uint64_t)kind;
    for (const char *p = t->name; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 1099511628211u;
    h = (h ^ (uint64_t)(row * t->param.in + col)) * 1099511628211u;
    return (float)((h >> 20) & 0xffffff) + 1;
}

enum { FILL, SPOIL, CHECK };

static void visit(const td_tensor *t, int64_t first, int64_t n, float *x, int kind, int what)
{
    for (int64_t i = 0; i < n; i++) {
        const float wanted = number_of(t, first + i, kind);
        if (what == CHECK)
            cr_assert_eq(x[i], wanted, "%s, element %lld, array %d: %g, expected %g", t->name,
                         (long long)(first + i), kind, (double)x[i], (double)wanted);
        else
            x[i] = what == FILL ? wanted : NAN;
    }
}

static void visit_all(crew *c, int what)
{
    for (int32_t r = 0; r < c->n; r++) {
        td_run_state *s = &c->ranks[r];
        for (int32_t i = 0; i < s->tensors.n; i++) {
            const td_tensor *t = &s->tensors.all[i];
            visit(t, 0, t->rows * t->cols, s->w + t->offset, 0, what);
        }
        for (int32_t i = 0; i < s->n_spans; i++) {
            visit(s->spans[i].tensor, s->spans[i].first, s->spans[i].n, s->spans[i].m, 1, what);
            visit(s->spans[i].tensor, s->spans[i].first, s->spans[i].n, s->spans[i].v, 2, what);
        }
        if (what == FILL) /* an idle rank makes no update */
            c->updates[r] = s->tensors.n > 0 ? 7 : 0;
        else if (what == CHECK)
            cr_assert_eq(c->updates[r], 7);
    }
}

/* ---- folders ---- */

static char dir[64];

static void in_a_folder(void)
{
    snprintf(dir, sizeof dir, "/tmp/checkpoint.XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void gone(void)
{
    char line[128];
    snprintf(line, sizeof line, "rm -rf '%s'", dir);
    cr_assert_eq(system(line), 0);
}

TestSuite(checkpoint, .init = in_a_folder, .fini = gone);

static const char *inside(const char *name)
{
    static char path[4][512];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static int files_in(const char *path)
{
    int n = 0;
    DIR *d = opendir(path);
    for (const struct dirent *e = d == NULL ? NULL : readdir(d); e != NULL; e = readdir(d))
        n += e->d_name[0] != '.';
    if (d != NULL)
        closedir(d);
    return d == NULL ? -1 : n;
}

/* ---- phases of a save ---- */

enum { BEGUN, PARTLY, WRITTEN, COMMITTED };

static void save(crew *c, int64_t step, int until)
{
    td_err err = {0};
    char folder[TD_CHECKPOINT_FOLDER];
    const char *records[MAX_CREW];
    cr_assert_eq(td_checkpoint_begin(dir, step, folder, &err), TD_OK, "%s", err.text);
    for (int32_t r = 0; r < c->n && until > BEGUN; r++)
        if (until > PARTLY || r % 2 == 0)
            cr_assert_eq(td_checkpoint_write(c->a, dir, folder, r, &c->ranks[r], &records[r], &err),
                         TD_OK, "%s", err.text);
    if (until == COMMITTED)
        cr_assert_eq(td_checkpoint_commit(c->a, dir, folder, c->plan, step, c->n, records, &err),
                     TD_OK, "%s", err.text);
}

static td_status load(crew *c, const td_checkpoint **found, td_err *err)
{
    td_status st = TD_OK;
    *err = (td_err){0};
    TD_TRY(st, td_checkpoint_open(c->a, dir, c->plan, found, err));
    for (int32_t r = 0; r < c->n; r++)
        TD_TRY(st, td_checkpoint_verify(*found, r, c->n, err));
    for (int32_t r = 0; r < c->n; r++)
        TD_TRY(st, td_checkpoint_read(*found, &c->ranks[r], err));
done:
    return st;
}

/* ---- laws ---- */

Test(checkpoint, every_layout_loads_what_any_other_saved)
{
    for (int from = 0; from < N_LAYOUTS; from++) {
        crew writers = crew_of(&layouts[from]);
        visit_all(&writers, FILL);
        save(&writers, from, COMMITTED);
        for (int to = 0; to < N_LAYOUTS; to++) {
            crew readers = crew_of(&layouts[to]);
            const td_checkpoint *found;
            td_err err;
            visit_all(&readers, SPOIL);
            cr_assert_eq(load(&readers, &found, &err), TD_OK, "%s to %s: %s", layouts[from].name,
                         layouts[to].name, err.text);
            cr_assert_eq(found->step, from);
            visit_all(&readers, CHECK);
            td_arena_free(readers.a);
        }
        td_arena_free(writers.a);
    }
}

Test(checkpoint, every_number_is_written_once_whatever_the_layout)
{
    int64_t expected = 0;
    for (int i = 0; i < N_LAYOUTS; i++) {
        crew c = crew_of(&layouts[i]);
        const td_checkpoint *found;
        td_err err;
        int64_t bytes = 0;
        visit_all(&c, FILL);
        save(&c, i, COMMITTED);
        cr_assert_eq(load(&c, &found, &err), TD_OK, "%s", err.text);
        for (int32_t f = 0; f < found->n_files; f++)
            bytes += found->files[f].bytes;
        expected = i == 0 ? bytes : expected;
        cr_assert_eq(bytes, expected, "%s: %lld bytes, expected %lld", layouts[i].name,
                     (long long)bytes, (long long)expected);
        td_arena_free(c.a);
    }
}

Test(checkpoint, a_save_cut_off_anywhere_leaves_the_one_before)
{
    for (int until = BEGUN; until <= WRITTEN; until++)
        for (int64_t step = 5; step <= 6; step++) { /* the same step again, and the next */
            crew c = crew_of(&layouts[1]);
            const td_checkpoint *found;
            td_err err;
            visit_all(&c, FILL);
            save(&c, 5, COMMITTED);
            save(&c, step, until);
            FILE *half = fopen(inside("manifest.json.tmp"), "w");
            cr_assert(half != NULL && fputs("{\"format\": \"tand", half) > 0 && fclose(half) == 0);
            visit_all(&c, SPOIL);
            cr_assert_eq(load(&c, &found, &err), TD_OK, "%s", err.text);
            cr_assert_eq(found->step, 5);
            visit_all(&c, CHECK);
            save(&c, 9, COMMITTED);
            cr_assert_eq(files_in(dir), 2, "what was cut off is still there");
            td_arena_free(c.a);
        }
}

Test(checkpoint, only_the_last_one_stays_and_what_others_put_there)
{
    crew c = crew_of(&layouts[0]);
    visit_all(&c, FILL);
    save(&c, 1, COMMITTED);
    cr_assert_eq(mkdir(inside("step-1/mine"), 0777), 0);
    cr_assert_eq(mkdir(inside("notes"), 0777), 0);
    for (int64_t step = 2; step < 5; step++)
        save(&c, step, COMMITTED);
    cr_assert_eq(files_in(dir), 4); /* manifest, step-4, step-1, notes */
    cr_assert_eq(files_in(inside("step-1")), 1);
    cr_assert_eq(files_in(inside("step-4")), 2);
    td_arena_free(c.a);
}

Test(checkpoint, a_disk_that_is_full_fails_the_save_and_leaves_the_one_before)
{
    crew c = crew_of(&layouts[0]);
    td_err err = {0};
    char folder[TD_CHECKPOINT_FOLDER];
    const char *record;
    const td_checkpoint *found;
    visit_all(&c, FILL);
    save(&c, 1, COMMITTED);
    const struct rlimit small = {.rlim_cur = 10000, .rlim_max = RLIM_INFINITY};
    const struct rlimit none = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    cr_assert_eq(td_checkpoint_begin(dir, 2, folder, &err), TD_OK, "%s", err.text);
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    cr_assert_eq(td_checkpoint_write(c.a, dir, folder, 0, &c.ranks[0], &record, &err), TD_RUN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &none), 0);
    cr_assert_not_null(strstr(err.text, "step-2/rank-0.f32"), "%s", err.text);
    cr_assert_eq(files_in(inside("step-2")), 0);
    td_checkpoint_abandon(dir, folder);
    cr_assert_eq(files_in(inside("step-2")), -1);
    cr_assert_eq(load(&c, &found, &err), TD_OK, "%s", err.text);
    cr_assert_eq(found->step, 1);
    td_arena_free(c.a);
}

/* ---- refusals ---- */

static void flip(const char *path, int64_t at)
{
    FILE *f = fopen(path, "r+");
    cr_assert_not_null(f, "%s", path);
    fseek(f, (long)at, SEEK_SET);
    const int byte = fgetc(f);
    fseek(f, (long)at, SEEK_SET);
    fputc(byte ^ 1, f);
    fclose(f);
}

static int64_t size_of(const char *path)
{
    struct stat s;
    cr_assert_eq(stat(path, &s), 0, "%s", path);
    return s.st_size;
}

static void refused(crew *c, const char *by)
{
    const td_checkpoint *found;
    td_err err;
    cr_assert_eq(load(c, &found, &err), TD_FILE, "expected a refusal that names %s", by);
    cr_assert_not_null(strstr(err.text, by), "expected %s in: %s", by, err.text);
}

Test(checkpoint, a_damaged_file_is_refused_by_name)
{
    crew c = crew_of(&layouts[1]);
    uint32_t dice = 3;
    visit_all(&c, FILL);
    save(&c, 1, COMMITTED);
    for (int i = 0; i < 40; i++) {
        char name[64];
        snprintf(name, sizeof name, "step-1/rank-%d.f32", (int)plan_dice(&dice, c.n));
        const char *path = inside(name);
        const int64_t at = plan_dice(&dice, (int32_t)size_of(path));
        flip(path, at);
        refused(&c, name);
        flip(path, at);
    }
    const char *path = inside("step-1/rank-2.f32");
    const int64_t size = size_of(path);
    cr_assert_eq(truncate(path, size - 4), 0);
    refused(&c, "rank-2.f32: damaged");
    cr_assert_eq(truncate(path, size + 4), 0);
    refused(&c, "rank-2.f32: damaged");
    cr_assert_eq(unlink(path), 0);
    refused(&c, "rank-2.f32: missing");
    td_arena_free(c.a);
}

Test(checkpoint, a_damaged_manifest_is_refused_wherever_the_damage_is)
{
    crew c = crew_of(&layouts[0]);
    uint32_t dice = 5;
    const char *path = inside("manifest.json");
    visit_all(&c, FILL);
    save(&c, 1, COMMITTED);
    const int64_t size = size_of(path);
    for (int i = 0; i < 300; i++) {
        const int64_t at = plan_dice(&dice, (int32_t)size - 1); /* the last is the line's end */
        flip(path, at);
        refused(&c, "manifest.json");
        flip(path, at);
    }
    cr_assert_eq(truncate(path, size / 2), 0);
    refused(&c, "manifest.json");
    td_arena_free(c.a);
}

struct text {
    char text[64], says[64];
};

ParameterizedTestParameters(checkpoint, what_is_not_a_checkpoint_is_refused_and_not_saved_over)
{
    static struct text table[] = {{"", "damaged, or not"},
                                  {"[1, 2]", "not the manifest"},
                                  {"{\"traceEvents\": []}", "not the manifest"},
                                  {"{\"format\": \"tandem checkpoint\"}", "not the manifest"}};
    return cr_make_param_array(struct text, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct text *p, checkpoint,
                  what_is_not_a_checkpoint_is_refused_and_not_saved_over)
{
    crew c = crew_of(&layouts[0]);
    td_err err = {0};
    char folder[TD_CHECKPOINT_FOLDER];
    refused(&c, "there is no checkpoint");
    FILE *f = fopen(inside("manifest.json"), "w");
    cr_assert(f != NULL && fputs(p->text, f) >= 0 && fclose(f) == 0);
    refused(&c, p->says);
    cr_assert_eq(td_checkpoint_begin(dir, 1, folder, &err), TD_FILE);
    cr_assert_not_null(strstr(err.text, "manifest.json"), "%s", err.text);
    td_arena_free(c.a);
}

Test(checkpoint, a_folder_that_cannot_be_is_named)
{
    td_err err = {0};
    cr_assert_eq(td_checkpoint_prepare("/dev/null/there", &err), TD_FILE);
    cr_assert_not_null(strstr(err.text, "/dev/null/there"), "%s", err.text);
    err = (td_err){0};
    cr_assert_eq(td_checkpoint_prepare("/dev/null", &err), TD_FILE);
    cr_assert_not_null(strstr(err.text, "/dev/null"), "%s", err.text);
}

Test(checkpoint, one_of_another_model_is_refused_by_what_differs)
{
    static const struct {
        plan_shape shape;
        const char *says;
    } others[] = {
        {{.name = "more layers", .n_encoders = 1, .kv_heads = 2, .language = {.layers = 6}},
         "has no tensor `language.layers.4."},
        {{.name = "fewer layers", .n_encoders = 1, .kv_heads = 2, .encoder = {{.layers = 2}}},
         "holds tensor `images.layers."},
        {{.name = "wider", .n_encoders = 1, .kv_heads = 2, .scale = 2}, "but the plan's is"},
        {{.name = "kv heads", .n_encoders = 1, .kv_heads = 4}, "modules.language.kv_heads is 2"},
        {{.name = "a module more", .n_encoders = 2, .kv_heads = 2}, "has no module `audio`"},
        {{.name = "a module less", .kv_heads = 2}, "holds module `images`"},
    };
    crew c = crew_of(&layouts[0]);
    visit_all(&c, FILL);
    save(&c, 1, COMMITTED);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        crew other = crew_of(&others[i].shape);
        refused(&other, others[i].says);
        td_arena_free(other.a);
    }
    td_arena_free(c.a);
}

Test(checkpoint, what_was_frozen_trains_from_zero_moments_and_says_so)
{
    const plan_shape frozen = {.name = "frozen",
                               .n_encoders = 1,
                               .kv_heads = 2,
                               .encoder = {{.frozen = "backbone", .dp = 2}},
                               .language = {.tp = 2}};
    crew c = crew_of(&frozen), thawed = crew_of(&layouts[2]);
    const td_checkpoint *found;
    td_err err;
    visit_all(&c, FILL);
    save(&c, 1, COMMITTED);
    visit_all(&c, SPOIL);
    cr_assert_eq(load(&c, &found, &err), TD_OK, "%s", err.text);
    visit_all(&c, CHECK);
    cr_assert_str_eq(found->note, "");
    visit_all(&thawed, SPOIL);
    cr_assert_eq(load(&thawed, &found, &err), TD_OK, "%s", err.text);
    cr_assert_not_null(strstr(found->note, "tensors were frozen"), "%s", found->note);
    for (int32_t r = 0; r < thawed.n; r++)
        for (int32_t i = 0; i < thawed.ranks[r].n_spans; i++) {
            const td_state_span *s = &thawed.ranks[r].spans[i];
            const bool trained = strstr(s->tensor->name, "images.layers") == NULL &&
                                 strstr(s->tensor->name, "embed") == NULL &&
                                 strstr(s->tensor->name, "images.final") == NULL;
            if (strncmp(s->tensor->name, "language", 8) == 0 || trained)
                visit(s->tensor, s->first, s->n, s->m, 1, CHECK);
            else
                for (int64_t k = 0; k < s->n; k++)
                    cr_assert(s->m[k] == 0 && s->v[k] == 0, "%s", s->tensor->name);
        }
    td_arena_free(c.a);
    td_arena_free(thawed.a);
}
