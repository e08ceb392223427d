/*
 * Rows looked up, spliced in and given back. What is bound by memory reads every byte once; sums
 * run in an order that depends on the tokens alone, so that a run can be repeated bit by bit.
 */
#include "exec/kernels_lanes.cuh"

enum {
    ROWS = 4,          /* of a tile: loads that a thread has under way */
    KEYS = 2048,       /* of a block's tile of all tokens */
    RANKED = 32,       /* rows ranked by a block, one by each lane of a warp */
    RANK_WARPS = 8,    /* each of which looks at its part of the tile */
    SUM_THREADS = 128, /* of a part of a row of the table */
    BATCH = 8          /* equal tokens whose rows are under way at once */
};

/* Key of a token without a row in the table; behind all others, which are < n <= INT32_MAX. */
static const uint32_t no_key = INT32_MAX;

typedef struct {
    const int32_t *tokens;
    int64_t rows, h, first, n;
} look_up;

static __device__ uint32_t key_of(look_up u, int64_t row)
{
    const int64_t token = u.tokens[row];
    return token >= 0 && token >= u.first && token < u.first + u.n ? (uint32_t)(token - u.first)
                                                                   : no_key;
}

/* ---- forward ---- */

template <typename T, int N>
static __global__ void embed_rows(look_up u, const T *w, T *y, unsigned chunks)
{
    const int64_t row = tile_row(chunks, ROWS), i = tile_vector(chunks) * N;
    lanes<T, N> x[ROWS];
    if (i >= u.h)
        return;
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const uint32_t key = row + k < u.rows ? key_of(u, row + k) : no_key;
        x[k] = {};
        if (key != no_key)
            x[k] = load<T, N>(w + key * u.h + i);
    }
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (row + k < u.rows)
            store(y + (row + k) * u.h + i, x[k]);
}

template <typename T, int N>
static void launch_embed(const td_cuda_queue *q, const look_up *u, const act *w, act *y)
{
    const tiling t = tiling_of(u->rows, ROWS, u->h / N);
    embed_rows<T, N><<<t.blocks, t.threads, 0, stream_of(q)>>>(*u, (const T *)w, (T *)y, t.chunks);
}

extern "C" void td_cuda_embed(void *dev, const int32_t *tokens, const act *w, act *y, int64_t rows,
                              int64_t h, int64_t first, int64_t n)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const look_up *, const act *, act *) =
        TD_BY_TYPE(launch_embed);
    const td_cuda_queue *q = queue_of(dev);
    const look_up u = {tokens, rows, h, first, n};
    if (rows > 0 && h > 0)
        launch[q->bf16][is_wide(q, h, address(w) | address(y))](q, &u, w, y);
}

/* ---- backward ---- */

/* A row under its key; sorted by key, then row, equal tokens are neighbours in their order. */
typedef struct alignas(8) {
    uint32_t key, row;
} keyed_row;

static __device__ int n_below(const uint4 *keys, uint32_t limit)
{
    int n = 0;
#pragma unroll 8
    for (int i = 0; i < KEYS / RANK_WARPS / 4; i++)
        n += (keys[i].x < limit) + (keys[i].y < limit) + (keys[i].z < limit) + (keys[i].w < limit);
    return n;
}

/*
 * The place of a row in the sorted order is the number of rows that stand before it, counted by
 * looking at all: with the 16384 tokens of a microbatch the whole device needs some 20 us for it,
 * without the passes and launches of a radix sort.
 */
static __global__ void __launch_bounds__(32 * RANK_WARPS) rank_rows(look_up u, keyed_row *sorted)
{
    enum { PART = KEYS / RANK_WARPS };
    __shared__ uint4 keys[KEYS / 4];
    __shared__ int before[RANK_WARPS][RANKED];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y;
    const int64_t row0 = (int64_t)blockIdx.x * RANKED, row = row0 + lane;
    const uint32_t key = row < u.rows ? key_of(u, row) : no_key;
    int n = 0;
    for (int64_t tile = 0; tile < u.rows; tile += KEYS) {
        for (int i = warp * 32 + lane; i < KEYS; i += 32 * RANK_WARPS)
            ((uint32_t *)keys)[i] = tile + i < u.rows ? key_of(u, tile + i) : UINT32_MAX;
        __syncthreads();
        const uint4 *part = keys + warp * PART / 4;
        const int64_t j = tile + warp * PART;
        if (j + PART <= row0) /* all are earlier rows: equal keys stand before */
            n += n_below(part, key + 1);
        else if (j >= row0 + RANKED)
            n += n_below(part, key);
        else
            for (int i = 0; i < PART; i++)
                n += ((const uint32_t *)part)[i] < (j + i < row ? key + 1 : key);
        __syncthreads();
    }
    before[warp][lane] = n;
    __syncthreads();
    if (warp > 0 || row >= u.rows)
        return;
    n = 0;
    for (int i = 0; i < RANK_WARPS; i++)
        n += before[i][lane];
    sorted[n] = keyed_row{key, (uint32_t)row};
}

