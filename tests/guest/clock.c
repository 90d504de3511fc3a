/*
 * clock: `clock PATH` makes a directory at PATH on the share and sets the guest's clock to its time stamp,
 * which is the host's. A guest in emulation knows the host's time to the second only, and what compares time
 * stamps of both would fail by that.
 */
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct stat st;

	if (argc != 2 || mkdir(argv[1], 0700) || stat(argv[1], &st) || clock_settime(CLOCK_REALTIME, &st.st_mtim)) {
		perror("clock");
		return 1;
	}
	return rmdir(argv[1]) != 0;
}
