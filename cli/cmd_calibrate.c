/* `tandem calibrate`: a profile of this machine, from running the executor itself or from traces.
 */
#include "cli/calibrate_probes.h"
#include "cli/cli.h"
#include "exec/launch.h"
#include "model/text.h"
#include "sim/calibrate.h"
#include "traces/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_LIST = 64, MAX_SOURCES = 256 };

typedef struct {
    td_arena *a;
    const char *on, *out, *base_name, *refresh, *name, *keep;
    bool json, quiet;
    const char *plans[MAX_LIST], *traces[MAX_LIST]; /* --for, --from */
    int32_t n_plans, n_traces;
    td_probe_machine machine;
    const td_profile *base, *against;
    td_calibrate_source sources[MAX_SOURCES];
    int32_t n_sources;
    char folder[4096]; /* of the probes; "": none was made */
    td_calibration c;
    double wall_s;
} answer;

static td_status no_memory(td_err *err)
{
    return td_fail(err, TD_NOMEM, "no memory");
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the command line ---- */

/*
 * `--for A B` and `--from T=P U=Q` take all words up to the next option; they are taken out, what
 * is left is for td_options_read().
 */
static td_status take_lists(answer *w, int *argc, char **argv, td_err *err)
{
    td_status st = TD_OK;
    int kept = 1;
    for (int i = 1; i < *argc;) {
        const bool plans = strcmp(argv[i], "--for") == 0;
        if (!plans && strcmp(argv[i], "--from") != 0) {
            argv[kept++] = argv[i++];
            continue;
        }
        int32_t *n = plans ? &w->n_plans : &w->n_traces;
        const int first = ++i;
        for (; i < *argc && argv[i][0] != '-'; i++) {
            if (*n == MAX_LIST)
                TD_TRY(st, td_fail(err, TD_USAGE, "%s: at most %d", plans ? "--for" : "--from",
                                   MAX_LIST));
            (plans ? w->plans : w->traces)[(*n)++] = argv[i];
        }
        if (i == first)
            TD_TRY(st, td_fail(err, TD_USAGE, "%s: expected %s", plans ? "--for" : "--from",
                               plans ? "PLAN..." : "TRACE=PLAN..."));
    }
    *argc = kept;
    argv[kept] = NULL;
done:
    return st;
}

static td_status load_program(answer *w, const char *path, const td_program **out, td_err *err)
{
    td_status st = TD_OK;
    const td_plan *plan;
    td_diags diags;
    TD_TRY(st, td_cli_load(w->a, path, &diags, &plan, err));
    TD_TRY(st, td_lower(w->a, plan, out, err));
done:
    return st;
}

static td_status add_source(answer *w, const char *trace, const td_program *p, td_err *err)
{
    if (w->n_sources == MAX_SOURCES)
        return td_fail(err, TD_USAGE, "more than %d traces", MAX_SOURCES);
    w->sources[w->n_sources++] = (td_calibrate_source){trace, p};
    return TD_OK;
}

static td_status take_traces(answer *w, td_err *err)
{
    td_status st = TD_OK;
    for (int32_t i = 0; i < w->n_traces; i++) {
        const char *equals = strchr(w->traces[i], '=');
        const td_program *p;
        if (equals == NULL || equals == w->traces[i] || equals[1] == '\0')
            TD_TRY(st, td_fail(err, TD_USAGE, "--from %s: expected TRACE=PLAN", w->traces[i]));
        const char *trace =
            td_arena_printf(w->a, "%.*s", (int)(equals - w->traces[i]), w->traces[i]);
        if (trace == NULL)
            TD_TRY(st, no_memory(err));
        TD_TRY(st, load_program(w, equals + 1, &p, err));
        TD_TRY(st, add_source(w, trace, p, err));
    }
done:
    return st;
}

/* ---- the machine ---- */

/* The rest of the first line of a file that starts with `key`, its colon and blanks; "" without. */
static const char *line_of(td_arena *a, const char *path, const char *key)
{
    char line[512];
    const char *value = "";
    FILE *f = fopen(path, "r");
    while (f != NULL && value[0] == '\0' && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, key, strlen(key)) == 0) {
            const char *at = line + strlen(key);
            at += strspn(at, " \t:");
            value = td_arena_printf(a, "%.*s", (int)strcspn(at, "\n"), at);
        }
    if (f != NULL)
        fclose(f);
    return value == NULL ? "" : value;
}

