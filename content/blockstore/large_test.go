package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// fileOf is the file of a large block.
func fileOf(s *Store, b blocks.Block) string {
	d, err := digest(b.Cid())
	if err != nil {
		panic(err)
	}
	return s.big.path(d)
}

// TestLarge: blocks from largeBlock on are files, smaller ones are not, and deleting one gives its space back at once.
func TestLarge(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, DefaultOptions())
	small, big := blockstoretest.Block(1, largeBlock-1), blockstoretest.Block(2, largeBlock)
	if err := s.PutMany(t.Context(), []blocks.Block{small, big, big}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fileOf(s, small)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the small block: %v", err)
	}
	if data, err := os.ReadFile(fileOf(s, big)); err != nil || !bytes.Equal(data[:len(data)-trailer], big.RawData()) {
		t.Errorf("the large block: %v", err)
	}
	if err := s.Sync(); err != nil || len(s.big.pending) != 0 {
		t.Errorf("sync: %v, %d files left", err, len(s.big.pending))
	}
	keys := map[string]bool{}
	all, err := s.AllKeysChan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for c := range all {
		keys[string(c.Hash())] = true
	}
	if len(keys) != 2 || !keys[string(small.Cid().Hash())] || !keys[string(big.Cid().Hash())] {
		t.Errorf("%d keys", len(keys))
	}
	if err := s.DeleteBlock(t.Context(), big.Cid()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fileOf(s, big)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted: %v", err)
	}
	if ok, err := s.Has(t.Context(), big.Cid()); ok || err != nil {
		t.Errorf("deleted, has: %t, %v", ok, err)
	}
}

// TestLargeDamage: a file that was changed, cut short, emptied or made longer is gone once it is read, whatever the
// options, and can be stored anew.
func TestLargeDamage(t *testing.T) {
	b := blockstoretest.Block(1, 300_000)
	for name, damage := range map[string]func(path string) error{
		"bit":     func(path string) error { return edit(path, func(d []byte) []byte { d[50_000] ^= 4; return d }) },
		"cut":     func(path string) error { return os.Truncate(path, 299_999) },
		"small":   func(path string) error { return os.Truncate(path, 100) },
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"longer":  func(path string) error { return os.Truncate(path, 300_001) },
		"endless": func(path string) error { return os.Truncate(path, 1<<40) },
	} {
		for _, opts := range []Options{{}, DefaultOptions()} {
			s := open(t, t.TempDir(), opts)
			if err := s.Put(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if err := damage(fileOf(s, b)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(t.Context(), b.Cid()); !errors.Is(err, ErrCorrupt) || !format.IsNotFound(err) {
				t.Errorf("%s: %v", name, err)
			}
			if ok, err := s.Has(t.Context(), b.Cid()); ok || err != nil {
				t.Errorf("%s: once read, it is still there: %v", name, err)
			}
			if err := s.Put(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Get(t.Context(), b.Cid()); err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
				t.Errorf("%s: stored anew: %v", name, err)
			}
		}
	}
}

func edit(path string, f func([]byte) []byte) error {
	d, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, f(d), 0o644)
}

// TestLargeUnfinished: what a crash left half written is removed, and what is not ours is left alone and is no block.
func TestLargeUnfinished(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, DefaultOptions())
	b := blockstoretest.Block(1, 300_000)
	if err := s.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	torn, stray := fileOf(s, b)+unfinished+"123", filepath.Join(filepath.Dir(fileOf(s, b)), "notes.txt")
	if err := errors.Join(os.WriteFile(torn, b.RawData()[:500], 0o600), os.WriteFile(stray, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	keys := func() (n int) {
		all, err := s.AllKeysChan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for c := range all {
			if n++; !c.Equals(cid.NewCidV1(cid.Raw, b.Cid().Hash())) {
				t.Errorf("key %s", c)
			}
		}
		return n
	}
	if n := keys(); n != 1 {
		t.Errorf("%d keys", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, DefaultOptions())
	if _, err := os.Stat(torn); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half written file: %v", err)
	}
	if _, err := os.Stat(stray); err != nil {
		t.Errorf("somebody else's file: %v", err)
	}
	if n := keys(); n != 1 {
		t.Errorf("%d keys after opening again", n)
	}
}

// TestLargeTwice: writers of one block, readers and a deleter do not disturb each other.
func TestLargeTwice(t *testing.T) {
	s := open(t, t.TempDir(), DefaultOptions())
	b := blockstoretest.Block(1, 200_000)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for range 50 {
				var err error
				switch w % 3 {
				case 0:
					err = s.Put(context.Background(), b)
				case 1:
					if _, err = s.Get(context.Background(), b.Cid()); format.IsNotFound(err) && !errors.Is(err, ErrCorrupt) {
						err = nil
					}
				default:
					err = s.DeleteBlock(context.Background(), b.Cid())
				}
				if err != nil {
					t.Error(w, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestLargeUnwritable: a directory that cannot be written is an error that names the store, and nothing is left.
func TestLargeUnwritable(t *testing.T) {
	s := open(t, t.TempDir(), DefaultOptions())
	b := blockstoretest.Block(1, 300_000)
	if err := os.WriteFile(filepath.Dir(fileOf(s, b)), nil, 0o600); err != nil { // where a directory should be
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), b); err == nil || !strings.Contains(err.Error(), s.dir) {
		t.Errorf("put: %v", err)
	}
	if len(s.big.pending) != 0 {
		t.Error(fmt.Sprint("pending ", s.big.pending))
	}
}

// TestTidy: the tables of the tree stay few however often a store is opened or written to, and everything stays there.
func TestTidy(t *testing.T) {
	dir := t.TempDir()
	var all []blocks.Block
	tables := func(s *Store) int { return s.db.Levels()[0].NumTables }
	for i := range 2 * tidyFrom {
		s, err := Open(dir, DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		if n := tables(s); n >= tidyFrom {
			t.Errorf("opened for the %d. time: %d tables", i, n)
		}
		all = append(all, blockstoretest.Block(uint64(i), 100))
		if err := errors.Join(s.Put(t.Context(), all[i]), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir, DefaultOptions())
	for round := range 3 * tidyFrom {
		var batch []blocks.Block
		for i := range tidyAfter {
			batch = append(batch, blockstoretest.Block(uint64(round)<<32|uint64(i)|1<<31, 40))
		}
		if err := s.PutMany(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		all = append(all, batch[0])
	}
	if n := tables(s); n > 2*tidyFrom {
		t.Errorf("%d tables after many writes", n)
	}
	for _, b := range all {
		if ok, err := s.Has(t.Context(), b.Cid()); !ok || err != nil {
			t.Fatalf("%s: %t, %v", b.Cid(), ok, err)
		}
	}
}
