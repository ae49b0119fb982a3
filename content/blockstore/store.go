package blockstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

// Store is an open block store. All methods may be called at the same time; after Close they fail with [ErrClosed].
type Store struct {
	dir  string
	opts Options
	db   *badger.DB // blocks below largeBlock
	big  *large     // the others

	// writes is held for reading while a block is written, and for writing while a damaged block is taken out or the
	// memtable is flushed, which badger cannot do beside writes.
	writes sync.RWMutex
	gc     sync.Mutex // one rewrite of db's files at a time

	written atomic.Int64 // entries of db

	pins sync.Mutex // guards age, and changes of pins
	age  uint64     // of the youngest pin, 0 before it is known

	holds      holds
	collecting sync.Mutex    // one collection at a time
	used       atomic.Int64  // bytes of blocks, where there is a quota
	changed    atomic.Uint64 // counts what may have made blocks garbage
	reclaiming sync.Mutex
	futile     uint64 // guarded by reclaiming: changed + 1 when nothing was left to give up, 0 if it never was so

	life   sync.Mutex // guards closed and additions to users
	closed bool
	users  sync.WaitGroup
}

var (
	_ boxo.Blockstore           = (*Store)(nil)
	_ boxo.Viewer               = (*Store)(nil)
	_ boxo.AllKeysChanWithErrer = (*Store)(nil)
)

// Open opens the store in dir, which is made if it does not exist. What a crash left half written is cut off. A
// directory that is open elsewhere, in this process or another, is [ErrLocked].
func Open(dir string, opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	settings := opts.badger(dir)
	if opts.tune != nil {
		settings = opts.tune(settings)
	}
	db, err := badger.Open(settings)
	if err != nil {
		return nil, explain(dir, err)
	}
	big, err := openLarge(filepath.Join(dir, "large"))
	if err != nil {
		return nil, explain(dir, errors.Join(err, db.Close()))
	}
	s := &Store{dir: dir, opts: opts, db: db, big: big}
	if err := s.tidy(); err != nil { // every restart leaves a table
		return nil, explain(dir, errors.Join(err, db.Close()))
	}
	if opts.Quota > 0 {
		_, used, err := s.measure()
		if err != nil {
			return nil, explain(dir, errors.Join(err, db.Close()))
		}
		s.used.Store(int64(used))
	}
	return s, nil
}

// Close waits for calls under way, flushes and closes. Channels of AllKeysChan must be drained or cancelled.
func (s *Store) Close() error {
	s.life.Lock()
	if s.closed {
		s.life.Unlock()
		return nil
	}
	s.closed = true
	s.life.Unlock()
	s.users.Wait()
	return explain(s.dir, s.db.Close())
}

// enter keeps the store open until leave.
func (s *Store) enter() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.users.Add(1)
	return nil
}

func (s *Store) leave() { s.users.Done() }

// key is the multihash, which is what boxo's own block stores use.
func key(c cid.Cid) []byte { return c.Hash() }

// digest returns the hash that c promises. Only sha2-256 in full is taken: identity hashes would carry data in a name,
// and short ones do not bind.
func digest(c cid.Cid) ([]byte, error) {
	if !c.Defined() {
		return nil, fmt.Errorf("%w: no CID", ErrBlock)
	}
	d, err := mh.Decode(c.Hash())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBlock, c, err)
	}
	if d.Code != mh.SHA2_256 || d.Length != sha256.Size {
		return nil, fmt.Errorf("%w: %s: hash 0x%x of %d bytes, want 32 bytes of sha2-256", ErrBlock, c, d.Code, d.Length)
	}
	return d.Digest, nil
}

// Check reports whether data is what c names and may be stored. Its error is [ErrBlock].
func Check(c cid.Cid, data []byte) error {
	if err := checkForm(c, data); err != nil {
		return err
	}
	want, err := digest(c)
	if err != nil {
		return err
	}
	if got := sha256.Sum256(data); !bytes.Equal(got[:], want) {
		return fmt.Errorf("%w: %s: %d bytes of another hash", ErrBlock, c, len(data))
	}
	return nil
}

