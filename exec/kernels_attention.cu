/*
 * Flash attention in bf16 on tensor cores (Dao, "FlashAttention-2", 2023): scores live in registers
 * one tile at a time, and each warp keeps whole rows of them, so that scores turn into the operand
 * of the next product without leaving the registers.
 *
 * The backward makes two passes, one that owns keys and gives dK and dV, one that owns queries and
 * gives dQ. It computes scores and their gradients twice, 7 products in place of 5, and in return
 * nothing is summed across blocks: every run gives the same bits, without scratch for partial sums.
 */
extern "C" {
#include "exec/kernels_attention.h"
}
#include "exec/kernels_tensor.cuh"

#include <math.h>

namespace
{

typedef __nv_bfloat16 bf16;

#define LOG2_E 1.4426950408889634f

/*
 * Tiles stand in shared memory in rows of PITCH bytes; 16-byte piece i of row r is at place
 * i ^ (r % 8), so that eight rows of one column of pieces fall into different banks. Tiles start at
 * multiples of PITCH. D is the head's size in the kernels: head_dim, rounded up and filled with 0.
 */
template <int D> struct tile {
    static constexpr int PITCH = D > 64 ? 256 : 128;
    static constexpr int PIECES = D / 8; /* of a row */
    /* keys of a tile where dQ is computed: two products of 32 rows beside it must fit into
     * registers */
    static constexpr int DQ_KEYS = D > 64 ? 32 : 64;
};

/* This warp's number; from lane 0, so that the compiler knows that all lanes have the same. */
__device__ inline int warp_number()
{
    return __shfl_sync(~0u, (int)threadIdx.x / 32, 0);
}

/* Queues the copy of N rows; those from n_rows on, and columns from head_dim on, become zeros. */
template <int D, int N, int THREADS>
__device__ inline void fetch(uint32_t to, const bf16 *from, int64_t pitch, int32_t n_rows,
                             int32_t head_dim)
{
    constexpr int PIECES = tile<D>::PIECES;
    static_assert(N * PIECES % THREADS == 0, "each thread copies equally many pieces");
#pragma unroll
    for (int i = 0; i < N * PIECES / THREADS; i++) {
        const int at = i * THREADS + threadIdx.x, row = at / PIECES, piece = at % PIECES;
        const bool there = row < n_rows && piece * 8 < head_dim;
        copy_16(to + row * tile<D>::PITCH + ((piece ^ (row & 7)) << 4),
                there ? from + row * pitch + piece * 8 : from, there);
    }
}

/*
 * Where this lane reads fragments of the rows from `row` on (a multiple of 8): as left operand, or
 * transposed as right operand, 16 rows and 2 pieces at a time; as right operand whose rows are
 * columns of the product, likewise. Pieces 2 i, 2 i + 1 are at the address ^ (i << 5).
 */
template <int D> __device__ inline uint32_t left(uint32_t t, int row)
{
    const int lane = threadIdx.x & 31;
    return t + (row + (lane & 15)) * tile<D>::PITCH + (((lane >> 4) ^ (lane & 7)) << 4);
}

template <int D> __device__ inline uint32_t right(uint32_t t, int row)
{
    const int lane = threadIdx.x & 31;
    return t + (row + (lane & 7) + ((lane >> 4) << 3)) * tile<D>::PITCH +
           ((((lane >> 3) & 1) ^ (lane & 7)) << 4);
}

/* s[16 M, 8 N] = a[16 M, D] * b[8 N, D]^T; a and b from left() and right() */
template <int D, int M, int N>
__device__ inline void scores(float (&s)[M][N][4], uint32_t a, uint32_t b)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[m][n][e] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t x[M][4], y[4];
#pragma unroll
        for (int m = 0; m < M; m++)
            load_matrices(x[m], (a ^ (k << 5)) + m * 16 * tile<D>::PITCH);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            load_matrices(y, (b ^ (k << 5)) + n * 8 * tile<D>::PITCH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(s[m][n], x[m], y[0], y[1]);
                multiply_add(s[m][n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* c[16 M, D] += p[16 M, 8 N] * b[8 N, D], p rounded to bf16; b from left() */
template <int D, int M, int N>
__device__ inline void accumulate(float (&c)[M][D / 8][4], const float (&p)[M][N][4], uint32_t b)
{
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t x[M][4], y[4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            x[m][0] = pack(p[m][k][0], p[m][k][1]);
            x[m][1] = pack(p[m][k][2], p[m][k][3]);
            x[m][2] = pack(p[m][k + 1][0], p[m][k + 1][1]);
            x[m][3] = pack(p[m][k + 1][2], p[m][k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            load_matrices_transposed(y, (b ^ (n << 5)) + k * 8 * tile<D>::PITCH);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(c[m][2 * n], x[m], y[0], y[1]);
                multiply_add(c[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* Stores factor * c[16 M, D] as n_rows rows of head_dim, through 16 M rows at `t` that are this
 * warp's own. */
template <int D, int M>
__device__ inline void store(uint32_t t, const float (&c)[M][D / 8][4], const float (&factor)[M][2],
                             bf16 *to, int64_t pitch, int32_t n_rows, int32_t head_dim)
{
    constexpr int PITCH = tile<D>::PITCH, PIECES = tile<D>::PIECES;
    const int lane = threadIdx.x & 31;
    __syncwarp(); /* all lanes have read what stood at `t` */
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int row = m * 16 + e * 8 + lane / 4;
                shared_put(t + row * PITCH + ((n ^ (row & 7)) << 4) + (lane & 3) * 4,
                           pack(c[m][n][2 * e] * factor[m][e], c[m][n][2 * e + 1] * factor[m][e]));
            }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M * 16 * PIECES / 32; i++) {
        const int at = i * 32 + lane, row = at / PIECES, piece = at % PIECES;
        if (row < n_rows && piece * 8 < head_dim)
            *(uint4 *)(to + row * pitch + piece * 8) =
                shared_get_16(t + row * PITCH + ((piece ^ (row & 7)) << 4));
    }
}

/* ---- forward ---- */

/* Queries of a block, 32 to a warp, so that a fragment of keys serves two products; keys of a tile.
 */
enum { QUERIES = 128, KEYS = 64, THREADS = 128 };

template <int D> constexpr size_t forward_bytes()
{
    return (QUERIES + 4 * KEYS) * tile<D>::PITCH;
}

/* Keys that each of the rows first .. first + n - 1 sees. */
__device__ inline int32_t common_keys(const td_attention_job &j, int32_t first)
{
    return j.causal ? min(j.seq, first + 1) : j.seq;
}

/* Keys that any of them sees; 0 if there are no such rows. */
__device__ inline int32_t all_keys(const td_attention_job &j, int32_t first, int32_t n)
{
    return first >= j.seq ? 0 : j.causal ? min(j.seq, first + n) : j.seq;
}

template <int D>
__global__ void __launch_bounds__(THREADS, D > 64 ? 2 : 3) forward(const td_attention_job j)
{
    constexpr int PITCH = tile<D>::PITCH;
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t q_tile = shared_address(shared), k_tiles = q_tile + QUERIES * PITCH,
                   v_tiles = k_tiles + 2 * KEYS * PITCH;
    const int lane = threadIdx.x & 31, warp_row = warp_number() * 32;
    const int32_t head = blockIdx.x % j.heads, sample = blockIdx.x / j.heads;
    const int32_t kv = (int32_t)((int64_t)head * j.kv_heads / j.heads);
    const int32_t q0 = (gridDim.y - 1 - blockIdx.y) * QUERIES; /* causal: most keys first */
    const int32_t row0 = q0 + warp_row;
    const bf16 *sample_qkv = (const bf16 *)j.qkv + (int64_t)sample * j.seq * j.width;
    const bf16 *q = sample_qkv + q0 * j.width + (int64_t)head * j.head_dim;
    const bf16 *k = sample_qkv + ((int64_t)j.heads + kv) * j.head_dim;
    const bf16 *v = k + (int64_t)j.kv_heads * j.head_dim;
    const int32_t block_keys = all_keys(j, q0, QUERIES), warp_keys = all_keys(j, row0, 32),
                  warp_common = common_keys(j, row0);
    const uint32_t q_a = left<D>(q_tile, warp_row), k_b = right<D>(k_tiles, 0),
                   v_b = left<D>(v_tiles, 0);
    const float scale2 = j.scale * LOG2_E; /* to powers of 2 */
    float o[2][D / 8][4] = {}, max[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}},
                   sum[2][2] = {};

    fetch<D, QUERIES, THREADS>(q_tile, q, j.width, j.seq - q0, j.head_dim);
    fetch<D, KEYS, THREADS>(k_tiles, k, j.width, j.seq, j.head_dim);
    fetch<D, KEYS, THREADS>(v_tiles, v, j.width, j.seq, j.head_dim);
    for (int32_t k0 = 0, stage = 0; k0 < block_keys; k0 += KEYS, stage ^= KEYS * PITCH) {
        const int32_t next = k0 + KEYS;
        copy_wait();
        __syncthreads(); /* the tile is there, and no one still reads the one before */
        if (next < block_keys) {
            const uint32_t other = stage ^ (KEYS * PITCH);
            fetch<D, KEYS, THREADS>(k_tiles + other, k + next * j.width, j.width, j.seq - next,
                                    j.head_dim);
            fetch<D, KEYS, THREADS>(v_tiles + other, v + next * j.width, j.width, j.seq - next,
                                    j.head_dim);
        }
        if (k0 >= warp_keys)
            continue;
        float s[2][KEYS / 8][4];
        scores<D>(s, q_a, k_b + stage);
        if (next > warp_common) {
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int32_t end =
                        common_keys(j, row0 + m * 16 + (e >> 1) * 8 + lane / 4) - k0;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
                        if (n * 8 + (lane & 3) * 2 + (e & 1) >= end)
                            s[m][n][e] = -INFINITY;
                }
        }
        /* The first tile shows every row a key, so that the maximum is a number from there on. */
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float new_max = max[m][h], row_sum = 0;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
                    new_max = fmaxf(new_max, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, 1));
                new_max = fmaxf(new_max, __shfl_xor_sync(~0u, new_max, 2));
                const float shift = new_max * scale2,
                            shrink = exp2_approximate(max[m][h] * scale2 - shift);
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; e++) {
                        s[m][n][e] = exp2_approximate(fmaf(s[m][n][e], scale2, -shift));
                        row_sum += s[m][n][e];
                    }
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    o[m][n][2 * h] *= shrink;
                    o[m][n][2 * h + 1] *= shrink;
                }
                sum[m][h] = sum[m][h] * shrink + row_sum; /* of this lane's columns */
                max[m][h] = new_max;
            }
        accumulate<D>(o, s, v_b + stage);
    }
    float inverse[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int32_t row = row0 + m * 16 + h * 8 + lane / 4;
            float total = sum[m][h];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            inverse[m][h] = 1 / total;
            if ((lane & 3) == 0 && row < j.seq)
                j.lse[td_attention_stat(j, sample, head) + row] = max[m][h] * j.scale + logf(total);
        }
    store<D>(q_tile + warp_row * PITCH, o, inverse,
             (bf16 *)j.out + ((int64_t)sample * j.seq + row0) * j.out_width +
                 (int64_t)head * j.head_dim,
             j.out_width, j.seq - row0, j.head_dim);
}

/* ---- backward ---- */

enum { DOT_LANES = 16, DOT_THREADS = 256 }; /* lanes to a row of a head, 16 bytes each */

__global__ void __launch_bounds__(DOT_THREADS) row_dots(const td_attention_job j)
{
    const int64_t at = ((int64_t)blockIdx.x * DOT_THREADS + threadIdx.x) / DOT_LANES;
    const int piece = threadIdx.x % DOT_LANES;
    const int64_t row = at / j.heads;
    const int32_t head = (int32_t)(at % j.heads);
    float dot = 0;
    if (row < j.rows && piece * 8 < j.head_dim) {
        const int64_t first = row * j.out_width + (int64_t)head * j.head_dim + piece * 8;
        const uint4 a = *(const uint4 *)((const bf16 *)j.dout + first),
                    b = *(const uint4 *)((const bf16 *)j.out + first);
        const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; i++) { /* a bf16 is the upper half of a float */
            dot = fmaf(__uint_as_float(x[i] << 16), __uint_as_float(y[i] << 16), dot);
            dot =
                fmaf(__uint_as_float(x[i] & 0xffff0000u), __uint_as_float(y[i] & 0xffff0000u), dot);
        }
    }
#pragma unroll
    for (int step = DOT_LANES / 2; step > 0; step /= 2)
        dot += __shfl_xor_sync(~0u, dot, step);
    if (row < j.rows && piece == 0)
        j.row_dot[td_attention_stat(j, (int32_t)(row / j.seq), head) + row % j.seq] = dot;
}

/* Keys of a block, 16 to a warp, whose dK and dV fill half of the registers; queries of a tile. */
enum { KEY_BLOCK = 128, QUERY_TILE = 64, KEY_THREADS = 256 };

template <int D> constexpr size_t keys_bytes()
{
    return (2 * KEY_BLOCK + 4 * QUERY_TILE) * tile<D>::PITCH + 4 * QUERY_TILE * sizeof(float);
}

/* Queues the copy of one tile of queries: q, dout, and per row lse and dot. */
template <int D>
__device__ inline void fetch_queries(const td_attention_job &j, int32_t sample, int32_t head,
                                     int32_t q0, uint32_t q_tile, uint32_t do_tile, uint32_t stats)
{
    const int64_t row = (int64_t)sample * j.seq + q0, first = (int64_t)head * j.head_dim;
    const int32_t i = threadIdx.x % QUERY_TILE;
    fetch<D, QUERY_TILE, KEY_THREADS>(q_tile, (const bf16 *)j.qkv + row * j.width + first, j.width,
                                      j.seq - q0, j.head_dim);
    fetch<D, QUERY_TILE, KEY_THREADS>(do_tile, (const bf16 *)j.dout + row * j.out_width + first,
                                      j.out_width, j.seq - q0, j.head_dim);
    if (threadIdx.x < 2 * QUERY_TILE) {
        const float *from = threadIdx.x < QUERY_TILE ? j.lse : j.row_dot;
        const bool there = q0 + i < j.seq;
        copy_4(stats + threadIdx.x * 4,
               from + td_attention_stat(j, sample, head) + q0 + (there ? i : 0), there);
    }
}

/* dK and dV of a block of keys, over the queries of every head that uses them. Scores are
 * transposed: their rows are keys. Rows past the end of the sequence are zeros and add nothing. */
template <int D>
__global__ void __launch_bounds__(KEY_THREADS, 1) backward_keys(const td_attention_job j)
{
    constexpr int PITCH = tile<D>::PITCH, STAGE = QUERY_TILE * PITCH;
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t k_tile = shared_address(shared), v_tile = k_tile + KEY_BLOCK * PITCH,
                   q_tiles = v_tile + KEY_BLOCK * PITCH, do_tiles = q_tiles + 2 * STAGE,
                   stats = do_tiles + 2 * STAGE;
    const int lane = threadIdx.x & 31, warp_row = warp_number() * 16;
    const int32_t kv = blockIdx.x % j.kv_heads, sample = blockIdx.x / j.kv_heads;
    const int32_t first_head = (int32_t)(((int64_t)kv * j.heads + j.kv_heads - 1) / j.kv_heads),
                  end_head = (int32_t)(((kv + 1ll) * j.heads + j.kv_heads - 1) / j.kv_heads);
    const int32_t k0 = blockIdx.y * KEY_BLOCK,
                  key0 = k0 + warp_row; /* causal: most queries first */
    const int32_t q_begin = j.causal ? k0 : 0;
    const int64_t key_at = ((int64_t)sample * j.seq + k0) * j.width +
                           ((int64_t)j.heads + kv) * j.head_dim,
                  value_at = key_at + (int64_t)j.kv_heads * j.head_dim;
    const uint32_t k_a = left<D>(k_tile, warp_row), v_a = left<D>(v_tile, warp_row),
                   q_b = right<D>(q_tiles, 0), q_t = left<D>(q_tiles, 0),
                   do_b = right<D>(do_tiles, 0), do_t = left<D>(do_tiles, 0);
    const float scale2 = j.scale * LOG2_E;
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    int32_t head = first_head, q0 = q_begin;

    fetch<D, KEY_BLOCK, KEY_THREADS>(k_tile, (const bf16 *)j.qkv + key_at, j.width, j.seq - k0,
                                     j.head_dim);
    fetch<D, KEY_BLOCK, KEY_THREADS>(v_tile, (const bf16 *)j.qkv + value_at, j.width, j.seq - k0,
                                     j.head_dim);
    if (head < end_head)
        fetch_queries<D>(j, sample, head, q0, q_tiles, do_tiles, stats);
    for (uint32_t turn = 0; head < end_head; turn ^= 1) {
        const int32_t tile_q0 = q0;
        const uint32_t stage = turn * STAGE, row_stats = stats + turn * 2 * QUERY_TILE * 4;
        copy_wait();
        __syncthreads(); /* the tile is there, and no one still reads the one before */
        q0 += QUERY_TILE;
        if (q0 >= j.seq) {
            q0 = q_begin;
            head++;
        }
        if (head < end_head)
            fetch_queries<D>(j, sample, head, q0, q_tiles + (STAGE - stage),
                             do_tiles + (STAGE - stage), stats + (turn ^ 1) * 2 * QUERY_TILE * 4);
        if (key0 >= j.seq || (j.causal && tile_q0 + QUERY_TILE <= key0))
            continue;
        float p[1][QUERY_TILE / 8][4], dp[1][QUERY_TILE / 8][4];
        scores<D>(p, k_a, q_b + stage);
#pragma unroll
        for (int n = 0; n < QUERY_TILE / 8; n++) {
            const float2 lse = shared_get_2(row_stats + n * 32 + (lane & 3) * 8);
#pragma unroll
            for (int e = 0; e < 4; e++)
                p[0][n][e] =
                    exp2_approximate(fmaf(p[0][n][e], scale2, (e & 1 ? lse.y : lse.x) * -LOG2_E));
        }
        if (j.causal && tile_q0 < key0 + 15) {
#pragma unroll
            for (int n = 0; n < QUERY_TILE / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (tile_q0 + n * 8 + (lane & 3) * 2 + (e & 1) < key0 + (e >> 1) * 8 + lane / 4)
                        p[0][n][e] = 0;
        }
        accumulate<D>(dv, p, do_t + stage);
        scores<D>(dp, v_a, do_b + stage);
#pragma unroll
        for (int n = 0; n < QUERY_TILE / 8; n++) {
            const float2 dot = shared_get_2(row_stats + (QUERY_TILE + n * 8) * 4 + (lane & 3) * 8);
#pragma unroll
            for (int e = 0; e < 4; e++)
                dp[0][n][e] = p[0][n][e] * (dp[0][n][e] - (e & 1 ? dot.y : dot.x));
        }
        accumulate<D>(dk, dp, q_t + stage);
    }
    copy_wait(); /* keys that no head uses were not waited for */
    __syncthreads();
    const float k_factor[1][2] = {{j.scale, j.scale}}, v_factor[1][2] = {{1, 1}};
    store<D>(k_tile + warp_row * PITCH, dk, k_factor, (bf16 *)j.dqkv + key_at + warp_row * j.width,
             j.width, j.seq - key0, j.head_dim);
    store<D>(v_tile + warp_row * PITCH, dv, v_factor,
             (bf16 *)j.dqkv + value_at + warp_row * j.width, j.width, j.seq - key0, j.head_dim);
}

template <int D> constexpr size_t queries_bytes()
{
    return (2 * QUERIES + 4 * tile<D>::DQ_KEYS) * tile<D>::PITCH;
}

/* dQ of a block of queries. */
template <int D>
__global__ void __launch_bounds__(THREADS, 2) backward_queries(const td_attention_job j)
{
    constexpr int PITCH = tile<D>::PITCH, N = tile<D>::DQ_KEYS, STAGE = N * PITCH;
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t q_tile = shared_address(shared), do_tile = q_tile + QUERIES * PITCH,
                   k_tiles = do_tile + QUERIES * PITCH, v_tiles = k_tiles + 2 * STAGE;
    const int lane = threadIdx.x & 31, warp_row = warp_number() * 32;
    const int32_t head = blockIdx.x % j.heads, sample = blockIdx.x / j.heads;
    const int32_t kv = (int32_t)((int64_t)head * j.kv_heads / j.heads);
    const int32_t q0 = (gridDim.y - 1 - blockIdx.y) * QUERIES; /* causal: most keys first */
    const int32_t row0 = q0 + warp_row;
    const int64_t row = (int64_t)sample * j.seq + q0, first = (int64_t)head * j.head_dim;
    const bf16 *k = (const bf16 *)j.qkv + (int64_t)sample * j.seq * j.width +
                    ((int64_t)j.heads + kv) * j.head_dim;
    const bf16 *v = k + (int64_t)j.kv_heads * j.head_dim;
    const int32_t block_keys = all_keys(j, q0, QUERIES), warp_keys = all_keys(j, row0, 32),
                  warp_common = common_keys(j, row0);
    const uint32_t q_a = left<D>(q_tile, warp_row), do_a = left<D>(do_tile, warp_row),
                   k_b = right<D>(k_tiles, 0), k_t = left<D>(k_tiles, 0),
                   v_b = right<D>(v_tiles, 0);
    const float scale2 = j.scale * LOG2_E;
    float dq[2][D / 8][4] = {}, lse2[2][2], dot[2][2], factor[2][2];

    fetch<D, QUERIES, THREADS>(q_tile, (const bf16 *)j.qkv + row * j.width + first, j.width,
                               j.seq - q0, j.head_dim);
    fetch<D, QUERIES, THREADS>(do_tile, (const bf16 *)j.dout + row * j.out_width + first,
                               j.out_width, j.seq - q0, j.head_dim);
    fetch<D, N, THREADS>(k_tiles, k, j.width, j.seq, j.head_dim);
    fetch<D, N, THREADS>(v_tiles, v, j.width, j.seq, j.head_dim);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int32_t i = warp_row + m * 16 + h * 8 + lane / 4;
            const int64_t at = td_attention_stat(j, sample, head) + q0 + i;
            const bool there = q0 + i < j.seq;
            lse2[m][h] = there ? j.lse[at] * LOG2_E : 0;
            dot[m][h] = there ? j.row_dot[at] : 0;
            factor[m][h] = j.scale;
        }
    for (int32_t k0 = 0, stage = 0; k0 < block_keys; k0 += N, stage ^= STAGE) {
        const int32_t next = k0 + N;
        copy_wait();
        __syncthreads(); /* the tile is there, and no one still reads the one before */
        if (next < block_keys) {
            const uint32_t other = stage ^ STAGE;
            fetch<D, N, THREADS>(k_tiles + other, k + next * j.width, j.width, j.seq - next,
                                 j.head_dim);
            fetch<D, N, THREADS>(v_tiles + other, v + next * j.width, j.width, j.seq - next,
                                 j.head_dim);
        }
        if (k0 >= warp_keys)
            continue;
        float p[2][N / 8][4], dp[2][N / 8][4];
        scores<D>(p, q_a, k_b + stage);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    p[m][n][e] = exp2_approximate(fmaf(p[m][n][e], scale2, -lse2[m][e >> 1]));
        if (next > warp_common) {
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int32_t end =
                        common_keys(j, row0 + m * 16 + (e >> 1) * 8 + lane / 4) - k0;
#pragma unroll
                    for (int n = 0; n < N / 8; n++)
                        if (n * 8 + (lane & 3) * 2 + (e & 1) >= end)
                            p[m][n][e] = 0;
                }
        }
        scores<D>(dp, do_a, v_b + stage);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - dot[m][e >> 1]);
        accumulate<D>(dq, dp, k_t + stage);
    }
    store<D>(q_tile + warp_row * PITCH, dq, factor,
             (bf16 *)j.dqkv + (row + warp_row) * j.width + first, j.width, j.seq - row0,
             j.head_dim);
}

