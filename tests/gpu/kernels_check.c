/* One kernel on one shape: operands in both memories, a run on each side, and what must hold after.
 */
#include "exec/host_kernels.h"
#include "tests/gpu/kernels.h"

#include <cuda_runtime.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 256, GUARD_BYTE = 0xA5 };

bool td_cuda_fine(cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        fprintf(stderr, "test-cuda-kernels: %s: %s\n", what, cudaGetErrorString(error));
    return error == cudaSuccess;
}

/* ---- numbers ---- */

static uint64_t random_word(uint64_t *state) /* SplitMix64 (Steele et al., 2014) */
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

int64_t td_trial_dice(td_trial *t, int64_t n)
{
    return (int64_t)(random_word(&t->random) % (uint64_t)n);
}

static uint16_t bf16_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x))
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float td_bf16_value(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

float td_to_bf16(float x)
{
    return td_bf16_value(bf16_bits(x));
}

void td_trial_round(const td_trial *t, float *x, int64_t n)
{
    for (int64_t i = 0; t->bf16 && i < n; i++)
        x[i] = td_to_bf16(x[i]);
}

/* ---- operands ---- */

static const size_t size_on_host[] = {
    [TD_OF_ACT] = 4, [TD_OF_FLOAT] = 4, [TD_OF_DOUBLE] = 8, [TD_OF_INT] = 4, [TD_OF_BYTES] = 1};

int64_t td_operand_count(const td_operand *o)
{
    return o->rows * o->width;
}

static size_t host_bytes(const td_operand *o)
{
    return (size_t)td_operand_count(o) * size_on_host[o->of];
}

size_t td_operand_size(const td_trial *t, const td_operand *o)
{
    return o->of == TD_OF_ACT && t->bf16 ? 2 : size_on_host[o->of];
}

static size_t device_bytes(const td_trial *t, const td_operand *o)
{
    return (size_t)td_operand_count(o) * td_operand_size(t, o);
}

static void *memory(size_t bytes)
{
    void *p = malloc(bytes > 0 ? bytes : 1);
    if (p == NULL) {
        fprintf(stderr, "test-cuda-kernels: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static void randomize(td_trial *t, td_operand *o, double scale)
{
    const int64_t n = td_operand_count(o);
    float *x = o->first;
    double *d = o->first;
    for (int64_t i = 0; i < n; i++) {
        const double u = (double)(int64_t)(random_word(&t->random) >> 11) * 0x1p-52 - 1;
        if (o->of == TD_OF_DOUBLE)
            d[i] = scale * u;
        else
            x[i] = (float)(scale * u);
    }
    if (o->of == TD_OF_ACT)
        td_trial_round(t, x, n);
}

td_operand *td_trial_operand(td_trial *t, td_role role, td_of of, const char *name, int64_t rows,
                             int64_t width, double scale)
{
    static const double tolerance[] = {
        [TD_OF_ACT] = 1e-5, [TD_OF_FLOAT] = 1e-5, [TD_OF_DOUBLE] = 1e-9, [TD_OF_BYTES] = 0};
    td_operand *o = &t->operand[t->n_operands++];
    *o = (td_operand){.name = name,
                      .of = of,
                      .role = role,
                      .rows = rows,
                      .width = width,
                      .tolerance = of == TD_OF_ACT && t->bf16 ? 3e-3 : tolerance[of],
                      .touched = -1};
    o->first = memory(host_bytes(o));
    memset(o->first, role == TD_OUT ? 0xFF : 0, host_bytes(o)); /* all ones: NaN of any width */
    if (role != TD_OUT && of != TD_OF_INT && of != TD_OF_BYTES)
        randomize(t, o, scale);
    return o;
}

void td_trial_absent(td_trial *t)
{
    t->operand[t->n_operands++] = (td_operand){.touched = -1};
}

void td_trial_offset(const td_trial *t, td_operand *o, double offset)
{
    float *x = o->first;
    for (int64_t i = 0; i < td_operand_count(o); i++)
        x[i] = (float)((double)x[i] + offset);
    if (o->of == TD_OF_ACT)
        td_trial_round(t, x, td_operand_count(o));
}

static void make(td_trial *t, const td_kernel_row *row, const td_shape *s, bool bf16, uint64_t seed)
{
    *t = (td_trial){.row = row, .shape = s, .bf16 = bf16, .random = seed};
    row->operands(t, s);
}

static void discard(td_trial *t)
{
    for (int32_t i = 0; i < t->n_operands; i++) {
        free(t->operand[i].first);
        free(t->operand[i].want);
    }
}

/* ---- the processor's side ---- */

static void expect(td_trial *t)
{
    void *p[TD_OPERANDS] = {0};
    for (int32_t i = 0; i < t->n_operands; i++) {
        td_operand *o = &t->operand[i];
        if (o->name == NULL)
            continue;
        o->want = memory(host_bytes(o));
        memcpy(o->want, o->first, host_bytes(o));
        p[i] = o->want;
    }
    if (t->row->link != NULL)
        t->row->link(t, t->shape, p, p[0]);
    if (t->row->reference != NULL)
        t->row->reference(t, t->shape);
    else
        t->row->call(&td_host_kernels, NULL, p, t->shape);
    /* What the GPU writes is rounded; expecting the nearest number makes its own error visible. */
    for (int32_t i = 0; i < t->n_operands; i++)
        if (t->operand[i].name != NULL && t->operand[i].of == TD_OF_ACT)
            td_trial_round(t, t->operand[i].want, td_operand_count(&t->operand[i]));
}

/* ---- the GPU's side ---- */

/* Operands in the device's memory. */
typedef struct {
    unsigned char *block[TD_OPERANDS]; /* guard, operand, guard */
    void *p[TD_OPERANDS];
} device_set;

static size_t front(const td_trial *t, const td_operand *o)
{
    const bool shifted = t->shape->shifted && (o->of == TD_OF_ACT || o->of == TD_OF_FLOAT);
    return GUARD + (shifted ? td_operand_size(t, o) : 0);
}

static size_t block_bytes(const td_trial *t, const td_operand *o)
{
    return front(t, o) + device_bytes(t, o) + GUARD;
}

/* The bytes that an operand begins with on the device. */
static void image(const td_trial *t, int32_t i, void *const p[], unsigned char *to)
{
    const td_operand *o = &t->operand[i];
    if (o->of == TD_OF_ACT && t->bf16)
        for (int64_t k = 0; k < td_operand_count(o); k++) {
            const uint16_t half = bf16_bits(((const float *)o->first)[k]);
            memcpy(to + 2 * k, &half, sizeof half);
        }
    else
        memcpy(to, o->first, host_bytes(o));
    if (i == 0 && t->row->link != NULL)
        t->row->link(t, t->shape, p, to);
}

static void release(device_set *d)
{
    for (int32_t i = 0; i < TD_OPERANDS; i++)
        cudaFree(d->block[i]);
    *d = (device_set){0};
}

static bool reserve(const td_trial *t, device_set *d)
{
    *d = (device_set){0};
    for (int32_t i = 0; i < t->n_operands; i++) {
        const td_operand *o = &t->operand[i];
        if (o->name == NULL)
            continue;
        if (!td_cuda_fine(cudaMalloc((void **)&d->block[i], block_bytes(t, o)), "cudaMalloc"))
            return false;
        d->p[i] = d->block[i] + front(t, o);
    }
    return true;
}

/* Everything as it is before a call. */
static bool fill(const td_trial *t, device_set *d)
{
    bool fine = true;
    for (int32_t i = 0; fine && i < t->n_operands; i++) {
        const td_operand *o = &t->operand[i];
        if (o->name == NULL)
            continue;
        const size_t bytes = block_bytes(t, o);
        unsigned char *block = memory(bytes);
        memset(block, GUARD_BYTE, bytes);
        image(t, i, d->p, block + front(t, o));
        fine = td_cuda_fine(cudaMemcpy(d->block[i], block, bytes, cudaMemcpyHostToDevice),
                            "copying operands to the device");
        free(block);
    }
    /* A copy from pageable memory may still be on its way, and the stream does not wait for it. */
    if (fine)
        fine = td_cuda_fine(cudaDeviceSynchronize(), "copying operands to the device");
    return fine;
}

/* Blocks as they are after a call; the caller frees them. */
static bool fetch(const td_trial *t, const device_set *d, unsigned char *out[TD_OPERANDS])
{
    bool fine = true;
    for (int32_t i = 0; i < t->n_operands; i++) {
        const td_operand *o = &t->operand[i];
        out[i] = NULL;
        if (o->name == NULL || !fine)
            continue;
        out[i] = memory(block_bytes(t, o));
        fine =
            td_cuda_fine(cudaMemcpy(out[i], d->block[i], block_bytes(t, o), cudaMemcpyDeviceToHost),
                         "copying operands back");
    }
    return fine;
}

static void free_all(unsigned char *blocks[TD_OPERANDS])
{
    for (int32_t i = 0; i < TD_OPERANDS; i++) {
        free(blocks[i]);
        blocks[i] = NULL;
    }
}

/* ---- what must hold ---- */

static bool guards(const unsigned char *bytes, size_t n)
{
    bool fine = true;
    for (size_t i = 0; i < n; i++)
        fine = fine && bytes[i] == GUARD_BYTE;
    return fine;
}

/* After the first run. */
static bool check_operand(const td_trial *t, int32_t i, const device_set *d,
                          const unsigned char *block, td_tally *tally)
{
    const td_operand *o = &t->operand[i];
    const size_t before = front(t, o), bytes = device_bytes(t, o);
    bool fine = true;
    if (!guards(block, before)) {
        td_trial_say(t, o->name, "wrote before its begin");
        fine = false;
    }
    if (!guards(block + before + bytes, GUARD)) {
        td_trial_say(t, o->name, "wrote beyond its end");
        fine = false;
    }
    if (o->role == TD_IN) {
        unsigned char *was = memory(bytes);
        image(t, i, d->p, was);
        if (memcmp(was, block + before, bytes) != 0) {
            td_trial_say(t, o->name, "an input was changed");
            fine = false;
        }
        free(was);
    } else if (o->fields != NULL) {
        fine = td_operand_fields_hold(t, o, block + before, o->want, false) && fine;
    } else {
        fine = td_operand_numbers_hold(t, o, block + before, tally) && fine;
    }
    return fine;
}

static bool check_same(const td_trial *t, int32_t i, const unsigned char *first,
                       const unsigned char *second)
{
    const td_operand *o = &t->operand[i];
    const size_t before = front(t, o);
    if (o->role == TD_IN || t->row->unordered)
        return true;
    if (o->fields != NULL)
        return td_operand_fields_hold(t, o, second + before, first + before, true);
    if (memcmp(first, second, block_bytes(t, o)) == 0)
        return true;
    td_trial_say(t, o->name, "a second run, from a CUDA graph, gives other bits");
    return false;
}

/* ---- runs ---- */

/* Queues one call; false if it or the device reports a failure. */
static bool queue(td_gpu *gpu, const td_trial *t, const device_set *d)
{
    gpu->err = (td_err){0};
    t->row->call(t->row->table, gpu, d->p, t->shape);
    if (gpu->err.status != TD_OK)
        td_trial_say(t, NULL, gpu->err.text);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        td_trial_say(t, "launch", cudaGetErrorString(error));
    return gpu->err.status == TD_OK && error == cudaSuccess;
}

/* Any kernel may use the whole workspace and nothing beyond: td_gpu's has a guard as well. */
static bool check_workspace(const td_gpu *gpu, const td_trial *t)
{
    unsigned char guard[GUARD];
    bool fine = td_cuda_fine(
        cudaMemcpy(guard, (const char *)gpu->queue.workspace + gpu->queue.workspace_bytes,
                   sizeof guard, cudaMemcpyDeviceToHost),
        "copying the workspace's end");
    if (fine && !guards(guard, GUARD)) {
        td_trial_say(t, "workspace", "wrote beyond its end");
        fine = false;
    }
    return fine;
}

/* The call as a graph of its own. */
static bool run_captured(td_gpu *gpu, const td_trial *t, const device_set *d)
{
    cudaStream_t stream = gpu->queue.stream;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t ready = NULL;
    bool fine = td_cuda_fine(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                             "beginning a capture");
    const bool called = fine && queue(gpu, t, d);
    if (fine)
        fine = cudaStreamEndCapture(stream, &graph) == cudaSuccess && graph != NULL;
    if (fine)
        fine = cudaGraphInstantiate(&ready, graph, 0) == cudaSuccess;
    if (fine)
        fine = cudaGraphLaunch(ready, stream) == cudaSuccess &&
               cudaStreamSynchronize(stream) == cudaSuccess;
    if (!fine)
        td_trial_say(t, "captured into a CUDA graph", cudaGetErrorString(cudaGetLastError()));
    if (ready != NULL)
        cudaGraphExecDestroy(ready);
    if (graph != NULL)
        cudaGraphDestroy(graph);
    return fine && called;
}

/* True if the device answers. */
static bool alive(const td_gpu *gpu, const td_trial *t)
{
    const cudaError_t error = cudaStreamSynchronize(gpu->queue.stream);
    if (error != cudaSuccess)
        td_trial_say(t, "the device", cudaGetErrorString(error));
    return error == cudaSuccess;
}

/* Both runs and everything that must hold; `fine` is what holds, the result whether the device
 * still answers. */
static bool run_and_check(td_gpu *gpu, const td_trial *t, device_set *d, td_tally *tally,
                          bool *fine)
{
    unsigned char *first[TD_OPERANDS] = {0}, *second[TD_OPERANDS] = {0};
    bool answers = false;
    *fine = false;
    if (!reserve(t, d) || !fill(t, d))
        goto done;
    const bool queued = queue(gpu, t, d);
    if (!alive(gpu, t))
        goto done;
    answers = true;
    if (!queued || !fetch(t, d, first))
        goto done;
    *fine = check_workspace(gpu, t);
    for (int32_t i = 0; i < t->n_operands; i++)
        if (t->operand[i].name != NULL)
            *fine = check_operand(t, i, d, first[i], tally) && *fine;
    answers = fill(t, d);
    if (!answers)
        goto done;
    const bool captured = run_captured(gpu, t, d);
    *fine = *fine && captured;
    answers = alive(gpu, t);
    if (!captured || !answers || !fetch(t, d, second))
        goto done;
    for (int32_t i = 0; i < t->n_operands; i++)
        if (t->operand[i].name != NULL)
            *fine = check_same(t, i, first[i], second[i]) && *fine;
done:
    free_all(first);
    free_all(second);
    return answers;
}

bool td_trial_check(td_gpu *gpu, const td_kernel_row *row, const td_shape *s, bool bf16,
                    uint64_t seed, td_tally *tally)
{
    td_trial t;
    device_set d = {0};
    bool fine, answers;
    make(&t, row, s, bf16, seed);
    expect(&t);
    answers = run_and_check(gpu, &t, &d, tally, &fine);
    tally->n_run++;
    tally->n_failed += !fine;
    release(&d);
    discard(&t);
    return answers;
}

/* ---- time ---- */

enum { N_TIMED = 20, MAX_SETS = 40 };

/* H200: 60 MB of second-level cache. Two runs with the same operands are this far apart. */
static const double cold_bytes = 200e6;

/* Measured on an H200: a copy moves 4.3 TB/s of its 4.8, the best bf16 product does 785 TFLOP/s of
 * 989. fp32 without tensor cores: 67 TFLOP/s (NVIDIA's datasheet). */
static const double ceiling_bytes = 4.3e12, ceiling_bf16 = 785e12, ceiling_fp32 = 67e12;

static double moved_bytes(const td_trial *t)
{
    double bytes = 0;
    for (int32_t i = 0; i < t->n_operands; i++) {
        const td_operand *o = &t->operand[i];
        const int64_t n = o->name == NULL ? 0 : o->touched >= 0 ? o->touched : td_operand_count(o);
        bytes += (double)n * (double)td_operand_size(t, o) * (o->role == TD_INOUT ? 2 : 1);
    }
    return bytes;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_time(const td_trial *t, double seconds, FILE *csv)
{
    char text[256];
    const double bytes = moved_bytes(t), work = t->flops > 0 ? t->flops : bytes;
    const double ceiling = t->flops <= 0 ? ceiling_bytes : t->bf16 ? ceiling_bf16 : ceiling_fp32;
    const double scale = t->flops > 0 ? 1e12 : 1e9;
    const char *unit = t->flops > 0 ? "TFLOP/s" : "GB/s";
    td_shape_text(t->shape, text, sizeof text);
    printf("%-20s %s %10.2f us %9.1f %-7s %5.1f %%  %s\n", t->row->name, t->bf16 ? "bf16" : "fp32",
           seconds * 1e6, work / seconds / scale, unit, 100 * work / seconds / ceiling, text);
    if (csv != NULL)
        fprintf(csv, "%s,%s,%s,%.3f,%.0f,%.0f,%.2f,%s,%.4f\n", t->row->name,
                t->bf16 ? "bf16" : "fp32", text, seconds * 1e6, bytes, t->flops,
                work / seconds / scale, unit, work / seconds / ceiling);
}

/* Queues all runs behind a pass over the workspace, so that the GPU never waits for the processor.
 */
static bool time_runs(td_gpu *gpu, const td_trial *t, device_set *sets, int32_t n_sets,
                      float ms[N_TIMED])
{
    cudaEvent_t begin[N_TIMED] = {0}, end[N_TIMED] = {0};
    cudaStream_t stream = gpu->queue.stream;
    bool fine = true;
    for (int32_t i = 0; i < N_TIMED && fine; i++)
        fine = td_cuda_fine(cudaEventCreate(&begin[i]), "cudaEventCreate") &&
               td_cuda_fine(cudaEventCreate(&end[i]), "cudaEventCreate");
    for (int32_t i = 0; i < n_sets && fine; i++) /* whatever happens only once */
        fine = queue(gpu, t, &sets[i]);
    if (fine)
        fine = td_cuda_fine(
            cudaMemsetAsync(gpu->queue.workspace, 0, gpu->queue.workspace_bytes, stream),
            "cudaMemsetAsync");
    for (int32_t i = 0; i < N_TIMED && fine; i++) {
        cudaEventRecord(begin[i], stream);
        fine = queue(gpu, t, &sets[i % n_sets]);
        cudaEventRecord(end[i], stream);
    }
    fine = alive(gpu, t) && fine;
    for (int32_t i = 0; i < N_TIMED; i++) {
        if (fine)
            fine = td_cuda_fine(cudaEventElapsedTime(&ms[i], begin[i], end[i]), "reading the time");
        if (begin[i] != NULL)
            cudaEventDestroy(begin[i]);
        if (end[i] != NULL)
            cudaEventDestroy(end[i]);
    }
    return fine;
}

bool td_trial_time(td_gpu *gpu, const td_kernel_row *row, const td_shape *s, bool bf16,
                   uint64_t seed, FILE *csv)
{
    td_trial t;
    device_set sets[MAX_SETS] = {0};
    float ms[N_TIMED];
    bool fine = true;
    make(&t, row, s, bf16, seed);
    const double wanted = ceil(cold_bytes / moved_bytes(&t)) + 1;
    const int32_t n_sets = (int32_t)fmin(wanted, MAX_SETS);
    for (int32_t i = 0; i < n_sets && fine; i++)
        fine = reserve(&t, &sets[i]) && fill(&t, &sets[i]);
    fine = fine && time_runs(gpu, &t, sets, n_sets, ms);
    if (fine) {
        qsort(ms, N_TIMED, sizeof *ms, by_value);
        print_time(&t, (double)(ms[N_TIMED / 2 - 1] + ms[N_TIMED / 2]) / 2 / 1e3, csv);
    }
    for (int32_t i = 0; i < n_sets; i++)
        release(&sets[i]);
    discard(&t);
    return fine;
}
