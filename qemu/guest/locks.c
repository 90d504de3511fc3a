/*
 * locks: locks that one process holds and another one must not get.
 *
 *   locks hold DIR    takes one lock of each kind on files that it makes in DIR, prints "held", and holds them until SIGTERM;
 *                     each second it writes and reads through the files, and through one that it has removed
 *   locks try DIR     fails if it gets a lock that `hold` has, or does not get one that `hold` has not
 *   locks free DIR    fails unless it gets every lock: `hold` has ended
 *
 * Kinds: record locks of a process (F_SETLK), of an open file description (F_OFD_SETLK), flock(2). The record locks leave a gap
 * between two ranges, and one more is shared, so that a range that was lost or became larger is found.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { FREE, SHARED, EXCLUSIVE };

struct lock {
	const char *name;
	int command; /* 0: flock(2) */
	off_t start, length;
	int held; /* by `hold` */
};

static const struct lock LOCKS[] = {
	{ "posix", F_SETLK, 100, 100, EXCLUSIVE },
	{ "posix", F_SETLK, 200, 100, FREE },
	{ "posix", F_SETLK, 300, 0, EXCLUSIVE },
	{ "posix", F_SETLK, 0, 100, SHARED },
	{ "ofd", F_OFD_SETLK, 100, 100, EXCLUSIVE },
	{ "ofd", F_OFD_SETLK, 200, 100, FREE },
	{ "ofd", F_OFD_SETLK, 300, 0, EXCLUSIVE },
	{ "ofd", F_OFD_SETLK, 0, 100, SHARED },
	{ "flock", 0, 0, 0, EXCLUSIVE },
	{ "flock-shared", 0, 0, 0, SHARED },
};
enum { COUNT = sizeof(LOCKS) / sizeof(*LOCKS) };

static volatile sig_atomic_t ends;

static void end(int signal)
{
	(void)signal;
	ends = 1;
}

static void fail(const struct lock *lock, const char *what)
{
	fprintf(stderr, "locks: %s, from %ld: %s\n", lock->name, (long)lock->start, what);
	exit(1);
}

static int open_file(const struct lock *lock)
{
	int fd = open(lock->name, O_RDWR | O_CREAT, 0644);

	if (fd < 0)
		fail(lock, strerror(errno));
	return fd;
}

/* 1: this process has the lock now; 0: another one has it. */
static int take(const struct lock *lock, int fd, int wanted)
{
	struct flock range = { .l_type = wanted == SHARED ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET, .l_start = lock->start, .l_len = lock->length };
	int got = lock->command ? fcntl(fd, lock->command, &range) : flock(fd, (wanted == SHARED ? LOCK_SH : LOCK_EX) | LOCK_NB);

	if (got && errno != EAGAIN && errno != EACCES)
		fail(lock, strerror(errno));
	return !got;
}

/* A process that closes any descriptor of a file loses its record locks on it, so neighbours in LOCKS share one. */
static int descriptor_of(int i, int *fds)
{
	fds[i] = i && !strcmp(LOCKS[i].name, LOCKS[i - 1].name) ? fds[i - 1] : open_file(&LOCKS[i]);
	return fds[i];
}

static void write_and_read(const struct lock *lock, int fd, unsigned turn)
{
	char word[16], seen[16];

	snprintf(word, sizeof(word), "%015u", turn);
	if (pwrite(fd, word, sizeof(word), 0) != sizeof(word) || pread(fd, seen, sizeof(seen), 0) != sizeof(seen) || memcmp(word, seen, sizeof(word)))
		fail(lock, "the file cannot be written and read");
}

static void hold(void)
{
	static const struct lock without = { .name = "removed" };
	const struct sigaction on_end = { .sa_handler = end };
	int fds[COUNT], removed = open_file(&without);

	for (int i = 0; i < COUNT; i++)
		if (descriptor_of(i, fds) >= 0 && LOCKS[i].held != FREE && !take(&LOCKS[i], fds[i], LOCKS[i].held))
			fail(&LOCKS[i], "somebody else has it");
	if (unlink(without.name))
		fail(&without, strerror(errno));
	sigaction(SIGTERM, &on_end, NULL);
	puts("held");
	fflush(stdout);
	for (unsigned turn = 0; !ends; turn++) {
		write_and_read(&without, removed, turn);
		for (int i = 0; i < COUNT; i++)
			write_and_read(&LOCKS[i], fds[i], turn);
		sleep(1);
	}
}

/* What nobody holds is only shared by `try`: two of them may look at the same time. */
static void try_all(int all_free)
{
	int fds[COUNT];

	for (int i = 0; i < COUNT; i++) {
		int held = all_free ? FREE : LOCKS[i].held;

		descriptor_of(i, fds);
		if (held != FREE && take(&LOCKS[i], fds[i], EXCLUSIVE))
			fail(&LOCKS[i], "it should be held, and is not");
		if (held != EXCLUSIVE && !take(&LOCKS[i], fds[i], all_free ? EXCLUSIVE : SHARED))
			fail(&LOCKS[i], held == FREE ? "nobody should have it, and somebody has" : "it should be shared, and is held alone");
	}
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	if (chdir(argv[2])) {
		perror(argv[2]);
		return 1;
	}
	if (!strcmp(argv[1], "hold"))
		hold();
	else
		try_all(!strcmp(argv[1], "free"));
	return 0;
}
