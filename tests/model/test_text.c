/* A slip of one key still finds the word; what is shown is printable and bounded. */
#include "model/text.h"

#include <criterion/criterion.h>
#include <string.h>

static const char *const words[] = {"layers",       "hidden",    "heads", "kv_heads",
                                    "microbatches", "precision", NULL};

Test(text, every_word_with_one_slip_is_nearest_to_itself)
{
    for (const char *const *w = words; *w != NULL; w++) {
        const size_t n = strlen(*w);
        for (size_t i = 0; i < n; i++) {
            char less[32], other[32], more[32], swapped[32];
            strcpy(less, *w);
            memmove(less + i, less + i + 1, n - i);
            strcpy(other, *w);
            other[i] = 'Q';
            strcpy(more, *w);
            memmove(more + i + 1, more + i, n - i + 1);
            strcpy(swapped, *w);
            if (i + 1 < n) {
                swapped[i] = (*w)[i + 1];
                swapped[i + 1] = (*w)[i];
            }
            const char *const slips[] = {*w, less, other, more, swapped};
            for (size_t k = 0; k < sizeof slips / sizeof *slips; k++) {
                const char *near = td_text_nearest(slips[k], words);
                cr_assert_not_null(near, "%s", slips[k]);
                cr_assert_str_eq(near, *w, "%s", slips[k]);
            }
        }
    }
}

Test(text, case_is_no_distance_and_strangers_are_not_near)
{
    cr_assert_str_eq(td_text_nearest("LAYERS", words), "layers");
    static const char *const strangers[] = {"", "x", "tp", "optimizer",
                                            "a_word_that_is_longer_than_any_that_is_known"};
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
        cr_assert_null(td_text_nearest(strangers[i], words), "%s", strangers[i]);
}

Test(text, shown_text_has_no_control_characters_and_ends_between_characters)
{
    td_arena *a = td_arena_new();
    cr_assert_str_eq(td_text_show(a, "a\x1b\n\x7f", 4), "a\\x1b\\x0a\\x7f");
    char accents[201] = "";
    for (int shift = 0; shift < 2; shift++) {
        memset(accents, 'x', (size_t)shift);
        for (size_t i = (size_t)shift; i + 1 < sizeof accents - 1; i += 2)
            memcpy(accents + i, "\xc3\xa9", 3);
        const char *shown = td_text_show(a, accents, strlen(accents));
        const size_t n = strlen(shown);
        cr_assert(n <= 63 && n >= 62);
        cr_assert_str_eq(shown + n - 3, "...");
        cr_assert_eq((unsigned char)shown[n - 4], 0xA9);
    }
    td_arena_free(a);
}

Test(text, paths_are_seen_from_the_folder_of_the_file_that_names_them)
{
    td_arena *a = td_arena_new();
    cr_assert_str_eq(td_text_beside(a, "plans/a.yaml", "../c.yaml"), "plans/../c.yaml");
    cr_assert_str_eq(td_text_beside(a, "/a.yaml", "c.yaml"), "/c.yaml");
    cr_assert_str_eq(td_text_beside(a, "a.yaml", "c.yaml"), "c.yaml");
    cr_assert_str_eq(td_text_beside(a, "plans/a.yaml", "/c.yaml"), "/c.yaml");
    td_arena_free(a);
}

Test(text, lists_join_all_words)
{
    td_arena *a = td_arena_new();
    static const char *const none[] = {NULL};
    cr_assert_str_eq(td_text_list(a, words),
                     "layers, hidden, heads, kv_heads, microbatches, precision");
    cr_assert_str_eq(td_text_list(a, none), "");
    td_arena_free(a);
}
