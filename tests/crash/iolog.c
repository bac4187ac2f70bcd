/* What a process does to the files of a store: written down, cut short, or made to fail. Loaded with LD_PRELOAD.
 *
 * A step is a call that changes a file or a name, or makes one durable: write, pwrite, pwritev, truncate, fallocate, copy_file_range, sendfile,
 * fsync, fdatasync, rename, link, unlink, mkdir, rmdir, symlink, and an open that makes or empties a file. Only steps below `root` count. LMDB's are
 * among them: it writes pages with pwrite, syncs with fdatasync, and writes its meta page through a descriptor with O_DSYNC.
 *
 * Modes: RECORD writes each step that succeeded to `log`, with its data, in the order in which they happened; KILL ends the process with SIGKILL at
 * step `at` (TORN: half of a write is done before); FAIL lets step `at` fail with `error` (ONWARDS: from then on, what needs space).
 * With MATCH only steps count that fit a pattern (as of a shell, over "write /refs.log"), which stands in `what` of the counter file.
 * COUNT only counts. Counter, lock and log are shared by all processes that have the same `log` and `counter`, so a daemon or a child goes on counting.
 *
 * One step at a time: a lock is held around the call and its record, so the order in the log is the order of effects.
 *
 * Record: "IOLG", u32 type, u64 inode, u64 other inode, u64 offset, u64 length, u32 flags, u32 path bytes, u32 second path bytes, u32 data bytes,
 * then path, second path, data. Little-endian.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, RECORD, KILL, FAIL, COUNT };
enum { TORN = 1, ONWARDS = 2, MATCH = 4 };
enum {
    CREATE = 1, WRITE, TRUNCATE, ZERO, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, SYMLINK, SYNC_ALL, EXCHANGE,
};
enum { DSYNC = 1, DIRECTORY = 2, MADE = 4, SHRINKS = 8 };

struct header {
    char magic[4];
    uint32_t type;
    uint64_t inode, other, offset, length;
    uint32_t flags, path, second, data;
};

static char root[4096], log_path[4096], pattern[240];
static size_t root_bytes;
static int mode, fail_errno, options, log_fd = -1;
static ino_t log_inode;
static uint64_t at;
static struct { uint64_t steps, lifted; char what[240]; } *shared;  /* lifted: nothing fails any more */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

static void forked(void) { pthread_mutex_init(&mutex, NULL); inside = 0; }

/* Called by whoever has just forked, or by the constructor from the environment. */
int iolog_configure(const char *store, const char *log, const char *counter, int new_mode, uint64_t step, int error, int flags) {
    inside = 1;
    snprintf(root, sizeof root, "%s", store);
    root_bytes = strlen(root);
    snprintf(log_path, sizeof log_path, "%s", log);
    if (shared) munmap(shared, sizeof *shared);
    shared = NULL;
    int fd = REAL(open64)(counter, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        if (!REAL(ftruncate64)(fd, sizeof *shared)) shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared == MAP_FAILED) shared = NULL;
        close(fd);
    }
    at = step;
    fail_errno = error;
    options = flags;
    log_fd = -1;
    if (shared) memcpy(pattern, shared->what, sizeof pattern - 1);
    mode = shared ? new_mode : OFF;
    inside = 0;
    return shared ? 0 : -1;
}

static long number_of(const char *name) { const char *text = getenv(name); return text ? atol(text) : 0; }

__attribute__((constructor)) static void start(void) {
    pthread_atfork(NULL, NULL, forked);
    if (getenv("IOLOG_ROOT"))
        iolog_configure(getenv("IOLOG_ROOT"), getenv("IOLOG_LOG"), getenv("IOLOG_COUNTER"), (int)number_of("IOLOG_MODE"),
                        (uint64_t)number_of("IOLOG_AT"), (int)number_of("IOLOG_ERRNO"), (int)number_of("IOLOG_OPTIONS"));
}

/* Paths */

static int below(const char *path) { return !strncmp(path, root, root_bytes) && (path[root_bytes] == '/' || !path[root_bytes]); }

static int path_of_fd(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, 4095);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

