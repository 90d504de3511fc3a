/*
 * probe: what a shell cannot ask of a file system. `probe CASE PATH`; exit code 0 or a reason on stderr.
 * Every case has 40 seconds; one that hangs is a failure.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, MIB = 1 << 20 };

static void fail(const char *format, ...)
{
	va_list arguments;
	int error = errno;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	fprintf(stderr, " (errno: %s)\n", strerror(error));
	exit(1);
}

#define CHECK(condition) do { errno = 0; if (!(condition)) fail("line %d: %s", __LINE__, #condition); } while (0)

static int make(const char *path, int flags)
{
	int fd = open(path, flags | O_CREAT | O_RDWR, 0644);

	if (fd < 0)
		fail("open %s", path);
	return fd;
}

/* A file of `size` bytes, each the low byte of its offset's hash. */
static char byte_at(long offset) { return (char)((offset * 2654435761u) >> 13); }

static void fill(int fd, long size)
{
	static char block[PAGE];

	for (long at = 0; at < size; at += PAGE) {
		for (int i = 0; i < PAGE; i++)
			block[i] = byte_at(at + i);
		CHECK(pwrite(fd, block, PAGE, at) == PAGE);
	}
}

/* Any mixture of offset, length and address with O_DIRECT: right data or EINVAL, nothing else. */
static void direct(const char *path)
{
	static const long offsets[] = { 0, 1, 512, 4095, 4096, 100000 };
	static const long lengths[] = { 1, 511, 512, 1000, 4096, 5000, 131072, 200001 };
	static const long shifts[] = { 0, 1, 512, 4000 };
	int plain = make(path, O_TRUNC), fd;
	char *memory = aligned_alloc(PAGE, 512 * 1024), *expected = malloc(512 * 1024);
	int worked = 0;

	fill(plain, MIB);
	fsync(plain);
	fd = open(path, O_RDWR | O_DIRECT);
	CHECK(fd >= 0);
	for (unsigned o = 0; o < 6; o++)
		for (unsigned l = 0; l < 8; l++)
			for (unsigned s = 0; s < 4; s++) {
				long offset = offsets[o], length = lengths[l];
				char *buffer = memory + shifts[s];
				ssize_t n;

				memset(memory, 0x55, 512 * 1024);
				errno = 0;
				n = pread(fd, buffer, length, offset);
				if (n < 0 && errno != EINVAL)
					fail("pread %ld at %ld, address +%ld", length, offset, shifts[s]);
				if (n >= 0 && n != length)
					fail("pread %ld at %ld, address +%ld: %zd bytes", length, offset, shifts[s], n);
				for (long i = 0; i < n; i++)
					if (buffer[i] != byte_at(offset + i))
						fail("pread %ld at %ld: byte %ld is wrong", length, offset, i);
				if (n >= 0 && buffer[n] != 0x55)
					fail("pread %ld at %ld wrote behind the buffer", length, offset);
				worked += n > 0;

				memset(buffer, (char)(o * 64 + l * 4 + s), length);
				errno = 0;
				n = pwrite(fd, buffer, length, offset);
				if (n < 0 && errno != EINVAL)
					fail("pwrite %ld at %ld, address +%ld", length, offset, shifts[s]);
				if (n >= 0 && n != length)
					fail("pwrite %ld at %ld, address +%ld: %zd bytes", length, offset, shifts[s], n);
				if (n > 0) {
					CHECK(pread(plain, expected, length, offset) == length);
					if (memcmp(buffer, expected, length))
						fail("pwrite %ld at %ld: other data came back", length, offset);
					for (long i = 0; i < length; i++)
						expected[i] = byte_at(offset + i);
					CHECK(pwrite(plain, expected, length, offset) == length);
					CHECK(fsync(plain) == 0);
				}
			}
	/* Reading over the end stops at the end. */
	CHECK(ftruncate(plain, 10000) == 0);
	CHECK(pread(fd, memory, 16384, 4096) == 10000 - 4096);
	CHECK(pread(fd, memory, 4096, 16384) == 0);
	CHECK(worked > 0);
}

