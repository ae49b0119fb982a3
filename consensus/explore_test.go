package consensus

import (
	"bytes"
	"crypto/ed25519"
	"flag"
	"fmt"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// The explorer plays every run of a small instance, delivery orders and clocks in every combination: four validators of
// equal stake, the last of them dishonest, two rounds and those after the deadline. It steps the machine itself.
//
// What a validator does next depends on its own state only, so states of one machine are found once, each step of each
// once, and a state of the whole is three numbers. What others signed is read off their states; whatever was signed may
// reach anybody at any time, or never. Votes are delivered as quorums: fewer change nothing. The dishonest validator has
// signed every vote and STATUS there is, and in its turns proposes two decisions, with every lock that exists.
// Certificates are not delivered: they would only end what goes on without them.

var exploreMore = flag.Int("explore-more", 0, "how many steps further the clocks of the explored instances go")

const liar = 3 // the dishonest validator

type step struct {
	kind       byte // 't'ick, 'p'roposal, 'q'uorum of PREPAREs, 's'tatus of a quorum
	round      uint32
	rank, lock int // lock: its round, -1 without
	digest     int // index into explorer.decisions
}

// local is a state of one machine, and what it has signed so far.
type local struct {
	m        *Machine
	ticks    int
	prepared [maxRounds]int8 // by round what its vote is for, -1 for none
	voted    [maxRounds]int8
	said     [maxRounds]bool
	proposed []step // 'p'
	next     map[step]int32
}

type explorer struct {
	t         *testing.T
	cfg       [4]Config
	times     []int64
	rounds    int              // that the clocks reach
	decisions [3]protocol.Hash // two proposals and null
	proposals [2]protocol.Proposal
	class     [3]int // validators that make no proposal are alike
	locals    [2][]*local
	index     [2]map[string]int32
	violation string
	states    int
}

func exploreKey(i int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize))
}

// newExplorer makes the instance: proposers are validators by turn.
func newExplorer(t *testing.T, proposers []int, rounds, ticks int, r rules) *explorer {
	e := &explorer{t: t, class: [3]int{0, 1, 1}}
	s := protocol.Snapshot{Version: protocol.Version, Height: 1, Hash: protocol.Hash{1}}
	for i := range e.cfg {
		s.Participants = append(s.Participants, protocol.Participant{
			ID: protocol.ID{byte(i + 1)}, Key: protocol.KeyOf(exploreKey(i)), Stake: 1, Roles: protocol.RoleValidator,
		})
	}
	for i := range e.cfg {
		c := &e.cfg[i]
		*c = Config{
			Network: protocol.LinkTo(protocol.DagCBOR, []byte("explored")), Cycle: 1, Instance: protocol.InstanceM, Self: s.Participants[i].ID,
			Key: exploreKey(i), Snapshot: s, Delta: 10, Rounds: int64(rounds), rules: r,
			Derive: func(s Set) (protocol.Value, error) {
				return protocol.Value{Merge: &protocol.MergeValue{Alpha: uint32(len(s.Merges)), Next: protocol.LinkTo(protocol.DagPB, nil)}}, nil
			},
		}
		for _, p := range proposers {
			c.Proposers = append(c.Proposers, s.Participants[p].ID)
		}
	}
	c := e.cfg[0]
	for k := range uint32(c.Rounds) {
		for j := range min(Ranks, len(proposers)) {
			e.times = append(e.times, c.Turn(Ranks*k+uint32(j)))
		}
	}
	for j, at := int64(1), c.Deadline(); j < 5; j++ {
		e.times = append(e.times, at, at+c.Delta)
		at += Ranks * c.Delta << (j - 1)
	}
	e.rounds = rounds + max(0, ticks-len(e.times[:rounds*min(Ranks, len(proposers))])+1)/2
	e.times = e.times[:ticks]

	var vectors []Message
	var hashes []protocol.Hash
	for i := range e.cfg {
		v := protocol.MergeVector{Version: protocol.Version, Network: c.Network, Cycle: c.Cycle, Validator: e.cfg[i].Self,
			Measure: protocol.MergeMeasure{Version: protocol.Version, Groups: []string{"go"}}}
		if err := v.Sign(exploreKey(i)); err != nil {
			t.Fatal(err)
		}
		vectors, hashes = append(vectors, e.message(v)), append(hashes, v.Digest())
	}
	for i := range e.proposals {
		p := protocol.Proposal{Version: protocol.Version, Network: c.Network, Cycle: c.Cycle, Instance: c.Instance,
			Vectors: slices.Clone(hashes[i:]), Lists: []protocol.Hash{}, Proofs: []protocol.Hash{}}
		slices.SortFunc(p.Vectors, protocol.Hash.Compare)
		p.Value, _ = c.Derive(Set{Merges: make([]protocol.MergeVector, len(p.Vectors))})
		e.proposals[i], e.decisions[i] = p, p.Decision()
	}
	for i := range e.locals {
		e.index[i] = make(map[string]int32)
		m, err := New(e.cfg[i])
		if err != nil {
			t.Fatal(err)
		}
		e.decisions[2] = m.null
		m.Tick(c.Start)
		for _, v := range vectors {
			e.step(m, v)
		}
		for d, p := range e.proposals { // fetched
			p.Proposer, p.Sig = c.Proposers[0], protocol.Sig{1}
			m.candidate(p, e.message(p), e.decisions[d])
		}
		l := &local{m: m}
		for k := range maxRounds {
			l.prepared[k], l.voted[k] = -1, -1
		}
		e.settle(l)
		e.intern(i, l)
	}
	return e
}

