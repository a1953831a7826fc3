/* A changed root directory, with the working directory inside. */
#include "tracee.h"

int main(int argc, char **argv)
{
    char cwd[PATH_MAX];
    tr_init(argc, argv);
    MUST(mkdir(tr_path("sub"), 0755));
    MUST(chroot(tr_dir));
    MUST(chdir("/sub"));
    /* Reports go to the scratch directory, which is now the root. */
    strcpy(tr_dir, "/");
    close(MUST(open("/marker", O_CREAT | O_WRONLY, 0600)));

    tr_hold();

    CHECK_EQ("file at the root", 0, access("/marker", F_OK));
    CHECK_EQ("the root's parent is the root", 0, access("/../../marker", F_OK));
    CHECK(access("/etc/passwd", F_OK) == -1, "the old root can be seen");
    CHECK(getcwd(cwd, sizeof cwd) != NULL, "getcwd: %s", strerror(errno));
    tr_check_str("working directory", "/sub", cwd);
    return tr_pass(NULL);
}
