/* A disk that fails and a clock that is wrong, for one process and those that it starts (LD_PRELOAD).
 *
 * SHIM_BELOW    directory; calls on files below it are concerned
 * SHIM_WHILE    file; they are as long as it exists
 * SHIM_CALLS    letters: r(ead), w(rite), s(ync), n(ame: make a file or directory, rename)
 * SHIM_ERRNO    they fail with this number; without it they take SHIM_SLOW microseconds more
 * SHIM_CLOCK    seconds by which the time of day is wrong; with SHIM_WHILE as long as that file exists
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Whether a call on this path fails; errno is set then. */
static int troubled_path(char call, const char *path)
{
	const char *below = getenv("SHIM_BELOW"), *during = getenv("SHIM_WHILE"), *calls = getenv("SHIM_CALLS");

	if (!below || !during || !calls || !strchr(calls, call) || strncmp(path, below, strlen(below)) != 0
	    || access(during, F_OK) != 0)
		return 0;
	if (!getenv("SHIM_ERRNO")) {
		usleep(atoi(getenv("SHIM_SLOW")));
		return 0;
	}
	errno = atoi(getenv("SHIM_ERRNO"));
	return 1;
}

static int troubled(char call, int fd)
{
	char link[32], path[PATH_MAX];
	ssize_t length;

	if (!getenv("SHIM_BELOW"))
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	return troubled_path(call, path);
}

ssize_t write(int fd, const void *buffer, size_t size)
{
	return troubled('w', fd) ? -1 : REAL(write)(fd, buffer, size);
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset)
{
	return troubled('w', fd) ? -1 : REAL(pwrite64)(fd, buffer, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	return troubled('w', fd) ? -1 : REAL(writev)(fd, parts, count);
}

ssize_t read(int fd, void *buffer, size_t size)
{
	return troubled('r', fd) ? -1 : REAL(read)(fd, buffer, size);
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset)
{
	return troubled('r', fd) ? -1 : REAL(pread64)(fd, buffer, size, offset);
}

int fsync(int fd)
{
	return troubled('s', fd) ? -1 : REAL(fsync)(fd);
}

int open64(const char *path, int flags, ...)
{
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = va_arg(more, mode_t);
	va_end(more);
	return flags & O_CREAT && troubled_path('n', path) ? -1 : REAL(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode)
{
	return troubled_path('n', path) ? -1 : REAL(mkdir)(path, mode);
}

int rename(const char *old, const char *new)
{
	return troubled_path('n', new) ? -1 : REAL(rename)(old, new);
}

static time_t offset(void)
{
	const char *seconds = getenv("SHIM_CLOCK"), *during = getenv("SHIM_WHILE");

	return seconds && (!during || access(during, F_OK) == 0) ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int code = REAL(clock_gettime)(clock, now);

	if (code == 0 && clock == CLOCK_REALTIME)
		now->tv_sec += offset();
	return code;
}

time_t time(time_t *into)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (into)
		*into = now.tv_sec;
	return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone)
{
	int code = REAL(gettimeofday)(now, zone);

	now->tv_sec += offset();
	return code;
}
