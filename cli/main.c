/* The program. */
#include "cli/cli.h"

int main(int argc, char **argv)
{
    return td_main(argc, argv);
}
