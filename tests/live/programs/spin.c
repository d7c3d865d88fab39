/* Keeps no frame pointers, nor what its beginning has left in that register: in static programs the place of a list of
 * functions. */
volatile long sum;

__attribute__((noinline)) static void spin(long rounds) {
    for (long round = 0; round < rounds; round++)
        sum += round * round;
}

__attribute__((noinline)) void often(void) {
    spin(300000);
    sum++;
}

int main(void) {
    for (;;)
        often();
}