static void shared_mmap(const char *path)
{
	int fd = make(path, O_TRUNC);
	char *map, back[16];

	CHECK(ftruncate(fd, MIB + 100) == 0);
	errno = 0;
	map = mmap(0, MIB + 100, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		fail("mmap");
	for (long i = 0; i < MIB + 100; i++)
		map[i] = byte_at(i);
	CHECK(msync(map, MIB + 100, MS_SYNC) == 0);
	CHECK(pread(fd, back, 16, 70000) == 16);
	CHECK(!memcmp(back, map + 70000, 16));
	CHECK(munmap(map, MIB + 100) == 0);
	CHECK(close(fd) == 0);
}

static void sparse(const char *path)
{
	int fd = make(path, O_TRUNC);
	char zeros[PAGE] = { 0 }, page[PAGE];
	struct stat st;

	CHECK(pwrite(fd, "a", 1, 0) == 1);
	CHECK(pwrite(fd, "b", 1, 8 * MIB) == 1);
	CHECK(fsync(fd) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 8 * MIB + 1);
	CHECK(st.st_blocks * 512 < MIB);
	CHECK(lseek(fd, 0, SEEK_DATA) == 0);
	CHECK(lseek(fd, 0, SEEK_HOLE) <= MIB);
	CHECK(lseek(fd, MIB, SEEK_HOLE) == MIB);
	CHECK(lseek(fd, MIB, SEEK_DATA) == 8 * MIB);
	CHECK(lseek(fd, 9 * MIB, SEEK_DATA) == -1 && errno == ENXIO);
	CHECK(pread(fd, page, PAGE, 4 * MIB) == PAGE && !memcmp(page, zeros, PAGE));
}

static void allocate(const char *path)
{
	int fd = make(path, O_TRUNC);
	char zeros[PAGE] = { 0 }, page[PAGE];
	struct stat st;

	fill(fd, MIB);
	CHECK(fallocate(fd, 0, MIB, PAGE) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == MIB + PAGE);
	CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 2 * MIB, PAGE) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == MIB + PAGE);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE, PAGE) == 0);
	CHECK(pread(fd, page, PAGE, 2 * PAGE) == PAGE && !memcmp(page, zeros, PAGE));
	CHECK(pread(fd, page, PAGE, 3 * PAGE) == PAGE && page[5] == byte_at(3 * PAGE + 5));
}

/* Two processes append lines of 100 bytes; every line is whole and none is lost. */
static void append(const char *path)
{
	char line[100], *all = malloc(MIB);
	int seen[2] = { 0, 0 }, status;
	ssize_t size;

	unlink(path);
	for (int child = 0; child < 2; child++)
		if (!fork()) {
			int fd = make(path, O_APPEND);

			memset(line, 'a' + child, sizeof line);
			for (int i = 0; i < 300; i++)
				CHECK(write(fd, line, sizeof line) == sizeof line);
			exit(0);
		}
	for (int child = 0; child < 2; child++)
		CHECK(wait(&status) > 0 && status == 0);
	size = read(make(path, 0), all, MIB);
	CHECK(size == 60000);
	for (int at = 0; at < 60000; at += 100) {
		for (int i = 1; i < 100; i++)
			CHECK(all[at + i] == all[at]);
		seen[all[at] == 'b']++;
	}
	CHECK(seen[0] == 300 && seen[1] == 300);
}

static void truncate_case(const char *path)
{
	int fd = make(path, O_TRUNC);
	char page[PAGE], zeros[PAGE] = { 0 };
	struct stat st;

	fill(fd, 3 * PAGE);
	CHECK(ftruncate(fd, 5000) == 0);
	CHECK(ftruncate(fd, 3 * PAGE) == 0);
	CHECK(pread(fd, page, PAGE, 2 * PAGE) == PAGE && !memcmp(page, zeros, PAGE));
	CHECK(pread(fd, page, 100, 4950) == 100);
	CHECK(page[49] == byte_at(4999) && !memcmp(page + 50, zeros, 50));
	CHECK(truncate(path, 10) == 0 && fstat(fd, &st) == 0 && st.st_size == 10);
	close(make(path, O_TRUNC));
	CHECK(fstat(fd, &st) == 0 && st.st_size == 0);
}