// checkForm is Check without the hash.
func checkForm(c cid.Cid, data []byte) error {
	if _, err := digest(c); err != nil {
		return err
	}
	if len(data) > MaxBlock {
		return fmt.Errorf("%w: %s: %d bytes, want at most %d", ErrBlock, c, len(data), MaxBlock)
	}
	return nil
}

// Has implements boxo's Blockstore. It looks at keys only: a block that the disk damaged is still there until it is read.
func (s *Store) Has(_ context.Context, c cid.Cid) (bool, error) {
	d, err := digest(c)
	if err != nil {
		return false, nil // such a block cannot have been stored
	}
	if err := s.enter(); err != nil {
		return false, err
	}
	defer s.leave()
	n, err := s.find(c, d)
	return n >= 0, explain(s.dir, err)
}

// find is size for somebody who relies on the answer: with a hold open, what is here stays.
func (s *Store) find(c cid.Cid, digest []byte) (int, error) {
	s.writes.RLock()
	defer s.writes.RUnlock()
	s.holds.met(digest)
	return s.size(c, digest)
}

// size is the length of a block, -1 if it is not there.
func (s *Store) size(c cid.Cid, digest []byte) (n int, err error) {
	n = -1
	if err := s.item(c, func(it *badger.Item) error {
		n = sizeOf(it)
		return nil
	}); n >= 0 || err != nil {
		return n, err
	}
	n, err = s.big.size(digest)
	if n < s.opts.large || n > MaxBlock { // none, or what a power cut left of one
		n = -1
	}
	return n, err
}

// has reports whether a block of n bytes is there: n says where it must be.
func (s *Store) has(c cid.Cid, digest []byte, n int) (there bool, err error) {
	if n >= s.opts.large {
		size, err := s.big.size(digest)
		return size == n, err
	}
	err = s.item(c, func(*badger.Item) error {
		there = true
		return nil
	})
	return there, err
}

// item calls fn with the entry of c, or not at all if there is none.
func (s *Store) item(c cid.Cid, fn func(*badger.Item) error) error {
	return s.db.View(func(t *badger.Txn) error {
		it, err := t.Get(key(c))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(it)
	})
}

// GetSize returns the length of a block, or a "not found" error. Like Has it does not read the block.
func (s *Store) GetSize(_ context.Context, c cid.Cid) (int, error) {
	d, err := digest(c)
	if err != nil {
		return -1, notFound(c)
	}
	if err := s.enter(); err != nil {
		return -1, err
	}
	defer s.leave()
	n, err := s.find(c, d)
	if err == nil && n < 0 {
		return -1, notFound(c)
	}
	return n, explain(s.dir, err)
}

// View calls fn with the bytes of a block, which it must neither change nor keep. fn may run inside a read transaction
// and must be quick.
func (s *Store) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	return s.view(ctx, c, reading{hash: s.opts.VerifyReads}, func(v []byte, _ bool) error { return fn(v) })
}

// Read returns the bytes of a block in buf, or elsewhere if that has no room for them and 4 bytes more. They are checked
// with the CRC-32C that was stored beside them, whatever the options, and not hashed: it is for sending them to somebody who
// hashes them anyway.
func (s *Store) Read(ctx context.Context, c cid.Cid, buf []byte) ([]byte, error) {
	var data []byte
	err := s.view(ctx, c, reading{buf: buf}, func(v []byte, own bool) error {
		if data = v; !own {
			data = append(buf[:0], v...)
		}
		return nil
	})
	return data, err
}

// reading is how a block is read.
type reading struct {
	buf  []byte // where to, if there is room
	hash bool   // not only its checksum is looked at
}

