package consensus_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

const (
	start    = 1000
	delta    = 100
	turn     = start + delta // of the first proposer
	deadline = turn + 6*delta
)

func key(i int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize))
}

func id(i int) protocol.ID { return protocol.ID{byte(i + 1)} }

// config is the machine of validator i of four with equal stake, of the instance M: α is decided, by the highest one.
func config(i int) consensus.Config {
	cfg := consensus.Config{
		Network: protocol.LinkTo(protocol.DagCBOR, []byte("genesis")), Cycle: 3, Instance: protocol.InstanceM, Parent: protocol.Hash{1},
		Self: id(i), Key: key(i), Start: start, Delta: delta, Rounds: 2,
		Derive: func(s consensus.Set) (protocol.Value, error) {
			var alpha uint32
			for _, v := range s.Merges {
				alpha = max(alpha, v.Alpha)
			}
			if alpha > 40 {
				return protocol.Value{}, consensus.ErrUnavailable
			}
			return protocol.Value{Merge: &protocol.MergeValue{Alpha: alpha, Next: protocol.LinkTo(protocol.DagPB, []byte{byte(alpha)})}}, nil
		},
	}
	cfg.Snapshot = protocol.Snapshot{Version: protocol.Version, Height: 9, Hash: protocol.Hash{2}}
	for v := range 4 {
		cfg.Snapshot.Participants = append(cfg.Snapshot.Participants, protocol.Participant{
			ID: id(v), Key: protocol.KeyOf(key(v)), Stake: 5, Roles: protocol.RoleValidator,
		})
		cfg.Proposers = append(cfg.Proposers, id(v))
	}
	return cfg
}

func scoring(i int) consensus.Config {
	cfg := config(i)
	cfg.Instance = protocol.InstanceW
	cfg.Derive = func(s consensus.Set) (protocol.Value, error) {
		return protocol.Value{Weights: &protocol.WeightsValue{MergeSet: protocol.Hash{byte(len(s.Scores))}}}, nil
	}
	return cfg
}

func machine(t *testing.T, cfg consensus.Config, now int64) *consensus.Machine {
	t.Helper()
	m, err := consensus.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.Tick(now)
	return m
}

// drain does what is ready, remembers it, and says it is done.
func drain(m *consensus.Machine) (all consensus.Ready) {
	for {
		r := m.Ready()
		if r.Empty() {
			return all
		}
		all.Persist = append(all.Persist, r.Persist...)
		all.Send = append(all.Send, r.Send...)
		all.Need = append(all.Need, r.Need...)
		all.Proofs = append(all.Proofs, r.Proofs...)
		if r.Output != nil {
			all.Output = r.Output
		}
		m.Advance()
	}
}

func kinds(r consensus.Ready) (k []consensus.Kind) {
	for _, m := range r.Send {
		k = append(k, m.Kind)
	}
	return k
}

func message(t testing.TB, r protocol.Record) consensus.Message {
	t.Helper()
	m, err := consensus.NewMessage(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// signed signs a record and makes a message of it.
func signed[T protocol.Record, P interface {
	*T
	Sign(ed25519.PrivateKey) error
}](t testing.TB, i int, r P) consensus.Message {
	t.Helper()
	if err := r.Sign(key(i)); err != nil {
		t.Fatal(err)
	}
	return message(t, *r)
}

func vector(i int, alpha uint32) *protocol.MergeVector {
	cfg := config(i)
	return &protocol.MergeVector{
		Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Parent: cfg.Parent, Validator: id(i), Alpha: alpha,
		Measure: protocol.MergeMeasure{Version: protocol.Version, Groups: []string{"go"}},
	}
}

// proposal is validator i's in its turn, of those vectors, with the right value.
func proposal(t testing.TB, i int, vectors ...*protocol.MergeVector) *protocol.Proposal {
	t.Helper()
	cfg := config(i)
	var set consensus.Set
	p := &protocol.Proposal{
		Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Round: uint32(i), Parent: cfg.Parent,
		Proposer: id(i),
	}
	for _, v := range vectors {
		set.Merges = append(set.Merges, *v)
		p.Vectors = append(p.Vectors, v.Digest())
	}
	slices.SortFunc(p.Vectors, protocol.Hash.Compare)
	value, err := cfg.Derive(set)
	if err != nil && !errors.Is(err, consensus.ErrUnavailable) {
		t.Fatal(err)
	}
	if err != nil {
		value = protocol.Value{Merge: &protocol.MergeValue{Alpha: 50, Next: protocol.LinkTo(protocol.DagPB, []byte{50})}}
	}
	p.Value = value
	return p
}

func vote(i int, p *protocol.Proposal) *protocol.Vote {
	return &protocol.Vote{
		Version: protocol.Version, Network: p.Network, Cycle: p.Cycle, Instance: p.Instance, Round: p.Round, Type: protocol.VoteCommit,
		Parent: p.Parent, Digest: p.Decision(), Validator: id(i),
	}
}

func prepare(i int, p *protocol.Proposal) *protocol.Vote {
	v := vote(i, p)
	v.Type = protocol.VotePrepare
	return v
}

// none is validator i's vote of a round for the null decision.
func none(i int, step protocol.VoteType, round uint32) *protocol.Vote {
	cfg := config(i)
	return &protocol.Vote{
		Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Round: round, Type: step, Parent: cfg.Parent,
		Digest: protocol.NullDecision(cfg.Network, cfg.Cycle, cfg.Instance, cfg.Parent), Validator: id(i),
	}
}

// null is validator i's STATUS of the first round after the deadline.
func null(i int) *protocol.StatusVote {
	cfg := config(i)
	return &protocol.StatusVote{
		Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Round: 2, Type: protocol.StatusNull,
		Parent: cfg.Parent, Validator: id(i),
	}
}

func step(t *testing.T, m *consensus.Machine, want error, messages ...consensus.Message) {
	t.Helper()
	for _, msg := range messages {
		if err := m.Step(msg); !errors.Is(err, want) {
			t.Fatalf("step %s: %v, want %v", msg.Kind, err, want)
		}
	}
}

// vectors are those of the first n validators, as messages.
func vectors(t testing.TB, n int) (v []*protocol.MergeVector, m []consensus.Message) {
	t.Helper()
	for i := range n {
		v = append(v, vector(i, uint32(i)))
		m = append(m, signed(t, i, v[i]))
	}
	return v, m
}

func TestConfigNamesEveryFault(t *testing.T) {
	_, err := consensus.New(consensus.Config{Key: key(0), Self: id(0)})
	for _, want := range []string{"network", "instance", "snapshot", "stake", "proposers", "δ", "rounds", "Derive", "validator"} {
		if err == nil || !errors.Is(err, consensus.ErrBug) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
	for name, spoil := range map[string]func(*consensus.Config){
		"another's key":     func(c *consensus.Config) { c.Key = key(1) },
		"proposer twice":    func(c *consensus.Config) { c.Proposers = []protocol.ID{id(0), id(0)} },
		"proposer stranger": func(c *consensus.Config) { c.Proposers = []protocol.ID{id(9)} },
		"far start":         func(c *consensus.Config) { c.Start = 1 << 50 },
		"bad record":        func(c *consensus.Config) { c.Restore = [][]byte{{6, 1, 2}} },
		"another's log":     func(c *consensus.Config) { _, m := vectors(t, 2); c.Restore = [][]byte{m[1].Encode()} },
	} {
		cfg := config(0)
		spoil(&cfg)
		if _, err := consensus.New(cfg); !errors.Is(err, consensus.ErrBug) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDeadlines: with R = 2 and δ = 100 everything lies where the design says, and Next leads there.
func TestDeadlines(t *testing.T) {
	cfg := config(1)
	if cfg.Open() != turn || cfg.Turn(1) != turn+delta || cfg.Deadline() != deadline {
		t.Fatal(cfg.Open(), cfg.Turn(1), cfg.Deadline())
	}
	m := machine(t, cfg, -50_000)
	var ticks []int64
	for m.Next() <= deadline {
		ticks = append(ticks, m.Next())
		m.Tick(m.Next())
	}
	if ticks[0] != start-4*delta || ticks[len(ticks)-1] != deadline || len(ticks) != 12 {
		t.Errorf("ticks at %v", ticks)
	}
	if out := drain(m).Output; out == nil || out.Outcome != consensus.Fallback || out.Value != nil {
		t.Errorf("output %+v", out)
	}
	m.Tick(0) // time does not go back
	if m.Next() <= deadline {
		t.Error("the clock went back")
	}
}

// said are the votes that a Ready sends, as type, round.
func said(r consensus.Ready) (votes [][2]int) {
	for _, m := range r.Send {
		if record, err := m.Record(); err == nil {
			if v, ok := record.(protocol.Vote); ok {
				votes = append(votes, [2]int{int(v.Type), int(v.Round)})
			}
		}
	}
	return votes
}

// TestOwnVoteCountsOnceDurable: the third vote of each quorum is this validator's, and there is no lock and no
// certificate before it is on the disk.
func TestOwnVoteCountsOnceDurable(t *testing.T) {
	m := machine(t, config(3), turn)
	v, vm := vectors(t, 3)
	p := proposal(t, 0, v...)
	step(t, m, nil, vm...)
	step(t, m, nil, signed(t, 0, p))
	for i := range 2 {
		step(t, m, nil, signed(t, i, prepare(i, p)), signed(t, i, vote(i, p)))
	}
	r := m.Ready()
	if !slices.Equal(said(r), [][2]int{{1, 0}}) || len(r.Persist) != 1 || r.Output != nil {
		t.Fatalf("ready %+v", r)
	}
	if again := m.Ready(); len(again.Persist) != 1 || !bytes.Equal(again.Persist[0], r.Persist[0]) {
		t.Error("Ready is not the same until Advance")
	}
	m.Advance()
	// With its COMMIT-V it keeps the lock, and what that is on.
	r = m.Ready()
	if !slices.Equal(said(r), [][2]int{{2, 0}}) || len(r.Persist) != 3 || r.Output != nil {
		t.Fatalf("ready %+v", r)
	}
	m.Advance()
	r = drain(m)
	if r.Output == nil || r.Output.Outcome != consensus.Certified || r.Output.Value.Merge.Alpha != 2 || r.Output.Late {
		t.Fatalf("output %+v", r.Output)
	}
	if err := r.Output.Certificate.Verify(config(0).Snapshot); err != nil {
		t.Error(err)
	}
}

// TestMute: a machine whose log fails drops what it signed, and neither counts nor sends it.
func TestMute(t *testing.T) {
	m := machine(t, config(3), turn)
	v, vm := vectors(t, 3)
	p := proposal(t, 0, v...)
	step(t, m, nil, vm...)
	step(t, m, nil, signed(t, 0, p), signed(t, 0, vote(0, p)), signed(t, 1, vote(1, p)))
	m.Ready() // its vote, which the log refuses
	m.Mute()
	m.Tick(deadline)
	if r := drain(m); len(r.Send) != 0 || r.Output == nil || r.Output.Outcome != consensus.Fallback || r.Output.Value == nil {
		t.Fatalf("ready %+v", r)
	}
	step(t, m, nil, signed(t, 2, vote(2, p)))
	if r := drain(m); len(r.Send) != 0 || r.Output == nil || r.Output.Outcome != consensus.Certified || !r.Output.Late {
		t.Fatalf("ready %+v", r)
	}
}

// locked is validator 3 with its log, locked on its round 0, in which two others prepared, too.
func locked(t *testing.T) (m *consensus.Machine, p *protocol.Proposal, log [][]byte) {
	t.Helper()
	m = machine(t, config(3), turn)
	v, vm := vectors(t, 4)
	p = proposal(t, 0, v[:3]...)
	step(t, m, nil, vm...)
	step(t, m, nil, signed(t, 0, p), signed(t, 0, prepare(0, p)), signed(t, 1, prepare(1, p)))
	r := drain(m)
	if !slices.Equal(said(r), [][2]int{{1, 0}, {2, 0}}) {
		t.Fatalf("says %v", said(r))
	}
	return m, p, r.Persist
}

// again is p, proposed again by whoever is first in round 1, with a lock of round 0.
func again(t *testing.T, p *protocol.Proposal, lock *protocol.Lock) consensus.Message {
	t.Helper()
	q := *p
	q.Round, q.Proposer, q.Lock = 1, id(3), lock
	return signed(t, 3, &q)
}

func lockOn(t testing.TB, p *protocol.Proposal, round uint32, voters ...int) *protocol.Lock {
	t.Helper()
	cfg := config(0)
	l := &protocol.Lock{
		Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Round: round, Parent: cfg.Parent,
		Digest: p.Decision(), Snapshot: cfg.Snapshot.Digest(),
	}
	for _, i := range voters {
		v := prepare(i, p)
		v.Round = round
		l.Signatures = append(l.Signatures, protocol.VoteSig{Validator: id(i), Sig: mustSign(t, i, v).Sig})
	}
	return l
}

// TestLock: who is locked prepares nothing else in later rounds, proposes that very decision in its turn, and changes its
// mind only for a lock of a higher round.
func TestLock(t *testing.T) {
	m, p, _ := locked(t)
	m.Tick(turn + 3*delta) // its own turn: round 1 begins with Proposers[3]
	r := drain(m)
	var proposed protocol.Proposal
	for _, message := range r.Send {
		record, _ := message.Record()
		if x, ok := record.(protocol.Proposal); ok {
			proposed = x
		}
	}
	if proposed.Decision() != p.Decision() || proposed.Lock == nil || proposed.Lock.Round != 0 || proposed.Verify(config(0).Snapshot) != nil {
		t.Fatalf("proposes %+v", proposed)
	}
	if want := [][2]int{{1, 0}, {2, 0}, {1, 1}}; !slices.Equal(said(r), want) {
		t.Errorf("says %v, want %v", said(r), want)
	}

	// Another decision of round 1, by the second rank: no.
	other := func() *consensus.Machine {
		cfg := config(3)
		cfg.Proposers = []protocol.ID{id(0), id(1), id(2)} // round 1 begins with id(1)
		_, _, log := locked(t)
		cfg.Restore = log
		m := machine(t, cfg, turn+3*delta)
		_, vm := vectors(t, 4)
		for _, v := range vm[:3] {
			step(t, m, nil, v)
		}
		return m
	}
	m = other()
	v, _ := vectors(t, 3)
	v[2] = vector(2, 9)
	step(t, m, nil, signed(t, 2, v[2]))
	q := proposal(t, 1, v...)
	step(t, m, nil, signed(t, 1, q))
	if r := drain(m); slices.Contains(said(r), [2]int{1, 1}) {
		t.Errorf("prepares something else: %v", said(r))
	}
	// A quorum locks that one in round 1 without it: now it is free, and commits to it.
	step(t, m, nil, message(t, *lockOn(t, q, 1, 0, 1, 2)))
	if r := drain(m); !slices.Contains(said(r), [2]int{2, 1}) {
		t.Errorf("does not follow the higher lock: %v", said(r))
	}
	// In its own life it never signs a COMMIT-V of a round that it has left.
	m = other()
	m.Tick(deadline)
	drain(m)
	step(t, m, nil, signed(t, 1, q), message(t, *lockOn(t, q, 1, 0, 1, 2)))
	if r := drain(m); slices.Contains(said(r), [2]int{2, 1}) {
		t.Errorf("commits behind its STATUS: %v", said(r))
	}
}

// TestSettle: after the deadline a quorum's STATUS decide what is prepared: the highest lock, or nothing.
func TestSettle(t *testing.T) {
	lock := func(p *protocol.Proposal, i int) *protocol.StatusVote {
		s := null(i)
		s.Type, s.LockDigest = protocol.StatusLock, p.Decision()
		return s
	}
	m, p, _ := locked(t)
	m.Tick(deadline)
	r := drain(m)
	if r.Output == nil || r.Output.Outcome != consensus.Fallback || len(said(r)) > 0 && said(r)[len(said(r))-1][1] == 2 {
		t.Fatalf("output %+v, says %v", r.Output, said(r))
	}
	step(t, m, nil, signed(t, 0, null(0)), signed(t, 1, lock(p, 1)))
	if r = drain(m); len(said(r)) > 0 {
		t.Errorf("prepares before the others had time: %v", said(r))
	}
	m.Tick(deadline + delta)
	for i := range 2 {
		v := prepare(i, p)
		v.Round = 2
		step(t, m, nil, signed(t, i, v))
		v.Type = protocol.VoteCommit
		step(t, m, nil, signed(t, i, v))
	}
	if r = drain(m); r.Output == nil || r.Output.Outcome != consensus.Certified || !r.Output.Late || r.Output.Certificate.Round != 2 {
		t.Errorf("output %+v, says %v", r.Output, said(r))
	}

	m = machine(t, config(3), deadline)
	drain(m)
	for i := range 2 {
		step(t, m, nil, signed(t, i, null(i)), signed(t, i, none(i, protocol.VotePrepare, 2)), signed(t, i, none(i, protocol.VoteCommit, 2)))
	}
	if r = drain(m); r.Output != nil || len(said(r)) > 0 {
		t.Errorf("three of four are there: it waits for the last one, but says %v", said(r))
	}
	step(t, m, nil, signed(t, 2, null(2)))
	if r = drain(m); r.Output == nil || r.Output.Outcome != consensus.Null || r.Output.Certificate.Verify(config(0).Snapshot) != nil {
		t.Errorf("output %+v, says %v", r.Output, said(r))
	}
	// The rounds after the deadline double, and each has its STATUS.
	m = machine(t, config(3), turn)
	for _, at := range []int64{0, 3, 9, 21} {
		m.Tick(deadline + at*delta - 1)
		drain(m)
		m.Tick(deadline + at*delta)
		if r := drain(m); !slices.Contains(kinds(r), consensus.KindStatus) {
			t.Errorf("%d δ after the deadline it sends %v", at, kinds(r))
		}
	}
}

// TestRestore: a new machine with the old records knows its lock, and signs nothing that contradicts them.
func TestRestore(t *testing.T) {
	_, p, log := locked(t)
	for name, spoil := range map[string]func(*consensus.Config){
		"same":           func(*consensus.Config) {},
		"another parent": func(c *consensus.Config) { c.Parent = protocol.Hash{9} },
	} {
		cfg := config(3)
		spoil(&cfg)
		cfg.Restore = log
		m := machine(t, cfg, turn+3*delta)
		m.Tick(deadline)
		r := drain(m)
		statuses := 0
		for _, msg := range r.Send {
			record, _ := msg.Record()
			if s, ok := record.(protocol.StatusVote); ok {
				statuses++
				if s.Type != protocol.StatusLock || s.LockDigest != p.Decision() {
					t.Errorf("%s: %+v", name, s)
				}
			}
		}
		if want := map[string]int{"same": 1, "another parent": 0}[name]; statuses != want {
			t.Errorf("%s: %d statuses", name, statuses)
		}
		lock, held := m.Prepared()
		if name == "same" && (lock == nil || held == nil || held.Decision() != p.Decision()) {
			t.Errorf("%s: lock %v on %v", name, lock, held)
		}
	}
	// A certificate is output again.
	m, p, log := locked(t)
	step(t, m, nil, signed(t, 0, vote(0, p)), signed(t, 1, vote(1, p)))
	cfg := config(3)
	cfg.Restore = append(log, drain(m).Persist...)
	if out := drain(machine(t, cfg, deadline+5)).Output; out == nil || out.Outcome != consensus.Certified {
		t.Errorf("output %+v", out)
	}
}

// TestForgottenVote: a vote of our own that comes back from the network, after the log was lost, binds us.
func TestForgottenVote(t *testing.T) {
	m := machine(t, config(3), turn)
	v, _ := vectors(t, 3)
	p := proposal(t, 0, v...)
	step(t, m, nil, signed(t, 3, vote(3, p)))
	m.Tick(deadline)
	r := drain(m)
	for _, msg := range r.Send {
		record, _ := msg.Record()
		if s, ok := record.(protocol.StatusVote); ok && (s.Type != protocol.StatusLock || s.LockDigest != p.Decision()) {
			t.Errorf("%+v", s)
		}
	}
	if len(r.Persist) != 2 {
		t.Errorf("%v, %d records", kinds(r), len(r.Persist))
	}
}

func TestVerdicts(t *testing.T) {
	v, vm := vectors(t, 4)
	good := proposal(t, 0, v[:3]...)
	change := func(f func(*protocol.Proposal)) consensus.Message {
		p := *good
		f(&p)
		who := slices.IndexFunc([]protocol.ID{id(0), id(1), id(2), id(3)}, func(x protocol.ID) bool { return x == p.Proposer })
		return signed(t, who, &p)
	}
	foreign := vector(0, 1)
	foreign.Network = protocol.LinkTo(protocol.DagCBOR, []byte("another"))
	old := vector(0, 1)
	old.Cycle--
	orphan := vector(0, 1)
	orphan.Parent = protocol.Hash{7}
	stranger := vector(0, 1)
	stranger.Validator = id(8)
	forged := vector(0, 1)
	far := vote(0, good)
	far.Round = 9
	early := null(0)
	early.Round = 1
	weak := lockOn(t, good, 0, 0, 1)
	cfg := config(0)
	commit := &protocol.ScoreCommit{Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Validator: id(0), Digest: protocol.Hash{1}}
	thin := &protocol.Certificate{
		Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Parent: cfg.Parent,
		Snapshot: cfg.Snapshot.Digest(), Signatures: []protocol.VoteSig{{Validator: id(0), Sig: protocol.Sig{1}}},
	}
	elsewhere := *thin
	elsewhere.Snapshot = protocol.Hash{8}
	for name, c := range map[string]struct {
		want error
		msg  consensus.Message
	}{
		"new vector":            {nil, signed(t, 0, vector(0, 9))},
		"known vector":          {consensus.ErrIgnore, vm[0]},
		"garbage":               {consensus.ErrPeer, consensus.Message{Kind: consensus.KindVote, Bytes: []byte{0xa0}}},
		"unknown kind":          {consensus.ErrPeer, consensus.Message{Kind: 77, Bytes: []byte{0xa0}}},
		"another kind":          {consensus.ErrPeer, consensus.Message{Kind: consensus.KindVote, Bytes: vm[0].Bytes}},
		"another network":       {consensus.ErrPeer, signed(t, 0, foreign)},
		"another cycle":         {consensus.ErrIgnore, signed(t, 0, old)},
		"another parent":        {consensus.ErrIgnore, signed(t, 0, orphan)},
		"of W":                  {consensus.ErrIgnore, signed(t, 0, commit)},
		"a stranger's":          {consensus.ErrIgnore, signed(t, 0, stranger)},
		"forged":                {consensus.ErrPeer, signed(t, 1, forged)},
		"good proposal":         {nil, signed(t, 0, good)},
		"turn of another":       {consensus.ErrPeer, change(func(p *protocol.Proposal) { p.Round, p.Proposer = 1, id(2) })},
		"second rank":           {nil, change(func(p *protocol.Proposal) { p.Proposer = id(1) })},
		"no such round":         {consensus.ErrPeer, change(func(p *protocol.Proposal) { p.Round = 2 })},
		"weak lock":             {consensus.ErrPeer, again(t, good, weak)},
		"good lock":             {nil, again(t, good, lockOn(t, good, 0, 0, 1, 2))},
		"too little stake":      {consensus.ErrPeer, change(func(p *protocol.Proposal) { p.Vectors = p.Vectors[1:] })},
		"wrong value":           {consensus.ErrPeer, change(func(p *protocol.Proposal) { p.Value.Merge = &protocol.MergeValue{Alpha: 7, Next: p.Value.Merge.Next} })},
		"vector as a list":      {consensus.ErrPeer, change(func(p *protocol.Proposal) { p.Lists = p.Vectors[:1] })},
		"vector as a proof":     {consensus.ErrPeer, change(func(p *protocol.Proposal) { p.Proofs = p.Vectors[:1] })},
		"more than there is":    {consensus.ErrPeer, change(func(p *protocol.Proposal) { p.Vectors = []protocol.Hash{{1}, {2}, {3}, {4}, {5}} })},
		"names the unknown":     {nil, change(func(p *protocol.Proposal) { p.Lists = []protocol.Hash{{1}} })},
		"prepare":               {nil, signed(t, 0, prepare(0, good))},
		"vote of a later round": {nil, signed(t, 0, far)},
		"lock":                  {nil, message(t, *lockOn(t, good, 0, 0, 1, 2))},
		"lock of two":           {consensus.ErrPeer, message(t, *weak)},
		"early status":          {consensus.ErrPeer, signed(t, 0, early)},
		"null":                  {nil, signed(t, 0, null(0))},
		"thin certificate":      {consensus.ErrPeer, message(t, *thin)},
		"another snapshot":      {consensus.ErrIgnore, message(t, elsewhere)},
	} {
		m := machine(t, config(3), turn)
		step(t, m, nil, vm...)
		if err := m.Step(c.msg); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	m, err := consensus.New(config(3))
	if err != nil || !errors.Is(m.Step(vm[0]), consensus.ErrBug) {
		t.Error("stepped before the first tick")
	}
}

// TestReminds: a vector is repeated to the proposers of the turn and the next one, now and then to all, until its validator
// has prepared, here when it proposes in its own turn.
func TestReminds(t *testing.T) {
	m := machine(t, config(3), start)
	_, vm := vectors(t, 3)
	if err := m.Input(consensus.Input{Merge: vector(3, 1)}); err != nil {
		t.Fatal(err)
	}
	if r := drain(m); !slices.Equal(kinds(r), []consensus.Kind{consensus.KindMergeVector}) {
		t.Fatalf("sends %v", kinds(r))
	}
	step(t, m, nil, vm...)
	for k, want := range [][]int{1: {0, 1}, 2: {1, 2}, 3: {2}, 4: nil} {
		if k == 0 {
			continue
		}
		m.Tick(start + int64(k)*delta)
		r := m.Ready()
		var to []int
		for _, reply := range r.Reply {
			if reply.Message.Kind == consensus.KindMergeVector {
				to = append(to, int(reply.To[0])-1)
			}
		}
		all := slices.Contains(kinds(r), consensus.KindMergeVector)
		if !slices.Equal(to, want) || all != (k == 4) {
			t.Errorf("at %d δ to %v, to all: %t; want %v", k, to, all, want)
		}
		drain(m)
	}
	m.Tick(start + 5*delta)
	if r := m.Ready(); len(r.Reply) > 0 || slices.Contains(kinds(r), consensus.KindMergeVector) {
		t.Errorf("after its PREPARE it sends %v, replies %v", kinds(r), r.Reply)
	}
}

// TestUnavailable: a proposal that cannot be derived yet blames nobody, gets no vote, and is tried again.
func TestUnavailable(t *testing.T) {
	cfg := config(3)
	derive, ready := cfg.Derive, false
	cfg.Derive = func(s consensus.Set) (protocol.Value, error) {
		if !ready {
			return protocol.Value{}, consensus.ErrUnavailable
		}
		return derive(s)
	}
	m := machine(t, cfg, turn)
	v, vm := vectors(t, 3)
	step(t, m, nil, vm...)
	step(t, m, nil, signed(t, 0, proposal(t, 0, v...)))
	if r := drain(m); len(r.Send) > 0 {
		t.Fatalf("sends %v", kinds(r))
	}
	ready = true
	m.Tick(turn + delta)
	if r := drain(m); !slices.Equal(kinds(r), []consensus.Kind{consensus.KindVote}) {
		t.Fatalf("sends %v", kinds(r))
	}
}

// TestNeed: what a proposal names is asked for at once and again every δ, and taken although its signer's share is full.
func TestNeed(t *testing.T) {
	m := machine(t, config(3), turn)
	v, vm := vectors(t, 3)
	junk := []consensus.Message{signed(t, 0, vector(0, 11)), signed(t, 0, vector(0, 12))}
	step(t, m, nil, junk...)
	step(t, m, consensus.ErrIgnore, vm[0])
	step(t, m, nil, vm[1:]...)
	step(t, m, nil, signed(t, 0, proposal(t, 0, v...)))
	want := []consensus.Name{{Kind: consensus.KindMergeVector, Hash: v[0].Digest()}}
	if r := drain(m); !slices.Equal(r.Need, want) || len(r.Send) > 0 {
		t.Fatalf("%+v", r)
	}
	m.Tick(turn + delta)
	if r := drain(m); !slices.Equal(r.Need, want) {
		t.Fatalf("%+v", r)
	}
	step(t, m, nil, vm[0])
	if r := drain(m); !slices.Equal(kinds(r), []consensus.Kind{consensus.KindVote}) {
		t.Fatalf("sends %v", kinds(r))
	}
	// A decision that is locked or certified, and that this node never saw, is asked for by its name.
	m = machine(t, config(3), turn)
	p := proposal(t, 0, v...)
	step(t, m, nil, message(t, *lockOn(t, p, 0, 0, 1, 2)))
	named := []consensus.Name{{Kind: consensus.KindProposal, Hash: p.Decision()}}
	if r := drain(m); !slices.Equal(r.Need, named) || len(said(r)) > 0 {
		t.Fatalf("needs %v, says %v", r.Need, said(r))
	}
	step(t, m, nil, signed(t, 0, vote(0, p)), signed(t, 1, vote(1, p)), signed(t, 2, vote(2, p)))
	m.Tick(turn + delta)
	if r := drain(m); !slices.Equal(r.Need, named) || r.Output != nil {
		t.Fatalf("%+v", r)
	}
	step(t, m, nil, signed(t, 0, p))
	if r := drain(m); r.Output == nil || r.Output.Outcome != consensus.Certified {
		t.Fatalf("%+v", r)
	}
	m = machine(t, config(3), turn)
	step(t, m, nil, vm...)
	if got, ok := m.Held(v[0].Digest()); !ok || !bytes.Equal(got.Bytes, vm[0].Bytes) {
		t.Error("does not serve what it holds")
	}
}

// TestEquivocation: two votes of one round, and a null after a COMMIT-V, are proven. The snapshot's stake stays what it is:
// the first vote counts all the same.
func TestEquivocation(t *testing.T) {
	v, vm := vectors(t, 4)
	p := proposal(t, 0, v[:3]...)
	q := proposal(t, 0, v...)
	proof, err := protocol.NewEquivocationProof(*mustSign(t, 2, vote(2, p)), *mustSign(t, 2, vote(2, q)))
	if err != nil {
		t.Fatal(err)
	}
	for name, messages := range map[string][]consensus.Message{
		"two votes":     {signed(t, 2, vote(2, p)), signed(t, 2, vote(2, q))},
		"two prepares":  {signed(t, 2, prepare(2, p)), signed(t, 2, prepare(2, q)), signed(t, 2, vote(2, p))},
		"a proof":       {message(t, proof), signed(t, 2, vote(2, p))},
		"vote and null": {signed(t, 2, vote(2, p)), signed(t, 2, null(2))},
		"null and vote": {signed(t, 2, null(2)), signed(t, 2, vote(2, p))},
	} {
		m := machine(t, config(3), turn)
		step(t, m, nil, vm...)
		step(t, m, nil, messages...)
		step(t, m, nil, signed(t, 0, p), signed(t, 0, vote(0, p)))
		r := drain(m)
		if len(r.Proofs) != 1 || r.Output != nil {
			t.Fatalf("%s: %d proofs, output %v", name, len(r.Proofs), r.Output)
		}
		if offence, err := r.Proofs[0].Verify(config(0).Snapshot); err != nil || offence.Offender != id(2) {
			t.Errorf("%s: %v %v", name, offence, err)
		}
		step(t, m, nil, signed(t, 1, vote(1, p)))
		if r := drain(m); r.Output == nil || len(r.Output.Certificate.Signatures) != 3 {
			t.Fatalf("%s: three votes are no certificate: %+v", name, r.Output)
		}
	}

	// Of two proposals neither gets a vote, and the next proposer leaves the culprit's vector out and names the proof.
	m := machine(t, config(1), turn-1)
	step(t, m, nil, vm...)
	step(t, m, nil, signed(t, 0, p), signed(t, 0, q))
	m.Tick(turn + delta)
	r := drain(m)
	if len(r.Proofs) != 1 || !slices.Equal(kinds(r), []consensus.Kind{consensus.KindProof, consensus.KindProposal, consensus.KindVote}) {
		t.Fatalf("%v", kinds(r))
	}
	own, _ := r.Send[1].Record()
	if own := own.(protocol.Proposal); own.Round != 0 || own.Proposer != id(1) || len(own.Vectors) != 3 || len(own.Proofs) != 1 || slices.Contains(own.Vectors, v[0].Digest()) {
		t.Errorf("%+v", own)
	}
}

func mustSign[T any, P interface {
	*T
	Sign(ed25519.PrivateKey) error
}](t testing.TB, i int, r P) P {
	t.Helper()
	if err := r.Sign(key(i)); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestConflict: a second valid certificate, which takes more than a third to be dishonest, is told apart and changes
// nothing.
func TestConflict(t *testing.T) {
	m := machine(t, config(3), turn)
	v, vm := vectors(t, 3)
	step(t, m, nil, vm...)
	p := proposal(t, 0, v...)
	step(t, m, nil, signed(t, 0, p))
	for i := range 3 {
		step(t, m, nil, signed(t, i, vote(i, p)))
	}
	cfg := config(3)
	nothing := protocol.Certificate{
		Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Round: 2, Parent: cfg.Parent, Snapshot: cfg.Snapshot.Digest(),
	}
	for i := range 3 {
		nothing.Signatures = append(nothing.Signatures, protocol.VoteSig{Validator: id(i), Sig: mustSign(t, i, none(i, protocol.VoteCommit, 2)).Sig})
	}
	step(t, m, consensus.ErrConflict, message(t, nothing))
	if out := drain(m).Output; out == nil || out.Outcome != consensus.Certified {
		t.Errorf("output %+v", out)
	}
}

// TestScores: commits close at Start; a vector that opens none, or another, does not count, and a proposal that rests on
// such vectors gets no vote of those who saw the commits.
func TestScores(t *testing.T) {
	list := func(i int) *protocol.List {
		cfg := scoring(i)
		return mustSign(t, i, &protocol.List{Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Validator: id(i)})
	}
	score := func(i int, salt byte) *protocol.ScoreVector {
		cfg := scoring(i)
		return mustSign(t, i, &protocol.ScoreVector{
			Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Parent: cfg.Parent, Validator: id(i), List: list(i).Digest(),
			Salt: protocol.Hash{salt},
		})
	}
	commit := func(v *protocol.ScoreVector) consensus.Message {
		i := int(v.Validator[0]) - 1
		return signed(t, i, &protocol.ScoreCommit{Version: protocol.Version, Network: v.Network, Cycle: v.Cycle, Validator: v.Validator, Digest: v.CommitDigest()})
	}
	propose := func(scores ...*protocol.ScoreVector) *protocol.Proposal {
		cfg := scoring(0)
		p := &protocol.Proposal{
			Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Parent: cfg.Parent, Proposer: id(0),
			Value: protocol.Value{Weights: &protocol.WeightsValue{MergeSet: protocol.Hash{byte(len(scores))}}},
		}
		for _, s := range scores {
			p.Vectors = append(p.Vectors, s.Digest())
			p.Lists = append(p.Lists, s.List)
		}
		slices.SortFunc(p.Vectors, protocol.Hash.Compare)
		slices.SortFunc(p.Lists, protocol.Hash.Compare)
		return p
	}
	fresh := func(i int) *consensus.Machine {
		m := machine(t, scoring(i), start-50)
		for v := range 4 {
			step(t, m, nil, message(t, *list(v)))
			if v != 3 {
				step(t, m, nil, commit(score(v, 1)))
			}
		}
		m.Tick(start)
		step(t, m, consensus.ErrIgnore, commit(score(3, 1)))
		m.Tick(turn)
		return m
	}

	// Two of three open something else: more than a third.
	m := fresh(2)
	for i := range 3 {
		step(t, m, nil, message(t, *score(i, 1+byte(i))))
	}
	step(t, m, nil, signed(t, 0, propose(score(0, 1), score(1, 2), score(2, 3))))
	if r := drain(m); len(r.Send) > 0 {
		t.Errorf("votes for scores written afterwards: %v", kinds(r))
	}
	// One whose commit came late, beside three: a validator that missed a commit must not split the vote.
	m = fresh(2)
	for i := range 4 {
		step(t, m, nil, message(t, *score(i, 1)))
	}
	step(t, m, nil, signed(t, 0, propose(score(0, 1), score(1, 1), score(2, 1), score(3, 1))))
	if r := drain(m); !slices.Equal(kinds(r), []consensus.Kind{consensus.KindVote}) {
		t.Errorf("sends %v", kinds(r))
	}
	// Its own proposal leaves that one out, and all lists stay in.
	m = fresh(0)
	for i := range 4 {
		step(t, m, nil, message(t, *score(i, 1)))
	}
	r := drain(m)
	own, _ := r.Send[0].Record()
	if p, ok := own.(protocol.Proposal); !ok || len(p.Vectors) != 3 || len(p.Lists) != 4 {
		t.Errorf("proposes %+v", own)
	}
	// A vector whose list is left out.
	m = fresh(2)
	for i := range 4 {
		step(t, m, nil, message(t, *score(i, 1)))
	}
	p := propose(score(0, 1), score(1, 1), score(2, 1))
	p.Lists = p.Lists[1:]
	step(t, m, consensus.ErrPeer, signed(t, 0, p))
	// Two lists of one validator convict it.
	two := list(1)
	two.Entries = []protocol.ListEntry{{Miner: id(9), Group: "go", Manifest: protocol.LinkTo(protocol.DagCBOR, nil), State: protocol.ListHeld}}
	step(t, m, nil, signed(t, 1, two))
	if r := drain(m); len(r.Proofs) != 1 || r.Proofs[0].Kind != protocol.EquivocationList {
		t.Errorf("%+v", r.Proofs)
	}
}

func TestInput(t *testing.T) {
	scores := consensus.Input{Scores: &protocol.ScoreVector{Salt: protocol.Hash{1}}}
	merge := consensus.Input{Merge: &protocol.MergeVector{Measure: protocol.MergeMeasure{Version: protocol.Version, Groups: []string{"go"}}}}
	observer := scoring(0)
	observer.Key = nil
	for name, c := range map[string]struct {
		m    *consensus.Machine
		in   consensus.Input
		want error
	}{
		"scores":             {machine(t, scoring(0), 0), scores, nil},
		"late scores":        {machine(t, scoring(0), start), scores, consensus.ErrIgnore},
		"scores to M":        {machine(t, config(0), 0), scores, consensus.ErrBug},
		"no salt":            {machine(t, scoring(0), 0), consensus.Input{Scores: &protocol.ScoreVector{}}, consensus.ErrBug},
		"invalid":            {machine(t, scoring(0), 0), consensus.Input{Scores: &protocol.ScoreVector{Salt: protocol.Hash{1}, Groups: []protocol.GroupRows{{}}}}, consensus.ErrBug},
		"observer":           {machine(t, observer, 0), scores, consensus.ErrIgnore},
		"merge":              {machine(t, config(0), turn), merge, nil},
		"merge too late":     {machine(t, config(0), deadline), merge, consensus.ErrIgnore},
		"both":               {machine(t, config(0), 0), consensus.Input{Scores: scores.Scores, Merge: merge.Merge}, consensus.ErrBug},
		"neither is nothing": {machine(t, config(0), 0), consensus.Input{}, consensus.ErrBug},
	} {
		if err := c.m.Input(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if c.want == nil && !errors.Is(c.m.Input(c.in), consensus.ErrIgnore) {
			t.Errorf("%s: taken twice", name)
		}
		if name == "invalid" && len(drain(c.m).Send) > 0 {
			t.Error("a commit to invalid scores is on its way")
		}
	}
}

// TestProposers: a fixed draw, which every implementation must repeat; all validators once; by stake.
func TestProposers(t *testing.T) {
	s := config(0).Snapshot
	s.Participants[3].Stake = 0
	got := consensus.Proposers(protocol.Hash{1}, protocol.InstanceW, s, 10)
	if want := []protocol.ID{id(1), id(0), id(2)}; !slices.Equal(got, want) {
		t.Errorf("drew %v", got)
	}
	s.Participants[0].Stake = 30
	first := 0
	for i := range 1000 {
		seed := protocol.Hash{byte(i), byte(i >> 8)}
		if consensus.Proposers(seed, protocol.InstanceM, s, 1)[0] == id(0) {
			first++
		}
	}
	if first < 700 || first > 800 { // 30 of 40
		t.Errorf("three quarters of the stake were first %d times of 1000", first)
	}
	if got := consensus.Proposers(protocol.Hash{}, protocol.InstanceW, protocol.Snapshot{}, 3); got != nil {
		t.Errorf("nobody has stake, drew %v", got)
	}
}

func TestEnvelope(t *testing.T) {
	_, vm := vectors(t, 1)
	back, err := consensus.DecodeMessage(vm[0].Encode())
	if err != nil || back.Kind != vm[0].Kind || !bytes.Equal(back.Bytes, vm[0].Bytes) {
		t.Fatal(back, err)
	}
	if cycle, ok := back.Cycle(); !ok || cycle != 3 {
		t.Error(cycle, ok)
	}
	for _, b := range [][]byte{nil, {6}, {0, 1}, {11, 1}, make([]byte, consensus.MaxMessage+1)} {
		if _, err := consensus.DecodeMessage(b); !errors.Is(err, consensus.ErrPeer) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
	if _, err := consensus.NewMessage(config(0).Snapshot); !errors.Is(err, consensus.ErrBug) {
		t.Error(err)
	}
}

// FuzzStep gives hostile bytes to machines of both instances in the middle of their work: no crash, typed errors, and
// nothing that a peer says makes a validator contradict itself.
func FuzzStep(f *testing.F) {
	v, vm := vectors(f, 3)
	p := proposal(f, 0, v...)
	seeds := append(vm, signed(f, 0, p), signed(f, 1, prepare(1, p)), signed(f, 0, prepare(0, p)), signed(f, 1, vote(1, p)), signed(f, 1, null(1)),
		message(f, *lockOn(f, p, 0, 0, 1, 2)))
	for _, m := range seeds {
		f.Add(m.Encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, cfg := range []consensus.Config{config(3), scoring(3)} {
			m, err := consensus.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			m.Tick(turn)
			for _, s := range seeds {
				_ = m.Step(s)
			}
			msg, err := consensus.DecodeMessage(b)
			if err == nil {
				err = m.Step(msg)
			}
			if err != nil && !errors.Is(err, consensus.ErrPeer) && !errors.Is(err, consensus.ErrIgnore) {
				t.Fatal(err)
			}
			m.Tick(deadline)
			r := drain(m)
			if r.Output == nil {
				t.Fatal("no output")
			}
			var own []protocol.Signed
			for _, b := range r.Persist {
				if msg, err := consensus.DecodeMessage(b); err == nil {
					if record, err := msg.Record(); err == nil {
						if s, ok := record.(protocol.Signed); ok && s.Signer() == cfg.Self {
							own = append(own, s)
						}
					}
				}
			}
			for i, a := range own {
				for _, b := range own[:i] {
					if p, err := protocol.NewEquivocationProof(a, b); err == nil {
						t.Fatalf("signed %s", p.Kind)
					}
				}
			}
		}
	})
}
