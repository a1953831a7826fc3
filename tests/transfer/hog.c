// Holds ARGV[1] MiB of noise, of text or of zeros, and sleeps.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    size_t len = strtoull(argv[1], NULL, 10) << 20;
    uint64_t *words = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) return 1;
    uint64_t state = 88172645463325252ull;
    for (size_t i = 0; i < len / 8; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        words[i] = !strcmp(argv[2], "noise") ? state : !strcmp(argv[2], "text") ? i / 100 * 0x0101010101 : 0;
    }
    close(open("ready", O_CREAT | O_WRONLY, 0600));
    for (;;) pause();
}
