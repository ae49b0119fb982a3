package devnet

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node"
	"github.com/blockzero-net/bzd/node/local"
)

// Result is what a run came to. Losses are nats per byte on the fixed probe.
type Result struct {
	Cycles     []Cycle       `json:"cycles"`
	Checkpoint protocol.Link `json:"checkpoint"`
	Gateway    string        `json:"gateway"`
	Seconds    float64       `json:"seconds"`
	Cost       *Cost         `json:"cost,omitempty"` // nil where it cannot be measured
}

// Cycle is one cycle of a run.
type Cycle struct {
	Cycle        uint64             `json:"cycle"`
	Base         protocol.Link      `json:"base"`
	Next         protocol.Link      `json:"next"`
	Certified    bool               `json:"certified"`
	DecisionMs   int64              `json:"decision_ms"`
	Rounds       int                `json:"rounds"`    // of the agreement on weights; 0 without a certificate
	Submitted    int                `json:"submitted"` // validators whose weights were on chain in time
	Alpha        float64            `json:"alpha"`
	CanaryBefore float64            `json:"canary_before"`
	CanaryAfter  float64            `json:"canary_after"`
	Groups       []Group            `json:"groups"`
	Submissions  []Submission       `json:"submissions"`
	Weights      map[string]float64 `json:"weights"`
	Excluded     []string           `json:"excluded,omitempty"` // groups left out of the merge
	Agreed       bool               `json:"agreed"`             // all validators that take part have the same next checkpoint
	// Agreements are the instances as the first validator that certified, else any, saw them.
	Agreements []node.Agreement `json:"agreements"`
}

// Group is a group's domain before and after.
type Group struct {
	Group  string  `json:"group"`
	Before float64 `json:"loss_before"`
	After  float64 `json:"loss_after"`
}

// Submission is one miner's outcome.
type Submission struct {
	Miner      string          `json:"miner"`
	Group      string          `json:"group"`
	Status     protocol.Status `json:"status"`
	Reason     string          `json:"reason"`
	Gain       float64         `json:"gain"`
	Bytes      int64           `json:"bytes"`
	DenseBytes int64           `json:"dense_bytes"`
}

// reporter collects the nodes' events into cycles.
type reporter struct {
	w *network

	mu     sync.Mutex
	open   map[uint64]*gathering
	done   []Cycle
	last   map[string]float64 // probe losses before the next cycle
	base   protocol.Link
	notify chan struct{}
}

// gathering is a cycle under way.
type gathering struct {
	advanced  map[string]node.Event // by member
	submitted int
	decided   *node.Event               // of the first validator that certified, else of any
	agreed    map[string]node.Agreement // likewise, by instance
	rows      map[protocol.ID]protocol.Row
	reasons   map[protocol.ID]string
	bytes     map[string]int64
}

func newReporter(w *network) *reporter {
	return &reporter{w: w, open: map[uint64]*gathering{}, base: w.genesis.Checkpoint, notify: make(chan struct{}, 1)}
}

