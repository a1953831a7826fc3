/* Arguments, environment, auxv, executable and name as /proc shows them. */
#include "tracee.h"

#include <sys/auxv.h>
#include <sys/prctl.h>

struct view {
    size_t cmdline_len, environ_len, auxv_len;
    char cmdline[4096], environ[16384], auxv[2048], exe[PATH_MAX], stat_name[64];
};

static void look(struct view *v)
{
    memset(v, 0, sizeof *v);
    v->cmdline_len = tr_slurp("/proc/self/cmdline", v->cmdline, sizeof v->cmdline);
    v->environ_len = tr_slurp("/proc/self/environ", v->environ, sizeof v->environ);
    v->auxv_len = tr_slurp("/proc/self/auxv", v->auxv, sizeof v->auxv);
    MUST(readlink("/proc/self/exe", v->exe, sizeof v->exe - 1));
    tr_slurp("/proc/self/comm", v->stat_name, sizeof v->stat_name);
}

int main(int argc, char **argv)
{
    static struct view before, after;
    char name[17] = "";
    tr_init(argc, argv);
    MUST(prctl(PR_SET_NAME, "odd ) name (x"));
    unsigned long random = getauxval(AT_RANDOM), vdso = getauxval(AT_SYSINFO_EHDR);
    look(&before);

    tr_hold();

    look(&after);
    CHECK_EQ("length of cmdline", before.cmdline_len, after.cmdline_len);
    CHECK_EQ("length of environ", before.environ_len, after.environ_len);
    CHECK_EQ("length of auxv", before.auxv_len, after.auxv_len);
    CHECK(memcmp(before.cmdline, after.cmdline, sizeof before.cmdline) == 0, "cmdline: got %s",
          after.cmdline);
    CHECK(memcmp(before.environ, after.environ, sizeof before.environ) == 0, "environ changed");
    CHECK(memcmp(before.auxv, after.auxv, sizeof before.auxv) == 0, "auxv changed");
    tr_check_str("exe", before.exe, after.exe);
    tr_check_str("comm", "odd ) name (x\n", after.stat_name);
    MUST(prctl(PR_GET_NAME, name));
    tr_check_str("PR_GET_NAME", "odd ) name (x", name);
    CHECK_EQ("AT_RANDOM", random, getauxval(AT_RANDOM));
    CHECK_EQ("AT_SYSINFO_EHDR", vdso, getauxval(AT_SYSINFO_EHDR));
    return tr_pass(NULL);
}
