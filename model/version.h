/* Versions of what a GPU's times depend on, written by people and by libraries in different ways.
 */
#ifndef TANDEM_MODEL_VERSION_H
#define TANDEM_MODEL_VERSION_H

#include <stdbool.h>

/* name in files; thousands of the number that the library gives itself (CUDA 13000, NCCL 22803) */
#define TD_LIBRARY_MAP(X)                                                                          \
    X(DRIVER, "driver", 0, 0)                                                                      \
    X(CUDA, "cuda", 1000, 10)                                                                      \
    X(NCCL, "nccl", 10000, 100)                                                                    \
    X(CUDNN, "cudnn", 0, 0)

typedef enum {
#define X(library, name, major, minor) TD_LIBRARY_##library,
    TD_LIBRARY_MAP(X)
#undef X
        TD_N_LIBRARIES
} td_library;
extern const char *const td_library_names[TD_N_LIBRARIES];

/* With points: `13.0` for CUDA's 13000, `2.28.3` for NCCL's 22803; any other text as it is, cut off
 * where there is no room. Returns `out`. */
const char *td_version_text(td_library library, const char *version, char *out, int size);

/*
 * Do two texts name one version, as far as both tell? `580.159` and `580.159.04` do; so do `13.0`
 * and `13000` of CUDA. NULL, "" and `unknown` tell nothing.
 */
bool td_version_same(td_library library, const char *a, const char *b);

#endif
