/*
 * A pipeline stage on a device: parameters, activations of the microbatches in flight, boundary
 * buffers, and what each part of the stage's works does. The parts are those of the step program,
 * executed one by one in their order, so what runs is what was predicted.
 */
#ifndef TANDEM_EXEC_STAGE_H
#define TANDEM_EXEC_STAGE_H

#include "exec/dataset.h"
#include "exec/device.h"
#include "exec/params.h"
#include "model/pieces.h"

/* Kept of one layer from its forward to its backward. */
typedef struct {
    act *x;        /* input of the layer; of layer n_layers: its output */
    act *y1, *qkv; /* normed input; q, k, v side by side, rotated */
    act *ao;       /* attention's output */
    act *x2, *y2;  /* after attention, and normed */
    act *gu, *av;  /* gate and up side by side; their product */
    float *st1, *lse, *st2;
} td_layer_kept;

/* Of one microbatch in flight. */
typedef struct {
    td_layer_kept *layers; /* [n_layers + 1] */
    act *input;            /* first encoder stage: patches */
    int32_t *tokens;       /* first language stage: [t], -1 under placeholders */
    int32_t *target;       /* last language stage: [t], -1 where not counted */
    act *yf, *logits; /* last stage: normed output; language: logits, which become their gradient */
    float *stf, *max, *sums;
    act *p1, *p2, *out; /* last encoder stage: the projector's steps */
} td_slot;

typedef struct {
    td_arena *arena;
    const td_program *program;
    const td_device *device;
    const td_pipeline *pipe;
    td_dataset *data; /* where its samples come from */
    td_stage stage;
    int32_t module, rank, tp_rank, dp_rank, tp_chan, dp_chan;
    /* Sizes on this rank, as in td_stage_sizes; first_row of its sequence-parallel region. */
    int64_t t, r, h, q, kv, f, up, vocab, out_width, proj, first_row;
    bool sp;
    size_t e; /* bytes of an activation element */
    td_tensors tensors;
    td_stage_sizes sizes;
    size_t arena_bytes;
    act *w;   /* flat parameters */
    float *g; /* flat gradients */
    /* Of the optimizer: exec/state.h. NULL where there is nothing of the kind. */
    float *reduced, *tensor_sum, *master, *m, *v;
    td_mimo_state *state;
    td_mimo_span *spans;
    void *workspace;
    int32_t n_slots, n_inputs;
    td_slot *slots; /* microbatch mb uses slot mb % n_slots */
    act **inputs; /* and inputs[mb % n_inputs], so that the next one can arrive while all slots are
                     in use */
    act *full, *wide1, *wide2,
        *side;        /* scratch: gathered rows, intermediates, a row-parallel product */
    act *flow[2];     /* gradient of the running layer, before and after */
    act *grad_in[2];  /* rings over microbatches: gradients from later stages */
    act *grad_out[2]; /* and towards earlier ones */
    act **bridged[2], **bridged_grad[2]; /* [ring][edge] rows from encoders, and their gradients */
    /* Host memory that a step's samples are copied from: [microbatches] of tokens with targets, and
     * of rows that a file holds. */
    int32_t *staged_tokens;
    act *staged_input;
    float *sample;                            /* [seq, input_dim] of a file */
    const struct td_handler *const *handlers; /* [works]: of each part */
    /* the pass that runs */
    td_slot *slot;
    int32_t mb, layer;
    int side_of_flow;
    td_err *err;
} td_stage_run;

/* What one kind of part does: exec/stage_parts.c holds the table. NULL for a part that has no
 * implementation. */
typedef struct td_handler {
    const char *name;
    uint8_t pass; /* td_pass */
    td_status (*run)(td_stage_run *s, const td_part *part);
} td_handler;
const td_handler *td_stage_handler(const td_part *part);

/*
 * Takes the device's arena and cuts it as model/pieces.h says, issues the kernels that write the
 * parameters' first values, and maps the plan's data. `pipe` is the plan's. An idle rank has no
 * stage.
 */
td_status td_stage_open(td_arena *a, const td_program *p, const td_pipeline *pipe, int32_t rank,
                        const td_device *device, td_stage_run *out, td_err *err);
void td_stage_close(td_stage_run *s);

typedef td_status (*td_part_done)(void *self, int64_t n_done, td_err *err);

/* Issues what puts the data of microbatch `mb` of step `step` into its slot, before its forward;
 * the microbatches of one step have staging memory of their own. TD_FILE if the plan's data is not
 * what it should be. */
td_status td_stage_feed(td_stage_run *s, int64_t step, int32_t mb, td_err *err);

/* Runs the parts of a FORWARD or BACKWARD; `done` is called before the first (0 done) and after
 * each. */
td_status td_stage_pass(td_stage_run *s, int32_t work, int32_t mb, bool backward, td_part_done done,
                        void *self, td_err *err);

/* Boundary buffers of a microbatch on this rank. */
act *td_stage_input(const td_stage_run *s, int32_t mb);
act *td_stage_output(const td_stage_run *s, int32_t mb);
act *td_stage_grad_in(const td_stage_run *s, int32_t mb);
act *td_stage_grad_out(const td_stage_run *s, int32_t mb);

#endif
