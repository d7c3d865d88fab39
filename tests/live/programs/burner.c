/* Spends known shares of its time in functions of its own: 50, 30 and 20 percent.
 *
 * burner run SECONDS    on a CPU, in compiled functions
 * burner jit SECONDS    on a CPU, in functions made at run time, named in /tmp/perf-PID.map
 * burner wait SECONDS   blocked
 * burner flurry SECONDS blocked, a few times for long, and for moments in between
 * burner deep SECONDS   on a CPU, under more stack than anybody copies
 * burner sys SECONDS    on a CPU, half of it in the kernel
 *
 * Says '.' when the time is spent, and stays until its input ends. */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double used(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* A call that stays in its caller: the C library has no frame pointers. */
static inline __attribute__((always_inline)) void nap(long ns) {
    struct timespec time = {0, ns};
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(SYS_nanosleep), "D"(&time), "S"(0)
                     : "rcx", "r11", "memory");
}

#define BURN(name)                                                              \
    __attribute__((noinline)) void name(double seconds) {                       \
        double until = used() + seconds;                                        \
        volatile uint64_t number = 1;                                           \
        do {                                                                    \
            for (int i = 0; i < 200000; i++)                                    \
                number = number * 6364136223846793005ull + 1;                   \
        } while (used() < until);                                               \
    }
BURN(burn_fifty)
BURN(burn_thirty)
BURN(burn_twenty)

#define WAIT(name)                                                              \
    __attribute__((noinline)) void name(long ns) {                              \
        nap(ns);                                                                \
        __asm__ volatile("");                                                   \
    }
WAIT(wait_fifty)
WAIT(wait_thirty)
WAIT(wait_twenty)

/* push %rbp; mov %rsp,%rbp; 1: dec %rdi; jnz 1b; pop %rbp; ret */
static const unsigned char LOOP[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xff,
                                     0xcf, 0x75, 0xfb, 0x5d, 0xc3};
typedef void (*jitted)(uint64_t);

static jitted compile(unsigned char *memory, FILE *map, const char *name) {
    memcpy(memory, LOOP, sizeof LOOP);
    if (map)
        fprintf(map, "%lx %zx %s\n", (unsigned long)memory, sizeof LOOP, name);
    return (jitted)memory;
}

__attribute__((noinline)) void burn_jitted(jitted function, double seconds) {
    double until = used() + seconds;
    do
        function(2000000);
    while (used() < until);
}

static void run_jitted(double seconds) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    unsigned char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FILE *map = getenv("BURNER_NO_MAP") ? NULL : fopen(path, "w");
    jitted fifty = compile(memory, map, "jit_fifty");
    jitted thirty = compile(memory + 64, map, "jit_thirty");
    jitted twenty = compile(memory + 128, map, "jit_twenty");
    if (map)
        fclose(map);
    for (double end = used() + seconds; used() < end;) {
        burn_jitted(fifty, 0.05);
        burn_jitted(thirty, 0.03);
        burn_jitted(twenty, 0.02);
    }
}

__attribute__((noinline)) void round_of_burning(void) {
    burn_fifty(0.05);
    burn_thirty(0.03);
    burn_twenty(0.02);
    __asm__ volatile("");
}

__attribute__((noinline)) void round_of_waiting(void) {
    wait_fifty(50000000);
    wait_thirty(30000000);
    wait_twenty(20000000);
    __asm__ volatile("");
}

__attribute__((noinline)) void wait_long(void) {
    poll(NULL, 0, 20);
    __asm__ volatile("");
}

static void run_flurry(double seconds) {
    for (int round = 0; round < seconds * 25; round++) {
        for (int i = 0; i < 200; i++)
            wait_twenty(1000);
        wait_long();
    }
}

/* Half a KiB of stack each. */
__attribute__((noinline)) int burn_deep(int depth, double seconds) {
    volatile char room[512];
    room[depth % 512] = 1;
    if (depth == 0)
        burn_fifty(seconds);
    else
        room[0] = burn_deep(depth - 1, seconds);
    return room[depth % 512];
}

__attribute__((noinline)) void burn_reading(int file) {
    static char room[1 << 16];
    for (int i = 0; i < 100; i++)
        if (read(file, room, sizeof room) < 0)
            exit(1);
    __asm__ volatile("");
}

static void run_reading(double seconds) {
    int file = open("/dev/zero", O_RDONLY);
    for (double end = used() + seconds; used() < end;) {
        double begin = used();
        burn_reading(file);
        burn_fifty(used() - begin);
    }
}

int main(int count, char **words) {
    double seconds = count > 2 ? atof(words[2]) : 1;
    if (count > 1 && !strcmp(words[1], "jit")) {
        run_jitted(seconds);
    } else if (count > 1 && !strcmp(words[1], "deep")) {
        burn_deep(100, seconds);
    } else if (count > 1 && !strcmp(words[1], "flurry")) {
        run_flurry(seconds);
    } else if (count > 1 && !strcmp(words[1], "sys")) {
        run_reading(seconds);
    } else if (count > 1 && !strcmp(words[1], "wait")) {
        for (int round = 0; round < seconds * 10; round++)
            round_of_waiting();
    } else {
        for (double end = used() + seconds; used() < end;)
            round_of_burning();
    }
    if (write(1, ".", 1) != 1)
        return 1;
    char end;
    return read(0, &end, 1) != 0;
}
