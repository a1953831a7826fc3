/* Locked memory: mlock, MLOCK_ONFAULT and mlockall(MCL_FUTURE). */
#include "vma.h"

#define LEN (8 * TR_PAGE)

static void *locked_area(unsigned flags)
{
    char *m = tr_anon(LEN, PROT_READ | PROT_WRITE);
    if (flags != UINT_MAX)
        MUST(mlock2(m, LEN, flags));
    tr_fill(m, TR_PAGE, 7);
    return m;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    char *plain = locked_area(UINT_MAX);
    char *locked = locked_area(0);
    char *onfault = locked_area(MLOCK_ONFAULT);

    tr_hold();

    tr_check_flag("plain", plain, "lo", false);
    tr_check_flag("mlock", locked, "lo", true);
    tr_check_flag("mlock", locked, "lf", false);
    tr_check_flag("mlock2(MLOCK_ONFAULT)", onfault, "lo", true);
    tr_check_flag("mlock2(MLOCK_ONFAULT)", onfault, "lf", true);
    unsigned char vec[8];
    MUST(mincore(locked, LEN, vec));
    for (int i = 0; i < 8; i++)
        CHECK(vec[i] & 1, "page %d of locked memory is not resident", i);
    MUST(mincore(onfault, LEN, vec));
    CHECK(!(vec[5] & 1), "an untouched page of MLOCK_ONFAULT memory is resident");
    tr_verify("mlock", locked, TR_PAGE, 7);
    tr_verify("mlock2(MLOCK_ONFAULT)", onfault, TR_PAGE, 7);
    tr_verify_zero("locked, untouched", locked + TR_PAGE, LEN - TR_PAGE);
    char text[64];
    tr_proc_field("/proc/self/status", "VmLck", text, sizeof text);
    CHECK_EQ("VmLck in kB", 2 * LEN / 1024, strtol(text, NULL, 10));
    MUST(munlock(locked, LEN));
    tr_check_flag("after munlock", locked, "lo", false);
    return tr_pass(NULL);
}
