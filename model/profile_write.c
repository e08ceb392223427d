/* Writes profiles in the form that model/profile.c reads: JSON, one measurement a line. */
#include "model/profile.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void text(FILE *f, const char *s)
{
    fputc('"', f);
    for (; *s != '\0'; s++) {
        if (*s == '"' || *s == '\\')
            fprintf(f, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            fprintf(f, "\\u%04x", (unsigned)*s);
        else
            fputc(*s, f);
    }
    fputc('"', f);
}

static void us(FILE *f, double s)
{
    if (s < 0)
        fprintf(f, "null");
    else
        fprintf(f, "%.9g", s * 1e6);
}

/* The numbers for each kind of work; only those above 0 where zeros say `not known`. */
static void by_work(FILE *f, const td_by_work *w, double scale, const double *memory, bool known)
{
    const struct {
        const char *name;
        double x;
    } kernels[] = {
        {"gemm_fwd", w->gemm[TD_PASS_FORWARD]}, {"gemm_dgrad", w->gemm[TD_PASS_DGRAD]},
        {"gemm_wgrad", w->gemm[TD_PASS_WGRAD]}, {"attention_fwd", w->attention[0]},
        {"attention_bwd", w->attention[1]},     {"memory", memory == NULL ? -1 : *memory}};
    const char *separator = "{";
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (kernels[i].x > 0 || (kernels[i].x == 0 && !known)) {
            fprintf(f, "%s\"%s\": %.9g", separator, kernels[i].name, kernels[i].x * scale);
            separator = ", ";
        }
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        if (w->collective[i] > 0 || !known) {
            fprintf(f, "%s\"%s\": %.9g", separator, td_collectives[i]->name,
                    w->collective[i] * scale);
            separator = ", ";
        }
    fprintf(f, "%s}", separator[0] == '{' ? "{" : "");
}

static void head(FILE *f, const td_profile *p)
{
    fprintf(f, "{\n  \"format\": \"tandem-profile\",\n  \"version\": 1,\n  \"name\": ");
    text(f, p->name);
    fprintf(f, ",\n  \"gpu\": ");
    text(f, p->gpu);
    if (p->backend != NULL && p->backend[0] != '\0') {
        fprintf(f, ",\n  \"backend\": ");
        text(f, p->backend);
    }
    fprintf(f, ",\n  \"trust\": \"%s\",\n  \"source\": ", td_trust_names[p->trust]);
    text(f, p->source);
    fprintf(
        f,
        ",\n  \"peak\": {\"bf16_tflop_s\": %.9g, \"fp32_tflop_s\": %.9g, \"memory_gb_s\": %.9g, "
        "\"memory_gb\": %.9g",
        p->bf16_flops_per_s / 1e12, p->fp32_flops_per_s / 1e12, p->memory_bytes_per_s / 1e9,
        p->memory_bytes / 1e9);
    if (p->link_bytes_per_s > 0)
        fprintf(f, ", \"link_gb_s\": %.9g", p->link_bytes_per_s / 1e9);
    fprintf(f, "},\n  \"kernel_gap_us\": %.9g,\n  \"efficiency\": ", p->kernel_gap_s * 1e6);
    by_work(f, &p->efficiency, 1, &p->memory_efficiency, false);
    fprintf(f, ",\n  \"latency_us\": ");
    by_work(f, &p->latency_s, 1e6, NULL, false);
}

static void shapes(FILE *f, const td_profile *p)
{
    if (p->n_gemms > 0)
        fprintf(f, ",\n  \"gemm\": {\n    \"columns\": [\"m\", \"n\", \"k\", \"fwd_us\", "
                   "\"dgrad_us\", \"wgrad_us\"],\n    \"rows\": [\n");
    for (int32_t i = 0; i < p->n_gemms; i++) {
        const td_gemm_row *r = &p->gemms[i];
        fprintf(f, "      [%lld, %lld, %lld", (long long)r->m, (long long)r->n, (long long)r->k);
        for (int32_t pass = 0; pass < 3; pass++) {
            fprintf(f, ", ");
            us(f, r->s[pass]);
        }
        fprintf(f, i + 1 < p->n_gemms ? "],\n" : "]\n    ]\n  }");
    }
    if (p->n_attention > 0)
        fprintf(f, ",\n  \"attention\": {\n    \"columns\": [\"batch\", \"seq\", \"heads\", "
                   "\"head_dim\", \"causal\", \"fwd_us\", \"bwd_us\"],\n    \"rows\": [\n");
    for (int32_t i = 0; i < p->n_attention; i++) {
        const td_attention_row *r = &p->attention[i];
        fprintf(f, "      [%d, %d, %d, %d, %s, ", (int)r->batch, (int)r->seq, (int)r->heads,
                (int)r->head_dim, r->causal ? "true" : "false");
        us(f, r->forward_s);
        fprintf(f, ", ");
        us(f, r->backward_s);
        fprintf(f, i + 1 < p->n_attention ? "],\n" : "]\n    ]\n  }");
    }
}

static void curve(FILE *f, const char *name, const char *x, const char *y, const td_curve *c,
                  double scale, const char *indent)
{
    fprintf(f, "\n%s\"%s\": {\n%s  \"columns\": [\"%s\", \"%s\"],\n%s  \"rows\": [\n", indent, name,
            indent, x, y, indent);
    for (int32_t i = 0; i < c->n; i++)
        fprintf(f, "%s    [%.15g, %.9g]%s\n", indent, c->x[i], c->y[i] * scale,
                i + 1 < c->n ? "," : "");
    fprintf(f, "%s  ]\n%s}", indent, indent);
}

static void memory(FILE *f, const td_profile *p)
{
    const char *separator = ",\n  \"memory\": {";
    for (int32_t class = -1; class < TD_N_PARTS; class ++) {
        const td_curve *c = class < 0 ? &p->copy : &p->memory[class];
        if (c->n == 0)
            continue;
        fprintf(f, "%s", separator);
        curve(f, class < 0 ? "copy" : td_part_table[class].name, "bytes", "us", c, 1e6, "    ");
        separator = ",";
    }
    if (separator[1] == '\0')
        fprintf(f, "\n  }");
}

/* The least x of the curves that is larger than `above`; 0 when there is none. */
static double next_size(const td_coll_curve *c, int32_t n, double above)
{
    double next = 0;
    for (int32_t i = 0; i < n; i++)
        for (int32_t k = 0; k < c[i].time.n; k++)
            if (c[i].time.x[k] > above && (next == 0 || c[i].time.x[k] < next))
                next = c[i].time.x[k];
    return next;
}

static double at_size(const td_curve *c, double x)
{
    double s = -1;
    for (int32_t k = 0; k < c->n; k++)
        if (c->x[k] == x)
            s = c->y[k];
    return s;
}

static void collectives(FILE *f, const char *key, const int32_t count[TD_N_COLLS],
                        const td_coll_curve *const curves[TD_N_COLLS])
{
    bool any = false;
    for (int32_t i = 0; i < TD_N_COLLS; i++) {
        const td_coll_curve *c = curves[i];
        const int32_t n = count[i];
        if (n == 0)
            continue;
        if (!any)
            fprintf(f, ",\n  \"%s\": {", key);
        fprintf(f, "%s\n    \"%s\": {\n      \"ranks\": [", any ? "," : "",
                td_collectives[i]->name);
        any = true;
        for (int32_t k = 0; k < n; k++)
            fprintf(f, "%s%d", k > 0 ? ", " : "", (int)c[k].ranks);
        fprintf(f, "],\n      \"rows\": [");
        bool first = true;
        for (double x = next_size(c, n, 0); x > 0; x = next_size(c, n, x), first = false) {
            fprintf(f, "%s\n        [%.15g", first ? "" : ",", x);
            for (int32_t k = 0; k < n; k++) {
                fprintf(f, ", ");
                us(f, at_size(&c[k].time, x));
            }
            fprintf(f, "]");
        }
        fprintf(f, "\n      ]\n    }");
    }
    if (any)
        fprintf(f, "\n  }");
}

static void overlap(FILE *f, const td_profile *p)
{
    const char *separator = ",\n  \"overlap\": {";
    for (int32_t i = 0; i < TD_N_COLLS; i++) {
        const td_overlap *o = &p->overlap[i];
        if (o->wait_s == 0 && o->transfer == 1 && o->compute == 1)
            continue;
        fprintf(f, "%s\n    \"%s\": {\"wait_us\": %.9g, \"transfer\": %.9g, \"compute\": %.9g}",
                separator, td_collectives[i]->name, o->wait_s * 1e6, o->transfer, o->compute);
        separator = ",";
    }
    if (separator[1] == '\0')
        fprintf(f, "\n  }");
}

static void quantiles(FILE *f, const char *name, const td_residuals *r, const char **separator)
{
    fprintf(f, "%s\n    \"%s\": [%d", *separator, name, (int)r->n);
    for (int32_t i = 0; i < TD_N_QUANTILES; i++)
        fprintf(f, ", %.6g", r->q[i]);
    fprintf(f, "]");
    *separator = ",";
}

/* Classes that were not measured stand there with n 0 once anything was. */
static void residuals(FILE *f, const td_profile *p)
{
    const char *separator = ",\n  \"residuals\": {";
    int64_t n = 0;
    for (int32_t i = 0; i < TD_N_PARTS; i++)
        n += p->part_residuals[i].n;
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        n += p->coll_residuals[i].n;
    if (n == 0)
        return;
    for (int32_t i = 0; i < TD_N_PARTS; i++)
        if (i != TD_PART_COLLECTIVE)
            quantiles(f, td_part_table[i].name, &p->part_residuals[i], &separator);
    for (int32_t i = 0; i < TD_N_COLLS; i++)
        quantiles(f, td_collectives[i]->name, &p->coll_residuals[i], &separator);
    fprintf(f, "\n  }");
}

static void heat(FILE *f, const td_heat *h)
{
    fprintf(f,
            "\"heat\": {\"window_ms\": %.9g, \"attention\": %.9g, \"memory\": %.9g, "
            "\"collective\": %.9g}",
            h->window_s * 1e3, h->attention, h->memory, h->collective);
}

static void errors(FILE *f, const td_profile *p)
{
    const td_fit_errors *e = &p->errors;
    fprintf(f, ",\n  \"errors\": {\n    \"kernel_gap_us\": %.3g,\n    \"efficiency\": ",
            e->kernel_gap_s * 1e6);
    by_work(f, &e->efficiency, 1, &e->memory_efficiency, true);
    fprintf(f, ",\n    \"latency_us\": ");
    by_work(f, &e->latency_s, 1e6, NULL, true);
    if (e->heat.window_s > 0) {
        fprintf(f, ",\n    ");
        heat(f, &e->heat);
    }
    fprintf(f, "\n  }");
}

static void environment(FILE *f, const td_environment *e)
{
    const char *const pairs[][2] = {{"driver", e->driver}, {"cuda", e->cuda},
                                    {"nccl", e->nccl},     {"cudnn", e->cudnn},
                                    {"date", e->date},     {"clocks", e->clocks}};
    const char *separator = ",\n  \"environment\": {";
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (pairs[i][1] == NULL || pairs[i][1][0] == '\0')
            continue;
        fprintf(f, "%s\"%s\": ", separator, pairs[i][0]);
        text(f, pairs[i][1]);
        separator = ", ";
    }
    if (separator[2] == '\0')
        fprintf(f, "}");
}

