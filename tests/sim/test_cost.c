/* Prices: measured shapes come back as they were measured, nothing beats physics, and what was
 * guessed is said. */
#include "sim/cost_law.h"
#include "sim/costs.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static td_arena *arena;

static void open_arena(void)
{
    arena = td_arena_new();
}

static void close_arena(void)
{
    td_arena_free(arena);
}

TestSuite(cost, .init = open_arena, .fini = close_arena);
TestSuite(costs, .init = open_arena, .fini = close_arena);

static const td_profile *shipped(const char *name)
{
    const td_profile *p = NULL;
    td_err err = {TD_OK, ""};
    cr_assert_eq(td_profile_find(arena, name, NULL, NULL, &p, &err), TD_OK, "%s", err.text);
    return p;
}

static td_part gemm(td_pass pass, int64_t m, int64_t n, int64_t k)
{
    return (td_part){.class = TD_PART_GEMM, .pass = (uint8_t)pass, .m = m, .n = n, .k = k};
}

static td_part attention(td_pass pass, int32_t batch, int32_t seq, int32_t heads, int32_t dim,
                         bool causal)
{
    return (td_part){.class = TD_PART_ATTENTION,
                     .pass = (uint8_t)pass,
                     .causal = causal,
                     .batch = batch,
                     .seq = seq,
                     .heads = heads,
                     .kv_heads = heads,
                     .head_dim = dim};
}

static td_part passes(td_part_class class, uint64_t bytes)
{
    return (td_part){.class = (uint8_t) class, .bytes = bytes};
}

static td_comm_query in_node(td_coll coll, int32_t ranks, uint64_t bytes)
{
    return (td_comm_query){.coll = coll,
                           .ranks = ranks,
                           .bytes = bytes,
                           .one_node = true,
                           .edge_bytes_per_s = 450e9,
                           .edge_latency_s = 1e-6};
}

static double comm_s(const td_profile *p, td_comm_query q)
{
    td_comm_cost c;
    td_cost_table.comm(p, &q, &c, NULL);
    return c.total_s;
}

/* ---- measured shapes ---- */

Test(cost, a_measured_shape_takes_exactly_the_measured_time_and_no_note)
{
    const td_profile *p = shipped("h200-tables");
    td_cost_notes notes = {.arena = arena};
    for (int32_t i = 0; i < p->n_gemms; i++) {
        for (int pass = 0; pass < 3; pass++) {
            const td_part part = gemm((td_pass)pass, p->gemms[i].m, p->gemms[i].n, p->gemms[i].k);
            cr_assert_eq(td_cost_table.part(p, &part, &notes), p->gemms[i].s[pass]);
        }
    }
    for (int32_t i = 0; i < p->n_attention; i++) {
        const td_attention_row *r = &p->attention[i];
        td_part part =
            attention(TD_PASS_FORWARD, r->batch, r->seq, r->heads, r->head_dim, r->causal);
        cr_assert_eq(td_cost_table.part(p, &part, &notes), r->forward_s);
        part.pass = TD_PASS_BACKWARD;
        cr_assert_eq(td_cost_table.part(p, &part, &notes), r->backward_s);
    }
    for (int32_t i = 0; i < p->copy.n; i++) {
        const td_part part = passes(TD_PART_NORM, (uint64_t)p->copy.x[i]);
        cr_assert_eq(td_cost_table.part(p, &part, &notes), p->copy.y[i]);
    }
    for (int coll = 0; coll < TD_N_COLLS; coll++) {
        for (int32_t i = 0; i < p->n_collectives[coll]; i++) {
            const td_coll_curve *c = &p->collectives[coll][i];
            for (int32_t k = 0; k < c->time.n; k++) {
                const td_comm_query q = in_node((td_coll)coll, c->ranks, (uint64_t)c->time.x[k]);
                td_comm_cost cost;
                td_cost_table.comm(p, &q, &cost, &notes);
                cr_assert_eq(cost.total_s, c->time.y[k]);
            }
        }
    }
    cr_assert_eq(notes.n, 0, "%s: %s", notes.head->what, notes.head->why);
    cr_assert_eq(notes.n_extrapolated, 0);
    cr_assert_gt(notes.n_asked, 400);
}

