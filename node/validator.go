package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/content"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/validation"
)

// round is a validator's work on one cycle.
type round struct {
	n        *Node
	t        timeline
	snapshot protocol.Snapshot
	phi      *local.Phi
	parent   protocol.Hash
	custody  *custody
	beacons  []validation.Beacon
	subs     []local.Submission

	mu   sync.Mutex
	next map[string]*local.Phi // what follows, by scale of the grid and groups
	set  []local.Accepted      // what M may merge, once W is certified
	// scores are this validator's own, once measured
	scores *protocol.ScoreVector
}

// validate runs one cycle as a validator and returns what it decided. It ends at D_M at the latest.
func (n *Node) validate(ctx context.Context, t timeline, s protocol.Snapshot, p *local.Phi, c *custody) (consensus.Output, error) {
	r := &round{n: n, t: t, snapshot: s, phi: p, parent: n.parent, custody: c, next: map[string]*local.Phi{}}
	run, err := n.agreement(ctx, t, s, protocol.InstanceW, r.parent, t.Evaluate, r.deriveWeights)
	if err != nil {
		return consensus.Output{}, err
	}
	defer n.follow(t, run)
	if err := n.until(ctx, t.at(t.Custody)); err != nil {
		return consensus.Output{}, err
	}
	c.fetch.Wait()
	n.event(Event{Kind: Phase, Cycle: t.cycle, Text: "custody"})
	own := c.list()
	if err := own.Sign(n.cfg.Key); err != nil {
		return consensus.Output{}, err
	}
	c.addList(own)
	if m, err := consensus.NewMessage(own); err != nil {
		return consensus.Output{}, err
	} else if err := run.Receive(m.Encode()); err != nil {
		n.trouble(t.cycle, fmt.Errorf("own list: %w", err))
	}
	for _, p := range c.proofs() { // everybody must see why the commitments are void
		if m, err := consensus.NewMessage(p); err == nil {
			_ = run.Receive(m.Encode()) // it sends what is new
			err = validators{n}.Send(ctx, m.Encode())
			if err != nil {
				n.trouble(t.cycle, err)
			}
		}
	}
	if err := n.publishList(ctx, own); err != nil {
		n.trouble(t.cycle, err)
	}
	if err := r.open(ctx); err != nil {
		return consensus.Output{}, err
	}
	w, err := r.agreeWeights(ctx, run, own)
	if err != nil {
		return consensus.Output{}, err
	}
	if w.Certificate != nil {
		n.learn(*w.Certificate)
	}
	r.submit(w)
	for w.Outcome != consensus.Certified { // no CERT_W, no M; one that comes late still lets this validator help to end M
		late, cancel := context.WithDeadline(ctx, t.at(t.M))
		w, err = run.Run(late)
		cancel()
		if err != nil {
			return consensus.Output{}, ctx.Err()
		}
	}
	return r.agreeMerge(ctx, w)
}

// open waits for the beacon, opens every timely submission and draws the samples' randomness.
func (r *round) open(ctx context.Context) error {
	sig, err := r.n.beacon.Signature(ctx, r.t.openRound())
	if err != nil {
		return fmt.Errorf("beacon round %d: %w", r.t.openRound(), err)
	}
	r.n.event(Event{Kind: Phase, Cycle: r.t.cycle, Text: "open"})
	for _, p := range r.snapshot.Participants {
		if !p.Roles.Has(protocol.RoleMiner) {
			continue
		}
		s := r.opened(ctx, p, sig)
		if s.Reason != "" {
			r.n.event(Event{Kind: Reason, Cycle: r.t.cycle, Miner: p.ID, Text: s.Reason})
		}
		r.subs = append(r.subs, s)
	}
	r.beacons, err = r.n.drawBeacons(ctx, r.t)
	return err
}

// opened is a miner's submission as the lists and its bytes have it.
func (r *round) opened(ctx context.Context, p protocol.Participant, sig []byte) local.Submission {
	s := local.Submission{Miner: p.ID, Group: p.Group}
	var link protocol.Link
	if link, s.Status, s.Reason = r.custody.verdict(p.ID); s.Status != protocol.StatusOK {
		return s
	}
	d, size, err := r.decode(ctx, p, link, sig)
	s.Bytes = size
	if err != nil {
		s.Status, s.Reason = protocol.StatusInvalid, err.Error()
		return s
	}
	s.Delta = d
	return s
}

