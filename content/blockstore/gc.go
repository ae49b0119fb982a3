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

const (
	tidyAfter = 8192 // entries written: about what a table of the lowest level holds
	tidyFrom  = 8    // such tables: every lookup asks the filter of each
)

// tidy merges the tables of the tree once there are many. badger would have goroutines that look for that all the time;
// here whoever writes the entry that makes it worth looking does the work, which takes milliseconds.
func (s *Store) tidy() error {
	if !s.gc.TryLock() { // GC does it too
		return nil
	}
	defer s.gc.Unlock()
	if s.db.Levels()[0].NumTables < tidyFrom {
		return nil
	}
	return s.db.Flatten(1)
}

// wrote counts entries that were written, and tidies up now and then.
func (s *Store) wrote(n int) error {
	if before := s.written.Add(int64(n)) - int64(n); before/tidyAfter == (before+int64(n))/tidyAfter {
		return nil
	}
	return s.tidy()
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
