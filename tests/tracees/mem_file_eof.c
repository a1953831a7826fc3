/* Mappings that reach beyond the end of their file. */
#include "vma.h"

#include <setjmp.h>

static sigjmp_buf fault_env;

static void on_bus(int sig)
{
    (void)sig;
    siglongjmp(fault_env, 1);
}

static void check_bus(const char *what, volatile char *at)
{
    volatile bool faulted = true;
    if (sigsetjmp(fault_env, 1) == 0) {
        (void)*at;
        faulted = false;
    }
    CHECK(faulted, "%s: expected SIGBUS, could read", what);
}

int main(int argc, char **argv)
{
    static uint64_t data[2 * TR_PAGE / 8];
    tr_init(argc, argv);
    MUST((long)signal(SIGBUS, on_bus));
    int fd = MUST(open(tr_path("data"), O_RDWR | O_CREAT, 0600));
    tr_fill(data, sizeof data, 1);
    CHECK_EQ("write", TR_PAGE + 800, write(fd, data, TR_PAGE + 800));
    char *priv = MUST(mmap(NULL, 6 * TR_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    char *shared = MUST(mmap(NULL, 6 * TR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    /* Bytes after the end in the last page exist in the private copy only. */
    memset(priv + TR_PAGE + 800, 'p', 200);

    tr_hold();

    struct tr_vma v;
    CHECK(tr_vma_find(priv, &v), "private mapping is gone");
    CHECK(v.end >= (unsigned long)priv + 6 * TR_PAGE, "private mapping lost its tail");
    tr_verify("private, inside the file", priv, TR_PAGE + 800, 1);
    tr_verify("shared, inside the file", shared, TR_PAGE + 800, 1);
    for (int i = 0; i < 200; i++)
        CHECK_EQ("private byte after the end", 'p', priv[TR_PAGE + 800 + i]);
    tr_verify_zero("rest of the last page", priv + TR_PAGE + 1000, TR_PAGE - 1000);
    check_bus("private page after the end", priv + 2 * TR_PAGE);
    check_bus("shared page after the end", shared + 4 * TR_PAGE);
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK_EQ("file size", TR_PAGE + 800, st.st_size);
    MUST(ftruncate(fd, 6 * TR_PAGE));
    tr_verify_zero("page that the file grew into", shared + 2 * TR_PAGE, 4 * TR_PAGE);
    return tr_pass(NULL);
}
