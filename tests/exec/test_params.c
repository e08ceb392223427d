/* Every layout holds the same tensors: slices, where they stand in buckets, first values, sums. */
#include "exec/host_kernels.h"
#include "exec/numbers.h"
#include "exec/params.h"
#include "model/lower.h"
#include "tests/model/plans.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static td_tensors tensors_of(td_arena *a, const td_stage *s, int32_t tp_rank)
{
    td_tensors t;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_tensors_of_stage(a, s, tp_rank, &t, &err), TD_OK, "%s", err.text);
    return t;
}

static td_buckets buckets_of(td_arena *a, const td_stage *s)
{
    td_buckets b;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_buckets_of_stage(a, s, &b, &err), TD_OK, "%s", err.text);
    return b;
}

/* Runs `law` on every stage of every layout; without `wide` ones where it looks at each number. */
static void for_all_stages(bool wide, void (*law)(td_arena *a, const td_stage *s, const char *name))
{
    for (const plan_shape *p = plan_shapes; p->name != NULL; p++) {
        td_arena *a = td_arena_new();
        const td_plan *plan = p->scale > 1 && !wide ? NULL : plan_of(a, p);
        for (int32_t m = 0; plan != NULL && m < plan->n_modules; m++)
            for (int32_t pp = 0; pp < plan->modules[m].pp; pp++) {
                const td_stage s = td_stage_of(plan, m, pp);
                law(a, &s, p->name);
            }
        td_arena_free(a);
    }
}

static bool ends_with(const char *text, const char *end)
{
    return strlen(text) >= strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0;
}

/* ---- slices ---- */

/* The first values of a whole tensor, from the rules alone. */
static void fill_whole(const td_tensor *t, const td_stage *s, float *x)
{
    const td_numbers n = td_numbers_of(s->plan->seed, t->name);
    const bool small = ends_with(t->name, ".o.weight") || ends_with(t->name, ".down.weight");
    const double sigma = small ? 0.02 / sqrt(2.0 * s->module->layers) : 0.02;
    const int64_t size = t->param.out * t->param.in;
    const bool norm = strstr(t->name, "norm") != NULL, bias = ends_with(t->name, ".bias");
    for (int64_t i = 0; i < size; i++)
        x[i] = bias ? 0 : 1;
    if (!bias && !norm)
        td_numbers_fill_normal(&n, 0, size, sigma, x);
}

/* First values of a rank's tensors, in pieces that end anywhere. */
static void init(const td_tensors *t, const td_stage *s, float *flat)
{
    memset(flat, 0, (size_t)t->elements * sizeof *flat);
    for (int32_t i = 0; i < t->n; i++) {
        const int64_t n = t->all[i].param.local, piece = n / 3 + 1;
        for (int64_t first = 0; first < n; first += piece)
            td_tensor_init(&t->all[i], s, &td_host_kernels, NULL, first,
                           n - first < piece ? n - first : piece, true,
                           flat + t->all[i].offset + first);
    }
}

static void union_is_whole(td_arena *scratch, const td_stage *s, const char *name)
{
    (void)scratch;
    td_arena *a = td_arena_new();
    const int32_t tp = s->module->tp;
    td_tensors *ranks = TD_NEW(a, td_tensors, tp);
    float **flats = TD_NEW(a, float *, tp);
    for (int32_t r = 0; r < tp; r++) {
        ranks[r] = tensors_of(a, s, r);
        flats[r] = TD_NEW(a, float, ranks[r].elements);
        for (int64_t i = 0; i < ranks[r].elements; i++)
            flats[r][i] = NAN;
        init(&ranks[r], s, flats[r]);
        cr_assert_eq(ranks[r].n, ranks[0].n, "%s", name);
    }
    for (int32_t i = 0; i < ranks[0].n; i++) {
        const td_param *p = &ranks[0].all[i].param;
        const int64_t size = p->out * p->in;
        float *whole = TD_NEW(a, float, size);
        int32_t *held = TD_NEW(a, int32_t, size), *counted = TD_NEW(a, int32_t, size);
        fill_whole(&ranks[0].all[i], s, whole);
        for (int32_t r = 0; r < tp; r++) {
            const td_tensor *t = &ranks[r].all[i];
            cr_assert_str_eq(t->name, ranks[0].all[i].name, "%s", name);
            cr_assert_eq(t->rows * t->cols, p->local, "%s: %s", name, t->name);
            for (int64_t row = 0; row < t->rows; row++)
                for (int64_t col = 0; col < t->cols; col++) {
                    const int64_t at = (t->row0 + row) * p->in + t->col0 + col;
                    cr_assert_eq(flats[r][t->offset + row * t->cols + col], whole[at],
                                 "%s: %s on tensor rank %d: row %d, column %d", name, t->name,
                                 (int)r, (int)row, (int)col);
                    held[at]++;
                    counted[at] += t->counts;
                }
        }
        for (int64_t at = 0; at < size; at++) {
            cr_assert_eq(held[at], p->copies, "%s: %s", name, ranks[0].all[i].name);
            cr_assert_eq(counted[at], 1, "%s: %s", name, ranks[0].all[i].name);
        }
    }
    td_arena_free(a);
}

