/*
 * Non-interleaved one-forward-one-backward with a flush (PipeDream-Flush: Narayanan et al.,
 * "Memory-efficient pipeline-parallel DNN training", ICML'21; "Efficient large-scale language model
 * training on GPU clusters using Megatron-LM", SC'21). A stage holds at most n_stages - stage
 * microbatches in flight.
 */
#include "model/schedule.h"

static int32_t warmup(const td_schedule_input *in)
{
    const int32_t ahead = in->n_stages - in->stage - 1;
    return ahead < in->n_micro ? ahead : in->n_micro;
}

static void put(td_step_list *l, td_step_kind kind, int32_t mb)
{
    l->items[l->n++] =
        (td_step_item){.kind = (uint8_t)kind, .mb = mb, .send_mb = -1, .recv_mb = -1};
}

static void call(td_step_list *l, td_call which, int32_t send_mb, int32_t recv_mb)
{
    l->items[l->n++] = (td_step_item){.kind = TD_STEP_COMM,
                                      .call = (uint8_t)which,
                                      .mb = -1,
                                      .send_mb = send_mb,
                                      .recv_mb = recv_mb};
}

static void forward(td_step_list *l, const td_schedule_input *in, int32_t w, int32_t mb)
{
    put(l, TD_STEP_FORWARD, mb);
    l->items[l->n - 1].recompute =
        in->recompute_window >= 0 && mb % (w + 1) >= in->recompute_window;
}

static td_status emit(td_arena *a, const td_schedule_input *in, td_step_list *out, td_err *err)
{
    const int32_t w = warmup(in), m = in->n_micro;
    const bool early =
        !in->explicit_grad_sync || in->first_stages_only; /* synchronise with the last backward */
    bool sync = false;
    /* six calls for a microbatch that fills or drains the pipeline, four in between, and the ends
     */
    td_step_list l = {.items = TD_NEW(a, td_step_item, 4 * (size_t)m + 2 * (size_t)w + 6)};
    if (l.items == NULL)
        return td_fail(err, TD_NOMEM, "no memory for a schedule of %d microbatches", (int)m);
    put(&l, TD_STEP_GRAD_SYNC_OFF, -1);
    for (int32_t i = 0; i < w; i++) {
        call(&l, TD_CALL_RECV_FORWARD, -1, i);
        forward(&l, in, w, i);
        call(&l, TD_CALL_SEND_FORWARD, i, -1);
    }
    if (m > w)
        call(&l, TD_CALL_RECV_FORWARD, -1, w);
    for (int32_t i = 0; i < m - w; i++) {
        const bool last = i == m - w - 1;
        forward(&l, in, w, w + i);
        call(&l, TD_CALL_SEND_FORWARD_RECV_BACKWARD, w + i, i);
        if (w == 0 && last && early) {
            put(&l, TD_STEP_GRAD_SYNC_ON, -1);
            sync = true;
        }
        put(&l, TD_STEP_BACKWARD, i);
        if (last)
            call(&l, TD_CALL_SEND_BACKWARD, i, -1);
        else
            call(&l, TD_CALL_SEND_BACKWARD_RECV_FORWARD, i, w + i + 1);
    }
    for (int32_t i = m - w; i < m; i++) {
        if (i == m - 1 && early) {
            put(&l, TD_STEP_GRAD_SYNC_ON, -1);
            sync = true;
        }
        call(&l, TD_CALL_RECV_BACKWARD, -1, i);
        put(&l, TD_STEP_BACKWARD, i);
        call(&l, TD_CALL_SEND_BACKWARD, i, -1);
    }
    if (!sync) {
        put(&l, TD_STEP_GRAD_SYNC_ON, -1);
        if (in->explicit_grad_sync)
            put(&l, TD_STEP_GRAD_SYNC_LAUNCH, -1);
    }
    put(&l, TD_STEP_FINALIZE_GRADS, -1);
    *out = l;
    return TD_OK;
}

const td_schedule td_schedule_1f1b = {
    .name = "1f1b",
    .summary = "one forward, one backward, without interleaving; flushes every step",
    .warmup = warmup,
    .emit = emit,
};
