package ringbuf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests disturb a Reader, or take away something that it needs.

// TestSignalsDisturbNoWait sends a signal every 100 µs to the process, and in particular to the
// thread that waits. The signals interrupt their system calls.
func TestSignalsDisturbNoWait(t *testing.T) { inOwnProcess(t, testSignals) }

func testSignals(t *testing.T) {
	// The kernel loads no program while a signal is pending.
	var rings []*bpftest.Ring
	for range 4 {
		rings = append(rings, bpftest.New(t, 16<<10))
	}
	const interval = 100 * time.Microsecond
	every := syscall.Timeval{Usec: interval.Microseconds()}
	timer := [2]syscall.Timeval{every, every} // struct itimerval, ITIMER_REAL
	if _, _, errno := syscall.Syscall(syscall.SYS_SETITIMER, 0, uintptr(unsafe.Pointer(&timer)),
		0); errno != 0 {
		t.Fatal(errno)
	}
	var waiting atomic.Int64 // the thread that waits
	stop := make(chan struct{})
	var signalling group
	defer signalling.Wait()
	defer close(stop)
	signalling.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if tid := waiting.Load(); tid != 0 {
					syscall.Tgkill(os.Getpid(), int(tid), syscall.SIGALRM)
				}
				syscall.Nanosleep(&syscall.Timespec{Nsec: interval.Nanoseconds()}, nil)
			}
		}
	})
	eachPace(t, func(t *testing.T, pace Option) {
		for _, wait := range []string{"blocked", "parked"} {
			t.Run(wait, func(t *testing.T) {
				if wait == "parked" {
					blocked.Add(1000) // from now on no thread may block
					defer blocked.Add(-1000)
				}
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				waiting.Store(int64(syscall.Gettid()))
				defer waiting.Store(0)
				testDisturbed(t, rings[0], pace)
				rings = rings[1:]
			})
		}
	})
}

func testDisturbed(t *testing.T, ring *bpftest.Ring, pace Option) {
	const samples = 2000
	r := mustNewReader(t, ring, pace)
	var producing group
	producing.Go(func() {
		for seq := 0; seq < samples; {
			seq += ring.Count(0, uint64(seq), min(samples-seq, 1+seq%7), 0)
			syscall.Nanosleep(&syscall.Timespec{Nsec: int64(seq%5) * 200e3}, nil)
		}
	})
	wantNumbered(t, r, 0, samples)
	producing.Wait()

	clock := newTurnClock(t)
	var late []time.Duration
	for i := range 31 {
		left := time.Duration(i) * 300 * time.Microsecond
		began, deadline := clock.now(), time.Now().Add(left)
		r.SetDeadline(deadline)
		wantReadError(t, r, os.ErrDeadlineExceeded)
		if early := time.Until(deadline); early > 0 {
			t.Errorf("a deadline is met %v early", early)
		}
		late = append(late, clock.now()-began-left)
	}
	slices.Sort(late)
	if median, most := late[len(late)/2], late[len(late)-1]; median > 50*time.Millisecond ||
		most > time.Second {
		t.Errorf("a deadline is met %v late, half of them more than %v", most, median)
	}

	r.SetDeadline(time.Time{})
	for _, tt := range []struct {
		interrupt func() error
		want      error
	}{{r.Flush, ErrFlushed}, {r.Close, ErrClosed}} {
		var interrupting group
		interrupting.Go(func() {
			awaitFetching(t, r)
			<-time.After(5 * time.Millisecond)
			if err := tt.interrupt(); err != nil {
				t.Error(err)
			}
		})
		wantReadError(t, r, tt.want)
		interrupting.Wait()
	}
}

// TestAStoppedReaderLosesNothing stops the process of a Reader. While it is stopped, samples
// come and the deadline of the Reader passes. Then the test continues the process.
func TestAStoppedReaderLosesNothing(t *testing.T) {
	if os.Getenv(stoppedEnv) != "" {
		readWhileStopped(t)
		return
	}
	t.Run("both", func(t *testing.T) {
		for _, pace := range []string{"eager", "moderated"} {
			t.Run(pace, func(t *testing.T) {
				t.Parallel()
				testStopped(t, pace)
			})
		}
	})
}

const (
	stoppedEnv  = "RINGBUF_TEST_STOPPED"
	stoppedWait = 500 * time.Millisecond // until the deadline
)

