/* General registers and flags live in a loop that makes no system call. */
#include "threads.h"

static volatile int stop;
static _Atomic bool spinning;

/* Fills registers from in, spins until *flag is set, stores registers to out. */
__attribute__((noinline)) static uint64_t spin(const uint64_t *in, uint64_t *out,
                                               volatile int *flag)
{
    uint64_t flags;
    __asm__ volatile("push %%rbp\n\t"
                     "mov %[out], %%rax\n\t"
                     "push %%rax\n\t"
                     "mov %[flag], %%rbp\n\t"
                     "mov %[in], %%rax\n\t"
                     "mov 8(%%rax), %%rbx\n\t"
                     "mov 16(%%rax), %%rcx\n\t"
                     "mov 24(%%rax), %%rdx\n\t"
                     "mov 32(%%rax), %%rsi\n\t"
                     "mov 40(%%rax), %%rdi\n\t"
                     "mov 48(%%rax), %%r8\n\t"
                     "mov 56(%%rax), %%r9\n\t"
                     "mov 64(%%rax), %%r10\n\t"
                     "mov 72(%%rax), %%r11\n\t"
                     "mov 80(%%rax), %%r12\n\t"
                     "mov 88(%%rax), %%r13\n\t"
                     "mov 96(%%rax), %%r14\n\t"
                     "mov 104(%%rax), %%r15\n\t"
                     "mov (%%rax), %%rax\n\t"
                     "std\n"
                     "1:\n\t"
                     "cmpl $0, (%%rbp)\n\t"
                     "je 1b\n\t"
                     "stc\n\t"
                     "pushfq\n\t"
                     "cld\n\t"
                     "mov 8(%%rsp), %%rbp\n\t"
                     "mov %%rax, (%%rbp)\n\t"
                     "mov %%rbx, 8(%%rbp)\n\t"
                     "mov %%rcx, 16(%%rbp)\n\t"
                     "mov %%rdx, 24(%%rbp)\n\t"
                     "mov %%rsi, 32(%%rbp)\n\t"
                     "mov %%rdi, 40(%%rbp)\n\t"
                     "mov %%r8, 48(%%rbp)\n\t"
                     "mov %%r9, 56(%%rbp)\n\t"
                     "mov %%r10, 64(%%rbp)\n\t"
                     "mov %%r11, 72(%%rbp)\n\t"
                     "mov %%r12, 80(%%rbp)\n\t"
                     "mov %%r13, 88(%%rbp)\n\t"
                     "mov %%r14, 96(%%rbp)\n\t"
                     "mov %%r15, 104(%%rbp)\n\t"
                     "pop %%rax\n\t"
                     "pop %%rbx\n\t"
                     "pop %%rbp\n\t"
                     "mov %%rax, %[flags]\n\t"
                     : [flags] "=&a"(flags)
                     : [in] "S"(in), [out] "D"(out), [flag] "d"(flag)
                     : "memory", "cc", "rbx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13",
                       "r14", "r15");
    return flags;
}

static void body(struct tr_thread *t)
{
    static const char *const names[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8",
                                        "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    uint64_t in[14], out[14] = {0};
    (void)t;
    for (int i = 0; i < 14; i++)
        in[i] = tr_mix(1000 + i);
    spinning = true;
    uint64_t flags = spin(in, out, &stop);
    for (int i = 0; i < 14; i++)
        CHECK_EQ(names[i], in[i], out[i]);
    CHECK(flags & 0x400, "direction flag lost: 0x%llx", (unsigned long long)flags);
}

int main(int argc, char **argv)
{
    static struct tr_thread thread;
    tr_init(argc, argv);
    tr_thread_start(&thread, body, NULL);
    while (!spinning)
        tr_sleep_ms(1);
    tr_sleep_ms(20);

    tr_hold();

    stop = 1;
    tr_thread_join(&thread);
    return tr_pass(NULL);
}
