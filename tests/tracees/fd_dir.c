/* Directories: in the middle of readdir, also one that was deleted. */
#include "tracee.h"

#include <dirent.h>

enum { FILES = 3000 };

static bool seen[FILES];

/* Reads entries; each file may come only once. */
static int take(DIR *d, int most)
{
    int n = 0, index;
    struct dirent *e;
    while (n < most && (e = readdir(d)) != NULL) {
        if (sscanf(e->d_name, "file %d", &index) != 1)
            continue;
        CHECK(!seen[index], "file %d was listed twice", index);
        seen[index] = true;
        n++;
    }
    return n;
}

int main(int argc, char **argv)
{
    char name[64];
    struct stat st;
    tr_init(argc, argv);
    MUST(mkdir(tr_path("dir"), 0755));
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "dir/file %d", i);
        close(MUST(open(tr_path(name), O_CREAT | O_WRONLY, 0600)));
    }
    DIR *d = opendir(tr_path("dir"));
    CHECK(d != NULL, "opendir: %s", strerror(errno));
    /* More than one getdents buffer, fewer than all. */
    CHECK_EQ("entries before", 1700, take(d, 1700));
    off_t offset = lseek(dirfd(d), 0, SEEK_CUR);
    MUST(mkdir(tr_path("doomed"), 0700));
    int doomed = MUST(open(tr_path("doomed"), O_RDONLY | O_DIRECTORY));
    MUST(rmdir(tr_path("doomed")));

    tr_hold();

    CHECK_EQ("directory offset", offset, lseek(dirfd(d), 0, SEEK_CUR));
    CHECK_EQ("entries after", FILES - 1700, take(d, FILES));
    CHECK_EQ("openat in the directory", 0, faccessat(dirfd(d), "file 7", F_OK, 0));
    closedir(d);
    MUST(fstat(doomed, &st));
    CHECK(S_ISDIR(st.st_mode), "the deleted directory is not a directory");
    CHECK(access(tr_path("doomed"), F_OK) == -1, "the deleted directory has its name back");
    return tr_pass(NULL);
}
