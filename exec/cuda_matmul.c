/* The linear layers' products: which are known, and how the others become so. */
#include "exec/cuda_matmul.h"

#include "exec/cuda_matmul_product.h"

#include <assert.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes that an algorithm may use at most: twice what cuBLAS advises for Hopper. */
static const size_t max_workspace = (size_t)64 << 20;

struct td_cuda_matmul {
    td_matmul_lib lib;
    char gpu[256];
    uint64_t version;  /* of cuBLASLt */
    const char *cache; /* NULL: none */
    int32_t n_cached;
    const td_matmul_record *cached; /* not used before they are asked for and checked */
    int32_t n, room;
    td_matmul_product *known;
};

/* ---- keys ---- */

/* The largest power of two that divides the address, at most TD_MATMUL_ALIGN. */
static uint8_t alignment(const void *p)
{
    const uintptr_t bits = (uintptr_t)p | TD_MATMUL_ALIGN;
    return (uint8_t)(bits & (~bits + 1));
}

/* For operands that are aligned well. */
static td_matmul_key key_of(const td_cuda_matmul *m, td_pass pass, bool bias, int64_t rows,
                            int64_t n, int64_t k)
{
    const size_t room = m->lib.queue->workspace_bytes;
    assert(pass < TD_PASS_BACKWARD && rows >= 0 && n > 0 && k > 0);
    assert(!bias || pass == TD_PASS_FORWARD);
    return (td_matmul_key){.rows = rows,
                           .n = n,
                           .k = k,
                           .limit = (int64_t)(room < max_workspace ? room : max_workspace),
                           .pass = (uint8_t)pass,
                           .fp32 = !m->lib.queue->bf16,
                           .bias = bias,
                           .align = {TD_MATMUL_ALIGN, TD_MATMUL_ALIGN, TD_MATMUL_ALIGN}};
}

/* ---- products known ---- */

static td_matmul_product *find(const td_cuda_matmul *m, const td_matmul_key *key)
{
    for (int32_t i = 0; i < m->n; i++)
        if (td_matmul_key_equal(&m->known[i].record.key, key))
            return &m->known[i];
    return NULL;
}

static td_status refuse_capture(const td_cuda_matmul *m, const td_matmul_key *key, td_err *err)
{
    td_status st = TD_OK;
    char text[96];
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    TD_TRY(st, td_matmul_cuda_failed(cudaStreamIsCapturing(m->lib.queue->stream, &capture),
                                     "asking for a capture", err));
    if (capture != cudaStreamCaptureStatusNone)
        TD_TRY(st, td_fail(err, TD_RUN, "product %s was not prepared before it was captured",
                           td_matmul_key_text(key, text, sizeof text)));
done:
    return st;
}

/* The cache file's algorithm for p's key, if it has one that is good here. */
static td_status recall(const td_cuda_matmul *m, td_matmul_product *p, bool *good, td_err *err)
{
    td_status st = TD_OK;
    *good = false;
    for (int32_t i = 0; i < m->n_cached; i++) {
        if (!td_matmul_key_equal(&m->cached[i].key, &p->record.key))
            continue;
        p->record = m->cached[i];
        memcpy(&p->algo, p->record.algo, sizeof p->algo);
        TD_TRY(st, td_matmul_fuse(p, p->record.fused, m->lib.queue->workspace, err));
        if (td_matmul_valid(&m->lib, p))
            TD_TRY(st, td_matmul_try(&m->lib, p, good, err));
        break;
    }
done:
    return st;
}

