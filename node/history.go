package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// slot is where a certificate belongs: there is one decision per cycle and instance.
type slot struct {
	cycle    uint64
	instance protocol.Instance
}

func (s slot) file() string { return fmt.Sprintf("%08d-%s.cbor", s.cycle, s.instance) }

// history is the certificates that a node has verified, of both instances, null ones too, as files. It is safe for
// concurrent use.
type history struct {
	dir string

	mu        sync.Mutex
	decisions map[slot]protocol.Hash
	slots     map[protocol.Hash]slot
	prepared  map[protocol.Hash]prepared // merges, by their decision
	changed   chan struct{}              // closed when a certificate is added
}

// Errors of a history.
var (
	// errFork: two quorums contradict each other, which takes a third of the stake to be dishonest.
	errFork = errors.New("two certificates contradict each other")
	// errLineage: a certificate does not rest on genesis.
	errLineage = errors.New("no lineage")
	// errNoCertificate: neither here nor at a peer.
	errNoCertificate = errors.New("no such certificate")
)

// openHistory reads what the directory holds.
func openHistory(dir string) (*history, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.cbor"))
	if err != nil {
		return nil, err
	}
	h := &history{dir: dir, decisions: map[slot]protocol.Hash{}, slots: map[protocol.Hash]slot{}, changed: make(chan struct{})}
	if h.prepared, err = readPrepared(dir); err != nil {
		return nil, err
	}
	for _, f := range files {
		c, err := readCertificate(f)
		if err != nil {
			return nil, err
		}
		s := slot{c.Cycle, c.Instance}
		if s.file() != filepath.Base(f) {
			return nil, fmt.Errorf("%s holds the certificate of %s of cycle %d", f, c.Instance, c.Cycle)
		}
		h.decisions[s], h.slots[c.Decision()] = c.Decision(), s
	}
	return h, nil
}

func readCertificate(file string) (protocol.Certificate, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return protocol.Certificate{}, err
	}
	c, err := protocol.DecodeCertificate(raw)
	if err != nil {
		return c, fmt.Errorf("%s is no certificate: %w", file, err)
	}
	return c, nil
}

// keep writes a verified certificate; fresh reports that its decision was not known. Another decision in its place is an
// errFork, and the first one stands.
func (h *history) keep(c protocol.Certificate) (fresh bool, err error) {
	s, decision := slot{c.Cycle, c.Instance}, c.Decision()
	raw, err := protocol.Encode(c)
	if err != nil {
		return false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.decisions[s]; ok {
		if old != decision {
			return false, fmt.Errorf("cycle %d, %s: %w", c.Cycle, c.Instance, errFork)
		}
		return false, nil
	}
	path := filepath.Join(h.dir, s.file())
	if err := os.WriteFile(path+".new", raw, 0o644); err != nil {
		return false, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return false, err
	}
	h.decisions[s], h.slots[decision] = decision, s
	close(h.changed)
	h.changed = make(chan struct{})
	return true, nil
}

// at returns the certificate of a slot, and a channel that is closed when another one is added.
func (h *history) at(s slot) (c protocol.Certificate, ok bool, changed <-chan struct{}) {
	h.mu.Lock()
	_, ok = h.decisions[s]
	changed = h.changed
	h.mu.Unlock()
	if !ok {
		return c, false, changed
	}
	c, err := readCertificate(filepath.Join(h.dir, s.file()))
	return c, err == nil, changed
}

// of returns the certificate of a decision, or without signatures what stands for it in a lineage if it was prepared only.
func (h *history) of(decision protocol.Hash) (protocol.Certificate, error) {
	h.mu.Lock()
	s, ok := h.slots[decision]
	p, also := h.prepared[decision]
	h.mu.Unlock()
	switch {
	case !ok && also:
		return p.certificate(), nil
	case !ok:
		return protocol.Certificate{}, errNoCertificate
	}
	return readCertificate(filepath.Join(h.dir, s.file()))
}

// raw returns a certificate as it is sent, nil if it is not here. An error is the disk's.
func (h *history) raw(s slot) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(h.dir, s.file()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}

// merges returns the cycles with a certificate of instance M, null or not, the last first.
func (h *history) merges() []uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	var cycles []uint64
	for s := range h.decisions {
		if s.instance == protocol.InstanceM {
			cycles = append(cycles, s.cycle)
		}
	}
	slices.Sort(cycles)
	slices.Reverse(cycles)
	return cycles
}

// lastWeights returns the last certified weights.
func (h *history) lastWeights() (c protocol.Certificate, ok bool) {
	h.mu.Lock()
	var cycles []uint64
	for s := range h.decisions {
		if s.instance == protocol.InstanceW {
			cycles = append(cycles, s.cycle)
		}
	}
	h.mu.Unlock()
	slices.Sort(cycles)
	for _, cycle := range slices.Backward(cycles) {
		if c, ok, _ = h.at(slot{cycle, protocol.InstanceW}); ok && !c.Null() {
			return c, true
		}
	}
	return c, false
}

// last returns the certificate of the last merge that rests on genesis by certificates that are all here; nil if there
// is none.
func (h *history) last() *protocol.Certificate {
	for _, cycle := range h.merges() {
		c, ok, _ := h.at(slot{cycle, protocol.InstanceM})
		if !ok || c.Null() {
			continue
		}
		if _, err := lineage(c, protocol.Hash{}, h.of); err == nil {
			return &c
		}
	}
	return nil
}

// lineage walks from the certificate of a merge to the decisions that it rests on: the weights of its cycle, the merge
// before, and so on, until one rests on the decision until, or on nothing, as the first one of a network does. It reports
// which. find returns verified certificates by their decision. Every step is to an earlier cycle, so it ends.
func lineage(c protocol.Certificate, until protocol.Hash, find func(protocol.Hash) (protocol.Certificate, error)) (met bool, err error) {
	if c.Null() || c.Instance != protocol.InstanceM {
		return false, fmt.Errorf("%w: cycle %d: not the certificate of a merge", errLineage, c.Cycle)
	}
	for {
		w, err := find(c.Parent)
		if err != nil {
			return false, fmt.Errorf("%w: weights of cycle %d: %w", errLineage, c.Cycle, err)
		}
		if w.Null() || w.Instance != protocol.InstanceW || w.Cycle != c.Cycle {
			return false, fmt.Errorf("%w: the merge of cycle %d rests on no weights of that cycle", errLineage, c.Cycle)
		}
		switch {
		case w.Parent == until:
			return true, nil
		case w.Parent.IsZero():
			return false, nil
		}
		before, err := find(w.Parent)
		if err != nil {
			return false, fmt.Errorf("%w: before cycle %d: %w", errLineage, c.Cycle, err)
		}
		if before.Null() || before.Instance != protocol.InstanceM || before.Cycle >= c.Cycle {
			return false, fmt.Errorf("%w: cycle %d rests on no merge before it", errLineage, c.Cycle)
		}
		c = before
	}
}
