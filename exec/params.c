/* Which slice of which tensor a rank holds, where it stands, and its first values. */
#include "exec/params.h"

#include "exec/numbers.h"
#include "model/lower.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NAME = 128 }; /* a module's name has at most 64 characters, a suffix 22 */

/* ---- slices ---- */

/* `copies` neighbouring ranks hold the same slice, and the first of them counts it. */
static td_tensor slice(const td_param *p, int32_t tp, int32_t tp_rank)
{
    const int64_t pieces = tp / p->copies, piece = tp_rank / p->copies;
    td_tensor t = {.param = *p, .rows = p->out, .cols = p->in, .counts = tp_rank % p->copies == 0};
    if (p->shard == TD_SHARD_IN) {
        t.cols = p->in / pieces;
        t.col0 = piece * t.cols;
    } else { /* whole: one piece */
        t.rows = p->out / pieces;
        t.row0 = piece * t.rows;
    }
    return t;
}

typedef struct {
    td_arena *a;
    const td_stage *s;
    int32_t tp_rank, n;
    td_tensor *all; /* NULL: count only */
    bool failed;
} draft;

static void add(void *self, const td_param *p)
{
    draft *d = self;
    const char *module = d->s->module->name;
    const int32_t i = d->n++;
    if (d->all == NULL)
        return;
    d->all[i] = slice(p, d->s->module->tp, d->tp_rank);
    d->all[i].name = p->layer < 0
                         ? td_arena_printf(d->a, "%s.%s", module, p->name)
                         : td_arena_printf(d->a, "%s.layers.%d.%s", module, p->layer, p->name);
    d->failed = d->failed || d->all[i].name == NULL;
}

/* ---- where they stand ---- */

/* Appends those of forward[begin .. end - 1] that train, or those that do not, without gaps. */
static void place(td_tensors *out, td_tensor *all, const td_tensor *forward, int32_t begin,
                  int32_t end, bool trainable, int64_t offset)
{
    for (int32_t i = begin; i < end; i++) {
        if (forward[i].param.trainable != trainable)
            continue;
        all[out->n] = forward[i];
        all[out->n++].offset = offset;
        offset += forward[i].param.local;
    }
}

/* The first tensor of a bucket that ends before `end` and holds `elements`. */
static int32_t begin_of_bucket(const td_tensor *forward, int32_t end, int64_t elements)
{
    int32_t i = end;
    while (elements > 0) {
        assert(i > 0);
        i--;
        elements -= forward[i].param.trainable ? forward[i].param.local : 0;
    }
    assert(elements == 0);
    return i;
}

td_status td_tensors_of_stage(td_arena *a, const td_stage *s, int32_t tp_rank, td_tensors *out,
                              td_err *err)
{
    td_status st = TD_OK;
    draft d = {.a = a, .s = s, .tp_rank = tp_rank};
    td_buckets padded, exact;
    td_tensor *all;
    td_plan bare = *s->plan; /* padding would hide which tensor a bucket begins with */
    td_stage unpadded = *s;
    bare.optimizer.sharded = false;
    unpadded.plan = &bare;
    *out = (td_tensors){0};
    TD_TRY(st, td_buckets_of_stage(a, s, &padded, err));
    TD_TRY(st, td_buckets_of_stage(a, &unpadded, &exact, err));
    assert(padded.n == exact.n);
    td_stage_params(s, add, &d);
    all = TD_NEW(a, td_tensor, d.n);
    d.all = TD_NEW(a, td_tensor, d.n);
    if (all == NULL || d.all == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the tensors of `%s`", s->module->name));
    d.n = 0;
    td_stage_params(s, add, &d);
    if (d.failed)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the tensors of `%s`", s->module->name));
    for (int32_t b = 0, end = d.n; b < padded.n; b++) {
        const int32_t begin = begin_of_bucket(d.all, end, exact.buckets[b].elements);
        place(out, all, d.all, begin, end, true, out->elements);
        out->elements += padded.buckets[b].elements;
        end = begin;
    }
    place(out, all, d.all, 0, d.n, false, out->elements);
    out->elements += padded.weights - exact.elements; /* the frozen ones */
    out->all = all;
    assert(out->n == d.n);
done:
    return st;
}

const td_tensor *td_tensors_find(const td_tensors *t, const char *suffix, int32_t layer)
{
    for (int32_t i = 0; i < t->n; i++)
        if (t->all[i].param.layer == layer && strcmp(t->all[i].param.name, suffix) == 0)
            return &t->all[i];
    return NULL;
}

/* ---- values ---- */

/* Elements that stand together in the full tensor as well; the slice is a sequence of such runs. */
static int64_t run_length(const td_tensor *t)
{
    return t->cols == t->param.in ? t->rows * t->cols : t->cols;
}

/* Row-major index in the full tensor of an element of the slice. */
static uint64_t full_index(const td_tensor *t, int64_t local)
{
    const int64_t row = t->row0 + local / t->cols, col = t->col0 + local % t->cols;
    return (uint64_t)(row * t->param.in + col);
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

static double sigma_of(const td_param *p, int32_t layers)
{
    const bool into_residual =
        strcmp(p->name, "o.weight") == 0 || strcmp(p->name, "down.weight") == 0;
    return into_residual ? 0.02 / sqrt(2.0 * layers) : 0.02;
}

void td_tensor_init(const td_tensor *t, const td_stage *s, const td_kernels *k, void *dev,
                    int64_t first, int64_t n, bool to_float, void *out)
{
    const size_t size = to_float ? sizeof(float) : (size_t)s->e;
    const td_numbers numbers = td_numbers_of(s->plan->seed, t->name);
    if (!t->param.decay) { /* not a matrix: only norms have weights then */
        if (ends_with(t->name, ".weight"))
            k->fill(dev, 1, n, to_float, out);
        return;
    }
    for (int64_t i = first, end = first + n; i < end;) { /* what is left of a row, rows, a begin */
        const int64_t row = i / t->cols, col = i % t->cols, left = end - i;
        const int64_t rows = col == 0 && left >= t->cols ? left / t->cols : 1,
                      cols = rows * t->cols <= left && col == 0 ? t->cols
                             : left < t->cols - col             ? left
                                                                : t->cols - col;
        k->fill_normal(dev, numbers.key, sigma_of(&t->param, s->module->layers), rows, cols,
                       t->row0 + row, t->col0 + col, t->param.in, to_float,
                       (char *)out + (size_t)(i - first) * size);
        i += rows * cols;
    }
}

void td_tensor_checksum(const td_tensor *t, uint32_t seed, const float *flat, int64_t first,
                        int64_t n, double out[2])
{
    const int64_t stop = t->offset + t->rows * t->cols, run = run_length(t);
    const int64_t begin = first > t->offset ? first : t->offset,
                  end = first + n < stop ? first + n : stop;
    char name[MAX_NAME];
    const int length = snprintf(name, sizeof name, "%s.check", t->name);
    assert(length > 0 && length < MAX_NAME);
    (void)length;
    const td_numbers signs = td_numbers_of(seed, name);
    for (int64_t i = begin, next; i < end && t->counts; i = next) {
        const int64_t local = i - t->offset, rest = run - local % run;
        const uint64_t index = full_index(t, local);
        next = rest < end - i ? i + rest : end;
        for (int64_t k = i; k < next; k++) {
            const double x = flat[k];
            out[0] += x * x;
            out[1] += td_numbers_sign(&signs, index + (uint64_t)(k - i)) * x;
        }
    }
}
