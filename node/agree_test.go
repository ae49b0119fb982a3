package node

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// everybody starts validators and miners, and lets them take part.
func (r *rig) everybody(validators int) (names []string) {
	r.t.Helper()
	names = []string{}
	for i := range validators {
		names = append(names, fmt.Sprintf("validator-%d", i+1))
	}
	for _, g := range r.world.genesis.Groups {
		names = append(names, "miner-"+g.Name)
	}
	r.start(names...)
	r.begin()
	r.run(append(names, "seed")...)
	return names
}

// submitted waits until a validator's weights of a cycle are on chain.
func (r *rig) submitted(name string, cycle uint64) {
	r.t.Helper()
	r.waitFor(fmt.Sprintf("submission of %s in cycle %d", name, cycle), func(e said) bool {
		return e.name == name && e.Kind == Submitted && e.Cycle == cycle
	})
}

// TestCutOff: two halves of the validators that do not hear each other decide nothing, put weights on chain all the same,
// and agree again when they do.
func TestCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("three cycles of a network")
	}
	r := newRig(t, 4)
	for i := range 4 {
		b := &r.people[fmt.Sprintf("validator-%d", i+1)].behaviour
		b.ApartFrom, b.ApartTo = 0, 0
		for j := range 4 {
			if i%2 != j%2 {
				b.Apart = append(b.Apart, r.people[fmt.Sprintf("validator-%d", j+1)].id)
			}
		}
	}
	r.everybody(4)
	for i := range 4 {
		name := fmt.Sprintf("validator-%d", i+1)
		if e := r.advanced(name, 0); e.Certified {
			t.Errorf("%s certified a cycle without two of four", name)
		}
		r.submitted(name, 0)
	}
	first := r.certified("validator-1", 1)
	if first.Cycle > 2 {
		t.Errorf("the first cycle after they are together again that is certified is %d", first.Cycle)
	}
	for i := range 4 {
		name := fmt.Sprintf("validator-%d", i+1)
		if e := r.advanced(name, first.Cycle); e.Next != first.Next || !e.Certified {
			t.Errorf("%s has %s, certified %v", name, e.Next, e.Certified)
		}
		r.submitted(name, first.Cycle)
	}
}

// TestEquivocator: a validator that says two things costs nothing; every honest one has the proof, which anybody can check.
func TestEquivocator(t *testing.T) {
	if testing.Short() {
		t.Skip("two cycles of a network")
	}
	r := newRig(t, 4)
	r.people["validator-4"].behaviour.Byzantine = Equivocate
	r.everybody(4)
	e := r.certified("validator-1", 0)
	if e.Cycle > 1 {
		t.Errorf("the first certified cycle is %d", e.Cycle)
	}
	for i := range 3 {
		name := fmt.Sprintf("validator-%d", i+1)
		a := r.waitFor("proof at "+name, func(e said) bool { return e.name == name && e.Kind == Accused })
		if a.Miner != r.people["validator-4"].id {
			t.Errorf("%s accuses %s", name, a.Text)
		}
		files, err := filepath.Glob(filepath.Join(r.dir, name, "proofs", "0*.cbor"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%v, %v", files, err)
		}
		raw, err := os.ReadFile(files[0])
		r.check(err)
		p, err := protocol.DecodeEquivocationProof(raw)
		r.check(err)
		raw, err = os.ReadFile(filepath.Join(r.dir, name, "proofs", SnapshotFile(a.Cycle)))
		r.check(err)
		s, err := protocol.DecodeSnapshot(raw)
		r.check(err)
		if o, err := p.Verify(s); err != nil || o.Offender != a.Miner {
			t.Errorf("%+v, %v", o, err)
		}
		r.submitted(name, e.Cycle)
	}
	// A proposal carried the proof, so the offender is in no snapshot of the cycles after that.
	later := r.certified("validator-1", e.Cycle+1)
	for i := range 3 {
		name := fmt.Sprintf("validator-%d", i+1)
		r.advanced(name, later.Cycle)
		c, ok, _ := r.people[name].node.history.at(slot{later.Cycle, protocol.InstanceW})
		if !ok || c.Null() {
			t.Fatalf("%s has no certificate of cycle %d", name, later.Cycle)
		}
		for _, s := range c.Signatures {
			if s.Validator == r.people["validator-4"].id {
				t.Errorf("%s: the offender signed in cycle %d", name, later.Cycle)
			}
		}
	}
}