static void unlinked(const char *path)
{
	int fd = make(path, O_TRUNC);
	char page[PAGE];
	struct stat st;

	CHECK(unlink(path) == 0);
	CHECK(access(path, F_OK) == -1 && errno == ENOENT);
	fill(fd, 64 * PAGE);
	CHECK(fsync(fd) == 0);
	CHECK(pread(fd, page, PAGE, 30 * PAGE) == PAGE && page[7] == byte_at(30 * PAGE + 7));
	CHECK(ftruncate(fd, 100) == 0 && fchmod(fd, 0600) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 100 && st.st_nlink == 0 && (st.st_mode & 07777) == 0600);
	CHECK(close(fd) == 0);
}

static void rename_over_open(const char *path)
{
	char other[PATH_MAX], page[4] = { 0 };
	int old = make(path, O_TRUNC), new;

	snprintf(other, sizeof other, "%s.new", path);
	new = make(other, O_TRUNC);
	CHECK(write(old, "old", 3) == 3 && write(new, "new", 3) == 3);
	CHECK(rename(other, path) == 0);
	CHECK(pread(old, page, 3, 0) == 3 && !strcmp(page, "old"));
	CHECK(pwrite(old, "OLD", 3, 0) == 3 && fsync(old) == 0);
	CHECK(pread(make(path, 0), page, 3, 0) == 3 && !strcmp(page, "new"));
	CHECK(access(other, F_OK) == -1);
}

static void rename_flags(const char *path)
{
	char other[PATH_MAX], text[2] = { 0 };

	snprintf(other, sizeof other, "%s.2", path);
	CHECK(write(make(path, O_TRUNC), "1", 1) == 1 && write(make(other, O_TRUNC), "2", 1) == 1);
	CHECK(renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_NOREPLACE) == -1 && errno == EEXIST);
	CHECK(renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_EXCHANGE) == 0);
	CHECK(read(make(path, 0), text, 1) == 1 && text[0] == '2');
	CHECK(unlink(path) == 0 && renameat2(AT_FDCWD, other, AT_FDCWD, path, RENAME_NOREPLACE) == 0);
	CHECK(read(make(path, 0), text, 1) == 1 && text[0] == '1');
}

/* Takes the files of a directory away while it reads the names. */
static void remove_while_reading(const char *path)
{
	char name[PATH_MAX];
	int removed = 0;
	struct dirent *entry;
	DIR *dir;

	CHECK(mkdir(path, 0755) == 0);
	for (int i = 0; i < 2000; i++) {
		snprintf(name, sizeof name, "%s/a-name-of-some-length-%04d", path, i);
		close(make(name, O_EXCL));
	}
	dir = opendir(path);
	CHECK(dir);
	while (errno = 0, (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		if (unlinkat(dirfd(dir), entry->d_name, 0))
			fail("unlink %s, number %d", entry->d_name, removed);
		removed++;
	}
	CHECK(closedir(dir) == 0);
	if (removed != 2000)
		fail("%d of 2000 names were read", removed);
	CHECK(rmdir(path) == 0);
}

/* Every name comes once, also after a seek. */
static void read_directory(const char *path)
{
	static char seen[3000];
	char name[PATH_MAX];
	struct dirent *entry;
	long middle = 0, count = 0;
	DIR *dir;

	CHECK(mkdir(path, 0755) == 0);
	for (int i = 0; i < 3000; i++) {
		snprintf(name, sizeof name, "%s/%d", path, i);
		CHECK(mknod(name, S_IFREG | 0644, 0) == 0);
	}
	dir = opendir(path);
	CHECK(dir);
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		CHECK(!seen[atoi(entry->d_name)]++);
		if (++count == 1500)
			middle = telldir(dir);
	}
	CHECK(count == 3000);
	seekdir(dir, middle);
	while ((entry = readdir(dir)))
		count += entry->d_name[0] != '.';
	CHECK(count == 4500);
}

