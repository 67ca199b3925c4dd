/* Records every change of the files below a directory, in the order in which they happened, for a test that loses power.
 *
 * Preloaded into the server (LD_PRELOAD). RECORDER_ROOT names the directory, without symbolic links; RECORDER_TO the file that the record is
 * appended to, outside of it. What is written is recorded under the same lock, so that the record's order is the disk's. A sync runs outside the
 * lock and is recorded once it has succeeded, with the record's length at its call: it covers what stood in the record before that. Whatever could
 * change a file in a way that is not recorded ends the process. -shm files are left out: SQLite makes them anew.
 *
 * On SIGUSR1 the process dies as by SIGKILL, but between two changes: a change half recorded would be one that the test does not know.
 *
 * Everything goes to the kernel by syscall(2): looking the real functions up could call the allocator, which may not be ready. 64-bit Linux only. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "a 64-bit system");

enum { ROOT = 1, CREATE, WRITE, RESIZE, SYNC, MAKE_DIR, RENAME, REMOVE };

struct head {
    uint64_t op, ino, number, path_len, data_len;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[4096];
static size_t root_len;
static int record = -1;
static volatile sig_atomic_t dying;

static void say(const char *text) {
    if (syscall(SYS_write, 2, text, strlen(text)) < 0) {
    }
}

static _Noreturn void refuse(const char *what, const char *path) {
    say("recorder: not modelled or failed: ");
    say(what);
    say(" ");
    say(path);
    say("\n");
    abort();
}

static void put(const void *bytes, size_t len) {
    const char *at = bytes;
    while (len > 0) {
        long n = syscall(SYS_write, record, at, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) refuse("writing the record", strerror(errno));
        at += n;
        len -= (size_t)n;
    }
}

/* Appends one change; the lock is held. */
static void note(uint64_t op, uint64_t ino, uint64_t number, const char *path, const void *data, size_t data_len) {
    int saved = errno;
    struct head head = {op, ino, number, path ? strlen(path) : 0, data_len};
    put(&head, sizeof head);
    if (path) put(path, strlen(path));
    if (data_len) put(data, data_len);
    if (dying) syscall(SYS_kill, getpid(), SIGKILL);
    errno = saved;
}

