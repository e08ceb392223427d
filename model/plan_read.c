/* The keys of a plan: tables of what may be written, and where it goes. Nothing here knows what
 * makes a plan valid. */
#include "model/plan_read.h"

#include "model/cluster_read.h"
#include "model/module.h"
#include "model/schedule.h"
#include "model/text.h"

#include <string.h>

#define TINY 1e-300                  /* above 0 */
#define BELOW_1 0x1.fffffffffffffp-1 /* the largest double below 1 */
#define HUGE_REAL 1e30

typedef struct {
    const td_yaml *cluster, *rank_order, *modules, *edges, *step, *optimizer, *data;
    const char *name;
    int32_t precision;
    int64_t seed;
} root_source;

typedef struct {
    const td_yaml *parallel, *stage_layers;
    const char *type;
    int32_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq, input_dim, mlp, frozen;
} module_source;

typedef struct {
    int32_t tp, cp, pp, dp, ep, etp, offset;
    const td_yaml *stage_layers;
} parallel_source;

typedef struct {
    const char *schedule;
    int32_t microbatches, micro_batch, recompute, bucket_policy;
    int64_t bucket_elements;
    bool shape_exchange, grad_overlap, sequence_parallel;
} step_source;

typedef struct {
    const char *type;
    double lr, beta1, beta2, eps, weight_decay, clip_grad;
    bool sharded;
    int32_t nonfinite;
} optimizer_source;

const char *const td_mlp_names[] = {[TD_MLP_SWIGLU] = "swiglu", [TD_MLP_GELU] = "gelu", NULL};
const char *const td_frozen_names[] = {[TD_FROZEN_FALSE] = "false",
                                       [TD_FROZEN_TRUE] = "true",
                                       [TD_FROZEN_BACKBONE] = "backbone",
                                       NULL};
const char *const td_recompute_names[] = {[TD_RECOMPUTE_NONE] = "none",
                                          [TD_RECOMPUTE_SELECTIVE] = "selective",
                                          [TD_RECOMPUTE_FULL] = "full",
                                          NULL};
const char *const td_bucket_policy_names[] = {
    [TD_BUCKETS_ALL_STAGES] = "all_stages", [TD_BUCKETS_REFERENCE] = "reference", NULL};
const char *const td_precision_names[] = {[TD_BF16] = "bf16", [TD_FP32] = "fp32", NULL};
const char *const td_nonfinite_names[] = {
    [TD_NONFINITE_SKIP] = "skip", [TD_NONFINITE_PROPAGATE] = "propagate", NULL};

static const td_field root_fields[] = {
    TD_TEXT(root_source, "name", name, "a name"),
    TD_NODE(root_source, "cluster", cluster, true, "the path of a cluster file or a mapping"),
    TD_NODE(root_source, "rank_order", rank_order, false, "a list"),
    TD_NODE(root_source, "modules", modules, true, "a mapping from names to modules"),
    TD_NODE(root_source, "edges", edges, false, "a list"),
    TD_NODE(root_source, "step", step, false, "a mapping"),
    TD_NODE(root_source, "optimizer", optimizer, false, "a mapping"),
    TD_WORD(root_source, "precision", precision, td_precision_names),
    TD_INT(root_source, "seed", seed, 0, UINT32_MAX),
    TD_NODE(root_source, "data", data, false, "a mapping"),
    {0}};

static const td_field module_fields[] = {
    TD_NODE(module_source, "parallel", parallel, true, "a mapping with `dp`"),
    {.key = "type",
     .kind = TD_FIELD_TEXT,
     TD_FIELD_TARGET(module_source, type),
     .expected = "a module type",
     .required = true},
    TD_INT_REQUIRED(module_source, "layers", layers, 1, TD_MAX_LAYERS),
    TD_INT_REQUIRED(module_source, "hidden", hidden, 1, INT32_MAX),
    TD_INT_REQUIRED(module_source, "heads", heads, 1, INT32_MAX),
    TD_INT(module_source, "kv_heads", kv_heads, 1, INT32_MAX),
    TD_INT(module_source, "head_dim", head_dim, 1, INT32_MAX),
    TD_INT_REQUIRED(module_source, "ffn", ffn, 1, INT32_MAX),
    TD_INT(module_source, "vocab", vocab, 2, INT32_MAX),
    TD_INT_REQUIRED(module_source, "seq", seq, 1, INT32_MAX),
    TD_INT(module_source, "input_dim", input_dim, 1, INT32_MAX),
    TD_WORD(module_source, "mlp", mlp, td_mlp_names),
    TD_WORD(module_source, "frozen", frozen, td_frozen_names),
    TD_NODE(module_source, "stage_layers", stage_layers, false, "a list"),
    {0}};