static void names(const char *path)
{
	char name[PATH_MAX];
	int n = snprintf(name, sizeof name, "%s/", path);

	CHECK(mkdir(path, 0755) == 0);
	memset(name + n, 'x', 256);
	name[n + 256] = 0;
	CHECK(open(name, O_CREAT | O_RDWR, 0644) == -1 && errno == ENAMETOOLONG);
	name[n + 255] = 0;
	close(make(name, O_EXCL));
	CHECK(access(name, F_OK) == 0 && unlink(name) == 0);
	strcpy(name + n, "line\nbreak \xff\xfe *");
	close(make(name, O_EXCL));
	CHECK(open(name, O_CREAT | O_EXCL | O_RDWR, 0644) == -1 && errno == EEXIST);
	CHECK(unlink(name) == 0 && rmdir(path) == 0);
}

static void times(const char *path)
{
	struct timespec when[2] = { { 1000000000, 123456789 }, { 2000000000, 987654321 } };
	struct stat st;

	close(make(path, O_TRUNC));
	CHECK(utimensat(AT_FDCWD, path, when, 0) == 0 && stat(path, &st) == 0);
	CHECK(st.st_atim.tv_sec == 1000000000 && st.st_mtim.tv_sec == 2000000000 && st.st_mtim.tv_nsec == 987654321);
	when[0].tv_nsec = UTIME_OMIT;
	when[1].tv_nsec = UTIME_NOW;
	CHECK(utimensat(AT_FDCWD, path, when, 0) == 0 && stat(path, &st) == 0);
	CHECK(st.st_atim.tv_sec == 1000000000 && st.st_mtim.tv_sec != 2000000000);
}

static void locks(const char *path)
{
	struct flock record = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10 };
	int fd = make(path, O_TRUNC), status;

	CHECK(fcntl(fd, F_SETLK, &record) == 0);
	if (!fork()) {
		int mine = make(path, 0);

		CHECK(fcntl(mine, F_SETLK, &record) == -1 && (errno == EAGAIN || errno == EACCES));
		record.l_start = 20;
		CHECK(fcntl(mine, F_SETLK, &record) == 0);
		exit(0);
	}
	CHECK(wait(&status) > 0 && status == 0);
	CHECK(flock(fd, LOCK_EX) == 0);
	CHECK(flock(make(path, 0), LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
}

static void copy_range(const char *path)
{
	char other[PATH_MAX], page[PAGE];
	int from = make(path, O_TRUNC), to;
	off_t at = 0;

	snprintf(other, sizeof other, "%s.copy", path);
	to = make(other, O_TRUNC);
	fill(from, MIB);
	while (at < MIB)
		CHECK(copy_file_range(from, &at, to, 0, MIB - at, 0) > 0);
	CHECK(pread(to, page, PAGE, 99 * PAGE) == PAGE && page[9] == byte_at(99 * PAGE + 9));
}

static void unix_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int server = socket(AF_UNIX, SOCK_STREAM, 0);
	struct stat st;

	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	CHECK(bind(server, (struct sockaddr *)&address, sizeof address) == 0 && listen(server, 1) == 0);
	CHECK(stat(path, &st) == 0 && S_ISSOCK(st.st_mode));
	CHECK(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address) == 0);
	CHECK(unlink(path) == 0);
}

static void statfs_case(const char *path)
{
	struct statfs fs;

	CHECK(mkdir(path, 0755) == 0 && statfs(path, &fs) == 0);
	CHECK(fs.f_blocks > 0 && fs.f_bavail <= fs.f_blocks && fs.f_bsize >= 512 && fs.f_namelen == 255);
}

static void sync_case(const char *path)
{
	int fd = make(path, O_TRUNC), dir;
	char parent[PATH_MAX];

	CHECK(write(fd, "x", 1) == 1 && fsync(fd) == 0 && fdatasync(fd) == 0 && syncfs(fd) == 0);
	snprintf(parent, sizeof parent, "%s.d", path);
	CHECK(mkdir(parent, 0755) == 0);
	dir = open(parent, O_RDONLY | O_DIRECTORY);
	CHECK(dir >= 0 && fsync(dir) == 0);
}

