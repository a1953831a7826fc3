/* Threads blocked on a condition, a mutex, a timed condition and a semaphore. */
#include "threads.h"

#include <semaphore.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t sem;
static bool flag;
static _Atomic int passed, early;

static void wait_cond(struct tr_thread *t)
{
    (void)t;
    pthread_mutex_lock(&lock);
    while (!flag)
        pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
    passed++;
}

static void wait_mutex(struct tr_thread *t)
{
    (void)t;
    pthread_mutex_lock(&held);
    pthread_mutex_unlock(&held);
    passed++;
}

static void wait_sem(struct tr_thread *t)
{
    (void)t;
    /* sem_wait gives EINTR when a signal handler ran; none does here. */
    if (sem_wait(&sem) != 0)
        early++;
    passed++;
}

static void wait_timed(struct tr_thread *t)
{
    struct timespec until;
    pthread_mutex_t own = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 2;
    pthread_mutex_lock(&own);
    int err;
    do
        err = pthread_cond_timedwait(&never, &own, &until);
    while (err == 0);
    CHECK_EQ("timed condition", ETIMEDOUT, err);
    if (tr_now_ns(CLOCK_REALTIME) < until.tv_sec * 1000000000LL + until.tv_nsec)
        early++;
    (void)t;
    passed++;
}

/* FUTEX_WAIT with a relative timeout, raw: EINTR would show. */
static void wait_relative(struct tr_thread *t)
{
    (void)t;
    uint32_t word = 5;
    struct timespec rel = {2, 0};
    long long start = tr_now_ns(CLOCK_MONOTONIC);
    long r = syscall(SYS_futex, &word, 0 /* FUTEX_WAIT */, 5, &rel, NULL, 0);
    CHECK(r == -1 && errno == ETIMEDOUT, "FUTEX_WAIT with timeout: %ld, %s", r, strerror(errno));
    if (tr_now_ns(CLOCK_MONOTONIC) - start < 2000000000LL)
        early++;
    passed++;
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[9];
    static void (*const bodies[])(struct tr_thread *) = {
        wait_cond, wait_cond,  wait_cond,     wait_mutex, wait_mutex,
        wait_sem,  wait_timed, wait_relative, wait_relative,
    };
    tr_init(argc, argv);
    sem_init(&sem, 0, 0);
    pthread_mutex_lock(&held);
    for (int i = 0; i < 9; i++)
        tr_thread_start(&threads[i], bodies[i], NULL);
    for (int i = 0; i < 6; i++)
        tr_await_syscall(threads[i].tid, SYS_futex);

    tr_hold();

    CHECK(passed <= 3, "a thread left its wait by itself: %d passed", passed);
    pthread_mutex_lock(&lock);
    flag = true;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&held);
    sem_post(&sem);
    for (int i = 0; i < 9; i++)
        tr_thread_join(&threads[i]);
    CHECK_EQ("threads that passed", 9, passed);
    CHECK_EQ("waits that ended early", 0, early);
    return tr_pass(NULL);
}