/* ---- launchers ---- */

typedef void kernel(const td_attention_job j);

/* A kernel of each phase for heads of up to `head_dim`. */
typedef struct {
    int32_t head_dim;
    kernel *forward, *backward_keys, *backward_queries;
    size_t forward_bytes, keys_bytes, queries_bytes;
} variant;

#define VARIANT(D)                                                                                 \
    {                                                                                              \
        D, forward<D>, backward_keys<D>, backward_queries<D>, forward_bytes<D>(), keys_bytes<D>(), \
            queries_bytes<D>()                                                                     \
    }
const variant variants[] = {VARIANT(64), VARIANT(96), VARIANT(128)};
enum { N_VARIANTS = sizeof variants / sizeof *variants };

/* NULL: not a case for these kernels, which read rows in aligned pieces of 16 bytes. */
const variant *variant_for(const td_attention_job *j)
{
    const uintptr_t addresses =
        (uintptr_t)j->qkv | (uintptr_t)j->out | (uintptr_t)j->dout | (uintptr_t)j->dqkv;
    if (!j->bf16 || j->head_dim % 8 != 0 || addresses % 16 != 0)
        return NULL;
    for (int i = 0; i < N_VARIANTS; i++)
        if (j->head_dim <= variants[i].head_dim)
            return &variants[i];
    return NULL;
}

