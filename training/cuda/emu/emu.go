package emu

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
)

// ErrUnavailable: this machine cannot build or run the emulator.
var ErrUnavailable = errors.New("no CUDA emulator on this machine")

// Config says what device to emulate. Zero values mean the default.
type Config struct {
	Kernels string   // directory of the kernels; default: training/cuda/kernels of the module around the working directory
	Extra   []string // more .cu files
	Cache   string   // where built programs are kept; default: in the user's cache directory
	Memory  int64    // bytes of device memory; default 1 GiB
	Major   int      // compute capability; default 8.0. With 9.0 there are the kernels of *_sm90.cu too
	Minor   int
	SMs     int  // multiprocessors; default 4
	Reverse bool // run blocks and threads in descending order
	Eager   bool // run work at once instead of when it is waited for: for debugging
	Prompt  bool // what the copy engine and the tensor cores of 9.0 do beside the threads is done at once, not as late as it may
	Seconds int  // processor time after which a launch fails; default 60
}

func (c Config) withDefaults() Config {
	if c.Memory == 0 {
		c.Memory = 1 << 30
	}
	if c.Major == 0 {
		c.Major = 8
	}
	if c.SMs == 0 {
		c.SMs = 4
	}
	if c.Seconds == 0 {
		c.Seconds = 60
	}
	return c
}

// hopper says whether there is a copy engine with tensor maps.
func (c Config) hopper() bool { return c.Major == 9 && c.Minor == 0 }

// Test starts an emulator that ends with the test. Without a compiler the test is skipped; on Linux it fails if CI is set in the
// environment.
func Test(t testing.TB, c Config) *Emulator {
	t.Helper()
	e, err := Start(context.Background(), c)
	switch {
	case errors.Is(err, ErrUnavailable) && (os.Getenv("CI") == "" || runtime.GOOS != "linux"):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

var _ cuda.Driver = (*Emulator)(nil)
