package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	format "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

func open(t *testing.T, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	for name, opts := range map[string]Options{
		"default": DefaultOptions(), "trusting": {}, "sync": {SyncWrites: true, VerifyReads: true}, "small files": {FileSize: 4 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			blockstoretest.RunAll(t, func(t *testing.T) boxo.Blockstore { return open(t, t.TempDir(), opts) })
		})
	}
}

// TestSuite holds the suite against the store whose interface it is about.
func TestSuite(t *testing.T) {
	blockstoretest.RunAll(t, func(t *testing.T) boxo.Blockstore {
		return boxo.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	})
}

func TestRefuses(t *testing.T) {
	s := open(t, t.TempDir(), DefaultOptions())
	good := blockstoretest.Block(1, 3000)
	with := func(code uint64, length int) blocks.Block {
		h, err := mh.Sum(good.RawData()[:20], code, length)
		if err != nil {
			t.Fatal(err)
		}
		b, err := blocks.NewBlockWithCid(good.RawData()[:20], cid.NewCidV1(cid.Raw, h))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	flipped := bytes.Clone(good.RawData())
	flipped[2999] ^= 1
	wrong, err := blocks.NewBlockWithCid(flipped, good.Cid())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]blocks.Block{
		"flipped bit": wrong,
		"too long":    blockstoretest.Block(1, MaxBlock+1),
		"identity":    with(mh.IDENTITY, -1),
		"sha2-512":    with(mh.SHA2_512, -1),
		"short hash":  with(mh.SHA2_256, 20),
	} {
		if err := s.Put(t.Context(), b); !errors.Is(err, ErrBlock) {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.PutMany(t.Context(), []blocks.Block{good, b}); !errors.Is(err, ErrBlock) {
			t.Errorf("%s: %v", name, err)
		}
		if ok, err := s.Has(t.Context(), b.Cid()); ok || err != nil {
			t.Errorf("%s: has %t, %v", name, ok, err)
		}
		if _, err := s.Get(t.Context(), b.Cid()); !format.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(t.TempDir(), Options{FileSize: 1000}); err == nil {
		t.Error("a value log of 1000 bytes is accepted")
	}
}

// TestPutHashed: the hash is the caller's word; everything else is looked at, and a wrong word shows when it is read.
func TestPutHashed(t *testing.T) {
	s := open(t, t.TempDir(), DefaultOptions())
	for _, size := range []int{3000, 300_000} {
		good := blockstoretest.Block(uint64(size), size)
		if err := s.PutHashed(t.Context(), []blocks.Block{good}); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context(), good.Cid()); err != nil || !bytes.Equal(got.RawData(), good.RawData()) {
			t.Errorf("%d bytes: %v", size, err)
		}
		wrong, err := blocks.NewBlockWithCid(good.RawData()[1:], blockstoretest.Block(uint64(size)+1, size).Cid())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.PutHashed(t.Context(), []blocks.Block{wrong}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), wrong.Cid()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes of another hash: %v", size, err)
		}
	}
	if err := s.PutHashed(t.Context(), []blocks.Block{blockstoretest.Block(1, MaxBlock+1)}); !errors.Is(err, ErrBlock) {
		t.Errorf("too long: %v", err)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, DefaultOptions())
	if _, err := Open(dir, DefaultOptions()); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
		t.Errorf("second open: %v", err)
	}
	if err := s.Put(t.Context(), blockstoretest.Block(1, 1)); err != nil {
		t.Errorf("the refused open harmed the first: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), blockstoretest.Block(1, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
	if _, err := s.AllKeysChan(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("keys after close: %v", err)
	}
	if ok, err := open(t, dir, DefaultOptions()).Has(t.Context(), blockstoretest.Block(1, 1).Cid()); !ok || err != nil {
		t.Errorf("after opening again: %t, %v", ok, err)
	}
}

func TestDiskFull(t *testing.T) {
	free := uint64(100 << 20)
	s := open(t, t.TempDir(), Options{Reserve: 99 << 20, Free: func(string) (uint64, error) { return free, nil }})
	a, b := blockstoretest.Block(1, 1<<20), blockstoretest.Block(2, 1<<20)
	if err := s.Put(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	free--
	if err := s.Put(t.Context(), b); !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("on a full disk: %v", err)
	}
	if err := s.Put(t.Context(), a); err != nil {
		t.Errorf("a block that is there needs no room: %v", err)
	}
	if got, err := s.Get(t.Context(), a.Cid()); err != nil || !bytes.Equal(got.RawData(), a.RawData()) {
		t.Errorf("reading on a full disk: %v", err)
	}
	if err := s.DeleteBlock(t.Context(), a.Cid()); err != nil {
		t.Errorf("deleting on a full disk: %v", err)
	}
	if err := explain("d", fmt.Errorf("write: %w", syscall.ENOSPC)); !errors.Is(err, ErrDiskFull) {
		t.Errorf("the system's own error: %v", err)
	}
	broken := errors.New("no such disk")
	s = open(t, t.TempDir(), Options{Free: func(string) (uint64, error) { return 0, broken }})
	if err := s.Put(t.Context(), a); !errors.Is(err, broken) {
		t.Errorf("free space unknown: %v", err)
	}
	if n, err := freeBytes(t.TempDir()); err != nil || n == 0 {
		t.Errorf("this disk has %d bytes, %v", n, err)
	}
}

// used is what the value log files take of the disk.
func used(t *testing.T, dir string) (size int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		stat, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += stat.Size()
	}
	return size
}

