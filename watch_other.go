//go:build !linux

package ringbuf

const weaklyOrdered = true

func fenceAll() {}

func openWatched(Map) (watched, error) { return watched{}, errNoLinux }
func unmapWatched([]byte)              {}
