#include "script.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double epoch_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double script_now_s(const struct script *script) { return epoch_s() - script->t0_epoch_s; }

static void set_name(char *into, const char *text) { snprintf(into, NAME_SIZE, "%s", text); }

static void default_gpu(struct gpu *gpu, int index) {
    memset(gpu, 0, sizeof *gpu);
    gpu->index = index;
    set_name(gpu->name, "NVIDIA A100-SXM4-80GB (STAND-IN)");
    snprintf(gpu->uuid, NAME_SIZE, "GPU-5741d000-0000-0000-0000-%012d", index);
    gpu->profile = (struct profile){.kind = CONSTANT, .idle_w = 60, .a = 60};
    gpu->power_writes = (struct writes){.period_s = 0.1};
    gpu->counter_writes = (struct writes){.period_s = -1};
    gpu->counter_step_mj = 1;
    gpu->instant_s = 0.025;
    gpu->average_s = 1.0;
    gpu->limit_w = 400;
    gpu->temperature_c = 40;
    gpu->sm_clock_mhz = 1410;
    gpu->mem_clock_mhz = 1593;
    gpu->compute_major = 8;
    gpu->memory_total = 80ULL << 30;
    gpu->memory_used = 512ULL << 20;
}

static struct gpu *slice_of(struct gpu *board, int number) {
    if (!board->slices[number]) {
        struct gpu *slice = calloc(1, sizeof *slice);
        default_gpu(slice, board->index);
        slice->parent = board;
        slice->memory_total = 10ULL << 30;
        set_name(slice->name, "NVIDIA A100-SXM4-80GB MIG 1g.10gb (STAND-IN)");
        snprintf(slice->uuid, NAME_SIZE, "MIG-5741d000-0000-0000-%04d-%012d", board->index, number);
        board->slices[number] = slice;
        board->mig = 1;
    }
    return board->slices[number];
}

static int code_of(const char *name) {
    static const struct { const char *name; int code; } codes[] = {
        {"not_supported", 3}, {"no_permission", 4}, {"driver_not_loaded", 9}, {"timeout", 10},
        {"lost", 15},         {"mismatch", 18},     {"unknown", 999},
    };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (!strcmp(name, codes[i].name)) return codes[i].code;
    return 0;
}

/* fault = KIND [gpu=N] [call=NAME] [field=ID] [after_s=S] [until_s=S] [after_calls=N] [ms=N] */
static int read_fault(struct script *script, char *text) {
    if (script->n_faults == MAX_FAULTS) return 0;
    struct fault fault = {.gpu = -1, .after_s = -INFINITY, .until_s = INFINITY};
    char *rest, *word = strtok_r(text, " ", &rest);
    if (!word) return 0;
    if (!strcmp(word, "slow")) fault.kind = SLOW;
    else if (!strcmp(word, "counter_reset")) fault.kind = COUNTER_RESET;
    else if (!(fault.code = code_of(word))) return 0;
    while ((word = strtok_r(NULL, " ", &rest))) {
        char *value = strchr(word, '=');
        if (!value) return 0;
        *value++ = 0;
        if (!strcmp(word, "gpu")) fault.gpu = atoi(value);
        else if (!strcmp(word, "call")) snprintf(fault.call, sizeof fault.call, "%s", value);
        else if (!strcmp(word, "field")) fault.field = atoi(value);
        else if (!strcmp(word, "after_s")) fault.after_s = atof(value);
        else if (!strcmp(word, "until_s")) fault.until_s = atof(value);
        else if (!strcmp(word, "after_calls")) fault.after_calls = atol(value);
        else if (!strcmp(word, "ms")) fault.delay_s = atof(value) / 1e3;
        else return 0;
    }
    script->faults[script->n_faults++] = fault;
    return 1;
}

/* PERIOD_MS [JITTER_MS] */
static int read_writes(struct writes *writes, const char *value) {
    double period_ms, jitter_ms = 0;
    if (sscanf(value, "%lf %lf", &period_ms, &jitter_ms) < 1) return 0;
    *writes = (struct writes){period_ms / 1e3, jitter_ms / 1e3};
    return 1;
}

