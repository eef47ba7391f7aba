package main

import (
	"math"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
)

// The JSON objects of several commands have these fields. docs/tool.md has their meaning.

// A ringJSON is the state of a ring buffer.
type ringJSON struct {
	ID               uint32   `json:"id"`
	Name             string   `json:"name"`
	Type             string   `json:"type"`
	Flags            []string `json:"flags"`
	SizeBytes        int      `json:"size_bytes"`
	FillBytes        *int     `json:"fill_bytes"`
	FillPercent      *float64 `json:"fill_percent"`
	ConsumerPosition uint64   `json:"consumer_position"`
	ProducerPosition uint64   `json:"producer_position"`
}

func newRingJSON(r *rings.Ring, fill int, consumer, producer uint64) ringJSON {
	j := ringJSON{
		ID: r.ID, Name: r.Name, Type: r.TypeName(), Flags: r.FlagNames(), SizeBytes: r.Size,
		ConsumerPosition: consumer, ProducerPosition: producer,
	}
	j.FillBytes, j.FillPercent = fillJSON(r, fill)
	return j
}

// fillJSON returns a fill in bytes and in percent of the ring, or nil if it is not known.
func fillJSON(r *rings.Ring, fill int) (bytes *int, percent *float64) {
	if fill < 0 {
		return nil, nil
	}
	p := round(100 * float64(fill) / float64(r.Size))
	return &fill, &p
}

// A usageJSON has the users of a ring buffer. A list that is not known is null.
type usageJSON struct {
	Programs  []programJSON `json:"programs"`
	Processes []processJSON `json:"processes"`
	Pins      []string      `json:"pins"`
}

type programJSON struct {
	ID   uint32 `json:"id"`
	Name string `json:"name"`
	Type string `json:"type"`
}

type processJSON struct {
	PID  int         `json:"pid"`
	Comm string      `json:"comm"`
	Via  []rings.Via `json:"via"`
}

func newUsageJSON(u rings.Usage) usageJSON {
	j := usageJSON{Processes: []processJSON{}, Pins: u.Pins}
	if u.Programs != nil {
		j.Programs = []programJSON{}
	}
	for _, p := range u.Programs {
		j.Programs = append(j.Programs, programJSON{p.ID, p.Name, p.TypeName()})
	}
	for _, p := range u.Processes {
		j.Processes = append(j.Processes, processJSON{p.PID, p.Comm, p.Via})
	}
	return j
}

// round rounds x to three decimals.
func round(x float64) float64 { return math.Round(x*1000) / 1000 }