td_attention_job job_of(const td_cuda_queue *q, const td_attention_shape *s)
{
    td_attention_job j = {};
    j.rows = (int64_t)s->samples * s->seq;
    j.width = (s->heads + 2 * (int64_t)s->kv_heads) * s->head_dim;
    j.out_width = (int64_t)s->heads * s->head_dim;
    j.samples = s->samples;
    j.seq = s->seq;
    j.heads = s->heads;
    j.kv_heads = s->kv_heads;
    j.head_dim = s->head_dim;
    j.scale = (float)(1 / sqrt((double)s->head_dim));
    j.causal = s->causal;
    j.bf16 = q->bf16;
    return j;
}

/* One block for each (sample, head) and for each `per_block` rows of the sequence. */
void launch(const td_cuda_queue *q, kernel *f, const td_attention_job *j, int32_t heads,
            int32_t per_block, int32_t threads, size_t bytes)
{
    const dim3 grid((uint32_t)(j->samples * heads), (uint32_t)((j->seq - 1) / per_block + 1));
    cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    f<<<grid, threads, bytes, (cudaStream_t)q->stream>>>(*j);
}

} // namespace

extern "C" void td_cuda_attention(void *dev, const act *qkv, act *out, float *lse,
                                  const td_attention_shape *s)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    td_attention_job j = job_of(q, s);
    j.qkv = qkv;
    j.out = out;
    j.lse = lse;
    const variant *v = variant_for(&j);
    if (v == NULL)
        td_cuda_attention_any(q, &j);
    else
        launch(q, v->forward, &j, j.heads, QUERIES, THREADS, v->forward_bytes);
}

