//go:build cuda

package driver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/kernels"
)

// real says to test the machine's own driver and card, not the fake: BZD_CUDA_TEST=card.
var real = os.Getenv("BZD_CUDA_TEST") == "card"

// TestMain builds the fake driver of testdata and runs the tests in a process that finds it.
func TestMain(m *testing.M) {
	if real || os.Getenv("BZD_CUDA_TEST") == "fake" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "libcuda")
	if err != nil {
		panic(err)
	}
	args := append(strings.Fields(os.Getenv("CGO_CFLAGS")), "-shared", "-fPIC", "-o", filepath.Join(dir, "libcuda.so.1"), "testdata/fake.c")
	if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
		panic(fmt.Sprintf("cc %v: %v: %s", args, err, out))
	}
	code := 0
	cmd := again(os.Args[1:]...)
	cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+dir)
	if err := cmd.Run(); err != nil {
		code = 1
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// again is this test program in another process.
func again(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "BZD_CUDA_TEST=fake")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

func open(t *testing.T) cuda.Driver {
	t.Helper()
	d, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := d.Sync(0); !errors.Is(err, cuda.ErrDeviceLost) {
			t.Errorf("Sync after Close: %v", err)
		}
	})
	return d
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestList(t *testing.T) {
	infos, err := List()
	check(t, err)
	for _, i := range infos {
		t.Logf("%+v", i)
		if i.Name == "" || i.SMs < 1 || i.SharedPerCTA < 48<<10 || i.Memory < 1<<29 || i.DriverVersion < 11000 {
			t.Errorf("%+v", i)
		}
	}
	if _, err := Open(len(infos)); !errors.Is(err, cuda.ErrNoDevice) {
		t.Error(err)
	}
	if _, err := Open(-1); !errors.Is(err, cuda.ErrNoDevice) {
		t.Error(err)
	}
}

// Copies in all directions, from memory of Go and page-locked memory, in many goroutines with a stream each.
func TestMemory(t *testing.T) {
	d := open(t)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			s, err := d.NewStream()
			if err != nil {
				t.Error(err)
				return
			}
			const n = 1 << 16
			locked, e1 := d.AllocHost(n)
			a, e2 := d.Alloc(n)
			b, e3 := d.Alloc(n)
			if err := errors.Join(e1, e2, e3); err != nil {
				t.Error(err)
				return
			}
			for i := range locked {
				locked[i] = byte(i*7 + g)
			}
			back := make([]byte, n)
			err = errors.Join(
				d.Fill(b, 0xa1b2c3d4, n/4, s),
				d.ToDevice(a, locked[:n/2], s),
				d.ToDevice(a+n/2, bytes.Clone(locked[n/2:]), s),
				d.CopyDevice(b+4, a+4, n-8, s),
				d.ToHost(back, b, s),
			)
			if err != nil {
				t.Error(err)
			}
			if want := []byte{0xd4, 0xc3, 0xb2, 0xa1}; !bytes.Equal(back[:4], want) || !bytes.Equal(back[n-4:], want) || !bytes.Equal(back[4:n-4], locked[4:n-4]) {
				t.Error("other bytes came back")
			}
			clear(locked)
			err = errors.Join(d.ToHost(locked, b, s), d.Sync(s))
			if err != nil || !bytes.Equal(locked, back) {
				t.Errorf("page-locked memory holds other bytes: %v", err)
			}
			if err := errors.Join(d.Free(a), d.FreeHost(locked)); err != nil { // b is left to Close
				t.Error(err)
			}
		})
	}
	all.Wait()
	free, total, err := d.MemInfo()
	check(t, err, d.Free(0), d.Fill(0, 0, 0, 0), d.ToDevice(0, nil, 0), d.ToHost(nil, 0, 0), d.CopyDevice(0, 0, 0, 0))
	if free <= 0 || free > total {
		t.Errorf("%d of %d bytes free", free, total)
	}
}

func TestPinned(t *testing.T) {
	d := open(t).(*device)
	var locked [][]byte
	for range 5 {
		b, err := d.AllocHost(1000)
		check(t, err)
		locked = append(locked, b)
	}
	check(t, d.FreeHost(locked[2]))
	for i, b := range locked {
		if got := d.isPinned(b) && d.isPinned(b[10:20]) && d.isPinned(b[999:]); got != (i != 2) {
			t.Errorf("block %d: %v", i, got)
		}
	}
	if d.isPinned(make([]byte, 10)) || d.isPinned(unsafe.Slice(&locked[0][0], 1001)) {
		t.Error("memory of Go, or a byte beyond, is page-locked")
	}
}

func TestEvents(t *testing.T) {
	d := open(t)
	s, err := d.NewStream()
	check(t, err)
	from, err := d.NewEvent()
	check(t, err)
	to, err := d.NewEvent()
	check(t, err)
	p, err := d.Alloc(1 << 20)
	check(t, err, d.Record(from, 0), d.WaitEvent(s, from), d.Fill(p, 1, 1<<18, s), d.Record(to, s))
	ms, err := d.Elapsed(from, to)
	check(t, err)
	if !(ms > 0 && ms < 1000) {
		t.Errorf("%v ms", ms)
	}
}

// Running out of memory leaves everything usable.
func TestOutOfMemory(t *testing.T) {
	d := open(t)
	_, err := d.Alloc(1 << 45)
	if !errors.Is(err, cuda.ErrOutOfMemory) || !strings.Contains(err.Error(), "MiB are free") {
		t.Fatal(err)
	}
	if _, err := d.AllocHost(1 << 45); !errors.Is(err, cuda.ErrOutOfMemory) {
		t.Fatal(err)
	}
	p, err := d.Alloc(0)
	check(t, err, d.Free(p), d.Sync(0))
}

// A kernel rounds values to bfloat16, started from many goroutines.
func TestLaunch(t *testing.T) {
	d := open(t)
	m, ok := kernels.Find("cast_f32_bf16", d.Info().Major, d.Info().Minor)
	if !ok {
		t.Fatal("no such kernel")
	}
	fs, err := d.Load(m.PTX, []string{"cast_f32_bf16"})
	check(t, err)
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			const n = 3000
			src := make([]byte, 4*n)
			want := make([]byte, 2*n)
			for i := range n {
				v := float32(i)*1.0001 + float32(g)
				binary.LittleEndian.PutUint32(src[4*i:], math.Float32bits(v))
				bits := math.Float32bits(v)
				binary.LittleEndian.PutUint16(want[2*i:], uint16((bits+0x7fff+bits>>16&1)>>16))
			}
			x, e1 := d.Alloc(4 * n)
			y, e2 := d.Alloc(2 * n)
			got := make([]byte, 2*n)
			err := errors.Join(e1, e2, d.ToDevice(x, src, 0),
				d.Launch(fs["cast_f32_bf16"], [3]int{2, 1, 1}, [3]int{256, 1, 1}, 0, 0, y, x, int64(n)),
				d.ToHost(got, y, 0))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("other values than the CPU's: %v", err)
			}
		})
	}
	all.Wait()
}

func TestTensorMap(t *testing.T) {
	d := open(t)
	p, err := d.Alloc(256 * 128 * 2)
	check(t, err)
	m, err := d.TensorMap(cuda.TensorSpec{Base: p, Rows: 256, Cols: 120, Stride: 128, BoxRows: 64, BoxCols: 64})
	if d.Info().Major < 9 {
		if !errors.Is(err, cuda.ErrNoDevice) {
			t.Error(err)
		}
		return
	}
	check(t, err)
	if m == (cuda.TensorMap{}) {
		t.Error("an empty map")
	}
	if real {
		return // its content is NVIDIA's own
	}
	for i, want := range []uint64{uint64(p), 120, 256, 256, 64, 64} {
		if got := binary.LittleEndian.Uint64(m[8*i:]); got != want {
			t.Errorf("word %d of the map is %d, want %d", i, got, want)
		}
	}
}

// What only the fake driver can be asked for.

func TestArguments(t *testing.T) {
	if real {
		t.Skip("needs the fake driver")
	}
	d := open(t)
	fs, err := d.Load([]byte(".version 8.0"), []string{"echo"})
	check(t, err)
	out, err := d.Alloc(256)
	check(t, err)
	var m cuda.TensorMap
	for i := range m {
		m[i] = byte(i + 1)
	}
	check(t, d.Launch(fs["echo"], [3]int{1, 2, 3}, [3]int{4, 5, 6}, 7, 0, out, int32(-2), float32(1.5), uint32(9), int64(-3), m, uint64(1)<<63))
	got := make([]byte, 185)
	check(t, d.ToHost(got, out, 0))
	var want []byte
	for _, v := range []any{int32(-2), float32(1.5), uint32(9), int64(-3), m[:], uint64(1) << 63, []uint32{1, 2, 3, 4, 5, 6, 7}, byte(0)} {
		want, _ = binary.Append(want, binary.LittleEndian, v)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the kernel got\n%x, want\n%x", got, want)
	}
	args := []any{out, int32(-2), float32(1.5), uint32(9), int64(-3), &m, uint64(1)}
	defer func() {
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "argument 5 of kernel echo is a *cuda.TensorMap") {
			t.Errorf("a pointer as an argument: %v", r)
		}
	}()
	_ = d.Launch(fs["echo"], [3]int{1, 1, 1}, [3]int{1, 1, 1}, 0, 0, args...)
}

