/* Uses what no frame can hold: io_uring or userfaultfd. Says in `ready` that it does, or why not. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct io_uring_params params;
    char text[128];
    memset(&params, 0, sizeof params);
    long fd = argc > 1 && strcmp(argv[1], "io_uring") == 0 ? syscall(SYS_io_uring_setup, 8, &params) : syscall(SYS_userfaultfd, O_CLOEXEC);
    int n = snprintf(text, sizeof text, "%s", fd >= 0 ? "ok" : strerror(errno));
    int out = open("ready", O_CREAT | O_WRONLY, 0666);
    if (write(out, text, (size_t)n) != n || close(out) != 0)
        return 2;
    for (;;)
        pause();
}