Test(cost, every_price_is_counted_once_as_measured_between_or_outside)
{
    const td_profile *p = shipped("h200-tables"), *sheet = shipped("b200");
    td_cost_notes notes = {.arena = arena}, other = {.arena = arena};
    const td_gemm_row *g = &p->gemms[0], *most = &p->gemms[p->n_gemms - 1];
    const td_attention_row *r = &p->attention[0];
    const td_part parts[] = {
        gemm(TD_PASS_FORWARD, g->m, g->n, g->k),
        gemm(TD_PASS_WGRAD, g->m, g->n, g->k),
        gemm(TD_PASS_FORWARD, g->m + 8, g->n, g->k),
        gemm(TD_PASS_FORWARD, 1, g->n, g->k),
        gemm(TD_PASS_FORWARD, g->m, 2 * most->n, g->k),
        passes(TD_PART_NORM, 1 << 20),
        attention(TD_PASS_FORWARD, r->batch, r->seq, r->heads, r->head_dim, r->causal)};
    const td_comm_query comms[] = {in_node(TD_COLL_ALL_REDUCE, 4, 1 << 20), /* measured */
                                   in_node(TD_COLL_ALL_REDUCE, 4, 2),       /* as the smallest */
                                   in_node(TD_COLL_ALL_REDUCE, 4, (1 << 20) + 8),
                                   in_node(TD_COLL_ALL_REDUCE, 5, 1 << 20),
                                   in_node(TD_COLL_ALL_REDUCE, 16, 1 << 20),
                                   in_node(TD_COLL_ALL_REDUCE, 1, 1 << 20)}; /* nothing to do */
    for (int again = 0; again < 3; again++) {
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            td_cost_table.part(p, &parts[i], &notes);
            td_cost_model_for(sheet)->part(sheet, &parts[i], &other);
        }
        for (size_t i = 0; i < sizeof comms / sizeof *comms; i++) {
            td_comm_cost cost;
            td_cost_table.comm(p, &comms[i], &cost, &notes);
        }
    }
    cr_assert_eq(notes.n_shapes[TD_SHAPE_KNOWN], 3 + 2);
    cr_assert_eq(notes.n_shapes[TD_SHAPE_INSIDE], 1 + 2);
    cr_assert_eq(notes.n_shapes[TD_SHAPE_OUTSIDE], 2 + 1);
    cr_assert_eq(notes.n_shapes[TD_SHAPE_OUTSIDE], notes.n); /* exactly what is noted */
    cr_assert_eq(other.n_shapes[TD_SHAPE_OUTSIDE], 6);       /* a datasheet measured nothing */
    cr_assert_eq(other.n_shapes[TD_SHAPE_KNOWN] + other.n_shapes[TD_SHAPE_INSIDE], 0);
}

Test(cost, send_receive_of_16_mib_takes_longer_the_more_ranks_its_communicator_has)
{
    const td_profile *p = shipped("h200-tables");
    static const struct {
        int32_t ranks;
        double us;
    } published[] = {{2, 80}, {4, 121}, {8, 222}};
    for (int i = 0; i < 3; i++) {
        const double us = comm_s(p, in_node(TD_COLL_SENDRECV, published[i].ranks, 16 << 20)) * 1e6;
        cr_assert_lt(fabs(us / published[i].us - 1), 0.03, "%g", us);
    }
}

/* ---- interpolation ---- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of the absolute relative errors; prints it with the worst. */
static double report(const char *what, double *errors, int32_t n)
{
    qsort(errors, (size_t)n, sizeof *errors, ascending);
    printf("%s: %d times, error median %.1f %%, 90 %% below %.0f %%, worst %.0f %%\n", what, n,
           100 * errors[n / 2], 100 * errors[9 * n / 10], 100 * errors[n - 1]);
    return errors[n / 2];
}

static double error_of(double predicted, double measured)
{
    return fabs(predicted / measured - 1);
}

/* Predicts each product from the others, without its own shape or without its whole weight. */
static double leave_gemms_out(const td_profile *p, bool whole_weight)
{
    double *errors = TD_NEW(arena, double, 3 * p->n_gemms);
    td_gemm_row *rows = TD_NEW(arena, td_gemm_row, p->n_gemms);
    int32_t n = 0;
    for (int32_t i = 0; i < p->n_gemms; i++) {
        const td_gemm_row *out = &p->gemms[i];
        td_profile rest = *p;
        rest.gemms = rows;
        rest.n_gemms = 0;
        for (int32_t k = 0; k < p->n_gemms; k++) {
            const bool weight = p->gemms[k].n == out->n && p->gemms[k].k == out->k;
            if (!(weight && (whole_weight || p->gemms[k].m == out->m)))
                rows[rest.n_gemms++] = p->gemms[k];
        }
        for (int pass = 0; pass < 3; pass++) {
            const td_part part = gemm((td_pass)pass, out->m, out->n, out->k);
            errors[n++] = error_of(td_cost_table.part(&rest, &part, NULL), out->s[pass]);
        }
    }
    return report(whole_weight ? "weights left out" : "products left out", errors, n);
}

Test(cost, products_left_out_of_the_profile_are_predicted_from_the_others)
{
    const td_profile *p = shipped("h200-tables");
    cr_expect_lt(leave_gemms_out(p, false), 0.025);
    cr_expect_lt(leave_gemms_out(p, true), 0.03);
}

Test(cost, attention_left_out_of_the_profile_is_predicted_from_the_others)
{
    const td_profile *p = shipped("h200-tables");
    double *errors = TD_NEW(arena, double, 2 * p->n_attention);
    td_attention_row *rows = TD_NEW(arena, td_attention_row, p->n_attention);
    for (int32_t i = 0; i < p->n_attention; i++) {
        const td_attention_row *r = &p->attention[i];
        td_profile rest = *p;
        rest.attention = rows;
        rest.n_attention = p->n_attention - 1;
        memcpy(rows, p->attention, (size_t)i * sizeof *rows);
        memcpy(rows + i, p->attention + i + 1, (size_t)(p->n_attention - 1 - i) * sizeof *rows);
        for (int back = 0; back < 2; back++) {
            const td_part part = attention(back ? TD_PASS_BACKWARD : TD_PASS_FORWARD, r->batch,
                                           r->seq, r->heads, r->head_dim, r->causal);
            errors[2 * i + back] = error_of(td_cost_table.part(&rest, &part, NULL),
                                            back ? r->backward_s : r->forward_s);
        }
    }
    cr_expect_lt(report("attention left out", errors, 2 * p->n_attention), 0.10);
}

