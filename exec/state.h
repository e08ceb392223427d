/*
 * What a rank trains, on its device: master parameters and moments of its shard of every bucket,
 * cut into the spans that the optimizer's kernels take; and how checkpoints and checksums see it.
 */
#ifndef TANDEM_EXEC_STATE_H
#define TANDEM_EXEC_STATE_H

#include "exec/checkpoint.h"
#include "exec/optimizer.h"
#include "exec/stage.h"

/* Elements [first, first + n) of a tensor's slice that this rank's optimizer updates; they are
 * elements `at` on of the master and the moments, and of the reduced gradients. */
typedef struct {
    const td_tensor *tensor;
    int64_t first, n, at;
} td_state_piece;

typedef struct {
    const td_stage_run *stage;
    int64_t shards, shard; /* data lanes that share the state, and which this is */
    float *reduced;  /* gradients of this rank's shard; the stage's where there are no shards */
    bool own_master; /* bf16: the master is not the parameter itself */
    int32_t n_pieces;
    const td_state_piece *pieces;
    int64_t n_spans;
    td_mimo_span *spans; /* on the device, bucket by bucket */
    int64_t n_updates;   /* of the optimizer; the device's is in stage->state */
} td_state;

/* Cuts, and writes the master's first values. The stage stays open as long. */
td_status td_state_open(td_arena *a, td_stage_run *stage, td_state *out, td_err *err);

/* First element of a bucket in the flat arrays, and of this rank's shard of it in the reduced ones.
 */
void td_state_bucket(const td_state *s, int32_t bucket, int64_t *first, int64_t *at);

/*
 * Gradients that tensor ranks hold parts of go into one zeroed buffer, `into`, and come back
 * summed; see td_buckets.shared.
 */
void td_state_tensor_sum(const td_state *s, bool into);

/*
 * The state in host memory, as a checkpoint or checksums want it: fp32 whatever the precision. A
 * bf16 parameter that does not train is what it was rounded to. td_state_release() in any case.
 */
td_status td_state_download(td_state *s, td_run_state *out, td_err *err);
/* Writes what td_state_download() gave, changed since, back to the device. */
td_status td_state_upload(td_state *s, const td_run_state *from, td_err *err);
void td_state_release(td_run_state *state);

#endif
