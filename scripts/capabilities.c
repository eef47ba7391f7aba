// SPDX-License-Identifier: Apache-2.0
/*
 * Makes all permitted capabilities of this process effective. If a program's file
 * capabilities are permitted but not effective (setcap ...=p), the program starts even
 * where it cannot get them, and can say so. Go could change only one thread. A
 * constructor runs while there is only one.
 */
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((constructor)) void make_permitted_effective(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, data))
		return;
	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
		data[i].effective = data[i].permitted;
	syscall(SYS_capset, &header, data);
}