/* One inner point of a curve less. */
static td_curve without(const td_curve *c, int32_t out)
{
    double *x = TD_NEW(arena, double, c->n), *y = TD_NEW(arena, double, c->n);
    int32_t n = 0;
    for (int32_t i = 0; i < c->n; i++) {
        if (i == out)
            continue;
        x[n] = c->x[i];
        y[n++] = c->y[i];
    }
    return (td_curve){.n = n, .x = x, .y = y};
}

Test(cost, message_sizes_left_out_of_the_profile_are_predicted_from_the_others)
{
    const td_profile *p = shipped("h200-tables");
    double *errors = TD_NEW(arena, double, 1000);
    int32_t n = 0;
    for (int coll = 0; coll < TD_N_COLLS; coll++) {
        for (int32_t i = 0; i < p->n_collectives[coll]; i++) {
            const td_curve *c = &p->collectives[coll][i].time;
            for (int32_t k = 1; k + 1 < c->n; k++) {
                const td_curve rest = without(c, k);
                errors[n++] = error_of(td_law_curve(&rest, c->x[k]), c->y[k]);
            }
        }
    }
    cr_expect_lt(report("message sizes left out", errors, n), 0.01);
    n = 0;
    for (int32_t k = 1; k + 1 < p->copy.n; k++) {
        const td_curve rest = without(&p->copy, k);
        errors[n++] = error_of(td_law_curve(&rest, p->copy.x[k]), p->copy.y[k]);
    }
    cr_expect_lt(report("copies left out", errors, n), 0.02);
}

Test(cost, four_ranks_left_out_of_the_profile_are_predicted_from_two_and_eight)
{
    const td_profile *p = shipped("h200-tables");
    double *errors = TD_NEW(arena, double, 1000);
    int32_t n = 0;
    for (int coll = 0; coll < TD_N_COLLS; coll++) {
        const td_coll_curve *c = p->collectives[coll];
        const td_coll_curve ends[] = {c[0], c[2]};
        td_profile rest = *p;
        rest.collectives[coll] = ends;
        rest.n_collectives[coll] = 2;
        for (int32_t k = 0; k < c[1].time.n; k++)
            errors[n++] = error_of(
                comm_s(&rest, in_node((td_coll)coll, 4, (uint64_t)c[1].time.x[k])), c[1].time.y[k]);
    }
    cr_expect_lt(report("four ranks left out", errors, n), 0.10);
}

Test(cost, the_roofline_knows_nine_large_products_of_ten_within_a_seventh)
{
    const td_profile *p = shipped("h200-tables");
    double *errors = TD_NEW(arena, double, 3 * p->n_gemms);
    int32_t n = 0;
    for (int32_t i = 0; i < p->n_gemms; i++) {
        for (int pass = 0; pass < 3; pass++) {
            const td_part part = gemm((td_pass)pass, p->gemms[i].m, p->gemms[i].n, p->gemms[i].k);
            if (p->gemms[i].s[pass] >= 100e-6)
                errors[n++] = error_of(td_cost_roofline.part(p, &part, NULL), p->gemms[i].s[pass]);
        }
    }
    cr_expect_lt(report("products of 100 us by roofline", errors, n), 0.05);
    cr_expect_lt(errors[9 * n / 10], 0.15);
}

TheoryDataPoints(cost, more_rows_never_take_less) = {
    DataPoints(int, 256, 1000, 1024, 1376, 4096, 5000, 11008, 57344, 200000),
    DataPoints(int, 64, 512, 588, 1000, 1376, 4096, 28672, 50000),
    DataPoints(int, TD_PASS_FORWARD, TD_PASS_DGRAD, TD_PASS_WGRAD)};

Theory((int n, int k, int pass), cost, more_rows_never_take_less)
{
    const td_profile *p = shipped("h200-tables");
    double before = 0;
    for (double m = 1; m < 1e6; m *= 1.07) {
        const td_part part = gemm((td_pass)pass, (int64_t)m, n, k);
        const double s = td_cost_table.part(p, &part, NULL);
        cr_assert_geq(s, before, "n=%d k=%d m=%g", n, k, m);
        before = s;
    }
}

TheoryDataPoints(cost, a_message_never_takes_less_than_a_smaller_one) = {
    DataPoints(int, 0, 1, 2, 3, 4, 5), DataPoints(int, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 1000),
    DataPoints(int, 0, 1)};

