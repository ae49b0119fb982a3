package blockstore

import (
	"crypto/sha256"
	"sync"
)

// holds keep from collection what is needed by work under way, which nothing may have pinned yet: what is put and what is
// found to be here, since the work will not put it again. Every hold begins a generation; what was met in the generation of
// the oldest open hold or later is kept.
type holds struct {
	mu    sync.Mutex
	now   uint64
	open  map[uint64]struct{}          // generations of the holds that are open
	young map[[sha256.Size]byte]uint64 // in which generation a block was met last
}

// begin opens a hold.
func (h *holds) begin() (generation uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now++
	if h.open == nil {
		h.open, h.young = map[uint64]struct{}{}, map[[sha256.Size]byte]uint64{}
	}
	h.open[h.now] = struct{}{}
	return h.now
}

// end closes a hold and forgets what no other one keeps.
func (h *holds) end(generation uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.open, generation)
	oldest := h.now + 1
	for g := range h.open {
		oldest = min(oldest, g)
	}
	if oldest < generation { // nothing can have become older than the oldest
		return
	}
	for d, g := range h.young {
		if g < oldest {
			delete(h.young, d)
		}
	}
}

// met notes that somebody relies on a block to be here from now on.
func (h *holds) met(digest []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.open) > 0 {
		h.young[[sha256.Size]byte(digest)] = h.now
	}
}

// keeps reports whether an open hold keeps a block.
func (h *holds) keeps(digest []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.young[[sha256.Size]byte(digest)]
	return ok
}

// Hold keeps from collection whatever is put, or asked after with Has or GetSize, from now until release is called, which
// may be more than once. Work that makes blocks before it can pin them holds while it lasts. A fetch that pins its root
// first needs no hold.
func (s *Store) Hold() (release func()) {
	g := s.holds.begin()
	var once sync.Once
	return func() {
		once.Do(func() {
			s.holds.end(g)
			s.changed.Add(1)
		})
	}
}
