/* Fused attention where tandem was built without cuDNN: there is none. */
#include "exec/cuda_attention.h"

static const char absent[] = "tandem was built without cuDNN";

const char *td_cuda_attention_version(void)
{
    return "none";
}

td_status td_cuda_attention_open(td_cuda_queue *queue, td_cuda_attention_lib **out, td_err *err)
{
    (void)queue;
    (void)out;
    return td_fail(err, TD_ABSENT, "%s", absent);
}

void td_cuda_attention_close(td_cuda_attention_lib *a)
{
    (void)a;
}

bool td_cuda_attention_has(td_cuda_attention_lib *a, const td_attention_shape *s, const char **why)
{
    (void)a;
    (void)s;
    *why = absent;
    return false;
}

size_t td_cuda_attention_needs(td_cuda_attention_lib *a, const td_attention_shape *s)
{
    (void)a;
    (void)s;
    return 0;
}

td_status td_cuda_attention_forward(td_cuda_attention_lib *a, const act *qkv, act *out, float *lse,
                                    const td_attention_shape *s, td_err *err)
{
    (void)a;
    (void)qkv;
    (void)out;
    (void)lse;
    (void)s;
    return td_fail(err, TD_ABSENT, "%s", absent);
}

td_status td_cuda_attention_gradient(td_cuda_attention_lib *a, const act *dout, const act *qkv,
                                     const act *out, const float *lse, act *dqkv,
                                     const td_attention_shape *s, td_err *err)
{
    (void)a;
    (void)dout;
    (void)qkv;
    (void)out;
    (void)lse;
    (void)dqkv;
    (void)s;
    return td_fail(err, TD_ABSENT, "%s", absent);
}