Test(params, slices_of_all_tensor_ranks_make_the_whole_tensor_and_count_it_once)
{
    for_all_stages(false, union_is_whole);
}

static void cut_as_said(td_arena *a, const td_stage *s, const char *name)
{
    const td_module *m = s->module;
    for (int32_t r = 0; r < m->tp; r++) {
        const td_tensors all = tensors_of(a, s, r);
        for (int32_t i = 0; i < all.n; i++) {
            const td_tensor *t = &all.all[i];
            const td_param *p = &t->param;
            const bool rows = p->shard == TD_SHARD_OUT, cols = p->shard == TD_SHARD_IN;
            cr_assert_eq(t->cols, cols ? p->in / m->tp : p->in, "%s: %s", name, t->name);
            cr_assert_eq(t->col0, cols ? r * t->cols : 0, "%s: %s", name, t->name);
            if (p->shard == TD_SHARD_KV) { /* head by head, as its query heads ask for them */
                const int64_t heads = m->kv_heads < m->tp ? 1 : m->kv_heads / m->tp;
                cr_assert_eq(t->rows, heads * m->head_dim, "%s: %s", name, t->name);
                cr_assert_eq(t->row0, (int64_t)r * m->kv_heads / m->tp * m->head_dim, "%s: %s",
                             name, t->name);
            } else {
                cr_assert_eq(t->rows, rows ? p->out / m->tp : p->out, "%s: %s", name, t->name);
                cr_assert_eq(t->row0, rows ? r * t->rows : 0, "%s: %s", name, t->name);
            }
            cr_assert(p->shard != TD_SHARD_NONE || t->counts == (r == 0), "%s", name);
        }
    }
}

Test(params, a_rank_holds_the_rows_columns_or_heads_of_its_place)
{
    for_all_stages(true, cut_as_said);
}

Test(params, the_first_rank_of_those_that_share_a_kv_head_counts_it)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.language = {.tp = 4}, .kv_heads = 2});
    const td_stage s = td_stage_of(plan, plan->language, 0);
    for (int32_t r = 0; r < 4; r++) {
        const td_tensors t = tensors_of(a, &s, r);
        cr_assert_eq(td_tensors_find(&t, "k.weight", 0)->counts, r == 0 || r == 2);
        cr_assert_eq(td_tensors_find(&t, "k.weight", 0)->row0, r < 2 ? 0 : 8);
        cr_assert(td_tensors_find(&t, "q.weight", 0)->counts);
    }
    td_arena_free(a);
}

/* ---- names ---- */

