/* Breaks one system call of a process: the N-th that changes something below a directory, or that reads there.
 *
 * Loaded by LD_PRELOAD, it stands before the C library's functions. It does nothing until it is armed, by the variables
 * CRASH_UNDER, CRASH_KIND, CRASH_AT, CRASH_INPUTS, CRASH_WITHOUT and CRASH_LOG when the process starts, or by
 * crash_arm(). Linux and glibc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define OURS __attribute__((visibility("default")))

enum fate { GO_ON, FAIL, FAIL_AFTER, HALF, DIE_AFTER };

static struct {
    int armed, log, reads, error, stays;
    long at, next;  /* next: how many calls later one more fails */
    char under[PATH_MAX], inputs[PATH_MAX], kind[32], without[128];
} crash;
static long changes, reads;  /* counted by all threads */
static __thread char where[2 * PATH_MAX];

/* The C library's function of a name. dlsym itself is one of ours, so the library's is found by its version. */
static void *library(const char *name)
{
    static void *(*real)(void *, const char *);
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5"};
    for (unsigned i = 0; !real && i < sizeof versions / sizeof *versions; i++)
        *(void **)&real = dlvsym(RTLD_NEXT, "dlsym", versions[i]);
    if (!real)
        abort();
    return real(RTLD_NEXT, name);
}

#define REAL(name) static __typeof__(name) *real; if (!real) *(void **)&real = library(#name)

static int error_of(const char *kind)
{
    static const struct { const char *name; int number; } errors[] = {
        {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EACCES", EACCES},
    };
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++)
        if (strstr(kind, errors[i].name))
            return errors[i].number;
    return 0;
}

/* Kinds: count, kill-before, kill-after, ENOSPC, EIO, EACCES (with -on: that call and all after it; with +1: that
 * call and the next; with -after: it fails though it has done its work), short, fill, SIGINT, SIGTERM, SIGINT+SIGTERM;
 * read-EIO and read-short for reads. `without` lists calls that this file system does not have. */
OURS void crash_arm(const char *under, const char *kind, long at, const char *inputs, const char *without,
                    const char *log)
{
    snprintf(crash.under, sizeof crash.under, "%s", under);
    snprintf(crash.inputs, sizeof crash.inputs, "%s", inputs ? inputs : "");
    snprintf(crash.kind, sizeof crash.kind, "%s", kind);
    snprintf(crash.without, sizeof crash.without, ",%s,", without ? without : "");
    crash.reads = !strncmp(kind, "read-", 5);
    crash.stays = strstr(kind, "-on") != NULL;
    crash.error = error_of(kind);
    crash.at = at;
    crash.next = strchr(kind, '+') ? atol(strchr(kind, '+')) : 0;
    crash.log = -1;
    if (log && *log) {
        REAL(open64);
        crash.log = real(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    changes = reads = 0;
    crash.armed = 1;
}

__attribute__((constructor)) static void arm_by_environment(void)
{
    const char *under = getenv("CRASH_UNDER"), *kind = getenv("CRASH_KIND"), *at = getenv("CRASH_AT");
    if (under && kind)
        crash_arm(under, kind, at ? atol(at) : 0, getenv("CRASH_INPUTS"), getenv("CRASH_WITHOUT"), getenv("CRASH_LOG"));
}

static int below(const char *directory)
{
    size_t length = strlen(directory);
    return length && !strncmp(where, directory, length) && (where[length] == '/' || !where[length]);
}

/* Whether a descriptor is of something below the directory; `where` then says of what. */
static int of(int descriptor, const char *directory)
{
    char link[64];
    if (!crash.armed || descriptor < 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, where, PATH_MAX - 1);
    where[length < 0 ? 0 : length] = 0;
    return below(directory);
}

/* Whether a path, of a directory's descriptor or of the current one, leads below the directory. */
static int at(int directory, const char *path)
{
    if (!crash.armed || !path)
        return 0;
    if (path[0] == '/') {
        snprintf(where, sizeof where, "%s", path);
    } else if (directory == AT_FDCWD) {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here))
            return 0;
        snprintf(where, sizeof where, "%s/%s", here, path);
    } else {
        of(directory, "");
        size_t length = strlen(where);
        snprintf(where + length, sizeof where - length, "/%s", path);
    }
    return below(crash.under);
}

static void say(const char *name, long number)
{
    char line[3 * PATH_MAX];
    if (crash.log < 0)
        return;
    int length = snprintf(line, sizeof line, "%s %ld %s\n", name, number, where);
    syscall(SYS_write, crash.log, line, length);
}

/* Take all the room that the disk has, in a file beside the directory. */
static void fill(void)
{
    char path[PATH_MAX + 8];
    static char zeros[4096];
    snprintf(path, sizeof path, "%s.filler", crash.under);
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT, 0600);
    while (syscall(SYS_write, descriptor, zeros, sizeof zeros) > 0)
        ;
    syscall(SYS_close, descriptor);
}