func (r *round) decode(ctx context.Context, p protocol.Participant, link protocol.Link, sig []byte) (*delta.Delta, int64, error) {
	ctx, cancel := context.WithDeadline(ctx, r.t.at(r.t.Evaluate))
	defer cancel()
	get := r.n.blocksIn(ctx)
	raw, err := get(link.Cid())
	if err != nil {
		return nil, 0, err
	}
	m, err := protocol.DecodeManifest(raw)
	if err != nil {
		return nil, 0, err
	}
	size := int64(m.SealedSize())
	if m.Network != r.n.cfg.Network || m.Cycle != r.t.cycle || m.Base != r.phi.Link || m.Group != p.Group || m.Miner != p.ID || m.Round != r.t.openRound() {
		return nil, size, errors.New("the manifest is for another network, cycle, base, group, miner or round")
	}
	seed, err := beacon.Unlock(r.n.on.Public, sig, m.LockedSeed)
	if err != nil {
		return nil, size, err
	}
	payload, err := content.Open(m, seed, r.n.payloadLimit(), get)
	if err != nil {
		return nil, size, err
	}
	want, err := r.n.local.Expect(r.phi, p.Group)
	if err != nil {
		return nil, size, err
	}
	d, err := delta.DecodePayload(m.Header(), payload, want)
	return d, size, err
}

// drawBeacons is the randomness of this cycle's draw and those of the cycles before that exclude samples.
func (n *Node) drawBeacons(ctx context.Context, t timeline) ([]validation.Beacon, error) {
	var out []validation.Beacon
	perCycle := uint64(t.schedule.CycleBlocks) * uint64(n.on.BlockPeriod/n.on.Clock.Period)
	for k := uint64(0); k <= uint64(n.genesis.Params.ExcludeCycles) && k <= t.cycle; k++ {
		sig, err := n.beacon.Signature(ctx, t.drawRound()-k*perCycle)
		if err != nil {
			return nil, fmt.Errorf("beacon round %d: %w", t.drawRound()-k*perCycle, err)
		}
		out = append(out, validation.Beacon(beacon.Randomness(sig)))
	}
	return out, nil
}

// agreeWeights measures, commits to the scores and runs instance W.
func (r *round) agreeWeights(ctx context.Context, run *agreementRun, own protocol.List) (consensus.Output, error) {
	r.n.event(Event{Kind: Phase, Cycle: r.t.cycle, Text: "evaluate"})
	done := make(chan struct{})
	go func() {
		defer close(done)
		v := protocol.ScoreVector{List: own.Digest()}
		var err error
		if v.Groups, err = r.measure(ctx); err != nil {
			r.n.trouble(r.t.cycle, err)
			return
		}
		r.n.event(Event{Kind: Scored, Cycle: r.t.cycle, Rows: v.Groups})
		if r.n.cfg.Behaviour.Byzantine == Lie {
			v.Groups = lies(v.Groups)
		}
		own := v
		r.mu.Lock()
		r.scores = &own
		r.mu.Unlock()
		if v.Salt, err = salt(); err == nil {
			err = run.Input(consensus.Input{Scores: &v})
		}
		if err != nil {
			r.n.trouble(r.t.cycle, err)
		}
	}()
	out, err := run.Run(ctx)
	if err == nil {
		r.n.agreed(r.t.cycle, run, out.Outcome)
		if out.Certificate != nil {
			r.n.announce(*out.Certificate)
		}
	}
	<-done
	if err != nil {
		return out, err
	}
	e := Event{Kind: Decided, Cycle: r.t.cycle, Certified: out.Outcome == consensus.Certified,
		Decision: r.n.cfg.Now().Sub(r.t.at(r.t.Evaluate))}
	if out.Certificate != nil {
		e.Rounds = int(out.Certificate.Round) + 1
	}
	if out.Value != nil && out.Value.Weights != nil {
		e.Weights = out.Value.Weights.Weights
	}
	r.n.event(e)
	return out, nil
}

