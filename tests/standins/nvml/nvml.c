/* A stand-in for NVIDIA's libnvidia-ml.so.1, for machines without a GPU.
 *
 * The calls that nvidia-ml-py, Zeus and CodeCarbon make are answered from a script (script.h). Every name carries
 * "STAND-IN", so that no report made with it can be mistaken for a measurement. Types and numbers follow NVIDIA's
 * published NVML API reference; only what is used is declared.
 *
 * The sensor is modelled after arXiv 2312.02741: registers that change every 100 ms, instant power that saw the last
 * 25 ms, average power that saw the last second, an energy counter that saw everything. A script can say otherwise:
 * periods, their jitter, the lag until a write is seen, noise, the unit of the counter.
 */
#include "script.h"

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

typedef int nvmlReturn_t;
typedef struct gpu *nvmlDevice_t;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999
};
enum { FIELD_MEMORY_TEMPERATURE = 82, FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
enum { VALUE_UNSIGNED_INT = 1, VALUE_UNSIGNED_LONG_LONG = 3 };

typedef struct {
    unsigned fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned valueType;
    nvmlReturn_t nvmlReturn;
    union { double dVal; unsigned uiVal; unsigned long long ullVal; } value;
} nvmlFieldValue_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned pid; unsigned long long memory; unsigned gpuInstanceId, computeInstanceId; } nvmlProcessInfo_t;
typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;
typedef struct { unsigned version, sensorType; int temperature; } nvmlTemperature_t;

static struct script script;
static struct gpu *visible[MAX_GPUS];
static unsigned n_visible;
static int users;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- faults ---- */

static void pause_s(double seconds) {
    struct timespec span = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&span, NULL);
}

static int applies(struct fault *fault, const struct gpu *gpu, const char *call) {
    if (fault->gpu >= 0 && (!gpu || gpu->index != fault->gpu)) return 0;
    if (*fault->call && strcmp(fault->call, call)) return 0;
    double now_s = script_now_s(&script);
    if (now_s < fault->after_s || now_s >= fault->until_s) return 0;
    return __sync_add_and_fetch(&fault->calls, 1) > fault->after_calls;
}

/* What a call returns before it does anything. */
static nvmlReturn_t gate(const struct gpu *gpu, const char *call) {
    if (!users) return UNINITIALIZED;
    nvmlReturn_t result = SUCCESS;
    for (int i = 0; i < script.n_faults; i++) {
        struct fault *fault = &script.faults[i];
        if (fault->kind == COUNTER_RESET || fault->field || !applies(fault, gpu, call)) continue;
        if (fault->kind == SLOW) pause_s(fault->delay_s);
        else result = fault->code;
    }
    return result;
}

/* What one field returns inside a call that succeeds. */
static nvmlReturn_t field_gate(const struct gpu *gpu, int field) {
    for (int i = 0; i < script.n_faults; i++) {
        struct fault *fault = &script.faults[i];
        if (fault->kind == FAIL && fault->field == field && applies(fault, gpu, fault->call)) return fault->code;
    }
    return SUCCESS;
}

#define ENTER(gpu)                                   \
    do {                                             \
        if (!(gpu)) return INVALID_ARGUMENT;         \
        nvmlReturn_t gate_ = gate((gpu), __func__);  \
        if (gate_ != SUCCESS) return gate_;          \
    } while (0)

/* ---- the sensor ---- */

/* Chance that all processes and containers share: standard normal, by what it is for and its number. */
static double chance(const struct gpu *gpu, long long number, unsigned salt) {
    uint64_t x = (uint64_t)number * 0x9E3779B97F4A7C15u + (uint64_t)gpu->index * 0xD1B54A32D192ED03u + salt;
    double uniform[2];
    for (int i = 0; i < 2; i++) { /* splitmix64 */
        x += 0x9E3779B97F4A7C15u;
        uint64_t z = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        uniform[i] = ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
    }
    return sqrt(-2 * log(uniform[0])) * cos(2 * M_PI * uniform[1]);
}

static double written_s(const struct gpu *gpu, const struct writes *writes, long long number) {
    double most_s = 0.45 * writes->period_s, early_s = writes->jitter_s ? writes->jitter_s * chance(gpu, number, 1) : 0;
    return (double)number * writes->period_s + fmax(-most_s, fmin(most_s, early_s));
}

