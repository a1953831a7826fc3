/* Every function with NULL, with handles that were freed, and with handles of another kind. Also compiled as C++. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stillframe.h"

static int checks;

static void expect(int line, int status, int wanted)
{
    checks++;
    if (status == wanted && (status == SF_OK || (sf_error_code() == status && *sf_error_message() != 0)))
        return;
    fprintf(stderr, "line %d: status %d, not %d: %s\n", line, status, wanted, sf_error_message());
    exit(1);
}

#define OK(call) expect(__LINE__, call, SF_OK)
#define WRONG(call) expect(__LINE__, call, SF_ERR_USAGE)

/* All functions that take a session, with one that is none. */
static void wrong_session(sf_session *session)
{
    uint64_t version;
    size_t len = 0;
    void *memory;
    int loaded;
    sf_ticket *ticket;
    WRONG(sf_resumed(session, &version));
    WRONG(sf_state(session, NULL, &len));
    WRONG(sf_region_alloc(session, "r", 1, &memory));
    WRONG(sf_region_add(session, "r", &len, sizeof len));
    WRONG(sf_region_load(session, "r", &loaded));
    WRONG(sf_region_exclude(session, "r", 0, 1));
    WRONG(sf_region_remove(session, "r"));
    if (sf_due(session) != 0 || sf_should_exit(session) != 0)
        exit(1);
    WRONG(sf_snapshot(session, NULL, 0, &ticket));
    WRONG(sf_snapshot_labelled(session, NULL, 0, "k", "v", &ticket));
    WRONG(sf_retain(session, 1));
    WRONG(sf_take_failure(session));
    WRONG(sf_close(session));
}

static void wrong_ticket(sf_ticket *ticket)
{
    struct sf_info info;
    int fd;
    memset(&info, 0, sizeof info);
    info.size = sizeof info;
    WRONG(sf_wait(ticket, SF_STORED, 0, &info));
    WRONG(sf_ticket_fd(ticket, &fd));
    WRONG(sf_ticket_info(ticket, &info));
    WRONG(sf_ticket_why(ticket, NULL, &info.size));
    WRONG(sf_cancel(ticket));
    if (ticket != NULL)
        WRONG(sf_ticket_free(ticket));
}

static void wrong_frame(sf_frame *frame)
{
    uint64_t version;
    struct sf_region region;
    size_t len = 0;
    char byte;
    WRONG(sf_frame_version(frame, &version));
    WRONG(sf_frame_region(frame, "r", &region));
    WRONG(sf_frame_region_name(frame, 0, NULL, &len));
    WRONG(sf_frame_read(frame, "r", 0, &byte, 1));
    WRONG(sf_frame_state(frame, NULL, &len));
    WRONG(sf_frame_label(frame, "k", NULL, &len));
    if (frame != NULL)
        WRONG(sf_frame_close(frame));
}

static void wrong_arguments(sf_session *session, sf_ticket *ticket, sf_frame *frame, const char *store)
{
    struct sf_options options = SF_OPTIONS_INIT;
    struct sf_info info;
    void *memory;
    memset(&info, 0, sizeof info);
    WRONG(sf_open(NULL, &options, NULL, &session));
    WRONG(sf_open("x", &options, NULL, NULL));
    WRONG(sf_open("not/a/name", &options, NULL, &session));
    if (session != NULL)
        exit(1);
    options.method = 77;
    WRONG(sf_open("x", &options, NULL, &session));
    options.method = SF_METHOD_AUTO;
    options.exit_on = "TERM, KILL";
    WRONG(sf_open("x", &options, NULL, &session));
    options.exit_on = NULL;
    options.size = 1;
    WRONG(sf_open("x", &options, NULL, &session));
    WRONG(sf_region_alloc(session, NULL, 1, &memory));
    WRONG(sf_wait(ticket, 9, 0, NULL));
    WRONG(sf_ticket_info(ticket, NULL));
    WRONG(sf_ticket_info(ticket, &info)); /* its size is not set */
    WRONG(sf_ticket_fd(ticket, NULL));
    WRONG(sf_ticket_why(ticket, NULL, NULL));
    WRONG(sf_frame_open(store, NULL, 0, &frame));
    WRONG(sf_frame_open(store, "misuse", 0, NULL));
}