// What the reading process prints.
const (
	waitsLine   = "waits"
	expiredLine = "expired at %d" // ns, CLOCK_MONOTONIC
	readLine    = "read %d samples"
)

func testStopped(t *testing.T, pace string) {
	ring := bpftest.New(t, 64<<10)
	runtime.LockOSThread() // see runTests
	defer runtime.UnlockOSThread()
	cmd := testCommand("^TestAStoppedReaderLosesNothing$", stoppedEnv+"="+pace)
	events := os.NewFile(uintptr(mapByID(t, ring, 0)), "events")
	defer events.Close()
	cmd.ExtraFiles = []*os.File{events}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var printed strings.Builder
	lines := bufio.NewScanner(io.TeeReader(stdout, &printed))
	awaitLine := func(format string, args ...any) {
		t.Helper()
		for lines.Scan() {
			if n, err := fmt.Sscanf(lines.Text(), format, args...); n == len(args) && err == nil {
				return
			}
		}
		t.Fatalf("the reading process did not print %q:\n%s", format, &printed)
	}

	accepted := uint64(0)
	for range max(2, *cycles/5000) {
		if _, err := fmt.Fprintln(stdin, waitsLine); err != nil {
			t.Fatal(err)
		}
		awaitLine(waitsLine)
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		await(t, "the process to stop, or end",
			func() bool { return strings.ContainsRune("TZ", processState(t, cmd.Process.Pid)) })
		filled := false
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			const n = 100
			added := ring.Count(0, accepted, n, 0)
			accepted += uint64(added)
			filled = filled || added < n
			syscall.Nanosleep(&syscall.Timespec{Nsec: 1e6}, nil)
		}
		if !filled {
			t.Error("the ring was never full")
		}
		continued := monotonic()
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		// Write more while the Reader catches up. A refused sample is tried again until it is
		// accepted.
		for range 10000 {
			accepted += uint64(ring.Count(0, accepted, 1, 0))
		}
		produced := monotonic()
		var expired int64
		awaitLine(expiredLine, &expired)
		// The deadline expires only after the samples that were there have been read.
		if late := time.Duration(expired - produced); late > 500*time.Millisecond {
			t.Errorf("the deadline expired %v after the last sample", late)
		}
		if expired < continued {
			t.Error("the deadline expired while the process was stopped")
		}
	}
	stdin.Close()
	var read uint64
	awaitLine(readLine, &read)
	if read != accepted {
		t.Errorf("%d samples were read, want %d", read, accepted)
	}
	t.Logf("%d samples", read)
	io.Copy(&printed, stdout)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &printed)
	}
}

// readWhileStopped is the body of the reading process.
func readWhileStopped(t *testing.T) {
	delay := time.Duration(0)
	if os.Getenv(stoppedEnv) == "moderated" {
		delay = 2 * time.Millisecond
	}
	r := mustNewReader(t, FD(3), WithMaxDelay(delay))
	var rec Record
	read := uint64(0)
	readUntil := func(want error) {
		for {
			err := r.ReadInto(&rec)
			if errors.Is(err, want) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := bpftest.DecodeNumbered(rec.RawSample).Seq; got != read {
				t.Fatalf("sample %d came, want %d", got, read)
			}
			read++
		}
	}
	for stdin := bufio.NewScanner(os.Stdin); stdin.Scan(); {
		r.SetDeadline(time.Now().Add(stoppedWait))
		fmt.Println(waitsLine)
		readUntil(os.ErrDeadlineExceeded)
		fmt.Printf(expiredLine+"\n", monotonic())
	}
	r.SetDeadline(time.Time{})
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	readUntil(ErrFlushed)
	fmt.Printf(readLine+"\n", read)
}

// processState returns the state of a process, which is that of its oldest thread.
func processState(t *testing.T, pid int) rune {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return rune(after[0])
}

// TestOneProcessorSuffices runs tests of the promises of a Reader with GOMAXPROCS=1, where no
// two goroutines run at once.
func TestOneProcessorSuffices(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	names := []string{
		"TestOrderOfOneReader",
		"TestNoWakeupIsLost",
		"TestReadWaitsForTheNextSample",
		"TestDeadlineEndsAWait",
		"TestSetDeadlineActsOnAWaitingRead",
		"TestFlushReturnsQuietSamplesThenErrFlushed",
		"TestCloseInterruptsRead",
		"TestBusyRecordHoldsBackThoseBehindIt",
	}
	out, err := runTests("^("+strings.Join(names, "|")+")$", "GOMAXPROCS=1")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range names {
		if !strings.Contains(out, "\n--- PASS: "+name+" ") {
			t.Errorf("%s did not pass:\n%s", name, out)
		}
	}
	if strings.Contains(out, "--- SKIP") {
		t.Errorf("tests were skipped:\n%s", out)
	}
}

