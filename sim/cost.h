/*
 * Seconds for parts and for lone communication on an unloaded machine. A cost model is one file
 * ending in one const descriptor; `table` reads a profile's measurements and falls back to
 * `roofline` outside them, which it says.
 */
#ifndef TANDEM_SIM_COST_H
#define TANDEM_SIM_COST_H

#include "model/part.h"
#include "model/profile.h"
#include "model/program.h"

/*
 * What a prediction rests on: every shape that a model had to extrapolate, once, with how often it
 * was asked. Zero value plus an arena is ready for use.
 */
typedef struct td_cost_note {
    struct td_cost_note *next;
    char what[96]; /* `gemm fwd m=1024 n=49152 k=12288`, `all_reduce ranks=16 bytes=1048576` */
    char why[96];  /* `outside the measured n 512..57344` */
    int64_t count;
} td_cost_note;

/* How near a price is to a measurement, of products, attention and communication between two ranks
 * or more; passes over memory depend on nothing but their size and are not told apart. */
typedef enum {
    TD_SHAPE_KNOWN,   /* it is one: the shape was measured; of messages also what is smaller than
                         the smallest measured, which takes as long as that */
    TD_SHAPE_INSIDE,  /* between measured ones */
    TD_SHAPE_OUTSIDE, /* extrapolated, or nothing of the kind was measured */
    TD_N_SHAPE_KINDS
} td_shape_kind;
enum { TD_SHAPE_BUCKETS = 256, TD_SHAPE_NUMBERS = 8 };
typedef struct td_cost_shape {
    struct td_cost_shape *next;
    const td_profile *profile;
    int64_t numbers[TD_SHAPE_NUMBERS];
} td_cost_shape;

typedef struct {
    td_arena *arena;
    td_cost_note *head;
    int32_t n;                          /* distinct notes */
    int64_t n_asked, n_extrapolated;    /* calls */
    int32_t n_shapes[TD_N_SHAPE_KINDS]; /* distinct prices of each kind */
    td_cost_shape *shapes[TD_SHAPE_BUCKETS];
} td_cost_notes;

void td_cost_note_add(td_cost_notes *notes, const char *what, const char *why);

/* One communication alone on its links. */
typedef struct {
    td_coll coll;
    int32_t ranks;
    uint64_t bytes;          /* as model/collective.h defines them */
    bool one_node;           /* all ranks in one node */
    bool in_pass;            /* of a tensor-parallel group, inside a pass */
    double edge_bytes_per_s; /* slowest link along the ring or path, shared by nobody */
    double edge_latency_s;   /* of the slowest edge, one hop */
} td_comm_query;

typedef struct {
    double alpha_s; /* latency: occupies no link, does not stretch under contention; 0 <= alpha_s <=
                       total_s */
    double total_s; /* alone; >= edge_bytes / edge_bytes_per_s (the physical bound) */
} td_comm_cost;

typedef struct {
    const char *name, *summary;
    /* Seconds of one part that is not a COLLECTIVE, kernel gap included. `notes` may be NULL. */
    double (*part)(const td_profile *profile, const td_part *part, td_cost_notes *notes);
    void (*comm)(const td_profile *profile, const td_comm_query *query, td_comm_cost *out,
                 td_cost_notes *notes);
} td_cost_model;

/* Counts a price once, however often it is asked for; `notes` may be NULL. sim/cost_shapes.c */
void td_cost_shape_part(td_cost_notes *notes, const td_profile *profile, const td_part *part,
                        td_shape_kind kind);
void td_cost_shape_comm(td_cost_notes *notes, const td_profile *profile, const td_comm_query *query,
                        td_shape_kind kind);

extern const td_cost_model td_cost_roofline, td_cost_table;
extern const td_cost_model *const td_cost_models[]; /* ends with NULL */

/* The model a profile calls for: `table` if it has measurements, else `roofline`. */
const td_cost_model *td_cost_model_for(const td_profile *profile);

/* What a part of this class does to the heat of its GPU while it runs: td_heat. */
double td_cost_heat(const td_profile *profile, uint8_t class);

/* Factor (>= 1) on the time of products and attention on a GPU of this mean heat. */
double td_cost_clock_factor(const td_profile *profile, double heat);

#endif
