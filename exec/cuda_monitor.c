/* A thread that asks NVML twenty times a second. */
#include "exec/cuda_monitor.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RING = 36000, PERIOD_NS = 50 * 1000 * 1000, SECOND_NS = 1000 * 1000 * 1000 };

/* NVML's, as nvml.h of the GPU deployment kit has them; all functions return 0 for success. */
typedef struct nvml_device nvml_device;
enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2, NVML_TEMPERATURE_GPU = 0 };
typedef struct {
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error_string)(int result);
    int (*driver_version)(char *version, unsigned length);
    int (*by_pci)(const char *pci, nvml_device **device);
    int (*clock)(nvml_device *device, int type, unsigned *mhz);
    int (*power)(nvml_device *device, unsigned *milliwatts); /* mean of the last second */
    int (*temperature)(nvml_device *device, int sensor, unsigned *celsius);
    int (*reasons)(nvml_device *device, unsigned long long *bits);
} nvml;

/* where, its name, its former name */
static const struct {
    size_t at;
    const char *name, *former;
} symbols[] = {
    {offsetof(nvml, init), "nvmlInit_v2", NULL},
    {offsetof(nvml, shutdown), "nvmlShutdown", NULL},
    {offsetof(nvml, error_string), "nvmlErrorString", NULL},
    {offsetof(nvml, driver_version), "nvmlSystemGetDriverVersion", NULL},
    {offsetof(nvml, by_pci), "nvmlDeviceGetHandleByPciBusId_v2", NULL},
    {offsetof(nvml, clock), "nvmlDeviceGetClockInfo", NULL},
    {offsetof(nvml, power), "nvmlDeviceGetPowerUsage", NULL},
    {offsetof(nvml, temperature), "nvmlDeviceGetTemperature", NULL},
    {offsetof(nvml, reasons), "nvmlDeviceGetCurrentClocksEventReasons",
     "nvmlDeviceGetCurrentClocksThrottleReasons"},
};

struct td_monitor {
    void *library;
    nvml api;
    bool initialised, running;
    nvml_device *device;
    char driver[96];
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t ended;
    bool end;
    int64_t n; /* samples ever; sample i is in place i mod RING */
    td_monitor_sample ring[RING];
};

/* ---- the library ---- */

static td_status load(td_monitor *m, td_err *err)
{
    td_status st = TD_OK;
    m->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (m->library == NULL)
        TD_TRY(st, td_fail(err, TD_ABSENT, "no NVML: %s", dlerror()));
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(m->library, symbols[i].name);
        if (symbol == NULL && symbols[i].former != NULL)
            symbol = dlsym(m->library, symbols[i].former);
        if (symbol == NULL)
            TD_TRY(st, td_fail(err, TD_ABSENT, "NVML has no %s", symbols[i].name));
        /* C has no cast from an object's address to a function's; POSIX has both alike. */
        memcpy((char *)&m->api + symbols[i].at, &symbol, sizeof symbol);
    }
done:
    return st;
}

static td_status nvml_failed(const td_monitor *m, int result, const char *what, td_err *err)
{
    if (result == 0)
        return TD_OK;
    return td_fail(err, TD_ABSENT, "NVML: %s: %s", what, m->api.error_string(result));
}

/* ---- samples ---- */

static struct timespec now(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t;
}

/* What NVML does not tell stays 0. False if it tells nothing at all, as of a GPU that is lost. */
static bool sample(const td_monitor *m, td_monitor_sample *out)
{
    unsigned sm = 0, memory = 0, milliwatts = 0, celsius = 0;
    unsigned long long bits = 0;
    const struct timespec t = now();
    int told = 0;
    told += m->api.clock(m->device, NVML_CLOCK_SM, &sm) == 0;
    told += m->api.clock(m->device, NVML_CLOCK_MEM, &memory) == 0;
    told += m->api.power(m->device, &milliwatts) == 0;
    told += m->api.temperature(m->device, NVML_TEMPERATURE_GPU, &celsius) == 0;
    told += m->api.reasons(m->device, &bits) == 0;
    *out = (td_monitor_sample){.second = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec,
                               .sm_mhz = (float)sm,
                               .memory_mhz = (float)memory,
                               .power_w = (float)milliwatts / 1000,
                               .celsius = (float)celsius,
                               .throttle = (uint32_t)bits};
    return told > 0;
}