/* An absolute path below the store, or 0. Symlinks are not followed: a store has none. */
static int full_path(int directory, const char *name, char *path) {
    char start[4096];
    if (!name) return 0;
    if (name[0] == '/') {
        if (strlen(name) > 4095) return 0;
        strcpy(path, name);
        return below(path);
    }
    if (directory == AT_FDCWD) {
        if (!getcwd(start, sizeof start)) return 0;
    } else if (!path_of_fd(directory, start)) {
        return 0;
    }
    if (snprintf(path, 4096, "%s/%s", start, name) >= 4096) return 0;
    return below(path);
}

static uint64_t inode_at(const char *path) {
    struct stat info;
    return fstatat(AT_FDCWD, path, &info, AT_SYMLINK_NOFOLLOW) ? 0 : info.st_ino;
}

static uint64_t inode_of(int fd, uint32_t *flags) {
    struct stat info;
    if (fstat(fd, &info)) return 0;
    if (flags && S_ISDIR(info.st_mode)) *flags |= DIRECTORY;
    return info.st_ino;
}

/* Steps */

static void lock(void) {
    pthread_mutex_lock(&mutex);
    inside = 1;
    if (mode == RECORD) {
        struct stat info;
        if (log_fd < 0 || fstat(log_fd, &info) || info.st_ino != log_inode) {  /* a daemon closes what it does not know */
            int fd = REAL(open64)(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
            log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
            if (log_fd < 0) log_fd = fd; else close(fd);
            if (fstat(log_fd, &info)) abort();
            log_inode = info.st_ino;
        }
        struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        while (fcntl(log_fd, F_SETLKW, &whole) && errno == EINTR) {}
    }
}

static void unlock(void) {
    int saved = errno;
    if (mode == RECORD) {
        struct flock whole = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
        fcntl(log_fd, F_SETLK, &whole);
    }
    inside = 0;
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void put_record(int type, uint64_t inode, uint64_t other, uint64_t offset, uint64_t length, uint32_t flags, const char *path,
                       const char *second, const void *data, size_t bytes) {
    if (mode != RECORD) return;
    int saved = errno;
    struct header head = {"", (uint32_t)type, inode, other, offset, length, flags, path ? (uint32_t)strlen(path) : 0,
                          second ? (uint32_t)strlen(second) : 0, (uint32_t)bytes};
    memcpy(head.magic, "IOLG", 4);
    struct iovec parts[4] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)second, head.second}, {(void *)data, bytes}};
    ssize_t whole = (ssize_t)(sizeof head + head.path + head.second + bytes);
    if (REAL(writev)(log_fd, parts, 4) != whole) abort();
    errno = saved;
}

