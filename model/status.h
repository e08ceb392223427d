/*
 * Failure is a value: what every library function of tandem returns, and the sentence that goes
 * with it.
 */
#ifndef TANDEM_MODEL_STATUS_H
#define TANDEM_MODEL_STATUS_H

typedef enum {
    TD_OK = 0,
    TD_PLAN,   /* the plan is readable but not valid, or asks for what cannot be done */
    TD_FILE,   /* a file is missing, unreadable or not what it should be */
    TD_USAGE,  /* the caller asked for something that does not exist */
    TD_ABSENT, /* a backend or device that this build or machine does not have */
    TD_RUN,    /* it started and broke: a deadlock, a lost process, too little memory */
    TD_NOMEM   /* the machine itself has no memory left */
} td_status;

/* The first failure wins: td_fail() does not overwrite an err that already holds a failure. */
typedef struct {
    td_status status; /* TD_OK while nothing failed */
    char text[1024];  /* place, fact, expectation: `vlm.yaml:14:16: modules.language: ...` */
} td_err;

/* Records a failure in `err` (which may be NULL) and returns `status`, so that it can stand in a
 * return or TD_TRY. */
td_status td_fail(td_err *err, td_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Keeps the status of `call` in `st` and leaves by the function's one door unless it is TD_OK. */
#define TD_TRY(st, call)                                                                           \
    do {                                                                                           \
        (st) = (call);                                                                             \
        if ((st) != TD_OK)                                                                         \
            goto done;                                                                             \
    } while (0)

#endif
