/* A file that never had a name (O_TMPFILE), which can still be given one. */
#include "tracee.h"

int main(int argc, char **argv)
{
    char self[64], buf[16] = "";
    tr_init(argc, argv);
    int fd = open(tr_dir, O_TMPFILE | O_RDWR, 0600);
    if (fd < 0) {
        tr_hold();
        return tr_pass("skipped: no O_TMPFILE here");
    }
    CHECK_EQ("write", 7, write(fd, "unnamed", 7));
    int again = MUST(dup(fd));

    tr_hold();

    CHECK_EQ("offset", 7, lseek(again, 0, SEEK_CUR));
    CHECK_EQ("pread", 7, pread(fd, buf, 15, 0));
    tr_check_str("content", "unnamed", buf);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    MUST(linkat(AT_FDCWD, self, AT_FDCWD, tr_path("named"), AT_SYMLINK_FOLLOW));
    CHECK_EQ("access", 0, access(tr_path("named"), R_OK));
    return tr_pass(NULL);
}