/* GPUs that programs of this process would see. */
static int32_t count_gpus(void)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    glob_t found;
    int32_t n = 0;
    if (visible != NULL) {
        for (const char *at = visible; *at != '\0'; at += strcspn(at, ","), at += *at == ',')
            n++;
        return n;
    }
    if (glob("/dev/nvidia[0-9]*", 0, NULL, &found) == 0)
        n = (int32_t)found.gl_pathc;
    globfree(&found);
    return n;
}

static const char *gpu_of_driver(td_arena *a)
{
    glob_t found;
    const char *name = "";
    if (glob("/proc/driver/nvidia/gpus/*/information", 0, NULL, &found) == 0 && found.gl_pathc > 0)
        name = line_of(a, found.gl_pathv[0], "Model");
    globfree(&found);
    return name;
}

static td_status look_at_gpus(answer *w, td_err *err)
{
    td_status st = TD_OK;
    const char *gpu = gpu_of_driver(w->a);
    w->machine = (td_probe_machine){.cuda = true, .gpus = count_gpus(), .gpu_name = gpu};
    if (w->machine.gpus == 0)
        TD_TRY(st, td_fail(err, TD_ABSENT, "there is no GPU here; --on host measures the cores"));
    if (gpu[0] == '\0' && w->base_name == NULL)
        TD_TRY(st, td_fail(err, TD_USAGE,
                           "the driver does not tell what GPU this is; name the profile that has "
                           "its peaks: --base PROFILE"));
    TD_TRY(st, td_profile_find(w->a, w->base_name, gpu, ".", &w->base, err));
    if (gpu[0] == '\0')
        w->machine.gpu_name = w->base->gpu;
    w->machine.memory_bytes = w->base->memory_bytes;
    w->machine.link_bytes_per_s = w->base->link_bytes_per_s > 0 ? w->base->link_bytes_per_s : 50e9;
    w->machine.link_latency_s = 1e-6;
done:
    return st;
}

/* A host has no datasheet here: its peaks are the largest rates that are found. */
static td_status look_at_cores(answer *w, td_err *err)
{
    const char *model = line_of(w->a, "/proc/cpuinfo", "model name");
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const char *name =
        td_arena_printf(w->a, "%s, %ld cores", model[0] == '\0' ? "host" : model, cores);
    if (name == NULL)
        return no_memory(err);
    /* A rank a core, so that times are lone ones; but the bridge needs two ranks. */
    w->machine = (td_probe_machine){.gpus = cores > 2 ? (int32_t)fmin((double)cores, 64) : 2,
                                    .cores = (int32_t)fmin((double)cores, INT32_MAX),
                                    .gpu_name = name,
                                    .memory_bytes = (double)sysconf(_SC_PHYS_PAGES) *
                                                    (double)sysconf(_SC_PAGESIZE),
                                    .link_bytes_per_s = 50e9,
                                    .link_latency_s = 1e-6};
    return TD_OK;
}

static td_status look(answer *w, td_err *err)
{
    char path[4200];
    const bool gpus = access("/dev/nvidiactl", F_OK) == 0 &&
                      td_launch_find("tandem-cuda", path, sizeof path, NULL) == TD_OK;
    const char *on = w->on != NULL ? w->on : gpus ? "cuda" : "host";
    td_status st = TD_OK;
    if (strcmp(on, "cuda") != 0 && strcmp(on, "host") != 0)
        TD_TRY(st, td_fail(err, TD_ABSENT,
                           "backend `%s` is not in this build; the executing backends are cuda and "
                           "host",
                           on));
    if (td_launched())
        TD_TRY(st, td_fail(err, TD_USAGE,
                           "calibrate starts its runs itself; call it without mpirun or srun"));
    w->on = on;
    TD_TRY(st,
           td_launch_find(on[0] == 'c' ? "tandem-cuda" : "tandem-host", path, sizeof path, err));
    TD_TRY(st, on[0] == 'c' ? look_at_gpus(w, err) : look_at_cores(w, err));
done:
    return st;
}

