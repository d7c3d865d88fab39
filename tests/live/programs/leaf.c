/* Runs for ever in a function that calls no other and has no frame, three quarters of the time on behalf of one caller. All
 * its code keeps frame pointers: no C library is linked. */
static volatile unsigned long sink;

__attribute__((noinline)) void leaf(long rounds) {
    for (long i = 0; i < rounds; i++)
        sink += i * i;
}

__attribute__((noinline)) void often(void) {
    leaf(3000000);
    __asm__ volatile("");
}

__attribute__((noinline)) void seldom(void) {
    leaf(1000000);
    __asm__ volatile("");
}

/* Others keep frames, so that the code is seen to. */
__attribute__((noinline)) void nest(long depth) {
    if (depth > 3)
        nest(depth - 1);
    leaf(10);
    __asm__ volatile("");
}

__attribute__((noinline)) void run(void) {
    for (;;) {
        often();
        seldom();
        nest(5);
    }
}

void _start(void) {
    run();
    __asm__ volatile("");
}