Theory((int coll, int ranks, int one_node), cost, a_message_never_takes_less_than_a_smaller_one)
{
    const td_profile *p = shipped("h200-tables");
    for (int32_t i = 0; td_cost_models[i] != NULL; i++) {
        double before = 0;
        for (double bytes = 1; bytes < 1e11; bytes *= 1.3) {
            td_comm_query q = in_node((td_coll)coll, ranks, (uint64_t)bytes);
            td_comm_cost c;
            q.one_node = one_node;
            q.edge_bytes_per_s = one_node ? 450e9 : 50e9;
            td_cost_models[i]->comm(p, &q, &c, NULL);
            const double edge = ranks < 2 ? 0 : td_collectives[coll]->edge_bytes(ranks, q.bytes);
            cr_assert_geq(c.total_s, before);
            cr_assert_geq(c.total_s, edge / q.edge_bytes_per_s, "the bound of the link");
            cr_assert(c.alpha_s >= 0 && c.alpha_s <= c.total_s);
            before = c.total_s;
        }
    }
}

/* ---- bounds ---- */

TheoryDataPoints(cost, no_part_beats_the_peak_or_the_memory) = {
    DataPoints(int, 0, 1, 2, 3), DataPoints(int, 1, 64, 1000, 4096, 1000000),
    DataPoints(int, 1, 64, 588, 8192, 100000), DataPoints(int, 0, 1)};

Theory((int profile, int x, int y, int fp32), cost, no_part_beats_the_peak_or_the_memory)
{
    static const char *const names[] = {"h200-tables", "h100", "a100", "b200"};
    const td_profile *p = shipped(names[profile]);
    const double peak = fp32 ? p->fp32_flops_per_s : p->bf16_flops_per_s;
    for (int32_t i = 0; td_cost_models[i] != NULL; i++) {
        for (int class = 0; class < TD_N_PARTS; class ++) {
            td_part part = td_part_table[class].key == TD_KEY_BYTES
                               ? passes((td_part_class) class, (uint64_t)x * (uint64_t)y)
                           : class == TD_PART_GEMM ? gemm(TD_PASS_WGRAD, x, y, 1024)
                                                   : attention(TD_PASS_FORWARD, 2, x, y, 128, true);
            if (class == TD_PART_COLLECTIVE)
                continue;
            part.fp32 = (uint8_t)fp32;
            const double flops = class == TD_PART_GEMM        ? 2.0 * x * y * 1024
                                 : class == TD_PART_ATTENTION ? 2.0 * 2 * x * (double)x * y * 128
                                                              : 0;
            const double s = td_cost_models[i]->part(p, &part, NULL);
            cr_assert(isfinite(s) && s > 0);
            cr_assert_geq(s, flops / peak, "%s %s", names[profile], td_part_table[class].name);
            cr_assert_geq(s, (double)part.bytes / p->memory_bytes_per_s);
        }
    }
}

Test(cost, the_roofline_is_its_closed_form)
{
    const td_profile p = {
        .bf16_flops_per_s = 100e12,
        .fp32_flops_per_s = 10e12,
        .memory_bytes_per_s = 1e12,
        .kernel_gap_s = 2e-6,
        .memory_efficiency = 0.8,
        .efficiency = {.gemm = {0.5, 0.4, 0.25},
                       .attention = {0.4, 0.2},
                       .collective = {[TD_COLL_ALL_GATHER] = 0.8, [TD_COLL_ALL_REDUCE] = 0.7}},
        .latency_s = {.gemm = {3e-6, 4e-6, 5e-6},
                      .attention = {6e-6, 7e-6},
                      .collective = {[TD_COLL_ALL_GATHER] = 9e-6}}};
    static const double gemm_s[] = {2e9 / 50e12 + 3e-6, 2e9 / 40e12 + 4e-6, 2e9 / 25e12 + 5e-6};
    const td_part copy = passes(TD_PART_NORM, 8000000);
    for (int pass = 0; pass < 3; pass++) {
        td_part product = gemm((td_pass)pass, 1000, 1000, 1000);
        cr_assert_float_eq(td_cost_roofline.part(&p, &product, NULL), gemm_s[pass], 1e-15);
        product.fp32 = 1;
        cr_assert_float_eq(td_cost_roofline.part(&p, &product, NULL),
                           10 * gemm_s[pass] - 9 * p.latency_s.gemm[pass], 1e-15);
    }
    const td_part forward = attention(TD_PASS_FORWARD, 1, 1000, 8, 128, false),
                  backward = attention(TD_PASS_BACKWARD, 1, 1000, 8, 128, false);
    cr_assert_float_eq(td_cost_roofline.part(&p, &forward, NULL), 4.096e9 / 40e12 + 6e-6, 1e-15);
    cr_assert_float_eq(td_cost_roofline.part(&p, &backward, NULL), 10.24e9 / 20e12 + 7e-6, 1e-15);
    cr_assert_float_eq(td_cost_roofline.part(&p, &copy, NULL), 8e6 / 0.8e12 + 2e-6, 1e-15);
    const td_comm_query gather = in_node(TD_COLL_ALL_GATHER, 4, 1 << 20),
                        reduce = in_node(TD_COLL_ALL_REDUCE, 64, 8);
    td_comm_cost c;
    td_cost_roofline.comm(&p, &gather, &c, NULL);
    cr_assert_float_eq(c.total_s, 9e-6 + 2e-6 + 0.75 * (1 << 20) / 360e9, 1e-15,
                       "the latency of two ranks, and of two more steps");
    td_cost_roofline.comm(&p, &reduce, &c, NULL);
    cr_assert_float_eq(c.alpha_s, 12e-6, 1e-9, "a tree of 64 ranks is 6 deep, up and down");
    cr_assert_eq(td_cost_model_for(&p), &td_cost_roofline);
    cr_assert_eq(td_cost_model_for(shipped("h200-tables")), &td_cost_table);
}

