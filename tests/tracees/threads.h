/* Starting threads and knowing that they are blocked where they should be. */
#ifndef TRACEE_THREADS_H
#define TRACEE_THREADS_H

#include "tracee.h"

struct tr_thread {
    pthread_t handle;
    _Atomic pid_t tid;
    void (*body)(struct tr_thread *self);
    int index;
    void *arg;
};

static inline void *tr_thread_main(void *p)
{
    struct tr_thread *t = p;
    t->tid = tr_gettid();
    t->body(t);
    return NULL;
}

/* Returns when the thread runs and its tid is known. */
static inline void tr_thread_start(struct tr_thread *t, void (*body)(struct tr_thread *), void *arg)
{
    t->body = body;
    t->arg = arg;
    t->tid = 0;
    int err = pthread_create(&t->handle, NULL, tr_thread_main, t);
    CHECK(err == 0, "pthread_create: %s", strerror(err));
    while (t->tid == 0)
        tr_sleep_ms(1);
}

static inline void tr_thread_join(struct tr_thread *t)
{
    int err = pthread_join(t->handle, NULL);
    CHECK(err == 0, "pthread_join: %s", strerror(err));
}

#endif
