/*
 * Faults below a real gateway process, preloaded into it (LD_PRELOAD): writes down what it does to
 * its journal's files, makes its disk slow or failing, and steps its wall clock.
 *
 * FAULTS_JOURNAL  the journal's path; that file, its `-wal`, `-journal` and `.lock`, and their folder
 *                 are looked at, nothing else
 * FAULTS_LOG      where to write down what is done to them (appended; may not be set)
 * FAULTS_CONTROL  what is to go wrong, see `struct control`; changed by the test at any time
 *
 * Changes are written down before they are made, so that none is missing after a kill, and one at a
 * time, so that those written down before the beginning of a sync were made before it. The end of a
 * sync is written down after it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t sync_takes_ms;
    int64_t write_errno;
    int64_t sync_errno;
    int64_t clock_ahead_ns;
};

enum file { NONE, MAIN, WAL, ROLLBACK, LOCK, FOLDER };
enum event { CREATED = 1, WRITTEN, CUT, SYNC_BEGINS, SYNC_ENDED, REMOVED };

struct head {
    uint8_t event;
    uint8_t file;
    uint8_t unused[2];
    uint32_t length;
    uint64_t place;
};

#define FILES 65536
static uint8_t files[FILES];
static const char *journal;
static int record = -1;
static const volatile struct control *control;
static uint64_t syncs;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void)
{
    journal = getenv("FAULTS_JOURNAL");
    const char *log = getenv("FAULTS_LOG");
    if (log != NULL)
        record = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    const char *path = getenv("FAULTS_CONTROL");
    int fd = path == NULL ? -1 : syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd >= 0) {
        void *map = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, fd, 0);
        control = map == MAP_FAILED ? NULL : map;
        syscall(SYS_close, fd);
    }
}

static void tell(enum event event, enum file file, uint64_t place, const void *bytes, size_t length)
{
    if (record < 0)
        return;
    struct head head = {.event = event, .file = file, .length = length, .place = place};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)bytes, length}};
    /* One call: with O_APPEND, records of several threads and processes do not mix. */
    if (syscall(SYS_writev, record, parts, length > 0 ? 2 : 1) != (long)(sizeof head + length))
        abort();
}

static enum file which(const char *path)
{
    if (journal == NULL || path == NULL)
        return NONE;
    size_t length = strlen(journal);
    if (strncmp(path, journal, length) == 0) {
        const char *rest = path + length;
        if (*rest == 0)
            return MAIN;
        if (strcmp(rest, "-wal") == 0)
            return WAL;
        if (strcmp(rest, ".lock") == 0)
            return LOCK;
        return strcmp(rest, "-journal") == 0 ? ROLLBACK : NONE;
    }
    const char *name = strrchr(journal, '/');
    size_t folder = name == NULL ? 0 : (size_t)(name - journal);
    return folder > 0 && strncmp(path, journal, folder) == 0 && path[folder] == 0 ? FOLDER : NONE;
}

static enum file of(int fd)
{
    return fd >= 0 && fd < FILES ? files[fd] : NONE;
}

static int opened(const char *path, int flags, mode_t mode)
{
    enum file file = which(path);
    struct stat before;
    int is_new = file != NONE && (flags & O_CREAT) && stat(path, &before) != 0;
    if (is_new && control != NULL && control->write_errno != 0) {
        errno = control->write_errno;
        return -1;
    }
    pthread_mutex_lock(&one_at_a_time);
    if (is_new)
        tell(CREATED, file, 0, NULL, 0);
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_unlock(&one_at_a_time);
    if (fd >= 0 && fd < FILES)
        files[fd] = file;
    return fd;
}

#define OPEN(name, more)                                                                            \
    int name(const char *path, int flags, ...)                                                      \
    {                                                                                               \
        va_list rest;                                                                               \
        va_start(rest, flags);                                                                      \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                     \
        va_end(rest);                                                                               \
        return opened(path, flags | more, mode);                                                    \
    }