Test(params, tensors_have_the_agreed_names)
{
    static const char *const images[] = {
        "images.embed.weight",        "images.embed.bias",
        "images.pos_embed.weight",    "images.layers.0.norm1.weight",
        "images.layers.0.norm1.bias", "images.layers.0.q.weight",
        "images.layers.0.k.weight",   "images.layers.0.v.weight",
        "images.layers.0.q.bias",     "images.layers.0.k.bias",
        "images.layers.0.v.bias",     "images.layers.0.o.weight",
        "images.layers.0.o.bias",     "images.layers.0.norm2.weight",
        "images.layers.0.norm2.bias", "images.layers.0.up.weight",
        "images.layers.0.up.bias",    "images.layers.0.down.weight",
        "images.layers.0.down.bias",  "images.final_norm.weight",
        "images.final_norm.bias",     "images.projector.fc1.weight",
        "images.projector.fc1.bias",  "images.projector.fc2.weight",
        "images.projector.fc2.bias",  NULL};
    static const char *const language[] = {"language.embed.weight",
                                           "language.layers.0.norm1.weight",
                                           "language.layers.0.q.weight",
                                           "language.layers.0.k.weight",
                                           "language.layers.0.v.weight",
                                           "language.layers.0.o.weight",
                                           "language.layers.0.norm2.weight",
                                           "language.layers.0.gate.weight",
                                           "language.layers.0.up.weight",
                                           "language.layers.0.down.weight",
                                           "language.final_norm.weight",
                                           "language.head.weight",
                                           NULL};
    static const char *const *const expected[] = {images, language};
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(
        a, &(plan_shape){.n_encoders = 1, .encoder = {{.layers = 1}}, .language = {.layers = 1}});
    for (int32_t m = 0; m < 2; m++) {
        const td_stage s = td_stage_of(plan, m, 0);
        const td_tensors t = tensors_of(a, &s, 0);
        int32_t n = 0;
        for (; expected[m][n] != NULL; n++) /* all in one bucket, so in forward order */
            cr_assert(n < t.n && strcmp(t.all[n].name, expected[m][n]) == 0, "%s", expected[m][n]);
        cr_assert_eq(t.n, n);
    }
    td_arena_free(a);
}

Test(params, layers_are_numbered_through_the_stages_and_found_by_suffix)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.language = {.pp = 2}});
    const td_stage s = td_stage_of(plan, 0, 1);
    const td_tensors t = tensors_of(a, &s, 0);
    cr_assert_str_eq(td_tensors_find(&t, "q.weight", 3)->name, "language.layers.3.q.weight");
    cr_assert_str_eq(td_tensors_find(&t, "head.weight", -1)->name, "language.head.weight");
    cr_assert_null(td_tensors_find(&t, "q.weight", 1));      /* on the stage before */
    cr_assert_null(td_tensors_find(&t, "q.weight", -1));     /* not outside the layers */
    cr_assert_null(td_tensors_find(&t, "q.bias", 3));        /* the language has none */
    cr_assert_null(td_tensors_find(&t, "embed.weight", -1)); /* on the first stage */
    td_arena_free(a);
}

/* ---- where they stand ---- */

typedef struct {
    td_param all[256];
    int32_t n;
} param_list;

static void keep(void *self, const td_param *p)
{
    param_list *l = self;
    cr_assert_lt(l->n, 256);
    l->all[l->n++] = *p;
}

/* Place of a tensor in forward order. */
static int32_t place_of(const param_list *l, const td_tensor *t)
{
    int32_t i = 0;
    while (i < l->n &&
           (l->all[i].layer != t->param.layer || strcmp(l->all[i].name, t->param.name) != 0))
        i++;
    return i;
}

static void buckets_are_ranges(td_arena *a, const td_stage *s, const char *name)
{
    const td_buckets buckets = buckets_of(a, s);
    const td_tensors t = tensors_of(a, s, s->module->tp - 1);
    const int64_t dp = s->module->dp, least_dp = 1000000 * dp,
                  wanted = s->plan->step.bucket_elements,
                  least = wanted > least_dp ? wanted : least_dp;
    param_list l = {.n = 0};
    int32_t i = 0, before = 0; /* the bucket before begins there in forward order */
    int64_t begin = 0;
    td_stage_params(s, keep, &l);
    before = l.n;
    for (int32_t b = 0; b < buckets.n; b++) {
        const int64_t end = begin + buckets.buckets[b].elements;
        const int32_t first = place_of(&l, &t.all[i]);
        int64_t at = begin;
        for (int32_t next = first; i < t.n && t.all[i].offset < end && t.all[i].param.trainable;
             i++) {
            const int32_t place = place_of(&l, &t.all[i]);
            cr_assert_eq(t.all[i].offset, at, "%s: %s", name, t.all[i].name); /* no gaps */
            cr_assert_geq(place, next, "%s: %s", name, t.all[i].name);
            for (int32_t k = next; k < place; k++) /* passed over: frozen */
                cr_assert_not(l.all[k].trainable, "%s: %s", name, t.all[i].name);
            next = place + 1;
            at += t.all[i].param.local;
            cr_assert_leq(next, before, "%s: %s", name, t.all[i].name);
        }
        cr_assert_leq(at, end, "%s: bucket %d", name, (int)b);
        cr_assert_lt(end - at, 128 * dp, "%s: bucket %d: only padding", name, (int)b);
        if (b + 1 < buckets.n) /* full, which it was not before its first product's tensors came */
            cr_assert_geq(at - begin, least, "%s: bucket %d", name, (int)b);
        if (b + 1 < buckets.n) {
            int64_t later = at - begin - l.all[first].local;
            for (int32_t k = first + 1; k < l.n && l.all[k].joined; k++)
                later -= l.all[k].local;
            cr_assert_lt(later, least, "%s: bucket %d", name, (int)b);
        }
        before = first;
        begin = end;
    }
    cr_assert_eq(begin, buckets.elements, "%s", name);
    for (; i < t.n; i++) {
        cr_assert_not(t.all[i].param.trainable, "%s: %s", name, t.all[i].name);
        cr_assert_eq(t.all[i].offset, begin, "%s: %s", name, t.all[i].name);
        begin += t.all[i].param.local;
    }
    cr_assert_eq(begin, t.elements, "%s", name);
    cr_assert_eq(t.n, l.n, "%s", name);
}