// view is View, and tells fn whether the bytes are its own.
func (s *Store) view(ctx context.Context, c cid.Cid, r reading, fn func(v []byte, own bool) error) error {
	d, err := digest(c)
	if err != nil {
		return notFound(c)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()

	var found, sound bool
	var callback error
	err = s.item(c, func(it *badger.Item) error {
		found = true
		return it.Value(func(v []byte) error {
			// badger gives no error but a nil value where it cannot read.
			if sound = len(v) == sizeOf(it) && (!r.hash || Check(c, v) == nil); sound {
				callback = fn(v, false)
			}
			return nil
		})
	})
	if err == nil && !found {
		var v []byte
		if v, sound, err = s.readLarge(c, d, r); v != nil {
			found = true
			if sound {
				callback = fn(v, true)
			}
		}
	}
	switch {
	case err != nil:
		return explain(s.dir, err)
	case !found:
		return notFound(c)
	case !sound:
		if err := s.drop(c, d); err != nil {
			return err
		}
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, s.dir, notFound(c))
	}
	return callback
}

// sizeOf is the length of an entry's value. badger's own figure takes the two varints of a value log entry's header for a
// byte less than they are from 16 KiB on; with keys of 34 + 8 bytes the length of the value's varint is all that varies.
func sizeOf(it *badger.Item) int {
	about := int(it.ValueSize())
	if about < 1<<10 { // below the threshold, so kept with the key, where the figure is exact
		return about
	}
	var buf [binary.MaxVarintLen64]byte
	for varint := 1; varint <= 4; varint++ {
		if n := about + 2 - varint; binary.PutUvarint(buf[:], uint64(n)) == varint {
			return n
		}
	}
	return about
}

// readLarge returns the bytes of a file, nil if there is none, and whether they are what was stored. What this process has
// hashed, and has not changed since, is not hashed again.
func (s *Store) readLarge(c cid.Cid, digest []byte, r reading) (v []byte, sound bool, err error) {
	b, err := s.big.read(digest, r.buf)
	if err != nil || b.data == nil {
		return nil, false, err
	}
	sound = b.whole && len(b.data) >= s.opts.large && len(b.data) <= MaxBlock
	if sound && r.hash && !b.hashed {
		if sound = Check(c, b.data) == nil; sound {
			s.big.note(digest, b.at)
		}
	}
	return b.data, sound, nil
}

// drop deletes a block that is damaged, unless somebody has stored it anew.
func (s *Store) drop(c cid.Cid, digest []byte) error {
	s.writes.Lock()
	defer s.writes.Unlock()
	var found, sound bool
	err := s.item(c, func(it *badger.Item) error {
		found = true
		return it.Value(func(v []byte) error {
			sound = len(v) == sizeOf(it) && Check(c, v) == nil
			return nil
		})
	})
	switch {
	case err != nil || sound:
	case found:
		err = s.db.Update(func(t *badger.Txn) error { return t.Delete(key(c)) })
	default:
		if _, sound, err = s.readLarge(c, digest, reading{hash: true}); err == nil && !sound {
			err = s.big.remove(digest)
		}
	}
	return explain(s.dir, err)
}

