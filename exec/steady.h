/*
 * When a warm-up is over that was not counted beforehand. Clocks follow power and heat for seconds,
 * and steps with them: what is measured before they have settled is not what a long training sees.
 * The rule knows neither clock nor device: step times go in, the decision comes out.
 */
#ifndef TANDEM_EXEC_STEADY_H
#define TANDEM_EXEC_STEADY_H

#include <stdint.h>

typedef struct {
    double window_s;  /* steps are taken together until they have lasted so long, one at least */
    double tolerance; /* medians of two consecutive windows agree within this, relative */
    double least_s;   /* never before */
    double most_s;    /* then it ends all the same */
} td_steady_rule;

extern const td_steady_rule td_steady_usual; /* 5 s, 0.3 %, 10 s, 60 s */

typedef enum {
    TD_STEADY_NOT_YET,
    TD_STEADY_YES,
    TD_STEADY_NEVER /* most_s are over, or a time was none (not above 0, not finite) */
} td_steadiness;

enum { TD_STEADY_KEPT = 4096 }; /* times of a window; of more every second, fourth ... is kept */

/* A warm-up so far; the zero value is its beginning. */
typedef struct {
    int32_t n_steps;
    double seconds;
    double window_s;               /* of the window that is being filled */
    double before_s;               /* median of the window before it; 0: none */
    int32_t n_seen, n_kept, every; /* of the window */
    double last_s[2];              /* the medians that decided, earlier one first */
    double kept[TD_STEADY_KEPT];
} td_steady;

/* Adds one step and decides. */
td_steadiness td_steady_add(td_steady *s, const td_steady_rule *rule, double step_s);

#endif
