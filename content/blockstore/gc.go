package blockstore

import (
	"context"
	"errors"

	"github.com/dgraph-io/badger/v4"
)

// flushMark is the prefix of a key that exists for a moment in GC. No multihash of the store begins with it.
var flushMark = []byte("\x00flush")

// wasted is the share of a value log file that must be garbage before it is rewritten.
const wasted = 0.5

// GC gives the space of deleted blocks back to the disk: every value log file but the newest of which at least half is
// deleted is rewritten. It reports how many files went. Reads go on meanwhile; writes wait while the memtable is
// flushed, which takes milliseconds. GC never deletes a block: what is no longer needed, the caller decides.
func (s *Store) GC(ctx context.Context) (files int, err error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	s.gc.Lock()
	defer s.gc.Unlock()
	if err := s.flush(); err != nil {
		return 0, explain(s.dir, err)
	}
	if err := s.db.Flatten(1); err != nil {
		return 0, explain(s.dir, err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return files, err
		}
		// A rewrite copies what is left of a file before it removes it.
		if err := s.room(uint64(s.opts.FileSize) / 2); err != nil {
			return files, err
		}
		switch err := s.db.RunValueLogGC(wasted); {
		case errors.Is(err, badger.ErrNoRewrite):
			return files, nil
		case err != nil:
			return files, explain(s.dir, err)
		}
		files++
	}
}

// flush writes the memtable to the tree, where compaction counts what was deleted. A memtable names thousands of blocks,
// so without this deleted gigabytes would stay for days. badger does it as part of dropping a prefix.
func (s *Store) flush() error {
	s.writes.Lock()
	defer s.writes.Unlock()
	if err := s.db.Update(func(t *badger.Txn) error { return t.Set(flushMark, nil) }); err != nil {
		return err
	}
	return s.db.DropPrefix(flushMark)
}