func (r *round) deriveWeights(s consensus.Set) (protocol.Value, error) {
	not, err := refused(r.snapshot, s)
	if err != nil {
		return protocol.Value{}, err
	}
	return deriveWeights(r.snapshot, r.n.genesis, s.Scores, not)
}

// commitTime is what committing to the scores takes: measuring ends that long before T_e.
const commitTime = 300 * time.Millisecond

// measure scores every submission of every group, by the deadline. A group not finished by then has notscored rows.
func (r *round) measure(ctx context.Context) ([]protocol.GroupRows, error) {
	ctx, cancel := context.WithDeadline(ctx, r.t.at(r.t.Evaluate).Add(-commitTime))
	defer cancel()
	var out []protocol.GroupRows
	r.n.measuring(r.t.cycle, scored(r.n.genesis.Params, r.deltas()))
	for _, g := range r.n.genesis.Groups {
		var mine []local.Submission
		for _, s := range r.subs {
			if s.Group == g.Name {
				mine = append(mine, s)
			}
		}
		if len(mine) == 0 {
			continue
		}
		rows, err := r.n.local.Score(ctx, r.phi, g.Name, r.t.cycle, r.beacons, mine, r.n.threads())
		if errors.Is(err, context.DeadlineExceeded) {
			rows = nil
			for _, s := range mine {
				status := s.Status
				if status == protocol.StatusOK {
					status = protocol.StatusNotScored
				}
				rows = append(rows, protocol.Row{Miner: s.Miner, Status: status})
			}
		} else if err != nil {
			return nil, err
		}
		slices.SortFunc(rows, func(a, b protocol.Row) int { return a.Miner.Compare(b.Miner) })
		out = append(out, protocol.GroupRows{Group: g.Name, Rows: rows})
	}
	return out, nil
}

// deltas counts what there is to measure in each group.
func (r *round) deltas() []int {
	count := map[string]int{}
	for _, s := range r.subs {
		if s.Status == protocol.StatusOK {
			count[s.Group]++
		}
	}
	return slices.Collect(maps.Values(count))
}

// agreeMerge searches the scale of the step that W certified and runs instance M.
func (r *round) agreeMerge(ctx context.Context, w consensus.Output) (consensus.Output, error) {
	r.n.event(Event{Kind: Phase, Cycle: r.t.cycle, Text: "merge"})
	r.mu.Lock()
	r.set = r.accepted(w.Value.Weights.Weights)
	r.mu.Unlock()
	run, err := r.n.agreement(ctx, r.t, r.snapshot, protocol.InstanceM, w.Certificate.Decision(), r.t.Search, r.deriveMerge)
	if err != nil {
		return consensus.Output{}, err
	}
	defer r.n.follow(r.t, run)
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err := r.search(ctx)
		if err == nil {
			err = run.Input(consensus.Input{Merge: &v})
		}
		if err != nil {
			r.n.trouble(r.t.cycle, err)
		}
	}()
	out, err := run.Run(ctx)
	if err == nil {
		r.n.agreed(r.t.cycle, run, out.Outcome)
		if out.Certificate != nil {
			r.n.announce(*out.Certificate)
		}
	}
	<-done
	return out, err
}

// accepted are the deltas that W gave a part of their group.
func (r *round) accepted(weights []protocol.MinerWeight) []local.Accepted {
	var out []local.Accepted
	for _, w := range weights {
		for _, s := range r.subs {
			if s.Miner == w.Miner && w.Part > 0 && s.Delta != nil {
				out = append(out, local.Accepted{Miner: w.Miner, Group: w.Group, Delta: s.Delta, Points: w.Part})
			}
		}
	}
	return out
}

// search measures the joint step at every scale and picks the best acceptable one.
func (r *round) search(ctx context.Context) (protocol.MergeVector, error) {
	var v protocol.MergeVector
	ctx, cancel := context.WithDeadline(ctx, r.t.at(r.t.Search))
	defer cancel()
	if len(r.set) == 0 {
		return v, errors.New("nothing to merge")
	}
	s, err := r.n.local.NewSearch(ctx, r.phi, r.t.cycle, r.beacons, r.n.threads())
	if err != nil {
		return v, err
	}
	v, err = searchMerge(r.n.genesis, r.set, func(set []local.Accepted) (protocol.MergeMeasure, error) {
		r.n.measuring(r.t.cycle, searched(r.n.genesis))
		return s.Measure(ctx, set)
	})
	if err == nil && v.Alpha > 0 && ctx.Err() == nil { // now: while the agreement runs there is little time for a disk
		_, err = r.make(int(v.Alpha), v.Measure.Groups, s.Advance)
	}
	return v, err
}

