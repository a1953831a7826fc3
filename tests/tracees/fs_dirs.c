/* umask and working directory, also a deleted one, per process. */
#include "tracee.h"

static void check_cwd(const char *want)
{
    char cwd[PATH_MAX];
    CHECK(getcwd(cwd, sizeof cwd) != NULL, "getcwd: %s", strerror(errno));
    tr_check_str("working directory", want, cwd);
}

int main(int argc, char **argv)
{
    char want[PATH_MAX], text[PATH_MAX] = "";
    tr_init(argc, argv);
    MUST(mkdir(tr_path("inner"), 0755));
    MUST(mkdir(tr_path("doomed"), 0755));
    snprintf(want, sizeof want, "%s", tr_path("inner"));
    umask(0137);
    MUST(chdir(want));
    pid_t child = tr_fork();
    if (child == 0) {
        umask(0);
        MUST(chdir(tr_path("doomed")));
        MUST(rmdir(tr_path("doomed")));
        tr_touch("up");
        tr_wait_go();
        CHECK_EQ("umask of the child", 0, umask(0));
        MUST(readlink("/proc/self/cwd", text, sizeof text - 1));
        CHECK(strstr(text, " (deleted)") != NULL, "deleted working directory: got %s", text);
        CHECK(open("file", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT,
              "a file could be created in the deleted directory");
        _exit(0);
    }
    tr_await("up");

    tr_hold();

    check_cwd(want);
    int fd = MUST(open("relative", O_CREAT | O_WRONLY, 0777));
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK_EQ("mode under the umask", 0640, st.st_mode & 0777);
    CHECK_EQ("file in the working directory", 0, access(tr_path("inner/relative"), F_OK));
    tr_check_exit("child", child, 0);
    CHECK(access(tr_path("doomed"), F_OK) == -1, "the deleted directory has its name back");
    return tr_pass(NULL);
}
