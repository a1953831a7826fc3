/* Restartable sequences stay registered: the kernel keeps cpu_id up to date. */
#include "threads.h"

#include <sched.h>
#include <sys/rseq.h>

static volatile bool go;

static struct rseq *area(void)
{
    return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void check_cpu(const char *who)
{
    volatile struct rseq *r = area();
    cpu_set_t old, one;
    MUST(sched_getaffinity(0, sizeof old, &old));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &old))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        MUST(sched_setaffinity(0, sizeof one, &one));
        CHECK((int)r->cpu_id == cpu, "%s: rseq cpu_id expected %d, got %d", who, cpu,
              (int)r->cpu_id);
    }
    MUST(sched_setaffinity(0, sizeof old, &old));
    /* A second registration must be refused: there is one already. */
    static char other[64] __attribute__((aligned(64)));
    CHECK(syscall(SYS_rseq, other, 32, 0, 0x53053053) == -1, "%s: rseq was not registered", who);
}

static void body(struct tr_thread *t)
{
    (void)t;
    while (!go)
        tr_sleep_ms(5);
    check_cpu("thread");
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[4];
    tr_init(argc, argv);
    if (__rseq_size == 0) {
        tr_hold();
        return tr_pass("skipped: libc has not registered rseq");
    }
    for (int i = 0; i < 4; i++)
        tr_thread_start(&threads[i], body, NULL);

    tr_hold();

    check_cpu("main thread");
    go = true;
    for (int i = 0; i < 4; i++)
        tr_thread_join(&threads[i]);
    return tr_pass(NULL);
}
