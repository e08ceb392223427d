/*
 * What a step is trained on. Synthetic by default: tokens are a learnable sequence, encoder inputs
 * are normal numbers; both depend on the global sample number alone, so every layout sees the same.
 * exec/dataset.h puts a plan's own samples in their place.
 */
#ifndef TANDEM_EXEC_DATA_H
#define TANDEM_EXEC_DATA_H

#include "exec/numbers.h"
#include "model/plan.h"

/* Global number of sample k of microbatch mb on language data lane `lane` in step `step`, and how
 * encoder lanes cut it. */
int64_t td_data_sample(const td_plan *plan, int64_t step, int32_t module, int32_t lane, int32_t mb,
                       int32_t k);

/*
 * Tokens and targets of one sample of the language sequence: tokens[t] is -1 under placeholders,
 * target[t] is the next token or -1 where the position does not count (its own or the next token is
 * a placeholder, or it is the last).
 */
void td_data_tokens(const td_plan *plan, int64_t sample, int32_t *tokens, int32_t *target);

/* The same for tokens that are known at every position, also under placeholders: hides those and
 * gives the targets. */
void td_data_targets(const td_plan *plan, int32_t *tokens, int32_t *target);

/* First position of text in the language sequence: the one after every placeholder. */
int32_t td_data_text(const td_plan *plan);

/* First row and number of rows of module m's placeholders in the language sequence (encoders in
 * module order). */
void td_data_rows(const td_plan *plan, int32_t module, int32_t *first, int32_t *rows);

/* Where an encoder's synthetic input comes from: N(0, 1), element (n * seq + row) * input_dim +
 * column of sample n. */
td_numbers td_data_input_numbers(const td_plan *plan, int32_t module);

/* Input of one sample of an encoder: [seq, input_dim]. */
void td_data_input(const td_plan *plan, int32_t module, int64_t sample, float *out);

#endif