/* A full disk still lets go of things. */
static int takes_room(const char *name)
{
    return !strstr(name, "unlink") && !strstr(name, "rmdir") && !strstr(name, "rename") && !strstr(name, "chmod");
}

static enum fate decide(const char *name, int is_read)
{
    char listed[40];
    int before = errno;
    snprintf(listed, sizeof listed, ",%s,", name);
    if (!is_read && strstr(crash.without, listed)) {
        say(name, 0);
        errno = strstr(name, "link") ? EPERM : EINVAL;
        return FAIL;
    }
    long number = __atomic_add_fetch(is_read ? &reads : &changes, 1, __ATOMIC_SEQ_CST);
    say(name, is_read ? -number : number);
    errno = before;
    int due = number == crash.at || (number > crash.at && (crash.stays || number == crash.at + crash.next));
    if (is_read != crash.reads || !crash.at || !due)
        return GO_ON;
    if (crash.error) {
        if (crash.stays && crash.error == ENOSPC && !takes_room(name))
            return GO_ON;
        errno = crash.error;
        return strstr(crash.kind, "-after") ? FAIL_AFTER : FAIL;
    }
    if (!strcmp(crash.kind, "kill-before"))
        kill(getpid(), SIGKILL);
    if (strstr(crash.kind, "SIGINT"))
        kill(getpid(), SIGINT);
    if (strstr(crash.kind, "SIGTERM"))
        kill(getpid(), SIGTERM);
    if (!strcmp(crash.kind, "fill"))
        fill();
    errno = before;
    return strstr(crash.kind, "short") ? HALF : strcmp(crash.kind, "kill-after") ? GO_ON : DIE_AFTER;
}