func (r *round) deriveMerge(s consensus.Set) (protocol.Value, error) {
	return deriveMerge(r.snapshot, r.n.genesis, r.phi.Link, groupsOf(r.set), s.Merges, r.write)
}

// write makes Φ + α·M of some groups once per scale, publishes its blocks and returns its link. All honest validators
// measure the same samples, so only one scale is ever asked for, unless somebody did not finish in time.
func (r *round) write(alpha int, groups []string) (protocol.Link, error) {
	return r.make(alpha, groups, func(alpha protocol.Rational, dir, from string, emit func(blocks.Block) error) (*local.Phi, error) {
		return r.n.local.Advance(r.phi, joining(r.set, groups), alpha, dir, from, emit)
	})
}

func (r *round) make(alpha int, groups []string, advance func(alpha protocol.Rational, dir, from string, emit func(blocks.Block) error) (*local.Phi, error)) (protocol.Link, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := fmt.Sprint(alpha, groups)
	if p, ok := r.next[name]; ok {
		return p.Link, nil
	}
	n := r.n
	dir := filepath.Join(n.cfg.Dir, "merging")
	if err := os.RemoveAll(dir); err != nil {
		return protocol.Link{}, err
	}
	publisher := exchange.NewPublisher(n.running, n.content)
	p, err := advance(n.genesis.Params.AlphaGrid[alpha], dir, n.content.checkpointDir(r.phi.Link), publisher.Add)
	if err == nil {
		err = publisher.Flush()
	}
	if err == nil {
		err = n.content.keep(dir, p.Link)
	}
	if err != nil {
		return protocol.Link{}, err
	}
	r.next[name] = p
	n.made(p)
	return p.Link, nil
}

// weights are what this validator puts on chain: certified, or else what follows from the vectors that arrived, or else, if
// those were too few, from its own scores, mixed with the last certified weights.
func (r *round) weights(w consensus.Output) []protocol.MinerWeight {
	if w.Value != nil && w.Value.Weights != nil {
		return w.Value.Weights.Weights
	}
	var mixed []protocol.MinerWeight
	r.mu.Lock()
	own := r.scores
	r.mu.Unlock()
	if own != nil {
		own.Validator = r.n.cfg.ID
		if value, err := deriveWeights(r.snapshot, r.n.genesis, []protocol.ScoreVector{*own}, nil); err == nil {
			mixed = append(mixed, value.Weights.Weights...)
		}
	}
	if c, ok := r.n.history.lastWeights(); ok {
		mixed = append(mixed, c.Proposal.Value.Weights.Weights...) // a miner's weights are summed
	}
	return mixed
}

// submit puts the weights on chain, whatever was decided, and never waits past the end of the cycle.
func (r *round) submit(w consensus.Output) {
	n, t := r.n, r.t
	weights := r.weights(w)
	if len(weights) == 0 {
		n.trouble(t.cycle, errors.New("no weights to submit: nothing was measured here, and none were ever certified"))
		return
	}
	x := protocol.Submission{Version: protocol.Version, Network: n.cfg.Network, Cycle: t.cycle, Validator: n.cfg.ID,
		Weights: protocol.ScaleU16(weights)}
	if err := x.Sign(n.cfg.Key); err != nil {
		n.trouble(t.cycle, err)
		return
	}
	n.background.Go(func() {
		ctx, cancel := context.WithDeadline(n.running, t.at(t.End)) // not the cycle's: it may be over sooner
		defer cancel()
		if err := n.on.Client.Submit(ctx, x); err != nil && ctx.Err() == nil {
			n.trouble(t.cycle, fmt.Errorf("submit weights: %w", err))
		} else if err == nil {
			n.event(Event{Kind: Submitted, Cycle: t.cycle})
		}
	})
}
