/* The stand-in's script: which GPUs there are, what they draw, and what goes wrong when. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include "profile.h"

#define MAX_GPUS 16
#define MAX_SLICES 8
#define MAX_FAULTS 64
#define MAX_EVENTS 16
#define MAX_PROCESSES 16
#define NAME_SIZE 96

struct event { /* clock event bits during a span of time */
    unsigned long long bits;
    double from_s, to_s;
};

struct writes { /* when a register is written: about every period, at a moment that all processes agree on */
    double period_s, jitter_s;       /* jitter: standard deviation of a write around its steady time */
};

struct gpu {
    int index;                       /* on the host */
    struct gpu *parent;              /* of a MIG slice; NULL for a board */
    char name[NAME_SIZE], uuid[NAME_SIZE];
    struct profile profile;
    struct writes power_writes, counter_writes; /* the counter's are the power registers' unless said */
    double lag_s;                    /* from a write until a reader sees it */
    double instant_s, average_s;     /* what instant and average power look back at */
    double noise_idle_w, noise_load_w; /* standard deviation of instant power */
    double counter_step_mj;          /* the unit in which the counter counts */
    double limit_w;
    double temperature_c, temperature_rise_c_per_s;
    unsigned sm_clock_mhz, mem_clock_mhz;
    int legacy_is_average;           /* nvmlDeviceGetPowerUsage is averaged, as on most boards since Ampere */
    int compute_major, compute_minor;
    unsigned long long memory_total, memory_used;
    struct event events[MAX_EVENTS];
    int n_events;
    struct { unsigned pid; unsigned long long memory; } processes[MAX_PROCESSES];
    unsigned n_processes;
    struct gpu *slices[MAX_SLICES];  /* MIG devices, NULL where there is none */
    int mig;
};

enum fault_kind { FAIL, SLOW, COUNTER_RESET };

struct fault {
    enum fault_kind kind;
    int code;                        /* what a failing call returns */
    int gpu;                         /* -1: any */
    char call[64];                   /* "": any */
    int field;                       /* 0: any; else only this field, inside a successful call */
    double after_s, until_s;         /* on the script's clock */
    long after_calls, calls;         /* counted in each process */
    double delay_s;
};

struct script {
    double t0_epoch_s;
    char driver[64];
    int cuda;
    struct gpu gpus[MAX_GPUS];
    int n_gpus;
    struct fault faults[MAX_FAULTS];
    int n_faults;
};

/* Reads $STANDIN_NVML_SCRIPT, else /etc/standin-nvml.conf; without a file, one idle GPU. */
void script_read(struct script *script);

/* Seconds on the script's clock, which is the wall clock, so that all processes and containers agree. */
double script_now_s(const struct script *script);

#endif