Test(params, buckets_are_ranges_from_the_last_layers_to_the_first_and_frozen_tensors_follow)
{
    for_all_stages(true, buckets_are_ranges);
}

Test(params, there_are_layouts_of_many_buckets_with_padding_and_of_frozen_tensors)
{
    /* otherwise the law above would say little */
    td_arena *a = td_arena_new();
    int32_t several = 0, padded = 0, mixed = 0;
    for (const plan_shape *p = plan_shapes; p->name != NULL; p++) {
        const td_plan *plan = plan_of(a, p);
        for (int32_t m = 0; m < plan->n_modules; m++) {
            const td_stage s = td_stage_of(plan, m, plan->modules[m].pp - 1);
            const td_buckets b = buckets_of(a, &s);
            const td_tensors t = tensors_of(a, &s, 0);
            several += b.n > 2;
            padded += t.elements > b.weights;
            mixed += b.n > 0 && t.elements > b.elements;
        }
    }
    cr_assert(several > 0 && padded > 0 && mixed > 0, "%d, %d, %d", (int)several, (int)padded,
              (int)mixed);
    td_arena_free(a);
}

static void joined_adjoin(td_arena *a, const td_stage *s, const char *name)
{
    const td_tensors t = tensors_of(a, s, 0);
    for (int32_t i = 0; i < t.n; i++) {
        const td_tensor *x = &t.all[i];
        if (!x->param.joined)
            continue;
        cr_assert_gt(i, 0);
        cr_assert_eq(x->param.layer, x[-1].param.layer, "%s: %s", name, x->name);
        cr_assert_eq(x->offset, x[-1].offset + x[-1].rows * x[-1].cols, "%s: %s", name, x->name);
        cr_assert_eq(x->cols, x[-1].cols, "%s: %s", name, x->name); /* one product does both */
    }
    for (int32_t l = s->first_layer; l < s->first_layer + s->n_layers; l++) {
        const td_tensor *q = td_tensors_find(&t, "q.weight", l), *k = q + 1, *v = q + 2;
        const td_tensor *up = td_tensors_find(&t, "up.weight", l);
        cr_assert_str_eq(k->param.name, "k.weight", "%s", name);
        cr_assert_str_eq(v->param.name, "v.weight", "%s", name);
        cr_assert(k->param.joined && v->param.joined, "%s", name);
        if (s->module->mlp == TD_MLP_SWIGLU)
            cr_assert(up->param.joined && strcmp(up[-1].param.name, "gate.weight") == 0, "%s",
                      name);
    }
}

Test(params, tensors_of_one_product_stand_together_in_order)
{
    for_all_stages(true, joined_adjoin);
}

/* ---- first values ---- */

