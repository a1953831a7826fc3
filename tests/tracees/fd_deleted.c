/* Open files without their name: deleted, linked elsewhere, renamed, replaced. */
#include "tracee.h"

static int make(const char *name, const char *text)
{
    int fd = MUST(open(tr_path(name), O_RDWR | O_CREAT | O_EXCL, 0604));
    CHECK_EQ("write", (ssize_t)strlen(text), write(fd, text, strlen(text)));
    return fd;
}

static void check_text(const char *what, int fd, const char *want)
{
    char buf[64] = "";
    MUST(pread(fd, buf, sizeof buf - 1, 0));
    tr_check_str(what, want, buf);
}

int main(int argc, char **argv)
{
    static uint64_t big[1 << 17];
    struct stat st, other;
    tr_init(argc, argv);
    int gone = make("gone", "deleted content");
    int linked = make("linked", "linked content");
    int replaced = make("replaced", "old content");
    int renamed = make("renamed", "renamed content");
    int large = make("large", "");
    MUST(fchmod(gone, 0604));
    MUST(unlink(tr_path("gone")));
    int gone_too = MUST(open("/dev/null", O_RDONLY));
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", gone);
    MUST(dup2(MUST(open(self, O_RDONLY)), gone_too));
    MUST(link(tr_path("linked"), tr_path("elsewhere")));
    MUST(unlink(tr_path("linked")));
    MUST(unlink(tr_path("replaced")));
    close(make("replaced", "new content"));
    MUST(rename(tr_path("renamed"), tr_path("new name")));
    tr_fill(big, sizeof big, 3);
    /* A sparse megabyte, then data. */
    MUST(lseek(large, 1 << 20, SEEK_SET));
    CHECK_EQ("write", sizeof big, write(large, big, sizeof big));
    MUST(unlink(tr_path("large")));
    MUST(lseek(gone, 8, SEEK_SET));

    tr_hold();

    check_text("deleted file", gone, "deleted content");
    check_text("deleted file, opened again", gone_too, "deleted content");
    check_text("linked elsewhere", linked, "linked content");
    check_text("replaced file", replaced, "old content");
    check_text("renamed file", renamed, "renamed content");
    CHECK_EQ("offset", 8, lseek(gone, 0, SEEK_CUR));
    MUST(fstat(gone, &st));
    CHECK_EQ("links of the deleted file", 0, st.st_nlink);
    CHECK_EQ("mode of the deleted file", 0100604, st.st_mode);
    CHECK(access(tr_path("gone"), F_OK) == -1, "the deleted file has its name back");
    MUST(fstat(linked, &st));
    MUST(stat(tr_path("elsewhere"), &other));
    CHECK_EQ("inode of the other link", other.st_ino, st.st_ino);
    CHECK_EQ("links", 1, other.st_nlink);
    CHECK_EQ("pwrite", 3, pwrite(gone, "DEL", 3, 0));
    check_text("two descriptions, one file", gone_too, "DELeted content");
    CHECK_EQ("size of the large file", (1 << 20) + sizeof big, lseek(large, 0, SEEK_END));
    CHECK_EQ("pread", sizeof big, pread(large, big, sizeof big, 1 << 20));
    tr_verify("large deleted file", big, sizeof big, 3);
    int fd = MUST(open(tr_path("replaced"), O_RDONLY));
    check_text("the file that replaced", fd, "new content");
    return tr_pass(NULL);
}
