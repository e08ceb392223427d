/*
 * The parameter tensors of one rank: which slice of which global tensor, where it stands in the
 * rank's flat arrays, its first values, and the rank's share of checksums. Weights, gradients,
 * moments all use the same element offsets.
 */
#ifndef TANDEM_EXEC_PARAMS_H
#define TANDEM_EXEC_PARAMS_H

#include "exec/kernels.h"
#include "model/module.h"

typedef struct {
    const char *name;   /* global: `images.layers.3.q.weight` */
    td_param param;     /* as the model describes it; param.name is the suffix */
    int64_t rows, cols; /* of the slice on this rank; a vector is [n, 1] */
    int64_t row0, col0; /* where the slice begins in the full [out, in] tensor */
    int64_t offset;     /* element in the rank's flat arrays */
    bool
        counts; /* this tensor rank is the one that counts it in norms, checksums and checkpoints */
} td_tensor;

typedef struct {
    int32_t n;
    const td_tensor *all;
    int64_t elements; /* of the flat arrays: padded sum */
} td_tensors;

/*
 * Tensors of a stage on tensor rank `tp_rank`, ascending in the flat arrays. Trainable ones come
 * first, in buckets exactly as td_buckets_of_stage() forms and pads them, so that bucket b is a
 * contiguous range: buckets in the order they become ready (last layers first), the tensors of one
 * in forward order; frozen ones follow. Inside a bucket, q, k, v (gate, up)
 * weights of a layer stand in this order without gaps, likewise their biases, so that one product
 * does them all.
 */
td_status td_tensors_of_stage(td_arena *a, const td_stage *s, int32_t tp_rank, td_tensors *out,
                              td_err *err);

/* NULL if the stage has no tensor with this suffix in this layer (-1: outside the layers). */
const td_tensor *td_tensors_find(const td_tensors *t, const char *suffix, int32_t layer);

/*
 * Issues the kernels that write the first values of elements [first, first + n) of a tensor's slice
 * to `out`, which is zeroed: weights N(0, 0.02^2), `o` and `down` N(0, (0.02 / sqrt(2 *
 * layers))^2), biases 0, norm weights 1. `to_float`: `out` is float whatever the precision.
 */
void td_tensor_init(const td_tensor *t, const td_stage *s, const td_kernels *k, void *dev,
                    int64_t first, int64_t n, bool to_float, void *out);

/*
 * This rank's share of a tensor's checksums over the elements [first, first + n) of its flat arrays
 * (a data-parallel rank may hold only a part): out[0] += sum x^2, out[1] += sum sign * x, signs
 * from tensor name `NAME.check`. Nothing where another rank counts the tensor.
 */
void td_tensor_checksum(const td_tensor *t, uint32_t seed, const float *flat, int64_t first,
                        int64_t n, double out[2]);

#endif
