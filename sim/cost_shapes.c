/* Distinct prices, by how near they are to a measurement: a small hash table of what was asked. */
#include "sim/cost.h"

#include <string.h>

static size_t bucket(const td_cost_shape *s)
{
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < TD_SHAPE_NUMBERS; i++) {
        h = (h ^ (uint64_t)s->numbers[i]) * 0xbf58476d1ce4e5b9u; /* splitmix64's mixing step */
        h ^= h >> 31;
    }
    return (size_t)(h % TD_SHAPE_BUCKETS);
}

/* Without memory a shape is counted again when it is asked for again. */
static void add(td_cost_notes *notes, const td_cost_shape *shape, td_shape_kind kind)
{
    td_cost_shape **head = &notes->shapes[bucket(shape)], *s = *head;
    while (s != NULL && (s->profile != shape->profile ||
                         memcmp(s->numbers, shape->numbers, sizeof s->numbers) != 0))
        s = s->next;
    if (s != NULL)
        return;
    notes->n_shapes[kind]++;
    s = TD_NEW(notes->arena, td_cost_shape, 1);
    if (s == NULL)
        return;
    *s = *shape;
    s->next = *head;
    *head = s;
}

void td_cost_shape_part(td_cost_notes *notes, const td_profile *profile, const td_part *p,
                        td_shape_kind kind)
{
    td_cost_shape s = {.profile = profile,
                       .numbers = {p->class, p->pass, p->fp32, p->m, p->n, p->k}};
    if (p->class == TD_PART_ATTENTION)
        s = (td_cost_shape){.profile = profile,
                            .numbers = {p->class, p->pass, p->fp32, p->batch, p->seq, p->heads,
                                        p->head_dim, p->causal}};
    if (notes != NULL && td_part_table[p->class].key == TD_KEY_SHAPE)
        add(notes, &s, kind);
}

void td_cost_shape_comm(td_cost_notes *notes, const td_profile *profile, const td_comm_query *q,
                        td_shape_kind kind)
{
    const td_cost_shape s = {.profile = profile,
                             .numbers = {TD_PART_COLLECTIVE, (int64_t)q->coll, q->ranks,
                                         (int64_t)q->bytes, q->one_node + 2 * q->in_pass,
                                         (int64_t)q->edge_bytes_per_s}};
    if (notes != NULL && q->ranks > 1)
        add(notes, &s, kind);
}
