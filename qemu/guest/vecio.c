/*
 * vecio: 32 fragments of 4 KiB with O_DIRECT, as one vectored call or as 32 single calls.
 *
 *   vecio fill   FILE          makes FILE: 16 MiB, every 8 bytes hold their own offset
 *   vecio readv  FILE SECONDS  preadv of 32 fragments, again and again through the file
 *   vecio pread  FILE SECONDS  the same bytes as 32 preads
 *   vecio writev FILE SECONDS
 *   vecio pwrite FILE SECONDS
 *   vecio check  FILE          fails unless FILE still holds what fill wrote
 *
 * Prints "TURNS SECONDS MB/s"; a turn is 32 fragments. Each fragment has a buffer of its own, with
 * a hole behind it, so no two of them are neighbours in memory. What is read is compared.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FRAGMENTS = 32, FRAGMENT = 4096, TURN = FRAGMENTS * FRAGMENT, TURNS_IN_FILE = 128 };

static void fail(const char *what)
{
	fprintf(stderr, "vecio: %s: %s\n", what, errno ? strerror(errno) : "wrong data or short transfer");
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void stamp(char *fragment, uint64_t offset)
{
	for (int i = 0; i < FRAGMENT; i += 8) {
		uint64_t word = offset + i;
		memcpy(fragment + i, &word, 8);
	}
}

/* First and last word: a comparison of every byte would be measured too. */
static int stamped(const char *fragment, uint64_t offset)
{
	uint64_t first, last;
	memcpy(&first, fragment, 8);
	memcpy(&last, fragment + FRAGMENT - 8, 8);
	return first == offset && last == offset + FRAGMENT - 8;
}

static void fill_or_check(const char *path, int fill)
{
	static char mine[FRAGMENT], file[FRAGMENT];
	int fd = open(path, fill ? O_RDWR | O_CREAT | O_TRUNC : O_RDONLY, 0644);

	if (fd < 0)
		fail(path);
	for (off_t at = 0; at < (off_t)TURN * TURNS_IN_FILE; at += FRAGMENT) {
		errno = 0;
		stamp(mine, at);
		if (fill ? pwrite(fd, mine, FRAGMENT, at) != FRAGMENT
			 : pread(fd, file, FRAGMENT, at) != FRAGMENT || memcmp(mine, file, FRAGMENT))
			fail(fill ? "fill" : "check");
	}
	if (fill && fsync(fd))
		fail("fsync");
	close(fd);
}

int main(int argc, char **argv)
{
	struct iovec fragment[FRAGMENTS];
	char *memory;

	if (argc < 3)
		return 2;
	const char *mode = argv[1], *path = argv[2];
	if (!strcmp(mode, "fill") || !strcmp(mode, "check")) {
		fill_or_check(path, mode[0] == 'f');
		return 0;
	}
	int packed = !strcmp(mode, "readv") || !strcmp(mode, "writev");
	int writes = mode[0] == 'w' || !strcmp(mode, "pwrite");
	double seconds = argc > 3 ? atof(argv[3]) : 1;

	int fd = open(path, O_RDWR | O_DIRECT);
	if (fd < 0)
		fail(path);
	if (posix_memalign((void **)&memory, FRAGMENT, 2 * TURN))
		fail("memory");
	memset(memory, 0, 2 * TURN);
	for (int i = 0; i < FRAGMENTS; i++) {
		fragment[i].iov_base = memory + 2 * FRAGMENT * i;
		fragment[i].iov_len = FRAGMENT;
	}

	long turns = 0;
	double start = now(), last;
	do {
		off_t at = (off_t)(turns % TURNS_IN_FILE) * TURN;
		ssize_t moved = 0;

		errno = 0;
		for (int i = 0; writes && i < FRAGMENTS; i++)
			stamp(fragment[i].iov_base, at + i * FRAGMENT);
		if (packed)
			moved = writes ? pwritev(fd, fragment, FRAGMENTS, at) : preadv(fd, fragment, FRAGMENTS, at);
		for (int i = 0; !packed && i < FRAGMENTS; i++) {
			ssize_t n = writes ? pwrite(fd, fragment[i].iov_base, FRAGMENT, at + i * FRAGMENT)
					   : pread(fd, fragment[i].iov_base, FRAGMENT, at + i * FRAGMENT);
			if (n != FRAGMENT)
				fail(mode);
			moved += n;
		}
		if (moved != TURN)
			fail(mode);
		for (int i = 0; !writes && i < FRAGMENTS; i++)
			if (!stamped(fragment[i].iov_base, at + i * FRAGMENT))
				fail("compare");
		turns++;
		last = now();
	} while (last - start < seconds);
	printf("%ld %.3f %.1f\n", turns, last - start, (double)turns * TURN / (last - start) / 1e6);
	return 0;
}
