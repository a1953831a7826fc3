/* A process in which nothing is as the kernel's defaults have it; says "ready" by its name. With an argument it spins inside a
 * restartable sequence instead. */
#define _GNU_SOURCE
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define AREA ((char *)0x200000000000)
#define SIGNATURE 0x53053053
#define SECURE_NOROOT_LOCKED_NO_AMBIENT 0x43 /* NOROOT, its lock, NO_CAP_AMBIENT_RAISE */

static void must(long result, const char *what)
{
    if (result == -1) {
        perror(what);
        exit(1);
    }
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
}

static void handle(int signal, int flags)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags};
    sigaddset(&action.sa_mask, SIGTERM);
    must(sigaction(signal, &action, NULL), "sigaction");
}

static void queue(int signal, int value)
{
    must(sigqueue(getpid(), signal, (union sigval){.sival_int = value}), "sigqueue");
}

static void alternate_stack(int flags)
{
    stack_t stack = {.ss_sp = malloc(32768), .ss_size = 32768, .ss_flags = flags};
    must(sigaltstack(&stack, NULL), "sigaltstack");
}

static void signals(void)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    for (int signal = SIGRTMIN; signal <= SIGRTMIN + 5; signal++)
        sigaddset(&blocked, signal);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGCHLD);
    must(sigprocmask(SIG_SETMASK, &blocked, NULL), "sigprocmask");
    handle(SIGUSR1, SA_RESTART);
    handle(SIGRTMIN + 3, SA_ONSTACK | SA_NODEFER);
    handle(SIGSEGV, SA_ONSTACK | SA_RESETHAND);
    signal(SIGHUP, SIG_IGN);
    must(sigaction(SIGCHLD, &(struct sigaction){.sa_flags = SA_NOCLDWAIT}, NULL), "SIGCHLD");
    for (int value = 1; value <= 3; value++)
        queue(SIGRTMIN + 3, value);
    queue(SIGUSR1, 7);
    queue(SIGRTMIN + 3, 4);
    must(syscall(SYS_tgkill, getpid(), gettid(), SIGRTMIN + 5), "tgkill");
}

static void timer(clockid_t clock, int notify, pid_t tid, int seconds, int interval)
{
    timer_t id;
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_ptr = (void *)0xabcdef12345678};
    event._sigev_un._tid = tid;
    struct itimerspec spec = {{interval, 500}, {seconds, 0}};
    must(syscall(SYS_timer_create, clock, &event, &id), "timer_create");
    if (seconds)
        must(syscall(SYS_timer_settime, (int)(intptr_t)id, 0, &spec, NULL), "timer_settime");
}

static void timers(pid_t tid)
{
    for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++)
        must(setitimer(which, &(struct itimerval){{50 + which, 7}, {5000 + which, 0}}, NULL), "setitimer");
    timer_t spare;
    for (int i = 0; i < 5; i++)
        must(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, &spare), "timer_create");
    for (int i = 0; i < 4; i++)
        must(syscall(SYS_timer_delete, i), "timer_delete");
    timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, 0, 3000, 9);
    timer(CLOCK_REALTIME, SIGEV_THREAD_ID, tid, 4000, 0);
    timer(CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 0, 6000, 0);
    timer(CLOCK_THREAD_CPUTIME_ID, SIGEV_THREAD_ID, getpid(), 7000, 0);
    timer(CLOCK_BOOTTIME, SIGEV_SIGNAL, 0, 0, 0);
}

static void limit(int resource, rlim_t soft, rlim_t hard)
{
    must(setrlimit(resource, &(struct rlimit){soft, hard}), "setrlimit");
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    must(file && fputs(text, file) >= 0 && fclose(file) == 0 ? 0 : -1, path);
}

static void process(void)
{
    limit(RLIMIT_NOFILE, 100, 200);
    limit(RLIMIT_CORE, 0, 4096);
    limit(RLIMIT_STACK, 4 << 20, RLIM_INFINITY);
    write_file("/proc/self/oom_score_adj", "500");
    write_file("/proc/self/coredump_filter", "0x7");
    umask(031);
    must(personality(ADDR_NO_RANDOMIZE), "personality");
    must(prctl(PR_SET_CHILD_SUBREAPER, 1), "subreaper");
    must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "thp");
    must(prctl(PR_SET_TSC, PR_TSC_SIGSEGV), "tsc");
    must(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0), "mdwe");
    must((long)sbrk(3 * 4096), "sbrk");
}

