/* A second CPU that looks at, or changes, one place in memory as fast as it can, without Python. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

static pthread_t thread;
static atomic_int stop;
static volatile void *place;
static int width, writing;
static uint64_t first, second, wrong, odd;
static volatile uint64_t looks;

static uint64_t look(void)
{
    switch (width) {
    case 1: return *(volatile uint8_t *)place;
    case 2: return *(volatile uint16_t *)place;
    case 4: return *(volatile uint32_t *)place;
    default: return *(volatile uint64_t *)place;
    }
}

static void put(uint64_t value)
{
    switch (width) {
    case 1: *(volatile uint8_t *)place = value; return;
    case 2: *(volatile uint16_t *)place = value; return;
    case 4: *(volatile uint32_t *)place = value; return;
    default: *(volatile uint64_t *)place = value;
    }
}

static void *run(void *unused)
{
    (void)unused;
    for (; !atomic_load_explicit(&stop, memory_order_relaxed); looks++) {
        if (writing)
            put(looks & 1 ? first : second);
        else {
            uint64_t value = look();
            if (value != first && value != second) {
                wrong++;
                odd = value;
            }
        }
    }
    return NULL;
}

void watch_start(uint64_t address, int bytes, uint64_t one, uint64_t other, int write)
{
    place = (volatile void *)(uintptr_t)address;
    width = bytes;
    first = one;
    second = other;
    writing = write;
    looks = wrong = odd = 0;
    atomic_store(&stop, 0);
    pthread_create(&thread, NULL, run, NULL);
    while (!looks)
        sched_yield();
}

uint64_t watch_wrong(void)
{
    return *(volatile uint64_t *)&wrong;
}

/* How often it looked, how often it saw something that nobody wrote, and the last such value. */
void watch_stop(uint64_t *result)
{
    atomic_store(&stop, 1);
    pthread_join(thread, NULL);
    result[0] = looks;
    result[1] = wrong;
    result[2] = odd;
}