/* Does a step end the process here, or fail? 1: fail, errno is set. `torn` does half of a write. */
static int step(const char *what, const char *path, int needs_space, void (*torn)(void *), void *argument) {
    if (options & MATCH) {
        char text[4200];
        snprintf(text, sizeof text, "%s %s", what, path + root_bytes);
        if (fnmatch(pattern, text, 0)) return 0;
    }
    uint64_t number = __atomic_add_fetch(&shared->steps, 1, __ATOMIC_SEQ_CST);
    if (mode == KILL && number == at) {
        snprintf(shared->what, sizeof shared->what, "%s %s", what, path + root_bytes);
        if (torn && (options & TORN)) torn(argument);
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (mode == FAIL && !shared->lifted && (number == at || ((options & ONWARDS) && number > at && needs_space))) {
        if (fail_errno != EIO && !needs_space) return 0;
        if (number == at) snprintf(shared->what, sizeof shared->what, "%s %s", what, path + root_bytes);
        errno = fail_errno;
        return 1;
    }
    return 0;
}

#define COUNTS(condition) (mode != OFF && !inside && (condition))

struct half { int fd; const struct iovec *parts; int count; off_t offset; };

static void write_half(void *argument) {
    struct half *half = argument;
    size_t total = 0;
    for (int i = 0; i < half->count; i++) total += half->parts[i].iov_len;
    size_t rest = total / 2;
    off_t where = half->offset;
    for (int i = 0; i < half->count && rest; i++) {
        size_t n = half->parts[i].iov_len < rest ? half->parts[i].iov_len : rest;
        ssize_t done = where < 0 ? REAL(write)(half->fd, half->parts[i].iov_base, n) : REAL(pwrite64)(half->fd, half->parts[i].iov_base, n, where);
        if (done <= 0) return;
        if (where >= 0) where += done;
        rest -= (size_t)done;
    }
}

static void record_write(int fd, const struct iovec *parts, int count, off_t offset, ssize_t done) {
    uint32_t flags = fcntl(fd, F_GETFL) & (O_DSYNC | O_SYNC) ? DSYNC : 0;
    char *data = malloc((size_t)done ? (size_t)done : 1);
    size_t filled = 0;
    for (int i = 0; i < count && filled < (size_t)done; i++) {
        size_t n = parts[i].iov_len < (size_t)done - filled ? parts[i].iov_len : (size_t)done - filled;
        memcpy(data + filled, parts[i].iov_base, n);
        filled += n;
    }
    put_record(WRITE, inode_of(fd, NULL), 0, (uint64_t)offset, filled, flags, NULL, NULL, data, filled);
    free(data);
}

/* All writes. `offset` -1: at the descriptor's own. */
static ssize_t any_write(int fd, const struct iovec *parts, int count, off_t offset) {
    char path[4096];
    if (!COUNTS(path_of_fd(fd, path))) return offset < 0 ? REAL(writev)(fd, parts, count) : REAL(pwritev64)(fd, parts, count, offset);
    lock();
    struct half half = {fd, parts, count, offset};
    ssize_t done = -1;
    if (!step("write", path, 1, write_half, &half)) {
        int appends = fcntl(fd, F_GETFL) & O_APPEND;
        off_t where = offset >= 0 ? offset : appends ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
        done = offset < 0 ? REAL(writev)(fd, parts, count) : REAL(pwritev64)(fd, parts, count, offset);
        if (done >= 0 && mode == RECORD) record_write(fd, parts, count, where, done);
    }
    unlock();
    return done;
}

ssize_t write(int fd, const void *data, size_t n) {
    if (mode == OFF || inside) return REAL(write)(fd, data, n);
    struct iovec part = {(void *)data, n};
    return any_write(fd, &part, 1, -1);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return any_write(fd, parts, count, -1); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) {
    struct iovec part = {(void *)data, n};
    return any_write(fd, &part, 1, offset);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return pwrite64(fd, data, n, offset); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return any_write(fd, parts, count, offset); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return any_write(fd, parts, count, offset); }
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    if (!flags) return any_write(fd, parts, count, offset);
    char path[4096];
    if (COUNTS(path_of_fd(fd, path))) abort();  /* nobody does it */
    return REAL(pwritev64v2)(fd, parts, count, offset, flags);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) { return pwritev64v2(fd, parts, count, offset, flags); }

/* What the kernel copied is read back. */
static void record_copied(int fd, off_t where, ssize_t done) {
    if (done <= 0 || mode != RECORD) return;
    char *data = malloc((size_t)done);
    int again = open("/dev/null", O_RDONLY);
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (again >= 0) close(again);
    again = REAL(open64)(link, O_RDONLY | O_CLOEXEC);
    if (pread(again, data, (size_t)done, where) != done) abort();
    close(again);
    put_record(WRITE, inode_of(fd, NULL), 0, (uint64_t)where, (uint64_t)done, 0, NULL, NULL, data, (size_t)done);
    free(data);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags) {
    char path[4096];
    if (!COUNTS(path_of_fd(out, path))) return REAL(copy_file_range)(in, from, out, to, n, flags);
    lock();
    ssize_t done = -1;
    if (!step("copy to", path, 1, NULL, NULL)) {
        off_t where = to ? *to : lseek(out, 0, SEEK_CUR);
        done = REAL(copy_file_range)(in, from, out, to, n, flags);
        record_copied(out, where, done);
    }
    unlock();
    return done;
}

ssize_t sendfile64(int out, int in, off64_t *from, size_t n) {
    char path[4096];
    if (!COUNTS(path_of_fd(out, path))) return REAL(sendfile64)(out, in, from, n);
    lock();
    ssize_t done = -1;
    if (!step("send to", path, 1, NULL, NULL)) {
        off_t where = lseek(out, 0, SEEK_CUR);
        done = REAL(sendfile64)(out, in, from, n);
        record_copied(out, where, done);
    }
    unlock();
    return done;
}
ssize_t sendfile(int out, int in, off_t *from, size_t n) { return sendfile64(out, in, from, n); }

