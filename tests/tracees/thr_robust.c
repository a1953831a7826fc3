/* Robust mutexes: the kernel still knows the list of a restored thread. */
#include "threads.h"

enum { HOLDERS = 4 };

static pthread_mutex_t locks[HOLDERS];
static volatile bool die;

static void holder(struct tr_thread *t)
{
    CHECK_EQ("lock", 0, pthread_mutex_lock(&locks[t->index]));
    while (!die)
        tr_sleep_ms(5);
    /* Ends without unlocking. */
}

static void check_list(pid_t tid, bool want)
{
    void *head = NULL;
    size_t len = 0;
    MUST(syscall(SYS_get_robust_list, tid, &head, &len));
    CHECK((head != NULL) == want, "robust list of %d: got %p", (int)tid, head);
    CHECK_EQ("robust list head size", 24, len);
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[HOLDERS];
    pthread_mutexattr_t attr;
    tr_init(argc, argv);
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    for (int i = 0; i < HOLDERS; i++) {
        pthread_mutex_init(&locks[i], &attr);
        threads[i].index = i;
        tr_thread_start(&threads[i], holder, NULL);
        while (pthread_mutex_trylock(&locks[i]) == 0) {
            pthread_mutex_unlock(&locks[i]);
            tr_sleep_ms(1);
        }
    }

    tr_hold();

    check_list(0, true);
    for (int i = 0; i < HOLDERS; i++) {
        check_list(threads[i].tid, true);
        CHECK_EQ("trylock of a held mutex", EBUSY, pthread_mutex_trylock(&locks[i]));
    }
    die = true;
    for (int i = 0; i < HOLDERS; i++) {
        CHECK_EQ("lock after the holder died", EOWNERDEAD, pthread_mutex_lock(&locks[i]));
        CHECK_EQ("consistent", 0, pthread_mutex_consistent(&locks[i]));
        CHECK_EQ("unlock", 0, pthread_mutex_unlock(&locks[i]));
        tr_thread_join(&threads[i]);
    }
    return tr_pass(NULL);
}
