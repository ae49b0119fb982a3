package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/wire"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
	"github.com/blockzero-net/bzd/p2p/gossip"
)

// TestSync: a validator that comes late and a miner that was away find out where the network is, verify it back to genesis,
// and fetch no byte that they hold or that is out of date.
func TestSync(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some cycles")
	}
	t.Parallel() // mostly it waits
	r := newRig(t, 4)
	early := []string{"validator-1", "validator-2", "validator-3", "miner-ledger", "miner-math"}
	r.start(early...)
	r.begin()
	r.run("seed")
	r.run(early...)

	away := r.people["miner-math"]
	first := r.certified("miner-math", 0)
	r.leave(away)
	before := len(r.all(func(e said) bool { return true }))
	second := r.certified("validator-1", first.Cycle+2)
	for _, name := range early[1:3] { // before, some of the Heads that the late nodes hear are still those of the cycle before
		r.advanced(name, second.Cycle)
	}

	// The late validator: nothing of an older checkpoint is fetched, and every certificate is here and in order.
	r.start("validator-4", "miner-math")
	r.run("validator-4", "miner-math")
	third := r.certified("validator-4", second.Cycle+1)
	if got := r.advanced("validator-1", third.Cycle); got.Next != third.Next {
		t.Errorf("cycle %d: %s here, %s at validator-1", third.Cycle, third.Next, got.Next)
	}
	if scored := r.all(func(e said) bool { return e.name == "validator-4" && e.Kind == Scored }); len(scored) == 0 {
		t.Error("the late validator measured nothing")
	}
	fetched := func(name string) (bytes int64, moved []said) {
		moved = r.all(func(e said) bool { return e.name == name && e.Kind == Fetched && e.Text == "checkpoint" && e.Done > 0 })
		for _, e := range moved {
			bytes += e.Bytes
		}
		return bytes, moved
	}
	size := directory(t, r.people["validator-4"].node.content.checkpointDir(third.Next))
	// One checkpoint, and as often as it came too late for the cycle of that one, what the next changed; never a file twice.
	bytes, moved := fetched("validator-4")
	if most := size.all + int64(len(moved)-1)*size.changing; len(moved) < 1 || len(moved) > 3 || bytes > most+size.all/10 {
		t.Errorf("the late validator fetched %d bytes in %d checkpoints; one has %d, of which a merge changes %d", bytes, len(moved), size.all, size.changing)
	}
	t.Logf("joined in cycle %d; a checkpoint has %d bytes, of which a merge changes %d", third.Cycle, size.all, size.changing)
	h := r.people["validator-4"].node.history
	last := h.last()
	if last == nil || last.Cycle < second.Cycle {
		t.Fatalf("history ends at %+v", last)
	}
	if _, err := lineage(*last, protocol.Hash{}, h.of); err != nil {
		t.Error(err)
	}
	for c := uint64(0); c <= second.Cycle; c++ {
		want, ok, _ := r.people["validator-1"].node.history.at(slot{c, protocol.InstanceM})
		if !ok || want.Null() {
			continue
		}
		if got, err := h.of(want.Decision()); err != nil || got.Cycle != c {
			t.Errorf("the late validator has no certificate of cycle %d: %v", c, err)
		}
	}

	// The miner that was away: only what changed since it left.
	back := r.certified("miner-math", third.Cycle)
	if want := r.advanced("validator-1", back.Cycle); want.Next != back.Next {
		t.Errorf("cycle %d: the miner has %s, validator-1 %s", back.Cycle, back.Next, want.Next)
	}
	r.mu.Lock()
	events := r.events[before:]
	var since []said
	for _, e := range events {
		if e.name == "miner-math" && e.Kind == Fetched {
			since = append(since, e)
		}
	}
	r.mu.Unlock()
	for _, e := range since {
		t.Logf("the miner: %d of %d blocks of the %s moved, %d bytes", e.Done, e.Total, e.Text, e.Bytes)
		if e.Text != "checkpoint" && e.Done > 0 {
			t.Errorf("after its restart the miner fetched %d blocks of the %s again", e.Done, e.Text)
		}
		if e.Text == "checkpoint" && e.Bytes > size.changing+size.changing/10+4096 {
			t.Errorf("the miner fetched %d bytes of a checkpoint; %d can have changed", e.Bytes, size.changing)
		}
	}
	if len(since) == 0 {
		t.Error("the miner fetched no checkpoint")
	}
}

// sizes of a checkpoint's files in bytes: all of them, and those that a merge changes.
type sizes struct{ all, changing int64 }

func directory(t *testing.T, dir string) (s sizes) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %v", dir, files, err)
	}
	for _, f := range files {
		n := fileSize(t, f)
		s.all += n
		if m, _ := filepath.Match("hub-*", filepath.Base(f)); !m && filepath.Base(f) != "config.json" && filepath.Base(f) != "tokenizer.json" {
			s.changing += n
		}
	}
	return s
}

