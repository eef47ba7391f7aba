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

// TestMain fails if the tests pass but leave goroutines, descriptors or mappings of rings
// behind.
func TestMain(m *testing.M) {
	status := bpftest.Status()
	fmt.Println(status)
	// Fuzzing starts the goroutine of os/signal, which never ends. Start it before resources
	// are counted.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	signal.Stop(signals)
	before := resources()
	code := m.Run()
	fmt.Println(status) // again, at the end of a long output
	if code == 0 {
		if err := awaitResources(before); err != nil {
			fmt.Println("leak:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// A resourceCount counts what this process has of the resources that a Reader uses.
type resourceCount struct{ goroutines, descriptors, mappings int }

func resources() resourceCount {
	// The test binary itself may have descriptors that are not collected yet.
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

// awaitResources waits until this process has no more than want. Goroutines and cleanups take a
// moment to end.
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