/* NULL where an answer is to go, or where a name is needed. */
static void null_arguments(sf_session *session, sf_frame *frame)
{
    char text[16];
    size_t len = sizeof text;
    struct sf_region region;
    void *memory;
    WRONG(sf_resumed(session, NULL));
    WRONG(sf_state(session, text, NULL));
    WRONG(sf_region_alloc(session, "r", 1, NULL));
    WRONG(sf_region_alloc(session, NULL, 1, &memory));
    WRONG(sf_region_load(session, NULL, NULL));
    WRONG(sf_region_exclude(session, NULL, 0, 1));
    WRONG(sf_region_remove(session, NULL));
    WRONG(sf_frame_version(frame, NULL));
    WRONG(sf_frame_region(frame, NULL, &region));
    WRONG(sf_frame_region(frame, "bytes", NULL));
    WRONG(sf_frame_region_name(frame, 0, text, NULL));
    WRONG(sf_frame_read(frame, NULL, 0, text, 1));
    WRONG(sf_frame_read(frame, "bytes", 0, NULL, 1));
    WRONG(sf_frame_state(frame, text, NULL));
    WRONG(sf_frame_label(frame, NULL, text, &len));
    WRONG(sf_frame_label(frame, "key", text, NULL));
    OK(sf_frame_region_name(frame, 0, text, &len));
    if (len != 6 || strcmp(text, "bytes") != 0)
        exit(1);
    expect(__LINE__, sf_frame_region_name(frame, 2, text, &len), SF_ERR_NOT_FOUND);
    if (*sf_version() == 0)
        exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    if (*sf_error_message() != 0 || sf_error_code() != SF_OK)
        return 1;
    struct sf_options options = SF_OPTIONS_INIT;
    options.store = argv[1];
    sf_session *session, *other;
    sf_ticket *ticket;
    sf_frame *frame;
    void *memory, *again;
    char own[100];
    OK(sf_open("misuse", &options, NULL, &session));
    expect(__LINE__, sf_open("misuse", &options, NULL, &other), SF_ERR_HELD);
    OK(sf_region_alloc(session, "bytes", 10000, &memory));
    memset(memory, 7, 10000);
    WRONG(sf_region_alloc(session, "bytes", 1, &again));
    WRONG(sf_region_alloc(session, "none", 0, &again));
    WRONG(sf_region_alloc(session, NULL, 1, &again));
    WRONG(sf_region_alloc(session, "r", 1, NULL));
    WRONG(sf_region_add(session, NULL, own, sizeof own));
    WRONG(sf_region_add(session, "own", NULL, sizeof own));
    WRONG(sf_region_add(session, "own", own, 0));
    memset(own, 3, sizeof own);
    OK(sf_region_add(session, "own", own, sizeof own));
    OK(sf_region_load(session, "own", NULL));
    OK(sf_region_exclude(session, "bytes", 100, 100));
    OK(sf_region_exclude(session, "own", 10, 10));
    WRONG(sf_region_exclude(session, "bytes", 9999, 2));
    WRONG(sf_region_exclude(session, "bytes", 1, (size_t)-1));
    expect(__LINE__, sf_region_exclude(session, "nowhere", 0, 1), SF_ERR_NOT_FOUND);
    expect(__LINE__, sf_region_remove(session, "nowhere"), SF_ERR_NOT_FOUND);
    WRONG(sf_snapshot(session, NULL, 5, &ticket));
    WRONG(sf_retain(session, 0));
    OK(sf_snapshot_labelled(session, "state", 6, "key", "value", &ticket));
    struct sf_info info;
    memset(&info, 0, sizeof info);
    info.size = sizeof info;
    OK(sf_wait(ticket, SF_VERIFIED, -1, &info));
    if (info.version != 1 || info.level != SF_VERIFIED || info.bytes != 10100 - 110)
        return 1;
    OK(sf_frame_open(argv[1], "misuse", 0, &frame));
    expect(__LINE__, sf_frame_open(argv[1], "misuse", 9, &frame), SF_ERR_NOT_FOUND);
    OK(sf_frame_open(argv[1], "misuse", 1, &frame));

    uint64_t versions[2] = {0, 0};
    size_t count = 0;
    OK(sf_versions(argv[1], "misuse", NULL, &count));
    if (count != 1)
        return 1;
    count = 0;
    WRONG(sf_versions(argv[1], "misuse", versions, &count));
    WRONG(sf_versions(argv[1], NULL, versions, &count));
    WRONG(sf_versions(argv[1], "misuse", versions, NULL));
    count = 2;
    OK(sf_versions(argv[1], "misuse", versions, &count));
    if (count != 1 || versions[0] != 1)
        return 1;
    OK(sf_take_failure(session));
    char why[512];
    count = sizeof why;
    OK(sf_ticket_why(ticket, why, &count));
    if (count < 2 || strlen(why) + 1 != count)
        return 1;

    char text[16];
    size_t len = sizeof text;
    OK(sf_frame_state(frame, text, &len));
    if (len != 6 || strcmp(text, "state") != 0)
        return 1;
    len = 2;
    WRONG(sf_frame_state(frame, text, &len));
    len = sizeof text;
    OK(sf_frame_label(frame, "key", text, &len));
    expect(__LINE__, sf_frame_label(frame, "none", text, &len), SF_ERR_NOT_FOUND);
    struct sf_region region;
    OK(sf_frame_region(frame, "bytes", &region));
    char *copy = (char *)malloc(10000);
    OK(sf_frame_read(frame, "bytes", 0, copy, region.len));
    for (int at = 0; at < 10000; at++)
        if (copy[at] != (at >= 100 && at < 200 ? 0 : 7))
            return 1;
    free(copy);
    WRONG(sf_frame_read(frame, "bytes", 9999, text, 2));
    WRONG(sf_frame_read(frame, "bytes", 0, NULL, 2));

    wrong_session(NULL);
    wrong_session((sf_session *)ticket);
    wrong_session((sf_session *)&region);
    wrong_ticket(NULL);
    wrong_ticket((sf_ticket *)frame);
    wrong_frame(NULL);
    wrong_frame((sf_frame *)session);
    wrong_arguments(NULL, ticket, frame, argv[1]);
    null_arguments(session, frame);
    OK(sf_ticket_free(NULL));
    OK(sf_frame_close(NULL));

    int outcome;
    struct sf_whole whole = SF_WHOLE_INIT;
    whole.store = argv[1];
    if (sf_checkpoint_pid(-5, &whole, NULL) == SF_OK || *sf_error_message() == 0)
        return 1;
    WRONG(sf_checkpoint_self(&whole, NULL));
    WRONG(sf_restore(NULL, &whole, &outcome));
    whole.size = 3;
    WRONG(sf_checkpoint_self(&whole, &outcome));
    WRONG(sf_checkpoint_pid(1, &whole, NULL));
    WRONG(sf_restore("x", &whole, &outcome));

    OK(sf_region_remove(session, "own"));
    OK(sf_ticket_free(ticket));
    wrong_ticket(ticket);
    OK(sf_frame_close(frame));
    wrong_frame(frame);
    OK(sf_close(session));
    wrong_session(session);

    options.exit_on = "TERM,USR2";
    options.snapshot_on = "SIGHUP";
    OK(sf_open("misuse", &options, NULL, &session));
    if (sf_due(session) || sf_should_exit(session) || raise(SIGHUP) != 0 || !sf_due(session) || sf_should_exit(session))
        return 1;
    if (raise(SIGTERM) != 0 || !sf_should_exit(session))
        return 1;
    struct sf_options twin = SF_OPTIONS_INIT;
    twin.store = argv[1];
    twin.resume = SF_RESUME_VERSION;
    twin.version = 1;
    twin.origin = "misuse";
    OK(sf_open("another", &twin, NULL, &other));
    len = sizeof text;
    OK(sf_state(other, text, &len));
    if (len != 6 || strcmp(text, "state") != 0)
        return 1;
    OK(sf_close(other));
    OK(sf_region_add(session, "own", own, sizeof own));
    memset(own, 1, sizeof own);
    int loaded = 0;
    OK(sf_region_load(session, "own", &loaded));
    for (int at = 0; at < 100; at++)
        if (!loaded || own[at] != (at >= 10 && at < 20 ? 1 : 3))
            return 1;
    OK(sf_close(session));
    printf("%d checks\n", checks);
    return 0;
}