td_status td_profile_write(const td_profile *p, const char *path, td_err *err)
{
    td_status st = TD_OK;
    char temporary[4096];
    FILE *f = NULL;
    const int n = snprintf(temporary, sizeof temporary, "%s.%ld~", path, (long)getpid());
    if (n >= (int)sizeof temporary)
        return td_fail(err, TD_FILE, "%s: the name is too long", path);
    f = fopen(temporary, "w");
    if (f == NULL)
        return td_fail(err, TD_FILE, "%s: cannot write it: %s", path, strerror(errno));
    head(f, p);
    shapes(f, p);
    memory(f, p);
    collectives(f, "collectives", p->n_collectives, p->collectives);
    collectives(f, "in_pass", p->n_in_pass, p->in_pass);
    overlap(f, p);
    if (p->duty.n > 0) {
        fputc(',', f);
        curve(f, "duty", "busy", "factor", &p->duty, 1, "  ");
        fprintf(f, ",\n  ");
        heat(f, &p->heat);
    }
    residuals(f, p);
    if (p->trust == TD_TRUST_CALIBRATED)
        errors(f, p);
    environment(f, &p->environment);
    fprintf(f, "\n}\n");
    const bool failed = ferror(f) != 0;
    if (fclose(f) != 0 || failed || rename(temporary, path) != 0)
        st = td_fail(err, TD_FILE, "%s: cannot write it: %s", path, strerror(errno));
    if (st != TD_OK)
        unlink(temporary);
    return st;
}