/* When a register was last written, as far as a reader can see; number: which write that was. */
static double register_s(const struct gpu *gpu, const struct writes *writes, long long *number) {
    double seen_s = script_now_s(&script) - gpu->lag_s;
    if (writes->period_s <= 0) { /* written all the time */
        *number = llround(seen_s * 1e6);
        return seen_s;
    }
    *number = (long long)floor(seen_s / writes->period_s) + 1;
    while (written_s(gpu, writes, *number) > seen_s) --*number;
    return written_s(gpu, writes, *number);
}

static unsigned mean_mw(const struct gpu *gpu, double span_s) {
    long long number;
    double to_s = register_s(gpu, &gpu->power_writes, &number), watts = profile_power_w(&gpu->profile, to_s);
    double noise_w = watts > 1.2 * gpu->profile.idle_w ? gpu->noise_load_w : gpu->noise_idle_w;
    if (span_s > 0)
        watts = (profile_energy_j(&gpu->profile, to_s) - profile_energy_j(&gpu->profile, to_s - span_s)) / span_s;
    if (noise_w > 0) /* a longer mean is quieter */
        watts += noise_w * chance(gpu, number, 2) * (span_s > gpu->instant_s ? sqrt(gpu->instant_s / span_s) : 1);
    return (unsigned)llround(fmax(watts, 0) * 1e3);
}

static unsigned instant_mw(const struct gpu *gpu) { return mean_mw(gpu, gpu->instant_s); }
static unsigned average_mw(const struct gpu *gpu) { return mean_mw(gpu, gpu->average_s); }

/* Millijoules since the driver was loaded, a million seconds of idling ago, or since the last reset. */
static unsigned long long energy_mj(const struct gpu *gpu) {
    long long number;
    double to_s = register_s(gpu, &gpu->counter_writes, &number), origin_j = -gpu->profile.idle_w * 1e6;
    for (int i = 0; i < script.n_faults; i++) {
        const struct fault *fault = &script.faults[i];
        int here = fault->kind == COUNTER_RESET && (fault->gpu < 0 || fault->gpu == gpu->index);
        if (here && to_s >= fault->after_s) origin_j = profile_energy_j(&gpu->profile, fault->after_s);
    }
    double steps = floor((profile_energy_j(&gpu->profile, to_s) - origin_j) * 1e3 / gpu->counter_step_mj);
    return (unsigned long long)llround(steps * gpu->counter_step_mj);
}

static unsigned long long event_bits(const struct gpu *gpu) {
    unsigned long long bits = 0;
    double now_s = script_now_s(&script);
    for (int i = 0; i < gpu->n_events; i++)
        if (now_s >= gpu->events[i].from_s && now_s < gpu->events[i].to_s) bits |= gpu->events[i].bits;
    return bits;
}

static unsigned temperature_c(const struct gpu *gpu) {
    return (unsigned)(gpu->temperature_c + gpu->temperature_rise_c_per_s * fmax(script_now_s(&script), 0));
}

/* ---- what a container sees ---- */

static int named(const char *wanted, const struct gpu *board, int *slice) {
    char index[16];
    snprintf(index, sizeof index, "%d", board->index);
    *slice = -1;
    if (!strcmp(wanted, "all") || !strcmp(wanted, index) || !strcmp(wanted, board->uuid)) return 1;
    for (int i = 0; i < MAX_SLICES; i++) {
        snprintf(index, sizeof index, "%d:%d", board->index, i);
        if (!board->slices[i] || (strcmp(wanted, board->slices[i]->uuid) && strcmp(wanted, index))) continue;
        *slice = i;
        return 1;
    }
    return 0;
}

/* A board given through its slices shows those slices only. */
static void show(struct gpu *board, const char *wanted_list) {
    char list[512], *rest;
    int whole = 0, any = 0, given[MAX_SLICES] = {0}, slice;
    snprintf(list, sizeof list, "%s", wanted_list);
    for (char *wanted = strtok_r(list, ",", &rest); wanted; wanted = strtok_r(NULL, ",", &rest)) {
        if (!named(wanted, board, &slice)) continue;
        any = 1;
        if (slice < 0) whole = 1;
        else given[slice] = 1;
    }
    if (!any) return;
    for (int i = 0; i < MAX_SLICES; i++)
        if (!whole && !given[i]) board->slices[i] = NULL;
    visible[n_visible++] = board;
}

