/* flock: exclusive and shared, held by a description that a child has as well. */
#include "tracee.h"

#include <sys/file.h>

static int make(const char *name, int op)
{
    int fd = MUST(open(tr_path(name), O_RDWR | O_CREAT, 0600));
    if (op != 0)
        MUST(flock(fd, op));
    return fd;
}

/* Another description, in another process: is it locked out? */
static void check_locked(const char *what, const char *name, int op, bool want)
{
    pid_t child = tr_fork();
    if (child == 0) {
        int fd = MUST(open(tr_path(name), O_RDWR));
        int r = flock(fd, op | LOCK_NB);
        CHECK((r == -1 && errno == EWOULDBLOCK) == want, "%s: expected %s", what,
              want ? "locked" : "free");
        _exit(0);
    }
    tr_check_exit(what, child, 0);
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int exclusive = make("exclusive", LOCK_EX);
    int shared = make("shared", LOCK_SH);
    int forked = make("forked", LOCK_EX);
    int released = make("released", LOCK_EX);
    MUST(flock(released, LOCK_UN));
    pid_t child = tr_fork();
    if (child == 0) {
        close(exclusive);
        tr_touch("up");
        tr_await("child.end");
        _exit(0);
    }
    tr_await("up");
    close(forked);

    tr_hold();

    check_locked("exclusive", "exclusive", LOCK_SH, true);
    check_locked("shared, asked exclusive", "shared", LOCK_EX, true);
    check_locked("shared, asked shared", "shared", LOCK_SH, false);
    check_locked("held by the child only", "forked", LOCK_SH, true);
    check_locked("released", "released", LOCK_EX, false);
    MUST(flock(exclusive, LOCK_UN));
    check_locked("unlocked by its owner", "exclusive", LOCK_EX, false);
    tr_touch("child.end");
    tr_check_exit("child", child, 0);
    check_locked("its holder ended", "forked", LOCK_EX, false);
    close(shared);
    check_locked("closed by its holder", "shared", LOCK_EX, false);
    return tr_pass(NULL);
}
