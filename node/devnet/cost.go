package devnet

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/blockzero-net/bzd/node/local"
)

// Cost is what a run took of the machine, all nodes together. docs/performance.md says how it is measured.
type Cost struct {
	Seconds    float64 `json:"seconds"`     // processor time of the process, user and system
	Train      float64 `json:"train"`       // of these, in training
	Evaluate   float64 `json:"evaluate"`    // of these, in evaluation, the probe's included
	Protocol   float64 `json:"protocol"`    // all others
	Share      float64 `json:"share"`       // of Protocol in Seconds
	PeakMemory int64   `json:"peak_memory"` // bytes, as the operating system counts them
}

// profiler samples the process: about a hundred times per second of processor time it notes what runs, with the label
// that node/local puts on training and evaluation.
type profiler struct {
	raw bytes.Buffer
	on  bool
}

// startProfile starts sampling. A process that is being profiled already goes without.
func startProfile() *profiler {
	p := &profiler{}
	p.on = pprof.StartCPUProfile(&p.raw) == nil
	return p
}

// stop ends the sampling; calling it again does nothing.
func (p *profiler) stop() {
	if p.on {
		pprof.StopCPUProfile()
		p.on = false
	}
}

// cost ends the sampling, writes the profile to file if one is named, and accounts for it. It returns nil where the
// process could not be profiled or the system does not tell what it took.
func (p *profiler) cost(file string) (*Cost, error) {
	if !p.on {
		return nil, nil
	}
	total, peak := Usage() // before the profile is put together, which is no part of the run
	p.stop()
	if file != "" {
		if err := os.WriteFile(file, p.raw.Bytes(), 0o644); err != nil {
			return nil, err
		}
	}
	work, err := workTime(&p.raw)
	if err != nil {
		return nil, fmt.Errorf("read the profile: %w", err)
	}
	if total == 0 {
		return nil, nil
	}
	c := &Cost{Seconds: total.Seconds(), Train: work[local.Training].Seconds(), Evaluate: work[local.Evaluation].Seconds(), PeakMemory: peak}
	c.Protocol = c.Seconds - c.Train - c.Evaluate
	c.Share = c.Protocol / c.Seconds
	return c, nil
}

var errProfile = errors.New("not a CPU profile")

// workTime adds up the samples of a CPU profile, in the format of github.com/google/pprof/proto/profile.proto, by their
// label [local.Label]. Those without one are under the empty string.
func workTime(r io.Reader) (map[string]time.Duration, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	var table []string
	var samples [][]byte
	if err := fields(raw, func(n protowire.Number, v []byte, _ uint64) error {
		switch n {
		case 2:
			samples = append(samples, v)
		case 6:
			table = append(table, string(v))
		}
		return nil
	}); err != nil {
		return nil, err
	}
	text := func(i uint64) string {
		if i < uint64(len(table)) {
			return table[i]
		}
		return ""
	}
	out := map[string]time.Duration{}
	for _, s := range samples {
		var values []uint64 // samples, nanoseconds
		work := ""
		if err := fields(s, func(n protowire.Number, v []byte, x uint64) error {
			switch {
			case n == 2 && v == nil:
				values = append(values, x)
			case n == 2:
				for len(v) > 0 {
					x, k := protowire.ConsumeVarint(v)
					if k < 0 {
						return errProfile
					}
					values, v = append(values, x), v[k:]
				}
			case n == 3:
				var key, value uint64
				if err := fields(v, func(n protowire.Number, _ []byte, x uint64) error {
					switch n {
					case 1:
						key = x
					case 2:
						value = x
					}
					return nil
				}); err != nil {
					return err
				}
				if text(key) == local.Label {
					work = text(value)
				}
			}
			return nil
		}); err != nil {
			return nil, err
		}
		if len(values) != 2 {
			return nil, errProfile
		}
		out[work] += time.Duration(values[1])
	}
	return out, nil
}

// fields calls visit with every field of a message: the bytes of one that has bytes, the number of one that is a varint.
func fields(b []byte, visit func(n protowire.Number, v []byte, x uint64) error) error {
	for len(b) > 0 {
		n, t, k := protowire.ConsumeTag(b)
		if k < 0 {
			return errProfile
		}
		b = b[k:]
		var v []byte
		var x uint64
		switch t {
		case protowire.BytesType:
			v, k = protowire.ConsumeBytes(b)
			if v == nil {
				v = []byte{}
			}
		case protowire.VarintType:
			x, k = protowire.ConsumeVarint(b)
		default:
			k = protowire.ConsumeFieldValue(n, t, b)
		}
		if k < 0 {
			return errProfile
		}
		if err := visit(n, v, x); err != nil {
			return err
		}
		b = b[k:]
	}
	return nil
}
