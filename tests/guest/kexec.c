/*
 * kexec: starts another kernel in the place of this one, which ends without a word: nothing is unmounted, closed or unlocked.
 *
 *   kexec KERNEL INITRD FILE   with a lock of FILE held; returns only with a reason on stderr
 *   kexec FILE                 locks FILE, if no one else has
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The command line stays the same. */
static void start(const char *kernel_path, const char *initrd_path)
{
	char line[4096];
	int kernel = open(kernel_path, O_RDONLY), initrd = open(initrd_path, O_RDONLY);
	ssize_t len = read(open("/proc/cmdline", O_RDONLY), line, sizeof line);

	if (kernel < 0 || initrd < 0 || len < 1) {
		perror("kexec: the kernel, the initrd or /proc/cmdline");
		return;
	}
	line[len - 1] = 0;
	if (syscall(SYS_kexec_file_load, kernel, initrd, (unsigned long)len, line, 0UL) != 0)
		perror("kexec: kexec_file_load");
	else if (syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0) != 0)
		perror("kexec: reboot");
}

int main(int argc, char **argv)
{
	int file = argc == 2 || argc == 4 ? open(argv[argc - 1], O_RDWR) : -1;

	if (file < 0 || flock(file, LOCK_EX | LOCK_NB) != 0) {
		perror("kexec: the file, or its lock");
		return 1;
	}
	if (argc == 2)
		return 0;
	start(argv[1], argv[2]);
	return 1;
}
