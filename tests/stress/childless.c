/* Has no children and is told of none: counts whatever child or SIGCHLD it is shown after all. "subreaper" makes it adopt orphans. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static _Atomic unsigned long signals, reaped, seen, polls;

static void on_child(int sig) { (void)sig, signals++; }

/* Returns when a child was given to it, or one existed. */
static void *waiter(void *arg)
{
    for (;; polls++) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL | WNOHANG);
        if (pid > 0)
            reaped++;
        else if (pid == 0)
            seen++;
    }
    return arg;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART};
    sigaction(SIGCHLD, &action, NULL);
    if (argc > 1 && strcmp(argv[1], "subreaper") == 0)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    pthread_t thread;
    pthread_create(&thread, NULL, waiter, NULL);
    for (;;) {
        char text[128];
        usleep(5000);
        snprintf(text, sizeof text, "%lu", polls);
        int fd = open(".beat", O_CREAT | O_TRUNC | O_WRONLY, 0666);
        if (write(fd, text, strlen(text)) < 0 || close(fd) != 0 || rename(".beat", "beat") != 0)
            return 2;
        if (signals + reaped + seen == 0)
            continue;
        snprintf(text, sizeof text, "%lu SIGCHLD, %lu children reaped, %lu times a child existed", signals, reaped, seen);
        fd = open(".failed", O_CREAT | O_TRUNC | O_WRONLY, 0666);
        if (write(fd, text, strlen(text)) < 0 || close(fd) != 0 || rename(".failed", "failed") != 0)
            return 2;
    }
}