static void die_soon(int signal) {
    (void)signal;
    dying = 1;
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("RECORDER_ROOT"), *to = getenv("RECORDER_TO");
    struct stat st;
    if (!dir || !to || strlen(dir) + 1 >= sizeof root) refuse("starting", "without its environment");
    if (stat(dir, &st)) refuse("looking at", dir);
    record = (int)syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (record < 0) refuse("opening", to);
    strcpy(root, dir);
    root_len = strlen(root);
    signal(SIGUSR1, die_soon);
    pthread_mutex_lock(&lock);
    note(ROOT, st.st_ino, 0, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
}

static int ends_with(const char *path, const char *end) {
    size_t len = strlen(path), end_len = strlen(end);
    return len >= end_len && !strcmp(path + len - end_len, end);
}

/* Whether changes of what is at this path are recorded. A path that is not absolute could be anywhere. */
static int is_below(const char *path) {
    if (record < 0) return 0;
    if (path[0] != '/') refuse("a relative path", path);
    if (strncmp(path, root, root_len) || (path[root_len] != '/' && path[root_len])) return 0;
    return !ends_with(path, "-shm") && !ends_with(path, "-shm (deleted)");
}

/* The path inside the root, without a leading slash. */
static const char *inside(const char *path) {
    path += root_len;
    while (*path == '/') path++;
    return path;
}

/* Whether an open file's changes are recorded; then gives its inode. */
static int is_recorded(int fd, uint64_t *ino) {
    char link[32], path[4200];
    struct stat st;
    int saved = errno, found = 0;
    if (fd >= 0 && fd != record && record >= 0 && !fstat(fd, &st) && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        long len = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
        if (len < 0) refuse("naming", link);
        path[len] = 0;
        found = is_below(path);
        *ino = st.st_ino;
    }
    errno = saved;
    return found;
}

static void refuse_if_recorded(int fd, const char *what) {
    uint64_t ino;
    if (is_recorded(fd, &ino)) refuse(what, "on a recorded file");
}

static void refuse_if_below(const char *path, const char *what) {
    if (is_below(path)) refuse(what, path);
}

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    int changes = flags & (O_CREAT | O_TRUNC), writes = (flags & O_ACCMODE) != O_RDONLY;
    if (path[0] != '/' && dir != AT_FDCWD && (changes || writes)) refuse("opening below a directory's handle", path);
    if ((!changes && !writes) || path[0] != '/' || !is_below(path)) return (int)syscall(SYS_openat, dir, path, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE || flags & (O_SYNC | O_DSYNC | O_DIRECT)) refuse("flags of an open", path);
    struct stat st;
    pthread_mutex_lock(&lock);
    int existed = !stat(path, &st);
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    if (fd >= 0) {
        if (fstat(fd, &st)) refuse("looking at", path);
        if (!existed) note(CREATE, st.st_ino, 0, inside(path), NULL, 0);
        else if (flags & O_TRUNC) note(RESIZE, st.st_ino, 0, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name, ...)                                  \
    int name(__VA_ARGS__, ...) {                         \
        mode_t mode = 0;                                 \
        if (flags & (O_CREAT | O_TMPFILE)) {             \
            va_list rest;                                \
            va_start(rest, flags);                       \
            mode = va_arg(rest, mode_t);                 \
            va_end(rest);                                \
        }                                                \
        return open_at(OPEN_DIR, path, flags, mode);     \
    }
#define OPEN_DIR AT_FDCWD
OPEN(open, const char *path, int flags)
OPEN(open64, const char *path, int flags)
#undef OPEN_DIR
#define OPEN_DIR dir
OPEN(openat, int dir, const char *path, int flags)
OPEN(openat64, int dir, const char *path, int flags)
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

ssize_t write(int fd, const void *bytes, size_t len) {
    uint64_t ino;
    if (!is_recorded(fd, &ino)) return syscall(SYS_write, fd, bytes, len);
    pthread_mutex_lock(&lock);
    ssize_t n = syscall(SYS_write, fd, bytes, len);
    if (n > 0) note(WRITE, ino, (uint64_t)(syscall(SYS_lseek, fd, 0, SEEK_CUR) - n), NULL, bytes, (size_t)n);
    pthread_mutex_unlock(&lock);
    return n;
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    uint64_t ino;
    if (!is_recorded(fd, &ino)) return syscall(SYS_pwrite64, fd, bytes, len, at);
    pthread_mutex_lock(&lock);
    ssize_t n = syscall(SYS_pwrite64, fd, bytes, len, at);
    if (n > 0) note(WRITE, ino, (uint64_t)at, NULL, bytes, (size_t)n);
    pthread_mutex_unlock(&lock);
    return n;
}
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return pwrite64(fd, bytes, len, at); }

int ftruncate64(int fd, off64_t len) {
    uint64_t ino;
    if (!is_recorded(fd, &ino)) return (int)syscall(SYS_ftruncate, fd, len);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_ftruncate, fd, len);
    if (!done) note(RESIZE, ino, (uint64_t)len, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

static int sync_by(long call, int fd) {
    uint64_t ino;
    if (!is_recorded(fd, &ino)) return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    uint64_t before = (uint64_t)syscall(SYS_lseek, record, 0, SEEK_END);
    pthread_mutex_unlock(&lock);
    int done = (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    if (!done) note(SYNC, ino, before, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int fsync(int fd) { return sync_by(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_by(SYS_fdatasync, fd); }

int mkdirat(int dir, const char *path, mode_t mode) {
    if (path[0] != '/') refuse("mkdir of a relative path", path);
    if (!is_below(path)) return (int)syscall(SYS_mkdirat, dir, path, mode);
    struct stat st;
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_mkdirat, dir, path, mode);
    if (!done) {
        if (stat(path, &st)) refuse("looking at", path);
        note(MAKE_DIR, st.st_ino, 0, inside(path), NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    if (is_below(from) != is_below(to) || (is_below(from) && flags)) refuse("renaming to", to);
    if (!is_below(from)) return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (!done) note(RENAME, 0, 0, inside(from), inside(to), strlen(inside(to)));
    pthread_mutex_unlock(&lock);
    return done;
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renameat2(from_dir, from, to_dir, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags) {
    if (!is_below(path)) return (int)syscall(SYS_unlinkat, dir, path, flags);
    if (flags) refuse("rmdir", path);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_unlinkat, dir, path, flags);
    if (!done) note(REMOVE, 0, 0, inside(path), NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int remove(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

/* What follows changes files in ways that nobody here uses. */

void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t from) {
    if ((flags & MAP_SHARED) && (protection & PROT_WRITE)) refuse_if_recorded(fd, "a shared mapping");
    return (void *)syscall(SYS_mmap, at, len, protection, flags, fd, from);
}
void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t from) { return mmap64(at, len, protection, flags, fd, from); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    refuse_if_recorded(fd, "writev");
    return syscall(SYS_writev, fd, parts, count);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    refuse_if_recorded(fd, "pwritev");
    return syscall(SYS_pwritev2, fd, parts, count, at, 0, flags);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) { return pwritev64v2(fd, parts, count, at, flags); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    refuse_if_recorded(fd, "pwritev");
    return syscall(SYS_pwritev, fd, parts, count, at, 0);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return pwritev64(fd, parts, count, at); }

int fallocate64(int fd, int mode, off64_t from, off64_t len) {
    refuse_if_recorded(fd, "fallocate");
    return (int)syscall(SYS_fallocate, fd, mode, from, len);
}
int fallocate(int fd, int mode, off_t from, off_t len) { return fallocate64(fd, mode, from, len); }
int posix_fallocate64(int fd, off64_t from, off64_t len) { return fallocate64(fd, 0, from, len) ? errno : 0; }
int posix_fallocate(int fd, off_t from, off_t len) { return posix_fallocate64(fd, from, len); }
int truncate64(const char *path, off64_t len) {
    refuse_if_below(path, "truncate");
    return (int)syscall(SYS_truncate, path, len);
}
int truncate(const char *path, off_t len) { return truncate64(path, len); }

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t len, unsigned flags) {
    refuse_if_recorded(to, "copy_file_range");
    return syscall(SYS_copy_file_range, from, from_at, to, to_at, len, flags);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t len) {
    refuse_if_recorded(to, "sendfile");
    return syscall(SYS_sendfile, to, from, at, len);
}
ssize_t sendfile(int to, int from, off_t *at, size_t len) { return sendfile64(to, from, at, len); }
ssize_t splice(int from, off64_t *from_at, int to, off64_t *to_at, size_t len, unsigned flags) {
    refuse_if_recorded(to, "splice");
    return syscall(SYS_splice, from, from_at, to, to_at, len, flags);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    refuse_if_below(to, "link");
    return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
int symlinkat(const char *target, int dir, const char *path) {
    refuse_if_below(path, "symlink");
    return (int)syscall(SYS_symlinkat, target, dir, path);
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }
