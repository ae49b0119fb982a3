//go:build unix

package cpu_test

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/edsrzf/mmap-go"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
)

// mapFile maps a new file of those values, from a byte on that is not the first. The file can be cut short by its path.
func mapFile(t *testing.T, values []float32, half bool, skip int) (raw []byte, path string) {
	t.Helper()
	b := make([]byte, skip)
	for _, v := range values {
		if half {
			b = binary.LittleEndian.AppendUint16(b, uint16(math.Float32bits(v)>>16))
		} else {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	path = filepath.Join(t.TempDir(), "weights")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := mmap.Map(f, mmap.RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Unmap() })
	return m[skip:], path
}

// short returns n values that bfloat16 holds.
func short(n int) []float32 {
	v, state := make([]float32, n), uint32(7)
	for i := range v {
		state = state*1664525 + 1013904223
		v[i] = math.Float32frombits(math.Float32bits(float32(int32(state))/(1<<31)) &^ 0xffff)
	}
	return v
}

// TestMapped: matrices that lie in files multiply as those in memory do, to the bit, however few may stay in memory.
func TestMapped(t *testing.T) {
	const out, in, rows = 130, 300, 40
	for _, isa := range cpu.Available() {
		for _, room := range []int64{0, 1, 3 * out * in} {
			b, err := cpu.New(cpu.Options{Threads: 2, ISA: isa, Mapped: room})
			if err != nil {
				t.Fatal(err)
			}
			values := short(out * in)
			plain := b.Alloc(out * in)
			b.Write(plain, values)
			want := b.Prepare(plain, out, in)
			x, dy := b.Alloc(rows*in), b.Alloc(rows*out)
			b.Write(x, short(rows*in))
			b.Write(dy, short(rows*out))
			results := func(w backend.Weight) []float32 {
				y, dx, e := b.Alloc(rows*out), b.Alloc(rows*in), b.Alloc(3*in)
				b.Linear(y, x, w)
				b.LinearGradInput(dx, dy, w, false)
				b.Embed(e, w, []int32{5, out - 1, 0})
				all := make([]float32, rows*out+rows*in+3*in)
				b.Read(all[:rows*out], y)
				b.Read(all[rows*out:rows*(out+in)], dx)
				b.Read(all[rows*(out+in):], e)
				return all
			}
			for _, half := range []bool{true, false} {
				for range 2 { // two matrices drive one another out
					raw, _ := mapFile(t, values, half, 8)
					w, err := b.Map(raw, half, out, in)
					if err != nil || w == nil {
						t.Fatalf("%v, %v", w, err)
					}
					if w.Data() != nil {
						t.Error("it has data to write to")
					}
					for range 2 {
						if !slices.Equal(results(w), results(want)) {
							t.Fatalf("%s, %d bytes of room, half %v: other products", isa, room, half)
						}
					}
					got := make([]float32, out*in)
					b.Values(got, w)
					if !slices.Equal(got, values) {
						t.Fatal("other values")
					}
				}
			}
			if err := b.Sync(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestMapRefuses: what lies between the values' own boundaries is not used where it is, what is not finite not at all.
func TestMapRefuses(t *testing.T) {
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, half := range []bool{true, false} {
		raw, _ := mapFile(t, short(20), half, 1)
		if w, err := b.Map(raw, half, 4, 5); w != nil || err != nil {
			t.Errorf("between boundaries: %v, %v", w, err)
		}
		for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			v := short(20)
			v[7] = float32(bad)
			raw, _ := mapFile(t, v, half, 0)
			if w, err := b.Map(raw, half, 4, 5); w != nil || err == nil || !strings.Contains(err.Error(), "value 7 is") {
				t.Errorf("%v: %v, %v", bad, w, err)
			}
		}
	}
}

// TestMappedFileShrinks: a file that is cut short is an error of Sync, whoever reads it, and not the end of the process.
func TestMappedFileShrinks(t *testing.T) {
	const out, in = 256, 512
	for _, isa := range cpu.Available() {
		for _, half := range []bool{true, false} {
			for name, use := range map[string]func(b *cpu.Backend, w backend.Weight){
				"product":  func(b *cpu.Backend, w backend.Weight) { b.Linear(b.Alloc(64*out), b.Alloc(64*in), w) },
				"gradient": func(b *cpu.Backend, w backend.Weight) { b.LinearGradInput(b.Alloc(64*in), b.Alloc(64*out), w, false) },
				"rows":     func(b *cpu.Backend, w backend.Weight) { b.Embed(b.Alloc(2*in), w, []int32{0, out - 1}) },
				"values":   func(b *cpu.Backend, w backend.Weight) { b.Values(make([]float32, out*in), w) },
			} {
				b, err := cpu.New(cpu.Options{Threads: 2, ISA: isa, Mapped: 1})
				if err != nil {
					t.Fatal(err)
				}
				raw, path := mapFile(t, short(out*in), half, 0)
				w, err := b.Map(raw, half, out, in)
				if err != nil {
					t.Fatal(err)
				}
				use(b, w)
				if err := b.Sync(); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(path, 8192); err != nil {
					t.Fatal(err)
				}
				use(b, w)
				if err := b.Sync(); !errors.Is(err, cpu.ErrMapped) {
					t.Errorf("%s, half %v, %s: %v", isa, half, name, err)
				}
				b.Linear(b.Alloc(5), b.Alloc(5), b.Prepare(b.Alloc(25), 5, 5)) // others can still be used
			}
		}
	}
}
