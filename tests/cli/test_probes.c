/* The plans that a calibration runs are plans that can be run. */
#include "cli/calibrate_probes.h"
#include "model/memory.h"
#include "model/pipeline.h"
#include "model/program.h"
#include "model/program_check.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    bool cuda;
    int gpus;
    int least; /* probes */
} machine;

static td_probe_machine machine_of(const machine *m)
{
    return (td_probe_machine){.cuda = m->cuda,
                              .gpus = m->gpus,
                              .gpu_name = "NVIDIA H200",
                              .memory_bytes = 79e9,
                              .link_bytes_per_s = 450e9,
                              .link_latency_s = 1e-6};
}

/* No errors, no more ranks than there are, nothing that needs buffers, room on a GPU of 80 GB. */
static void can_run(td_arena *a, const td_probe *p, const machine *m)
{
    td_err err = {TD_OK, ""};
    td_diags diags = {.arena = a};
    const td_plan *plan = NULL;
    const td_program *program;
    td_progress progress[TD_N_COMPLETIONS];
    td_plan_parse(a, p->name, p->text, strlen(p->text), &diags, &plan, &err);
    cr_assert(err.status == TD_OK && diags.n_errors == 0, "%s: %s\n%s", p->name,
              diags.head == NULL ? err.text : td_diag_text(&diags, diags.head), p->text);
    cr_expect_leq(plan->world_size, m->gpus, "%s", p->name);
    cr_expect_eq(plan->precision, m->cuda ? TD_BF16 : TD_FP32);
    cr_assert_eq(td_lower(a, plan, &program, &err), TD_OK, "%s: %s", p->name, err.text);
    cr_assert_eq(td_plan_progress(a, plan, progress, &err), TD_OK, "%s: %s", p->name, err.text);
    cr_expect_neq(td_progress_needs(progress), TD_COMPLETION_BUFFERED_SENDS, "%s", p->name);
    cr_assert_eq(td_program_check(a, program, &err), TD_OK, "%s: %s", p->name, err.text);
    td_pipeline pipe;
    cr_assert_eq(td_pipeline_of_plan(a, plan, &pipe, &err), TD_OK);
    for (int32_t k = 0; k < plan->n_modules; k++)
        for (int32_t s = 0; s < plan->modules[k].pp; s++) {
            td_memory memory;
            cr_assert_eq(td_memory_of_stage(a, plan, &pipe, k, s, &memory, &err), TD_OK);
            cr_expect_leq(memory.total, memory.capacity, "%s: %.1f GB", p->name,
                          (double)memory.total / 1e9);
        }
}

ParameterizedTestParameters(probes, of_the_table_can_run)
{
    static machine table[] = {{true, 1, 4},  {true, 2, 7},  {true, 3, 7},  {true, 4, 10},
                              {true, 8, 13}, {false, 4, 7}, {false, 2, 6}, {false, 1, 2}};
    return cr_make_param_array(machine, table, sizeof table / sizeof *table);
}
ParameterizedTest(machine *m, probes, of_the_table_can_run)
{
    td_arena *a = td_arena_new();
    const td_probe_machine on = machine_of(m);
    td_err err = {TD_OK, ""};
    td_probe *probes;
    int32_t n;
    cr_assert_eq(td_probes(a, &on, 0, NULL, false, &n, &probes, &err), TD_OK, "%s", err.text);
    cr_expect_geq(n, m->least);
    for (int32_t i = 0; i < n; i++)
        can_run(a, &probes[i], m);
    cr_assert_eq(td_probes(a, &on, 0, NULL, true, &n, &probes, &err), TD_OK);
    cr_expect_eq(n, 1);
    td_arena_free(a);
}

typedef struct {
    char plan[40];
    int gpus, n;
} example;

/* All of a plan at once where it fits, else module by module. */
ParameterizedTestParameters(probes, of_a_plan_have_its_shapes)
{
    static example table[] = {{"full_pp_8gpu-7b", 8, 1},    {"full_pp_8gpu-7b", 4, 2},
                              {"llava-av-8gpu", 8, 1},      {"llava-frozen-backbone", 8, 1},
                              {"fan_in_dp4_8gpu-7b", 4, 2}, {"gpt3-175b-1024", 8, 1}};
    return cr_make_param_array(example, table, sizeof table / sizeof *table);
}
ParameterizedTest(example *e, probes, of_a_plan_have_its_shapes)
{
    td_arena *a = td_arena_new();
    const machine m = {true, e->gpus, 0};
    const td_probe_machine on = machine_of(&m);
    td_err err = {TD_OK, ""};
    td_diags diags = {.arena = a};
    const td_plan *plan = NULL;
    td_probe *probes;
    int32_t n;
    td_plan_load(a, td_arena_printf(a, "%s/examples/plans/%s.yaml", TD_SOURCE_DIR, e->plan), &diags,
                 &plan, &err);
    cr_assert(err.status == TD_OK && diags.n_errors == 0, "%s", err.text);
    cr_assert_eq(td_probes(a, &on, 1, &plan, false, &n, &probes, &err), TD_OK, "%s", err.text);
    cr_expect_eq(n, e->n, "%d", (int)n);
    for (int32_t i = 0; i < n; i++)
        can_run(a, &probes[i], &m);
    td_arena_free(a);
}
