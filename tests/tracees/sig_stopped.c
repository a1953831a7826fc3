/* Stopped children: they stay stopped, the parent's wait reports, SIGCONT continues. */
#include "tracee.h"

static volatile int continued;

static void on_cont(int sig)
{
    (void)sig;
    continued++;
}

static char state_of(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    tr_slurp(path, text, sizeof text);
    return strrchr(text, ')')[2];
}

static pid_t start(const char *up)
{
    pid_t pid = tr_fork();
    if (pid != 0) {
        tr_await(up);
        return pid;
    }
    struct sigaction sa = {.sa_handler = on_cont};
    MUST(sigaction(SIGCONT, &sa, NULL));
    tr_touch(up);
    while (continued == 0)
        tr_sleep_ms(5);
    _exit(40 + continued);
}

int main(int argc, char **argv)
{
    int status;
    tr_init(argc, argv);
    pid_t noticed = start("up1"), fresh = start("up2");
    MUST(kill(noticed, SIGSTOP));
    CHECK_EQ("waitpid", noticed, waitpid(noticed, &status, WUNTRACED));
    CHECK_EQ("stopped by SIGSTOP", 0x137f, status);
    MUST(kill(fresh, SIGSTOP));
    while (state_of(fresh) != 'T')
        tr_sleep_ms(1);

    tr_hold();

    CHECK_EQ("state of the first child", 'T', state_of(noticed));
    CHECK_EQ("state of the second child", 'T', state_of(fresh));
    CHECK_EQ("waitpid", fresh, waitpid(fresh, &status, WUNTRACED));
    CHECK_EQ("the stop nobody waited for yet", 0x137f, status);
    MUST(kill(noticed, SIGCONT));
    MUST(kill(fresh, SIGCONT));
    tr_check_exit("first child", noticed, 41 << 8);
    tr_check_exit("second child", fresh, 41 << 8);
    return tr_pass(NULL);
}
