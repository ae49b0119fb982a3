package blockstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

// Links returns what a block links to. Blocks of codec raw link to nothing and are not shown to it. A block that it
// refuses keeps nothing but itself.
type Links func(blocks.Block) ([]cid.Cid, error)

// Collected is what a collection did.
type Collected struct {
	Kept         int    `json:"kept_blocks"`
	KeptBytes    uint64 `json:"kept_bytes"`
	Removed      int    `json:"removed_blocks"`
	RemovedBytes uint64 `json:"removed_bytes"`
	Absent       int    `json:"absent_blocks"` // that pins need and that are not here
	Files        int    `json:"files"`         // of small blocks that were rewritten
}

// live is what must be kept: digests of the blocks that are here, and of how many that are pinned but are not here.
type live struct {
	here   map[[sha256.Size]byte]struct{}
	bytes  uint64
	absent map[[sha256.Size]byte]struct{}
}

// mark finds what pins keep. It reads the blocks that have links; of others it asks only whether they are here.
func (s *Store) mark(ctx context.Context, pins []Pin) (live, error) {
	l := live{here: map[[sha256.Size]byte]struct{}{}, absent: map[[sha256.Size]byte]struct{}{}}
	followed := cid.NewSet()
	var todo []cid.Cid
	visit := func(c cid.Cid) (here bool, err error) {
		d, err := digest(c)
		if err != nil {
			return false, nil // such a block cannot have been stored
		}
		if _, ok := l.here[[sha256.Size]byte(d)]; ok {
			return true, nil
		}
		n, err := s.size(c, d)
		if err != nil {
			return false, explain(s.dir, err)
		}
		if n < 0 {
			l.absent[[sha256.Size]byte(d)] = struct{}{}
			return false, nil
		}
		l.here[[sha256.Size]byte(d)] = struct{}{}
		l.bytes += uint64(n)
		return true, nil
	}
	for _, p := range pins {
		for _, c := range p.Blocks {
			if _, err := visit(c); err != nil {
				return l, err
			}
		}
		todo = append(todo, p.Roots...)
	}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return l, context.Cause(ctx)
		}
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		here, err := visit(c)
		if err != nil {
			return l, err
		}
		// One block may be named by several codecs, of which each gives it other links.
		if !here || c.Prefix().Codec == cid.Raw || !followed.Visit(c) {
			continue
		}
		b, err := s.Get(ctx, c)
		if err != nil {
			if ctx.Err() != nil {
				return l, context.Cause(ctx)
			}
			continue // found damaged: it is not here any more
		}
		if links, err := s.opts.Links(b); err == nil {
			todo = append(todo, links...)
		}
	}
	return l, nil
}

// sweepStep is how many blocks are removed at a time; writes and questions wait meanwhile.
const sweepStep = 64

// Collect deletes every block that no pin and no hold keeps, and then gives the space of small ones back as [Store.GC]
// does. Puts, fetches and reads go on meanwhile: what they put, or find here, after Collect has begun is kept too.
// Interrupted, by its context or a crash, it has deleted some of what it would have. It never deletes a block that is
// pinned when it begins, so long as the blocks between it and its root are here; [Options].Links must be set. A store
// without any pin is left alone, [ErrNoPins]: its blocks are somebody's who knows nothing of pins.
//
// report, which may be nil, is called as the deletion goes on.
func (s *Store) Collect(ctx context.Context, report func(Collected)) (c Collected, err error) {
	if s.opts.Links == nil {
		return c, fmt.Errorf("%w: the store was opened without Options.Links", ErrNoPins)
	}
	if err := s.enter(); err != nil {
		return c, err
	}
	defer s.leave()
	s.collecting.Lock()
	defer s.collecting.Unlock()
	// From here on everything that is met is kept; what was pinned and stored before, mark finds.
	hold := s.holds.begin()
	defer s.holds.end(hold)
	pins, err := s.Pins()
	if err != nil {
		return c, err
	}
	if len(pins) == 0 {
		return c, fmt.Errorf("%w: %s", ErrNoPins, s.dir)
	}
	marked, err := s.mark(ctx, pins)
	if err != nil {
		return c, err
	}
	c.Absent = len(marked.absent)
	keys, wait, err := s.AllKeysChanWithErr(ctx)
	if err != nil {
		return c, err
	}
	var step []cid.Cid
	for k := range keys {
		if err != nil {
			continue // drained, for the channel must be
		}
		d, bad := digest(k)
		if bad != nil {
			continue
		}
		if _, ok := marked.here[[sha256.Size]byte(d)]; ok {
			c.Kept++
			continue
		}
		if step = append(step, k); len(step) == sweepStep {
			err = s.sweep(step, &c)
			step = step[:0]
			if report != nil {
				report(c)
			}
		}
	}
	if err = errors.Join(err, wait()); err == nil {
		err = s.sweep(step, &c)
	}
	c.KeptBytes += marked.bytes
	if err != nil {
		return c, err
	}
	if err := s.recount(); err != nil {
		return c, err
	}
	if c.Removed > 0 {
		c.Files, err = s.GC(ctx)
	}
	return c, err
}