/* The product of a key, which stays valid until the next one is learned. */
static td_status learn(td_cuda_matmul *m, const td_matmul_key *key, td_matmul_product **out,
                       td_err *err)
{
    td_status st = TD_OK;
    td_matmul_product fresh = {.record.key = *key};
    bool good = false;
    if (m->n == m->room) {
        const int32_t room = m->room == 0 ? 64 : 2 * m->room;
        td_matmul_product *known = realloc(m->known, (size_t)room * sizeof *known);
        if (known == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %d products", (int)room));
        m->known = known;
        m->room = room;
    }
    TD_TRY(st, refuse_capture(m, key, err));
    TD_TRY(st, td_matmul_describe(&fresh, err));
    TD_TRY(st, recall(m, &fresh, &good, err));
    if (!good) {
        fresh.record = (td_matmul_record){.key = *key};
        TD_TRY(st, td_matmul_measure(&m->lib, &fresh, err));
    }
    memcpy(fresh.record.algo, &fresh.algo, sizeof fresh.algo);
    *out = &m->known[m->n++];
    **out = fresh;
done:
    if (st != TD_OK)
        td_matmul_forget(&fresh);
    return st;
}

td_status td_cuda_matmul_run(td_cuda_matmul *m, td_pass pass, const act *a, const act *b,
                             const act *bias, void *c, int64_t rows, int64_t n, int64_t k,
                             td_err *err)
{
    td_status st = TD_OK;
    /* The library takes a bias to be aligned to 16 bytes and cannot be told otherwise. */
    td_matmul_key key =
        key_of(m, pass, bias != NULL && alignment(bias) == TD_MATMUL_ALIGN, rows, n, k);
    if (rows == 0) /* nothing to write, or nothing to add */
        goto done;
    key.align[TD_MATMUL_A] = alignment(a);
    key.align[TD_MATMUL_B] = alignment(b);
    key.align[TD_MATMUL_C] = alignment(c);
    td_matmul_product *p = find(m, &key);
    if (p == NULL)
        TD_TRY(st, learn(m, &key, &p, err));
    if (p->record.fused)
        TD_TRY(st, td_matmul_point(p, bias, err));
    TD_TRY(st, td_matmul_failed(td_matmul_launch(&m->lib, p, &p->algo, a, b, c),
                                td_pass_names[pass], err));
    if (bias != NULL && !p->record.fused)
        td_cuda_add_bias(m->lib.queue, c, bias, rows, n);
done:
    return st;
}

/* ---- opening, reporting, saving ---- */

td_status td_cuda_matmul_open(td_arena *a, td_cuda_queue *queue, const char *cache,
                              td_cuda_matmul **out, td_err *err)
{
    td_status st = TD_OK;
    struct cudaDeviceProp properties;
    int device = 0;
    td_cuda_matmul *m = TD_NEW(a, td_cuda_matmul, 1);
    if (m == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for products"));
    m->lib.queue = queue;
    TD_TRY(st, td_matmul_cuda_failed(cudaGetDevice(&device), "asking for the GPU", err));
    TD_TRY(st, td_matmul_cuda_failed(cudaGetDeviceProperties(&properties, device),
                                     "asking for the GPU", err));
    snprintf(m->gpu, sizeof m->gpu, "%s", properties.name);
    TD_TRY(st, td_matmul_failed(cublasLtCreate(&m->lib.handle), "starting", err));
    m->version = cublasLtGetVersion();
    if (cache != NULL) {
        m->cache = td_arena_printf(a, "%s", cache);
        if (m->cache == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for products"));
        TD_TRY(st,
               td_matmul_cache_read(a, cache, m->gpu, m->version, &m->n_cached, &m->cached, err));
    }
    *out = m;
done:
    if (st != TD_OK)
        td_cuda_matmul_close(m);
    return st;
}

void td_cuda_matmul_close(td_cuda_matmul *m)
{
    if (m == NULL)
        return;
    for (int32_t i = 0; i < m->n; i++)
        td_matmul_forget(&m->known[i]);
    free(m->known);
    m->known = NULL;
    m->n = m->room = 0;
    if (m->lib.handle != NULL)
        cublasLtDestroy(m->lib.handle);
    m->lib.handle = NULL;
}

static void report_line(const td_matmul_product *p, char *line, size_t size)
{
    static const struct {
        cublasLtMatmulAlgoConfigAttributes_t which;
        size_t size;
        const char *name;
    } shown[] = {
        {CUBLASLT_ALGO_CONFIG_ID, 4, "algo"},
        {CUBLASLT_ALGO_CONFIG_TILE_ID, 4, "tile"},
        {CUBLASLT_ALGO_CONFIG_STAGES_ID, 4, "stages"},
        {CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 4, "splitk"},
        {CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4, "swizzle"},
        {CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4, "custom"},
        {CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2, "cluster"},
    };
    const td_matmul_record *r = &p->record;
    char text[96];
    int at = snprintf(line, size, "%s%s", td_matmul_key_text(&r->key, text, sizeof text),
                      r->key.bias && !r->fused ? " (added after)" : "");
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++)
        at += snprintf(line + at, size - (size_t)at, " %s %u", shown[i].name,
                       td_matmul_setting(&p->algo, shown[i].which, shown[i].size));
    if (r->ms > 0)
        snprintf(line + at, size - (size_t)at, " %.4f ms, library's choice %.4f ms\n", r->ms,
                 r->ms_first);
    else
        snprintf(line + at, size - (size_t)at, " not measured: no memory for operands\n");
}

const char *td_cuda_matmul_report(const td_cuda_matmul *m, td_arena *a)
{
    enum { LINE = 320 }; /* the longest has 250 */
    char *text = TD_NEW(a, char, (size_t)m->n *(size_t)LINE + 1);
    size_t at = 0;
    for (int32_t i = 0; i < m->n && text != NULL; i++) {
        report_line(&m->known[i], text + at, LINE);
        at += strlen(text + at);
    }
    return text == NULL ? "" : text;
}

td_status td_cuda_matmul_save(const td_cuda_matmul *m, td_err *err)
{
    td_status st = TD_OK;
    td_matmul_record *records = NULL;
    int32_t n = 0;
    if (m->cache == NULL || m->n == 0)
        goto done;
    records = malloc((size_t)m->n * sizeof *records);
    if (records == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to write the algorithms", m->cache));
    for (int32_t i = 0; i < m->n; i++)
        if (m->known[i].measured)
            records[n++] = m->known[i].record;
    if (n > 0)
        TD_TRY(st, td_matmul_cache_merge(m->cache, m->gpu, m->version, n, records, err));
done:
    free(records);
    return st;
}