func (e *explorer) message(r protocol.Record) Message {
	m, err := NewMessage(r)
	if err != nil {
		e.t.Fatal(err)
	}
	return m
}

// step delivers a message whose signature nobody needs to look at.
func (e *explorer) step(m *Machine, message Message) {
	v, err := open(message)
	if err != nil {
		e.t.Fatal(err)
	}
	v.network, v.snapshot = m.cfg.Network, m.checker.digest
	_ = m.StepValid(v)
}

func (e *explorer) decision(h protocol.Hash) int8 { return int8(slices.Index(e.decisions[:], h)) }

// settle does what a machine asks for and notes what it signed.
func (e *explorer) settle(l *local) {
	for r := l.m.Ready(); !r.Empty(); r = l.m.Ready() {
		for _, b := range r.Persist {
			m, err := DecodeMessage(b)
			if err != nil {
				e.t.Fatal(err)
			}
			record, err := m.Record()
			if err != nil {
				e.t.Fatal(err)
			}
			switch v := record.(type) {
			case protocol.Vote:
				if v.Type == protocol.VotePrepare {
					l.prepared[v.Round] = e.decision(v.Digest)
				} else {
					l.voted[v.Round] = e.decision(v.Digest)
				}
			case protocol.StatusVote:
				l.said[v.Round] = true
			case protocol.Proposal:
				if v.Proposer != l.m.cfg.Self {
					continue
				}
				s := step{kind: 'p', round: v.Round, rank: l.m.cfg.rank(v.Round, v.Proposer), digest: int(e.decision(v.Decision())), lock: -1}
				if v.Lock != nil {
					s.lock = int(v.Lock.Round)
				}
				l.proposed = append(l.proposed, s)
			}
		}
		l.m.Advance()
	}
}

// fingerprint is all of a machine's state that can change what it signs, and what it has signed.
func (e *explorer) fingerprint(l *local) string {
	m := l.m
	var b bytes.Buffer
	fmt.Fprint(&b, l.ticks, m.entered, m.prepared, m.voted, m.said, m.locked, e.decision(m.lockedTo), l.proposed)
	for k := range e.rounds {
		r := &m.rounds[k]
		lock := int8(-1)
		if r.lock != nil {
			lock = e.decision(r.lock.Digest)
		}
		fmt.Fprint(&b, ";", l.prepared[k], l.voted[k], l.said[k], lock, r.told >= m.quorum)
		for _, list := range r.proposals {
			fmt.Fprint(&b, ",")
			for _, c := range list {
				fmt.Fprint(&b, e.decision(c.decision))
			}
		}
	}
	return b.String()
}

func (e *explorer) intern(i int, l *local) int32 {
	f := e.fingerprint(l)
	id, ok := e.index[i][f]
	if !ok {
		id = int32(len(e.locals[i]))
		l.next = make(map[step]int32)
		e.locals[i], e.index[i][f] = append(e.locals[i], l), id
	}
	return id
}

