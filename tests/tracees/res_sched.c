/* Scheduling per thread: policy, priority, nice, affinity, I/O priority, slack. */
#include "threads.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

struct plan {
    const char *name;
    int policy, priority, nice, ioprio, slack;
};

#define IOPRIO(class, level) ((class) << 13 | (level))

static const struct plan plans[] = {
    {"batch", SCHED_BATCH, 0, 7, IOPRIO(2, 3), 123456},
    {"idle", SCHED_IDLE, 0, 12, IOPRIO(3, 0), 50000},
    {"fifo", SCHED_FIFO, 3, 0, IOPRIO(1, 5), 0},
    {"round robin", SCHED_RR | SCHED_RESET_ON_FORK, 2, 0, IOPRIO(2, 7), 0},
    {"other", SCHED_OTHER, 0, 4, 0, 99999},
};
enum { PLANS = sizeof plans / sizeof plans[0] };

static volatile bool go;
static _Atomic int set_up;

static void body(struct tr_thread *t)
{
    const struct plan *p = t->arg;
    struct sched_param param = {p->priority}, got_param;
    cpu_set_t cpus, got_cpus;
    CPU_ZERO(&cpus);
    CPU_SET(t->index % 2 == 0 ? 0 : MUST((int)sysconf(_SC_NPROCESSORS_ONLN)) - 1, &cpus);
    MUST(setpriority(PRIO_PROCESS, 0, p->nice));
    MUST(sched_setaffinity(0, sizeof cpus, &cpus));
    MUST(syscall(SYS_ioprio_set, 1, 0, p->ioprio));
    if (p->slack != 0)
        MUST(prctl(PR_SET_TIMERSLACK, p->slack));
    MUST(sched_setscheduler(0, p->policy, &param));
    set_up++;
    while (!go)
        tr_sleep_ms(5);
    CHECK_EQ(p->name, p->policy, sched_getscheduler(0));
    MUST(sched_getparam(0, &got_param));
    CHECK_EQ("priority", p->priority, got_param.sched_priority);
    CHECK_EQ("nice", p->nice, getpriority(PRIO_PROCESS, 0));
    CHECK_EQ("I/O priority", p->ioprio, syscall(SYS_ioprio_get, 1, 0));
    MUST(sched_getaffinity(0, sizeof got_cpus, &got_cpus));
    CHECK(CPU_EQUAL(&cpus, &got_cpus), "%s: affinity changed", p->name);
    if (p->slack != 0)
        CHECK_EQ("timer slack", p->slack, prctl(PR_GET_TIMERSLACK));
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[PLANS];
    tr_init(argc, argv);
    for (int i = 0; i < PLANS; i++) {
        threads[i].index = i;
        tr_thread_start(&threads[i], body, (void *)&plans[i]);
    }
    while (set_up < PLANS)
        tr_sleep_ms(1);

    tr_hold();

    CHECK_EQ("policy of the main thread", SCHED_OTHER, sched_getscheduler(0));
    CHECK_EQ("nice of the main thread", 0, getpriority(PRIO_PROCESS, 0));
    go = true;
    for (int i = 0; i < PLANS; i++)
        tr_thread_join(&threads[i]);
    return tr_pass(NULL);
}
