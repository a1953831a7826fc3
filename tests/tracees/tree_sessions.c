/* Sessions and process groups over three generations, one with a dead leader. */
#include "tracee.h"

struct ids {
    pid_t pid, ppid, pgid, sid;
};

static struct ids own_ids(void)
{
    return (struct ids){getpid(), getppid(), getpgrp(), getsid(0)};
}

static void check_ids(const char *who, struct ids want)
{
    struct ids got = own_ids();
    CHECK(memcmp(&want, &got, sizeof want) == 0,
          "%s: expected pid %d ppid %d pgid %d sid %d, got %d %d %d %d", who, want.pid, want.ppid,
          want.pgid, want.sid, got.pid, got.ppid, got.pgid, got.sid);
}

/* Reports its ids, waits, finds them unchanged. */
__attribute__((noreturn)) static void leaf(const char *who)
{
    struct ids ids = own_ids();
    tr_touch(who);
    tr_wait_go();
    check_ids(who, ids);
    _exit(0);
}

__attribute__((noreturn)) static void branch(void)
{
    setsid();
    pid_t same = tr_fork();
    if (same == 0)
        leaf("same group");
    pid_t other = tr_fork();
    if (other == 0) {
        setpgid(0, 0);
        leaf("own group");
    }
    tr_await("own group");
    pid_t joined = tr_fork();
    if (joined == 0) {
        MUST(setpgid(0, other));
        leaf("joined group");
    }
    tr_await("same group");
    tr_await("joined group");
    struct ids ids = own_ids();
    tr_touch("branch");
    tr_wait_go();
    check_ids("branch", ids);
    tr_check_exit("same group", same, 0);
    tr_check_exit("joined group", joined, 0);
    tr_check_exit("own group", other, 0);
    _exit(0);
}

/* The leader of the group is gone (reaped) while a member lives on. */
static pid_t orphaned_group(void)
{
    pid_t leader = tr_fork();
    if (leader == 0) {
        setpgid(0, 0);
        tr_touch("leader");
        tr_await("member");
        _exit(0);
    }
    tr_await("leader");
    pid_t member = tr_fork();
    if (member == 0) {
        MUST(setpgid(0, leader));
        leaf("member");
    }
    tr_check_exit("group leader", leader, 0);
    return member;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    pid_t first = tr_fork();
    if (first == 0)
        branch();
    pid_t member = orphaned_group();
    pid_t plain = tr_fork();
    if (plain == 0)
        leaf("plain child");
    tr_await("branch");
    tr_await("plain child");
    struct ids ids = own_ids();

    tr_hold();

    /* The parent of the root is whoever restored it. */
    ids.ppid = getppid();
    check_ids("root", ids);
    tr_check_exit("branch", first, 0);
    tr_check_exit("member of a group without leader", member, 0);
    tr_check_exit("plain child", plain, 0);
    return tr_pass(NULL);
}
