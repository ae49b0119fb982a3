package node

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
)

// notary signs certificates of made-up decisions with a quorum of made-up validators.
type notary struct {
	network  protocol.Link
	keys     []ed25519.PrivateKey
	snapshot protocol.Snapshot
}

func newNotary(network protocol.Link, validators int) *notary {
	x := &notary{network: network, snapshot: protocol.Snapshot{Version: protocol.Version, Hash: protocol.Hash{9}}}
	for i := range validators {
		key := ed25519.NewKeyFromSeed(append(make([]byte, 31), byte(i)))
		x.keys = append(x.keys, key)
		x.snapshot.Participants = append(x.snapshot.Participants, protocol.Participant{ID: protocol.ID{byte(i + 1)}, Key: protocol.KeyOf(key),
			Stake: 1, Roles: protocol.RoleValidator})
	}
	return x
}

// certify makes a certificate under a parent; value makes decisions differ, a negative one is a null certificate.
func (x *notary) certify(t *testing.T, cycle uint64, i protocol.Instance, parent protocol.Hash, value int) protocol.Certificate {
	t.Helper()
	c := protocol.Certificate{Version: protocol.Version, Network: x.network, Cycle: cycle, Instance: i, Parent: parent, Snapshot: x.snapshot.Digest()}
	if value >= 0 {
		p := protocol.Proposal{Version: protocol.Version, Network: x.network, Cycle: cycle, Instance: i, Parent: parent,
			Proposer: x.snapshot.Participants[0].ID, Vectors: []protocol.Hash{{byte(value), 1}}}
		if i == protocol.InstanceW {
			p.Value.Weights = &protocol.WeightsValue{}
		} else {
			p.Value.Merge = &protocol.MergeValue{Alpha: 1, Next: protocol.LinkTo(protocol.DagPB, []byte{byte(cycle), byte(value)})}
		}
		if err := p.Sign(x.keys[0]); err != nil {
			t.Fatal(err)
		}
		c.Proposal = &p
	}
	for k, key := range x.keys {
		by := protocol.VoteSig{Validator: x.snapshot.Participants[k].ID}
		v := protocol.Vote{Version: c.Version, Network: c.Network, Cycle: cycle, Instance: i, Type: protocol.VoteCommit, Parent: parent,
			Digest: c.Decision(), Validator: by.Validator}
		if err := v.Sign(key); err != nil {
			t.Fatal(err)
		}
		by.Sig = v.Sig
		c.Signatures = append(c.Signatures, by)
	}
	if err := c.Verify(x.snapshot); err != nil {
		t.Fatal(err)
	}
	return c
}

// cycle certifies the weights and the merge of a cycle.
func (x *notary) cycle(t *testing.T, cycle uint64, parent protocol.Hash, value int) (w, m protocol.Certificate) {
	w = x.certify(t, cycle, protocol.InstanceW, parent, value)
	return w, x.certify(t, cycle, protocol.InstanceM, w.Decision(), value)
}

func testHistory(t *testing.T, dir string, list ...protocol.Certificate) *history {
	t.Helper()
	h, err := openHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if fresh, err := h.keep(c); err != nil || !fresh {
			t.Fatalf("keep: %v, %v", fresh, err)
		}
	}
	return h
}