static const td_field parallel_fields[] = {
    TD_INT(parallel_source, "tp", tp, 1, TD_MAX_RANKS),
    TD_INT(parallel_source, "cp", cp, 1, TD_MAX_RANKS),
    TD_INT(parallel_source, "pp", pp, 1, TD_MAX_LAYERS),
    TD_INT_REQUIRED(parallel_source, "dp", dp, 1, TD_MAX_RANKS),
    TD_INT(parallel_source, "ep", ep, 1, TD_MAX_RANKS),
    TD_INT(parallel_source, "etp", etp, 1, TD_MAX_RANKS),
    TD_INT(parallel_source, "offset", offset, 0, TD_MAX_RANKS - 1),
    TD_NODE(parallel_source, "stage_layers", stage_layers, false, "a list"),
    {0}};

static const td_field step_fields[] = {
    TD_TEXT(step_source, "schedule", schedule, "the name of a schedule"),
    TD_INT(step_source, "microbatches", microbatches, 1, TD_MAX_MICROBATCHES),
    TD_INT(step_source, "micro_batch", micro_batch, 1, INT32_MAX),
    TD_BOOL(step_source, "shape_exchange", shape_exchange),
    TD_BOOL(step_source, "grad_overlap", grad_overlap),
    TD_BOOL(step_source, "sequence_parallel", sequence_parallel),
    TD_WORD(step_source, "recompute", recompute, td_recompute_names),
    TD_INT(step_source, "bucket_elements", bucket_elements, 1, INT32_MAX),
    TD_WORD(step_source, "bucket_policy", bucket_policy, td_bucket_policy_names),
    {0}};

#define SHARE "a number from 0 to below 1"
static const td_field optimizer_fields[] = {
    TD_TEXT(optimizer_source, "type", type, "adamw"),
    TD_REAL(optimizer_source, "lr", lr, 0, HUGE_REAL, "a number from 0 to 1e30"),
    TD_REAL(optimizer_source, "beta1", beta1, 0, BELOW_1, SHARE),
    TD_REAL(optimizer_source, "beta2", beta2, 0, BELOW_1, SHARE),
    TD_REAL(optimizer_source, "eps", eps, TINY, HUGE_REAL, "a number above 0, at most 1e30"),
    TD_REAL(optimizer_source, "weight_decay", weight_decay, 0, HUGE_REAL,
            "a number from 0 to 1e30"),
    TD_REAL(optimizer_source, "clip_grad", clip_grad, 0, HUGE_REAL,
            "a number from 0 (off) to 1e30"),
    TD_BOOL(optimizer_source, "sharded", sharded),
    TD_WORD(optimizer_source, "nonfinite", nonfinite, td_nonfinite_names),
    {0}};

/* A word that has to be in a table that is not one of names: says what is near, or all of them. */
static void unknown_word(td_reader *r, td_pos at, const char *path, const char *word,
                         const char *const *known)
{
    const char *near = td_text_nearest(word, known);
    const char *shown = td_text_show(r->arena, word, strlen(word));
    const char *list = td_text_list(r->arena, known);
    if (near != NULL)
        td_diag_error(r->diags, at, path, "unknown_value",
                      "is \"%s\"; did you mean `%s`? Expected one of %s", shown, near, list);
    else
        td_diag_error(r->diags, at, path, "unknown_value", "is \"%s\"; expected one of %s", shown,
                      list);
}

static bool is_list(td_reader *r, const td_yaml *node, const char *path, const char *expected)
{
    if (node->kind == TD_YAML_SEQUENCE)
        return true;
    td_diag_error(r->diags, node->at, path, "wrong_type", "%s; expected %s",
                  td_value_describe(r, node), expected);
    return false;
}

/* ---- modules ---- */

/* Best effort, whatever the limits: a ruleset judges what is written. */
static void read_raw(const td_map *map, td_parallel_raw *raw)
{
    const struct {
        const char *key;
        int64_t *to;
    } rows[] = {{"tp", &raw->tp}, {"cp", &raw->cp},   {"pp", &raw->pp},        {"dp", &raw->dp},
                {"ep", &raw->ep}, {"etp", &raw->etp}, {"offset", &raw->offset}};
    raw->present = true;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const td_yaml *value = td_map_get(map, rows[i].key);
        if (value == NULL || !td_value_int(value, rows[i].to))
            continue;
        if (rows[i].to == &raw->offset)
            raw->has_offset = true;
        else if (*rows[i].to == 0)
            raw->zero |= (uint8_t)(1u << i);
    }
}

static void read_stage_layers(td_reader *r, const td_yaml *list, const char *path,
                              td_module_source *source)
{
    static const td_field one = {.kind = TD_FIELD_INT, .size = 4, .min = 1, .max = TD_MAX_LAYERS};
    if (!is_list(r, list, path, "a list with the number of layers of each pipeline stage"))
        return;
    if (source->n_stage_layers >= 0) {
        td_diag_error(r->diags, list->at, path, "duplicate_key",
                      "is written beside the module's own; expected it once");
        return;
    }
    int32_t *layers = td_reader_alloc(r, list->n, sizeof *layers);
    if (layers == NULL)
        return;
    int32_t n = 0;
    bool known = true;
    for (const td_yaml *item = list->first; item != NULL; item = item->next, n++)
        known = td_value_read(r, item, td_path_item(r, path, n), &one, &layers[n]) && known;
    source->stage_layers_at = list->at;
    source->stage_layers_path = path;
    source->stage_layers = layers;
    source->n_stage_layers = known ? n : -1;
}

static void read_parallel(td_reader *r, const td_yaml *node, const char *path, td_module *m,
                          td_module_source *source)
{
    parallel_source s = {.tp = 1, .cp = 1, .pp = 1, .dp = 1, .ep = 1, .etp = 0};
    const int32_t errors = r->diags->n_errors;
    m->parallel_at = node->at;
    if (td_map_open(r, node, path, "a mapping with `dp`", &source->parallel)) {
        read_raw(&source->parallel, &m->raw);
        td_map_read(r, &source->parallel, parallel_fields, &s);
        source->parallel_known = r->diags->n_errors == errors;
        if (s.stage_layers != NULL)
            read_stage_layers(r, s.stage_layers, td_path_key(r, path, "stage_layers"), source);
    }
    m->tp = s.tp;
    m->cp = s.cp;
    m->pp = s.pp;
    m->dp = s.dp;
    m->ep = s.ep;
    m->etp = s.etp == 0 ? s.tp : s.etp;
    m->offset = s.offset;
}

static void read_type(td_reader *r, const char *type, const td_map *map, td_module *m)
{
    const char *known[TD_MAX_MODULES] = {NULL};
    m->type = type == NULL ? NULL : td_module_type_find(type);
    if (m->type != NULL || type == NULL)
        return;
    for (int32_t i = 0; i < TD_MAX_MODULES - 1 && td_module_types[i] != NULL; i++)
        known[i] = td_module_types[i]->name;
    unknown_word(r, td_map_at(map, "type"), td_path_key(r, map->path, "type"), type, known);
}

static void read_module(td_reader *r, const td_entry *e, const char *path, td_module *m,
                        td_module_source *source)
{
    module_source s = {.mlp = -1};
    m->name = e->key->text;
    m->at = source->key_at = e->key->at;
    m->parallel_at = e->value->at;
    m->tp = m->cp = m->pp = m->dp = m->ep = m->etp = 1;
    source->n_stage_layers = -1;
    if (!td_map_open(r, e->value, path, "a mapping that describes a module", &source->map))
        return;
    td_map_read(r, &source->map, module_fields, &s);
    read_type(r, s.type, &source->map, m);
    m->layers = s.layers;
    m->hidden = s.hidden;
    m->heads = s.heads;
    m->kv_heads = s.kv_heads;
    m->head_dim = s.head_dim;
    m->ffn = s.ffn;
    m->vocab = s.vocab;
    m->seq = s.seq;
    m->input_dim = s.input_dim;
    m->mlp = s.mlp >= 0 ? (td_mlp)s.mlp : m->type != NULL ? m->type->mlp : TD_MLP_GELU;
    m->frozen = (td_frozen)s.frozen;
    if (s.stage_layers != NULL)
        read_stage_layers(r, s.stage_layers, td_path_key(r, path, "stage_layers"), source);
    if (s.parallel != NULL)
        read_parallel(r, s.parallel, td_path_key(r, path, "parallel"), m, source);
}

/* Names stand in tensor names, file names and edges, so they are plain words. */
static void check_name(td_reader *r, const td_yaml *key, const char *path)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    const size_t length = strlen(key->text);
    if (length == 0 || length > 64 || strspn(key->text, allowed) != length)
        td_diag_error(r->diags, key->at, path, "bad_name",
                      "is no name for a module; expected 1 to 64 letters, digits, `_` or `-`");
    else if (strcmp(key->text, "tokens") == 0)
        td_diag_error(r->diags, key->at, path, "bad_name",
                      "`tokens` names the token data; expected another name for a module");
}

static void read_modules(td_plan_draft *d, const td_yaml *node)
{
    td_reader *r = d->reader;
    td_map map = {0};
    if (node != NULL && td_map_open(r, node, "modules", "a mapping from names to modules", &map)) {
        d->modules_at = map.at;
        if (map.n > TD_MAX_MODULES) {
            td_diag_error(r->diags, map.at, "modules", "out_of_range",
                          "there are %d modules; expected at most %d", map.n, TD_MAX_MODULES);
            map.n = TD_MAX_MODULES;
            d->modules_cut = true;
        }
    }
    d->modules = td_reader_alloc(r, map.n, sizeof *d->modules);
    d->sources = td_reader_alloc(r, map.n, sizeof *d->sources);
    if (d->modules == NULL || d->sources == NULL)
        return;
    d->plan.modules = d->modules;
    d->plan.n_modules = map.n;
    for (int32_t i = 0; i < map.n; i++) {
        const char *path = td_path_key(r, "modules", map.entries[i].key->text);
        check_name(r, map.entries[i].key, path);
        read_module(r, &map.entries[i], path, &d->modules[i], &d->sources[i]);
    }
    d->plan.language = td_plan_module(&d->plan, "language");
}

/* Names of the modules, NULL at the end; `from` skips or replaces nothing: index 0 is `first` if
 * that is not NULL. */
static const char *const *module_names(td_plan_draft *d, const char *first, bool language)
{
    const char **names = td_reader_alloc(d->reader, d->plan.n_modules + 2, sizeof *names);
    int32_t n = 0;
    if (names == NULL)
        return NULL;
    if (first != NULL)
        names[n++] = first;
    for (int32_t i = 0; i < d->plan.n_modules; i++)
        if (language || i != d->plan.language)
            names[n++] = d->modules[i].name;
    return names;
}

/* ---- edges ---- */

static int32_t edge_end(td_plan_draft *d, const td_yaml *node, const char *path)
{
    const td_yaml *value = td_yaml_value(node);
    const char *name = value->kind == TD_YAML_SCALAR ? value->text : NULL;
    if (name == NULL) {
        td_diag_error(d->reader->diags, value->at, path, "wrong_type",
                      "%s; expected the name of a module", td_value_describe(d->reader, value));
        return -1;
    }
    const int32_t m = td_plan_module(&d->plan, name);
    if (m < 0) {
        const char *const *names = module_names(d, NULL, true);
        if (names != NULL)
            unknown_word(d->reader, value->at, path, name, names);
    }
    return m;
}

static void read_edge(td_plan_draft *d, const td_yaml *pair, const char *path)
{
    td_reader *r = d->reader;
    if (pair->kind != TD_YAML_SEQUENCE || pair->n != 2) {
        td_diag_error(r->diags, pair->at, path, "wrong_type", "%s; expected a pair [from, to]",
                      pair->kind == TD_YAML_SEQUENCE ? "is a list of another length than 2"
                                                     : td_value_describe(r, pair));
        return;
    }
    const int32_t src = edge_end(d, pair->first, td_path_item(r, path, 0));
    const int32_t dst = edge_end(d, pair->first->next, td_path_item(r, path, 1));
    if (src < 0 || dst < 0)
        return;
    if (d->written[src][dst].file != NULL)
        td_diag_error(r->diags, pair->at, path, "duplicate_edge",
                      "is written twice, first on line %d; expected it once",
                      d->written[src][dst].line);
    else
        d->written[src][dst] = pair->at;
}

static void read_edges(td_plan_draft *d, const td_yaml *node)
{
    const int32_t errors = d->reader->diags->n_errors;
    d->edges_written = true;
    if (!is_list(d->reader, node, "edges", "a list of pairs [from, to]"))
        return;
    int32_t i = 0;
    for (const td_yaml *item = node->first; item != NULL; item = item->next, i++)
        read_edge(d, td_yaml_value(item), td_path_item(d->reader, "edges", i));
    d->edges_known = d->reader->diags->n_errors == errors;
}

/* ---- the rest ---- */

static void read_rank_order(td_plan_draft *d, const td_yaml *node)
{
    static const td_axis axes[4] = {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_DP, TD_AXIS_PP};
    td_reader *r = d->reader;
    td_axis order[4];
    bool ok = node->kind == TD_YAML_SEQUENCE && node->n == 4, seen[4] = {false};
    const td_yaml *item = node->first;
    for (int32_t i = 0; ok && i < 4; i++, item = item->next) {
        const td_yaml *value = td_yaml_value(item);
        int32_t k = 0;
        while (k < 4 && strcmp(value->text, td_axis_names[axes[k]]) != 0)
            k++;
        ok = k < 4 && !seen[k];
        if (ok) {
            seen[k] = true;
            order[i] = axes[k];
        }
    }
    if (ok)
        memcpy(d->plan.rank_order, order, sizeof order);
    else
        td_diag_error(r->diags, node->at, "rank_order", "unknown_value",
                      "is not an order of the axes; expected tp, cp, dp and pp, each once, as in "
                      "[tp, cp, dp, pp]");
}

static void read_schedule(td_plan_draft *d, const char *name)
{
    const char *known[TD_MAX_MODULES] = {NULL};
    for (int32_t i = 0; i < TD_MAX_MODULES - 1 && td_schedules[i] != NULL; i++)
        known[i] = td_schedules[i]->name;
    if (td_schedule_find(name) == NULL)
        unknown_word(d->reader, td_map_at(&d->step, "schedule"), "step.schedule", name, known);
    else
        d->plan.step.schedule = name;
}

static void read_step(td_plan_draft *d, const td_yaml *node)
{
    step_source s = {.schedule = td_schedule_1f1b.name,
                     .microbatches = 16,
                     .micro_batch = 1,
                     .shape_exchange = true,
                     .grad_overlap = true,
                     .recompute = TD_RECOMPUTE_NONE,
                     .bucket_elements = 40000000,
                     .bucket_policy = TD_BUCKETS_ALL_STAGES};
    d->step = (td_map){.at = d->root.at, .path = "step"};
    d->plan.step.schedule = s.schedule;
    if (node != NULL && td_map_open(d->reader, node, "step", "a mapping", &d->step))
        td_map_read(d->reader, &d->step, step_fields, &s);
    read_schedule(d, s.schedule);
    d->plan.step.microbatches = s.microbatches;
    d->plan.step.micro_batch = s.micro_batch;
    d->plan.step.shape_exchange = s.shape_exchange;
    d->plan.step.grad_overlap = s.grad_overlap;
    d->plan.step.sequence_parallel = s.sequence_parallel;
    d->plan.step.recompute = (td_recompute)s.recompute;
    d->plan.step.bucket_elements = s.bucket_elements;
    d->plan.step.bucket_policy = (td_bucket_policy)s.bucket_policy;
}

static void read_optimizer(td_plan_draft *d, const td_yaml *node)
{
    static const char *const types[] = {"adamw", NULL};
    optimizer_source s = {.type = "adamw",
                          .lr = 1e-4,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.01,
                          .clip_grad = 1.0,
                          .sharded = true,
                          .nonfinite = TD_NONFINITE_SKIP};
    td_map map = {0};
    if (node != NULL && td_map_open(d->reader, node, "optimizer", "a mapping", &map))
        td_map_read(d->reader, &map, optimizer_fields, &s);
    if (strcmp(s.type, "adamw") != 0)
        unknown_word(d->reader, td_map_at(&map, "type"), "optimizer.type", s.type, types);
    d->plan.optimizer.lr = s.lr;
    d->plan.optimizer.beta1 = s.beta1;
    d->plan.optimizer.beta2 = s.beta2;
    d->plan.optimizer.eps = s.eps;
    d->plan.optimizer.weight_decay = s.weight_decay;
    d->plan.optimizer.clip_grad = s.clip_grad;
    d->plan.optimizer.sharded = s.sharded;
    d->plan.optimizer.nonfinite = (td_nonfinite)s.nonfinite;
}

static void read_data(td_plan_draft *d, const td_yaml *node)
{
    td_reader *r = d->reader;
    td_map map = {0};
    if (!td_map_open(r, node, "data", "a mapping from `tokens` or encoders to files", &map))
        return;
    const char *const *known = module_names(d, "tokens", false);
    td_field *fields = td_reader_alloc(r, d->plan.n_modules + 2, sizeof *fields);
    const char **files = td_reader_alloc(r, d->plan.n_modules + 1, sizeof *files);
    struct td_data_file *data = td_reader_alloc(r, d->plan.n_modules + 1, sizeof *data);
    if (known == NULL || fields == NULL || files == NULL || data == NULL)
        return;
    for (size_t i = 0; known[i] != NULL; i++)
        fields[i] = (td_field){.key = known[i],
                               .kind = TD_FIELD_TEXT,
                               .offset = i * sizeof *files,
                               .size = sizeof *files,
                               .expected = "the path of a file"};
    td_map_read(r, &map, fields, files);
    for (int32_t i = 0; known[i] != NULL; i++) {
        if (files[i] == NULL)
            continue;
        const char *file = td_text_beside(r->arena, d->plan.file, files[i]);
        if (file == NULL)
            r->failed = true;
        data[d->plan.n_data++] = (struct td_data_file){.name = known[i], .file = file};
    }
    d->plan.data = data;
}

/* The file's own name without folder and ending: what a plan is called when it does not say. */
static const char *stem(td_reader *r, const char *file)
{
    const char *slash = strrchr(file, '/'), *name = slash == NULL ? file : slash + 1;
    const char *dot = strrchr(name, '.');
    const size_t length = dot == NULL || dot == name ? strlen(name) : (size_t)(dot - name);
    const char *text = td_arena_printf(r->arena, "%.*s", (int)length, name);
    if (text == NULL)
        r->failed = true;
    return text == NULL ? "" : text;
}

void td_plan_read(td_reader *r, const td_yaml *root, const char *file, td_plan_draft *d)
{
    root_source s = {.precision = TD_BF16, .seed = 1234};
    *d = (td_plan_draft){.reader = r,
                         .plan = {.file = file,
                                  .rank_order = {TD_AXIS_TP, TD_AXIS_CP, TD_AXIS_DP, TD_AXIS_PP},
                                  .language = -1}};
    d->written = td_reader_alloc(r, TD_MAX_MODULES, sizeof *d->written);
    if (d->written == NULL || !td_map_open(r, root, "", "a mapping", &d->root))
        return;
    td_map_read(r, &d->root, root_fields, &s);
    d->modules_at = d->root.at;
    d->plan.name = s.name != NULL ? s.name : stem(r, file);
    d->plan.precision = (td_precision)s.precision;
    d->plan.seed = (uint32_t)s.seed;
    if (s.cluster != NULL)
        d->plan.cluster = td_cluster_read(r, s.cluster, file, "cluster");
    if (s.rank_order != NULL)
        read_rank_order(d, s.rank_order);
    read_modules(d, s.modules);
    if (s.edges != NULL && !d->modules_cut) /* they may name what was not read */
        read_edges(d, s.edges);
    read_step(d, s.step);
    read_optimizer(d, s.optimizer);
    if (s.data != NULL)
        read_data(d, s.data);
}