#define BROKEN(name, watched, is_read, arguments, halve)                                                              \
    REAL(name);                                                                                                        \
    if (!crash.armed || !(watched))                                                                                    \
        return real arguments;                                                                                         \
    enum fate fate = decide(#name, is_read);                                                                           \
    if (fate == FAIL)                                                                                                  \
        return -1;                                                                                                     \
    if (fate == HALF) {                                                                                                \
        halve;                                                                                                         \
    }                                                                                                                  \
    __typeof__(real arguments) result = real arguments;                                                                \
    if (fate == DIE_AFTER)                                                                                             \
        kill(getpid(), SIGKILL);                                                                                       \
    if (fate == FAIL_AFTER) {                                                                                          \
        errno = crash.error;                                                                                           \
        return -1;                                                                                                     \
    }                                                                                                                  \
    return result

#define CHANGE(name, parameters, arguments, watched)                                                                   \
    OURS int name parameters { BROKEN(name, watched, 0, arguments, ); }

CHANGE(mkdir, (const char *path, mode_t mode), (path, mode), at(AT_FDCWD, path))
CHANGE(mkdirat, (int d, const char *path, mode_t mode), (d, path, mode), at(d, path))
CHANGE(rmdir, (const char *path), (path), at(AT_FDCWD, path))
CHANGE(unlink, (const char *path), (path), at(AT_FDCWD, path))
CHANGE(unlinkat, (int d, const char *path, int flags), (d, path, flags), at(d, path))
CHANGE(link, (const char *from, const char *to), (from, to), at(AT_FDCWD, to))
CHANGE(linkat, (int d, const char *from, int e, const char *to, int flags), (d, from, e, to, flags), at(e, to))
CHANGE(symlink, (const char *to, const char *path), (to, path), at(AT_FDCWD, path))
CHANGE(symlinkat, (const char *to, int d, const char *path), (to, d, path), at(d, path))
CHANGE(rename, (const char *from, const char *to), (from, to), at(AT_FDCWD, from) || at(AT_FDCWD, to))
CHANGE(renameat, (int d, const char *from, int e, const char *to), (d, from, e, to), at(d, from) || at(e, to))
CHANGE(renameat2, (int d, const char *from, int e, const char *to, unsigned flags), (d, from, e, to, flags),
       at(d, from) || at(e, to))
CHANGE(chmod, (const char *path, mode_t mode), (path, mode), at(AT_FDCWD, path))
CHANGE(fchmod, (int d, mode_t mode), (d, mode), of(d, crash.under))
CHANGE(fchmodat, (int d, const char *path, mode_t mode, int flags), (d, path, mode, flags), at(d, path))
CHANGE(truncate64, (const char *path, off64_t size), (path, size), at(AT_FDCWD, path))
CHANGE(ftruncate, (int d, off_t size), (d, size), of(d, crash.under))
CHANGE(ftruncate64, (int d, off64_t size), (d, size), of(d, crash.under))
CHANGE(fallocate64, (int d, int mode, off64_t from, off64_t size), (d, mode, from, size), of(d, crash.under))
CHANGE(fsync, (int d), (d), of(d, crash.under))
CHANGE(fdatasync, (int d), (d), of(d, crash.under))
CHANGE(syncfs, (int d), (d), of(d, crash.under))
CHANGE(sync_file_range, (int d, off64_t from, off64_t size, unsigned flags), (d, from, size, flags),
       of(d, crash.under))

/* posix_fallocate returns the number of the error. */
OURS int posix_fallocate64(int d, off64_t from, off64_t size)
{
    REAL(posix_fallocate64);
    if (!crash.armed || !of(d, crash.under))
        return real(d, from, size);
    enum fate fate = decide("posix_fallocate64", 0);
    if (fate == FAIL)
        return errno;
    int result = real(d, from, size);
    if (fate == DIE_AFTER)
        kill(getpid(), SIGKILL);
    return fate == FAIL_AFTER ? crash.error : result;
}

#define MODE                                                                                                           \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                            \
    va_end(rest)
#define MAKES ((flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE)

OURS int open(const char *path, int flags, ...)
{
    MODE;
    BROKEN(open, MAKES && at(AT_FDCWD, path), 0, (path, flags, mode), );
}

OURS int open64(const char *path, int flags, ...)
{
    MODE;
    BROKEN(open64, MAKES && at(AT_FDCWD, path), 0, (path, flags, mode), );
}

OURS int openat(int d, const char *path, int flags, ...)
{
    MODE;
    BROKEN(openat, MAKES && at(d, path), 0, (d, path, flags, mode), );
}

OURS int openat64(int d, const char *path, int flags, ...)
{
    MODE;
    BROKEN(openat64, MAKES && at(d, path), 0, (d, path, flags, mode), );
}

#define MOVES(name, is_read, directory, parameters, arguments)                                                         \
    OURS ssize_t name parameters { BROKEN(name, of(d, directory), is_read, arguments, size = (size + 1) / 2); }

MOVES(write, 0, crash.under, (int d, const void *from, size_t size), (d, from, size))
MOVES(pwrite, 0, crash.under, (int d, const void *from, size_t size, off_t to), (d, from, size, to))
MOVES(pwrite64, 0, crash.under, (int d, const void *from, size_t size, off64_t to), (d, from, size, to))
MOVES(sendfile64, 0, crash.under, (int d, int from, off64_t *place, size_t size), (d, from, place, size))
MOVES(read, 1, crash.inputs, (int d, void *to, size_t size), (d, to, size))
MOVES(pread, 1, crash.inputs, (int d, void *to, size_t size, off_t from), (d, to, size, from))
MOVES(pread64, 1, crash.inputs, (int d, void *to, size_t size, off64_t from), (d, to, size, from))

OURS ssize_t copy_file_range(int from, off64_t *place, int d, off64_t *to, size_t size, unsigned flags)
{
    BROKEN(copy_file_range, of(d, crash.under), 0, (from, place, d, to, size, flags), size = (size + 1) / 2);
}

/* Half of several buffers: half of the first. */
#define VECTOR(name, is_read, directory, parameters, arguments)                                                        \
    OURS ssize_t name parameters                                                                                       \
    {                                                                                                                  \
        struct iovec half;                                                                                             \
        BROKEN(name, of(d, directory), is_read, arguments, half = *parts; half.iov_len = (half.iov_len + 1) / 2;       \
               parts = &half; count = 1);                                                                              \
    }

VECTOR(writev, 0, crash.under, (int d, const struct iovec *parts, int count), (d, parts, count))
VECTOR(pwritev64, 0, crash.under, (int d, const struct iovec *parts, int count, off64_t to), (d, parts, count, to))
VECTOR(pwritev64v2, 0, crash.under, (int d, const struct iovec *parts, int count, off64_t to, int flags),
       (d, parts, count, to, flags))
VECTOR(preadv64, 1, crash.inputs, (int d, const struct iovec *parts, int count, off64_t from), (d, parts, count, from))
VECTOR(preadv64v2, 1, crash.inputs, (int d, const struct iovec *parts, int count, off64_t from, int flags),
       (d, parts, count, from, flags))

OURS long syscall(long number, ...)
{
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_renameat2)
        return renameat2((int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3], (unsigned)a[4]);
    REAL(syscall);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ctypes asks the C library itself for what Python has no function for. */
OURS void *dlsym(void *restrict handle, const char *restrict name)
{
    static void *(*real)(void *, const char *);
    if (!real)
        *(void **)&real = library("dlsym");
    if (!strcmp(name, "renameat2"))
        return (void *)renameat2;
    if (!strcmp(name, "syscall"))
        return (void *)syscall;
    return real(handle, name);
}
