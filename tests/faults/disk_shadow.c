/* What a disk would hold after power loss, kept beside the real files.
 *
 * At each fsync or fdatasync of a file under $SHADOW_OF, its content is copied to the same path under
 * $SHADOW_TO before the call returns; renames, links and removals are repeated there. A file never synced is
 * not there. So file content counts from its last sync on; names (a directory's entries) count at once.
 * Nothing is copied when the real sync fails.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *of, *to;

static int shadow(const char *path, char *out) {
    char real[4096];
    if (!of) { of = getenv("SHADOW_OF"); to = getenv("SHADOW_TO"); }
    if (!of || !to || !path) return 0;
    if (path[0] != '/') {
        char cwd[2048];
        if (!getcwd(cwd, sizeof cwd)) return 0;
        snprintf(real, sizeof real, "%s/%s", cwd, path);
        path = real;
    }
    size_t n = strlen(of);
    if (strncmp(path, of, n) || path[n] != '/') return 0;
    snprintf(out, 4096, "%s%s", to, path + n);
    return 1;
}

static void parents(char *path) {
    for (char *p = path + strlen(to) + 1; (p = strchr(p, '/')); p++) { *p = 0; mkdir(path, 0755); *p = '/'; }
}

static void keep(int fd) {
    int saved = errno;
    char link[64], path[4096], target[4096], fresh[4200], *buffer;
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0 || fstat(fd, &status) || !S_ISREG(status.st_mode)) { errno = saved; return; }
    path[n] = 0;
    if (!shadow(path, target)) { errno = saved; return; }
    pthread_mutex_lock(&lock);
    parents(target);
    snprintf(fresh, sizeof fresh, "%s.shadow-new", target);
    int in = open(link, O_RDONLY), out = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, status.st_mode & 0777);
    buffer = malloc(1 << 20);
    ssize_t got;
    while (in >= 0 && out >= 0 && (got = read(in, buffer, 1 << 20)) > 0)
        if (write(out, buffer, got) != got) abort();
    free(buffer);
    if (in >= 0) close(in);
    if (out >= 0) { close(out); rename(fresh, target); }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

#define REAL(type, name, args) static type (*real) args; if (!real) real = dlsym(RTLD_NEXT, #name)

int fsync(int fd) { REAL(int, fsync, (int)); int r = real(fd); if (!r) keep(fd); return r; }
int fdatasync(int fd) { REAL(int, fdatasync, (int)); int r = real(fd); if (!r) keep(fd); return r; }

int rename(const char *a, const char *b) {
    REAL(int, rename, (const char *, const char *));
    int r = real(a, b);
    char from[4096], into[4096];
    if (!r && shadow(a, from) && shadow(b, into)) { int saved = errno; real(from, into); errno = saved; }
    return r;
}

int link(const char *a, const char *b) {
    REAL(int, link, (const char *, const char *));
    int r = real(a, b);
    char from[4096], into[4096];
    if (!r && shadow(a, from) && shadow(b, into)) { int saved = errno; real(from, into); errno = saved; }
    return r;
}

int linkat(int at, const char *a, int bt, const char *b, int flags) {
    REAL(int, linkat, (int, const char *, int, const char *, int));
    int r = real(at, a, bt, b, flags);
    char from[4096], into[4096];
    if (!r && shadow(a, from) && shadow(b, into)) {
        int saved = errno;
        real(AT_FDCWD, from, AT_FDCWD, into, 0);
        errno = saved;
    }
    return r;
}

int unlink(const char *a) {
    REAL(int, unlink, (const char *));
    int r = real(a);
    char gone[4096];
    if (!r && shadow(a, gone)) { int saved = errno; real(gone); errno = saved; }
    return r;
}
