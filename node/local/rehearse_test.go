package local_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
)

func rehearse(t *testing.T, w *world, o local.RehearseOptions) ([]local.CycleReport, string) {
	t.Helper()
	var reports []local.CycleReport
	o.Done = func(r local.CycleReport) { reports = append(reports, r) }
	link, dir, err := local.Rehearse(t.Context(), w.b, w.n, w.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	p, err := local.LoadPhi(w.b, dir)
	if err != nil {
		t.Fatal(err)
	}
	if p.Link != link || len(reports) > 0 && reports[len(reports)-1].Next != link {
		t.Errorf("the last checkpoint is %s, its directory %s has %s", link, dir, p.Link)
	}
	return reports, dir
}

// TestRehearse: two cycles on the embedded base make the domains better, and are the same when run again.
func TestRehearse(t *testing.T) {
	w := shared(t)
	o := local.RehearseOptions{Cycles: 2, Miners: 2, Seed: "1", Dir: t.TempDir(), Workers: 2, Tokens: 12 * 2 * 48}
	first, dir := rehearse(t, w, o)
	if got := names(t, o.Dir); !slices.Equal(got, []string{"cycle-0001", "cycle-0002"}) || dir != filepath.Join(o.Dir, "cycle-0002") {
		t.Errorf("directories %v, the last is %s", got, dir)
	}
	base := w.p.Link
	var before []local.GroupReport
	for i, r := range first {
		if r.Cycle != i || r.Base != base || r.Next == r.Base || r.Alpha.IsZero() || len(r.Submissions) != 4 || len(r.Groups) != 2 {
			t.Errorf("cycle %d: %+v", i, r)
		}
		base = r.Next
		pay := 0.0
		for _, s := range r.Submissions {
			pay += s.Weight
			if s.Bytes == 0 || s.Status != protocol.StatusOK && s.Status != protocol.StatusNotImproving {
				t.Errorf("cycle %d: %+v", i, s)
			}
		}
		if pay < 1-1e-9 || pay > 1+1e-9 {
			t.Errorf("cycle %d pays %v", i, pay)
		}
		for j, g := range r.Groups {
			if g.After >= g.Before {
				t.Errorf("cycle %d: the loss of %s went from %v to %v", i, g.Group, g.Before, g.After)
			}
			if before != nil && before[j].After != g.Before {
				t.Errorf("cycle %d: %s begins at %v, it ended at %v", i, g.Group, g.Before, before[j].After)
			}
		}
		before = r.Groups
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	}
	p, err := local.LoadPhi(w.b, filepath.Join(o.Dir, "cycle-0002"))
	if err != nil {
		t.Fatal(err)
	}
	if p.State.Previous == nil || *p.State.Previous != first[0].Next {
		t.Errorf("the second checkpoint follows %v, not %s", p.State.Previous, first[0].Next)
	}

	// Again, with one worker, and over the directories that are there already.
	o.Workers = 1
	if again, _ := rehearse(t, w, o); !reflect.DeepEqual(first, again) {
		t.Errorf("the second time:\n%+v, the first time:\n%+v", again, first)
	}
}

func TestRehearseSeeds(t *testing.T) {
	w := tinyWorld(t)
	run := func(seed string) []local.CycleReport {
		r, _ := rehearse(t, w, local.RehearseOptions{Cycles: 2, Miners: 2, Seed: seed, Dir: t.TempDir(), Workers: 2, Tokens: 8 * 2 * 48})
		return r
	}
	a := run("a")
	if !reflect.DeepEqual(a, run("a")) {
		t.Error("one seed gives two rehearsals")
	}
	if reflect.DeepEqual(a, run("b")) {
		t.Error("two seeds give one rehearsal")
	}
	miners := map[string]bool{}
	for _, s := range a[0].Submissions {
		miners[fmt.Sprint(s.Gain, s.StdErr)] = true
	}
	if len(miners) != 4 {
		t.Errorf("4 miners with %d different gains", len(miners))
	}
}

// TestRehearseByHand repeats what a rehearsal's miner does: the second cycle goes on with the first one's moments, from
// the merged checkpoint, and is scored on the second cycle's draw.
func TestRehearseByHand(t *testing.T) {
	w := tinyWorld(t)
	o := local.RehearseOptions{Cycles: 2, Miners: 1, Seed: "x", Dir: t.TempDir(), Workers: 1, Tokens: 8 * 2 * 48}
	reports, _ := rehearse(t, w, o)
	n, p := w.n, w.p
	options := w.n.DefaultTrain(ledger, "x/ledger-1", 0)
	options.Tokens = o.Tokens
	for cycle, r := range reports {
		options.Cycle = uint64(cycle)
		d, memory, err := local.Train(t.Context(), n, p, options, nil)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := n.Score(t.Context(), p, ledger, uint64(cycle), local.Beacons("x", uint64(cycle)), []local.Submission{submission(1, d)}, 1)
		if err != nil {
			t.Fatal(err)
		}
		got := r.Submissions[0]
		if got.Miner != "ledger-1" || got.Gain != float64(rows[0].Gain)/1e9 || got.StdErr != float64(rows[0].StdErr)/1e9 || got.Bytes != int64(len(payload(t, d))) {
			t.Errorf("cycle %d: %+v, by hand %+v", cycle, got, rows[0])
		}
		options.Memory = memory
		if p, err = local.LoadPhi(w.b, filepath.Join(o.Dir, fmt.Sprintf("cycle-%04d", cycle+1))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRehearseStart(t *testing.T) {
	w := tinyWorld(t)
	_, dir := rehearse(t, w, local.RehearseOptions{Cycles: 1, Miners: 1, Seed: "x", Dir: t.TempDir(), Workers: 1, Tokens: 8 * 2 * 48})
	if _, _, err := local.Rehearse(t.Context(), w.b, w.n, dir, local.RehearseOptions{Cycles: 1, Miners: 1, Dir: t.TempDir()}); err == nil {
		t.Error("a rehearsal began with a checkpoint that is not the genesis")
	}
	reports, last := rehearse(t, w, local.RehearseOptions{Dir: t.TempDir()})
	if len(reports) != 0 || last != w.dir {
		t.Errorf("no cycles: %d reports, checkpoint in %s", len(reports), last)
	}
}

// TestRehearseCancelled: a miner that is asked to stop stops after its step, and what was written stays whole.
func TestRehearseCancelled(t *testing.T) {
	w := tinyWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	var late atomic.Int64
	_, _, err := local.Rehearse(ctx, w.b, w.n, w.dir, local.RehearseOptions{Cycles: 3, Miners: 3, Seed: "x", Dir: dir, Workers: 2, Tokens: 1000 * 2 * 48,
		Training: func(_ int, _ string, p training.Progress) {
			if ctx.Err() != nil {
				late.Add(1)
			}
			if p.Step == 3 {
				cancel()
			}
		}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if n := late.Load(); n > 2 { // the step under way of each worker
		t.Errorf("%d steps after the end was asked for", n)
	}
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// countdown is a context that ends at the n-th look at it.
type countdown struct {
	context.Context
	left *atomic.Int64
}

func (c countdown) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return c.Context.Err()
}

// TestRehearseCancelledAnywhere ends two cycles at every fifth place where they look whether to end.
func TestRehearseCancelledAnywhere(t *testing.T) {
	w := tinyWorld(t)
	o := local.RehearseOptions{Cycles: 2, Miners: 1, Seed: "x", Workers: 1, Tokens: 2 * 2 * 48, Dir: t.TempDir()}
	whole, _ := rehearse(t, w, o)
	places := 0
	for ; ; places += 5 {
		o.Dir = t.TempDir()
		var reports []local.CycleReport
		o.Done = func(r local.CycleReport) { reports = append(reports, r) }
		left := new(atomic.Int64)
		left.Store(int64(places))
		link, dir, err := local.Rehearse(countdown{t.Context(), left}, w.b, w.n, w.dir, o)
		if err == nil {
			if link != whole[1].Next {
				t.Errorf("the run that ended nowhere gives %s, want %s", link, whole[1].Next)
			}
			break
		}
		if !errors.Is(err, context.Canceled) || link.Defined() || dir != "" {
			t.Fatalf("ended at place %d: %s, %q, error %v", places, link, dir, err)
		}
		if !reflect.DeepEqual(reports, append([]local.CycleReport(nil), whole[:len(reports)]...)) {
			t.Errorf("ended at place %d: reports %+v, want %+v", places, reports, whole)
		}
		for i, name := range names(t, o.Dir) {
			p, err := local.LoadPhi(w.b, filepath.Join(o.Dir, name))
			if err != nil || name != fmt.Sprintf("cycle-%04d", i+1) || p.Link != whole[i].Next {
				t.Errorf("ended at place %d: %s was left, %v", places, name, err)
			}
		}
	}
	if places < 60 {
		t.Errorf("the run looks at its context %d times", places)
	}
	t.Logf("%d places", places)
}

// TestRehearseCarries: when no scale of the merge helps, the checkpoint is carried, the report says why, and who improved
// the loss is paid all the same.
func TestRehearseCarries(t *testing.T) {
	w := tinyWorld(t)
	g := w.n.Genesis
	g.Params.AlphaGrid = []protocol.Rational{{Num: 0, Den: 1}, {Num: 65535, Den: 1}}
	n, err := local.NewNetwork(g, w.sets)
	if err != nil {
		t.Fatal(err)
	}
	reckless := *w
	reckless.n = n
	o := local.RehearseOptions{Cycles: 2, Miners: 1, Seed: "x", Dir: t.TempDir(), Workers: 2, Tokens: 8 * 2 * 48}
	reports, dir := rehearse(t, &reckless, o)
	if dir != w.dir || len(names(t, o.Dir)) != 0 {
		t.Errorf("the checkpoint is in %s, written was %v", dir, names(t, o.Dir))
	}
	for _, r := range reports {
		if !r.Alpha.IsZero() || r.Base != w.p.Link || r.Next != w.p.Link || r.CanaryAfter != r.CanaryBefore || r.Groups[0].After != r.Groups[0].Before {
			t.Errorf("%+v", r)
		}
		if len(r.Verdicts) != 2 || !strings.HasPrefix(r.Verdicts[1], "α = 65535: ") || strings.Contains(r.Verdicts[1], "accepted") {
			t.Errorf("verdicts %q", r.Verdicts)
		}
		for _, s := range r.Submissions {
			if s.Status != protocol.StatusOK || s.Weight != 0.5 {
				t.Errorf("%+v", s)
			}
		}
	}
}