/* A profile with one curve of two points for two ranks: a small message and a large one. */
static const td_coll_curve *curve(double small_s, double large_s, double *x, double *y,
                                  td_coll_curve *out)
{
    x[0] = 8192, x[1] = 1 << 24;
    y[0] = small_s, y[1] = large_s;
    *out = (td_coll_curve){.ranks = 2, .time = {.n = large_s > 0 ? 2 : 1, .x = x, .y = y}};
    return out;
}

static double price(const td_profile *p, td_coll coll, uint64_t bytes, bool in_pass)
{
    td_comm_query q = in_node(coll, 2, bytes);
    td_comm_cost cost;
    q.in_pass = in_pass;
    td_cost_table.comm(p, &q, &cost, NULL);
    return cost.total_s;
}

Test(cost, a_collective_inside_a_pass_has_a_price_of_its_own_where_one_was_measured)
{
    td_profile p = *shipped("h200-tables");
    double x[2], y[2];
    td_coll_curve c;
    cr_assert_eq(price(&p, TD_COLL_ALL_REDUCE, 1 << 24, true),
                 price(&p, TD_COLL_ALL_REDUCE, 1 << 24, false));
    p.in_pass[TD_COLL_ALL_REDUCE] = curve(6e-6, 55e-6, x, y, &c);
    p.n_in_pass[TD_COLL_ALL_REDUCE] = 1;
    cr_assert_float_eq(price(&p, TD_COLL_ALL_REDUCE, 1 << 24, true), 55e-6, 1e-12);
    cr_assert_gt(price(&p, TD_COLL_ALL_REDUCE, 1 << 24, false), 60e-6);
}

Test(cost, an_all_reduce_never_seen_large_takes_as_long_as_its_halves_and_the_other_way_round)
{
    td_profile p = *shipped("h200-tables");
    double x[3][2], y[3][2];
    td_coll_curve c[3];
    static const td_coll colls[] = {TD_COLL_ALL_REDUCE, TD_COLL_REDUCE_SCATTER, TD_COLL_ALL_GATHER};
    static const double large[2][3] = {{0, 31e-6, 29e-6}, {60e-6, 0, 0}};
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 3; i++) {
            p.collectives[colls[i]] = curve(5e-6, large[k][i], x[i], y[i], &c[i]);
            p.n_collectives[colls[i]] = 1;
        }
        cr_expect_float_eq(price(&p, colls[0], 1 << 24, false), 60e-6, 1e-12);
        cr_expect_float_eq(price(&p, colls[1], 1 << 24, false), k == 0 ? 31e-6 : 30e-6, 1e-12);
        cr_expect_float_eq(price(&p, colls[2], 1 << 24, false), k == 0 ? 29e-6 : 30e-6, 1e-12);
    }
}

/* ---- other GPUs ---- */

/* From the slowest to the fastest; H100 and H200 compute alike and differ in memory. */
TheoryDataPoints(cost, nothing_takes_longer_on_the_faster_gpu) = {
    DataPoints(int, 1, 64, 576, 2048, 8192), DataPoints(int, 64, 1024, 4096, 32000),
    DataPoints(int, TD_PASS_FORWARD, TD_PASS_DGRAD, TD_PASS_WGRAD)};

Theory((int x, int y, int pass), cost, nothing_takes_longer_on_the_faster_gpu)
{
    static const char *const names[] = {"a100", "h100", "h200-tables", "b200"};
    const td_part parts[] = {
        gemm((td_pass)pass, x, y, 4096),
        attention(pass == 0 ? TD_PASS_FORWARD : TD_PASS_BACKWARD, 2, x, y / 64, 128, true),
        passes(TD_PART_ADAM, (uint64_t)x * (uint64_t)y)};
    double before[3 + TD_N_COLLS];
    for (int i = 0; i < 4; i++) {
        const td_profile *p = shipped(names[i]);
        double s[3 + TD_N_COLLS];
        for (int k = 0; k < 3; k++)
            s[k] = td_cost_roofline.part(p, &parts[k], NULL);
        for (int coll = 0; coll < TD_N_COLLS; coll++) {
            td_comm_query q = in_node((td_coll)coll, 2 + 6 * pass / 2, (uint64_t)x * (uint64_t)y);
            td_comm_cost c;
            q.edge_bytes_per_s = p->link_bytes_per_s;
            td_cost_roofline.comm(p, &q, &c, NULL);
            s[3 + coll] = c.total_s;
        }
        for (int k = 0; k < 3 + TD_N_COLLS; k++) {
            if (i > 0)
                cr_assert_leq(s[k], before[k], "%s, %d", names[i], k);
            before[k] = s[k];
        }
    }
}

