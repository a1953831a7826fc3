/* Floating point control words, the x87 stack, and per-thread segment bases. */
#include "threads.h"

#include <asm/prctl.h>

static volatile bool go;

static uint16_t x87_control(void)
{
    uint16_t cw;
    __asm__ volatile("fnstcw %0" : "=m"(cw));
    return cw;
}

static uint32_t mxcsr(void)
{
    uint32_t v;
    __asm__ volatile("stmxcsr %0" : "=m"(v));
    return v;
}

/* Waits with four values on the x87 stack. */
static void x87_stack(struct tr_thread *t)
{
    long double out[4];
    (void)t;
    __asm__ volatile("fldpi\n\t fldln2\n\t fld1\n\t fldl2e\n"
                     "1: cmpb $0, %[go]\n\t je 1b\n\t"
                     "fstpt %0\n\t fstpt %1\n\t fstpt %2\n\t fstpt %3"
                     : "=m"(out[0]), "=m"(out[1]), "=m"(out[2]), "=m"(out[3])
                     : [go] "m"(go)
                     : "st", "st(1)", "st(2)", "st(3)", "cc");
    CHECK(out[0] == 1.44269504088896340736L, "x87 top: got %Lf", out[0]);
    CHECK(out[1] == 1.0L, "x87 second: got %Lf", out[1]);
    CHECK(out[2] == 0.693147180559945309417L, "x87 third: got %Lf", out[2]);
    CHECK(out[3] == 3.14159265358979323851L, "x87 fourth: got %Lf", out[3]);
}

static void control_words(struct tr_thread *t)
{
    /* Rounding mode by thread; flush-to-zero in the second thread only. */
    uint32_t want = mxcsr() | (t->index + 1U) << 13 | (t->index == 1 ? 0x8000 : 0);
    __asm__ volatile("ldmxcsr %0" : : "m"(want));
    uint16_t cw = (uint16_t)((x87_control() & ~0x300) | (t->index + 1) << 10 |
                             (t->index == 2 ? 0 : 0x200));
    __asm__ volatile("fldcw %0" : : "m"(cw));
    while (!go)
        tr_sleep_ms(5);
    CHECK_EQ("MXCSR", want, mxcsr());
    CHECK_EQ("x87 control word", cw, x87_control());
}

static void gs_base(struct tr_thread *t)
{
    unsigned long got = 0;
    MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, (unsigned long)t));
    while (!go)
        tr_sleep_ms(5);
    MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &got));
    CHECK_EQ("GS base", (unsigned long)t, got);
}

int main(int argc, char **argv)
{
    static struct tr_thread words[3], stack, gs;
    tr_init(argc, argv);
    for (int i = 0; i < 3; i++) {
        words[i].index = i;
        tr_thread_start(&words[i], control_words, NULL);
    }
    tr_thread_start(&stack, x87_stack, NULL);
    tr_thread_start(&gs, gs_base, NULL);
    tr_sleep_ms(20);

    tr_hold();

    go = true;
    for (int i = 0; i < 3; i++)
        tr_thread_join(&words[i]);
    tr_thread_join(&stack);
    tr_thread_join(&gs);
    return tr_pass(NULL);
}
