/* no_new_privs and a seccomp filter: still there, still denying, in every thread. */
#include "threads.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static volatile bool go;

/* Denies one call with an errno and allows the rest. */
static void deny(unsigned nr, unsigned err, unsigned flags)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof code / sizeof code[0], code};
    MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog));
}

static void check_denied(const char *who)
{
    CHECK(syscall(SYS_mkdir, "/", 0) == -1 && errno == EPERM, "%s: mkdir gave %s", who,
          strerror(errno));
    CHECK(syscall(SYS_acct, NULL) == -1 && errno == ENOTTY, "%s: acct gave %s", who,
          strerror(errno));
    CHECK_EQ("no_new_privs", 1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    CHECK_EQ("seccomp mode", SECCOMP_MODE_FILTER, prctl(PR_GET_SECCOMP));
}

static void body(struct tr_thread *t)
{
    (void)t;
    while (!go)
        tr_sleep_ms(5);
    check_denied("thread");
}

int main(int argc, char **argv)
{
    static struct tr_thread thread;
    char text[64];
    tr_init(argc, argv);
    tr_thread_start(&thread, body, NULL);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    deny(SYS_mkdir, EPERM, SECCOMP_FILTER_FLAG_TSYNC);
    deny(SYS_acct, ENOTTY, SECCOMP_FILTER_FLAG_TSYNC);

    tr_hold();

    check_denied("main thread");
    go = true;
    tr_thread_join(&thread);
    tr_proc_field("/proc/self/status", "Seccomp_filters", text, sizeof text);
    CHECK_EQ("number of filters", 2, strtol(text, NULL, 10));
    pid_t child = tr_fork();
    if (child == 0) {
        check_denied("child");
        _exit(0);
    }
    tr_check_exit("child", child, 0);
    return tr_pass(NULL);
}