static void load(void) {
    script_read(&script);
    n_visible = 0;
    const char *wanted = getenv("NVIDIA_VISIBLE_DEVICES");
    for (int i = 0; i < script.n_gpus; i++) show(&script.gpus[i], wanted && *wanted ? wanted : "all");
}

/* ---- the library ---- */

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    if (!users) load();
    users++;
    nvmlReturn_t result = gate(NULL, "nvmlInit");
    if (result != SUCCESS) users--;
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT nvmlReturn_t nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

static nvmlReturn_t copy(char *into, unsigned size, const char *text) {
    if (strlen(text) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(into, text);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned size) { return copy(text, size, script.driver); }
EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *text, unsigned size) { return copy(text, size, "13.580.65.06"); }
EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = script.cuda; return SUCCESS; }
EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { *version = script.cuda; return SUCCESS; }

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    nvmlReturn_t result = gate(NULL, __func__);
    *count = n_visible;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (!users) return UNINITIALIZED;
    if (index >= n_visible) return INVALID_ARGUMENT;
    *device = visible[index];
    return gate(*device, __func__);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    if (!users) return UNINITIALIZED;
    for (unsigned i = 0; i < n_visible; i++) {
        *device = visible[i];
        if (!strcmp(uuid, visible[i]->uuid)) return gate(*device, __func__);
        for (int j = 0; j < MAX_SLICES; j++) {
            *device = visible[i]->slices[j];
            if (*device && !strcmp(uuid, (*device)->uuid)) return gate(*device, __func__);
        }
    }
    return NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device) {
    for (unsigned i = 0; i < n_visible; i++) {
        char own[32];
        snprintf(own, sizeof own, "00000000:%02X:00.0", visible[i]->index + 1);
        *device = visible[i];
        if (!strcmp(id, own)) return gate(*device, __func__);
    }
    return NOT_FOUND;
}

/* ---- identity ---- */

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *text, unsigned size) { ENTER(d); return copy(text, size, d->name); }
EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *text, unsigned size) { ENTER(d); return copy(text, size, d->uuid); }
EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t d, unsigned *n) { ENTER(d); *n = (unsigned)d->index; return SUCCESS; }

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t d, unsigned *index) {
    ENTER(d);
    for (*index = 0; *index < n_visible; (*index)++)
        if (visible[*index] == d) return SUCCESS;
    return NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *pci) {
    ENTER(d);
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned)d->index + 1;
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t d, int *major, int *minor) {
    ENTER(d);
    *major = d->compute_major;
    *minor = d->compute_minor;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t d, unsigned *architecture) {
    ENTER(d);
    *architecture = d->compute_major == 7 ? 5 : d->compute_major == 9 ? 9 : 7; /* Volta, Hopper, Ampere */
    return SUCCESS;
}

/* ---- power and energy: of boards only; a MIG slice has no sensor ---- */

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned *mw) {
    ENTER(d);
    if (d->parent) return NOT_SUPPORTED;
    *mw = d->legacy_is_average ? average_mw(d) : instant_mw(d);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *mj) {
    ENTER(d);
    nvmlReturn_t result = d->parent ? NOT_SUPPORTED : field_gate(d, FIELD_ENERGY);
    if (result == SUCCESS) *mj = energy_mj(d);
    return result;
}

static void answer(const struct gpu *gpu, nvmlFieldValue_t *field) {
    field->nvmlReturn = gpu->parent ? NOT_SUPPORTED : field_gate(gpu, (int)field->fieldId);
    const struct writes *writes = field->fieldId == FIELD_ENERGY ? &gpu->counter_writes : &gpu->power_writes;
    long long number;
    field->timestamp = (long long)((script.t0_epoch_s + register_s(gpu, writes, &number)) * 1e6);
    field->latencyUsec = 0;
    field->valueType = VALUE_UNSIGNED_INT;
    if (field->nvmlReturn != SUCCESS) return;
    int whole_gpu = field->scopeId == 0;
    if (field->fieldId == FIELD_POWER_INSTANT && whole_gpu) field->value.uiVal = instant_mw(gpu);
    else if (field->fieldId == FIELD_POWER_AVERAGE && whole_gpu) field->value.uiVal = average_mw(gpu);
    else if (field->fieldId == FIELD_MEMORY_TEMPERATURE) field->value.uiVal = temperature_c(gpu) + 10;
    else if (field->fieldId == FIELD_ENERGY) {
        field->valueType = VALUE_UNSIGNED_LONG_LONG;
        field->value.ullVal = energy_mj(gpu);
    } else field->nvmlReturn = NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int count, nvmlFieldValue_t *fields) {
    ENTER(d);
    for (int i = 0; i < count; i++) answer(d, &fields[i]);
    return SUCCESS;
}

