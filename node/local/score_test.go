package local_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/delta"
)

// cast is one submission of every kind to one group.
func cast(t *testing.T, w *world) []local.Submission {
	good := trained(t, ledger, "one")
	absurd := w.remake(t, good, func(u int32) int32 { return delta.MaxUnit })
	sign := int32(1)
	noise := w.remake(t, good, func(u int32) int32 { sign = -sign; return sign * delta.MaxUnit })
	return []local.Submission{
		submission(1, good),
		submission(2, w.remake(t, good, func(int32) int32 { return 0 })),
		submission(3, w.remake(t, good, negated)),
		submission(4, absurd),
		submission(5, noise),
		{Miner: protocol.ID{6}, Group: ledger, Status: protocol.StatusInvalid, Reason: "the third tensor has a NaN"},
		{Miner: protocol.ID{7}, Group: ledger, Status: protocol.StatusOffline, Reason: "nothing came"},
		submission(8, trained(t, ledger, "two")),
	}
}

func TestScoreKinds(t *testing.T) {
	w := shared(t)
	subs := cast(t, w)
	beacons := local.Beacons("kinds", 0)
	rows, err := w.n.Score(t.Context(), w.p, ledger, 0, beacons, subs, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rows {
		if r.Miner != subs[i].Miner {
			t.Errorf("row %d is of miner %s", i, r.Miner)
		}
		if err := r.Validate(); err != nil {
			t.Errorf("row %d: %v", i, err)
		}
	}
	n := w.n.Genesis.Params.ScoreSamples
	if r := rows[0]; r.Status != protocol.StatusOK || r.Gain <= 3*int64(r.StdErr) || r.N != n {
		t.Errorf("trained: %+v", r)
	}
	if r := rows[1]; r.Status != protocol.StatusOK || r.Gain != 0 || r.StdErr != 0 || r.N != n {
		t.Errorf("all zero: %+v", r)
	}
	if r := rows[2]; r.Status != protocol.StatusOK || r.Gain >= -3*int64(r.StdErr) {
		t.Errorf("negated: %+v", r)
	}
	for i, name := range map[int]string{3: "largest units", 4: "largest units, signs alternating"} {
		if r := rows[i]; r.Status != protocol.StatusInvalid && (r.Status != protocol.StatusOK || r.Gain > -1e9) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for _, i := range []int{5, 6} {
		if want := (protocol.Row{Miner: subs[i].Miner, Status: subs[i].Status}); rows[i] != want {
			t.Errorf("not measured: %+v, want %+v", rows[i], want)
		}
	}

	judged, err := w.n.Judge(t.Context(), w.p, 0, beacons, subs, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := []protocol.Status{protocol.StatusOK, protocol.StatusNotImproving, protocol.StatusNotImproving, protocol.StatusNotImproving,
		protocol.StatusNotImproving, protocol.StatusInvalid, protocol.StatusOffline, protocol.StatusOK}
	var parts, weights uint64
	for i, j := range judged {
		if rows[i].Status == protocol.StatusInvalid {
			want[i] = protocol.StatusInvalid
		}
		if j.Row != rows[i] || j.Status != want[i] || (j.Weight > 0) != (want[i] == protocol.StatusOK) || (j.Part > 0) != (j.Weight > 0) {
			t.Errorf("submission %d: %+v, want status %s and row %+v", i, j, want[i], rows[i])
		}
		parts, weights = parts+j.Part, weights+j.Weight
	}
	// One group alone has paid miners: it gets everything.
	if parts != 1<<32 || weights != 1<<32 {
		t.Errorf("parts sum to %d, weights to %d", parts, weights)
	}
	if subs[5].Reason != "the third tensor has a NaN" {
		t.Errorf("the reason became %q", subs[5].Reason)
	}
}

// TestScoreAlone: a row depends on its own delta and the draw, on nothing else.
func TestScoreAlone(t *testing.T) {
	w := shared(t)
	subs, beacons := cast(t, w), local.Beacons("alone", 5)
	score := func(subs []local.Submission, workers int) []protocol.Row {
		rows, err := w.n.Score(t.Context(), w.p, ledger, 5, beacons, subs, workers)
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	want := score(subs, 1)
	for workers := range 5 { // 0 too: whatever a flag may say
		if got := score(subs, workers); !slices.Equal(got, want) {
			t.Errorf("with %d workers: %v, want %v", workers, got, want)
		}
	}
	backwards := slices.Clone(subs)
	slices.Reverse(backwards)
	got := score(backwards, 2)
	slices.Reverse(got)
	if !slices.Equal(got, want) {
		t.Errorf("in reverse order: %v, want %v", got, want)
	}
	for i := range subs {
		if got := score(subs[i:i+1], 2); got[0] != want[i] {
			t.Errorf("submission %d alone: %v, want %v", i, got[0], want[i])
		}
	}
	if rows := score(nil, 2); len(rows) != 0 {
		t.Errorf("%d rows of no submissions", len(rows))
	}
	other, err := w.n.Score(t.Context(), w.p, ledger, 5, local.Beacons("another", 5), subs, 2)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Equal(other, want) {
		t.Error("another beacon draws the same samples")
	}
}

func TestScoreGroups(t *testing.T) {
	w := shared(t)
	subs := []local.Submission{submission(1, trained(t, maths, "m")), submission(2, trained(t, ledger, "one"))}
	judged, err := w.n.Judge(t.Context(), w.p, 0, local.Beacons("groups", 0), subs, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, j := range judged {
		if j.Row.Miner != subs[i].Miner || j.Status != protocol.StatusOK || j.Part != 1<<32 || j.Weight != 1<<31 {
			t.Errorf("the only miner of a group with half the pay: %+v", j)
		}
	}
	if _, err := w.n.Score(t.Context(), w.p, "poetry", 0, local.Beacons("groups", 0), nil, 1); err == nil {
		t.Error("a group that is not there was scored")
	}
}

func TestScoreCancelled(t *testing.T) {
	w := shared(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	subs := []local.Submission{submission(1, trained(t, ledger, "one"))}
	if _, err := w.n.Judge(ctx, w.p, 0, local.Beacons("x", 0), subs, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	in := []local.Accepted{accepted(1, trained(t, ledger, "one"), 1)}
	if _, err := w.n.Merge(ctx, w.p, 0, local.Beacons("x", 0), in, t.TempDir(), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestBeacons(t *testing.T) {
	five := local.Beacons("x", 5)
	if len(five) != 6 || !slices.Equal(five[2:], local.Beacons("x", 3)) || five[0] == local.Beacons("y", 5)[0] {
		t.Errorf("%d beacons for cycle 5; they must begin with the cycle's own and go back", len(five))
	}
	// A far cycle needs no more of them than a genesis can look back on.
	far := local.Beacons("x", 1<<64-1)
	if len(far) != 1<<16+1 || far[1] != local.Beacons("x", 1<<64-2)[0] {
		t.Errorf("%d beacons", len(far))
	}
}