// TestGC deletes three quarters of 30 MiB of small blocks and wants the space back, and nothing else gone.
func TestGC(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{FileSize: 4 << 20, VerifyReads: true})
	const n, size = 512, 60 << 10
	for i := range n {
		if err := s.Put(t.Context(), blockstoretest.Block(uint64(i), size)); err != nil {
			t.Fatal(err)
		}
	}
	before := used(t, dir)
	for i := range n {
		if i%4 != 0 {
			if err := s.DeleteBlock(t.Context(), blockstoretest.Block(uint64(i), size).Cid()); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, err := s.GC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := used(t, dir)
	t.Logf("%d MiB, then %d MiB; %d files rewritten", before>>20, after>>20, files)
	if files == 0 || after > before/2 {
		t.Errorf("GC left %d of %d bytes", after, before)
	}
	check := func(s *Store) {
		t.Helper()
		for i := range n {
			b := blockstoretest.Block(uint64(i), size)
			_, err := s.Get(t.Context(), b.Cid())
			if i%4 != 0 && !format.IsNotFound(err) || i%4 == 0 && err != nil {
				t.Errorf("block %d after GC: %v", i, err)
			}
		}
		all, err := s.AllKeysChan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for range all {
			count++
		}
		if count != n/4 {
			t.Errorf("%d keys after GC, want %d", count, n/4)
		}
	}
	check(s)
	if _, err := s.GC(t.Context()); err != nil {
		t.Errorf("GC of nothing: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(open(t, dir, DefaultOptions()))
}

// TestGCBesideWriters: nobody's write fails or is lost while space is reclaimed.
func TestGCBesideWriters(t *testing.T) {
	s := open(t, t.TempDir(), Options{FileSize: 4 << 20, VerifyReads: true})
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				b := blockstoretest.Block(uint64(w)<<32|uint64(i), 30<<10)
				if err := s.Put(context.Background(), b); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if _, err := s.Get(context.Background(), b.Cid()); err != nil {
					t.Errorf("get: %v", err)
					return
				}
				if i%4 == 0 {
					continue
				}
				if err := s.DeleteBlock(context.Background(), b.Cid()); err != nil {
					t.Errorf("delete: %v", err)
					return
				}
			}
		})
	}
	for range 10 {
		if _, err := s.GC(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
}

// copyDir copies the files of dir in an order that seed draws, as they are at that moment.
func copyDir(t *testing.T, to, dir string, seed uint64) {
	t.Helper()
	var names []string
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case e.Name() != "LOCK":
			names = append(names, name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrash copies a store while it is written, file after file in any order, which is worse than any crash: the copy's
// tree may name what its value log does not hold. It must open, give every block right or not at all, and take the
// missing ones again.
func TestCrash(t *testing.T) {
	for seed := range uint64(4) {
		dir, crashed := t.TempDir(), t.TempDir()
		s := open(t, dir, Options{FileSize: 8 << 20})
		var early []blocks.Block
		for i := range uint64(20) {
			b := blockstoretest.Block(i, 100_000)
			early = append(early, b)
			if err := s.Put(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		stop, begun := make(chan struct{}), make(chan struct{})
		late := make(chan blocks.Block, 10_000)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer close(late)
			for i := uint64(100); i < 1000; i++ {
				b := blockstoretest.Block(i, 50_000)
				if err := s.Put(context.Background(), b); err != nil {
					t.Error(err)
					return
				}
				late <- b
				if i == 110 {
					close(begun)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		<-begun
		copyDir(t, crashed, dir, seed)
		close(stop)
		wg.Wait()

		c := open(t, crashed, DefaultOptions())
		for i, b := range early {
			got, err := c.Get(t.Context(), b.Cid())
			if err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
				t.Errorf("seed %d: block %d, stored before the crash: %v", seed, i, err)
			}
		}
		lost, kept := 0, 0
		for b := range late {
			got, err := c.Get(t.Context(), b.Cid())
			switch {
			case err == nil && bytes.Equal(got.RawData(), b.RawData()):
				kept++
				continue
			case !format.IsNotFound(err):
				t.Errorf("seed %d: neither the block nor a miss: %v, %v", seed, got, err)
			}
			lost++
			if err := c.Put(t.Context(), b); err != nil {
				t.Errorf("seed %d: storing a lost block: %v", seed, err)
			}
			if got, err := c.Get(t.Context(), b.Cid()); err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
				t.Errorf("seed %d: a lost block stored again: %v", seed, err)
			}
		}
		t.Logf("seed %d: of the blocks stored meanwhile %d are whole, %d lost", seed, kept, lost)
	}
}

// TestDamage flips a bit in the value log of an open store, which has it mapped: the block is gone, and only that one.
func TestDamage(t *testing.T) {
	hurt := blockstoretest.Block(1, 50_000)
	for _, opts := range []Options{{FileSize: 4 << 20, VerifyReads: true}, {FileSize: 4 << 20}} { // the CRC finds it too
		dir := t.TempDir()
		s := open(t, dir, opts)
		for i := range uint64(3) {
			if err := s.Put(t.Context(), blockstoretest.Block(i, 50_000)); err != nil {
				t.Fatal(err)
			}
		}
		names, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		data, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(data, hurt.RawData()) + 25_000
		f, err := os.OpenFile(names[0], os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{data[at] ^ 4}, int64(at))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), hurt.Cid()); !errors.Is(err, ErrCorrupt) || !format.IsNotFound(err) {
			t.Errorf("damaged block: %v", err)
		}
		if ok, err := s.Has(t.Context(), hurt.Cid()); ok || err != nil {
			t.Errorf("damaged block, once read, is still there: %v", err)
		}
		if err := s.Put(t.Context(), hurt); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(3) {
			if _, err := s.Get(t.Context(), blockstoretest.Block(i, 50_000).Cid()); err != nil {
				t.Errorf("block %d: %v", i, err)
			}
		}
	}
}

// TestMemory holds the figure that ten nodes in one process count on.
func TestMemory(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	const stores = 10
	goroutines, before := runtime.NumGoroutine(), heap()
	var all []*Store
	for range stores {
		all = append(all, open(t, t.TempDir(), DefaultOptions()))
	}
	idle := heap()
	routines := (runtime.NumGoroutine() - goroutines) / stores
	for i := range uint64(20) {
		for _, s := range all {
			if err := s.Put(t.Context(), blockstoretest.Block(i, 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
	}
	used := heap()
	t.Logf("per store: %d KiB of heap when opened, %d KiB with 20 MiB stored, %d goroutines",
		(idle-before)/stores>>10, (used-before)/stores>>10, routines)
	if per := (used - before) / stores; per > 8<<20 {
		t.Errorf("%d bytes of heap per store", per)
	}
	if routines > 20 {
		t.Errorf("%d goroutines per store", routines)
	}
	for _, s := range all {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	if left := runtime.NumGoroutine() - goroutines; left > stores {
		t.Errorf("%d goroutines are left", left)
	}
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(b.TempDir(), DefaultOptions())
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	}()
	data := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	i := 0
	for b.Loop() {
		data[0], data[1], data[2] = byte(i), byte(i>>8), byte(i>>16)
		i++
		if err := s.Put(b.Context(), blockstoretest.Raw(data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s, err := Open(b.TempDir(), DefaultOptions())
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	}()
	block := blockstoretest.Block(1, 1<<20)
	if err := s.Put(b.Context(), block); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1 << 20)
	for b.Loop() {
		if _, err := s.Get(b.Context(), block.Cid()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestRead: a block is read where there is room for it, small or large, and not at all once it is damaged, though nobody
// hashes it.
func TestRead(t *testing.T) {
	s := open(t, t.TempDir(), DefaultOptions())
	empty, small, big := blockstoretest.Block(0, 0), blockstoretest.Block(1, 5000), blockstoretest.Block(2, 300_000)
	if err := s.PutMany(t.Context(), []blocks.Block{empty, small, big}); err != nil {
		t.Fatal(err)
	}
	for _, room := range []int{0, 299_999, 300_100} {
		for _, b := range []blocks.Block{empty, small, big} {
			buf := make([]byte, 1, room+1)
			got, err := s.Read(t.Context(), b.Cid(), buf)
			if err != nil || !bytes.Equal(got, b.RawData()) {
				t.Fatalf("room for %d: %d bytes, %v", room, len(got), err)
			}
			if n := len(got); n > 0 && (&got[0] == &buf[0]) != (n+trailer <= room) {
				t.Errorf("room for %d, and %d bytes are in the wrong place", room, n)
			}
		}
	}
	if _, err := s.Read(t.Context(), blockstoretest.Block(3, 10).Cid(), nil); !format.IsNotFound(err) || errors.Is(err, ErrCorrupt) {
		t.Errorf("not there: %v", err)
	}
	if err := edit(fileOf(s, big), func(d []byte) []byte { d[len(d)-1] ^= 1; return d }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(t.Context(), big.Cid(), nil); !format.IsNotFound(err) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("damaged: %v", err)
	}
	if ok, err := s.Has(t.Context(), big.Cid()); ok || err != nil {
		t.Errorf("damaged and read, it is still there: %v", err)
	}
}
