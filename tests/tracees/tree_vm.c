/* A child that shares the memory but is no thread (CLONE_VM without CLONE_THREAD). */
#include "clones.h"

static volatile int from_parent, from_child;

/* Raw calls only: libc's thread state belongs to the parent. */
static int body(void *arg)
{
    (void)arg;
    from_child = 1;
    while (from_parent == 0)
        syscall(SYS_nanosleep, &(struct timespec){0, 5000000}, NULL);
    from_child = from_parent + 1;
    return 31;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    pid_t child = tr_clone(body, NULL, CLONE_VM);
    while (from_child == 0)
        tr_sleep_ms(1);

    tr_hold();

    tr_check_shared(child, KCMP_VM, "memory", true);
    tr_check_shared(child, KCMP_FILES, "descriptors", false);
    tr_check_shared(child, KCMP_FS, "directories", false);
    from_parent = 500;
    tr_check_exit("child", child, 31 << 8);
    CHECK_EQ("what the child wrote", 501, from_child);
    return tr_pass(NULL);
}