// do returns the state of machine i after a step.
func (e *explorer) do(i int, from int32, s step) int32 {
	l := e.locals[i][from]
	if id, ok := l.next[s]; ok {
		return id
	}
	n := &local{m: clone(l.m), ticks: l.ticks, prepared: l.prepared, voted: l.voted, said: l.said, proposed: slices.Clone(l.proposed)}
	c := e.cfg[i]
	switch s.kind {
	case 't':
		n.m.Tick(e.times[n.ticks])
		n.ticks++
	case 'p':
		p := e.proposals[s.digest]
		p.Round = s.round
		p.Proposer, _ = c.Proposer(s.round, s.rank)
		p.Sig = protocol.Sig{1}
		if s.lock >= 0 {
			p.Lock = &protocol.Lock{
				Version: protocol.Version, Network: c.Network, Cycle: c.Cycle, Instance: c.Instance, Round: uint32(s.lock),
				Digest: e.decisions[s.digest], Snapshot: n.m.checker.digest, Signatures: []protocol.VoteSig{{Validator: c.Self, Sig: protocol.Sig{1}}},
			}
		}
		e.step(n.m, e.message(p))
	case 'q':
		for id := range e.cfg {
			e.step(n.m, e.message(protocol.Vote{
				Version: protocol.Version, Network: c.Network, Cycle: c.Cycle, Instance: c.Instance, Round: s.round, Type: protocol.VotePrepare,
				Digest: e.decisions[s.digest], Validator: e.cfg[id].Self, Sig: protocol.Sig{1},
			}))
		}
	case 's':
		for id := range 4 {
			if id == 2 {
				continue // one less than all: it has to wait
			}
			e.step(n.m, e.message(protocol.StatusVote{
				Version: protocol.Version, Network: c.Network, Cycle: c.Cycle, Instance: c.Instance, Round: s.round, Type: protocol.StatusNull,
				Validator: e.cfg[id].Self, Sig: protocol.Sig{1},
			}))
		}
	}
	e.settle(n)
	id := from
	// What had no effect may as well come later.
	if s.kind == 't' || s.kind == 'q' || n.m.prepared > l.m.prepared || n.m.top != l.m.top {
		id = e.intern(i, n)
	}
	l.next[s] = id
	return id
}

type whole [3]int32

// all is the states of the three machines.
func (e *explorer) all(w whole) (l [3]*local) {
	for i, id := range w {
		l[i] = e.locals[e.class[i]][id]
	}
	return l
}

// tally is how many votes there are of a round, the dishonest one's included.
func tally(l [3]*local, round int, digest int, votes func(*local) *[maxRounds]int8) (n uint64) {
	n = 1
	for _, m := range l {
		if int(votes(m)[round]) == digest {
			n++
		}
	}
	return n
}

func prepares(l *local) *[maxRounds]int8 { return &l.prepared }
func commits(l *local) *[maxRounds]int8  { return &l.voted }

// check looks for two certificates.
func (e *explorer) check(w whole) bool {
	l := e.all(w)
	certified := -1
	for k := range e.rounds {
		for d := range e.decisions {
			if tally(l, k, d, commits) < l[0].m.quorum {
				continue
			}
			if certified >= 0 && certified != d {
				e.violation = fmt.Sprintf("decisions %d and %d are both certified, the second in round %d:\n", certified, d, k)
				for i := range l {
					e.violation += fmt.Sprintf("v%d prepared %v, committed %v\n", i, l[i].prepared[:e.rounds], l[i].voted[:e.rounds])
				}
				return false
			}
			certified = d
		}
	}
	return true
}