/* Works, or the share says that it does not. */
static void temporary_file(const char *path)
{
	int fd;

	CHECK(mkdir(path, 0755) == 0);
	fd = open(path, O_TMPFILE | O_RDWR, 0644);
	if (fd < 0 && errno != EOPNOTSUPP)
		fail("O_TMPFILE");
	if (fd >= 0)
		CHECK(write(fd, "x", 1) == 1);
	CHECK(rmdir(path) == 0);
}

/* More files open at once than a small descriptor table holds; each keeps its own data. */
static void many_open(const char *path)
{
	enum { FILES = 1000 };
	static int fd[FILES];
	char name[PATH_MAX], text[16], back[16];

	CHECK(mkdir(path, 0755) == 0);
	for (int i = 0; i < FILES; i++) {
		int n = snprintf(text, sizeof text, "%d", i);

		snprintf(name, sizeof name, "%s/%d", path, i);
		fd[i] = make(name, O_EXCL);
		CHECK(write(fd[i], text, n) == n);
	}
	for (int i = FILES - 1; i >= 0; i--) {
		int n = snprintf(text, sizeof text, "%d", i);

		CHECK(pread(fd[i], back, sizeof back, 0) == n && !memcmp(back, text, n));
		CHECK(close(fd[i]) == 0);
	}
}

/* Offsets beyond 32 bits. */
static void far_offset(const char *path)
{
	int fd = make(path, O_TRUNC);
	long at = 6L * 1024 * MIB + 1;
	char text[4] = { 0 };
	struct stat st;

	CHECK(pwrite(fd, "far", 3, at) == 3 && fsync(fd) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == at + 3);
	CHECK(pread(fd, text, 3, at) == 3 && !strcmp(text, "far"));
	CHECK(pread(fd, text, 3, at - 4L * 1024 * MIB) == 3 && text[0] == 0);
}

/* fcntl(2) on one range, or flock(2), as `family` says. */
enum family { RECORD, OPEN_FILE, WHOLE };

static int set_lock(int fd, enum family family, int kind, int waits)
{
	struct flock record = { .l_type = kind, .l_whence = SEEK_SET, .l_start = 100, .l_len = 50 };

	if (family == WHOLE)
		return flock(fd, (kind == F_WRLCK ? LOCK_EX : kind == F_RDLCK ? LOCK_SH : LOCK_UN) | (waits ? 0 : LOCK_NB));
	if (family == RECORD)
		return fcntl(fd, waits ? F_SETLKW : F_SETLK, &record);
	return fcntl(fd, waits ? F_OFD_SETLKW : F_OFD_SETLK, &record);
}

/* A process that says 'w' to `report`, waits for the lock, and says 'l' when it has it. */
static pid_t wait_for_lock(const char *path, int held, enum family family, int report)
{
	pid_t child = fork();
	int fd;

	if (child)
		return child;
	/* Else it would hold itself what it waits for. */
	close(held);
	fd = make(path, 0);
	CHECK(write(report, "w", 1) == 1);
	CHECK(set_lock(fd, family, F_WRLCK, 1) == 0);
	CHECK(write(report, "l", 1) == 1);
	exit(0);
}

static int says(int from, char what, int milliseconds)
{
	struct pollfd wait = { .fd = from, .events = POLLIN };
	char said;

	return poll(&wait, 1, milliseconds) == 1 && read(from, &said, 1) == 1 && said == what;
}

/* Whether another open file can have the lock within two seconds: the end of the last one may be told later. */
static int is_free(const char *path, enum family family)
{
	int fd = make(path, 0), tries = 20;

	while (set_lock(fd, family, F_WRLCK, 0) && --tries)
		usleep(100000);
	close(fd);
	return tries;
}

/* Who waits for a lock gets it when it is free, and not before. */
static void lock_wait(const char *path)
{
	for (enum family family = RECORD; family <= WHOLE; family++) {
		int fd = make(path, O_TRUNC), report[2], status;

		CHECK(pipe(report) == 0);
		CHECK(set_lock(fd, family, F_WRLCK, 0) == 0);
		wait_for_lock(path, fd, family, report[1]);
		CHECK(says(report[0], 'w', 5000));
		CHECK(!says(report[0], 'l', 500));
		CHECK(set_lock(fd, family, F_UNLCK, 0) == 0);
		CHECK(says(report[0], 'l', 5000));
		CHECK(wait(&status) > 0 && status == 0);
		if (close(fd) || !is_free(path, family))
			fail("the lock of the process that ended is still held, family %d", family);
	}
}

/* Locks the file behind fd, has a process wait for the lock and kills it; to be waited for. */
static pid_t kill_waiting(const char *path, int fd, enum family family)
{
	int report[2];
	pid_t child;

	CHECK(pipe(report) == 0);
	CHECK(set_lock(fd, family, F_WRLCK, 0) == 0);
	child = wait_for_lock(path, fd, family, report[1]);
	CHECK(says(report[0], 'w', 5000) && !says(report[0], 'l', 200));
	CHECK(kill(child, SIGKILL) == 0);
	return child;
}

/* A waiting process that is killed ends at the latest when the lock is free, and leaves it free. */
static void lock_wait_killed(const char *path)
{
	for (enum family family = RECORD; family <= WHOLE; family++) {
		int fd = make(path, O_TRUNC), status;
		pid_t child = kill_waiting(path, fd, family);

		CHECK(close(fd) == 0);
		CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
		CHECK(is_free(path, family));
	}
}

/* With locks in the guest: a signal ends a wait while the lock is held. */
static void lock_wait_killed_at_once(const char *path)
{
	for (enum family family = RECORD; family <= WHOLE; family++) {
		int fd = make(path, O_TRUNC), status, tries = 100;
		pid_t child = kill_waiting(path, fd, family);

		while (waitpid(child, &status, WNOHANG) == 0 && --tries)
			usleep(100000);
		CHECK(tries && WIFSIGNALED(status));
		CHECK(close(fd) == 0);
	}
}

static void lock_names_its_process(const char *path)
{
	struct flock record = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = make(path, O_TRUNC), status;

	CHECK(set_lock(fd, RECORD, F_RDLCK, 0) == 0);
	if (!fork()) {
		CHECK(fcntl(make(path, 0), F_GETLK, &record) == 0);
		CHECK(record.l_type == F_RDLCK && record.l_start == 100 && record.l_len == 50 && record.l_pid == getppid());
		exit(0);
	}
	CHECK(wait(&status) > 0 && status == 0);
	CHECK(close(make(path, 0)) == 0);
	CHECK(fcntl(fd, F_GETLK, &record) == 0 && record.l_type == F_UNLCK);
}

/* The locks of an open file are apart from each other in one process, and end with it. */
static void open_file_locks(const char *path)
{
	int first = make(path, O_TRUNC), second = make(path, 0);

	CHECK(set_lock(first, OPEN_FILE, F_WRLCK, 0) == 0);
	CHECK(set_lock(second, OPEN_FILE, F_WRLCK, 0) == -1 && errno == EAGAIN);
	CHECK(close(make(path, 0)) == 0);
	CHECK(set_lock(second, OPEN_FILE, F_WRLCK, 0) == -1 && errno == EAGAIN);
	CHECK(close(first) == 0);
	CHECK(is_free(path, OPEN_FILE));
}

/* What lsattr and chattr do. */
static void inode_flags(const char *path)
{
	int fd = make(path, O_TRUNC), before, after, wanted;

	CHECK(ioctl(fd, FS_IOC_GETFLAGS, &before) == 0);
	wanted = before ^ FS_NODUMP_FL ^ FS_NOATIME_FL;
	CHECK(ioctl(fd, FS_IOC_SETFLAGS, &wanted) == 0);
	CHECK(ioctl(make(path, 0), FS_IOC_GETFLAGS, &after) == 0 && after == wanted);
	CHECK(ioctl(fd, FS_IOC_SETFLAGS, &before) == 0);
	CHECK(ioctl(fd, FS_IOC_GETFLAGS, &after) == 0 && after == before);
	wanted = before | FS_IMMUTABLE_FL;
	CHECK(ioctl(fd, FS_IOC_SETFLAGS, &wanted) == -1 && errno == EPERM);
	CHECK(write(fd, "x", 1) == 1);
}

