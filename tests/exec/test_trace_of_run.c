/* The program that ran is the program that was shown: measured traces, op for op. */
#include "model/program.h"
#include "traces/trace.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { STEPS = 2 };

/* Flow mappings of modules and of the rest of the plan. */
struct layout {
    char modules[640], rest[160];
};

#define VISION "type: vision, layers: 2, hidden: 32, heads: 4, ffn: 48, seq: 8, input_dim: 12"
#define LANGUAGE "type: language, layers: 4, hidden: 32, heads: 4, ffn: 64, vocab: 64, seq: 20"

ParameterizedTestParameters(trace_of_run, is_the_program_op_for_op)
{
    static struct layout table[] = {
        {"language: {" LANGUAGE ", parallel: {dp: 1}}", "step: {microbatches: 2}"},
        {"language: {" LANGUAGE ", parallel: {tp: 2, pp: 2, dp: 1}}",
         "step: {microbatches: 5, sequence_parallel: true}"},
        {"language: {" LANGUAGE ", parallel: {pp: 2, dp: 2, offset: 1}}",
         "step: {microbatches: 3, bucket_policy: reference}"},
        {"images: {" VISION ", parallel: {pp: 2, dp: 1}}, language: {" LANGUAGE
         ", parallel: {tp: 2, dp: 1, offset: 2}}",
         "step: {microbatches: 6, recompute: full}"},
        {"images: {" VISION ", frozen: true, parallel: {dp: 2}}, language: {" LANGUAGE
         ", parallel: {pp: 2, dp: 1, offset: 2}}",
         "step: {microbatches: 2, micro_batch: 2}, optimizer: {sharded: false}"},
    };
    return cr_make_param_array(struct layout, table, sizeof table / sizeof *table);
}

static void write_plan(const char *path, const struct layout *l)
{
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    fprintf(file,
            "{name: small, precision: fp32, modules: {%s}, %s,\n"
            "cluster: {groups: [{count: 1, node: {gpus: 8, cores: 8, gpu: {name: NVIDIA H200, "
            "profile: h200, memory_gib: 140},"
            " nvlink_gb_s: 450, nvlink_latency_us: 2, nics: 8, nic_gb_s: 50, nic_latency_us: 3}}],"
            " fabric: {kind: single, oversubscription: 1, latency_us: 2}}}\n",
            l->modules, l->rest);
    cr_assert_eq(fclose(file), 0);
}

/* Children of stage passes: with `fine` all of them, without none. */
static void expect_parts(const td_trace *t, const td_program *p, bool fine)
{
    int64_t found = 0, expected = 0;
    for (int64_t i = 0; i < t->n_events; i++)
        if (t->events[i].part >= 0) {
            const td_op *op = &td_program_stream(p, t->events[i].rank)->ops[t->events[i].op];
            found += op->kind == TD_OP_FORWARD || op->kind == TD_OP_BACKWARD;
        }
    for (int32_t r = 0; r < p->world_size; r++) {
        const td_stream *s = td_program_stream(p, r);
        for (int32_t i = 0; i < s->n_ops; i++)
            if (s->ops[i].kind == TD_OP_FORWARD || s->ops[i].kind == TD_OP_BACKWARD)
                expected += STEPS * p->works[s->ops[i].work].n_flat;
    }
    cr_assert_eq(found, fine ? expected : 0, "%lld parts, expected %lld", (long long)found,
                 (long long)expected);
}

ParameterizedTest(struct layout *l, trace_of_run, is_the_program_op_for_op)
{
    char folder[] = "/tmp/tandem-test-XXXXXX", plan_path[64], trace_path[64], command[512];
    td_err err = {0};
    td_arena *a = td_arena_new();
    td_diags diags = {.arena = a};
    const td_plan *plan;
    const td_program *program;
    const td_trace *trace;
    cr_assert_not_null(mkdtemp(folder));
    snprintf(plan_path, sizeof plan_path, "%s/plan.yaml", folder);
    snprintf(trace_path, sizeof trace_path, "%s/trace.json", folder);
    write_plan(plan_path, l);
    cr_assert_eq(td_plan_load(a, plan_path, &diags, &plan, &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_diag_status(&diags, &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_lower(a, plan, &program, &err), TD_OK, "%s", err.text);
    for (int fine = 0; fine < 2; fine++) {
        snprintf(command, sizeof command,
                 "ASAN_OPTIONS=detect_leaks=0 '%s' run %s --steps %d --quiet -o %s %s >%s/out 2>&1 "
                 "|| { cat %s/out >&2; exit 1; }",
                 TD_TANDEM, plan_path, STEPS, trace_path, fine ? "--trace fine" : "", folder,
                 folder);
        cr_assert_eq(system(command), 0, "%s", l->modules);
        cr_assert_eq(td_trace_load(a, trace_path, &trace, &err), TD_OK, "%s", err.text);
        cr_assert_eq(trace->meta.n_steps, STEPS);
        cr_assert_eq(td_trace_check_program(trace, program, 0, &err), TD_OK, "%s: %s", l->modules,
                     err.text);
        expect_parts(trace, program, fine);
    }
    snprintf(command, sizeof command, "rm -r %s", folder);
    cr_assert_eq(system(command), 0);
    td_arena_free(a);
}