static nvmlReturn_t limit(nvmlDevice_t d, unsigned *mw) {
    *mw = (unsigned)llround(d->limit_w * 1e3);
    return d->parent ? NOT_SUPPORTED : SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t d, unsigned *mw) { ENTER(d); return limit(d, mw); }
EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned *mw) { ENTER(d); return limit(d, mw); }
EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t d, unsigned *mw) { ENTER(d); return limit(d, mw); }

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t d, unsigned *least, unsigned *most) {
    ENTER(d);
    *least = 100000;
    return limit(d, most);
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t d, unsigned mw) { ENTER(d); (void)mw; return NO_PERMISSION; }
EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t d, unsigned mode) { ENTER(d); (void)mode; return NO_PERMISSION; }

/* ---- clocks, heat, load ---- */

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t d, unsigned kind, unsigned *mhz) {
    ENTER(d);
    *mhz = kind == 2 ? d->mem_clock_mhz : d->sm_clock_mhz;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t d, unsigned kind, unsigned *mhz) {
    ENTER(d);
    *mhz = kind == 2 ? d->mem_clock_mhz : d->sm_clock_mhz;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *bits) {
    ENTER(d);
    *bits = event_bits(d);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t d, unsigned long long *bits) {
    ENTER(d);
    *bits = event_bits(d);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t d, unsigned sensor, unsigned *celsius) {
    ENTER(d);
    *celsius = temperature_c(d);
    return sensor == 0 ? SUCCESS : INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t d, nvmlTemperature_t *reading) {
    ENTER(d);
    reading->temperature = (int)temperature_c(d);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *rates) {
    ENTER(d);
    if (d->parent || d->mig) return NOT_SUPPORTED;
    rates->gpu = instant_mw(d) > d->profile.idle_w * 1.2e3 ? 98 : 0;
    rates->memory = rates->gpu / 2;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *memory) {
    ENTER(d);
    *memory = (nvmlMemory_t){d->memory_total, d->memory_total - d->memory_used, d->memory_used};
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *memory) {
    ENTER(d);
    if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    memory->total = d->memory_total;
    memory->reserved = 0;
    memory->used = d->memory_used;
    memory->free = d->memory_total - d->memory_used;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *count, nvmlProcessInfo_t *found) {
    ENTER(d);
    unsigned room = *count;
    *count = d->n_processes;
    if (room < d->n_processes) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < d->n_processes; i++)
        found[i] = (nvmlProcessInfo_t){d->processes[i].pid, d->processes[i].memory, ~0u, ~0u};
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, unsigned *count, nvmlProcessInfo_t *found) {
    ENTER(d);
    (void)found;
    *count = 0;
    return SUCCESS;
}

/* ---- modes ---- */

EXPORT nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t d, unsigned *mode) { ENTER(d); *mode = 1; return SUCCESS; }
EXPORT nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t d, unsigned *mode) { ENTER(d); *mode = 0; return SUCCESS; }
EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t d, unsigned *state) { ENTER(d); *state = 0; return SUCCESS; }

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t d, unsigned *now, unsigned *pending) {
    ENTER(d);
    *now = *pending = 1;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned *now, unsigned *pending) {
    ENTER(d);
    *now = *pending = (unsigned)d->mig;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, unsigned *count) {
    ENTER(d);
    *count = d->mig ? MAX_SLICES : 0;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, unsigned index, nvmlDevice_t *slice) {
    ENTER(d);
    if (!d->mig) return NOT_SUPPORTED;
    if (index >= MAX_SLICES || !d->slices[index]) return NOT_FOUND;
    *slice = d->slices[index];
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t d, unsigned *is) {
    ENTER(d);
    *is = d->parent != NULL;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t d, nvmlDevice_t *board) {
    ENTER(d);
    *board = d->parent;
    return d->parent ? SUCCESS : INVALID_ARGUMENT;
}
