/* What /proc says about the mapping at an address. */
#ifndef TRACEE_VMA_H
#define TRACEE_VMA_H

#include "tracee.h"

struct tr_vma {
    unsigned long start, end, offset;
    char prot[8];
    char name[256];
    char flags[256];
    long rss_kb, anon_huge_kb, locked_kb;
};

static inline void tr_vma_line(struct tr_vma *v, const char *line)
{
    if (strncmp(line, "VmFlags:", 8) == 0)
        snprintf(v->flags, sizeof v->flags, "%.*s", (int)strcspn(line + 8, "\n"), line + 8);
    sscanf(line, "Rss: %ld", &v->rss_kb);
    sscanf(line, "AnonHugePages: %ld", &v->anon_huge_kb);
    sscanf(line, "Locked: %ld", &v->locked_kb);
}

/* Finds the mapping that holds addr; false when nothing is mapped there. */
static inline bool tr_vma_find(const void *addr, struct tr_vma *v)
{
    char line[1024];
    bool inside = false;
    unsigned long at = (unsigned long)addr;
    FILE *f = fopen("/proc/self/smaps", "re");
    CHECK(f != NULL, "cannot open smaps: %s", strerror(errno));
    memset(v, 0, sizeof *v);
    while (fgets(line, sizeof line, f) != NULL) {
        unsigned long start, end, off;
        char prot[8], name[256] = "";
        if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %255[^\n]", &start, &end, prot, &off,
                   name) >= 4) {
            if (inside)
                break;
            inside = start <= at && at < end;
            if (inside) {
                v->start = start, v->end = end, v->offset = off;
                strcpy(v->prot, prot);
                strcpy(v->name, name);
            }
        } else if (inside) {
            tr_vma_line(v, line);
        }
    }
    fclose(f);
    return v->end != 0;
}

/* Checks the "rwxp" column of the mapping at addr. */
static inline void tr_check_prot(const char *what, const void *addr, const char *want)
{
    struct tr_vma v;
    CHECK(tr_vma_find(addr, &v), "%s: nothing mapped at %p", what, addr);
    tr_check_str(what, want, v.prot);
}

/* Checks that a two-letter flag of VmFlags is (or is not) there. */
static inline void tr_check_flag(const char *what, const void *addr, const char *flag, bool want)
{
    struct tr_vma v;
    char padded[300], key[8];
    CHECK(tr_vma_find(addr, &v), "%s: nothing mapped at %p", what, addr);
    snprintf(padded, sizeof padded, " %s ", v.flags);
    snprintf(key, sizeof key, " %s ", flag);
    bool got = strstr(padded, key) != NULL;
    CHECK(got == want, "%s: VmFlags %s expected %s, got \"%s\"", what, flag,
          want ? "set" : "clear", v.flags);
}

static inline void *tr_anon(size_t len, int prot)
{
    return MUST(mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

#endif
