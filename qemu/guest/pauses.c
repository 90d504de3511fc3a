/*
 * pauses: how long the share keeps a process waiting.
 *
 *   pauses FILE    a cheap request each millisecond until SIGTERM, in turns the attributes and the first 4 KiB of FILE,
 *                  both past the guest's cache; FILE is made, and its first 8 bytes change each second
 *
 * Prints a line "BEGAN MILLISECONDS" for each request: when it began, by the guest's clock, and how long it took. At the
 * end a line "offset SECONDS MILLISECONDS": what the host's time of day is ahead of that clock, and within what. The host
 * says its time in the mtime of what is written. A request that fails ends it with 1.
 *
 * It goes before everything else in the guest, so that the guest's own load is not what is measured.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, EVERY_US = 1000 };

static volatile sig_atomic_t ends;

static void end(int signal)
{
	(void)signal;
	ends = 1;
}

static void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "pauses: %s: %s\n", what, errno ? strerror(errno) : "short transfer");
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void go_first(void)
{
	struct sched_param first = { .sched_priority = 1 };

	if (sched_setscheduler(0, SCHED_FIFO, &first))
		setpriority(PRIO_PROCESS, 0, -20);
}

/* The shortest write that is followed by a look at its time tells best. */
static void compare_clocks(double before, double after, const struct statx *written, double *offset, double *within)
{
	if (after - before >= *within)
		return;
	*within = after - before;
	*offset = written->stx_mtime.tv_sec + written->stx_mtime.tv_nsec / 1e9 - (before + after) / 2;
}

int main(int argc, char **argv)
{
	const struct timespec rest = { 0, EVERY_US * 1000L };
	const struct sigaction on_end = { .sa_handler = end };
	struct statx attributes;
	uint64_t second = 0;
	char *block;

	if (argc < 2)
		return 2;
	int fd = open(argv[1], O_RDWR | O_CREAT | O_DIRECT, 0644);

	must(fd >= 0, argv[1]);
	must(!posix_memalign((void **)&block, BLOCK, BLOCK), "memory");
	memset(block, 0, BLOCK);
	must(pwrite(fd, block, BLOCK, 0) == BLOCK, "pwrite");
	sigaction(SIGTERM, &on_end, NULL);
	go_first();

	double first = now(), offset = 0, within = 1e9;
	for (long turn = 0; !ends; turn++) {
		double before = now(), after;
		int writes = before - first >= second;

		errno = 0;
		if (writes) {
			second++;
			memcpy(block, &second, sizeof(second));
			must(pwrite(fd, block, BLOCK, 0) == BLOCK, "pwrite");
		} else if (turn % 2) {
			must(pread(fd, block, BLOCK, 0) == BLOCK, "pread");
			must(!memcmp(block, &second, sizeof(second)), "pread: not what was written");
		} else {
			must(!statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &attributes), "statx");
		}
		after = now();
		printf("%.6f %.3f\n", before, (after - before) * 1e3);
		if (writes) {
			must(!statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &attributes), "statx");
			compare_clocks(before, after, &attributes, &offset, &within);
		}
		nanosleep(&rest, NULL);
	}
	printf("offset %.6f %.3f\n", offset, within * 1e3);
	return 0;
}
