/* The schedules there are. */
#include "model/schedule.h"

#include <string.h>

const char *const td_call_names[TD_N_CALLS] = {
#define X(call, name) [TD_CALL_##call] = name,
    TD_CALL_MAP(X)
#undef X
};

const char *const td_step_names[TD_N_STEPS] = {
#define X(kind, name) [TD_STEP_##kind] = name,
    TD_STEP_MAP(X)
#undef X
};

const td_schedule *const td_schedules[] = {&td_schedule_1f1b, NULL};

const td_schedule *td_schedule_find(const char *name)
{
    for (const td_schedule *const *s = td_schedules; *s != NULL; s++)
        if (strcmp((*s)->name, name) == 0)
            return *s;
    return NULL;
}
