/* Virtual time for one process (LD_PRELOAD): a sleep ends at once and moves the clock, as every look at it does a little.
 *
 * So a plan of minutes is played in as long as its readings take to compute, and no other work of the machine can move a
 * reading. What a real machine does to a reader is drawn from a fixed sequence: answers of some ten microseconds, sleeps
 * that end late by up to a quarter of a millisecond, and now and then by 15 ms. VIRTUAL_T0_NS is the first instant since 1970.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { GIGA = 1000000000, LOOK_NS = 24000, LATE_NS = 250000, STALL_NS = 15000000, STALLS = 1000 };
static const int64_t UPTIME_NS = 5000LL * GIGA;

static int64_t since_ns;
static uint64_t drawn = 88172645463325252u;

static int64_t up_to(int64_t most) {
    drawn ^= drawn << 13, drawn ^= drawn >> 7, drawn ^= drawn << 17; /* xorshift64 */
    return (int64_t)(drawn % (uint64_t)most);
}

static int64_t epoch_ns(void) {
    const char *told = getenv("VIRTUAL_T0_NS");
    return told ? strtoll(told, NULL, 10) : 0;
}

static struct timespec as_timespec(int64_t ns) {
    return (struct timespec){.tv_sec = ns / GIGA, .tv_nsec = ns % GIGA};
}

static void pass(int64_t ns) {
    if (ns > 0) since_ns += ns;
    since_ns += up_to(STALLS) == 0 ? STALL_NS : up_to(LATE_NS);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE: since_ns += up_to(LOOK_NS); *now = as_timespec(epoch_ns() + since_ns); return 0;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME: since_ns += up_to(LOOK_NS); *now = as_timespec(UPTIME_NS + since_ns); return 0;
    default: return (int)syscall(SYS_clock_gettime, clock, now); /* of the CPU */
    }
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *span, struct timespec *left) {
    (void)left;
    int64_t ns = (int64_t)span->tv_sec * GIGA + span->tv_nsec;
    if (flags & TIMER_ABSTIME) ns -= since_ns + (clock == CLOCK_REALTIME ? epoch_ns() : UPTIME_NS);
    pass(ns);
    return 0;
}

int nanosleep(const struct timespec *span, struct timespec *left) {
    return clock_nanosleep(CLOCK_MONOTONIC, 0, span, left);
}
