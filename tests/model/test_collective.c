#include "model/collective.h"

#include <criterion/criterion.h>
#include <criterion/theories.h>
#include <string.h>

Test(collective, every_pattern_stands_in_the_table_under_its_own_name)
{
    for (int i = 0; i < TD_N_COLLS; i++) {
        cr_assert_not_null(td_collectives[i]);
        for (int k = 0; k < i; k++)
            cr_assert_str_neq(td_collectives[i]->name, td_collectives[k]->name);
    }
}

Test(collective, a_rank_alone_moves_nothing_and_waits_for_nobody)
{
    for (int i = 0; i < TD_N_COLLS; i++) {
        cr_assert_eq(td_collectives[i]->edge_bytes(1, 1000), 0, "%s", td_collectives[i]->name);
        cr_assert_eq(td_collectives[i]->steps(1), 0, "%s", td_collectives[i]->name);
    }
}

TheoryDataPoints(collective, patterns_move_the_bytes_of_their_closed_forms) = {
    DataPoints(int, 2, 3, 8, 1024), DataPoints(uint64_t, 0, 1, 4096, UINT64_C(1) << 40)};
Theory((int n, uint64_t bytes), collective, patterns_move_the_bytes_of_their_closed_forms)
{
    /* factors on the bytes over each edge, and steps: Chan et al., sections 3 and 4; Patarasuk and
     * Yuan, theorem 1 */
    const double share = (n - 1.0) / n;
    const struct {
        td_coll coll;
        double factor, steps;
    } forms[] = {
        {TD_COLL_SENDRECV, 1, 1},
        {TD_COLL_ALL_REDUCE, 2 * share, 2.0 * (n - 1)},
        {TD_COLL_REDUCE_SCATTER, share, n - 1},
        {TD_COLL_ALL_GATHER, share, n - 1},
        {TD_COLL_BROADCAST, 1, n - 1},
        {TD_COLL_ALL_TO_ALL, share, n - 1},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const td_collective *c = td_collectives[forms[i].coll];
        const double want = forms[i].factor * (double)bytes;
        cr_assert_leq(c->edge_bytes(n, bytes) - want, 1e-15 * want, "%s", c->name);
        cr_assert_geq(c->edge_bytes(n, bytes) - want, -1e-15 * want, "%s", c->name);
        cr_assert_eq(c->steps(n), forms[i].steps, "%s", c->name);
    }
}
