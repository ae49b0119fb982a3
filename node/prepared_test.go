package node

import (
	"bytes"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// prepare is a merge of a cycle, locked in a round by everybody.
func (x *notary) prepare(t testing.TB, cycle uint64, round uint32, parent protocol.Hash, value byte) prepared {
	t.Helper()
	p := protocol.Proposal{Version: protocol.Version, Network: x.network, Cycle: cycle, Instance: protocol.InstanceM, Parent: parent,
		Proposer: x.snapshot.Participants[0].ID, Vectors: []protocol.Hash{{1}}, Lists: []protocol.Hash{}, Proofs: []protocol.Hash{},
		Value: protocol.Value{Merge: &protocol.MergeValue{Alpha: 1, Next: protocol.LinkTo(protocol.DagPB, []byte{byte(cycle), value})}}}
	if err := p.Sign(x.keys[0]); err != nil {
		t.Fatal(err)
	}
	l := protocol.Lock{Version: protocol.Version, Network: x.network, Cycle: cycle, Instance: protocol.InstanceM, Round: round, Parent: parent,
		Digest: p.Decision(), Snapshot: x.snapshot.Digest()}
	for k, key := range x.keys {
		v := protocol.Vote{Version: protocol.Version, Network: x.network, Cycle: cycle, Instance: protocol.InstanceM, Round: round, Type: protocol.VotePrepare,
			Parent: parent, Digest: l.Digest, Validator: x.snapshot.Participants[k].ID}
		if err := v.Sign(key); err != nil {
			t.Fatal(err)
		}
		l.Signatures = append(l.Signatures, protocol.VoteSig{Validator: v.Validator, Sig: v.Sig})
	}
	if err := l.Verify(x.snapshot); err != nil {
		t.Fatal(err)
	}
	return prepared{l, p}
}

// TestPrepared: the highest lock after the last certificate is what counts; a null certificate ends it; what was prepared
// stands in a lineage where a certificate of W names it.
func TestPrepared(t *testing.T) {
	x := newNotary(protocol.LinkTo(protocol.DagCBOR, nil), 4)
	dir := t.TempDir()
	w0, m0 := x.cycle(t, 0, protocol.Hash{}, 1)
	w1 := x.certify(t, 1, protocol.InstanceW, m0.Decision(), 1)
	h := testHistory(t, dir, w0, m0, w1)
	if _, ok := h.highest(1); ok {
		t.Error("something was prepared")
	}
	low, high := x.prepare(t, 1, 0, w1.Decision(), 1), x.prepare(t, 1, 3, w1.Decision(), 2)
	for _, p := range []prepared{high, low} {
		if err := h.prepare(p); err != nil {
			t.Fatal(err)
		}
	}
	h = testHistory(t, dir) // from the disk
	if best, ok := h.highest(1); !ok || best.lock.Digest != high.lock.Digest {
		t.Errorf("%v %v", best.lock.Round, ok)
	}
	if _, ok := h.highest(2); ok {
		t.Error("of a cycle that is too early")
	}
	w2, m2 := x.cycle(t, 2, high.lock.Digest, 1)
	for _, c := range []protocol.Certificate{w2, m2} {
		if _, err := h.keep(c); err != nil {
			t.Fatal(err)
		}
	}
	if met, err := lineage(m2, m0.Decision(), h.of); err != nil || !met {
		t.Errorf("%v, %v", met, err)
	}
	if last := h.last(); last == nil || last.Cycle != 2 {
		t.Errorf("the last is %v", last)
	}
	null := x.certify(t, 1, protocol.InstanceM, w1.Decision(), -1)
	if _, err := h.keep(null); err != nil {
		t.Fatal(err)
	}
	if _, ok := h.highest(1); ok {
		t.Error("a null certificate does not end what was prepared")
	}
}

// FuzzPrepared: what a peer says was prepared is a lock on its proposal, or refused.
func FuzzPrepared(f *testing.F) {
	x := newNotary(protocol.LinkTo(protocol.DagCBOR, nil), 4)
	good, err := x.prepare(f, 1, 0, protocol.Hash{1}, 1).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(slices.Concat([]byte{0xff, 0xff, 0xff, 0xff}, good))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := decodePrepared(raw)
		if err != nil {
			return
		}
		again, err := p.encode()
		if err != nil || !bytes.Equal(again, raw) || p.lock.Digest != p.proposal.Decision() || p.proposal.Value.Merge == nil {
			t.Fatalf("%v", err)
		}
	})
}

// TestTimely: a manifest that more than a third of the stake held counts; a liar alone neither makes nor voids one; a proof
// voids both of two.
func TestTimely(t *testing.T) {
	x := newNotary(protocol.LinkTo(protocol.DagCBOR, nil), 4)
	s := x.snapshot
	miner := protocol.ID{0xee}
	s.Participants = append(slices.Clone(s.Participants), protocol.Participant{ID: miner, Key: s.Participants[0].Key, Roles: protocol.RoleMiner, Group: "a"})
	a, b := protocol.LinkTo(protocol.DagCBOR, []byte("a")), protocol.LinkTo(protocol.DagCBOR, []byte("b"))
	lists := func(said ...protocol.ListEntry) (out []protocol.List) {
		for i, e := range said {
			e.Miner, e.Group = miner, "a"
			l := protocol.List{Validator: s.Participants[i].ID}
			if e.State != 0 {
				l.Entries = append(l.Entries, e)
			}
			out = append(out, l)
		}
		return out
	}
	held := func(l protocol.Link) protocol.ListEntry {
		return protocol.ListEntry{Manifest: l, State: protocol.ListHeld}
	}
	late, torn, none := protocol.ListEntry{Manifest: a, State: protocol.ListLate}, protocol.ListEntry{Manifest: a, State: protocol.ListIncomplete}, protocol.ListEntry{}
	for name, c := range map[string]struct {
		lists []protocol.List
		want  protocol.Status
		link  protocol.Link
	}{
		"held by all":        {lists(held(a), held(a), held(a), held(a)), protocol.StatusOK, a},
		"held by two":        {lists(held(a), held(a), late, torn), protocol.StatusOK, a},
		"held by one":        {lists(held(a), torn, torn, none), protocol.StatusNoCustody, protocol.Link{}},
		"late":               {lists(late, late, torn, none), protocol.StatusLate, protocol.Link{}},
		"nothing":            {lists(none, none, none, none), protocol.StatusOffline, protocol.Link{}},
		"one says otherwise": {lists(held(a), held(a), held(a), held(b)), protocol.StatusOK, a},
	} {
		if link, status := timely(s, c.lists, miner, "a"); status != c.want || link != c.link {
			t.Errorf("%s: %s %s", name, status, link)
		}
	}
	rows := withStatus([]protocol.Row{{Miner: miner, Gain: 5, Status: protocol.StatusOK}, {Miner: miner, Shard: 1, Gain: 6, Status: protocol.StatusOK}, {Miner: protocol.ID{0xef}, Gain: 7}},
		map[protocol.ID]protocol.Status{miner: protocol.StatusLate})
	if len(rows) != 2 || rows[0].Status != protocol.StatusLate || rows[0].Gain != 0 || rows[1].Gain != 7 {
		t.Errorf("%+v", rows)
	}
}
