package node

import (
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/consensus/chain/dev"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// TestNetwork runs a small network until a cycle is certified: all validators come to one checkpoint, and the weights that
// they agreed on are on chain, as integers.
func TestNetwork(t *testing.T) {
	t.Parallel() // mostly it waits
	r := newRig(t, 3)
	r.start(everybody...)
	r.begin()
	r.run(append(everybody, "seed")...)
	end := r.certified("validator-1", 0)
	certificate, ok, _ := r.people["validator-1"].node.history.at(slot{end.Cycle, protocol.InstanceW})
	if !ok || certificate.Null() {
		t.Fatalf("no certificate of the weights of cycle %d", end.Cycle)
	}
	want := protocol.ScaleU16(certificate.Proposal.Value.Weights.Weights)
	client, err := dev.NewClient(dev.ClientConfig{Endpoints: []string{r.address}})
	r.check(err)
	defer client.Close()
	next := r.advanced("validator-1", end.Cycle+1) // weights are taken until the cycle ends
	for _, name := range everybody[:3] {
		if other := r.advanced(name, end.Cycle); other.Certified && other.Next != end.Next {
			t.Errorf("%s is at %s, validator-1 at %s", name, other.Next, end.Next)
		}
		decided := r.waitFor("decision of "+name, func(e said) bool { return e.name == name && e.Kind == Decided && e.Cycle == end.Cycle })
		if !decided.Certified {
			continue // it came too late here; this validator paid by what it had
		}
		s, ok, err := client.Weights(t.Context(), end.Cycle, r.people[name].id)
		r.check(err)
		switch {
		case !ok:
			t.Errorf("no weights of %s on chain after cycle %d", name, next.Cycle)
		case !slices.Equal(s.Weights, want):
			t.Errorf("%s put %v on chain, certified is %v", name, s.Weights, want)
		}
	}
	paid := false
	for _, w := range want {
		paid = paid || w.Weight > 0
	}
	if !paid {
		t.Error("nobody is paid; nothing is compared")
	}
}
