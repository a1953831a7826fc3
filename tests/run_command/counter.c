/* Counts in memory and writes each number as a line: counter FILE LAST CRASH STATUS.
 * At LAST it exits with STATUS; at CRASH it aborts, unless FILE.calm exists. 0 means never. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    long last = atol(argv[2]), crash = atol(argv[3]);
    char calm[4096];
    snprintf(calm, sizeof calm, "%s.calm", argv[1]);
    FILE *out = fopen(argv[1], "a");
    if (!out)
        return 3;
    for (long n = 1;; n++) {
        fprintf(out, "%ld\n", n);
        fflush(out);
        if (n == last)
            return atoi(argv[4]);
        if (n == crash && access(calm, F_OK) != 0)
            abort();
        usleep(20000);
    }
}