// event is called by every node.
func (r *reporter) event(m *member, e node.Event) {
	if r.w.Event != nil {
		r.w.Event(m.name, e)
	}
	switch e.Kind {
	case node.Committed, node.Reason, node.Scored, node.Decided, node.Agreed, node.Submitted, node.Advanced:
	default:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.open[e.Cycle]
	if g == nil {
		g = &gathering{advanced: map[string]node.Event{}, agreed: map[string]node.Agreement{}, rows: map[protocol.ID]protocol.Row{}, reasons: map[protocol.ID]string{}, bytes: map[string]int64{}}
		r.open[e.Cycle] = g
	}
	switch e.Kind {
	case node.Committed:
		g.bytes[m.name] = e.Bytes
	case node.Reason:
		g.reasons[e.Miner] = e.Text
	case node.Scored:
		for _, rows := range e.Rows {
			for _, row := range rows.Rows {
				if old, ok := g.rows[row.Miner]; !ok || old.Status != protocol.StatusOK {
					g.rows[row.Miner] = row
				}
			}
		}
	case node.Decided:
		if g.decided == nil || e.Certified && !g.decided.Certified {
			g.decided = &e
		}
	case node.Agreed:
		if old, ok := g.agreed[e.Agreement.Instance]; !ok || old.Decided == 0 && e.Agreement.Decided > 0 {
			g.agreed[e.Agreement.Instance] = *e.Agreement
		}
	case node.Submitted:
		g.submitted++
	case node.Advanced:
		g.advanced[m.name] = e
	}
	select {
	case r.notify <- struct{}{}:
	default:
	}
}

// watch reports cycles in order until the last is complete, or every node has ended.
func (r *reporter) watch(ctx context.Context, ended <-chan struct{}) error {
	for next := r.w.first; next < r.w.first+uint64(r.w.Cycles); {
		if g := r.complete(next); g != nil {
			c, err := r.cycle(ctx, next, g)
			if err != nil {
				return err
			}
			r.mu.Lock()
			r.done = append(r.done, c)
			delete(r.open, next)
			r.mu.Unlock()
			if r.w.Done != nil {
				r.w.Done(c)
			}
			next++
			continue
		}
		select {
		case <-r.notify:
		case <-ended:
			if r.complete(next) == nil {
				return ctx.Err()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// complete returns a cycle that every node that takes part has ended, nil before.
func (r *reporter) complete(cycle uint64) *gathering {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.open[cycle]
	if g == nil {
		return nil
	}
	for _, m := range append([]*member{r.w.seed}, r.w.members...) {
		if _, ok := g.advanced[m.name]; !ok && !m.offline {
			return nil
		}
	}
	return g
}

// cycle makes the report of a complete cycle, measuring the probe on its checkpoint.
func (r *reporter) cycle(ctx context.Context, t uint64, g *gathering) (Cycle, error) {
	c := Cycle{Cycle: t, Base: r.base, Next: r.base, CanaryBefore: r.last[r.w.genesis.Canary], Weights: map[string]float64{}, Agreed: true}
	var holder string
	for _, m := range r.w.members {
		if m.offline || !m.roles.Has(protocol.RoleValidator) {
			continue
		}
		e := g.advanced[m.name]
		if holder == "" {
			holder, c.Next, c.Certified = m.name, e.Next, e.Certified
			c.Alpha, c.Excluded = float64(e.Alpha.Num)/float64(e.Alpha.Den), e.Excluded
		} else if e.Next != c.Next {
			c.Agreed = false
		}
	}
	before := r.last
	if c.Next != r.base {
		phi, err := local.LoadPhi(r.w.backend, filepath.Join(r.w.Dir, holder, "checkpoints", c.Next.String()))
		if err != nil {
			return c, fmt.Errorf("checkpoint of cycle %d: %w", t, err)
		}
		if r.last, err = r.w.local.Probe(ctx, phi, 1); err != nil {
			return c, err
		}
		r.base = c.Next
	}
	c.CanaryAfter = r.last[r.w.genesis.Canary]
	for _, x := range r.w.genesis.Groups {
		c.Groups = append(c.Groups, Group{x.Name, before[x.Domain], r.last[x.Domain]})
	}
	r.mu.Lock()
	c.Submitted = g.submitted
	for _, instance := range []protocol.Instance{protocol.InstanceW, protocol.InstanceM} {
		if a, ok := g.agreed[instance.String()]; ok {
			c.Agreements = append(c.Agreements, a)
		}
	}
	r.mu.Unlock()
	r.submissions(&c, g)
	return c, nil
}

// submissions fills in what became of every miner.
func (r *reporter) submissions(c *Cycle, g *gathering) {
	var weights []protocol.MinerWeight
	if g.decided != nil {
		c.DecisionMs, c.Rounds, weights = g.decided.Decision.Milliseconds(), g.decided.Rounds, g.decided.Weights
	}
	for _, m := range r.w.members {
		if !m.roles.Has(protocol.RoleMiner) {
			continue
		}
		s := Submission{Miner: m.name, Group: m.group, Status: protocol.StatusNotScored, Reason: g.reasons[m.id], Bytes: g.bytes[m.name], DenseBytes: r.dense(m.group)}
		if row, ok := g.rows[m.id]; ok {
			s.Status, s.Gain = row.Status, float64(row.Gain)/1e9
		}
		if i := slices.IndexFunc(weights, func(w protocol.MinerWeight) bool { return w.Miner == m.id }); i >= 0 {
			s.Status = weights[i].Status
			c.Weights[m.name] = float64(weights[i].Weight) / protocol.WeightTotal
		}
		c.Submissions = append(c.Submissions, s)
	}
}

// dense is the size of a group's tensors in bf16.
func (r *reporter) dense(group string) int64 {
	for _, g := range r.w.genesis.Groups {
		if g.Name == group {
			return 2 * int64(len(g.Experts)) * r.w.perExpert
		}
	}
	return 0
}

func (r *reporter) result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Result{Cycles: append([]Cycle{}, r.done...), Checkpoint: r.base}
}