// recount sets right what writers beside each other and damaged blocks have put wrong in the account.
func (s *Store) recount() error {
	if s.opts.Quota == 0 {
		return nil
	}
	s.writes.Lock()
	defer s.writes.Unlock()
	_, used, err := s.measure()
	if err == nil {
		s.used.Store(int64(used))
	}
	return explain(s.dir, err)
}

// sweep removes those of some blocks that nobody has met since the collection began.
func (s *Store) sweep(step []cid.Cid, c *Collected) error {
	s.writes.Lock()
	defer s.writes.Unlock()
	batch := s.db.NewWriteBatch()
	defer batch.Cancel()
	small := 0
	for _, k := range step {
		d, err := digest(k)
		if err != nil {
			continue
		}
		n, err := s.size(k, d)
		switch {
		case err != nil:
			return explain(s.dir, err)
		case n < 0: // gone, or what a power cut left of a file
			if err := s.big.remove(d); err != nil {
				return explain(s.dir, err)
			}
			continue
		case s.holds.keeps(d):
			c.Kept++
			c.KeptBytes += uint64(n)
			continue
		case n < s.opts.large:
			small++
			err = batch.Delete(key(k))
		}
		if err == nil {
			err = s.big.remove(d)
		}
		if err != nil {
			return explain(s.dir, err)
		}
		s.count(-n)
		c.Removed++
		c.RemovedBytes += uint64(n)
	}
	if small == 0 {
		return nil
	}
	err := batch.Flush()
	if err == nil {
		err = s.wrote(small)
	}
	return explain(s.dir, err)
}

// count keeps account of the bytes of blocks, where there is a quota for them.
func (s *Store) count(n int) {
	if s.opts.Quota > 0 {
		s.used.Add(int64(n))
	}
}

// measure adds up the bytes of all blocks.
func (s *Store) measure() (n int, size uint64, err error) {
	err = s.db.View(func(t *badger.Txn) error {
		return eachBlock(t, func(it *badger.Item) error {
			n++
			size += uint64(sizeOf(it))
			return nil
		})
	})
	if err != nil {
		return 0, 0, err
	}
	err = s.big.each(func(_ []byte, length int64) error {
		n++
		size += uint64(length)
		return nil
	})
	return n, size, err
}

// reclaim makes room for need bytes within quota and reserve, by what [Options].Quota says. A store that has looked in
// vain does not look again before a pin, a hold or a deletion has changed something.
func (s *Store) reclaim(ctx context.Context, need uint64, full error) error {
	if s.opts.Links == nil || s.opts.Quota > 0 && need > s.opts.Quota {
		return full
	}
	s.reclaiming.Lock()
	defer s.reclaiming.Unlock()
	for first := true; ; first = false {
		if err := s.fits(need); err == nil {
			return nil
		}
		changes := s.changed.Load()
		if first && s.futile == changes+1 {
			return full
		}
		if _, err := s.Collect(ctx, nil); err != nil && !errors.Is(err, ErrNoPins) && !errors.Is(err, ErrDiskFull) {
			return err
		}
		if err := s.fits(need); err == nil {
			return nil
		}
		oldest, err := s.oldestSpare()
		if err != nil {
			return err
		}
		if oldest == nil {
			s.futile = changes + 1
			return full
		}
		if err := s.Unpin(ctx, *oldest); err != nil {
			return err
		}
	}
}

func (s *Store) oldestSpare() (*Owner, error) {
	pins, err := s.Pins()
	if err != nil {
		return nil, err
	}
	for _, p := range pins {
		if p.Spare {
			return &p.Owner, nil
		}
	}
	return nil, nil
}

// fits reports whether need more bytes may be stored.
func (s *Store) fits(need uint64) error {
	if used := uint64(max(s.used.Load(), 0)); s.opts.Quota > 0 && used+need > s.opts.Quota {
		return fmt.Errorf("%w: %s holds %d of the %d MiB it may hold, all of it needed; raise the quota", ErrQuota,
			s.dir, used>>20, s.opts.Quota>>20)
	}
	return s.room(need)
}

// rawCID is how a block of which only the digest is known is named.
func rawCID(digest []byte) (cid.Cid, error) {
	h, err := mh.Encode(digest, mh.SHA2_256)
	return cid.NewCidV1(cid.Raw, h), err
}
