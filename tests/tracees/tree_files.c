/* A child sharing the descriptor table and directories; another the former only. */
#include "clones.h"

static int body(void *arg)
{
    (void)arg;
    tr_touch("up");
    tr_await("child.go");
    /* Seen by the parent: both tables are one. */
    MUST(dup2(MUST(open("/dev/zero", O_RDONLY)), 77));
    MUST(chdir("/proc"));
    umask(0123);
    _exit(0);
}

static int apart(void *arg)
{
    (void)arg;
    tr_touch("apart.up");
    tr_await("child.go");
    MUST(chdir("/dev"));
    _exit(0);
}

int main(int argc, char **argv)
{
    char cwd[PATH_MAX];
    tr_init(argc, argv);
    MUST(chdir("/"));
    umask(022);
    pid_t child = tr_clone(body, NULL, CLONE_FILES | CLONE_FS);
    pid_t other = tr_clone(apart, NULL, CLONE_FILES);
    tr_await("up");
    tr_await("apart.up");

    tr_hold();

    tr_check_shared(child, KCMP_FILES, "descriptors of the first", true);
    tr_check_shared(child, KCMP_FS, "directories of the first", true);
    tr_check_shared(child, KCMP_VM, "memory of the first", false);
    tr_check_shared(other, KCMP_FILES, "descriptors of the second", true);
    tr_check_shared(other, KCMP_FS, "directories of the second", false);
    tr_touch("child.go");
    tr_check_exit("first child", child, 0);
    tr_check_exit("second child", other, 0);
    CHECK(fcntl(77, F_GETFD) == 0, "the child's descriptor is not here");
    CHECK(getcwd(cwd, sizeof cwd) != NULL, "getcwd: %s", strerror(errno));
    tr_check_str("directory set by the child", "/proc", cwd);
    CHECK_EQ("umask set by the child", 0123, umask(0));
    return tr_pass(NULL);
}
