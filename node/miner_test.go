package node

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
)

// TestMinerGoesOn: a miner that is killed while it trains goes on from what it saved, to the delta of one that was not; what
// an earlier cycle left does not stop it, and once a delta was made there is no second for the same cycle.
func TestMinerGoesOn(t *testing.T) {
	w, err := worlds()
	if err != nil {
		t.Fatal(err)
	}
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, err := local.LoadPhi(b, w.dir)
	if err != nil {
		t.Fatal(err)
	}
	network, err := local.NewNetwork(w.genesis, w.sets)
	if err != nil {
		t.Fatal(err)
	}
	var first, last int
	miner := func(dir string, step func(e Event)) *Node {
		first = 0
		now := time.Unix(1_700_000_000, 0)
		return &Node{local: network, cfg: Config{Dir: dir, Group: "ledger", Seed: "x", Now: func() time.Time {
			now = now.Add(savePeriod) // so that every step is saved
			return now
		}, Events: func(e Event) {
			if e.Kind == Trouble {
				t.Errorf("trouble: %s", e.Text)
			}
			if e.Kind == Training {
				if first == 0 {
					first = e.Done
				}
				last = e.Total
				if step != nil {
					step(e)
				}
			}
		}}}
	}
	want, err := miner(t.TempDir(), nil).train(t.Context(), 5, p)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{2, last / 2, last/2 + 1, last - 1} {
		dir, crashed := t.TempDir(), filepath.Join(t.TempDir(), "crashed")
		n := miner(dir, func(e Event) {
			if e.Done == at { // what the disk holds then
				if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
					t.Error(err)
				}
			}
		})
		if _, err := n.train(t.Context(), 5, p); err != nil {
			t.Fatal(err)
		}
		got, err := miner(crashed, nil).train(t.Context(), 5, p)
		if err != nil {
			t.Fatal(err)
		}
		if first != at || !bytes.Equal(got.Payload(), want.Payload()) {
			t.Errorf("killed in step %d, it goes on with step %d; same delta: %v", at, first, bytes.Equal(got.Payload(), want.Payload()))
		}
	}
	// Cycle 4 ran out of time.
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := miner(dir, func(e Event) { cancel() }).train(ctx, 4, p); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	got, err := miner(dir, nil).train(t.Context(), 5, p)
	if err != nil || first != 1 || !bytes.Equal(got.Payload(), want.Payload()) {
		t.Errorf("after a cycle without time: first step %d, %v", first, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "train.state")); err == nil {
		t.Error("the state of a training that is done is left")
	}
	if err := os.Remove(filepath.Join(dir, "feedback")); err != nil { // as in a network without
		t.Fatal(err)
	}
	if _, err := miner(dir, nil).train(t.Context(), 5, p); err == nil {
		t.Error("a second delta for one cycle")
	}
}