// steps is what can happen next to machine i.
func (e *explorer) steps(w whole, i int) (steps []step) {
	l := e.all(w)
	me := l[i]
	q := me.m.quorum
	if me.ticks < len(e.times) {
		steps = append(steps, step{kind: 't'})
	}
	for k := range uint32(e.rounds) {
		r := &me.m.rounds[k]
		for d := range e.decisions {
			if r.lock == nil && tally(l, int(k), d, prepares) >= q {
				steps = append(steps, step{kind: 'q', round: k, digest: d})
			}
		}
		said := uint64(1)
		for _, m := range l {
			if m.said[k] {
				said++
			}
		}
		if int64(k) >= me.m.cfg.Rounds && r.told < q && said >= q {
			steps = append(steps, step{kind: 's', round: k})
		}
		if int64(k) >= me.m.cfg.Rounds || int(k) < me.m.prepared {
			continue
		}
		for rank := range Ranks {
			if who, ok := me.m.cfg.Proposer(k, rank); !ok || who != e.cfg[liar].Self || len(r.proposals[rank]) > 0 {
				continue
			}
			for d := range e.proposals {
				steps = append(steps, step{kind: 'p', round: k, rank: rank, lock: -1, digest: d})
				for lock := range int(k) {
					if tally(l, lock, d, prepares) >= 3 {
						steps = append(steps, step{kind: 'p', round: k, rank: rank, lock: lock, digest: d})
					}
				}
			}
		}
	}
	for j, other := range l {
		for _, p := range other.proposed {
			if j != i && len(me.m.rounds[p.round].proposals[p.rank]) == 0 && int(p.round) >= me.m.prepared {
				steps = append(steps, p)
			}
		}
	}
	return steps
}

// run visits every state, and stops at the first that breaks the promise.
func (e *explorer) run() {
	seen := map[whole]bool{{}: true}
	queue := []whole{{}}
	for len(queue) > 0 {
		w := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		e.states++
		if !e.check(w) {
			return
		}
		for i := range w {
			for _, s := range e.steps(w, i) {
				next := w
				next[i] = e.do(e.class[i], w[i], s)
				if next[1] > next[2] {
					next[1], next[2] = next[2], next[1]
				}
				if next != w && !seen[next] {
					seen[next] = true
					queue = append(queue, next)
				}
			}
		}
	}
}

// clone returns a machine that shares nothing that changes.
func clone(m *Machine) *Machine {
	c := *m
	c.evidence = evidence{
		held: copied(m.evidence.held), by: copied(m.evidence.by), proofs: slices.Clone(m.evidence.proofs), wanted: copied(m.evidence.wanted),
		commits: copied(m.evidence.commits), guilty: copied(m.evidence.guilty),
	}
	for s, list := range c.evidence.by {
		c.evidence.by[s] = slices.Clone(list)
	}
	c.candidates = make(map[protocol.Hash]*candidate)
	for h, p := range m.candidates {
		p := *p
		c.candidates[h] = &p
	}
	c.rounds = slices.Clone(m.rounds)
	for k := range c.rounds {
		r := &c.rounds[k]
		for j, list := range r.proposals {
			r.proposals[j] = nil
			for _, p := range list {
				r.proposals[j] = append(r.proposals[j], c.candidates[p.decision])
			}
		}
		for j, b := range r.ballots {
			r.ballots[j] = ballot{votes: copied(b.votes), stake: copied(b.stake)}
		}
		r.statuses = copied(r.statuses)
	}
	c.commits, c.nulls, c.heard = copied(m.commits), copied(m.nulls), copied(m.heard)
	return &c
}

func copied[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return nil
	}
	c := make(map[K]V, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// TestExplore: no run of the small instance has two certificates, and each rule that is left out is missed.
func TestExplore(t *testing.T) {
	for _, c := range []struct {
		name      string
		proposers []int
		rounds    int
		ticks     int // 2 of each round with two proposers, 1 of one with one, then 2 of each after the deadline
		rules     rules
		broken    bool
	}{
		{"liar first", []int{liar, 0}, 2, 4, rules{}, false},
		{"liar second", []int{0, liar}, 2, 3, rules{}, false},
		{"liar alone, settled", []int{liar}, 1, 3, rules{}, false},
		{"honest, settled", []int{0}, 1, 3, rules{}, false},
		{"no lock", []int{liar, 0}, 2, 4, rules{NoLock: true}, true},
		{"weak quorum", []int{liar, 0}, 2, 4, rules{WeakQuorum: true}, true},
		{"commits behind", []int{liar, 0}, 2, 4, rules{CommitBehind: true}, true},
		{"commits behind, settled", []int{0}, 1, 3, rules{CommitBehind: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newExplorer(t, c.proposers, c.rounds, c.ticks+*exploreMore, c.rules)
			e.run()
			t.Logf("%d states of three machines, %d of one", e.states, len(e.locals[0])+len(e.locals[1]))
			if !c.broken && e.violation != "" {
				t.Error(e.violation)
			}
			if c.broken && e.violation == "" {
				t.Error("nobody missed the rule")
			}
		})
	}
}