// After a kernel has failed, every call fails with that same error, and Close still gives everything back.
func TestSticky(t *testing.T) {
	if real {
		t.Skip("needs the fake driver")
	}
	cmd := again("-test.run=^TestCrash$")
	cmd.Env = append(cmd.Env, "FAKE_CRASH=1")
	check(t, cmd.Run())
}

func TestCrash(t *testing.T) {
	if os.Getenv("FAKE_CRASH") == "" {
		return // TestSticky runs it by itself, since the fake does not recover either
	}
	d, err := Open(0)
	check(t, err)
	fs, err := d.Load([]byte(".version 8.0"), []string{"crash"})
	check(t, err)
	first := d.Launch(fs["crash"], [3]int{1, 1, 1}, [3]int{32, 1, 1}, 0, 0)
	if !errors.Is(first, cuda.ErrLaunch) || !strings.Contains(first.Error(), "kernel crash, [1 1 1] blocks of [32 1 1] threads") {
		t.Fatal(first)
	}
	_, alloc := d.Alloc(1)
	_, host := d.AllocHost(1)
	_, _, mem := d.MemInfo()
	_, load := d.Load(nil, nil)
	_, stream := d.NewStream()
	for i, err := range []error{alloc, host, mem, load, stream, d.Sync(0), d.Fill(0, 0, 1, 0), d.ToDevice(0, []byte{1}, 0)} {
		if err != first {
			t.Errorf("call %d after the failure: %v", i, err)
		}
	}
	check(t, d.Close(), d.Close())
}

func TestLoadFails(t *testing.T) {
	if real {
		t.Skip("needs the fake driver")
	}
	d := open(t)
	_, err := d.Load([]byte(".version 9.9"), nil)
	if !errors.Is(err, cuda.ErrDriverTooOld) || !strings.Contains(err.Error(), "ptxas fatal : Unsupported .version 9.9") {
		t.Error(err)
	}
	check(t, d.Sync(0)) // no damage
	if _, err := d.Load([]byte(".version 8.0"), []string{"nothing"}); !errors.Is(err, cuda.ErrLaunch) || !strings.Contains(err.Error(), "kernel nothing") {
		t.Error(err)
	}
}

// Each reason why a card cannot be had is told apart.
func TestRefused(t *testing.T) {
	if real {
		t.Skip("needs the fake driver")
	}
	for _, c := range []struct{ env, want string }{
		{"FAKE_INIT=100", "no usable CUDA device: the driver sees no card"},
		{"FAKE_INIT=803", "CUDA driver too old: the kernel module and libcuda are of different versions"},
		{"FAKE_INIT=999", "CUDA device lost: check dmesg for Xid"},
		{"FAKE_VERSION=11080", "card 0, Fake 1: CUDA driver too old: it is for CUDA 11.8, and CUDA 12.3 is needed"},
		{"FAKE_MODE=2", "card 0, Fake 1: CUDA device in use: it is in compute mode PROHIBITED"},
		{"FAKE_RETAIN=46", "card 0, Fake 1: CUDA device in use: another process holds the card"},
		{"LD_LIBRARY_PATH=", "no CUDA driver: no libcuda.so.1 on this machine"},
	} {
		cmd := again("-test.run=^TestOpenFails$")
		cmd.Env = append(cmd.Env, c.env, "FAKE_WANT="+c.want)
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v", c.env, err)
		}
	}
}

func TestOpenFails(t *testing.T) {
	want := os.Getenv("FAKE_WANT")
	if want == "" {
		return // TestRefused runs it by itself, since a process starts the driver once
	}
	if _, err := Open(0); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

func BenchmarkLaunch(b *testing.B) {
	d, err := Open(0)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	m, _ := kernels.Find("cast_f32_bf16", d.Info().Major, d.Info().Minor)
	fs, err := d.Load(m.PTX, []string{"cast_f32_bf16"})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Launch(fs["cast_f32_bf16"], [3]int{1, 1, 1}, [3]int{256, 1, 1}, 0, 0, cuda.Ptr(0), cuda.Ptr(0), int64(0)); err != nil {
			b.Fatal(err)
		}
	}
	if err := d.Sync(0); err != nil {
		b.Fatal(err)
	}
}
