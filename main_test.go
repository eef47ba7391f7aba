package ringbuf

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// TestMain fails when tests pass but leave goroutines, descriptors or mappings of
// rings behind.
func TestMain(m *testing.M) {
	status := bpftest.Status()
	fmt.Println(status)
	// Fuzzing starts the goroutine of os/signal, which never ends.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	signal.Stop(signals)
	before := resources()
	code := m.Run()
	fmt.Println(status) // and at the end of a long output
	if code == 0 {
		if err := awaitResources(before); err != nil {
			fmt.Println("leak:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// resourceCount is how much of what a Reader holds this process has.
type resourceCount struct{ goroutines, descriptors, mappings int }

func resources() resourceCount {
	// The test binary itself may have descriptors that are not yet collected.
	runtime.GC()
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	return resourceCount{
		goroutines:  runtime.NumGoroutine(),
		descriptors: len(descriptors),
		mappings:    strings.Count(string(maps), "bpf-map"),
	}
}

// awaitResources waits until this process has no more than want, for goroutines
// and cleanups take a moment to end.
func awaitResources(want resourceCount) error {
	var got resourceCount
	for p := (patience{left: 5 * time.Second}); !p.over(); {
		got = resources()
		if got.goroutines <= want.goroutines && got.descriptors <= want.descriptors &&
			got.mappings <= want.mappings {
			return nil
		}
		runtime.Gosched()
	}
	pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
	return fmt.Errorf("have %+v, want at most %+v", got, want)
}

// On a machine that is busy with others a limit by the wall's clock says nothing of the code
// that is tested. So these two count time only while this process has turns on a processor.
