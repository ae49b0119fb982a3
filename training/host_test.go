package training_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
)

// host is a run with a model of 1.6 GB of frozen weights.
func host() training.Host {
	c, group := olmoe(2, 2)
	return training.Host{Config: c, Trained: group, Batch: 4, Seq: 512, Threads: 2, Mapped: 1 << 31, Process: 50 << 20, Sparse: true}
}

// TestFitHost: the less memory there is, the more is given up, what changes no bit first; every plan fits what it was given.
func TestFitHost(t *testing.T) {
	for _, state := range []bool{false, true} {
		type way struct{ recompute, part, pieces, half bool }
		var ways []way
		for limit := int64(8 << 30); ; limit -= 8 << 20 {
			f, err := training.FitHost(host(), limit, state)
			if err != nil {
				if !errors.Is(err, backend.ErrOutOfMemory) {
					t.Fatal(err)
				}
				break
			}
			if f.Memory.Total() > limit || f.Room != f.Memory.Mapped {
				t.Fatalf("%d bytes planned of %d: %+v", f.Memory.Total(), limit, f)
			}
			if w := (way{f.Recompute, f.Room < 1<<31, f.Micro < 4, f.Half}); len(ways) == 0 || ways[len(ways)-1] != w {
				ways = append(ways, w)
			}
		}
		want := []way{{}, {recompute: true}, {recompute: true, part: true}, {recompute: true, part: true, pieces: true}}
		for i, w := range want {
			if i >= len(ways) || ways[i] != w {
				t.Fatalf("ways %+v, want %+v first", ways, want)
			}
		}
		if last := ways[len(ways)-1]; last.half != state {
			t.Errorf("state %v: the last way is %+v", state, last)
		}
	}
}

// TestFitHostSays: what is said to fit fits.
func TestFitHostSays(t *testing.T) {
	h := host()
	_, err := training.FitHost(h, 60<<20, false)
	if err == nil {
		t.Fatal("trains in 60 MiB")
	}
	var least int64
	if _, err := fmt.Sscanf(err.Error()[strings.Index(err.Error(), "at least"):], "at least %d MiB", &least); err != nil {
		t.Fatal(err)
	}
	if _, err := training.FitHost(h, least<<20, false); err != nil {
		t.Error(err)
	}
	_, err = training.FitHost(h, (least-1)<<20, false)
	if err == nil || !strings.Contains(err.Error(), "--state bf16") || !strings.Contains(err.Error(), "a group of 2 experts") {
		t.Errorf("one less: %v", err)
	}
	if _, err := training.FitHost(h, (least-1)<<20, true); err != nil {
		t.Errorf("moments in bfloat16 would fit: %v", err)
	}
	h.Trained = h.Trained[:2]
	if _, err := training.FitHost(h, (least-1)<<20, false); err != nil {
		t.Errorf("a group of 2 experts would fit: %v", err)
	}
}
