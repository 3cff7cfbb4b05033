/* A stub of NVIDIA's management library: two cards that do not exist, in moods a test chooses while it runs.
 *
 * The mood is read from the file named by NEBULA_STUB_NVML before every call:
 *   ok           everything answers
 *   unsupported  memory answers, the rest says "not supported"
 *   lost         the second card fell off the bus
 *   hang         the next call never returns (until the mood changes)
 *   dead         the driver is gone: every call is an unknown error
 *   foreign      a process of somebody else holds 12 GiB of the first card
 *   noperm       initialisation is not permitted
 * Calls that are not here at all are "function not found" for the binding, as with an old driver.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, LOST = 15, UNKNOWN = 999 };
enum { CARDS = 2 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;

static char cards[CARDS];

static int is(const char *mood) {
    char found[32] = "ok";
    const char *path = getenv("NEBULA_STUB_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "%31s", found) != 1) strcpy(found, "ok");
        fclose(file);
    }
    return strcmp(found, mood) == 0;
}

static int index_of(void *card) { return (int)((char *)card - cards); }

static int before(void *card) {
    while (is("hang")) usleep(20000);
    if (is("dead")) return UNKNOWN;
    if (card && is("lost") && index_of(card) == 1) return LOST;
    return OK;
}

#define BEFORE(card) do { int status = before(card); if (status) return status; } while (0)
#define RARE(card) do { BEFORE(card); if (is("unsupported")) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (is("noperm")) return NO_PERMISSION;
    return before(NULL);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int status) {
    switch (status) {
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}
int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    BEFORE(NULL);
    snprintf(version, length, "580.00.stub");
    return OK;
}
int nvmlDeviceGetCount_v2(unsigned int *count) {
    BEFORE(NULL);
    *count = CARDS;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **card) {
    if (index >= CARDS) return INVALID;
    *card = &cards[index];
    BEFORE(*card);
    return OK;
}
int nvmlDeviceGetUUID(void *card, char *uuid, unsigned int length) {
    BEFORE(card);
    snprintf(uuid, length, "GPU-stub-%d", index_of(card));
    return OK;
}
int nvmlDeviceGetName(void *card, char *name, unsigned int length) {
    BEFORE(card);
    snprintf(name, length, "Stub H100 80GB");
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *card, memory_t *memory) {
    BEFORE(card);
    memory->total = 80ULL << 30;
    memory->used = (1ULL + index_of(card)) << 30;
    memory->free = memory->total - memory->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *card, utilization_t *use) {
    RARE(card);
    use->gpu = 37;
    use->memory = 11;
    return OK;
}
int nvmlDeviceGetTemperature(void *card, int sensor, unsigned int *degrees) {
    (void)sensor;
    RARE(card);
    *degrees = 51;
    return OK;
}
int nvmlDeviceGetPowerUsage(void *card, unsigned int *milliwatts) {
    RARE(card);
    *milliwatts = 321500;
    return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(void *card, unsigned int *milliwatts) {
    RARE(card);
    *milliwatts = 700000;
    return OK;
}
/* nvmlDeviceGetClockInfo is missing on purpose. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned int *count, process_t *processes) {
    const char *pid = getenv("NEBULA_STUB_NVML_PID");
    RARE(card);
    if (index_of(card) != 0 || !pid) {
        *count = 0;
        return OK;
    }
    if (*count < 1) {
        *count = 1;
        return 7; /* insufficient size: asked again with room */
    }
    *count = 1;
    processes[0].pid = (unsigned int)atoi(pid);
    processes[0].used = is("foreign") ? 12ULL << 30 : 1ULL << 30;
    processes[0].gi = processes[0].ci = 0xffffffffu;
    return OK;
}