static void thread_state(int cpu, int nice, int io, int slack)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    must(sched_setaffinity(0, sizeof cpus, &cpus), "affinity");
    must(setpriority(PRIO_PROCESS, 0, nice), "nice");
    must(syscall(SYS_ioprio_set, 1, 0, io), "ioprio");
    must(prctl(PR_SET_TIMERSLACK, slack), "slack");
}

static volatile pid_t other;

static void *second(void *unused)
{
    thread_state(1, 11, 2 << 13 | 6, 70000);
    must(sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &(struct sched_param){0}), "policy");
    alternate_stack(1 << 31);
    prctl(PR_SET_NAME, "se\xc3\xa9 \\\nx\xc3");
    must(syscall(SYS_tgkill, getpid(), gettid(), SIGRTMIN + 4), "tgkill");
    other = gettid();
    for (;;)
        pause();
    return unused;
}

static void deny(unsigned nr, unsigned flags)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program), "seccomp");
}

static void capset(uint32_t effective, uint32_t permitted, uint32_t inheritable)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    must(syscall(SYS_capget, &header, data), "capget");
    uint32_t have = data[0].permitted;
    data[0] = (struct __user_cap_data_struct){effective & have, permitted & have, inheritable};
    data[1] = (struct __user_cap_data_struct){0, 0, 0};
    must(syscall(SYS_capset, &header, data), "capset");
}

#define BIT(capability) (1u << (capability))

/* Of the calling thread alone. */
static void rights(void)
{
    must(prctl(PR_SET_SECUREBITS, 0x14), "securebits");
    capset(~0u, ~0u, BIT(CAP_KILL) | BIT(CAP_NET_BIND_SERVICE));
    must(prctl(PR_CAPBSET_DROP, CAP_KILL), "bounding");
    must(prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE), "bounding");
    must(syscall(SYS_setgroups, 3, (gid_t[]){11, 22, 33}), "groups");
    must(syscall(SYS_setresgid, 101, 102, 103), "gids");
    must(syscall(SYS_setresuid, 201, 202, 203), "uids");
    syscall(SYS_setfsuid, 204);
    syscall(SYS_setfsgid, 104);
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0), "ambient");
    must(prctl(PR_SET_SECUREBITS, SECURE_NOROOT_LOCKED_NO_AMBIENT), "securebits");
    capset(BIT(CAP_CHOWN), BIT(CAP_CHOWN) | BIT(CAP_NET_BIND_SERVICE), BIT(CAP_KILL) | BIT(CAP_NET_BIND_SERVICE));
}

static void map_area(void)
{
    must((long)mmap(AREA, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), "mmap");
    must(syscall(SYS_rseq, AREA, 32, 0, SIGNATURE), "rseq");
}

/* The descriptor is at AREA + 0x100: version and flags, start, length, abort handler. Aborts are counted at AREA + 0x200. */
static void spin(void)
{
    __asm__ volatile("leaq 3f(%%rip), %%rax; movq %%rax, 0x108(%0)\n"
                     "leaq 4f(%%rip), %%rcx; subq %%rax, %%rcx; movq %%rcx, 0x110(%0)\n"
                     "leaq 5f(%%rip), %%rcx; movq %%rcx, 0x118(%0)\n"
                     "2: leaq 0x100(%0), %%rax; movq %%rax, 8(%0)\n"
                     "3: jmp 3b\n"
                     "4: ud2\n"
                     ".byte 0x0f, 0xb9, 0x3d; .long 0x53053053\n"
                     "5: incq 0x200(%0); jmp 2b\n" ::"r"(AREA)
                     : "rax", "rcx", "memory");
}

int main(int argc, char **argv)
{
    (void)argv;
    pthread_t thread;
    map_area();
    if (argc > 1) {
        prctl(PR_SET_NAME, "ready");
        spin();
    }
    must(syscall(SYS_set_robust_list, AREA + 0x300, 24), "robust list");
    syscall(SYS_set_tid_address, AREA + 0x400);
    signals();
    process();
    must(-pthread_create(&thread, NULL, second, NULL), "thread");
    while (!other)
        usleep(1000);
    thread_state(0, 5, 2 << 13 | 3, 60000);
    alternate_stack(0);
    timers(other);
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    deny(SYS_mkdir, SECCOMP_FILTER_FLAG_TSYNC);
    deny(SYS_acct, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG);
    rights();
    must(prctl(PR_SET_PDEATHSIG, SIGURG), "pdeathsig");
    prctl(PR_SET_NAME, "ready");
    for (;;)
        pause();
}
