/* Named pipes: bytes inside, opened for reading and writing, also deleted. */
#include "tracee.h"

int main(int argc, char **argv)
{
    char buf[16] = "";
    tr_init(argc, argv);
    MUST(mkfifo(tr_path("fifo"), 0600));
    MUST(mkfifo(tr_path("gone"), 0600));
    int r = MUST(open(tr_path("fifo"), O_RDONLY | O_NONBLOCK));
    int w = MUST(open(tr_path("fifo"), O_WRONLY));
    int both = MUST(open(tr_path("gone"), O_RDWR));
    MUST(unlink(tr_path("gone")));
    CHECK_EQ("write", 6, write(w, "inside", 6));
    CHECK_EQ("write", 7, write(both, "deleted", 7));

    tr_hold();

    CHECK_EQ("flags", O_RDONLY | O_NONBLOCK, fcntl(r, F_GETFL) & ~0x8000 /* O_LARGEFILE */);
    int again = MUST(open(tr_path("fifo"), O_WRONLY | O_NONBLOCK));
    CHECK_EQ("write by the name", 5, write(again, " more", 5));
    CHECK_EQ("read", 11, read(r, buf, 15));
    tr_check_str("bytes of the fifo", "inside more", buf);
    close(w);
    close(again);
    CHECK_EQ("end of file", 0, read(r, buf, 15));
    memset(buf, 0, sizeof buf);
    CHECK_EQ("read of the deleted fifo", 7, read(both, buf, 15));
    tr_check_str("bytes of the deleted fifo", "deleted", buf);
    CHECK(access(tr_path("gone"), F_OK) == -1, "the deleted fifo has its name back");
    return tr_pass(NULL);
}
