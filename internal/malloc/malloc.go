// Package malloc measures how much memory C has allocated, for tests.
package malloc

/*
#include <malloc.h>
#include <stddef.h>

#ifdef __GLIBC_PREREQ
#if __GLIBC_PREREQ(2, 33)
#define HAS_MALLINFO2 1
#endif
#endif

// Defined only with AddressSanitizer, which then provides malloc.
extern size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static long long in_use(void)
{
	if (__sanitizer_get_current_allocated_bytes)
		return __sanitizer_get_current_allocated_bytes();
#ifdef HAS_MALLINFO2
	struct mallinfo2 info = mallinfo2();

	return info.uordblks + info.hblkhd;
#else
	return -1;
#endif
}
*/
import "C"

// Environment has variables that programs need for an exact InUse. Without them each thread
// keeps some of the memory that it freed, and AddressSanitizer keeps all of it for a while.
var Environment = []string{
	"GLIBC_TUNABLES=glibc.malloc.tcache_count=0",
	"ASAN_OPTIONS=quarantine_size_mb=0:thread_local_quarantine_size_kb=0",
}

// InUse returns the number of bytes that malloc has allocated and nobody has freed, in all
// threads. It reports false if the C library does not say. glibc does since 2.33.
func InUse() (bytes int, ok bool) {
	n := int(C.in_use())
	return n, n >= 0
}
