/* A session on a pty: controlling terminal, foreground group, ^C, ^Z, hang-up. */
#include "tracee.h"

#include <pty.h>
#include <termios.h>

static volatile int interrupted, hung_up;

static void on_int(int sig)
{
    (void)sig;
    interrupted++;
}

static void on_hup(int sig)
{
    (void)sig;
    hung_up++;
}

/* A background job; it must not see the ^C. */
static void background(void)
{
    tr_await("jobs.end");
    _exit(interrupted == 0 ? 0 : 9);
}

static void foreground(void)
{
    tr_touch("fg.up");
    while (interrupted == 0)
        tr_sleep_ms(5);
    CHECK_EQ("foreground group from the job", getpgrp(), tcgetpgrp(0));
    _exit(21);
}

static void session(const char *slave)
{
    setsid();
    int fd = MUST(open(slave, O_RDWR));
    MUST(ioctl(fd, TIOCSCTTY, 0));
    MUST(dup2(fd, 0));
    close(fd);
    pid_t bg = tr_fork();
    if (bg == 0)
        background();
    MUST(setpgid(bg, bg));
    pid_t fg = tr_fork();
    if (fg == 0) {
        tr_await("fg.set");
        foreground();
    }
    MUST(setpgid(fg, fg));
    MUST(tcsetpgrp(0, fg));
    tr_touch("fg.set");
    tr_await("fg.up");
    tr_touch("session.up");
    tr_check_exit("foreground job", fg, 21 << 8);
    CHECK_EQ("the leader saw no ^C", 0, interrupted);
    CHECK_EQ("session of the terminal", getpid(), tcgetsid(0));
    int tty = MUST(open("/dev/tty", O_RDWR));
    close(tty);
    tr_touch("jobs.end");
    tr_check_exit("background job", bg, 0);
    tr_touch("hang.up");
    while (hung_up == 0)
        tr_sleep_ms(5);
    _exit(22);
}

int main(int argc, char **argv)
{
    int master;
    char name[64];
    tr_init(argc, argv);
    MUST((long)signal(SIGINT, on_int));
    MUST((long)signal(SIGHUP, on_hup));
    master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
    MUST(grantpt(master));
    MUST(unlockpt(master));
    CHECK_EQ("ptsname", 0, ptsname_r(master, name, sizeof name));
    pid_t leader = tr_fork();
    if (leader == 0) {
        close(master);
        session(name);
    }
    tr_await("session.up");
    pid_t group = MUST(tcgetpgrp(master));

    tr_hold();

    CHECK_EQ("foreground group from the master", group, tcgetpgrp(master));
    CHECK_EQ("session from the master", leader, tcgetsid(master));
    CHECK_EQ("write ^C", 1, write(master, "\003", 1));
    tr_await("hang.up");
    close(master);
    tr_check_exit("session leader", leader, 22 << 8);
    return tr_pass(NULL);
}
