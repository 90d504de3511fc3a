/*
 * files: the same call on many small files, timed.
 *
 *   files PHASE DIR N    prints the seconds that it took; N files "f00000" and on, of 1 KiB each
 *   files clock          prints the seconds since the guest booted
 *
 * Phases: create (open, write, close), stat, statx (with the birth time), read (open, read, close), list (names only), chmod,
 * rename (there and back), unlink; install (what a package manager does: directories of ten files
 * each, made under a temporary name, written, given a mode and times, renamed, and looked at).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LENGTH = 1024, PACKAGE = 10 };

static char content[LENGTH];
static int package_mode = 0600;

static void fail(const char *name)
{
	fprintf(stderr, "files: %s: %s\n", name, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void must(int ok, const char *name)
{
	if (!ok)
		fail(name);
}

static void write_file(const char *name, int flags)
{
	int fd = open(name, O_WRONLY | O_CREAT | flags, 0644);
	must(fd >= 0 && write(fd, content, LENGTH) == LENGTH && close(fd) == 0, name);
}

static void create(const char *name) { write_file(name, O_EXCL); }
static void change_mode(const char *name) { must(chmod(name, package_mode) == 0, name); }
static void remove_file(const char *name) { must(unlink(name) == 0, name); }

static void look(const char *name)
{
	struct stat st;
	must(stat(name, &st) == 0 && st.st_size == LENGTH, name);
}

/* As Rust's standard library and Node.js ask for attributes: with the birth time. */
static void look_with_birth(const char *name)
{
	struct statx st;
	must(statx(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &st) == 0 && st.stx_size == LENGTH, name);
}

static void read_file(const char *name)
{
	int fd = open(name, O_RDONLY);
	must(fd >= 0 && read(fd, content, LENGTH) == LENGTH && close(fd) == 0, name);
}

static void move(const char *name)
{
	char other[64];
	snprintf(other, sizeof other, "g%.60s", name);
	must(rename(name, other) == 0 && rename(other, name) == 0, name);
}

static void list(int n)
{
	int found = 0;
	DIR *dir = opendir(".");
	struct dirent *entry;
	must(dir != NULL, ".");
	while ((entry = readdir(dir)))
		found += entry->d_name[0] == 'f';
	closedir(dir);
	errno = EIO;
	must(found == n, "wrong number of files");
}

/* A package: what npm, pip and cargo do with an archive of ten files. */
static void install(int number)
{
	char temporary[32], name[32], file[64];
	struct timespec times[2] = { { 1700000000, 0 }, { 1700000000, 0 } };
	struct stat st;
	snprintf(temporary, sizeof temporary, ".package-%05d", number);
	snprintf(name, sizeof name, "package-%05d", number);
	must(stat(name, &st) != 0 && mkdir(temporary, 0755) == 0, temporary);
	snprintf(file, sizeof file, "%s/lib", temporary);
	must(mkdir(file, 0755) == 0, file);
	for (int i = 0; i < PACKAGE; i++) {
		snprintf(file, sizeof file, "%s/%sfile%d.js", temporary, i % 2 ? "lib/" : "", i);
		must(lstat(file, &st) != 0, file);
		int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0666);
		must(fd >= 0 && write(fd, content, LENGTH) == LENGTH, file);
		must(fchmod(fd, 0644) == 0 && futimens(fd, times) == 0 && close(fd) == 0, file);
	}
	must(rename(temporary, name) == 0, name);
	snprintf(file, sizeof file, "%s/file0.js", name);
	read_file(file);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*each)(const char *); } phases[] = {
		{ "create", create }, { "stat", look }, { "statx", look_with_birth }, { "read", read_file }, { "chmod", change_mode },
		{ "rename", move }, { "unlink", remove_file },
	};
	if (argc == 2 && !strcmp(argv[1], "clock")) {
		printf("%.6f\n", now());
		return 0;
	}
	if (argc != 4) {
		fprintf(stderr, "usage: files PHASE DIR N\n");
		return 2;
	}
	int n = atoi(argv[3]);
	memset(content, 'm', LENGTH);
	must(chdir(argv[2]) == 0, argv[2]);
	/* Another mode each time, as a chmod to the same one may be left out. */
	struct stat st;
	if (stat("f00000", &st) == 0 && (st.st_mode & 0777) == 0600)
		package_mode = 0640;
	double start = now();
	if (!strcmp(argv[1], "list")) {
		list(n);
	} else if (!strcmp(argv[1], "install")) {
		for (int i = 0; i < n / PACKAGE; i++)
			install(i);
	} else {
		size_t p = 0;
		while (p < sizeof phases / sizeof *phases && strcmp(phases[p].name, argv[1]))
			p++;
		errno = EINVAL;
		must(p < sizeof phases / sizeof *phases, argv[1]);
		for (int i = 0; i < n; i++) {
			char name[64];
			snprintf(name, sizeof name, "f%05d", i);
			phases[p].each(name);
		}
	}
	printf("%.6f\n", now() - start);
	return 0;
}
