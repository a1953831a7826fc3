/* SSE, AVX and AVX-512 registers live across the checkpoint in a spin loop. */
#include "threads.h"

#include <cpuid.h>

static volatile int stop;
static _Atomic int spinning;

#define EACH16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) \
    X(14) X(15)
#define EACH_HIGH(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) \
    X(28) X(29) X(30) X(31)
#define EACH_K(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define LOOP "1: cmpl $0, (%[flag])\n\t je 1b\n\t"
#define CLOBBER16 "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
    "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

#define LOAD_X(n) "movups 16*" #n "(%[in]), %%xmm" #n "\n\t"
#define STORE_X(n) "movups %%xmm" #n ", 16*" #n "(%[out])\n\t"
#define LOAD_Y(n) "vmovups 32*" #n "(%[in]), %%ymm" #n "\n\t"
#define STORE_Y(n) "vmovups %%ymm" #n ", 32*" #n "(%[out])\n\t"
#define LOAD_Z(n) "vmovups 64*" #n "(%[in]), %%zmm" #n "\n\t"
#define STORE_Z(n) "vmovups %%zmm" #n ", 64*" #n "(%[out])\n\t"
#define LOAD_K(n) "kmovq 2048+8*" #n "(%[in]), %%k" #n "\n\t"
#define STORE_K(n) "kmovq %%k" #n ", 2048+8*" #n "(%[out])\n\t"

typedef void spinner(const void *in, void *out);

static void spin_sse(const void *in, void *out)
{
    __asm__ volatile(EACH16(LOAD_X) LOOP EACH16(STORE_X)
                     :
                     : [in] "r"(in), [out] "r"(out), [flag] "r"(&stop)
                     : "memory", "cc", CLOBBER16);
}

__attribute__((target("avx"))) static void spin_avx(const void *in, void *out)
{
    __asm__ volatile(EACH16(LOAD_Y) LOOP EACH16(STORE_Y) "vzeroupper\n\t"
                     :
                     : [in] "r"(in), [out] "r"(out), [flag] "r"(&stop)
                     : "memory", "cc", CLOBBER16);
}

__attribute__((target("avx512f,avx512bw"))) static void spin_avx512(const void *in, void *out)
{
    __asm__ volatile(EACH16(LOAD_Z) EACH_HIGH(LOAD_Z) EACH_K(LOAD_K) LOOP EACH16(STORE_Z)
                         EACH_HIGH(STORE_Z) EACH_K(STORE_K) "vzeroupper\n\t"
                     :
                     : [in] "r"(in), [out] "r"(out), [flag] "r"(&stop)
                     : "memory", "cc", CLOBBER16, "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}

struct width {
    const char *name;
    spinner *spin;
    size_t bytes;
};

static void body(struct tr_thread *t)
{
    const struct width *w = t->arg;
    static _Thread_local uint64_t in[300], out[300];
    tr_fill(in, sizeof in, (uint64_t)t->index);
    spinning++;
    w->spin(in, out);
    size_t skip = w->bytes > 2048 ? 2048 / 8 : SIZE_MAX;
    for (size_t i = 0; i < w->bytes / 8; i++)
        /* There is no k0 among those loaded. */
        CHECK(i == skip || in[i] == out[i], "%s: word %zu expected %llx, got %llx", w->name, i,
              (unsigned long long)in[i], (unsigned long long)out[i]);
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[6];
    struct width widths[3] = {{"sse", spin_sse, 16 * 16}};
    int kinds = 1;
    tr_init(argc, argv);
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx"))
        widths[kinds++] = (struct width){"avx", spin_avx, 16 * 32};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        widths[kinds++] = (struct width){"avx512", spin_avx512, 32 * 64 + 64};
    /* Two of each, so that one's registers cannot pass for the other's. */
    for (int i = 0; i < 2 * kinds; i++) {
        threads[i].index = i + 1;
        tr_thread_start(&threads[i], body, &widths[i % kinds]);
    }
    while (spinning < 2 * kinds)
        tr_sleep_ms(1);
    tr_sleep_ms(50);

    tr_hold();

    stop = 1;
    for (int i = 0; i < 2 * kinds; i++)
        tr_thread_join(&threads[i]);
    return tr_pass(kinds == 3 ? NULL : "this CPU has no AVX-512");
}
