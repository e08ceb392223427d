/*
 * A checkpoint is a run's parameters and optimizer state in a folder, written by all ranks at once
 * and read back by any layout of the same model:
 *
 *     DIR/manifest.json       what there is: tensors by module and global name, every file's size,
 *                             SHA-256 and pieces. Its rename is the moment a save counts.
 *     DIR/step-12/rank-0.f32  floats of one writer, piece after piece: n weights and, where the
 *                             tensor trains, n first and n second moments (little-endian)
 *
 * Every file appears under a temporary name, reaches the disk and is then renamed; the folder of
 * the checkpoint before stays until the new manifest stands. So a save that is cut off anywhere
 * leaves one or the other, whole. Nothing here communicates: the caller carries texts between
 * ranks.
 */
#ifndef TANDEM_EXEC_CHECKPOINT_H
#define TANDEM_EXEC_CHECKPOINT_H

#include "exec/params.h"

/* Elements [first, first + n) of a tensor's slice whose moments are on this rank. */
typedef struct {
    const td_tensor *tensor;
    int64_t first, n;
    float *m, *v;
} td_state_span;

/* What one rank has of the run's state. An idle rank has no tensors. */
typedef struct {
    td_tensors tensors;
    float *w;       /* flat, as the tensors say */
    float *moments; /* where those of the spans stand */
    int32_t n_spans;
    td_state_span *spans; /* every trainable element; if sharded: of this data lane's shard */
    bool sharded;
    int32_t lane;       /* data-parallel */
    int64_t *n_updates; /* of the optimizer */
} td_run_state;

/* ---- save: open on rank 0, write on all ranks, commit on rank 0 when all have written ---- */

enum { TD_CHECKPOINT_FOLDER = 40 }; /* bytes of a folder's name */

/* Makes DIR if it is not there. TD_FILE if nothing can be saved in it; a foreign manifest is never
 * overwritten. */
td_status td_checkpoint_prepare(const char *dir, td_err *err);

/* Makes an empty folder in DIR for the state after `step` steps; never that of the checkpoint that
 * is there. */
td_status td_checkpoint_begin(const char *dir, int64_t step, char folder[TD_CHECKPOINT_FOLDER],
                              td_err *err);

/*
 * Writes what this rank has to write: of whole replicas the counting tensor rank of lane 0 writes,
 * of shards every lane its own. `*record` is text for td_checkpoint_commit(), in the arena.
 */
td_status td_checkpoint_write(td_arena *a, const char *dir, const char *folder, int32_t rank,
                              const td_run_state *state, const char **record, td_err *err);

/* Makes the folder the checkpoint of DIR and removes those before it. */
td_status td_checkpoint_commit(td_arena *a, const char *dir, const char *folder,
                               const td_plan *plan, int64_t step, int32_t n_records,
                               const char *const *records, td_err *err);

/* Removes the folder of a save that failed, once no rank writes any more. */
void td_checkpoint_abandon(const char *dir, const char *folder);

/* ---- load: open, verify and read on all ranks; read only after all have verified ---- */

/* Elements [first, first + n), row by row, of a block of a tensor; they begin at byte `offset` of
 * the file, moments behind them. */
typedef struct {
    const char *tensor;
    int64_t row0, rows, col0, cols, first, n;
    bool moments;
    int64_t offset;
} td_checkpoint_piece;

typedef struct {
    const char *path;
    int64_t bytes;
    const char *sha256;
    int32_t n_pieces;
    const td_checkpoint_piece *pieces;
} td_checkpoint_file;

typedef struct {
    const char *manifest;    /* its path, for messages */
    int64_t step, n_updates; /* steps done, which is the number of the next; updates among them */
    int32_t n_files;
    const td_checkpoint_file *files;
    const char *note; /* what differs and does not stand in the way, as `; ...; ...` */
} td_checkpoint;

/*
 * Reads the manifest of DIR and holds it against the plan and the files' sizes. TD_FILE naming what
 * is missing, damaged, not a checkpoint, or of another model.
 */
td_status td_checkpoint_open(td_arena *a, const char *dir, const td_plan *plan,
                             const td_checkpoint **out, td_err *err);

/* Checksums of this rank's share of the files. TD_FILE naming the damaged one. */
td_status td_checkpoint_verify(const td_checkpoint *c, int32_t rank, int32_t world, td_err *err);

/* Fills in weights, moments and the number of updates from whatever pieces intersect them. */
td_status td_checkpoint_read(const td_checkpoint *c, const td_run_state *state, td_err *err);

/* ---- of both ---- */

/* What a manifest says of the model; NULL without memory. To be released by json_decref(). */
struct json_t *td_checkpoint_model(td_arena *a, const td_plan *plan, td_err *err);

/* SHA-256 of a manifest without its own, whatever the white space. False without memory. */
bool td_checkpoint_sum(const struct json_t *manifest, char hex[65]);

#endif