Test(cost, a_gpu_that_was_not_measured_carries_over_what_was_and_says_so)
{
    static const char *const names[] = {"a100", "h100", "b200"};
    const td_profile *h200 = shipped("h200-tables");
    for (int i = 0; i < 3; i++) {
        const td_profile *p = shipped(names[i]);
        cr_expect_eq(p->trust, TD_TRUST_DATASHEET);
        cr_expect_not_null(strstr(p->source, "carried over from measurements of an H200"));
        cr_expect_eq(memcmp(&p->efficiency, &h200->efficiency, sizeof p->efficiency), 0);
        cr_expect_eq(memcmp(&p->latency_s, &h200->latency_s, sizeof p->latency_s), 0);
        for (double d = 0; d <= 1; d += 0.05)
            cr_expect_eq(td_cost_clock_factor(p, d), td_cost_clock_factor(h200, d));
        for (int coll = 0; coll < TD_N_COLLS; coll++) {
            const td_overlap *o = &p->overlap[coll], *from = &h200->overlap[coll];
            cr_expect_eq(o->transfer, from->transfer);
            cr_expect_eq(o->compute, from->compute);
            cr_expect_float_eq(o->wait_s * p->bf16_flops_per_s,
                               from->wait_s * h200->bf16_flops_per_s, 0.1e-6 * 2250e12);
        }
    }
}

/* ---- notes ---- */

static const char *why(const td_profile *p, td_part part)
{
    td_cost_notes notes = {.arena = arena};
    td_cost_table.part(p, &part, &notes);
    td_cost_table.part(p, &part, &notes);
    if (notes.n == 0)
        return "";
    cr_assert_eq(notes.n, 1, "one shape, one note");
    cr_assert_eq(notes.head->count, 2);
    return td_arena_printf(arena, "%s: %s", notes.head->what, notes.head->why);
}

Test(cost, a_shape_outside_the_measured_ones_is_named_once)
{
    const td_profile *p = shipped("h200-tables");
    td_part wide = gemm(TD_PASS_FORWARD, 1024, 100000, 12288),
            slow = gemm(TD_PASS_FORWARD, 1024, 4096, 4096);
    slow.fp32 = 1;
    cr_expect_str_eq(why(p, wide),
                     "gemm fwd m=1024 n=100000 k=12288: outside the measured n 1024..57344");
    cr_expect_str_eq(why(p, gemm(TD_PASS_WGRAD, 3000, 7000, 5000)), "", "between measured shapes");
    cr_expect_not_null(strstr(why(p, slow), "fp32 not measured"));
    cr_expect_not_null(
        strstr(why(p, attention(TD_PASS_FORWARD, 1, 300, 16, 64, false)), "seq 576..576"));
    cr_expect_not_null(
        strstr(why(p, attention(TD_PASS_FORWARD, 1, 2048, 16, 96, true)), "head_dim or mask"));
    cr_expect_str_eq(why(p, attention(TD_PASS_BACKWARD, 1, 3000, 20, 128, true)), "");
    cr_expect_str_eq(why(p, passes(TD_PART_ADAM, 1)), "");
    cr_expect_not_null(
        strstr(why(p, passes(TD_PART_NORM, UINT64_C(1) << 40)), "outside the measured bytes"));
}

Test(cost, what_the_profile_does_not_have_comes_from_the_roofline_and_is_named)
{
    td_profile p = *shipped("h200-tables");
    p.n_attention = 0;
    p.copy.n = 0;
    const td_part a = attention(TD_PASS_FORWARD, 1, 2048, 32, 128, true),
                  b = passes(TD_PART_LOSS, 1 << 20);
    cr_expect_not_null(strstr(why(&p, a), "not measured: roofline"));
    cr_expect_not_null(strstr(why(&p, b), "loss bytes=1048576: not measured: roofline"));
    cr_expect_eq(td_cost_table.part(&p, &a, NULL), td_cost_roofline.part(&p, &a, NULL));
}

Test(cost, communication_that_was_not_measured_is_named)
{
    const td_profile *p = shipped("h200-tables");
    td_cost_notes notes = {.arena = arena};
    td_comm_query q = in_node(TD_COLL_ALL_REDUCE, 16, 1 << 20);
    td_comm_cost c;
    td_cost_table.comm(p, &q, &c, &notes);
    cr_assert_str_eq(notes.head->what, "all_reduce ranks=16 bytes=1048576");
    cr_assert_str_eq(notes.head->why, "outside the measured ranks 2..8");
    q.one_node = false;
    q.edge_bytes_per_s = 50e9;
    td_cost_table.comm(p, &q, &c, &notes);
    cr_assert_str_eq(notes.head->next->why, "across nodes: no measurement");
    cr_assert_geq(c.total_s, 2.0 * 15 / 16 * (1 << 20) / 50e9 / 0.81,
                  "no better than inside a node");
    q = in_node(TD_COLL_ALL_REDUCE, 3, 1000);
    td_cost_table.comm(p, &q, &c, &notes);
    cr_assert_eq(notes.n, 2, "3 ranks lie between 2 and 4");
}