struct handle { struct file_handle head; char bytes[MAX_HANDLE_SZ]; };

static struct handle handle_of(const char *path)
{
	struct handle handle = { .head.handle_bytes = MAX_HANDLE_SZ };
	int mount;

	if (name_to_handle_at(AT_FDCWD, path, &handle.head, &mount, 0))
		fail("name_to_handle_at %s", path);
	return handle;
}

/* The guest's kernel lets go of what nobody uses. */
static void drop_caches(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	sync();
	CHECK(write(fd, "3", 1) == 1 && close(fd) == 0);
}

/* A file is found by its handle when nothing else in the guest knows it any more: what an NFS server needs. */
static void by_handle(const char *path)
{
	char parent[PATH_MAX], name[PATH_MAX], text[5] = { 0 };
	struct handle file, dir;
	struct stat st;
	int mount, fd;

	snprintf(parent, sizeof parent, "%s", path);
	*strrchr(parent, '/') = 0;
	CHECK(mkdir(path, 0755) == 0);
	snprintf(name, sizeof name, "%s/sub", path);
	CHECK(mkdir(name, 0755) == 0);
	dir = handle_of(name);
	strcat(name, "/file");
	fd = make(name, O_EXCL);
	CHECK(write(fd, "text", 4) == 4 && fsync(fd) == 0 && close(fd) == 0);
	file = handle_of(name);
	mount = open(parent, O_RDONLY | O_DIRECTORY);
	CHECK(mount >= 0);

	drop_caches();
	fd = open_by_handle_at(mount, &file.head, O_RDONLY);
	if (fd < 0)
		fail("open_by_handle_at of the file");
	CHECK(read(fd, text, 5) == 4 && !strcmp(text, "text") && close(fd) == 0);

	drop_caches();
	fd = open_by_handle_at(mount, &dir.head, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		fail("open_by_handle_at of the directory");
	CHECK(fstatat(fd, "file", &st, 0) == 0 && st.st_size == 4);
	/* The kernel found out by itself where the directory is. */
	CHECK(fstatat(fd, "../sub/file", &st, 0) == 0 && unlinkat(fd, "file", 0) == 0 && close(fd) == 0);

	drop_caches();
	CHECK(open_by_handle_at(mount, &file.head, O_RDONLY) == -1 && errno == ESTALE);
}

static const struct { const char *name; void (*run)(const char *); } cases[] = {
	{ "direct", direct }, { "mmap", shared_mmap }, { "sparse", sparse }, { "allocate", allocate },
	{ "append", append }, { "truncate", truncate_case }, { "unlinked", unlinked },
	{ "rename-over-open", rename_over_open }, { "rename-flags", rename_flags },
	{ "remove-while-reading", remove_while_reading }, { "read-directory", read_directory },
	{ "names", names }, { "times", times }, { "locks", locks }, { "copy-range", copy_range },
	{ "socket", unix_socket }, { "statfs", statfs_case }, { "sync", sync_case }, { "tmpfile", temporary_file },
	{ "many-open", many_open }, { "far-offset", far_offset },
	{ "lock-wait", lock_wait }, { "lock-wait-killed", lock_wait_killed },
	{ "lock-wait-killed-at-once", lock_wait_killed_at_once },
	{ "lock-names-its-process", lock_names_its_process }, { "open-file-locks", open_file_locks },
	{ "inode-flags", inode_flags }, { "by-handle", by_handle },
};

int main(int argc, char **argv)
{
	for (unsigned i = 0; argc == 3 && i < sizeof cases / sizeof *cases; i++)
		if (!strcmp(cases[i].name, argv[1])) {
			alarm(40);
			cases[i].run(argv[2]);
			return 0;
		}
	fprintf(stderr, "probe: no such case\n");
	return 2;
}
