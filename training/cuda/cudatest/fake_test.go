package cudatest_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/cudatest"
)

var ptx = []byte(".visible .entry f(\n)\n.visible .entry g(\n)")

// must panics on errors of calls that a test takes for granted.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	one  = [3]int{1, 1, 1}
	warp = [3]int{32, 1, 1}
)

func TestViolations(t *testing.T) {
	type fake = *cudatest.Fake
	for _, c := range []struct {
		want string // "" if the host does nothing wrong
		run  func(f fake)
	}{
		{"", func(f fake) {
			p := must(f.Alloc(16))
			f.ToDevice(p, []byte("0123456789abcdef"), 0)
			b := make([]byte, 3)
			f.ToHost(b, p+10, 0)
			if string(b) != "abc" {
				t.Errorf("read back %q", b)
			}
			f.Free(p)
		}},
		{"a second Free", func(f fake) {
			p := must(f.Alloc(16))
			f.Free(p)
			f.Free(p)
		}},
		{"is no allocation", func(f fake) {
			p := must(f.Alloc(16))
			f.Free(p + 1)
			f.Free(p)
		}},
		{"after Free", func(f fake) {
			p := must(f.Alloc(16))
			f.Free(p)
			f.Fill(p, 0, 1, 0)
		}},
		{"lie in no allocation", func(f fake) {
			p := must(f.Alloc(16))
			f.Fill(p+4, 0, 4, 0)
			f.Free(p)
		}},
		{"1 allocations of 16 bytes are left", func(f fake) { f.Alloc(16) }},
		{"1 pieces of host memory are left", func(f fake) { f.AllocHost(16) }},
		{"after FreeHost", func(f fake) {
			p, b := must(f.Alloc(16)), must(f.AllocHost(16))
			f.FreeHost(b)
			f.ToDevice(p, b[4:8], 0)
			f.Free(p)
		}},
		{"or a second time", func(f fake) {
			b := must(f.AllocHost(16))
			f.FreeHost(b)
			f.FreeHost(b)
		}},
		{"stream 1, which was never made", func(f fake) { f.Sync(1) }},
		{"event 1, which was never made", func(f fake) { f.Record(1, 0) }},
		{"not recorded", func(f fake) { f.WaitEvent(0, must(f.NewEvent())) }},
		{"the PTX has no kernel h", func(f fake) { f.Load(ptx, []string{"f", "h"}) }},
		{"never loaded", func(f fake) { f.Launch(1, one, warp, 0, 0) }},
		{"grid [0 1 1]", func(f fake) { f.Launch(must(f.Load(ptx, []string{"f"}))["f"], [3]int{0, 1, 1}, warp, 0, 0) }},
		{"argument 0 is int", func(f fake) { f.Launch(must(f.Load(ptx, []string{"f"}))["f"], one, warp, 0, 0, 1) }},
		{"in no allocation", func(f fake) { f.Launch(must(f.Load(ptx, []string{"g"}))["g"], one, warp, 0, 0, cuda.Ptr(77)) }},
		// A copy on another stream needs an event, or a wait of the host.
		{"kernel f on stream 0 does not wait for ToDevice on stream 1", func(f fake) { twoStreams(f, false, false) }},
		{"", func(f fake) { twoStreams(f, true, false) }},
		{"", func(f fake) { twoStreams(f, false, true) }},
		{"ToDevice on stream 1 does not wait for kernel f on stream 0", func(f fake) {
			fn := must(f.Load(ptx, []string{"f"}))["f"]
			p, b, s := must(f.Alloc(16)), must(f.AllocHost(16)), must(f.NewStream())
			f.Launch(fn, one, warp, 0, 0, p)
			f.ToDevice(p, b, s)
			f.Free(p)
			f.FreeHost(b)
		}},
	} {
		f := cudatest.New(cudatest.Options{})
		c.run(f)
		err := f.Close()
		if c.want == "" {
			if err != nil {
				t.Errorf("a correct host: %v", err)
			}
			continue
		}
		if !errors.Is(err, cudatest.ErrMisuse) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func twoStreams(f *cudatest.Fake, event, sync bool) {
	fn := must(f.Load(ptx, []string{"f"}))["f"]
	p, b := must(f.Alloc(16)), must(f.AllocHost(16))
	s, e := must(f.NewStream()), must(f.NewEvent())
	f.ToDevice(p, b, s)
	f.Record(e, s)
	if event {
		f.WaitEvent(0, e)
	}
	if sync {
		f.Sync(s)
	}
	f.Launch(fn, one, warp, 0, 0, p)
	f.Free(p)
	f.FreeHost(b)
}

func TestLaunchStandIn(t *testing.T) {
	f := cudatest.New(cudatest.Options{OnLaunch: func(kernel string, args []any, memory func(cuda.Ptr) []byte) {
		copy(memory(args[0].(cuda.Ptr)), kernel)
	}})
	p := must(f.Alloc(4))
	fn := must(f.Load(ptx, []string{"g"}))
	if err := f.Launch(fn["g"], one, warp, 0, 0, p+1); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if err := f.ToHost(b, p, 0); err != nil || !bytes.Equal(b, []byte("\xc1g\xc1\xc1")) {
		t.Errorf("the kernel wrote %q, %v", b, err)
	}
	calls := f.Calls()
	if c := calls[2]; c.Method != "Launch" || c.Kernel != "g" || c.Args[0] != p+1 {
		t.Errorf("call 2 is %v", c)
	}
}

func TestMemoryLimit(t *testing.T) {
	f := cudatest.New(cudatest.Options{Info: cuda.Info{Name: "small", Memory: 100}})
	p := must(f.Alloc(60))
	if _, err := f.Alloc(41); !errors.Is(err, cuda.ErrOutOfMemory) {
		t.Errorf("got %v", err)
	}
	if err := f.Free(p); err != nil {
		t.Error(err)
	}
	must(f.Alloc(100))
}

// TestSweep: a scenario of four calls fails four times, and a lost device answers nothing more.
func TestSweep(t *testing.T) {
	for _, what := range []error{cuda.ErrOutOfMemory, cuda.ErrDeviceLost} {
		n := cudatest.Sweep(t, what, nil, func(t *testing.T, o cudatest.Options) {
			f := cudatest.New(o)
			p, err := f.Alloc(4)
			if err == nil {
				err = f.Fill(p, 1, 1, 0)
				if err == nil {
					err = f.Sync(0)
				}
				if e := f.Free(p); err != nil && errors.Is(what, cuda.ErrDeviceLost) && !errors.Is(e, what) {
					t.Errorf("Free on a lost device: %v", e)
				} else if e != nil && !errors.Is(what, cuda.ErrDeviceLost) {
					f.Free(p) // the failure was this call's
				}
			}
			if err != nil && !errors.Is(err, what) {
				t.Errorf("got %v, want %v", err, what)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
		if n != 4 {
			t.Errorf("%v: %d calls failed, want 4", what, n)
		}
	}
	if n := cudatest.Sweep(t, cuda.ErrOutOfMemory, []string{"AllocHost"}, func(t *testing.T, o cudatest.Options) {
		f := cudatest.New(o)
		must(f.Alloc(1))
		f.AllocHost(1)
	}); n != 1 {
		t.Errorf("%d calls of AllocHost failed, want 1", n)
	}
}