Test(cost, a_busier_gpu_is_slower_by_the_measured_factor)
{
    const td_profile *p = shipped("h200-tables");
    cr_assert_eq(td_cost_clock_factor(p, 0), 1);
    cr_assert_float_eq(td_cost_clock_factor(p, 1), 1.19, 0.01);
    for (double d = 0; d < 1.2; d += 0.01)
        cr_assert_geq(td_cost_clock_factor(p, d + 0.01), td_cost_clock_factor(p, d));
    const td_profile none = {0};
    cr_assert_eq(td_cost_clock_factor(&none, 1), 1, "nothing measured, nothing assumed");
}

/* ---- the price list ---- */

enum { PARTS = 3, REPEAT = 4 };

/* Four ranks, tp pairs (0, 1) and (2, 3); rank 1 sends to rank 2. The nodes hold `gpus` each. */
typedef struct {
    td_node_group group;
    td_cluster cluster;
    td_plan plan;
    td_part parts[PARTS + 1];
    td_part_run runs[2];
    td_work work;
    td_op ops[4];
    td_stream stream;
    int32_t members[4];
    td_comm comms[4];
    td_chan chans[4][3];
    td_rank ranks[4];
    td_program program;
} world;

static const td_program *make_world(world *w, int32_t gpus)
{
    *w = (world){
        .group = {.count = 4 / gpus,
                  .gpus = gpus,
                  .gpu = {.name = "NVIDIA H200", .profile = "h200-tables"},
                  .nvlink_bytes_per_s = 450e9,
                  .nvlink_latency_s = 1e-6,
                  .nics = gpus,
                  .nic_bytes_per_s = 50e9,
                  .nic_latency_s = 3e-6},
        .parts = {gemm(TD_PASS_FORWARD, 2048, 4096, 4096),
                  {.class = TD_PART_COLLECTIVE,
                   .collective = TD_COLL_ALL_REDUCE,
                   .ranks = 2,
                   .bytes = 1 << 24},
                  passes(TD_PART_NORM, 1 << 26),
                  gemm(TD_PASS_FORWARD, 2048, 32000, 4096)},
        .runs = {{.first = 0, .n = PARTS, .repeat = REPEAT}, {.first = PARTS, .n = 1, .repeat = 1}},
        .members = {0, 1, 2, 3}};
    w->cluster =
        (td_cluster){.file = "test",
                     .n_groups = 1,
                     .groups = &w->group,
                     .fabric = {.kind = TD_FABRIC_RAIL, .oversubscription = 1, .latency_s = 1e-6},
                     .n_gpus = 4,
                     .n_nodes = w->group.count};
    w->plan.cluster = &w->cluster;
    w->work = (td_work){.n_runs = 2,
                        .n_parts = PARTS + 1,
                        .runs = w->runs,
                        .parts = w->parts,
                        .n_flat = PARTS * REPEAT + 1};
    w->ops[0] = (td_op){.kind = TD_OP_FORWARD, .chan = -1, .work = 0};
    w->ops[1] = (td_op){.kind = TD_OP_SEND, .chan = 1, .work = -1, .bytes = 1 << 24};
    w->ops[2] = (td_op){.kind = TD_OP_SEND_SHAPE, .chan = 1, .work = -1, .bytes = 24};
    w->ops[3] = (td_op){.kind = TD_OP_SUCCESS, .chan = 2, .work = -1, .bytes = 8};
    w->stream = (td_stream){.n_ops = 4, .ops = w->ops, .n_chans = 3};
    w->comms[0] = (td_comm){.kind = TD_COMM_TENSOR, .n_ranks = 2, .ranks = w->members};
    w->comms[1] = (td_comm){.kind = TD_COMM_TENSOR, .n_ranks = 2, .ranks = w->members + 2};
    w->comms[2] = (td_comm){.kind = TD_COMM_PAIR, .n_ranks = 2, .ranks = w->members + 1};
    w->comms[3] = (td_comm){.kind = TD_COMM_WORLD, .n_ranks = 4, .ranks = w->members};
    for (int32_t r = 0; r < 4; r++) {
        const td_chan chans[] = {{r / 2, r % 2}, {2, r == 2}, {3, r}};
        memcpy(w->chans[r], chans, sizeof chans);
        w->ranks[r] = (td_rank){.stream = 0, .chans = w->chans[r]};
    }
    w->program = (td_program){.plan = &w->plan,
                              .world_size = 4,
                              .n_streams = 1,
                              .n_works = 1,
                              .n_comms = 4,
                              .streams = &w->stream,
                              .ranks = w->ranks,
                              .comms = w->comms,
                              .works = &w->work};
    return &w->program;
}

static td_status build(const td_program *p, const td_costs_options *o, td_cost_notes *notes,
                       const td_costs **out, td_err *err)
{
    td_topology *topo = NULL;
    cr_assert_eq(td_topology_build(arena, p->plan->cluster, p->world_size, &topo, err), TD_OK, "%s",
                 err->text);
    return td_costs_build(arena, p, topo, o, notes, out, err);
}