int ftruncate64(int fd, off64_t size) {
    char path[4096];
    if (!COUNTS(path_of_fd(fd, path))) return REAL(ftruncate64)(fd, size);
    lock();
    struct stat info;
    int grows = !fstat(fd, &info) && info.st_size < size, failed = -1;
    if (!step("truncate", path, grows, NULL, NULL) && !(failed = REAL(ftruncate64)(fd, size)))
        put_record(TRUNCATE, inode_of(fd, NULL), 0, 0, (uint64_t)size, 0, NULL, NULL, NULL, 0);
    unlock();
    return failed;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int truncate64(const char *name, off64_t size) {
    int fd = open64(name, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int failed = ftruncate64(fd, size), saved = errno;
    close(fd);
    errno = saved;
    return failed;
}
int truncate(const char *name, off_t size) { return truncate64(name, size); }

int fallocate64(int fd, int how, off64_t offset, off64_t n) {
    char path[4096];
    if (!COUNTS(path_of_fd(fd, path))) return REAL(fallocate64)(fd, how, offset, n);
    lock();
    int punch = how & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE), failed = -1;
    if (!step(punch ? "punch" : "allocate", path, !punch, NULL, NULL) && !(failed = REAL(fallocate64)(fd, how, offset, n))) {
        struct stat info;
        fstat(fd, &info);
        if (punch) put_record(ZERO, inode_of(fd, NULL), 0, (uint64_t)offset, (uint64_t)n, 0, NULL, NULL, NULL, 0);
        else put_record(TRUNCATE, inode_of(fd, NULL), 0, 0, (uint64_t)info.st_size, 0, NULL, NULL, NULL, 0);
    }
    unlock();
    return failed;
}
int fallocate(int fd, int how, off_t offset, off_t n) { return fallocate64(fd, how, offset, n); }
int posix_fallocate64(int fd, off64_t offset, off64_t n) { return fallocate64(fd, 0, offset, n) ? errno : 0; }
int posix_fallocate(int fd, off_t offset, off_t n) { return posix_fallocate64(fd, offset, n); }

#define DURABLE(name)                                                                                        \
    int name(int fd) {                                                                                       \
        char path[4096];                                                                                     \
        if (!COUNTS(path_of_fd(fd, path))) return REAL(name)(fd);                                            \
        lock();                                                                                              \
        int failed = -1;                                                                                     \
        uint32_t flags = 0;                                                                                  \
        uint64_t inode = inode_of(fd, &flags);                                                               \
        if (!step(#name, path, 1, NULL, NULL) && !(failed = REAL(name)(fd)))                                 \
            put_record(SYNC, inode, 0, 0, 0, flags, NULL, NULL, NULL, 0);                                    \
        unlock();                                                                                            \
        return failed;                                                                                       \
    }
DURABLE(fsync)
DURABLE(fdatasync)

int syncfs(int fd) {
    char path[4096];
    if (!COUNTS(path_of_fd(fd, path))) return REAL(syncfs)(fd);
    lock();
    int failed = -1;
    if (!step("syncfs", path, 1, NULL, NULL) && !(failed = REAL(syncfs)(fd))) put_record(SYNC_ALL, 0, 0, 0, 0, 0, NULL, NULL, NULL, 0);
    unlock();
    return failed;
}

/* Names */

static int any_open(int directory, const char *name, int flags, mode_t permissions) {
    char path[4096];
    if (!COUNTS((flags & (O_CREAT | O_TRUNC)) && !(flags & O_TMPFILE & ~O_DIRECTORY) && full_path(directory, name, path)))
        return REAL(openat64)(directory, name, flags, permissions);
    lock();
    struct stat info;
    int there = !fstatat(AT_FDCWD, path, &info, AT_SYMLINK_NOFOLLOW);
    int empties = there && (flags & O_TRUNC) && info.st_size, makes = !there && (flags & O_CREAT), fd = -1;
    if (!(makes || empties) || !step(makes ? "create" : "empty", path, makes, NULL, NULL)) {
        fd = REAL(openat64)(directory, name, flags, permissions);
        if (fd >= 0 && makes) put_record(CREATE, inode_of(fd, NULL), 0, 0, 0, 0, path, NULL, NULL, 0);
        if (fd >= 0 && empties) put_record(TRUNCATE, inode_of(fd, NULL), 0, 0, 0, 0, NULL, NULL, NULL, 0);
    }
    unlock();
    return fd;
}

#define PERMISSIONS ({ mode_t given = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); given = va_arg(list, mode_t); va_end(list); } given; })

int open64(const char *name, int flags, ...) { return any_open(AT_FDCWD, name, flags, PERMISSIONS); }
int open(const char *name, int flags, ...) { return any_open(AT_FDCWD, name, flags, PERMISSIONS); }
int openat64(int directory, const char *name, int flags, ...) { return any_open(directory, name, flags, PERMISSIONS); }
int openat(int directory, const char *name, int flags, ...) { return any_open(directory, name, flags, PERMISSIONS); }
int creat64(const char *name, mode_t permissions) { return any_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, permissions); }
int creat(const char *name, mode_t permissions) { return creat64(name, permissions); }

int renameat2(int old_directory, const char *old, int new_directory, const char *new, unsigned flags) {
    char from[4096], to[4096];
    if (!COUNTS(full_path(old_directory, old, from) && full_path(new_directory, new, to)))
        return REAL(renameat2)(old_directory, old, new_directory, new, flags);
    lock();
    int failed = -1;
    uint64_t moved = inode_at(from), replaced = inode_at(to);
    if (!step("rename", to, 1, NULL, NULL) && !(failed = REAL(renameat2)(old_directory, old, new_directory, new, flags)))
        put_record(flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, moved, replaced, 0, 0, 0, from, to, NULL, 0);
    unlock();
    return failed;
}
int renameat(int old_directory, const char *old, int new_directory, const char *new) { return renameat2(old_directory, old, new_directory, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int linkat(int old_directory, const char *old, int new_directory, const char *new, int flags) {
    char to[4096];
    if (!COUNTS(full_path(new_directory, new, to))) return REAL(linkat)(old_directory, old, new_directory, new, flags);
    lock();
    int failed = -1;
    if (!step("link", to, 1, NULL, NULL) && !(failed = REAL(linkat)(old_directory, old, new_directory, new, flags)))
        put_record(LINK, inode_at(to), 0, 0, 0, 0, to, NULL, NULL, 0);
    unlock();
    return failed;
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int directory, const char *name, int flags) {
    char path[4096];
    if (!COUNTS(full_path(directory, name, path))) return REAL(unlinkat)(directory, name, flags);
    lock();
    int failed = -1;
    uint64_t inode = inode_at(path);
    if ((!inode || !step("unlink", path, 0, NULL, NULL)) && !(failed = REAL(unlinkat)(directory, name, flags)))
        put_record(flags & AT_REMOVEDIR ? RMDIR : UNLINK, inode, 0, 0, 0, 0, path, NULL, NULL, 0);
    unlock();
    return failed;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) {
    struct stat info;
    return fstatat(AT_FDCWD, name, &info, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(info.st_mode) ? unlink(name) : rmdir(name);
}

int mkdirat(int directory, const char *name, mode_t permissions) {
    char path[4096];
    if (!COUNTS(full_path(directory, name, path))) return REAL(mkdirat)(directory, name, permissions);
    lock();
    int failed = -1;
    uint64_t there = inode_at(path);
    if ((there || !step("mkdir", path, 1, NULL, NULL)) && !(failed = REAL(mkdirat)(directory, name, permissions)))
        put_record(MKDIR, inode_at(path), 0, 0, 0, 0, path, NULL, NULL, 0);
    unlock();
    return failed;
}
int mkdir(const char *name, mode_t permissions) { return mkdirat(AT_FDCWD, name, permissions); }

int symlinkat(const char *target, int directory, const char *name) {
    char path[4096];
    if (!COUNTS(full_path(directory, name, path))) return REAL(symlinkat)(target, directory, name);
    lock();
    int failed = -1;
    if (!step("symlink", path, 1, NULL, NULL) && !(failed = REAL(symlinkat)(target, directory, name)))
        put_record(SYMLINK, inode_at(path), 0, 0, 0, 0, path, NULL, target, strlen(target));
    unlock();
    return failed;
}
int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }
