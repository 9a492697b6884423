/* What a disk would hold after power loss, kept beside the real files.
 *
 * At each fsync or fdatasync of a file under $SHADOW_OF, its content is copied to the same path under
 * $SHADOW_TO before the call returns. A file never synced is not there. A new name, and a rename, count only
 * from the next fsync of their directory: until then the content waits beside as NAME.shadow-unnamed, and what
 * a rename takes away stays. Removals count at once, which is the worst case. Nothing is copied when the real
 * sync fails.
 */
#define _GNU_SOURCE
#include <dirent.h>
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
    if (strncmp(path, of, n) || (path[n] != '/' && path[n])) return 0;
    snprintf(out, 4096, "%s%s", to, path + n);
    return 1;
}

static void parents(char *path) {
    for (char *p = path + strlen(to) + 1; (p = strchr(p, '/')); p++) { *p = 0; mkdir(path, 0755); *p = '/'; }
}

static const char PENDING[] = ".shadow-unnamed", GONE[] = ".shadow-gone";

static int ends(const char *name, const char *with) {
    size_t n = strlen(name), m = strlen(with);
    return n > m && !strcmp(name + n - m, with);
}

/* A directory was synced: its new names count, and what its renames took away is gone. */
static void name_all(const char *directory) {
    char path[4200], final[4200];
    pthread_mutex_lock(&lock);
    for (int pass = 0; pass < 2; pass++) { /* removals first: a name may have come back since */
        DIR *all = opendir(directory);
        struct dirent *entry;
        while (all && (entry = readdir(all))) {
            const char *mark = pass ? PENDING : GONE;
            if (!ends(entry->d_name, mark)) continue;
            snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
            snprintf(final, sizeof final, "%s", path);
            final[strlen(final) - strlen(mark)] = 0;
            if (pass) rename(path, final);
            else { remove(path); remove(final); }
        }
        if (all) closedir(all);
    }
    pthread_mutex_unlock(&lock);
}

/* Repeat a rename or link of `from`, if it was ever synced, as a name that waits for its directory. */
static void rename_later(const char *from, const char *into, int moves) {
    char source[4200], target[4200], gone[4200];
    snprintf(target, sizeof target, "%s%s", into, PENDING);
    snprintf(source, sizeof source, "%s%s", from, PENDING);
    pthread_mutex_lock(&lock);
    if (!access(source, F_OK)) {
        if (moves) rename(source, target);
        else { remove(target); link(source, target); }
    } else if (!access(from, F_OK)) {
        remove(target);
        link(from, target); /* both names, until the directory is synced */
        snprintf(gone, sizeof gone, "%s%s", from, GONE);
        if (moves) close(open(gone, O_WRONLY | O_CREAT, 0600));
    }
    pthread_mutex_unlock(&lock);
}

static void keep(int fd) {
    int saved = errno;
    char link[64], path[4096], target[4200], fresh[4300], final[4100], *buffer;
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0 || fstat(fd, &status)) { errno = saved; return; }
    path[n] = 0;
    if (!shadow(path, final)) { errno = saved; return; }
    if (S_ISDIR(status.st_mode)) name_all(final);
    if (!S_ISREG(status.st_mode)) { errno = saved; return; }
    snprintf(target, sizeof target, "%s%s", final, PENDING);
    if (access(target, F_OK) && !access(final, F_OK)) snprintf(target, sizeof target, "%s", final);
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
    if (!r && shadow(a, from) && shadow(b, into)) { int saved = errno; rename_later(from, into, 1); errno = saved; }
    return r;
}

int link(const char *a, const char *b) {
    REAL(int, link, (const char *, const char *));
    int r = real(a, b);
    char from[4096], into[4096];
    if (!r && shadow(a, from) && shadow(b, into)) { int saved = errno; rename_later(from, into, 0); errno = saved; }
    return r;
}

int linkat(int at, const char *a, int bt, const char *b, int flags) {
    REAL(int, linkat, (int, const char *, int, const char *, int));
    int r = real(at, a, bt, b, flags);
    char from[4096], into[4096];
    if (!r && shadow(a, from) && shadow(b, into)) {
        int saved = errno;
        rename_later(from, into, 0);
        errno = saved;
    }
    return r;
}

int unlink(const char *a) {
    REAL(int, unlink, (const char *));
    int r = real(a);
    char gone[4096];
    if (!r && shadow(a, gone)) {
        int saved = errno;
        char waiting[4200];
        snprintf(waiting, sizeof waiting, "%s%s", gone, PENDING);
        real(gone);
        real(waiting);
        errno = saved;
    }
    return r;
}