static int read_gpu(struct gpu *gpu, const char *key, const char *value) {
    if (!strcmp(key, "name")) set_name(gpu->name, value);
    else if (!strcmp(key, "uuid")) set_name(gpu->uuid, value);
    else if (!strcmp(key, "power")) return profile_parse(&gpu->profile, value);
    else if (!strcmp(key, "idle_w")) gpu->profile.idle_w = atof(value);
    else if (!strcmp(key, "update_ms")) return read_writes(&gpu->power_writes, value);
    else if (!strcmp(key, "counter_update_ms")) return read_writes(&gpu->counter_writes, value);
    else if (!strcmp(key, "counter_step_mj")) return (gpu->counter_step_mj = atof(value)) > 0;
    else if (!strcmp(key, "lag_ms")) gpu->lag_s = atof(value) / 1e3;
    else if (!strcmp(key, "noise_w")) { /* IDLE [LOAD] */
        int found = sscanf(value, "%lf %lf", &gpu->noise_idle_w, &gpu->noise_load_w);
        if (found == 1) gpu->noise_load_w = gpu->noise_idle_w;
        return found > 0;
    }
    else if (!strcmp(key, "instant_ms")) gpu->instant_s = atof(value) / 1e3;
    else if (!strcmp(key, "average_ms")) gpu->average_s = atof(value) / 1e3;
    else if (!strcmp(key, "limit_w")) gpu->limit_w = atof(value);
    else if (!strcmp(key, "temperature_c")) gpu->temperature_c = atof(value);
    else if (!strcmp(key, "temperature_rise_c_per_s")) gpu->temperature_rise_c_per_s = atof(value);
    else if (!strcmp(key, "sm_clock_mhz")) gpu->sm_clock_mhz = (unsigned)atoi(value);
    else if (!strcmp(key, "mem_clock_mhz")) gpu->mem_clock_mhz = (unsigned)atoi(value);
    else if (!strcmp(key, "memory_total")) gpu->memory_total = strtoull(value, NULL, 0);
    else if (!strcmp(key, "memory_used")) gpu->memory_used = strtoull(value, NULL, 0);
    else if (!strcmp(key, "legacy")) gpu->legacy_is_average = !strcmp(value, "average");
    else if (!strcmp(key, "compute")) return sscanf(value, "%d.%d", &gpu->compute_major, &gpu->compute_minor) == 2;
    else if (!strcmp(key, "event") && gpu->n_events < MAX_EVENTS) { /* BITS [FROM_S TO_S] */
        struct event event = {.from_s = -INFINITY, .to_s = INFINITY};
        if (sscanf(value, "%lli %lf %lf", (long long *)&event.bits, &event.from_s, &event.to_s) < 1) return 0;
        gpu->events[gpu->n_events++] = event;
    } else if (!strcmp(key, "process") && gpu->n_processes < MAX_PROCESSES) { /* PID BYTES */
        unsigned i = gpu->n_processes;
        if (sscanf(value, "%u %llu", &gpu->processes[i].pid, &gpu->processes[i].memory) != 2) return 0;
        gpu->n_processes++;
    } else return 0;
    return 1;
}

static int read_line(struct script *script, const char *key, char *value) {
    int board, slice, end = 0;
    if (!strcmp(key, "t0")) script->t0_epoch_s = atof(value);
    else if (!strcmp(key, "driver")) snprintf(script->driver, sizeof script->driver, "%s", value);
    else if (!strcmp(key, "cuda")) script->cuda = atoi(value);
    else if (!strcmp(key, "gpus")) script->n_gpus = atoi(value) < MAX_GPUS ? atoi(value) : MAX_GPUS;
    else if (!strcmp(key, "fault")) return read_fault(script, value);
    else if (sscanf(key, "gpu.%d.mig.%d.%n", &board, &slice, &end) == 2 && end && board >= 0 && board < MAX_GPUS &&
             slice >= 0 && slice < MAX_SLICES)
        return read_gpu(slice_of(&script->gpus[board], slice), key + end, value);
    else if (sscanf(key, "gpu.%d.%n", &board, &end) == 1 && end && board >= 0 && board < MAX_GPUS)
        return read_gpu(&script->gpus[board], key + end, value);
    else return 0;
    return 1;
}

static char *trim(char *text) {
    while (isspace((unsigned char)*text)) text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1])) *--end = 0;
    return text;
}

void script_read(struct script *script) {
    memset(script, 0, sizeof *script);
    snprintf(script->driver, sizeof script->driver, "580.65.06-standin");
    script->cuda = 13000;
    script->n_gpus = 1;
    for (int i = 0; i < MAX_GPUS; i++) default_gpu(&script->gpus[i], i);
    const char *path = getenv("STANDIN_NVML_SCRIPT");
    FILE *file = fopen(path ? path : "/etc/standin-nvml.conf", "r");
    char line[1024];
    for (int number = 1; file && fgets(line, sizeof line, file); number++) {
        line[strcspn(line, "#\r\n")] = 0;
        char *value = strchr(line, '=');
        if (!value) continue;
        *value++ = 0;
        if (!read_line(script, trim(line), trim(value))) /* a test with a typo must not pass by accident */
            fprintf(stderr, "stand-in NVML: line %d of its script is not understood: %s\n", number, trim(line));
    }
    if (file) fclose(file);
    for (int i = 0; i < MAX_GPUS; i++)
        if (script->gpus[i].counter_writes.period_s < 0) script->gpus[i].counter_writes = script->gpus[i].power_writes;
    if (script->t0_epoch_s == 0) script->t0_epoch_s = epoch_s();
}
