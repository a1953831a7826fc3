/* A deeply grown stack, and a MAP_GROWSDOWN mapping that goes on growing. */
#include "vma.h"

static char *grow;

__attribute__((noinline)) static uint64_t descend(unsigned depth)
{
    volatile uint64_t frame[64];
    uint64_t sum;
    for (unsigned i = 0; i < 64; i++)
        frame[i] = tr_mix(depth * 64 + i);
    if (depth == 0) {
        tr_hold();
        sum = 0;
    } else {
        sum = descend(depth - 1);
    }
    for (unsigned i = 0; i < 64; i++)
        CHECK(frame[i] == tr_mix(depth * 64 + i), "stack frame at depth %u changed", depth);
    return sum + 1;
}

/* Touches well below what was touched before the checkpoint. */
__attribute__((noinline)) static uint64_t deeper(unsigned depth)
{
    volatile char frame[4096];
    frame[0] = (char)depth;
    return depth == 0 ? 1 : deeper(depth - 1) + (frame[0] == (char)depth);
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    /* Room for the mapping to grow into: reserve it, then unmap the lower part. */
    char *area = tr_anon(4096 * TR_PAGE, PROT_NONE);
    MUST(munmap(area, 4096 * TR_PAGE));
    grow = MUST(mmap(area + 4094 * TR_PAGE, TR_PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
    for (int i = 0; i < 20; i++)
        tr_fill(grow - i * (long)TR_PAGE, TR_PAGE, 500 + i);

    CHECK_EQ("frames returned through", 2001, descend(2000));

    for (int i = 0; i < 20; i++)
        tr_verify("MAP_GROWSDOWN page", grow - i * (long)TR_PAGE, TR_PAGE, 500 + i);
    tr_check_flag("MAP_GROWSDOWN", grow, "gd", true);
    for (int i = 20; i < 40; i++)
        tr_fill(grow - i * (long)TR_PAGE, TR_PAGE, 500 + i);
    for (int i = 0; i < 40; i++)
        tr_verify("MAP_GROWSDOWN page grown later", grow - i * (long)TR_PAGE, TR_PAGE, 500 + i);
    CHECK_EQ("main stack grows further", 1201, deeper(1200));
    struct tr_vma v;
    int local = 0;
    CHECK(tr_vma_find(&local, &v), "no stack mapping");
    tr_check_str("name of the stack mapping", "[stack]", v.name);
    return tr_pass(NULL);
}
