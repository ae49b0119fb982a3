package local

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

// ErrMemory is wrapped when this machine has less memory than a model's weights need.
var ErrMemory = errors.New("model larger than memory")

// checkMemory says before any work whether a backend that computes here can hold the weights, in float32 as they are
// trained and measured. What it needs besides is not counted: a model that passes may still be too large.
func checkMemory(b backend.Backend, c model.Config) error {
	if _, here := b.(*cpu.Backend); !here {
		return nil
	}
	return fits(c, memoryHere())
}

// fits is checkMemory for a machine with that many bytes; 0 means that nobody knows.
func fits(c model.Config, have int64) error {
	need := 4 * (c.Params() + 3*int64(c.Positions)*int64(c.HeadDim)/2)
	if have == 0 || need <= have {
		return nil
	}
	return fmt.Errorf("%w: %d million weights need at least %.1f GiB to compute with, there are %.1f GiB here; use a machine with more, or bzd train "+
		"--memory, which leaves them in their files (bzd checkpoint import, and bzd genesis import with --groups, need little)", ErrMemory, c.Params()/1e6, gib(need), gib(have))
}

func gib(bytes int64) float64 { return float64(bytes) / (1 << 30) }

// memoryHere is how much memory this process may use, in bytes: the machine's or what its control group allows. 0 where
// that is not known.
func memoryHere() int64 {
	have := int64(0)
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		have = meminfo(string(raw))
	}
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && limit > 0 && (have == 0 || limit < have) {
			have = limit
		}
	}
	return have
}

// meminfo is MemTotal of a /proc/meminfo, in bytes.
func meminfo(text string) int64 {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			if kib, err := strconv.ParseInt(f[1], 10, 40); err == nil {
				return kib << 10
			}
		}
	}
	return 0
}
