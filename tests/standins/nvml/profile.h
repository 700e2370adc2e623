/* Power as a function of time, with its exact integral. */
#ifndef PROFILE_H
#define PROFILE_H

#include <stddef.h>

enum profile_kind { CONSTANT, RAMP, SQUARE, SINE, EXPONENTIAL, REPLAY };

struct profile {
    enum profile_kind kind;
    double idle_w;       /* before the profile begins */
    double a, b, c, d;   /* meaning depends on the kind, see profile_parse */
    size_t points;       /* of a replay */
    double *t_s, *w, *e; /* their times, powers and the energy up to each */
};

/* Reads one of these; anything else returns 0 and leaves the profile as it was.
 *   const W
 *   ramp FROM_W TO_W SECONDS            then holds TO_W
 *   square LOW_W HIGH_W PERIOD_S DUTY   begins high
 *   sine MEAN_W AMPLITUDE_W PERIOD_S
 *   exponential FINAL_W DROP_W TAU_S    final - drop * exp(-t/tau)
 *   csv PATH                            lines "seconds,watts"; straight between them, then holds the last
 */
int profile_parse(struct profile *profile, const char *text);

/* Power at t seconds, in watts. */
double profile_power_w(const struct profile *profile, double t_s);

/* Energy from 0 to t seconds, in joules, in closed form; negative before 0. */
double profile_energy_j(const struct profile *profile, double t_s);

#endif