OPEN(open, 0)
OPEN(open64, O_LARGEFILE)

int close(int fd)
{
    if (fd >= 0 && fd < FILES)
        files[fd] = NONE;
    return syscall(SYS_close, fd);
}

static int refuses(enum file file)
{
    if (file == NONE || control == NULL || control->write_errno == 0)
        return 0;
    errno = control->write_errno;
    return 1;
}

static ssize_t written(int fd, const void *bytes, size_t length, off_t place)
{
    enum file file = of(fd);
    if (file == NONE)
        return place < 0 ? syscall(SYS_write, fd, bytes, length)
                         : syscall(SYS_pwrite64, fd, bytes, length, place);
    if (refuses(file))
        return -1;
    pthread_mutex_lock(&one_at_a_time);
    off_t here = place < 0 ? lseek(fd, 0, SEEK_CUR) : place;
    tell(WRITTEN, file, here, bytes, length);
    ssize_t done = place < 0 ? syscall(SYS_write, fd, bytes, length)
                             : syscall(SYS_pwrite64, fd, bytes, length, place);
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    return written(fd, bytes, length, -1);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t place)
{
    return written(fd, bytes, length, place);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t place)
{
    return written(fd, bytes, length, place);
}

static int cut(int fd, off_t length)
{
    enum file file = of(fd);
    if (refuses(file))
        return -1;
    pthread_mutex_lock(&one_at_a_time);
    if (file != NONE)
        tell(CUT, file, length, NULL, 0);
    int failed = syscall(SYS_ftruncate, fd, length);
    pthread_mutex_unlock(&one_at_a_time);
    return failed;
}

int ftruncate(int fd, off_t length)
{
    return cut(fd, length);
}

int ftruncate64(int fd, off64_t length)
{
    return cut(fd, length);
}

static int synced(long call, int fd)
{
    enum file file = of(fd);
    if (file == NONE)
        return syscall(call, fd);
    pthread_mutex_lock(&one_at_a_time);
    uint64_t number = syncs++ | (uint64_t)getpid() << 32;
    tell(SYNC_BEGINS, file, number, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    int64_t takes = control == NULL ? 0 : control->sync_takes_ms;
    if (takes > 0) {
        struct timespec left = {takes / 1000, takes % 1000 * 1000000};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {
        }
    }
    if (control != NULL && control->sync_errno != 0) {
        errno = control->sync_errno;
        return -1;
    }
    int failed = syscall(call, fd);
    if (!failed)
        tell(SYNC_ENDED, file, number, NULL, 0);
    return failed;
}

int fsync(int fd)
{
    return synced(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    return synced(SYS_fdatasync, fd);
}

int unlink(const char *path)
{
    enum file file = which(path);
    if (file == NONE)
        return syscall(SYS_unlink, path);
    if (refuses(file))
        return -1;
    pthread_mutex_lock(&one_at_a_time);
    struct stat there;
    if (stat(path, &there) == 0)
        tell(REMOVED, file, 0, NULL, 0);
    int failed = syscall(SYS_unlink, path);
    pthread_mutex_unlock(&one_at_a_time);
    return failed;
}

static void step(clockid_t clock, struct timespec *time)
{
    int64_t ahead = control == NULL ? 0 : control->clock_ahead_ns;
    if (ahead == 0 || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return;
    int64_t nanoseconds = time->tv_nsec + ahead % 1000000000;
    int64_t carry = nanoseconds < 0 ? -1 : nanoseconds / 1000000000;
    time->tv_sec += ahead / 1000000000 + carry;
    time->tv_nsec = nanoseconds - carry * 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    /* The library's own, which asks the kernel only where it has to. */
    static int (*theirs)(clockid_t, struct timespec *);
    if (theirs == NULL)
        theirs = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = theirs(clock, time);
    if (!failed)
        step(clock, time);
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *result)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result != NULL)
        *result = now.tv_sec;
    return now.tv_sec;
}