func fileSize(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestNullAndLies: cycles in which nobody proposes end with null certificates, which a late node finds; and what a
// participant says of the network without a quorum's word is not believed.
func TestNullAndLies(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some cycles")
	}
	t.Parallel() // mostly it waits
	// Of seven validators the two that are to propose vote for what they keep to themselves; the other five are a quorum.
	r := newRig(t, 7)
	var validators []string
	for i := range 7 {
		validators = append(validators, fmt.Sprintf("validator-%d", i+1))
		r.people[validators[i]].behaviour.Silent = true
	}
	r.start(validators...)
	r.begin()
	r.run("seed")
	r.run(validators...)
	carried := r.waitFor("null certificate at validator-1", func(e said) bool { return e.name == "validator-1" && e.Kind == Carried && e.Certified })

	// A liar: its Head names a merge that two of seven signed, and it answers every other question with garbage.
	forged := forge(t, r, carried.Cycle)
	raw, err := protocol.Encode(forged)
	r.check(err)
	b, err := blocks.NewBlockWithCid(raw, forged.Digest().Link().Cid())
	r.check(err)
	r.check(r.people["seed"].node.Store().PutMany(t.Context(), []blocks.Block{b}))
	liar := r.people["miner-math"]
	link := forged.Digest().Link()
	head := protocol.Head{Version: protocol.Version, Network: r.world.link, Cycle: forged.Cycle + 1, Checkpoint: forged.Proposal.Value.Merge.Next, Certificate: &link, ID: liar.id}
	r.check(head.Sign(liar.key))
	answer, err := protocol.Encode(head)
	r.check(err)
	asked := make(chan string, 1000)
	h := bareHost(t, r, liar)
	h.Handle(askHead, func(context.Context, peer.ID, []byte) ([]byte, error) { asked <- "head"; return answer, nil })
	h.Handle(askCertificate, func(_ context.Context, _ peer.ID, q []byte) ([]byte, error) { asked <- "certificate"; return raw, nil })

	r.start("miner-ledger")
	late := r.people["miner-ledger"].node
	for !slices.ContainsFunc(late.host.Peers(), func(p p2p.Peer) bool { return p.Peer == h.ID() }) {
		r.check(late.host.Connect(t.Context(), h.Addrs()[0]))
		r.check(beacon.Sleep(t.Context(), 50*time.Millisecond))
	}
	r.run("miner-ledger")
	found := r.waitFor("null certificate at the late miner", func(e said) bool { return e.name == "miner-ledger" && e.Kind == Carried && e.Certified })
	end := r.waitFor("end of a cycle at the late miner", func(e said) bool { return e.name == "miner-ledger" && e.Kind == Advanced })
	if found.Next != r.world.genesis.Checkpoint || end.Next != r.world.genesis.Checkpoint {
		t.Errorf("the late miner is at %s and %s, nothing but genesis was certified", found.Next, end.Next)
	}
	w, ok, _ := late.history.at(slot{found.Cycle, protocol.InstanceW})
	if !ok || !w.Null() {
		t.Errorf("no null certificate of cycle %d at the late miner", found.Cycle)
	}
	if _, err := late.history.of(forged.Decision()); err == nil {
		t.Error("the late miner keeps a certificate that no quorum signed")
	}
	if len(asked) == 0 {
		t.Error("nobody asked the liar")
	}
	r.waitFor("trouble with the liar's certificate", func(e said) bool {
		return e.name == "miner-ledger" && e.Kind == Trouble && strings.Contains(e.Text, link.String())
	})
}

// forge makes a certificate of a merge that two validators signed.
func forge(t *testing.T, r *rig, cycle uint64) protocol.Certificate {
	t.Helper()
	s, err := r.people["validator-1"].node.on.Client.Snapshot(t.Context(), startHeight(r.world.genesis.Params.Schedule, cycle))
	r.check(err)
	p := protocol.Proposal{Version: protocol.Version, Network: r.world.link, Cycle: cycle, Instance: protocol.InstanceM, Parent: protocol.Hash{7},
		Proposer: r.people["validator-1"].id, Vectors: []protocol.Hash{{1}},
		Value: protocol.Value{Merge: &protocol.MergeValue{Alpha: 1, Next: protocol.LinkTo(protocol.DagPB, []byte("evil"))}}}
	r.check(p.Sign(r.people["validator-1"].key))
	c := protocol.Certificate{Version: protocol.Version, Network: r.world.link, Cycle: cycle, Instance: protocol.InstanceM, Parent: p.Parent, Proposal: &p, Snapshot: s.Digest()}
	for _, name := range []string{"validator-1", "validator-2"} {
		v := protocol.Vote{Version: protocol.Version, Network: r.world.link, Cycle: cycle, Instance: protocol.InstanceM, Type: protocol.VoteCommit,
			Parent: p.Parent, Digest: p.Decision(), Validator: r.people[name].id}
		r.check(v.Sign(r.people[name].key))
		c.Signatures = append(c.Signatures, protocol.VoteSig{Validator: v.Validator, Sig: v.Sig})
	}
	slices.SortFunc(c.Signatures, func(a, b protocol.VoteSig) int { return a.Validator.Compare(b.Validator) })
	r.check(c.Validate())
	if err := c.Verify(s); !errors.Is(err, protocol.ErrQuorum) {
		t.Fatalf("a forged certificate: %v", err)
	}
	return c
}