Test(costs, a_work_is_the_sum_of_its_parts)
{
    world w;
    const td_costs *c = NULL;
    td_err err = {TD_OK, ""};
    const td_program *p = make_world(&w, 4);
    cr_assert_eq(build(p, &(td_costs_options){0}, NULL, &c, &err), TD_OK, "%s", err.text);
    const td_profile *h200 = td_costs_profile(c, 3);
    const td_work_cost *work = td_costs_work(c, 3, 0);
    double part[PARTS + 1];
    for (int32_t i = 0; i <= PARTS; i++) {
        part[i] = td_costs_part(c, 3, 0, i);
        if (i != 1)
            cr_assert_eq(part[i], td_cost_table.part(h200, &w.parts[i], NULL));
    }
    cr_assert_eq(part[1], comm_s(h200, in_node(TD_COLL_ALL_REDUCE, 2, 1 << 24)));
    cr_assert_float_eq(work->gemm_s, REPEAT * part[0] + part[3], 1e-15);
    cr_assert_float_eq(work->compute_s, work->gemm_s + REPEAT * part[2], 1e-15);
    cr_assert_float_eq(work->collective_s, REPEAT * part[1], 1e-15);
    cr_assert_eq(work->total_s, work->compute_s + work->collective_s);
    double sum = 0;
    for (int64_t n = 0; n <= w.work.n_flat; n++) {
        cr_assert_float_eq(td_costs_work_until(c, 3, 0, n), sum, 1e-15);
        sum += n < PARTS * REPEAT ? part[n % PARTS] : part[PARTS];
    }
    cr_assert_eq(td_costs_work_until(c, 3, 0, w.work.n_flat), work->total_s);
}

Test(costs, ranks_that_lie_alike_share_prices_and_control_messages_do_not_slow_compute)
{
    world w;
    const td_costs *c = NULL, *off = NULL;
    td_err err = {TD_OK, ""};
    const td_program *p = make_world(&w, 4);
    cr_assert_eq(build(p, &(td_costs_options){0}, NULL, &c, &err), TD_OK, "%s", err.text);
    cr_assert_eq(build(p, &(td_costs_options){.no_overlap = true}, NULL, &off, &err), TD_OK, "%s",
                 err.text);
    const td_op_cost *send = td_costs_op(c, 1, &w.ops[1]), *shape = td_costs_op(c, 1, &w.ops[2]);
    const td_profile *h200 = td_costs_profile(c, 0);
    cr_assert_eq(td_costs_op(c, 2, &w.ops[1]), send);
    cr_assert_eq(td_costs_work(c, 0, 0), td_costs_work(c, 3, 0));
    cr_assert_eq(send->lone.total_s, comm_s(h200, in_node(TD_COLL_SENDRECV, 2, 1 << 24)));
    cr_assert_eq(send->edge_bytes, 1 << 24);
    cr_assert_leq(send->rate, 450e9);
    cr_assert_float_eq(send->lone.alpha_s + (double)send->edge_bytes / send->rate,
                       send->lone.total_s, 1e-12);
    cr_assert_gt(send->overlap.transfer, 2);
    cr_assert_gt(send->overlap.wait_s, 0);
    cr_assert_eq(td_costs_op(off, 1, &w.ops[1])->overlap.transfer, 1);
    cr_assert_eq(shape->overlap.transfer, 1);
    cr_assert_eq(shape->overlap.compute, 1);
    cr_assert_eq(shape->overlap.wait_s, 0);
}

Test(costs, communicators_across_nodes_are_priced_by_their_slowest_edge_and_strictness_refuses_them)
{
    world w;
    const td_costs *c = NULL;
    td_err err = {TD_OK, ""};
    td_cost_notes notes = {.arena = arena};
    const td_program *p = make_world(&w, 2);
    cr_assert_eq(build(p, &(td_costs_options){0}, &notes, &c, &err), TD_OK, "%s", err.text);
    cr_assert_leq(td_costs_op(c, 1, &w.ops[1])->rate, 50e9);
    cr_assert_eq(td_costs_part(c, 0, 0, 1),
                 comm_s(td_costs_profile(c, 0), in_node(TD_COLL_ALL_REDUCE, 2, 1 << 24)),
                 "the tp pairs stay in their nodes");
    cr_assert_eq(notes.n, 3, "send, its shape and the world's");
    cr_assert_eq(build(p, &(td_costs_options){.strict = true}, NULL, &c, &err), TD_PLAN);
    cr_assert_not_null(strstr(err.text, "across nodes: no measurement"), "%s", err.text);
}

Test(costs, a_named_profile_replaces_the_clusters_and_a_wrong_name_lists_the_right_ones)
{
    world w;
    const td_costs *c = NULL;
    td_err err = {TD_OK, ""}, wrong = {TD_OK, ""};
    const td_program *p = make_world(&w, 4);
    cr_assert_eq(build(p, &(td_costs_options){.profile = "a100"}, NULL, &c, &err), TD_OK, "%s",
                 err.text);
    cr_assert_str_eq(td_costs_profile(c, 0)->name, "a100");
    cr_assert_eq(build(p, &(td_costs_options){.profile = "z100"}, NULL, &c, &wrong), TD_FILE);
    cr_assert_not_null(strstr(wrong.text, "h200"), "%s", wrong.text);
}
