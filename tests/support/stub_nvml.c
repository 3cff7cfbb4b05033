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
 *   crash        the next call takes the process along (SIGSEGV)
 *   vanished     the second card is not listed any more
 *   odd          figures that no card can mean
 *   mig          the second card is divided into two instances
 * Calls that are not here at all are "function not found" for the binding, as with an old driver.
 */
#include <signal.h>
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
static char parts[2];

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

static int is_part(void *card) { return (char *)card >= parts && (char *)card < parts + 2; }
static int index_of(void *card) { return is_part(card) ? (int)((char *)card - parts) : (int)((char *)card - cards); }

static int before(void *card) {
    while (is("hang")) usleep(20000);
    if (is("crash")) raise(SIGSEGV);
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
    *count = is("vanished") ? 1 : CARDS;
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
    snprintf(uuid, length, is_part(card) ? "MIG-stub-%d" : "GPU-stub-%d", index_of(card));
    return OK;
}
int nvmlDeviceGetName(void *card, char *name, unsigned int length) {
    BEFORE(card);
    snprintf(name, length, is_part(card) ? "Stub H100 80GB MIG 3g.40gb" : "Stub H100 80GB");
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *card, memory_t *memory) {
    BEFORE(card);
    memory->total = (is_part(card) ? 40ULL : 80ULL) << 30;
    memory->used = (1ULL + index_of(card)) << 30;
    memory->free = memory->total - memory->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *card, utilization_t *use) {
    RARE(card);
    if (is_part(card)) return NOT_SUPPORTED;
    use->gpu = is("odd") ? 4000000000u : 37;
    use->memory = 11;
    return OK;
}
int nvmlDeviceGetTemperature(void *card, int sensor, unsigned int *degrees) {
    (void)sensor;
    RARE(card);
    *degrees = is("odd") ? 4294967295u : 51;
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
typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, pci_device, pci_subsystem;
    char id[32];
} pci_t;
int nvmlDeviceGetPciInfo_v3(void *card, pci_t *pci) {
    BEFORE(card);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->id, sizeof pci->id, "00000000:%02X:00.0", 0x3b + index_of(card));
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *card, unsigned long long *reasons) {
    RARE(card);
    *reasons = 0x1 | 0x4 | 0x40;
    return OK;
}
int nvmlDeviceGetTotalEccErrors(void *card, unsigned int type, unsigned int counter, unsigned long long *count) {
    RARE(card);
    *count = type * 10 + counter;
    return OK;
}
int nvmlDeviceGetRemappedRows(void *card, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failure) {
    RARE(card);
    *corrected = *uncorrected = *failure = 0;
    *pending = index_of(card);
    return OK;
}
int nvmlDeviceGetCurrPcieLinkGeneration(void *card, unsigned int *generation) { RARE(card); *generation = 4; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(void *card, unsigned int *generation) { RARE(card); *generation = 5; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(void *card, unsigned int *width) { RARE(card); *width = 8; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(void *card, unsigned int *width) { RARE(card); *width = 16; return OK; }
int nvmlDeviceGetPcieThroughput(void *card, unsigned int counter, unsigned int *kilobytes) {
    RARE(card);
    *kilobytes = counter ? 2048 : 1024; /* 0 is sent, 1 is received */
    return OK;
}
int nvmlDeviceGetNvLinkState(void *card, unsigned int link, unsigned int *state) {
    RARE(card);
    if (link >= 4) return INVALID;
    *state = link != 3;
    return OK;
}
int nvmlDeviceGetNvLinkErrorCounter(void *card, unsigned int link, unsigned int counter, unsigned long long *count) {
    RARE(card);
    *count = link == 1 && counter == 0 ? 7 : 0;
    return OK;
}
int nvmlDeviceGetMigMode(void *card, unsigned int *current, unsigned int *pending) {
    RARE(card);
    *current = *pending = is("mig") && index_of(card) == 1;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *card, unsigned int *count) { RARE(card); *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *card, unsigned int index, void **part) {
    RARE(card);
    if (index >= 2) return 6; /* not found */
    *part = &parts[index];
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
