#include "profile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int read_replay(struct profile *p, const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    char line[256];
    size_t room = 0;
    p->points = 0;
    while (fgets(line, sizeof line, file)) {
        double t_s, w;
        if (sscanf(line, "%lf,%lf", &t_s, &w) != 2) continue; /* a header */
        if (p->points == room) {
            room = room ? room * 2 : 256;
            p->t_s = realloc(p->t_s, room * sizeof *p->t_s);
            p->w = realloc(p->w, room * sizeof *p->w);
            p->e = realloc(p->e, room * sizeof *p->e);
        }
        size_t i = p->points++;
        p->t_s[i] = t_s;
        p->w[i] = w;
        p->e[i] = i ? p->e[i - 1] + (p->w[i - 1] + w) / 2 * (t_s - p->t_s[i - 1]) : w * t_s;
    }
    fclose(file);
    return p->points > 0;
}

int profile_parse(struct profile *profile, const char *text) {
    struct profile p = *profile;
    char path[512];
    if (sscanf(text, "const %lf", &p.a) == 1) p.kind = CONSTANT;
    else if (sscanf(text, "ramp %lf %lf %lf", &p.a, &p.b, &p.c) == 3 && p.c > 0) p.kind = RAMP;
    else if (sscanf(text, "square %lf %lf %lf %lf", &p.a, &p.b, &p.c, &p.d) == 4 && p.c > 0) p.kind = SQUARE;
    else if (sscanf(text, "sine %lf %lf %lf", &p.a, &p.b, &p.c) == 3 && p.c > 0) p.kind = SINE;
    else if (sscanf(text, "exponential %lf %lf %lf", &p.a, &p.b, &p.c) == 3 && p.c > 0) p.kind = EXPONENTIAL;
    else if (sscanf(text, "csv %511s", path) == 1 && read_replay(&p, path)) p.kind = REPLAY;
    else return 0;
    *profile = p;
    return 1;
}

/* Index of the last point at or before t; t lies between the first and the last point. */
static size_t point_before(const struct profile *p, double t_s) {
    size_t low = 0, high = p->points - 1;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (p->t_s[middle] <= t_s) low = middle;
        else high = middle;
    }
    return low;
}

double profile_power_w(const struct profile *p, double t_s) {
    if (t_s < 0) return p->idle_w;
    switch (p->kind) {
    case CONSTANT: return p->a;
    case RAMP: return t_s < p->c ? p->a + (p->b - p->a) * t_s / p->c : p->b;
    case SQUARE: return fmod(t_s, p->c) < p->d * p->c ? p->b : p->a;
    case SINE: return p->a + p->b * sin(2 * M_PI * t_s / p->c);
    case EXPONENTIAL: return p->a - p->b * exp(-t_s / p->c);
    case REPLAY: {
        if (t_s <= p->t_s[0]) return p->w[0];
        if (t_s >= p->t_s[p->points - 1]) return p->w[p->points - 1];
        size_t i = point_before(p, t_s);
        return p->w[i] + (p->w[i + 1] - p->w[i]) * (t_s - p->t_s[i]) / (p->t_s[i + 1] - p->t_s[i]);
    }
    }
    return 0;
}

double profile_energy_j(const struct profile *p, double t_s) {
    if (t_s < 0) return p->idle_w * t_s;
    switch (p->kind) {
    case CONSTANT: return p->a * t_s;
    case RAMP: {
        double ramped_s = fmin(t_s, p->c);
        return p->a * ramped_s + (p->b - p->a) * ramped_s * ramped_s / (2 * p->c) + p->b * (t_s - ramped_s);
    }
    case SQUARE: {
        double high_s = p->d * p->c, periods = floor(t_s / p->c), rest_s = t_s - periods * p->c;
        double period_j = p->b * high_s + p->a * (p->c - high_s);
        double rest_j = rest_s <= high_s ? p->b * rest_s : p->b * high_s + p->a * (rest_s - high_s);
        return periods * period_j + rest_j;
    }
    case SINE: {
        double omega = 2 * M_PI / p->c;
        return p->a * t_s + p->b * (1 - cos(omega * t_s)) / omega;
    }
    case EXPONENTIAL: return p->a * t_s - p->b * p->c * (1 - exp(-t_s / p->c));
    case REPLAY: {
        size_t last = p->points - 1;
        if (t_s <= p->t_s[0]) return p->w[0] * t_s;
        if (t_s >= p->t_s[last]) return p->e[last] + p->w[last] * (t_s - p->t_s[last]);
        size_t i = point_before(p, t_s);
        return p->e[i] + (p->w[i] + profile_power_w(p, t_s)) / 2 * (t_s - p->t_s[i]);
    }
    }
    return 0;
}
