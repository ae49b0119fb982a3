package node

import (
	"sync"
	"time"

	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// beat is the shortest time between two events of one piece of work.
const beat = 100 * time.Millisecond

// progress returns what a fetch reports to. Of a directory or dataset nobody knows beforehand how many blocks it has:
// total is 0.
func (f *files) progress(what string, total int) func(exchange.Progress) {
	var last time.Time
	return func(p exchange.Progress) {
		if now := f.now(); p.MovedBlocks > 0 && now.Sub(last) >= beat {
			last = now
			f.report(Event{Kind: Fetching, Text: what, Done: p.Blocks, Total: total, Bytes: int64(p.MovedBytes)})
		}
	}
}

// fetched reports the end of a fetch and returns its error.
func (f *files) fetched(what string, p exchange.Progress, err error) error {
	if err == nil {
		f.report(Event{Kind: Fetched, Text: what, Done: p.MovedBlocks, Total: p.Blocks, Bytes: int64(p.MovedBytes)})
	}
	return err
}

// meter counts the sequences that a validator measures in one phase.
type meter struct {
	n     *Node
	cycle uint64

	mu          sync.Mutex
	done, total int
	last        time.Time
}

// measuring starts to count a phase of total sequences.
func (n *Node) measuring(cycle uint64, total int) {
	m := &meter{n: n, cycle: cycle, total: total}
	n.local.Measured = m.add
}

func (m *meter) add(sequences int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += sequences
	if now := m.n.cfg.Now(); m.done >= m.total || now.Sub(m.last) >= beat {
		m.last = now
		m.n.event(Event{Kind: Evaluating, Cycle: m.cycle, Done: min(m.done, m.total), Total: m.total})
	}
}

// scored is how many sequences the scores of submissions take: each group measures Φ once and every delta by itself.
func scored(p protocol.Params, perGroup []int) int {
	total := 0
	for _, deltas := range perGroup {
		if deltas > 0 {
			total += (1 + deltas) * int(p.ScoreSamples)
		}
	}
	return total
}

// searched is how many sequences a line search takes: every scale on every domain, the scale 0 once.
func searched(g protocol.Genesis) int {
	return len(g.Domains) * len(g.Params.AlphaGrid) * int(g.Params.MergeSamples)
}
