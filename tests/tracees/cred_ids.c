/* User and group ids: distinct real, effective and saved ones, and groups. */
#include "threads.h"

#include <grp.h>
#include <sys/fsuid.h>

static volatile bool go;

static void check_ids(const char *who)
{
    uid_t r, e, s;
    gid_t groups[16];
    static const gid_t want[] = {7, 2000, 70000};
    MUST(getresuid(&r, &e, &s));
    CHECK(r == 1001 && e == 1002 && s == 1003, "%s: uids %u %u %u", who, r, e, s);
    MUST(getresgid(&r, &e, &s));
    CHECK(r == 2001 && e == 2002 && s == 2003, "%s: gids %u %u %u", who, r, e, s);
    CHECK_EQ("number of groups", 3, getgroups(16, groups));
    CHECK(memcmp(want, groups, sizeof want) == 0, "%s: groups %u %u %u", who, groups[0],
          groups[1], groups[2]);
    CHECK_EQ("fsuid", 1002, setfsuid((uid_t)-1));
    CHECK_EQ("fsgid", 2002, setfsgid((gid_t)-1));
}

static void body(struct tr_thread *t)
{
    (void)t;
    while (!go)
        tr_sleep_ms(5);
    check_ids("thread");
}

int main(int argc, char **argv)
{
    static struct tr_thread thread;
    tr_init(argc, argv);
    MUST(setgroups(3, (gid_t[]){7, 2000, 70000}));
    MUST(setresgid(2001, 2002, 2003));
    MUST(setresuid(1001, 1002, 1003));
    tr_thread_start(&thread, body, NULL);

    tr_hold();

    check_ids("main thread");
    go = true;
    tr_thread_join(&thread);
    CHECK(open("/etc/shadow", O_RDONLY) == -1 && errno == EACCES, "a file of root can be read");
    int fd = MUST(open(tr_path("mine"), O_CREAT | O_WRONLY, 0600));
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK_EQ("owner of a new file", 1002, st.st_uid);
    CHECK_EQ("group of a new file", 2002, st.st_gid);
    MUST(setresuid((uid_t)-1, 1003, (uid_t)-1));
    CHECK(setresuid((uid_t)-1, 0, (uid_t)-1) == -1 && errno == EPERM, "became root again");
    return tr_pass(NULL);
}
