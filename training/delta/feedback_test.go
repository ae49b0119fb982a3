package delta

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// learnt is a feedback after a delta was sent from a base of zeros and ones.
func learnt(t testing.TB) (f *Feedback, base, x [][]float32) {
	t.Helper()
	units, x, rest := sparseUnits(t, sparseWant, 7)
	d, err := New(sparseWant, units)
	if err != nil {
		t.Fatal(err)
	}
	for i := range x {
		b := make([]float32, len(x[i]))
		for j := range b {
			b[j] = float32(j % 2)
		}
		base = append(base, b)
	}
	return NewFeedback(d, 3, func(i int) []float32 { return base[i] }, rest), base, x
}

// moved is the base after share of the sent delta was added.
func moved(f *Feedback, base [][]float32, share float64) [][]float32 {
	out := [][]float32{}
	for i, b := range base {
		b = slices.Clone(b)
		for j, at := range f.Sent[i].At {
			b[at] = float32(float64(b[at]) + share*Value(f.Sent[i].Units[j]))
		}
		out = append(out, b)
	}
	return out
}

// TestSettle: what was merged is gone, what was not returns, and so does the part that a scale or other miners left.
func TestSettle(t *testing.T) {
	f, base, x := learnt(t)
	before := *f
	next := sparseWant
	next.Base = protocol.LinkTo(protocol.DagPB, []byte("next"))
	previous := sparseWant.Base
	for _, c := range []struct {
		name     string
		share    float64 // of the delta that the next checkpoint holds
		returned float64
		want     Expect
		previous *protocol.Link
	}{
		{"merged", 1, 0, next, &previous},
		{"left out", 0, 1, next, &previous},
		{"half", 0.5, 0.5, next, &previous},
		{"further than sent", 1.5, 0, next, &previous},
		{"the other way", -1, 1, next, &previous},
		{"carried", 0, 1, sparseWant, nil},
		{"carried, with a past", 0, 1, sparseWant, &next.Base},
	} {
		after := moved(f, base, c.share)
		rest := f.Settle(c.want, c.previous, func(i int) []float32 { return after[i] })
		if rest == nil {
			t.Errorf("%s: nothing", c.name)
			continue
		}
		for i := range x {
			sent := map[uint32]float64{}
			for j, at := range f.Sent[i].At {
				sent[at] = Value(f.Sent[i].Units[j])
			}
			for j, v := range x[i] {
				u := sent[uint32(j)]
				if want := float64(v) - u + c.returned*u; math.Abs(float64(rest[i][j])-want) > 1e-6 {
					t.Fatalf("%s: tensor %d, element %d of %v, %v sent: %v left, want %v", c.name, i, j, v, u, rest[i][j], want)
				}
			}
		}
	}
	if !reflect.DeepEqual(before, *f) {
		t.Error("settling changed the feedback")
	}
}

// TestSettleAfresh: a checkpoint that does not follow, another group or shape, and a miner that has sent nothing.
func TestSettleAfresh(t *testing.T) {
	f, base, _ := learnt(t)
	values := func(i int) []float32 { return base[i] }
	later, other := protocol.LinkTo(protocol.DagPB, []byte("later")), protocol.LinkTo(protocol.DagPB, []byte("other"))
	for name, change := range map[string]func(w *Expect) *protocol.Link{
		"a cycle missed": func(w *Expect) *protocol.Link { w.Base = later; return &other },
		"a genesis":      func(w *Expect) *protocol.Link { w.Base = later; return nil },
		"another group":  func(w *Expect) *protocol.Link { w.Group = "asm"; return nil },
		"fewer tensors":  func(w *Expect) *protocol.Link { w.Tensors = w.Tensors[1:]; return nil },
		"other shapes": func(w *Expect) *protocol.Link {
			w.Tensors = slices.Clone(w.Tensors)
			slices.Reverse(w.Tensors)
			return nil
		},
	} {
		want := sparseWant
		previous := change(&want)
		if rest := f.Settle(want, previous, values); rest != nil {
			t.Errorf("%s: goes on", name)
		}
	}
	if rest := (*Feedback)(nil).Settle(sparseWant, nil, values); rest != nil {
		t.Error("nothing settles to something")
	}
}

func TestFeedbackFile(t *testing.T) {
	f, _, _ := learnt(t)
	path := filepath.Join(t.TempDir(), "feedback")
	read := func(want Expect) (*Feedback, error) { return ReadFeedback(path, want.Group, want.Tensors) }
	if _, err := read(sparseWant); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := f.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	back, err := read(sparseWant)
	if err != nil || !reflect.DeepEqual(back, f) {
		t.Fatalf("reads back as something else: %v", err)
	}
	other := sparseWant
	other.Group = "asm"
	if _, err := read(other); !errors.Is(err, ErrFeedback) {
		t.Errorf("another group: %v", err)
	}
	other = sparseWant
	other.Tensors = slices.Clone(other.Tensors)
	slices.Reverse(other.Tensors)
	if _, err := read(other); !errors.Is(err, ErrFeedback) {
		t.Errorf("another shape: %v", err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty":     nil,
		"cut short": whole[:len(whole)-1],
		"longer":    append(slices.Clone(whole), 0),
		"spoiled":   append(append(slices.Clone(whole[:100]), whole[100]^1), whole[101:]...),
		"huge":      make([]byte, 16*len(whole)),
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(sparseWant); !errors.Is(err, ErrFeedback) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParseFeedback: what a spoiled disk may hold is refused or makes sense.
func FuzzParseFeedback(f *testing.F) {
	path := filepath.Join(f.TempDir(), "feedback")
	l, _, _ := learnt(f)
	if err := l.WriteFile(path); err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw[len(feedbackMagic)+32:])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parseFeedback(b, sparseWant.Group, sparseWant.Tensors)
		if !ok {
			return
		}
		for i, s := range p.Sent {
			for _, at := range s.At {
				_ = p.Rest[i][at]
			}
		}
	})
}