/* One period after `t`, but never in the past: samples that were missed are not made up for. */
static struct timespec next_after(struct timespec t)
{
    const struct timespec present = now();
    t.tv_nsec += PERIOD_NS;
    if (t.tv_nsec >= SECOND_NS) {
        t.tv_sec++;
        t.tv_nsec -= SECOND_NS;
    }
    if (t.tv_sec < present.tv_sec || (t.tv_sec == present.tv_sec && t.tv_nsec < present.tv_nsec))
        t = present;
    return t;
}

static void *watch(void *monitor)
{
    td_monitor *m = monitor;
    struct timespec due = now();
    pthread_mutex_lock(&m->lock);
    while (!m->end) {
        td_monitor_sample s;
        pthread_mutex_unlock(&m->lock); /* NVML may take milliseconds */
        const bool told = sample(m, &s);
        due = next_after(due);
        pthread_mutex_lock(&m->lock);
        if (told)
            m->ring[m->n++ % RING] = s;
        while (!m->end && pthread_cond_timedwait(&m->ended, &m->lock, &due) == 0)
            ;
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* ---- opening and reading ---- */

/* Signals are for the threads that were there before. */
static td_status start(td_monitor *m, td_err *err)
{
    pthread_condattr_t monotonic;
    sigset_t all, before;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&m->thread, NULL, watch, m);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed != 0)
        return td_fail(err, TD_RUN, "no thread to watch the GPU: %s", strerror(failed));
    m->running = true;
    return TD_OK;
}

td_status td_monitor_open(const char *pci, td_monitor **out, td_err *err)
{
    td_status st = TD_OK;
    td_monitor *m = calloc(1, sizeof *m);
    if (m == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory to watch the GPU"));
    TD_TRY(st, load(m, err));
    TD_TRY(st, nvml_failed(m, m->api.init(), "starting", err));
    m->initialised = true;
    TD_TRY(st, nvml_failed(m, m->api.driver_version(m->driver, sizeof m->driver),
                           "version of the driver", err));
    TD_TRY(st, nvml_failed(m, m->api.by_pci(pci, &m->device), pci, err));
    TD_TRY(st, start(m, err));
    *out = m;
done:
    if (st != TD_OK)
        td_monitor_close(m);
    return st;
}

void td_monitor_close(td_monitor *m)
{
    if (m == NULL)
        return;
    if (m->running) {
        pthread_mutex_lock(&m->lock);
        m->end = true;
        pthread_cond_signal(&m->ended);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
        pthread_cond_destroy(&m->ended);
        pthread_mutex_destroy(&m->lock);
    }
    if (m->initialised)
        m->api.shutdown();
    if (m->library != NULL)
        dlclose(m->library);
    free(m);
}

td_status td_monitor_samples(td_monitor *m, td_arena *a, int32_t *n, const td_monitor_sample **out,
                             td_err *err)
{
    td_status st = TD_OK;
    pthread_mutex_lock(&m->lock);
    const int64_t end = m->n, first = end > RING ? end - RING : 0;
    td_monitor_sample *copy = TD_NEW(a, td_monitor_sample, end - first);
    for (int64_t i = first; i < end && copy != NULL; i++)
        copy[i - first] = m->ring[i % RING];
    pthread_mutex_unlock(&m->lock);
    if (copy == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for %lld samples of the GPU",
                           (long long)(end - first)));
    *n = (int32_t)(end - first);
    *out = copy;
done:
    return st;
}

const char *td_monitor_driver(const td_monitor *m)
{
    return m->driver;
}
