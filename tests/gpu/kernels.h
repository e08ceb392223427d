/*
 * The CUDA kernels against those of the processor. A row of a table says how to make a kernel's
 * operands for a shape and how to call it; the same call then runs on the processor's table of
 * kernels, in fp32, and on the GPU, in fp32 or bf16, on the same numbers. Everything else is done
 * for all kernels alike: outputs begin as NaN, every operand stands between guard bytes that must
 * stay as they are, inputs must too, and a second run, captured into a CUDA graph and launched from
 * it, must give the same bits.
 */
#ifndef TANDEM_TESTS_GPU_KERNELS_H
#define TANDEM_TESTS_GPU_KERNELS_H

#include "exec/cuda_attention.h"
#include "exec/cuda_kernels.h"
#include "exec/cuda_matmul.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

/* What `dev` points to; a td_cuda_queue comes first, as launchers expect. */
typedef struct {
    td_cuda_queue queue;
    td_cuda_matmul *matmul;           /* of the precision at hand */
    td_cuda_attention_lib *attention; /* NULL: there is no usable cuDNN */
    td_err err;                       /* of calls that can fail */
} td_gpu;

/* ACT: float, or bf16 where the trial says so; on the processor always float. */
typedef enum { TD_OF_ACT, TD_OF_FLOAT, TD_OF_DOUBLE, TD_OF_INT, TD_OF_BYTES } td_of;
typedef enum { TD_IN, TD_OUT, TD_INOUT } td_role; /* an OUT must be written whole */

/* A number in a struct that is an operand; `tolerance` is relative. */
typedef enum { TD_FIELD_DOUBLE, TD_FIELD_FLOAT, TD_FIELD_I64, TD_FIELD_I32, TD_FIELD_BOOL } td_is;
typedef struct {
    const char *name; /* NULL ends a table */
    size_t offset;
    int32_t count;
    td_is is;
    double tolerance;
} td_field;

enum { TD_OPERANDS = 12, TD_PARTS = 4 };

typedef struct {
    const char *name; /* NULL: not passed, the pointer is NULL */
    td_of of;
    td_role role;
    int64_t rows, width;
    void *first; /* as the processor sees it, before the call */
    void *want;  /* after the reference; NaN where that did not look (`sampled`) */
    /* Outputs: sqrt(sum (got - want)^2 / sum want^2) is at most this. 0: the bits of `want`. */
    double tolerance;
    /* An error is never taken relative to elements smaller than this: rounding where terms cancel.
     */
    double floor;
    int32_t ends[TD_PARTS]; /* groups of columns that are judged apart; 0: no more */
    const td_field *fields; /* BYTES: a row is a struct of these, compared instead of its bytes */
    int64_t touched;        /* elements that the kernel must move, for bandwidth; -1: all */
} td_operand;

/* What a shape of any kernel is made of; 0 is left out of its name. */
typedef struct {
    int64_t rows, h, n, seq, first, samples;
    td_attention_shape s;
    bool rms, gated, back, extra, frozen; /* what `extra` adds is up to the kernel */
    bool shifted; /* operands stand one element off the alignment of allocations */
    bool timed;   /* of a 7B model: what --time measures */
    bool only_timed;
    int32_t variant; /* of what the others do not say */
} td_shape;

typedef struct td_trial td_trial;

typedef struct {
    const char *name;
    const td_kernels *table; /* where `call` finds the kernel on the GPU */
    /* Adds every operand, in the order in which `call` looks for them. */
    void (*operands)(td_trial *t, const td_shape *s);
    void (*call)(const td_kernels *k, void *dev, void *const p[], const td_shape *s);
    /* Not NULL: fills the operands' `want` in place of a call of the processor's kernel. */
    void (*reference)(td_trial *t, const td_shape *s);
    /* Not NULL: writes the pointers that stand in operand 0 itself, given those of all. */
    void (*link)(const td_trial *t, const td_shape *s, void *const p[], void *operand0);
    /* Not NULL: may the kernel be called with this? Else `why`. */
    bool (*can)(td_gpu *gpu, const td_shape *s, const char **why);
    const td_shape *shapes;
    int32_t n_shapes;
    bool sampled;   /* NaN in `want`: not compared */
    bool unordered; /* nothing says that a second run gives the same bits */
} td_kernel_row;

struct td_trial {
    const td_kernel_row *row;
    const td_shape *shape;
    bool bf16;
    td_operand operand[TD_OPERANDS];
    int32_t n_operands;
    double flops; /* 0: the kernel is judged by the bytes of its operands */
    uint64_t random;
};

/* ---- for the tables ---- */

/*
 * Adds an operand of rows * width elements and returns it, to be adjusted. IN and INOUT hold random
 * numbers, uniform in [-scale, scale], rounded to bf16 where the kernel will see bf16; integers and
 * bytes are zero. The tolerance is 1e-5, 3e-3 for bf16, 1e-9 for doubles, 0 for what is left.
 */
td_operand *td_trial_operand(td_trial *t, td_role role, td_of of, const char *name, int64_t rows,
                             int64_t width, double scale);
void td_trial_absent(td_trial *t);
/* Uniform in [0, n). */
int64_t td_trial_dice(td_trial *t, int64_t n);
/* Adds `offset` to every number of a float operand, rounded as they are. */
void td_trial_offset(const td_trial *t, td_operand *o, double offset);
/* The nearest bf16, ties to even. */
float td_to_bf16(float x);
/* To what ACT holds: td_to_bf16() for bf16, else nothing changes. */
void td_trial_round(const td_trial *t, float *x, int64_t n);

extern const td_kernels td_gpu_kernels, td_gpu_kernels_cudnn; /* `dev` is a td_gpu */
#define TD_SHAPES(table) .shapes = (table), .n_shapes = (int32_t)(sizeof(table) / sizeof *(table))

/* Each ends with a NULL name. */
extern const td_kernel_row td_rows_kernels[], td_loss_kernels[], td_matmul_kernels[],
    td_optimizer_kernels[];

/* ---- for the program ---- */

typedef struct {
    int32_t n_run, n_failed, n_skipped;
    double worst; /* error over tolerance */
} td_tally;

/* False, having said so, if the device no longer answers: nothing can run after that. */
bool td_trial_check(td_gpu *gpu, const td_kernel_row *row, const td_shape *s, bool bf16,
                    uint64_t seed, td_tally *tally);
/* Median of 20 runs with operands that are not in the cache. */
bool td_trial_time(td_gpu *gpu, const td_kernel_row *row, const td_shape *s, bool bf16,
                   uint64_t seed, FILE *csv);
/* Puts a shape into words. */
void td_shape_text(const td_shape *s, char *text, size_t size);

/* Reports a failure of CUDA itself. */
bool td_cuda_fine(cudaError_t error, const char *what);

/* ---- between the two files of the check ---- */

int64_t td_operand_count(const td_operand *o);
/* Bytes of an element on the device. */
size_t td_operand_size(const td_trial *t, const td_operand *o);
float td_bf16_value(uint16_t half);

/* One line: the trial, the operand (NULL: none in particular), what is wrong with it. */
void td_trial_say(const td_trial *t, const char *operand, const char *what);

/* Do the numbers that stand in the device's form at `got` agree with the operand's `want`? */
bool td_operand_numbers_hold(const td_trial *t, const td_operand *o, const unsigned char *got,
                             td_tally *tally);
/* The same of structs, with `want` or, if they must be the `same`, with those of another run. */
bool td_operand_fields_hold(const td_trial *t, const td_operand *o, const unsigned char *got,
                            const unsigned char *want, bool same);

#endif
