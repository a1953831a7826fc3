/* A deep and broad tree: 5 levels, each process with its own memory and pid. */
#include "tracee.h"

/* Returns the number of processes below and including this one. */
static int grow(int level, int index)
{
    static uint64_t memory[1024];
    pid_t kids[2], me = getpid();
    int count = 1, status;
    if (level < 5)
        for (int i = 0; i < 2; i++) {
            kids[i] = tr_fork();
            if (kids[i] == 0)
                _exit(grow(level + 1, 2 * index + i));
        }
    tr_fill(memory, sizeof memory, (uint64_t)index);
    char name[32];
    snprintf(name, sizeof name, "up %d", index);
    tr_touch(name);
    tr_wait_go();
    tr_verify("memory of a process", memory, sizeof memory, (uint64_t)index);
    CHECK_EQ("pid", me, getpid());
    for (int i = 0; level < 5 && i < 2; i++) {
        CHECK_EQ("waitpid", kids[i], waitpid(kids[i], &status, 0));
        CHECK(WIFEXITED(status), "a process died: 0x%x", status);
        count += WEXITSTATUS(status);
    }
    return count;
}

int main(int argc, char **argv)
{
    char name[32];
    tr_init(argc, argv);
    pid_t child = tr_fork();
    if (child == 0)
        _exit(grow(1, 1));
    for (int i = 1; i < 32; i++) {
        snprintf(name, sizeof name, "up %d", i);
        tr_await(name);
    }

    tr_hold();

    tr_check_exit("tree of 31", child, 31 << 8);
    return tr_pass(NULL);
}
