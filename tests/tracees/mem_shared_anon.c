/* Shared anonymous memory between parent, child and grandchild. */
#include "tracee.h"

#define WORDS (64 * TR_PAGE / 8)

struct board {
    _Atomic int turn;
    uint64_t words[WORDS];
};

/* Each waits for its number, changes the memory, passes the turn on. */
static void take_turn(struct board *b, int me)
{
    while (b->turn != me)
        tr_sleep_ms(1);
    tr_verify("what the one before wrote", b->words, WORDS * 8, (uint64_t)me);
    tr_fill(b->words, WORDS * 8, (uint64_t)me + 1);
    b->turn = me + 1;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    struct board *b = MUST((struct board *)mmap(NULL, sizeof *b + TR_PAGE,
                                                PROT_READ | PROT_WRITE,
                                                MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    /* The second half is mapped once more, read-only, at another address. */
    char *alias = MUST((char *)mremap(b, 0, sizeof *b + TR_PAGE, MREMAP_MAYMOVE));
    MUST(mprotect(alias, sizeof *b, PROT_READ));
    tr_fill(b->words, WORDS * 8, 2);
    pid_t child = tr_fork();
    if (child == 0) {
        pid_t grandchild = tr_fork();
        if (grandchild == 0) {
            tr_touch("up");
            take_turn(b, 3);
            _exit(0);
        }
        take_turn(b, 2);
        tr_check_exit("grandchild", grandchild, 0);
        _exit(0);
    }
    tr_await("up");

    tr_hold();

    tr_verify("shared memory", b->words, WORDS * 8, 2);
    b->turn = 2;
    while (b->turn != 4)
        tr_sleep_ms(1);
    tr_verify("what the grandchild wrote", b->words, WORDS * 8, 4);
    tr_verify("the same through the alias", ((struct board *)alias)->words, WORDS * 8, 4);
    tr_check_exit("child", child, 0);
    return tr_pass(NULL);
}
