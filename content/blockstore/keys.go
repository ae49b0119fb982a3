package blockstore

import (
	"context"

	"github.com/dgraph-io/badger/v4"
	"github.com/ipfs/go-cid"
)

// AllKeysChan sends a CID with codec raw for every block, as of the time of the call. The channel is closed at the end,
// when ctx ends, or when the store cannot be read.
func (s *Store) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	keys, _, err := s.AllKeysChanWithErr(ctx)
	return keys, err
}

// AllKeysChanWithErr is AllKeysChan with a function that waits for the end and tells why it came, nil if every key was
// sent.
func (s *Store) AllKeysChanWithErr(ctx context.Context) (<-chan cid.Cid, func() error, error) {
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	out := make(chan cid.Cid, 64)
	done := make(chan struct{})
	var failed error
	txn := s.db.NewTransaction(false)
	go func() {
		defer close(done)
		defer close(out)
		defer s.leave()
		defer txn.Discard()
		err := send(ctx, txn, out)
		if err == nil {
			err = s.big.keys(ctx, out)
		}
		failed = explain(s.dir, err)
	}()
	return out, func() error { <-done; return failed }, nil
}

func send(ctx context.Context, txn *badger.Txn, out chan<- cid.Cid) error {
	return eachBlock(txn, func(it *badger.Item) error {
		select {
		case out <- cid.NewCidV1(cid.Raw, it.KeyCopy(nil)):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// eachBlock calls fn with the entry of every block of the tree, without its value, until it fails.
func eachBlock(txn *badger.Txn, fn func(*badger.Item) error) error {
	opts := badger.DefaultIteratorOptions
	opts.PrefetchValues = false
	it := txn.NewIterator(opts)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		if !ofBlock(it.Item().Key()) {
			continue
		}
		if err := fn(it.Item()); err != nil {
			return err
		}
	}
	return nil
}
