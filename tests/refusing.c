/* Preloaded, it makes calls fail as some file systems do: REFUSE="rename=EBUSY fsync-folder=EINVAL ...", with errors as
   numbers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int refused(const char *call) {
  const char *found = getenv("REFUSE");
  size_t length = strlen(call);
  while (found && (found = strstr(found, call))) {
    if (found[length] == '=') return atoi(found + length + 1);
    found += length;
  }
  return 0;
}

#define FAIL(call) do { int error = refused(call); if (error) { errno = error; return -1; } } while (0)

int rename(const char *from, const char *to) {
  FAIL("rename");
  return ((int (*)(const char *, const char *)) dlsym(RTLD_NEXT, "rename"))(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
  FAIL("rename");
  return ((int (*)(int, const char *, int, const char *)) dlsym(RTLD_NEXT, "renameat"))(a, from, b, to);
}

int fsync(int fd) {
  struct stat s;
  if (fstat(fd, &s) == 0 && S_ISDIR(s.st_mode)) FAIL("fsync-folder"); else FAIL("fsync-file");
  return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd);
}

int flock(int fd, int operation) {
  FAIL("flock");
  return ((int (*)(int, int)) dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

/* "create" is the opening of a file that is not there yet. */
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (flags & O_CREAT && access(path, F_OK)) FAIL("create"); \
    return ((int (*)(const char *, int, ...)) dlsym(RTLD_NEXT, #name))(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
