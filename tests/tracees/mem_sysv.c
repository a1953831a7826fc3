/* System V shared memory: several attaches, ids kept, removed while attached or not. */
#include "vma.h"

#include <sys/shm.h>

#define LEN (4 * TR_PAGE)

static void check_segment(int id, const char *what, unsigned long attaches, bool removed)
{
    struct shmid_ds ds;
    MUST(shmctl(id, IPC_STAT, &ds));
    CHECK_EQ(what, attaches, ds.shm_nattch);
    CHECK_EQ("segment size", LEN - 100, ds.shm_segsz);
    CHECK_EQ("segment mode", 0640, ds.shm_perm.mode & 0777);
    CHECK_EQ("marked for removal", removed, (ds.shm_perm.mode & SHM_DEST) != 0);
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int kept = MUST(shmget(IPC_PRIVATE, LEN - 100, IPC_CREAT | 0640));
    int gone = MUST(shmget(IPC_PRIVATE, LEN - 100, IPC_CREAT | 0640));
    char *a = MUST((char *)shmat(kept, NULL, 0));
    char *b = MUST((char *)shmat(kept, NULL, SHM_RDONLY));
    char *r = MUST((char *)shmat(gone, NULL, 0));
    tr_fill(a, LEN, 1);
    tr_fill(r, LEN, 2);
    MUST(shmctl(gone, IPC_RMID, NULL));
    pid_t child = tr_fork();
    if (child == 0) {
        tr_touch("up");
        tr_await("child.go");
        tr_verify("child's view", a, LEN, 1);
        tr_fill(a, LEN, 5);
        tr_fill(r, LEN, 6);
        _exit(0);
    }
    tr_await("up");

    tr_hold();

    check_segment(kept, "attaches of the kept segment", 4, false);
    check_segment(gone, "attaches of the removed segment", 2, true);
    tr_verify("first attach", a, LEN, 1);
    tr_verify("second attach", b, LEN, 1);
    tr_verify("removed segment", r, LEN, 2);
    tr_check_prot("read-only attach", b, "r--s");
    tr_touch("child.go");
    tr_check_exit("child", child, 0);
    tr_verify("second attach after the child wrote", b, LEN, 5);
    tr_verify("removed segment after the child wrote", r, LEN, 6);
    char *c = MUST((char *)shmat(kept, NULL, 0));
    tr_verify("a new attach by the old id", c, LEN, 5);
    MUST(shmdt(a));
    MUST(shmdt(r));
    CHECK(shmat(gone, NULL, 0) == (void *)-1, "the removed segment outlived its attaches");
    MUST(shmctl(kept, IPC_RMID, NULL));
    return tr_pass(NULL);
}