// bareHost is a registered participant that speaks only what the test gives it.
func bareHost(t *testing.T, r *rig, p *person) *p2p.Host {
	t.Helper()
	h, err := p2p.New(p2p.Config{Network: r.world.link, KeyFile: filepath.Join(t.TempDir(), "key"), Listen: []string{"/ip4/127.0.0.1/tcp/0"},
		Bootstrap: r.seed, Clock: clock{time.Now}})
	r.check(err)
	t.Cleanup(func() { h.Close() })
	b, err := p2p.NewBinding(r.world.link, p.id, h.ID(), p.key)
	r.check(err)
	r.check(h.SetBinding(b))
	return h
}

// TestRepeats: a validator that was not there when a message was sent first gets it when it is repeated, though gossip,
// which has seen it, drops the repetition.
func TestRepeats(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a cycle")
	}
	t.Parallel() // mostly it waits
	r := newRig(t, 3)
	r.period = max(r.period, time.Second) // room between custody and the end
	r.start("validator-1", "validator-2")
	r.begin()
	r.run("validator-1", "validator-2", "seed")
	r.waitFor("list", func(e said) bool { return e.name == "validator-1" && e.Kind == Phase && e.Text == "open" })
	from := r.people["validator-1"].node
	from.custody.mu.Lock()
	list := from.custody.lists[r.people["validator-1"].id]
	from.custody.mu.Unlock()
	m, err := consensus.NewMessage(list)
	r.check(err)

	r.start("validator-3")
	late := r.people["validator-3"].node
	received := func(m consensus.Message) bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		same := func(v consensus.Valid) bool { return bytes.Equal(v.Message().Encode(), m.Encode()) }
		return slices.ContainsFunc(late.early, same)
	}
	r.run("validator-3")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !slices.ContainsFunc(from.agree.Peers(), func(p peer.ID) bool { return p == late.host.ID() }) || len(late.validatorPeers()) < 2 || len(from.validatorPeers()) < 2 {
		r.check(beacon.Sleep(ctx, 20*time.Millisecond))
	}
	r.check(from.agree.Publish(ctx, from.packing().Pack(m.Encode()))) // the same again by gossip alone
	r.check(beacon.Sleep(ctx, 300*time.Millisecond))
	if received(m) {
		t.Error("gossip brought a repetition; nothing else is needed")
	}
	r.check(validators{from}.Send(ctx, m.Encode()))
	for !received(m) {
		r.check(beacon.Sleep(ctx, 20*time.Millisecond))
	}
	if _, err := from.host.Request(ctx, late.host.ID(), tell, append(m.Encode(), 0)); !errors.Is(err, p2p.ErrRefused) {
		t.Errorf("a message that is no record: %v", err)
	}

	// A list that refers to manifests of which the late one has not heard: it asks who sent it. Nobody else has it, for it is
	// its own, of a life that it forgot.
	miner := r.people["validator-2"].id
	list.Validator, list.Entries = r.people["validator-3"].id, []protocol.ListEntry{
		{Miner: miner, Group: "go", Manifest: protocol.LinkTo(protocol.DagCBOR, nil), State: protocol.ListHeld},
	}
	r.check(list.Sign(r.people["validator-3"].key))
	m, err = consensus.NewMessage(list)
	r.check(err)
	for _, run := range from.current {
		_ = run.Receive(m.Encode()) // one of them takes it
	}
	from.packing().Know(protocol.Commitment{Cycle: list.Cycle, Miner: miner, Manifest: list.Entries[0].Manifest})
	whole, short := late.packing().PackWhole(m.Encode()), from.packing().Pack(m.Encode())
	if _, err := late.packing().Unpack(short); !errors.Is(err, wire.ErrCodec) {
		t.Errorf("a list that refers to what is not known: %v", err)
	}
	validators{from}.Tell(r.people["validator-3"].id, m.Encode())
	for !received(m) {
		r.check(beacon.Sleep(ctx, 20*time.Millisecond))
	}

	// What gossip makes of each way to send it, then.
	late.packing().Know(protocol.Commitment{Cycle: list.Cycle, Miner: miner, Manifest: list.Entries[0].Manifest})
	changed, unheard := bytes.Clone(whole), bytes.Clone(whole)
	changed[len(changed)-1] ^= 1
	unheard[1] ^= 1
	for _, x := range []struct {
		name   string
		packed []byte
		want   gossip.Verdict
	}{
		{"not packed", m.Encode(), gossip.Ignore},
		{"of a codec that is not known", unheard, gossip.Ignore},
		{"cut off", whole[:len(whole)-1], gossip.Reject},
		{"with something behind it", append(bytes.Clone(whole), 0), gossip.Reject},
		{"with a wrong signature", changed, gossip.Reject},
		{"in full", whole, gossip.Accept},
		{"again in other bytes", short, gossip.Ignore},
	} {
		if got := late.judgeMessage(ctx, from.host.ID(), x.packed); got != x.want {
			t.Errorf("a list %s: %v, want %v", x.name, got, x.want)
		}
	}
}
