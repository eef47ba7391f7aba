package bpftest

import (
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"unsafe"
)

// A cpuSet is the kernel's cpumask, large enough for any kernel.
type cpuSet [8192 / 64]uint64

// affinity calls sched_getaffinity(2) or sched_setaffinity(2) for a thread. A tid of 0 means
// this thread.
func affinity(call uintptr, tid int, set *cpuSet) error {
	// SAFETY: the kernel uses set only during the call.
	_, _, errno := syscall.RawSyscall(call, uintptr(tid), unsafe.Sizeof(*set),
		uintptr(unsafe.Pointer(set)))
	if errno != 0 {
		return errno
	}
	return nil
}

// runAlone runs f, which runs a BPF program for long, in a thread of its own, and returns at
// once. Many kernels do not preempt such a program, and threads that wait for its processor
// wait until it ends. So if there is another processor, all other threads of this process are
// kept away from this one until restore is called.
func runAlone(f func()) (restore func(), err error) {
	all, err := ownCPUs()
	if err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	alone, others := cpuSet{}, all
	for i, mask := range all {
		if mask != 0 {
			last := uint64(1) << (bits.Len64(mask) - 1)
			alone, others = cpuSet{}, all
			alone[i], others[i] = last, mask&^last
		}
	}
	if others == (cpuSet{}) {
		go f()
		return func() {}, nil
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0)) // otherwise Go 1.25 follows the affinity
	if err := moveThreads(others); err != nil {
		return nil, err
	}
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		affinity(syscall.SYS_SCHED_SETAFFINITY, 0, &alone)
		f()
	}()
	var once sync.Once
	return func() { once.Do(func() { moveThreads(all) }) }, nil
}

// ownCPUs returns the CPUs where this process may run. It is called once, because later a
// thread knows only its own CPUs.
var ownCPUs = sync.OnceValues(func() (cpus cpuSet, err error) {
	return cpus, affinity(syscall.SYS_SCHED_GETAFFINITY, 0, &cpus)
})

// moveThreads also moves threads that start meanwhile. A new thread may run where its creator
// does, so moveThreads repeats until it finds no thread that has not been moved.
func moveThreads(to cpuSet) error {
	moved := map[string]bool{}
	for found := true; found; {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		found = false
		for _, entry := range entries {
			name := entry.Name()
			if moved[name] {
				continue
			}
			moved[name], found = true, true
			tid, err := strconv.Atoi(name)
			if err == nil {
				err = affinity(syscall.SYS_SCHED_SETAFFINITY, tid, &to)
			}
			if err != nil && err != syscall.ESRCH {
				return fmt.Errorf("sched_setaffinity of thread %s: %w", name, err)
			}
		}
	}
	return nil
}
