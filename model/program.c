/* Tables and names of the step program. */
#include "model/program.h"

#include <stdio.h>

const char *const td_lane_names[TD_N_LANES] = {
#define X(lane, name) [TD_LANE_##lane] = name,
    TD_LANE_MAP(X)
#undef X
};

const td_op_traits td_op_table[TD_N_OPS] = {
#define X(op, title, short_name, what, pattern, said)                                              \
    [TD_OP_##op] = {.name = title,                                                                 \
                    .mnemonic = short_name,                                                        \
                    .role = TD_ROLE_##what,                                                        \
                    .coll = TD_COLL_##pattern,                                                     \
                    .words = said},
    TD_OP_MAP(X)
#undef X
};

const char *const td_comm_names[TD_N_COMMS] = {
#define X(kind, name) [TD_COMM_##kind] = name,
    TD_COMM_MAP(X)
#undef X
};

void td_op_label(const td_op *op, char *text, int size)
{
    const char *mnemonic = td_op_table[op->kind].mnemonic;
    if (op->mb >= 0)
        snprintf(text, (size_t)size, "%s%d", mnemonic, (int)op->mb);
    else if (op->bucket > 0)
        snprintf(text, (size_t)size, "%s.%d", mnemonic, (int)op->bucket);
    else
        snprintf(text, (size_t)size, "%s", mnemonic);
}

void td_op_name(const td_program *p, int32_t rank, const td_op *op, char *text, int size)
{
    if (op->chan < 0 || td_op_table[op->kind].role == TD_ROLE_GROUP) {
        td_op_label(op, text, size);
        return;
    }
    const td_chan *chan = &p->ranks[rank].chans[op->chan];
    const td_comm *c = &p->comms[chan->comm];
    snprintf(text, (size_t)size, "%s %d %s rank %d", td_op_table[op->kind].name, (int)op->mb,
             chan->me == 0 ? "to" : "from", (int)c->ranks[1 - chan->me]);
}
