/* A pty pair in one process: termios, window size, typed and printed bytes. */
#include "tracee.h"

#include <poll.h>
#include <pty.h>
#include <termios.h>

static void check_text(const char *what, int fd, const char *want)
{
    char buf[64] = "";
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1, "%s: nothing to read", what);
    MUST(read(fd, buf, sizeof buf - 1));
    tr_check_str(what, want, buf);
}

int main(int argc, char **argv)
{
    int master, slave;
    char name[64], now[64];
    struct winsize size = {33, 101, 640, 480}, got_size;
    struct termios want, got;
    tr_init(argc, argv);
    MUST(openpty(&master, &slave, name, NULL, &size));
    MUST(tcgetattr(slave, &want));
    want.c_lflag &= ~(tcflag_t)ECHO;
    want.c_cc[VEOF] = 'Q';
    want.c_cc[VINTR] = 7;
    want.c_oflag &= ~(tcflag_t)ONLCR;
    MUST(tcsetattr(slave, TCSANOW, &want));
    MUST(tcgetattr(slave, &want));
    MUST(fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK));
    CHECK_EQ("write", 6, write(master, "typed\n", 6));
    CHECK_EQ("write", 7, write(slave, "printed", 7));
    long long born = tr_start_time();

    tr_hold();

    CHECK_EQ("ptsname", 0, ptsname_r(master, now, sizeof now));
    tr_check_str("name of the slave", name, now);
    tr_check_str("name by ttyname", name, ttyname(slave) ? ttyname(slave) : "none");
    MUST(tcgetattr(slave, &got));
    CHECK_EQ("c_iflag", want.c_iflag, got.c_iflag);
    CHECK_EQ("c_oflag", want.c_oflag, got.c_oflag);
    CHECK_EQ("c_lflag", want.c_lflag, got.c_lflag);
    CHECK_EQ("c_cflag", want.c_cflag, got.c_cflag);
    CHECK(memcmp(want.c_cc, got.c_cc, NCCS) == 0, "control characters changed");
    MUST(ioctl(master, TIOCGWINSZ, &got_size));
    CHECK(memcmp(&size, &got_size, sizeof size) == 0, "window size: got %dx%d",
          got_size.ws_row, got_size.ws_col);
    CHECK(fcntl(master, F_GETFL) & O_NONBLOCK, "the master is no longer non-blocking");
    /* Bytes under way cannot be read without being taken: a frame does not hold them. */
    if (tr_start_time() == born) {
        check_text("typed before", slave, "typed\n");
        check_text("printed before", master, "printed");
    }
    CHECK_EQ("write", 6, write(master, "again\n", 6));
    check_text("typed after", slave, "again\n");
    CHECK_EQ("write", 7, write(slave, "reprint", 7));
    check_text("printed after", master, "reprint");
    close(slave);
    CHECK(read(master, now, 1) == -1 && errno == EIO, "master after the slave closed: %s",
          strerror(errno));
    return tr_pass(NULL);
}
