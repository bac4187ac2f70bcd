/* PID 1 of a warm container: runs one command after another, as the runner orders over a socket.
 *
 * The engine's own `run` starts it with the user, capabilities, filters, limits, environment and directory of the container, so a command that it
 * forks has what the engine would have given it. It is one static file, because an image may have nothing in it.
 *
 * Messages (SOCK_SEQPACKET at SOCKET). To us: 'R' with three fds, the order, stdin and the log; 'K': kill what runs, ignored when nothing does. From us:
 * one `struct reply` when we are ready, and one for each order, sent when nothing of the command is left. The end of the socket is our end, and so
 * the kernel's end of everything in here. `orders.py` is the other side.
 *
 * An order is a file: argc and the number of variables (two uint32), then strings that end with NUL: the working directory (empty: the one that we
 * were started in), the arguments, and the NAME=VALUE to put on top of our own environment.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SOCKET "/pfs/.sock"
#define DEFAULT_PATH "/usr/local/bin:/usr/bin:/bin"
#define NSEC 1000000000LL
#define PATIENCE (30 * NSEC) /* freeing the memory of killed processes takes time; one that hangs in the kernel never goes */
#define RESPITE (1 * NSEC) /* for those that we may not kill: another user's, of a setuid program */

enum kind { READY, ENDED, NO_CWD, NOT_FOUND, NO_INTERPRETER, NOT_EXECUTABLE, NOT_STARTED };
enum flags { KILLED = 1, STUCK = 2, DIRTY = 4 }; /* orders.py says what they mean */

struct reply {
    int32_t kind, error, status, flags;
    int64_t started_ns, ran_ns, max_rss_kib, user_us, system_us;
};

struct refusal { int32_t kind, error; }; /* child to us: why there is no command */

struct fresh { /* a directory whose new names are deleted after each command */
    const char *path;
    int fd; /* -1: not there, or not ours to read */
    int absent;
    int keep; /* it is somebody's mount: new names are told, not deleted */
    struct stat info;
    char **names; /* what the image has in it; ends with NULL */
};

static struct fresh fresh[] = {{.path = "/tmp"}, {.path = "/var/tmp"}, {.path = "/dev/shm"}, {.path = "/dev/mqueue"}};
#define FRESH_END (fresh + sizeof fresh / sizeof *fresh)
static char *home; /* the image's WORKDIR */

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * NSEC + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    _exit(1);
}

/* ---- directories that each command finds as the image has them ---- */

static int is_special(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

static int is_known(const struct fresh *dir, const char *name) {
    for (char **known = dir->names; *known; known++)
        if (!strcmp(*known, name)) return 1;
    return 0;
}

static DIR *list(int fd) {
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *found = again < 0 ? NULL : fdopendir(again);
    if (!found && again >= 0) close(again);
    return found;
}

static void remember(struct fresh *dir) {
    struct statx info;
    struct dirent *item;
    size_t count = 0;
    DIR *items;
    dir->names = calloc(1, sizeof *dir->names);
    dir->fd = open(dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir->absent = dir->fd < 0 && errno == ENOENT;
    if (!dir->names) die("init: memory");
    if (dir->fd < 0 || fstat(dir->fd, &dir->info) || !(items = list(dir->fd))) return;
    if (strncmp(dir->path, "/dev/", 5) && !statx(dir->fd, "", AT_EMPTY_PATH, 0, &info))
        dir->keep = !!(info.stx_attributes & STATX_ATTR_MOUNT_ROOT);
    while ((item = readdir(items))) {
        if (is_special(item->d_name)) continue;
        dir->names = realloc(dir->names, (count + 2) * sizeof *dir->names);
        if (!dir->names || !(dir->names[count++] = strdup(item->d_name))) die("init: memory");
        dir->names[count] = NULL;
    }
    closedir(items);
}

/* Deletes `name` and what is in it, as long as it is on the device `on`. False when something stays. */
static int delete(int at, const char *name, dev_t on) {
    struct stat info;
    struct dirent *item;
    DIR *items;
    int gone = 1, fd;
    if (!unlinkat(at, name, 0)) return 1;
    if (errno != EISDIR && errno != EPERM) return 0;
    if (fstatat(at, name, &info, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(info.st_mode) || info.st_dev != on) return 0;
    if (!unlinkat(at, name, AT_REMOVEDIR)) return 1;
    if ((info.st_mode & 0700) != 0700) fchmodat(at, name, 0700, 0);
    fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return 0;
    if (!(items = fdopendir(fd))) return close(fd), 0;
    while ((item = readdir(items)))
        if (!is_special(item->d_name)) gone &= delete(fd, item->d_name, on);
    closedir(items);
    return gone && !unlinkat(at, name, AT_REMOVEDIR);
}

/* False when the next command would not find the directory as this one did. */
static int restore(struct fresh *dir) {
    struct stat info;
    struct dirent *item;
    DIR *items;
    int clean = 1;
    if (stat(dir->path, &info)) return dir->fd < 0;
    if (dir->fd < 0) return !dir->absent;
    if (info.st_dev != dir->info.st_dev || info.st_ino != dir->info.st_ino) return 0;
    if (info.st_mode != dir->info.st_mode && fchmod(dir->fd, dir->info.st_mode & 07777)) return 0;
    if (!(items = list(dir->fd))) return 0;
    while ((item = readdir(items))) {
        if (is_special(item->d_name) || is_known(dir, item->d_name)) continue;
        clean &= !dir->keep && delete(dir->fd, item->d_name, dir->info.st_dev);
    }
    closedir(items);
    return clean;
}

/* System V objects outlive their processes. The engine gave us an IPC namespace of our own. */
static int drop_ipc(void) {
    union { struct shmid_ds shm; struct msqid_ds msg; struct semid_ds sem; struct shm_info si; struct msginfo mi; struct seminfo ei; } u;
    int id, last, clean = 1;
    for (last = shmctl(0, SHM_INFO, (struct shmid_ds *)&u.si); last >= 0; last--)
        if ((id = shmctl(last, SHM_STAT, &u.shm)) >= 0) clean &= !shmctl(id, IPC_RMID, NULL);
    for (last = msgctl(0, MSG_INFO, (struct msqid_ds *)&u.mi); last >= 0; last--)
        if ((id = msgctl(last, MSG_STAT, &u.msg)) >= 0) clean &= !msgctl(id, IPC_RMID, NULL);
    for (last = semctl(0, 0, SEM_INFO, &u.ei); last >= 0; last--)
        if ((id = semctl(last, 0, SEM_STAT, &u.sem)) >= 0) clean &= !semctl(id, 0, IPC_RMID);
    return clean;
}

static int clean_up(void) {
    int clean = drop_ipc();
    for (struct fresh *dir = fresh; dir < FRESH_END; dir++) clean &= restore(dir);
    return clean;
}

/* ---- the command ---- */

static char *next_string(char **at) {
    char *found = *at;
    *at += strlen(found) + 1;
    return found;
}

/* Our environment, with `count` variables at `at` on top. */
static void set_environment(char *at, uint32_t count) {
    while (count--) {
        char *name = next_string(&at), *value = strchr(name, '=');
        if (!value) continue;
        *value = '\0';
        if (setenv(name, value + 1, 1)) _exit(1);
    }
}

/* Executes what a shell would find for argv[0]; comes back with the reason when there is nothing to execute. */
static struct refusal execute(char **argv) {
    struct refusal why = {NOT_FOUND, ENOENT};
    const char *path = getenv("PATH"), *end;
    char *candidate = malloc(strlen(path ? path : DEFAULT_PATH) + strlen(argv[0]) + 3);
    int direct = !!strchr(argv[0], '/');
    if (!candidate) return (struct refusal){NOT_STARTED, ENOMEM};
    if (!*argv[0]) return why;
    for (path = path ? path : DEFAULT_PATH;; path = end + 1) {
        end = strchrnul(path, ':');
        if (direct) strcpy(candidate, argv[0]);
        else sprintf(candidate, "%.*s/%s", end == path ? 1 : (int)(end - path), end == path ? "." : path, argv[0]);
        execv(candidate, argv);
        if (errno == ENOENT || errno == ENOTDIR) {
            struct stat info;
            if (!lstat(candidate, &info)) why = (struct refusal){NO_INTERPRETER, errno};
        } else if (errno == EAGAIN || errno == ENOMEM) {
            return (struct refusal){NOT_STARTED, errno};
        } else if (why.kind == NOT_FOUND && (direct || errno != EACCES || !access(candidate, F_OK))) {
            why = (struct refusal){NOT_EXECUTABLE, errno};
        }
        if (direct || !*end) return why;
    }
}

static struct refusal start(int order) {
    struct stat info;
    char *text, *at, **argv, *cwd;
    uint32_t counts[2];
    if (fstat(order, &info)) return (struct refusal){NOT_STARTED, errno};
    text = mmap(NULL, info.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, order, 0);
    if (text == MAP_FAILED) return (struct refusal){NOT_STARTED, errno};
    memcpy(counts, text, sizeof counts);
    at = text + sizeof counts;
    if (!(argv = calloc(counts[0] + 1, sizeof *argv))) return (struct refusal){NOT_STARTED, ENOMEM};
    cwd = next_string(&at);
    for (uint32_t i = 0; i < counts[0]; i++) argv[i] = next_string(&at);
    set_environment(at, counts[1]);
    if (chdir(*cwd ? cwd : home)) return (struct refusal){NO_CWD, errno};
    return execute(argv);
}

static void become(int order, int input, int log, int report) {
    struct refusal why;
    sigset_t none;
    setsid();
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(input, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0) _exit(1);
    why = start(order);
    if (write(report, &why, sizeof why) < 0) _exit(2);
    _exit(1);
}

/* ---- watching it ---- */

static void count(struct reply *reply, const struct rusage *used) {
    if (used->ru_maxrss > reply->max_rss_kib) reply->max_rss_kib = used->ru_maxrss;
    reply->user_us += used->ru_utime.tv_sec * 1000000LL + used->ru_utime.tv_usec;
    reply->system_us += used->ru_stime.tv_sec * 1000000LL + used->ru_stime.tv_usec;
}

/* Whether a process belongs to another user, and so outlives our signals. kill(-1) itself does not tell. */
static int is_any_beyond_us(void) {
    struct dirent *item;
    DIR *items = opendir("/proc");
    int found = 0;
    while (items && !found && (item = readdir(items))) {
        long pid = strtol(item->d_name, NULL, 10);
        found = pid > 1 && kill(pid, 0) && errno == EPERM;
    }
    if (items) closedir(items);
    return found;
}

/* A deadline that is not later than `within` from now. */
static int64_t sooner(int64_t deadline, int64_t within) {
    int64_t other = now(CLOCK_MONOTONIC) + within;
    return deadline && deadline < other ? deadline : other;
}

/* Until no process is left but us: all are our children in the end. False when we cannot kill one; our end will. */
static int watch(pid_t command, struct reply *reply, int sock, int children) {
    struct pollfd ready[] = {{sock, POLLIN, 0}, {children, POLLIN, 0}};
    int64_t deadline = 0;
    for (;;) {
        struct signalfd_siginfo ignored;
        struct rusage used;
        int status;
        pid_t pid;
        if (deadline && !kill(-1, SIGKILL) && is_any_beyond_us()) deadline = sooner(deadline, RESPITE);
        while ((pid = wait4(-1, &status, WNOHANG, &used)) > 0) {
            count(reply, &used);
            if (pid != command) continue;
            reply->status = status;
            reply->ran_ns += now(CLOCK_MONOTONIC);
            deadline = sooner(deadline, PATIENCE);
            command = 0;
        }
        if (pid < 0 && errno == ECHILD) return 1;
        if (deadline && now(CLOCK_MONOTONIC) > deadline) break;
        if (poll(ready, 2, deadline ? 10 : -1) < 0 && errno != EINTR) die("init: poll");
        if (ready[1].revents && read(children, &ignored, sizeof ignored) < 0 && errno != EAGAIN) die("init: signalfd");
        if (ready[0].revents) {
            char said;
            if (recv(sock, &said, 1, 0) <= 0) _exit(0);
            if (said == 'K' && !deadline) {
                reply->flags |= KILLED;
                deadline = sooner(deadline, PATIENCE);
            }
        }
    }
    if (command) { /* it was to be killed */
        reply->status = SIGKILL;
        reply->ran_ns += now(CLOCK_MONOTONIC);
    }
    return 0;
}

static struct reply run(const int *fds, int sock, int children) {
    struct reply reply = {.kind = ENDED};
    struct refusal why;
    int report[2];
    pid_t command;
    reply.started_ns = now(CLOCK_REALTIME);
    reply.ran_ns = -now(CLOCK_MONOTONIC);
    if (pipe2(report, O_CLOEXEC)) die("init: pipe");
    command = fork();
    if (command == 0) become(fds[0], fds[1], fds[2], report[1]);
    why = (struct refusal){NOT_STARTED, errno};
    close(report[1]);
    for (int i = 0; i < 3; i++) close(fds[i]);
    if (command > 0 && !watch(command, &reply, sock, children)) {
        reply.flags |= STUCK;
        return reply;
    }
    if (command < 0 || read(report[0], &why, sizeof why) == sizeof why) {
        reply.kind = why.kind;
        reply.error = why.error;
    }
    close(report[0]);
    if (!clean_up()) reply.flags |= DIRTY;
    return reply;
}

/* Waits for an order and its three fds. False when they could not be taken. */
static int hear(int sock, int *fds) {
    char said, space[CMSG_SPACE(3 * sizeof(int))];
    struct iovec data = {&said, 1};
    for (;;) {
        struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
        struct cmsghdr *head;
        if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) <= 0) _exit(0);
        if (said != 'R') continue;
        head = CMSG_FIRSTHDR(&message);
        if (!head || head->cmsg_len != CMSG_LEN(3 * sizeof(int))) return 0;
        memcpy(fds, CMSG_DATA(head), 3 * sizeof(int));
        return 1;
    }
}

int main(void) {
    struct sockaddr_un address = {AF_UNIX, SOCKET};
    struct reply reply = {.kind = READY};
    sigset_t chld;
    int fds[3], children, sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof address)) die("init: the runner's socket");
    close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    prctl(PR_SET_DUMPABLE, 0); /* a command of the same user must not get at our socket */
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, NULL);
    children = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
    if (children < 0 || !(home = getcwd(NULL, 0))) die("init");
    for (struct fresh *dir = fresh; dir < FRESH_END; dir++) remember(dir);
    for (;;) {
        if (send(sock, &reply, sizeof reply, 0) < 0 || reply.flags & STUCK) _exit(0);
        reply = hear(sock, fds) ? run(fds, sock, children) : (struct reply){.kind = NOT_STARTED, .error = EMFILE};
    }
}
