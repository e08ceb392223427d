/* Real samples: numbers in mapped files, widened on their way into a microbatch. */
#include "exec/dataset.h"

#include "exec/data.h"
#include "model/module.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what a number looks like in a file, by the file's ending ---- */

static void widen_u16(const void *in, int64_t n, void *out)
{
    const uint16_t *x = in;
    uint32_t *y = out;
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i];
}

/* bfloat16 is the upper half of a float32. */
static void widen_bf16(const void *in, int64_t n, void *out)
{
    widen_u16(in, n, out);
    uint32_t *y = out;
    for (int64_t i = 0; i < n; i++)
        y[i] <<= 16;
}

static void copy_32(const void *in, int64_t n, void *out)
{
    memcpy(out, in, (size_t)n * 4);
}

/* To 32 bits: tokens to uint32, inputs to float32. */
typedef struct {
    const char *ending;
    bool tokens;
    int32_t size; /* bytes of a number */
    void (*widen)(const void *in, int64_t n, void *out);
} format;

static const format formats[] = {{".u16", true, 2, widen_u16},
                                 {".u32", true, 4, copy_32},
                                 {".f32", false, 4, copy_32},
                                 {".bf16", false, 2, widen_bf16}};

static const format *format_of(const char *file, bool tokens)
{
    const char *dot = strrchr(file, '.');
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (dot != NULL && formats[i].tokens == tokens && strcmp(formats[i].ending, dot) == 0)
            return &formats[i];
    return NULL;
}

/* ---- files ---- */

typedef struct {
    const char *file; /* NULL: synthetic */
    const format *format;
    int64_t numbers; /* of one sample */
    const char *at;
    size_t bytes;
} source;

struct td_dataset {
    const td_plan *plan;
    int64_t n;       /* samples of every file; 0 without files */
    source *sources; /* [n_modules]; the language module's are the tokens */
};

static td_status map(source *s, td_err *err)
{
    td_status st = TD_OK;
    struct stat about;
    const int fd = open(s->file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) != 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot open the data: %s", s->file, strerror(errno)));
    if (!S_ISREG(about.st_mode))
        TD_TRY(st, td_fail(err, TD_FILE, "%s: is not a regular file; expected data of kind `%s`",
                           s->file, s->format->ending));
    if (about.st_size == 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: is empty; expected at least one sample", s->file));
    s->bytes = (size_t)about.st_size;
    void *at = mmap(NULL, s->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (at == MAP_FAILED)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot map %zu bytes into memory: %s", s->file,
                           s->bytes, strerror(errno)));
    s->at = at;
done:
    if (fd >= 0)
        close(fd);
    return st;
}

/* Bytes of one sample; sizes of a plan are below 2^31, so this fits. */
static uint64_t sample_bytes(const source *s)
{
    return (uint64_t)s->numbers * (uint64_t)s->format->size;
}

static td_status open_source(source *s, const td_module *m, const char *file, td_err *err)
{
    td_status st = TD_OK;
    const bool tokens = m->type->language;
    *s = (source){.file = file,
                  .format = format_of(file, tokens),
                  .numbers = tokens ? m->seq : (int64_t)m->seq * m->input_dim};
    if (s->format == NULL)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: %s, by the ending of the name; expected %s", file,
                           tokens ? "holds no tokens" : "holds no inputs of an encoder",
                           tokens ? ".u16 or .u32" : ".f32 or .bf16"));
    TD_TRY(st, map(s, err));
    if (s->bytes % sample_bytes(s) == 0)
        goto done;
    if (tokens)
        st = td_fail(err, TD_FILE,
                     "%s: holds %zu bytes, not a whole number of samples; expected a multiple of "
                     "%llu (modules.%s: seq %d, %d bytes a token)",
                     file, s->bytes, (unsigned long long)sample_bytes(s), m->name, (int)m->seq,
                     (int)s->format->size);
    else
        st = td_fail(err, TD_FILE,
                     "%s: holds %zu bytes, not a whole number of samples; expected a multiple of "
                     "%llu (modules.%s: seq %d, input_dim %d, %d bytes a number)",
                     file, s->bytes, (unsigned long long)sample_bytes(s), m->name, (int)m->seq,
                     (int)m->input_dim, (int)s->format->size);
done:
    return st;
}

static td_status open_all(td_dataset *d, td_err *err)
{
    td_status st = TD_OK;
    const td_plan *plan = d->plan;
    const char *first = NULL; /* the file whose number of samples the others must have */
    for (int32_t i = 0; i < plan->n_data; i++) {
        const struct td_data_file *named = &plan->data[i];
        const int32_t module =
            strcmp(named->name, "tokens") == 0 ? plan->language : td_plan_module(plan, named->name);
        source *s = &d->sources[module];
        TD_TRY(st, open_source(s, &plan->modules[module], named->file, err));
        const int64_t n = (int64_t)(s->bytes / sample_bytes(s));
        if (first != NULL && n != d->n)
            TD_TRY(st, td_fail(err, TD_FILE,
                               "%s: holds %lld samples, but %s holds %lld; expected as many in "
                               "every file",
                               s->file, (long long)n, first, (long long)d->n));
        first = s->file;
        d->n = n;
    }
done:
    return st;
}

td_status td_dataset_open(td_arena *a, const td_plan *plan, td_dataset **out, td_err *err)
{
    td_status st = TD_OK;
    td_dataset *d = TD_NEW(a, td_dataset, 1);
    source *sources = TD_NEW(a, source, plan->n_modules);
    if (d == NULL || sources == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the data of %d modules",
                           (int)plan->n_modules));
    *d = (td_dataset){.plan = plan, .sources = sources};
    TD_TRY(st, open_all(d, err));
    *out = d;
done:
    if (st != TD_OK && sources != NULL)
        td_dataset_close(d);
    return st;
}

void td_dataset_close(td_dataset *d)
{
    for (int32_t i = 0; d != NULL && i < d->plan->n_modules; i++) {
        source *s = &d->sources[i];
        if (s->at != NULL)
            munmap((void *)s->at, s->bytes); /* mapped read-only, hence the const */
        s->at = NULL;
    }
}

/* ---- samples ---- */

int64_t td_dataset_samples(const td_dataset *d)
{
    return d->n;
}

bool td_dataset_has(const td_dataset *d, int32_t module)
{
    return d->sources[module].file != NULL;
}

int64_t td_dataset_sample(const td_dataset *d, int64_t sample)
{
    return d->n == 0 ? sample : sample % d->n;
}

static void take(const source *s, int64_t sample, void *out)
{
    s->format->widen(s->at + (uint64_t)sample * sample_bytes(s), s->numbers, out);
}

td_status td_dataset_tokens(const td_dataset *d, int64_t sample, int32_t *tokens, int32_t *target,
                            td_err *err)
{
    const source *s = &d->sources[d->plan->language];
    const td_module *m = &d->plan->modules[d->plan->language];
    const int64_t n = td_dataset_sample(d, sample);
    if (s->file == NULL) {
        td_data_tokens(d->plan, n, tokens, target);
        return TD_OK;
    }
    take(s, n, tokens);
    for (int32_t t = td_data_text(d->plan); t < m->seq; t++)
        if ((uint32_t)tokens[t] >= (uint32_t)m->vocab)
            return td_fail(err, TD_FILE,
                           "%s: sample %lld, position %d: token %lu; expected less than %d "
                           "(modules.%s.vocab)",
                           s->file, (long long)n, (int)t, (unsigned long)(uint32_t)tokens[t],
                           (int)m->vocab, m->name);
    td_data_targets(d->plan, tokens, target);
    return TD_OK;
}

void td_dataset_input(const td_dataset *d, int32_t module, int64_t sample, float *out)
{
    const source *s = &d->sources[module];
    const int64_t n = td_dataset_sample(d, sample);
    if (s->file == NULL)
        td_data_input(d->plan, module, n, out);
    else
        take(s, n, out);
}

td_status td_dataset_check(const td_dataset *d, td_err *err)
{
    td_status st = TD_OK;
    const bool tokens = d->sources[d->plan->language].file != NULL;
    const size_t seq = (size_t)d->plan->modules[d->plan->language].seq;
    int32_t *sample = malloc(2 * seq * sizeof *sample);
    if (sample == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for a sample of %zu tokens", seq));
    for (int64_t n = 0; tokens && n < d->n; n++)
        TD_TRY(st, td_dataset_tokens(d, n, sample, sample + seq, err));
done:
    free(sample);
    return st;
}