/* The block of the first of equal tokens adds the rows of them all. */
template <typename T, int N>
static __global__ void __launch_bounds__(SUM_THREADS)
    embed_sums(look_up u, const keyed_row *sorted, const T *dy, float *dw)
{
    const int64_t at = blockIdx.x, i = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * N;
    const uint32_t key = sorted[at].key;
    float sum[N];
    if (key == no_key || (at > 0 && sorted[at - 1].key == key) || i >= u.h)
        return;
    load_floats<N>(dw + key * u.h + i, sum);
    bool more = true;
    for (int64_t j = at; more; j += BATCH) {
        lanes<T, N> x[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            more = j + k < u.rows && sorted[j + k].key == key;
            x[k] = {};
            if (more)
                x[k] = load<T, N>(dy + sorted[j + k].row * u.h + i);
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            float v[N];
            unpack(x[k], v);
            for (int e = 0; e < N; e++)
                sum[e] += v[e];
        }
    }
    store_floats<N>(dw + key * u.h + i, sum);
}

template <typename T, int N>
static void launch_embed_backward(const td_cuda_queue *q, const look_up *u, const act *dy,
                                  float *dw)
{
    keyed_row *sorted = (keyed_row *)q->workspace;
    const int64_t n_vectors = u->h / N, chunks = ceil_div(n_vectors, SUM_THREADS);
    const dim3 blocks(count_of(u->rows), count_of(chunks));
    assert((size_t)u->rows * sizeof *sorted <= q->workspace_bytes);
    rank_rows<<<count_of(ceil_div(u->rows, RANKED)), dim3(32, RANK_WARPS), 0, stream_of(q)>>>(
        *u, sorted);
    embed_sums<T, N>
        <<<blocks, count_of(ceil_div(ceil_div(n_vectors, chunks), 32) * 32), 0, stream_of(q)>>>(
            *u, sorted, (const T *)dy, dw);
}

extern "C" void td_cuda_embed_backward(void *dev, const int32_t *tokens, const act *dy, float *dw,
                                       int64_t rows, int64_t h, int64_t first, int64_t n)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const look_up *, const act *,
                                      float *) = TD_BY_TYPE(launch_embed_backward);
    const td_cuda_queue *q = queue_of(dev);
    const look_up u = {tokens, rows, h, first, n};
    if (rows > 0 && h > 0)
        launch[q->bf16][is_wide(q, h, address(dy) | address(dw))](q, &u, dy, dw);
}

/* ---- rows of encoders ---- */

/* A block looks at rows of the region for one of those that are spliced into it. */
template <typename T, int N>
static __global__ void splice_rows(const __grid_constant__ td_splices s, T *region, bool into,
                                   unsigned chunks)
{
    const td_splice of = s.of[blockIdx.y];
    const int64_t row = tile_row(chunks, ROWS), i = tile_vector(chunks) * N;
    int64_t sample = (s.first_row + row) / s.seq;
    int64_t at = (s.first_row + row) % s.seq - of.first; /* among the rows that stand apart */
    lanes<T, N> x[ROWS];
    T *to[ROWS];
    if (i >= s.h)
        return;
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        to[k] = NULL;
        if (row + k < s.rows && at >= 0 && at < of.n) {
            T *here = region + (row + k) * s.h + i;
            T *apart = (T *)of.rows + (sample * of.n + at) * s.h + i;
            x[k] = load<T, N>(into ? apart : here);
            to[k] = into ? here : apart;
        }
        if (++at == s.seq - of.first) {
            at = -of.first;
            sample++;
        }
    }
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (to[k] != NULL)
            store(to[k], x[k]);
}

template <typename T, int N>
static void launch_splice(const td_cuda_queue *q, const td_splices *s, act *region, bool into)
{
    const tiling t = tiling_of(s->rows, ROWS, s->h / N);
    splice_rows<T, N><<<dim3(t.blocks, (unsigned)s->n), t.threads, 0, stream_of(q)>>>(
        *s, (T *)region, into, t.chunks);
}

extern "C" void td_cuda_splice(void *dev, act *region, const td_splices *s, bool into)
{
    static void (*const launch[2][2])(const td_cuda_queue *, const td_splices *, act *, bool) =
        TD_BY_TYPE(launch_splice);
    const td_cuda_queue *q = queue_of(dev);
    uintptr_t all = address(region);
    for (int32_t k = 0; k < s->n; k++)
        all |= address(s->of[k].rows);
    if (s->n > 0 && s->rows > 0 && s->h > 0)
        launch[q->bf16][is_wide(q, s->h, all)](q, s, region, into);
}
