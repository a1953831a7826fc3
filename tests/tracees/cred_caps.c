/* Capability sets (all five), securebits and keep-caps, different in two threads. */
#include "threads.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/prctl.h>

static volatile bool go;

static void set_caps(uint32_t permitted, uint32_t effective, uint32_t inheritable)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2] = {{effective, permitted, inheritable}, {0, 0, 0}};
    MUST(syscall(SYS_capset, &h, d));
}

static void check_set(const char *name, uint64_t want)
{
    char text[64], path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tr_gettid());
    tr_proc_field(path, name, text, sizeof text);
    CHECK_EQ(name, want, strtoull(text, NULL, 16));
}

#define BIT(cap) (1U << (cap))
#define PERMITTED (BIT(CAP_CHOWN) | BIT(CAP_KILL) | BIT(CAP_NET_RAW) | BIT(CAP_SETPCAP))
#define INHERITABLE (BIT(CAP_KILL) | BIT(CAP_NET_RAW))

static void body(struct tr_thread *t)
{
    (void)t;
    set_caps(PERMITTED, 0, INHERITABLE);
    t->arg = t;
    while (!go)
        tr_sleep_ms(5);
    check_set("CapPrm", PERMITTED);
    check_set("CapEff", 0);
}

int main(int argc, char **argv)
{
    static struct tr_thread thread;
    char text[64];
    tr_init(argc, argv);
    MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
    MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
    MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP));
    tr_proc_field("/proc/self/status", "CapBnd", text, sizeof text);
    uint64_t bounding = strtoull(text, NULL, 16);
    set_caps(PERMITTED, PERMITTED & ~BIT(CAP_NET_RAW), INHERITABLE);
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
    tr_thread_start(&thread, body, NULL);
    while (*(void *volatile *)&thread.arg == NULL)
        tr_sleep_ms(1);

    tr_hold();

    check_set("CapPrm", PERMITTED);
    check_set("CapEff", PERMITTED & ~BIT(CAP_NET_RAW));
    check_set("CapInh", INHERITABLE);
    check_set("CapAmb", BIT(CAP_KILL));
    check_set("CapBnd", bounding);
    CHECK(!(bounding & BIT(CAP_SYS_TIME)), "CAP_SYS_TIME was not dropped");
    CHECK_EQ("securebits", SECBIT_NOROOT | SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP,
             prctl(PR_GET_SECUREBITS));
    CHECK_EQ("keep-caps", 1, prctl(PR_GET_KEEPCAPS));
    CHECK(unshare(CLONE_NEWUTS) == -1 && errno == EPERM, "CAP_SYS_ADMIN is still there");
    go = true;
    tr_thread_join(&thread);
    return tr_pass(NULL);
}
