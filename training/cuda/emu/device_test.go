package emu_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
)

func words(v uint32, n int) []uint32 { return slices.Repeat([]uint32{v}, n) }

func TestMemory(t *testing.T) {
	b := start(t, emu.Config{Memory: 1 << 20})
	free, total, err := b.MemInfo()
	if err != nil || free != 1<<20 || total != 1<<20 {
		t.Fatalf("%d of %d free, %v", free, total, err)
	}
	big := b.alloc(1<<20 - 512)
	small := b.alloc(257)
	if small%256 != 0 || big%256 != 0 {
		t.Errorf("addresses %#x, %#x are not aligned", big, small)
	}
	if n, bytes := b.Live(); n != 2 || bytes != 1<<20-255 {
		t.Errorf("%d allocations of %d bytes", n, bytes)
	}
	if _, err := b.Alloc(1); !errors.Is(err, cuda.ErrOutOfMemory) {
		t.Errorf("a full device gives %v", err)
	}
	if err := b.Free(big); err != nil {
		t.Fatal(err)
	}
	for range 100 { // fragments do not matter, and neither does what was freed
		p := b.alloc(1 << 19)
		if err := b.Fill(p, 7, 1<<17, 0); err != nil {
			t.Fatal(err)
		}
		if err := b.Free(p); err != nil {
			t.Fatal(err)
		}
	}
	q := b.alloc(64)
	if err := b.Fill(q+4, 9, 3, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.CopyDevice(q+16, q+4, 8, 0); err != nil {
		t.Fatal(err)
	}
	if got := get[uint32](b, q+4, 5); !slices.Equal(got, words(9, 5)) {
		t.Errorf("fill and copy give %v", got)
	}
}

// TestStreamsAreLazy: what nobody has waited for has not happened.
func TestStreamsAreLazy(t *testing.T) {
	b := start(t, emu.Config{})
	p := b.alloc(16)
	from, err := b.AllocHost(16)
	if err != nil {
		t.Fatal(err)
	}
	to, err := b.AllocHost(16)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	copy(from, "aaaaaaaaaaaaaaaa")
	check(b.ToDevice(p, from, s))
	check(b.ToHost(to, p, s))
	copy(from, "bbbbbbbbbbbbbbbb") // too early: this is what will be copied
	check(b.Sync(0))
	if string(to) == "bbbbbbbbbbbbbbbb" || string(to) == "aaaaaaaaaaaaaaaa" {
		t.Errorf("before the wait the host has %q", to)
	}
	check(b.Sync(s))
	if string(to) != "bbbbbbbbbbbbbbbb" {
		t.Errorf("after the wait the host has %q", to)
	}

	// Events order streams: without one, stream 0 does not see the fill.
	e, err := b.NewEvent()
	check(err)
	check(b.Fill(p, 1, 4, s))
	if got := get[uint32](b, p, 1)[0]; got == 1 {
		t.Error("stream 0 waited for stream 1 without an event")
	}
	check(b.Record(e, s))
	check(b.Fill(p, 2, 4, s)) // after the event
	check(b.WaitEvent(0, e))
	if got := get[uint32](b, p, 1)[0]; got != 1 {
		t.Errorf("after the event stream 0 sees %d", got)
	}
	check(b.Record(e, 0))
	late, err := b.NewEvent()
	check(err)
	check(b.Fill(p, 3, 4, 0))
	check(b.Record(late, 0))
	if ms, err := b.Elapsed(e, late); err != nil || ms <= 0 {
		t.Errorf("elapsed %v, %v", ms, err)
	}
	check(b.FreeHost(from))
	check(b.FreeHost(to))
	check(b.Free(p)) // waits for the fills
	if err := b.FreeHost(from); !errors.Is(err, cuda.ErrLaunch) {
		t.Errorf("a second FreeHost gives %v", err)
	}
}

func TestDeviceLost(t *testing.T) {
	b := start(t, emu.Config{})
	p := b.alloc(64)
	b.Kill()
	if err := b.try("test_write", 1, 1, 0, p, int32(1)); !errors.Is(err, cuda.ErrDeviceLost) {
		t.Fatalf("got %v", err)
	}
	if err := b.Free(p); !errors.Is(err, cuda.ErrDeviceLost) {
		t.Errorf("afterwards Free gives %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Sync(0); !errors.Is(err, cuda.ErrDeviceLost) {
		t.Errorf("after Close, Sync gives %v", err)
	}
}

func TestLoad(t *testing.T) {
	b := start(t, emu.Config{Major: 8, Minor: 6, SMs: 3})
	if _, err := b.Load(nil, []string{"test_write", "test_nothing"}); !errors.Is(err, cuda.ErrLaunch) || !strings.Contains(err.Error(), "test_nothing") {
		t.Errorf("got %v", err)
	}
	if i := b.Info(); i.Major != 8 || i.Minor != 6 || i.SMs != 3 || i.Memory != 1<<30 || i.Name != "emulator" {
		t.Errorf("info %+v", i)
	}
	if !slices.Contains(b.Kernels(), "test_write") {
		t.Errorf("kernels %v", b.Kernels())
	}
}

// TestBuild: sources that are wrong say so, and are compiled again when they change.
func TestBuild(t *testing.T) {
	start(t, emu.Config{}) // skips where nothing can be compiled
	dir := t.TempDir()
	kernels, source := bare(t), filepath.Join(dir, "k.cu")
	other := filepath.Join(dir, "other.cu")
	if err := os.WriteFile(other, []byte("#include \"common.cuh\"\nextern \"C\" __global__ void other() {}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{`extern "C" __global__ void KERNEL_BOUNDS(32, 1) k(int *p) { p[0] = 1 }`, "error: expected ';'"},
		{`extern "C" __global__ int k(int *p) { return 0; }`, "not of the form"},
		{`extern "C" __global__ void other(float *p) {}`, "names must be unique"},
		{`extern "C" __global__ void k(int *p, int v) { p[0] = v; }`, ""},
		{`#define NAME(x) k_##x
		  #define EACH (8 * (2 + 2))
		  extern "C" __global__ void KERNEL_BOUNDS(EACH, 1) NAME(new)(int *p, int v) { p[0] = v + 1; }`, ""},
	} {
		if err := os.WriteFile(source, []byte("#include \"common.cuh\"\n"+c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		e, err := emu.Start(t.Context(), emu.Config{Cache: filepath.Join(dir, "cache"), Extra: []string{other, source}, Kernels: kernels})
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %q", c.text, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b := bench{e, t}
		p := b.alloc(4)
		if strings.Contains(c.text, "NAME") {
			b.run("k_new", 1, 32, 0, p, int32(4))
			if err := b.try("k_new", 1, 33, 0, p, int32(4)); err == nil || !strings.Contains(err.Error(), "bounds allow 32") {
				t.Errorf("a block that is too large gives %v", err)
			}
		} else {
			b.run("k", 1, 32, 0, p, int32(5))
			if got := get[int32](b, p, 1)[0]; got != 5 {
				t.Errorf("the kernel wrote %d", got)
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// bare is a directory of kernels that has only the headers, and the emulator beside it.
func bare(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	kernels := filepath.Join(root, "kernels")
	for _, f := range []string{"../kernels/common.cuh", "../kernels/ptx.cuh", "emu.h", "sm90.h", "runner/switch.h", "runner/sm90.h", "runner/runner.cpp"} {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(root, "emu", f)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return kernels
}

// TestUnavailable: without a compiler the error says what is missing, even if a program built before exists.
func TestUnavailable(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := emu.Start(t.Context(), emu.Config{}); !errors.Is(err, emu.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