func TestHistory(t *testing.T) {
	const w, m = protocol.InstanceW, protocol.InstanceM
	x := newNotary(protocol.LinkTo(protocol.DagCBOR, nil), 4)
	w0, m0 := x.cycle(t, 0, protocol.Hash{}, 1)
	null1 := x.certify(t, 1, w, m0.Decision(), -1)
	w2, m2 := x.cycle(t, 2, m0.Decision(), 1)
	w3 := x.certify(t, 3, w, m2.Decision(), 1)
	null3 := x.certify(t, 3, m, w3.Decision(), -1)
	dir := t.TempDir()
	h := testHistory(t, dir, w0, m0, null1, w2, m2, w3, null3)

	if fresh, err := h.keep(m2); fresh || err != nil {
		t.Errorf("the same again: %v, %v", fresh, err)
	}
	_, other := x.cycle(t, 2, m0.Decision(), 2)
	if _, err := h.keep(other); !errors.Is(err, errFork) {
		t.Errorf("another decision of one cycle: %v", err)
	}
	for name, h := range map[string]*history{"as written": h, "as read": testHistory(t, dir)} {
		if c := h.last(); c == nil || c.Decision() != m2.Decision() {
			t.Errorf("%s: last is %+v", name, c)
		}
		if c, ok, _ := h.at(slot{3, m}); !ok || !c.Null() {
			t.Errorf("%s: null certificate of cycle 3: %v, %v", name, c, ok)
		}
	}

	for name, c := range map[string]struct {
		of    protocol.Certificate
		until protocol.Hash
		held  []protocol.Certificate
		met   bool
		err   error
	}{
		"to genesis":           {m2, protocol.Hash{}, []protocol.Certificate{w0, m0, w2}, true, nil},
		"to what is reached":   {m2, m0.Decision(), []protocol.Certificate{w2}, true, nil},
		"beside what is known": {m2, other.Decision(), []protocol.Certificate{w0, m0, w2}, false, nil},
		"no weights":           {m2, protocol.Hash{}, []protocol.Certificate{w0, m0}, false, errLineage},
		"a gap":                {m2, protocol.Hash{}, []protocol.Certificate{w0, w2}, false, errLineage},
		"a null":               {null3, protocol.Hash{}, []protocol.Certificate{w3, m2, w2, m0, w0}, false, errLineage},
		"weights":              {w2, protocol.Hash{}, []protocol.Certificate{w0, m0, w2}, false, errLineage},
	} {
		met, err := lineage(c.of, c.until, testHistory(t, t.TempDir(), c.held...).of)
		if met != c.met || !errors.Is(err, c.err) {
			t.Errorf("%s: met %v, %v", name, met, err)
		}
	}
	// Quorums that sign nonsense: weights that rest on a merge of their own or a later cycle, a merge on another cycle's.
	_, m5 := x.cycle(t, 5, protocol.Hash{}, 1)
	w4, m4 := x.cycle(t, 4, m5.Decision(), 1)
	cross := x.certify(t, 6, m, w4.Decision(), 1)
	back := testHistory(t, t.TempDir(), m5, w4)
	for name, c := range map[string]protocol.Certificate{"a later merge": m4, "another cycle's weights": cross} {
		if _, err := lineage(c, protocol.Hash{}, back.of); !errors.Is(err, errLineage) {
			t.Errorf("%s: %v", name, err)
		}
	}

	if err := os.WriteFile(filepath.Join(dir, slot{9, m}.file()), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openHistory(dir); err == nil {
		t.Error("rubbish was read as a certificate")
	}
}

// FuzzCertificateRequest: whatever a peer asks, it gets a certificate that decodes and is the one asked for, or a refusal.
func FuzzCertificateRequest(f *testing.F) {
	x := newNotary(protocol.LinkTo(protocol.DagCBOR, nil), 4)
	t := new(testing.T)
	w0, m0 := x.cycle(t, 0, protocol.Hash{}, 1)
	h, err := openHistory(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range []protocol.Certificate{w0, m0} {
		if _, err := h.keep(c); err != nil {
			f.Fatal(err)
		}
		d := c.Decision()
		f.Add(d[:])
	}
	n := &Node{history: h}
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 2})
	f.Add([]byte("../../etc/passwd"))
	f.Fuzz(func(t *testing.T, request []byte) {
		raw, err := n.certificateOf(t.Context(), "", request)
		if err != nil {
			if !errors.Is(err, p2p.ErrNotFound) && !errors.Is(err, p2p.ErrRefused) {
				t.Fatal(err)
			}
			return
		}
		c, err := protocol.DecodeCertificate(raw)
		if err != nil {
			t.Fatal(err)
		}
		if d := c.Decision(); len(request) == len(d) && protocol.Hash(request) != d || len(request) == 9 && request[8] != byte(c.Instance) {
			t.Fatalf("asked %x, got %s of cycle %d", request, c.Instance, c.Cycle)
		}
	})
}
