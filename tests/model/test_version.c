/* Versions that people and libraries write differently are the same, as far as both tell. */
#include "model/version.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

struct pair {
    td_library library;
    char a[24], b[24];
    bool same;
};

ParameterizedTestParameters(version, same_as_far_as_both_tell)
{
    static struct pair table[] = {{TD_LIBRARY_CUDA, "13.0", "13000", true},
                                  {TD_LIBRARY_CUDA, "13", "13000", true},
                                  {TD_LIBRARY_CUDA, "12.8", "12080", true},
                                  {TD_LIBRARY_CUDA, "12.8", "13000", false},
                                  {TD_LIBRARY_CUDA, "1", "13000", false},
                                  {TD_LIBRARY_NCCL, "2.28.3", "22803", true},
                                  {TD_LIBRARY_NCCL, "2.28", "22803", true},
                                  {TD_LIBRARY_NCCL, "2.28.7", "22803", false},
                                  {TD_LIBRARY_NCCL, "2.2", "22803", false},
                                  {TD_LIBRARY_DRIVER, "580.159", "580.159.04", true},
                                  {TD_LIBRARY_DRIVER, "580.15", "580.159.04", false},
                                  {TD_LIBRARY_DRIVER, "unknown", "580.159.04", true},
                                  {TD_LIBRARY_CUDNN, "9.14.0", "", true},
                                  {TD_LIBRARY_CUDNN, "9.14.0", "9.19.0", false}};
    return cr_make_param_array(struct pair, table, sizeof table / sizeof *table);
}
ParameterizedTest(struct pair *p, version, same_as_far_as_both_tell)
{
    cr_assert_eq(td_version_same(p->library, p->a, p->b), p->same, "%s %s", p->a, p->b);
    cr_assert_eq(td_version_same(p->library, p->b, p->a), p->same, "%s %s", p->b, p->a);
    cr_assert(td_version_same(p->library, p->a, p->a) && td_version_same(p->library, p->a, NULL));
}

Test(version, numbers_of_libraries_are_shown_with_points)
{
    char text[24];
    cr_assert_str_eq(td_version_text(TD_LIBRARY_CUDA, "13000", text, sizeof text), "13.0");
    cr_assert_str_eq(td_version_text(TD_LIBRARY_NCCL, "22803", text, sizeof text), "2.28.3");
    cr_assert_str_eq(td_version_text(TD_LIBRARY_CUDNN, "9.14.0", text, sizeof text), "9.14.0");
    cr_assert_str_eq(td_version_text(TD_LIBRARY_DRIVER, "580", text, sizeof text), "580");
}