extern "C" void td_cuda_attention_backward(void *dev, const act *dout, const act *qkv,
                                           const act *out, const float *lse, act *dqkv,
                                           const td_attention_shape *s)
{
    const td_cuda_queue *q = (const td_cuda_queue *)dev;
    td_attention_job j = job_of(q, s);
    j.dout = dout;
    j.qkv = qkv;
    j.out = (act *)out;
    j.lse = (float *)lse;
    j.dqkv = dqkv;
    j.row_dot = (float *)q->workspace;
    const variant *v = variant_for(&j);
    if (v == NULL) {
        td_cuda_attention_any_backward(q, &j);
    } else {
        const int64_t lanes = j.rows * j.heads * DOT_LANES;
        const uint32_t blocks = (uint32_t)((lanes - 1) / DOT_THREADS + 1);
        row_dots<<<blocks, DOT_THREADS, 0, (cudaStream_t)q->stream>>>(j);
        launch(q, v->backward_keys, &j, j.kv_heads, KEY_BLOCK, KEY_THREADS, v->keys_bytes);
        launch(q, v->backward_queries, &j, j.heads, QUERIES, THREADS, v->queries_bytes);
    }
}

extern "C" size_t td_cuda_attention_workspace(const td_attention_shape *s)
{
    const size_t bytes = (size_t)s->samples * (size_t)s->seq * (size_t)s->heads * sizeof(float);
    return (bytes + 255) / 256 * 256;
}