// Get returns a block, or an error that is a "not found" ([format.IsNotFound]).
//
// [format.IsNotFound]: https://pkg.go.dev/github.com/ipfs/go-ipld-format#IsNotFound
func (s *Store) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	var data []byte
	if err := s.view(ctx, c, reading{hash: s.opts.VerifyReads}, func(v []byte, own bool) error {
		if data = v; !own {
			data = bytes.Clone(v)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if data == nil {
		data = []byte{}
	}
	return blocks.NewBlockWithCid(data, c)
}

// Put stores a block, after checking it; one that is there already is left alone.
func (s *Store) Put(ctx context.Context, b blocks.Block) error {
	return s.PutMany(ctx, []blocks.Block{b})
}

// PutMany checks all blocks and stores those that are not there. The blocks are the caller's until it returns. It is not
// atomic: after an error some may be stored, each of them whole.
func (s *Store) PutMany(ctx context.Context, bs []blocks.Block) error {
	for _, b := range bs {
		if err := Check(b.Cid(), b.RawData()); err != nil {
			return err
		}
	}
	return s.PutHashed(ctx, bs)
}

// PutHashed is PutMany for blocks whose CIDs the caller has just computed from their bytes, as bitswap does with what it
// receives: they are not hashed a second time.
func (s *Store) PutHashed(ctx context.Context, bs []blocks.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, b := range bs {
		if err := checkForm(b.Cid(), b.RawData()); err != nil {
			return err
		}
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	need, err := s.put(bs)
	if !errors.Is(err, ErrQuota) && !errors.Is(err, ErrDiskFull) {
		return err
	}
	if err := s.reclaim(ctx, need, err); err != nil {
		return err
	}
	_, err = s.put(bs)
	return err
}

// put stores blocks whose form was checked. It returns how many bytes it wanted to add.
func (s *Store) put(bs []blocks.Block) (total uint64, err error) {
	s.writes.RLock()
	defer s.writes.RUnlock()
	var small, big []blocks.Block
	for _, b := range bs {
		d, err := digest(b.Cid())
		if err != nil {
			return 0, err
		}
		s.holds.met(d)
		there, err := s.has(b.Cid(), d, len(b.RawData()))
		switch size := len(b.RawData()); {
		case err != nil:
			return 0, explain(s.dir, err)
		case there:
			continue
		case size < s.opts.large:
			small = append(small, b)
		default:
			big = append(big, b)
		}
		total += uint64(len(b.RawData()))
	}
	if len(small)+len(big) == 0 {
		return 0, nil
	}
	if err := s.fits(total); err != nil {
		return total, err
	}
	s.count(int(total)) // before they are there, so that writers beside each other do not all fit
	defer func() {
		if err != nil {
			s.count(-int(total)) // some may be there; the next collection finds them
		}
	}()
	if len(small) > 0 {
		batch := s.db.NewWriteBatch()
		defer batch.Cancel()
		for _, b := range small {
			if err := batch.Set(key(b.Cid()), b.RawData()); err != nil {
				return total, explain(s.dir, err)
			}
		}
		if err := batch.Flush(); err != nil {
			return total, explain(s.dir, err)
		}
		if err := s.wrote(len(small)); err != nil {
			return total, explain(s.dir, err)
		}
	}
	err = together(slices.Values(big), writeWorkers, func(b blocks.Block) error {
		d, err := digest(b.Cid())
		if err == nil {
			err = s.big.write(d, b.RawData(), s.opts.SyncWrites)
		}
		return err
	})
	return total, explain(s.dir, err)
}

// room fails if size more bytes would leave the disk less than the reserve.
func (s *Store) room(size uint64) error {
	free, err := s.opts.Free(s.dir)
	if err != nil {
		return fmt.Errorf("blockstore: free space of %s: %w", s.dir, err)
	}
	if free < s.opts.Reserve || free-s.opts.Reserve < size {
		return fmt.Errorf("%w: %s has %d MiB left and %d MiB are kept free; free some space, or move the directory to a larger disk",
			ErrDiskFull, s.dir, free>>20, s.opts.Reserve>>20)
	}
	return nil
}

// DeleteBlock deletes a block; one that is not there is no error. The space of a small one comes back with [Store.GC].
func (s *Store) DeleteBlock(_ context.Context, c cid.Cid) error {
	d, err := digest(c)
	if err != nil {
		return nil
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.writes.RLock()
	defer s.writes.RUnlock()
	defer s.changed.Add(1)
	n := -1
	err = s.item(c, func(it *badger.Item) error {
		n = sizeOf(it)
		s.count(-n)
		return nil
	})
	switch {
	case err != nil:
	case n >= 0:
		if err = s.db.Update(func(t *badger.Txn) error { return t.Delete(key(c)) }); err == nil {
			err = s.wrote(1)
		}
	default:
		if n, err = s.big.size(d); err == nil && n >= 0 {
			s.count(-n)
			err = s.big.remove(d)
		}
	}
	return explain(s.dir, err)
}

// Sync returns when everything stored before the call has reached the disk.
func (s *Store) Sync() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return explain(s.dir, errors.Join(s.big.sync(), s.db.Sync()))
}
