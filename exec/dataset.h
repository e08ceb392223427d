/*
 * The samples that a plan's `data` names, memory-mapped from files without a header: little-endian
 * numbers, sample after sample. `tokens` holds `seq` of the language module per sample, as uint16
 * (.u16) or uint32 (.u32); an encoder's file holds its [seq, input_dim], as float32 (.f32) or
 * bfloat16 (.bf16). All files hold the same number N of samples, and sample n of the run is sample
 * n mod N of the files. What no file is named for is synthetic (exec/data.h), of sample n mod N as
 * well, so that every pass over the files sees the same samples; without any file, of sample n.
 */
#ifndef TANDEM_EXEC_DATASET_H
#define TANDEM_EXEC_DATASET_H

#include "model/plan.h"

typedef struct td_dataset td_dataset;

/*
 * Maps the files of `plan`, which outlives the dataset. Fails with TD_FILE, naming the file, if one
 * is missing, is not of its kind by its ending, is empty, ends within a sample, or holds another
 * number of samples than the others. A plan without `data` has a dataset without files.
 */
td_status td_dataset_open(td_arena *a, const td_plan *plan, td_dataset **out, td_err *err);
void td_dataset_close(td_dataset *d);

/* N; 0 without files. */
int64_t td_dataset_samples(const td_dataset *d);

/* Is there a file for the module, and which synthetic sample stands for sample n otherwise? */
bool td_dataset_has(const td_dataset *d, int32_t module);
int64_t td_dataset_sample(const td_dataset *d, int64_t sample);

/*
 * Tokens and targets of one sample, as td_data_tokens() gives them. Fails with TD_FILE if a token
 * of the text is not below `vocab`; what the file holds under placeholders is not looked at.
 */
td_status td_dataset_tokens(const td_dataset *d, int64_t sample, int32_t *tokens, int32_t *target,
                            td_err *err);

/* Input of one sample of an encoder: [seq, input_dim]. */
void td_dataset_input(const td_dataset *d, int32_t module, int64_t sample, float *out);

/* Reads all tokens once, so that a bad one is told before a run and not within it. */
td_status td_dataset_check(const td_dataset *d, td_err *err);

#endif
