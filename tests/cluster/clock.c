/* Moves the wall clock of a program by as many seconds as the file $STILLFRAME_TEST_CLOCK says (eight bytes), which may change while it
 * runs. To be preloaded; what the program starts has the true time again. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *offset;

__attribute__((constructor)) static void begin(void)
{
    /* Whoever starts the program is preloaded too. */
    const char *path = strcmp(program_invocation_short_name, "stillframe") ? NULL : getenv("STILLFRAME_TEST_CLOCK");
    if (!path)
        return;
    unsetenv("LD_PRELOAD");
    int fd = open(path, O_RDONLY);
    void *at = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (fd < 0 || at == MAP_FAILED)
        abort();
    offset = at;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && offset && id == CLOCK_REALTIME)
        now->tv_sec += *offset;
    return failed;
}
