/* MAP_HUGETLB memory, private and shared. */
#include "vma.h"

#define HUGE (2UL << 20)

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    const int flags = MAP_ANONYMOUS | MAP_HUGETLB;
    char *priv = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, -1, 0);
    char *shared = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, -1, 0);
    if (priv == MAP_FAILED || shared == MAP_FAILED) {
        tr_hold();
        return tr_pass("skipped: no huge pages");
    }
    tr_fill(priv, HUGE, 1);
    tr_fill(shared, HUGE, 2);
    pid_t child = tr_fork();
    if (child == 0) {
        tr_touch("up");
        tr_wait_go();
        tr_verify("child's view", shared, HUGE, 2);
        tr_fill(shared, HUGE, 3);
        _exit(0);
    }
    tr_await("up");

    tr_hold();

    tr_check_exit("child", child, 0);
    tr_check_flag("private", priv, "ht", true);
    tr_check_flag("shared", shared, "ht", true);
    tr_verify("private", priv, HUGE, 1);
    tr_verify_zero("private, untouched", priv + HUGE, HUGE);
    tr_verify("shared, after the child wrote", shared, HUGE, 3);
    return tr_pass(NULL);
}