/* ---- running ---- */

static volatile sig_atomic_t child, stopped_by;

static void pass_on(int signal)
{
    stopped_by = signal;
    if (child > 0)
        kill((pid_t)child, signal);
}

/* Runs this program again; its answer is not wanted. */
static td_status run_tandem(char *const *argv, td_err *err)
{
    int status = 0;
    const pid_t pid = fork();
    if (pid < 0)
        return td_fail(err, TD_RUN, "cannot start a run: %s", strerror(errno));
    if (pid == 0) {
        const int null = open("/dev/null", O_WRONLY);
        if (null < 0 || dup2(null, STDOUT_FILENO) < 0)
            _exit(127);
        execv(argv[0], argv);
        _exit(127);
    }
    child = pid;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    child = 0;
    if (stopped_by != 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return td_fail(err, TD_RUN, "the run of %s failed", argv[2]);
    return TD_OK;
}

static td_status write_text(const char *path, const char *text, td_err *err)
{
    FILE *f = fopen(path, "w");
    const bool failed = f == NULL || fputs(text, f) == EOF;
    if ((f != NULL && fclose(f) != 0) || failed)
        return td_fail(err, TD_FILE, "%s: cannot write it: %s", path, strerror(errno));
    return TD_OK;
}

static td_status run_probe(answer *w, const td_probe *probe, td_err *err)
{
    td_status st = TD_OK;
    char self[4200];
    const td_program *p;
    const char *plan = td_arena_printf(w->a, "%s/%s.yaml", w->folder, probe->name);
    char steps[16], warmup[16];
    if (plan == NULL)
        TD_TRY(st, no_memory(err));
    snprintf(steps, sizeof steps, "%d", (int)probe->steps);
    snprintf(warmup, sizeof warmup, "%d", (int)probe->warmup);
    TD_TRY(st, td_launch_find("tandem", self, sizeof self, err));
    TD_TRY(st, write_text(plan, probe->text, err));
    TD_TRY(st, load_program(w, plan, &p, err));
    for (int coarse = probe->hot; coarse < 1 + (probe->twice || probe->hot); coarse++) {
        const char *trace = td_arena_printf(w->a, "%s/%s%s.json.gz", w->folder, probe->name,
                                            coarse ? "-coarse" : "");
        if (trace == NULL)
            TD_TRY(st, no_memory(err));
        /* exec() does not write to its words */
        char *const argv[] = {self,
                              (char *)"run",
                              (char *)plan,
                              (char *)"--on",
                              (char *)w->on,
                              (char *)"--steps",
                              steps,
                              (char *)"--warmup",
                              warmup,
                              (char *)"-o",
                              (char *)trace,
                              (char *)"--quiet",
                              coarse ? NULL : (char *)"--trace",
                              (char *)"fine",
                              NULL};
        TD_TRY(st, run_tandem(argv, err));
        TD_TRY(st, add_source(w, trace, p, err));
    }
done:
    return st;
}

static td_status make_folder(answer *w, td_err *err)
{
    const char *tmp = getenv("TMPDIR");
    if (w->keep != NULL) {
        snprintf(w->folder, sizeof w->folder, "%s", w->keep);
        if (mkdir(w->folder, 0777) != 0 && errno != EEXIST)
            return td_fail(err, TD_FILE, "%s: cannot make the folder: %s", w->keep,
                           strerror(errno));
        return TD_OK;
    }
    snprintf(w->folder, sizeof w->folder, "%s/tandem-calibrate-XXXXXX",
             tmp == NULL || *tmp == '\0' ? "/tmp" : tmp);
    if (mkdtemp(w->folder) == NULL) {
        td_fail(err, TD_FILE, "%s: cannot make a folder: %s", w->folder, strerror(errno));
        w->folder[0] = '\0';
        return TD_FILE;
    }
    return TD_OK;
}

static void clear_folder(const answer *w)
{
    glob_t found;
    if (w->folder[0] == '\0' || w->keep != NULL)
        return;
    char pattern[sizeof w->folder + 4];
    snprintf(pattern, sizeof pattern, "%s/*", w->folder);
    if (glob(pattern, 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++)
            unlink(found.gl_pathv[i]);
    globfree(&found);
    rmdir(w->folder);
}

static td_status run_probes(answer *w, td_err *err)
{
    td_status st = TD_OK;
    const td_plan *plans[MAX_LIST];
    td_probe *probes;
    int32_t n = 0;
    struct sigaction act = {.sa_handler = pass_on};
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &act, NULL);
    for (int32_t i = 0; i < w->n_plans; i++) {
        td_diags diags;
        TD_TRY(st, td_cli_load(w->a, w->plans[i], &diags, &plans[i], err));
    }
    TD_TRY(st,
           td_probes(w->a, &w->machine, w->n_plans, plans, w->refresh != NULL, &n, &probes, err));
    TD_TRY(st, make_folder(w, err));
    for (int32_t i = 0; i < n; i++) {
        const double began = now();
        TD_TRY(st, run_probe(w, &probes[i], err));
        if (!w->quiet)
            fprintf(stderr, "probe %d of %d: %s, %.1f s\n", (int)i + 1, (int)n, probes[i].name,
                    now() - began);
    }
done:
    return st;
}

/* ---- the profile ---- */

static td_status skip(void *self, const td_event *e, td_err *err)
{
    (void)self;
    (void)e;
    (void)err;
    return TD_OK;
}

/* Traces that are there: peaks of the GPUs that their first plan names; those of a host have none.
 */
static td_status base_of_traces(answer *w, td_err *err)
{
    td_status st = TD_OK;
    td_trace_meta meta;
    const td_cluster *cluster = w->sources[0].program->plan->cluster;
    const td_node_group *g = &cluster->groups[td_cluster_place(cluster, 0).group];
    TD_TRY(st, td_trace_visit(w->a, w->sources[0].trace, &meta, skip, NULL, err));
    if (strcmp(meta.backend, "host") == 0 && w->base_name == NULL) {
        TD_TRY(st, look_at_cores(w, err));
        goto done;
    }
    if (w->base_name != NULL)
        TD_TRY(st, td_profile_find(w->a, w->base_name, NULL, ".", &w->base, err));
    else
        TD_TRY(st,
               td_profile_find(w->a, g->gpu.profile, g->gpu.name, cluster->file, &w->base, err));
    w->machine.gpu_name = g->gpu.name != NULL ? g->gpu.name : w->base->gpu;
done:
    return st;
}

static const char *stem(td_arena *a, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    return td_arena_printf(a, "%.*s", (int)strcspn(name, "."), name);
}

static td_status calibrate(answer *w, td_err *err)
{
    td_status st = TD_OK;
    char date[32] = "";
    const time_t t = time(NULL);
    struct tm utc;
    if (gmtime_r(&t, &utc) != NULL)
        strftime(date, sizeof date, "%Y-%m-%d", &utc);
    const char *name = w->name != NULL  ? w->name
                       : w->out != NULL ? stem(w->a, w->out)
                                        : "calibrated";
    const char *source = td_arena_printf(
        w->a,
        "tandem %s calibrate, %d traces%s%s; peaks %s%s; times are medians over steps and ranks, "
        "what no trace shows has residuals of 0 samples and %s",
        TD_VERSION, (int)w->n_sources, w->n_traces > 0 ? " given" : " of probe plans on ",
        w->n_traces > 0 ? "" : w->on,
        w->base == NULL ? "are the largest rates found" : "of profile ",
        w->base == NULL ? "" : w->base->name,
        w->base == NULL ? "only the peaks to bound it" : "keeps the roofline of that profile");
    if (name == NULL || source == NULL)
        TD_TRY(st, no_memory(err));
    const td_calibrate_options o = {.base = w->base,
                                    .name = name[0] == '\0' ? "calibrated" : name,
                                    .gpu = w->machine.gpu_name,
                                    .source = source,
                                    .memory_bytes = w->machine.memory_bytes,
                                    .environment = {.date = td_arena_printf(w->a, "%s", date)}};
    TD_TRY(st, td_calibrate(w->a, w->n_sources, w->sources, &o, &w->c, err));
done:
    return st;
}

/* ---- the answer ---- */

static json_t *quantiles(int32_t n, const double q[TD_N_QUANTILES])
{
    json_t *all = json_array();
    json_array_append_new(all, json_integer(n));
    for (int32_t i = 0; i < TD_N_QUANTILES; i++)
        json_array_append_new(all, json_real(q[i]));
    return all;
}

static json_t *by_work(const td_by_work *share, const td_by_work *error, double scale)
{
    static const char *const names[] = {"gemm_fwd", "gemm_dgrad", "gemm_wgrad"};
    json_t *all = json_object();
    for (int i = 0; i < 3; i++)
        json_object_set_new(all, names[i],
                            json_pack("[f, f]", share->gemm[i] * scale, error->gemm[i] * scale));
    for (int i = 0; i < 2; i++)
        json_object_set_new(
            all, i == 0 ? "attention_fwd" : "attention_bwd",
            json_pack("[f, f]", share->attention[i] * scale, error->attention[i] * scale));
    for (int i = 0; i < TD_N_COLLS; i++)
        json_object_set_new(
            all, td_collectives[i]->name,
            json_pack("[f, f]", share->collective[i] * scale, error->collective[i] * scale));
    return all;
}

static void print_json(const answer *w, const td_drift *drift)
{
    const td_profile *p = &w->c.profile;
    json_t *classes = json_object(), *gpus = json_array(), *traces = json_array();
    for (int32_t i = 0; i < w->c.n_classes; i++) {
        const td_calibrated_class *c = &w->c.classes[i];
        json_t *one = json_pack("{s:I, s:i, s:i, s:o}", "samples", (json_int_t)c->n_samples,
                                "shapes", (int)c->n_shapes, "never_alone", (int)c->n_beside,
                                "residuals", quantiles(c->residuals->n, c->residuals->q));
        if (drift != NULL)
            json_object_set_new(one, "drift", quantiles(drift[i].n, drift[i].q));
        json_object_set_new(classes, c->name, one);
    }
    for (int32_t r = 0; r < w->c.n_gpus; r++)
        json_array_append_new(gpus, json_real(w->c.gpu_time[r]));
    for (int32_t i = 0; i < w->n_sources; i++)
        json_array_append_new(traces, json_pack("{s:s, s:s}", "trace", w->sources[i].trace, "plan",
                                                w->sources[i].program->plan->name));
    json_t *out = json_pack(
        "{s:s, s:s, s:s, s:s*, s:o, s:o, s:o, s:[f, f], s:[f, f], s:o, s:o, s:f, s:I, s:I, s:f}",
        "profile", p->name, "gpu", p->gpu, "trust", td_trust_names[p->trust], "file", w->out,
        "classes", classes, "efficiency", by_work(&p->efficiency, &p->errors.efficiency, 1),
        "latency_us", by_work(&p->latency_s, &p->errors.latency_s, 1e6), "memory_efficiency",
        p->memory_efficiency, p->errors.memory_efficiency, "kernel_gap_us", p->kernel_gap_s * 1e6,
        p->errors.kernel_gap_s * 1e6, "gpu_time", gpus, "traces", traces, "part_overhead_us",
        w->c.part_overhead_s * 1e6, "across_nodes", (json_int_t)w->c.n_across, "other_precision",
        (json_int_t)w->c.n_precision, "wall_s", w->wall_s);
    if (w->against != NULL)
        json_object_set_new(out, "against", json_string(w->against->name));
    json_dumpf(out, stdout, JSON_COMPACT);
    printf("\n");
    json_decref(out);
}

static double percent(double ln)
{
    return 100 * (exp(ln) - 1);
}

static void print_classes(const answer *w)
{
    printf("%-16s %9s %7s   %s\n", "class", "samples", "shapes",
           "off where held out: 5 %, median, 95 %");
    for (int32_t i = 0; i < w->c.n_classes; i++) {
        const td_calibrated_class *c = &w->c.classes[i];
        const double *q = c->residuals->q;
        printf("%-16s %9lld %7d   ", c->name, (long long)c->n_samples, (int)c->n_shapes);
        if (c->n_samples == 0)
            printf("not measured: %s\n",
                   w->base == NULL ? "only the peaks bound it" : "the base's roofline");
        else if (c->residuals->n == 0)
            printf("not known: nothing to hold it against\n");
        else
            printf("%+.1f %%, %+.1f %%, %+.1f %%\n", percent(q[0]), percent(q[2]), percent(q[4]));
    }
}

static void print_roofline(const answer *w)
{
    const td_profile *p = &w->c.profile;
    const struct {
        const char *name;
        double share, share_error, latency, latency_error;
    } rows[] = {{"gemm fwd", p->efficiency.gemm[0], p->errors.efficiency.gemm[0],
                 p->latency_s.gemm[0], p->errors.latency_s.gemm[0]},
                {"gemm dgrad", p->efficiency.gemm[1], p->errors.efficiency.gemm[1],
                 p->latency_s.gemm[1], p->errors.latency_s.gemm[1]},
                {"gemm wgrad", p->efficiency.gemm[2], p->errors.efficiency.gemm[2],
                 p->latency_s.gemm[2], p->errors.latency_s.gemm[2]},
                {"attention fwd", p->efficiency.attention[0], p->errors.efficiency.attention[0],
                 p->latency_s.attention[0], p->errors.latency_s.attention[0]},
                {"attention bwd", p->efficiency.attention[1], p->errors.efficiency.attention[1],
                 p->latency_s.attention[1], p->errors.latency_s.attention[1]},
                {"memory", p->memory_efficiency, p->errors.memory_efficiency, p->kernel_gap_s,
                 p->errors.kernel_gap_s}};
    printf("\nof %.4g TFLOP/s and %.4g GB/s (%s)\n",
           (w->base == NULL ? p->fp32_flops_per_s : p->bf16_flops_per_s) / 1e12,
           p->memory_bytes_per_s / 1e9, w->base == NULL ? "the largest found" : w->base->name);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        printf("  %-14s %5.1f %% ± %.1f, and %.2f ± %.2f us\n", rows[i].name, 100 * rows[i].share,
               100 * rows[i].share_error, rows[i].latency * 1e6, rows[i].latency_error * 1e6);
}

static void print_text(const answer *w, const td_drift *drift)
{
    if (drift == NULL) {
        print_classes(w);
        print_roofline(w);
        printf("\n");
        for (int32_t r = 0; w->base != NULL && r < w->c.n_gpus; r++)
            if (w->c.gpu_time[r] > 0)
                printf("GPU %d: products take %+.1f %% against the median GPU\n", (int)r,
                       100 * (w->c.gpu_time[r] - 1));
    } else {
        printf("%-16s %7s   %s\n", "class", "shapes", "drift: 5 %, median, 95 %");
        for (int32_t i = 0; i < w->c.n_classes; i++)
            if (drift[i].n > 0)
                printf("%-16s %7d   %+.1f %%, %+.1f %%, %+.1f %%\n", drift[i].name, (int)drift[i].n,
                       percent(drift[i].q[0]), percent(drift[i].q[2]), percent(drift[i].q[4]));
    }
    if (w->c.part_overhead_s > 0)
        printf("looking at a part took %.2f us, which was taken off\n", w->c.part_overhead_s * 1e6);
    if (w->c.n_across > 0)
        printf("%lld exchanges between nodes were left out: a profile is of one node\n",
               (long long)w->c.n_across);
    if (w->c.n_precision > 0)
        printf("%lld products in fp32 were left out: the profile's are in bf16\n",
               (long long)w->c.n_precision);
    if (w->out != NULL)
        printf("wrote %s: use it with --profile, or as `profile` in a cluster\n", w->out);
}

static td_status examine(const answer *w, td_err *err)
{
    if (w->out == NULL && w->refresh == NULL)
        return td_fail(err, TD_USAGE, "missing -o PROFILE (or --refresh PROFILE, which compares)");
    if (w->n_traces > 0 && (w->on != NULL || w->n_plans > 0 || w->keep != NULL))
        return td_fail(err, TD_USAGE,
                       "--from takes traces that are there: without --on, --for and --keep");
    return TD_OK;
}

static int run(int argc, char **argv)
{
    td_status st = TD_OK;
    td_err err = {0};
    answer w = {.a = td_arena_new()};
    td_drift drift[TD_N_PARTS + TD_N_COLLS];
    const double began = now();
    const char *plans = NULL, *traces = NULL; /* for --help: read by take_lists() */
    bool helped;
    const td_option options[] = {
        {"--on", "BACKEND", "cuda or host: run probe plans there (the best that is here)", NULL,
         &w.on, false},
        {"-o", "PROFILE", "write the profile (.json)", NULL, &w.out, false},
        {"--for", "PLAN...", "measure the shapes of these plans instead of a grid of common ones",
         NULL, &plans, false},
        {"--from", "TRACE=PLAN...",
         "run nothing: fine traces that are there, each with the plan that it is of", NULL, &traces,
         false},
        {"--refresh", "PROFILE",
         "measure a sample and tell how far it is from this profile; writes only with -o", NULL,
         &w.refresh, false},
        {"--base", "PROFILE",
         "where peaks come from (the shipped profile of the GPU; none for a host)", NULL,
         &w.base_name, false},
        {"--name", "NAME", "of the profile (its file's)", NULL, &w.name, false},
        {"--keep", "DIR", "leave plans and traces of the probes there", NULL, &w.keep, false},
        {"--quiet", NULL, "no progress on stderr", &w.quiet, NULL, false},
        {"--json", NULL, "one JSON object", &w.json, NULL, false},
        {0}};
    st = take_lists(&w, &argc, argv, &err);
    int code = st != TD_OK ? td_exit(st, &err)
                           : td_options_read(&td_command_calibrate, options, argc, argv, &helped);
    if (code != TD_EXIT_DONE || helped)
        goto done;
    if (w.a == NULL)
        TD_TRY(st, no_memory(&err));
    if (plans != NULL && w.n_plans < MAX_LIST) /* written with an equals sign */
        w.plans[w.n_plans++] = plans;
    if (traces != NULL && w.n_traces < MAX_LIST)
        w.traces[w.n_traces++] = traces;
    TD_TRY(st, examine(&w, &err));
    if (w.refresh != NULL)
        TD_TRY(st, td_profile_find(w.a, w.refresh, NULL, ".", &w.against, &err));
    if (w.n_traces > 0) {
        TD_TRY(st, take_traces(&w, &err));
        TD_TRY(st, base_of_traces(&w, &err));
    } else {
        TD_TRY(st, look(&w, &err));
        TD_TRY(st, run_probes(&w, &err));
    }
    TD_TRY(st, calibrate(&w, &err));
    if (w.against != NULL)
        TD_TRY(st, td_calibration_drift(w.a, &w.c, w.against, drift, &err));
    if (w.out != NULL)
        TD_TRY(st, td_profile_write(&w.c.profile, w.out, &err));
    w.wall_s = now() - began;
    if (w.json)
        print_json(&w, w.against == NULL ? NULL : drift);
    else
        print_text(&w, w.against == NULL ? NULL : drift);
done:
    if (st != TD_OK)
        code = td_exit(st, &err);
    if (stopped_by != 0)
        code = 128 + stopped_by;
    clear_folder(&w);
    td_arena_free(w.a);
    return code;
}

const td_command td_command_calibrate = {
    .name = "calibrate",
    .usage = "[--on cuda|host] -o PROFILE [--for PLAN...] [--from TRACE=PLAN...] "
             "[--refresh PROFILE] [--json] ...",
    .summary = "measure a profile with the executor itself, or fit one to traces",
    .example = "tandem calibrate --on host -o host.json",
    .run = run,
};
