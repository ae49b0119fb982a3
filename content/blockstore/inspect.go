package blockstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/ipfs/go-cid"
)

// Stat is what a store holds. Bytes are of blocks, but for Disk.
type Stat struct {
	Blocks      int       `json:"blocks"`
	Bytes       uint64    `json:"bytes"`
	PinnedBytes uint64    `json:"pinned_bytes"` // here, and kept by some pin
	Disk        uint64    `json:"disk_bytes"`   // that the files take
	Free        uint64    `json:"free_bytes"`   // of the disk
	Quota       uint64    `json:"quota_bytes"`  // 0: none
	Pins        []PinStat `json:"pins"`         // the oldest first
}

// PinStat is what one pin keeps. Blocks that several pins keep count for each.
type PinStat struct {
	Owner  string `json:"owner"`
	Spare  bool   `json:"spare"`
	Blocks int    `json:"blocks"` // that are here
	Bytes  uint64 `json:"bytes"`
	Absent int    `json:"absent_blocks"` // that it needs and that are not here, as far as that can be known
}

// Stat counts what is there. It reads the blocks that pins follow links from, and the keys of all others.
func (s *Store) Stat(ctx context.Context) (Stat, error) {
	out := Stat{Quota: s.opts.Quota, Pins: []PinStat{}}
	if err := s.enter(); err != nil {
		return out, err
	}
	defer s.leave()
	var err error
	if out.Blocks, out.Bytes, err = s.measure(); err != nil {
		return out, explain(s.dir, err)
	}
	if out.Free, err = s.opts.Free(s.dir); err != nil {
		return out, explain(s.dir, err)
	}
	if err := filepath.WalkDir(s.dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				out.Disk += diskBytes(info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted since
		}
		return err
	}); err != nil {
		return out, explain(s.dir, err)
	}
	pins, err := s.Pins()
	if err != nil || s.opts.Links == nil {
		return out, err
	}
	for _, p := range pins {
		l, err := s.mark(ctx, []Pin{p})
		if err != nil {
			return out, err
		}
		out.Pins = append(out.Pins, PinStat{p.Owner.String(), p.Spare, len(l.here), l.bytes, len(l.absent)})
	}
	all, err := s.mark(ctx, pins)
	out.PinnedBytes = all.bytes
	return out, err
}

// Verified is what [Store.Verify] found.
type Verified struct {
	Blocks int    `json:"blocks"` // looked at
	Bytes  uint64 `json:"bytes"`
	Total  int    `json:"total_blocks"` // to be looked at
	// Damaged are the blocks whose bytes are not theirs any more, by CIDs of codec raw, sorted.
	Damaged  []cid.Cid `json:"damaged"`
	Repaired int       `json:"repaired"` // of these, how many were deleted, so that a fetch brings them back
	Pins     []PinStat `json:"pins"`     // that lack blocks
}

// Sound reports whether every block is what its CID says, and no pin that must be whole lacks any.
func (v Verified) Sound() bool { return len(v.Damaged) == v.Repaired && len(v.Pins) == 0 }

// Verify reads and hashes every block, several at a time, and looks whether everything that is pinned is here. With repair
// damaged blocks are deleted. report, which may be nil, is called by one goroutine at a time as it goes on; when ctx ends,
// Verify returns what it found so far.
func (s *Store) Verify(ctx context.Context, repair bool, report func(Verified)) (v Verified, err error) {
	if err := s.enter(); err != nil {
		return v, err
	}
	defer s.leave()
	v.Damaged, v.Pins = []cid.Cid{}, []PinStat{}
	if v.Total, _, err = s.measure(); err != nil {
		return v, explain(s.dir, err)
	}
	keys, wait, err := s.AllKeysChanWithErr(ctx)
	if err != nil {
		return v, err
	}
	var mu sync.Mutex
	var work sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4) {
		work.Go(func() {
			for c := range keys {
				n, sound, found := s.examine(c)
				if found == nil && n >= 0 && !sound && repair {
					d, _ := digest(c)
					found = s.drop(c, d)
				}
				mu.Lock()
				err = errors.Join(err, found)
				if n >= 0 {
					v.Blocks++
					v.Bytes += uint64(n)
					if !sound {
						v.Damaged = append(v.Damaged, c)
						if repair && found == nil {
							v.Repaired++
						}
					}
					if report != nil {
						report(v)
					}
				}
				mu.Unlock()
			}
		})
	}
	work.Wait()
	slices.SortFunc(v.Damaged, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) })
	if err = errors.Join(err, wait()); err != nil || s.opts.Links == nil {
		return v, err
	}
	pins, err := s.Pins()
	if err != nil {
		return v, err
	}
	for _, p := range pins {
		l, err := s.mark(ctx, []Pin{p})
		if err != nil {
			return v, err
		}
		if len(l.absent) > 0 {
			v.Pins = append(v.Pins, PinStat{p.Owner.String(), p.Spare, len(l.here), l.bytes, len(l.absent)})
		}
	}
	slices.SortStableFunc(v.Pins, func(a, b PinStat) int { return cmp.Compare(a.Owner, b.Owner) })
	return v, nil
}

// examine reads and hashes a block; n is -1 if it is not there any more. Unlike a read it changes nothing.
func (s *Store) examine(c cid.Cid) (n int, sound bool, err error) {
	d, err := digest(c)
	if err != nil {
		return -1, false, err
	}
	n = -1
	err = s.item(c, func(it *badger.Item) error {
		return it.Value(func(v []byte) error {
			n, sound = len(v), Check(c, v) == nil
			return nil
		})
	})
	if err != nil || n >= 0 {
		return n, sound, explain(s.dir, err)
	}
	b, err := s.big.read(d, nil)
	if err != nil || b.data == nil {
		return -1, false, explain(s.dir, err)
	}
	sum := sha256.Sum256(b.data)
	sound = b.whole && len(b.data) >= s.opts.large && len(b.data) <= MaxBlock && string(sum[:]) == string(d)
	if sound {
		s.big.note(d, b.at)
	} else {
		s.big.forget(d)
	}
	return len(b.data), sound, nil
}