func TestTheMapsDescriptorMayBeClosedOrReplaced(t *testing.T) {
	for _, replace := range []bool{false, true} {
		t.Run(fmt.Sprint("replaced: ", replace), func(t *testing.T) {
			ring := bpftest.New(t, os.Getpagesize())
			fd, err := syscall.Dup(ring.FileDescriptor())
			if err != nil {
				t.Fatal(err)
			}
			r := mustNewReader(t, FD(fd))
			if replace {
				if err := replaceByNull(fd); err != nil {
					t.Fatal(err)
				}
				defer syscall.Close(fd)
			} else {
				syscall.Close(fd)
			}
			for _, blockFor := range []time.Duration{0, time.Hour} {
				r.queue.rings.(*libbpfRings).blockFor = blockFor
				result := goRead(t, r)
				ring.Emit(text("sample"))
				wantResult(t, result, "sample", nil)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if open := descriptors(t)[fd]; open != replace {
				t.Errorf("descriptor %d is open: %v, want %v", fd, open, replace)
			}
		})
	}
}

// replaceByNull makes fd a descriptor of /dev/null.
func replaceByNull(fd int) error {
	null, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(null)
	return syscall.Dup3(null, fd, syscall.O_CLOEXEC)
}

func replaceByEpoll(fd int) error {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer syscall.Close(epoll)
	return syscall.Dup3(epoll, fd, syscall.O_CLOEXEC)
}

// TestNoDescriptorIsVital closes each descriptor that a Reader opens, or puts another file in
// its place, before and during a Read. It has a process of its own because any file may get the
// number of a closed descriptor.
func TestNoDescriptorIsVital(t *testing.T) { inOwnProcess(t, testLostDescriptors) }

func testLostDescriptors(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	r.Close()                                 // now Go has opened what it needs itself
	const libbpfs = "libbpf's epoll instance" // only libbpf needs this one
	for i, kind := range []string{"netpoller's descriptor", libbpfs, "epoll instance", "eventfd",
		"netpoller's epoll instance"} {
		for _, tt := range []struct {
			name    string
			prepare func(r *libbpfRings)
		}{
			{"nobody reads", nil},
			{"blocked", func(r *libbpfRings) { r.sampleDone = time.Now() }},
			{"parked", func(r *libbpfRings) { r.sampleDone, r.hadSamples = time.Time{}, false }},
			{"before a tick", func(r *libbpfRings) { r.moderator.interval = 8 * time.Millisecond }},
			{"long before a tick", func(r *libbpfRings) { r.moderator.interval = 50 * time.Millisecond }},
		} {
			for how, lose := range map[string]func(fd int) error{
				"closed":                  syscall.Close,
				"always readable instead": replaceByNull,
				"never readable instead":  replaceByEpoll,
			} {
				t.Run(fmt.Sprintf("%s/%s/%s", kind, tt.name, how), func(t *testing.T) {
					before := descriptors(t)
					r, err := NewReader(ring, WithMaxDelay(2*time.Millisecond))
					if err != nil {
						t.Fatal(err)
					}
					defer r.Close()
					fd := openedSince(t, before)[i]
					loss := loss{ring: ring, r: r, harmless: kind == libbpfs, prepare: func() {}, lose: func() {
						if err := lose(fd); err != nil {
							t.Fatal(err)
						}
					}}
					if tt.prepare != nil {
						loss.whileReading = true
						loss.prepare = func() {
							r := r.queue.rings.(*libbpfRings)
							r.moderator.ticking, r.moderator.interval, r.moderator.lastDrain = false, 0, time.Now()
							tt.prepare(r)
							r.moderator.ticking = r.moderator.interval > 0
						}
					}
					loss.test(t)
				})
			}
		}
	}
}

// openedSince returns the descriptors of a new Reader in the order in which they were opened,
// except that the last one comes first: it has the number of the map's descriptor.
func openedSince(t *testing.T, before map[int]bool) (fds []int) {
	t.Helper()
	var files []string
	for fd := range descriptors(t) {
		if !before[fd] {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	for _, fd := range fds {
		file, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, strings.TrimPrefix(file, "anon_inode:"))
	}
	const want = "[[eventpoll] [eventpoll] [eventpoll] [eventfd] [eventpoll]]"
	if got := fmt.Sprint(files); got != want {
		t.Fatalf("a Reader has the descriptors %v, want %v", got, want)
	}
	return fds
}

// A loss tests a Reader that has lost a descriptor. Calls may fail with EBADF, but every sample
// must come, and no call may hang.
type loss struct {
	ring         *bpftest.Ring
	r            *Reader
	prepare      func() // makes the next Read wait in a certain way
	lose         func()
	whileReading bool
	harmless     bool // no Read may fail

	emitted, read uint64
}

func (l *loss) test(t *testing.T) {
	var reading <-chan readResult
	if l.whileReading {
		l.emit(t, 1)
		wantNumbered(t, l.r, 0, 1)
		l.read = 1
		l.prepare()
		reading = goRead(t, l.r)
	}
	l.lose()
	l.emit(t, 3)
	if reading != nil {
		l.check(t, within(t, "the waiting Read", reading), nil)
	}

	// Everything arrives.
	l.prepare()
	l.r.SetDeadline(time.Unix(0, 1))
	for tries := 0; l.read < l.emitted; tries++ {
		got := within(t, "Read", readFake(l.r))
		l.check(t, got, nil)
		if tries == 100 {
			t.Fatalf("%d of %d samples came, and then %v", l.read, l.emitted, got.err)
		}
	}
	wantNoSpin(t, func(deadline time.Time) {
		l.prepare()
		l.r.SetDeadline(deadline)
		l.check(t, within(t, "Read", readFake(l.r)), os.ErrDeadlineExceeded)
	})

	for _, tt := range []struct {
		name string
		call func() error
		want error
	}{
		{"SetDeadline", func() error { l.r.SetDeadline(time.Unix(0, 1)); return nil },
			os.ErrDeadlineExceeded},
		{"Flush", l.r.Flush, ErrFlushed},
		{"Close", l.r.Close, ErrClosed},
	} {
		l.r.SetDeadline(time.Time{})
		l.r.queue.flushes = nil // if Read failed before it could answer
		l.prepare()
		reading := readFake(l.r)
		await(t, "a goroutine that fetches, or has failed", func() bool {
			l.r.queue.mu.Lock()
			defer l.r.queue.mu.Unlock()
			return l.r.queue.fetching || len(reading) > 0
		})
		called := make(chan readResult, 1)
		go func() { called <- readResult{err: tt.call()} }()
		if got := within(t, tt.name, called); got.err != nil && !errors.Is(got.err, syscall.EBADF) {
			t.Errorf("%s returned %v", tt.name, got.err)
		}
		l.check(t, within(t, "the Read that waits for "+tt.name, reading), tt.want)
	}
}

func (l *loss) emit(t *testing.T, n int) {
	t.Helper()
	if got := l.ring.Count(0, l.emitted, n, 0); got != n {
		t.Fatalf("the ring had room for %d of %d samples", got, n)
	}
	l.emitted += uint64(n)
}

// check checks the result of a Read. It must be the next sample, the error want if there is
// none, or, unless the loss is harmless, the error of a missing descriptor.
func (l *loss) check(t *testing.T, got readResult, want error) {
	t.Helper()
	switch {
	case got.err == nil:
		if n := bpftest.DecodeNumbered(got.rec.RawSample); n.Seq != l.read || l.read == l.emitted {
			t.Fatalf("Read returned sample %d, want %d of %d", n.Seq, l.read, l.emitted)
		}
		l.read++
	case errors.Is(got.err, syscall.EBADF) && !l.harmless:
		if !strings.Contains(got.err.Error(),
			`map "events": wait for samples: somebody closed a descriptor`) {
			t.Errorf("Read returned %v", got.err)
		}
	case want == nil || !errors.Is(got.err, want):
		t.Fatalf("Read returned %v, want %v or %v", got.err, want, syscall.EBADF)
	}
}

// within returns the result of a call. It fails if the call hangs.
func within(t *testing.T, what string, result <-chan readResult) readResult {
	t.Helper()
	select {
	case got := <-result:
		return got
	case <-time.After(3 * time.Second):
		t.Fatalf("%s has not returned after three seconds", what)
		panic("unreachable")
	}
}
