/* Whole processes: another one with progress and cancellation, then this very one, with a session open. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "stillframe.h"

struct calls {
    int before, after, restored, progress, stop;
    double seconds;
};

#define CHECK(what)                                                                  \
    do {                                                                             \
        if (!(what)) {                                                               \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, sf_error_message()); \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

static int before(void *user)
{
    ((struct calls *)user)->before++;
    return ((struct calls *)user)->stop;
}

static void after(void *user)
{
    ((struct calls *)user)->after++;
}

static void restored(void *user)
{
    ((struct calls *)user)->restored++;
}

static int progress(void *user, const struct sf_progress *at)
{
    struct calls *calls = user;
    CHECK(at->size == sizeof *at && at->done <= at->total && at->seconds >= calls->seconds);
    calls->seconds = at->seconds;
    calls->progress++;
    return calls->stop;
}

/* A process that does nothing, in a session of its own. */
static pid_t sleeper(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        for (;;)
            pause();
    }
    CHECK(pid > 0);
    return pid;
}

static void await(const char *path)
{
    for (int tries = 0; access(path, F_OK) != 0; tries++) {
        CHECK(tries < 6000);
        nanosleep(&(struct timespec){0, 10 * 1000 * 1000}, NULL);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 2 && chdir(argv[1]) == 0);
    struct calls calls;
    memset(&calls, 0, sizeof calls);
    const char *close[] = {"--external", "close", "--compress", "none", NULL}, *apart[] = {"--isolate", NULL};
    struct sf_whole how = SF_WHOLE_INIT, back = SF_WHOLE_INIT;
    how.store = back.store = "store";
    how.name = "whole";
    how.arguments = close;
    how.user = &calls;
    how.before = before;
    how.after = after;
    how.restored = restored;
    how.progress = progress;
    back.arguments = apart;

    uint64_t version = 0;
    int32_t second = 0;
    pid_t pid = sleeper();
    CHECK(sf_checkpoint_pid(pid, &how, &version) == SF_OK && version == 1 && calls.progress > 0 && calls.before == 0);
    calls.stop = 1;
    calls.seconds = 0;
    CHECK(sf_checkpoint_pid(pid, &how, NULL) == SF_ERR_CANCELLED && kill(pid, 0) == 0);
    CHECK(sf_restore("whole@1", &back, &second) == SF_OK && kill(second, SIGKILL) == 0);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);

    sf_session *session;
    void *memory;
    int outcome = 0;
    struct sf_options options = SF_OPTIONS_INIT;
    options.store = "store";
    CHECK(sf_open("session", &options, NULL, &session) == SF_OK && sf_region_alloc(session, "r", 4096, &memory) == SF_OK);
    CHECK(sf_checkpoint_self(&how, &outcome) == SF_ERR_CANCELLED && calls.before == 1 && calls.after == 0);
    calls.stop = 0;
    CHECK(sf_checkpoint_self(&how, &outcome) == SF_OK && calls.before == 2);
    if (outcome == SF_RESTORED) {
        CHECK(calls.restored == 1 && calls.after == 0 && sf_snapshot(session, NULL, 0, NULL) == SF_ERR_HELD);
        FILE *word = fopen("second", "w");
        CHECK(word != NULL && fclose(word) == 0);
        return 0;
    }
    CHECK(outcome == SF_SAVED && calls.after == 1 && calls.restored == 0 && sf_snapshot(session, NULL, 0, NULL) == SF_OK);
    CHECK(sf_restore("whole", &back, NULL) == SF_OK);
    await("second");
    CHECK(sf_close(session) == SF_OK);
    printf("all is well\n");
    return 0;
}
