/* mlockall: what is mapped after the checkpoint is locked as well. */
#include "vma.h"

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    MUST(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT));
    char *before = tr_anon(4 * TR_PAGE, PROT_READ | PROT_WRITE);
    tr_fill(before, TR_PAGE, 3);

    tr_hold();

    tr_check_flag("mapped before", before, "lo", true);
    tr_verify("mapped before", before, TR_PAGE, 3);
    char *after = tr_anon(4 * TR_PAGE, PROT_READ | PROT_WRITE);
    tr_check_flag("mapped after", after, "lo", true);
    tr_check_flag("mapped after", after, "lf", true);
    MUST(munlockall());
    tr_check_flag("after munlockall", before, "lo", false);
    return tr_pass(NULL);
}
