/* A disk that hangs, as a hard NFS mount whose server is gone: what asks for the folder NEBULA_STALL_DIR does not return
 * while the file NEBULA_STALL_FLAG is there. Preloaded (LD_PRELOAD); every call that names a path there hangs, and fsync; reads
 * and writes of files that are open go on, as they do from the page cache of such a mount. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int below(const char *path) {
    const char *dir = getenv("NEBULA_STALL_DIR");
    return dir != NULL && path != NULL && strncmp(path, dir, strlen(dir)) == 0;
}

static void stall(void) {
    const char *flag = getenv("NEBULA_STALL_FLAG");
    while (flag != NULL && access(flag, F_OK) == 0) usleep(20000);
}

int fsync(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > 0) {
        path[length] = 0;
        if (below(path)) stall();
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int rename(const char *from, const char *to) {
    if (below(to)) stall();
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}

#define REAL(name) dlsym(RTLD_NEXT, name)

#define OPEN(name)                                                                                                                 \
    int name(const char *path, int flags, ...) {                                                                                   \
        va_list rest;                                                                                                              \
        va_start(rest, flags);                                                                                                     \
        mode_t mode = va_arg(rest, mode_t);                                                                                        \
        va_end(rest);                                                                                                              \
        if (below(path)) stall();                                                                                                  \
        return ((int (*)(const char *, int, mode_t))REAL(#name))(path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)

#define TWO(name, type)                                                                                                            \
    int name(const char *path, type out) {                                                                                         \
        if (below(path)) stall();                                                                                                  \
        return ((int (*)(const char *, type))REAL(#name))(path, out);                                                              \
    }
TWO(statvfs, struct statvfs *)
TWO(statvfs64, struct statvfs64 *)
TWO(stat, struct stat *)
TWO(stat64, struct stat64 *)
TWO(lstat, struct stat *)
TWO(lstat64, struct stat64 *)
TWO(mkdir, mode_t)
TWO(truncate, off_t)
TWO(truncate64, off64_t)

#define ONE(name)                                                                                                                  \
    int name(const char *path) {                                                                                                   \
        if (below(path)) stall();                                                                                                  \
        return ((int (*)(const char *))REAL(#name))(path);                                                                         \
    }
ONE(unlink)
ONE(rmdir)