Test(params, weights_spread_as_agreed_and_padding_is_zero)
{
    static const struct {
        const char *suffix;
        int32_t layer;
        double sigma;
    } rows[] = {{"embed.weight", -1, 0.02}, {"head.weight", -1, 0.02}, {"q.weight", 2, 0.02},
                {"gate.weight", 3, 0.02},   {"o.weight", 0, 0.02},     {"down.weight", 1, 0.02}};
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.language = {.dp = 3}, .micro_batch = 3});
    const td_stage s = td_stage_of(plan, 0, 0);
    const td_tensors t = tensors_of(a, &s, 0);
    const td_buckets b = buckets_of(a, &s);
    float *flat = TD_NEW(a, float, t.elements);
    for (int64_t i = 0; i < t.elements; i++)
        flat[i] = NAN;
    init(&t, &s, flat);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const td_tensor *x = td_tensors_find(&t, rows[i].suffix, rows[i].layer);
        const bool small = i >= 4; /* o and down of 4 layers: / sqrt(2 * 4) */
        const double sigma = small ? rows[i].sigma / sqrt(8) : rows[i].sigma,
                     n = (double)(x->rows * x->cols);
        double sum = 0, squares = 0;
        for (int64_t k = 0; k < x->rows * x->cols; k++) {
            sum += flat[x->offset + k];
            squares += pow(flat[x->offset + k], 2);
        }
        cr_assert_float_eq(sum / n, 0, 4 * sigma / sqrt(n), "%s", x->name); /* 4 standard errors */
        cr_assert_float_eq(squares / n / sigma / sigma, 1, 4 * sqrt(2 / n), "%s", x->name);
    }
    cr_assert_gt(b.elements, b.weights);
    for (int64_t i = b.weights; i < b.elements; i++) /* one bucket: its padding is at its end */
        cr_assert_eq(flat[i], 0);
    td_arena_free(a);
}

/* ---- checksums ---- */

static void sums_add_up(td_arena *scratch, const td_stage *s, const char *name)
{
    (void)scratch;
    td_arena *a = td_arena_new();
    const td_tensors shape = tensors_of(a, s, 0);
    double(*sums)[2] = td_arena_alloc(a, (size_t)shape.n, sizeof *sums);
    for (int32_t r = 0; r < s->module->tp; r++) {
        const td_tensors t = tensors_of(a, s, r);
        float *flat = TD_NEW(a, float, t.elements);
        init(&t, s, flat);
        for (int64_t first = 0, n; first < t.elements; first += n) { /* uneven shares */
            n = t.elements / 3 + 1 < t.elements - first ? t.elements / 3 + 1 : t.elements - first;
            for (int32_t i = 0; i < t.n; i++)
                td_tensor_checksum(&t.all[i], s->plan->seed, flat, first, n, sums[i]);
        }
    }
    for (int32_t i = 0; i < shape.n; i++) {
        const td_tensor *t = &shape.all[i];
        const int64_t size = t->param.out * t->param.in;
        const td_numbers signs =
            td_numbers_of(s->plan->seed, td_arena_printf(a, "%s.check", t->name));
        float *x = TD_NEW(a, float, size);
        double squares = 0, sum = 0;
        fill_whole(t, s, x);
        for (int64_t k = 0; k < size; k++) {
            squares += (double)x[k] * (double)x[k];
            sum += td_numbers_word(&signs, (uint64_t)k) % 2 == 0 ? x[k] : -x[k];
        }
        cr_assert_float_eq(sums[i][0], squares, 1e-12 * squares, "%s: %s", name, t->name);
        cr_assert_float_eq(sums[i][1], sum, 1e-12 * sqrt(squares * (double)size), "%s: %s", name,
                           t->name);
    }
    td_arena_free(a);
}

Test(params, checksums_of_all_shares_add_up_to_those_of_the_whole_tensor)
{
    for_all_stages(false, sums_add_up);
}

Test(params, a_share_without_elements_of_the_tensor_adds_nothing)
{
    td_arena *a = td_arena_new();
    const td_plan *plan = plan_of(a, &(plan_shape){.n_encoders = 0});
    const td_stage s = td_stage_of(plan, 0, 0);
    const td_tensors t = tensors_of(a, &s, 0);
    const td_tensor *x = &t.all[3];
    double sums[2] = {1, 2};
    td_tensor_checksum(x, 1, NULL, 0, x->offset, sums);
    td_tensor_checksum(x, 1, NULL, x[1].offset, t.elements - x[1].offset, sums);
    td_tensor_checksum(x, 1, NULL, x->offset + 1, 0, sums);
    cr_assert(sums[0] == 1 && sums[1] == 2);
    td_arena_free(a);
}
