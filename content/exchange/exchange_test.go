package exchange

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
	"github.com/blockzero-net/bzd/content/checkpoint"
)

func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(
		libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(), libp2p.DisableRelay(),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func newStore(t *testing.T, opts blockstore.Options) *blockstore.Store {
	t.Helper()
	s, err := blockstore.Open(t.TempDir(), opts)
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

type node struct {
	host host.Host
	*Exchange
	store *blockstore.Store
}

func newNode(t *testing.T, config Config) node {
	t.Helper()
	store := newStore(t, blockstore.DefaultOptions())
	h := newHost(t)
	e := New(h, store, config)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return node{h, e, store}
}

func connect(t *testing.T, a, b host.Host) {
	t.Helper()
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var roomy = Bounds{MaxBytes: 1 << 30}

// values fills a tensor.
func values(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.IntN(255)-127) / 64
	}
	return v
}

// writeCheckpoint writes a checkpoint with a hub of about 3 MiB, which never changes, and experts of 600 KB.
func writeCheckpoint(t *testing.T, experts uint64) (string, cid.Cid) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "phi")
	f32 := func(name string, seed uint64, n int) checkpoint.Tensor {
		return checkpoint.Tensor{Name: name, DType: checkpoint.F32, Shape: []int64{int64(n)}, Data: values(seed, n)}
	}
	root, err := checkpoint.Write(dir, checkpoint.Contents{
		Documents: map[string][]byte{"config.json": []byte(`{"model_type":"qwen3_moe"}`)},
		Files: []checkpoint.File{
			{Name: "hub-00001.safetensors", Tensors: []checkpoint.Tensor{f32("hub", 1, 800_000)}},
			{Name: "experts-code.safetensors", Tensors: []checkpoint.Tensor{f32("experts", experts, 150_000)}},
		},
	})
	must(t, err)
	return dir, root
}

func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[d.Name()] = string(data)
		return err
	}))
	return files
}

// TestCheckpoints fetches a checkpoint, then the next, of which only the blocks of the experts, the index above them and
// the root move.
func TestCheckpoints(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	dir, root := writeCheckpoint(t, 2)
	published, size, err := Publish(t.Context(), a, dir)
	if err != nil || published != root {
		t.Fatal(published, err)
	}
	ctx := within(t, time.Minute)
	var last Progress
	reports := 0
	first, err := b.FetchDAG(ctx, root, roomy, func(p Progress) {
		if p.Bytes < last.Bytes || p.MovedBytes < last.MovedBytes || p.MovedBytes > p.Bytes {
			t.Errorf("progress goes from %+v to %+v", last, p)
		}
		last = p
		reports++
	})
	must(t, err)
	t.Logf("first: %+v of %d published, %d reports", first, size, reports)
	if first != last || first.MovedBytes != size || first.MovedBytes != first.Bytes || first.Blocks != first.MovedBlocks {
		t.Errorf("moved %+v, reported %+v, published %d bytes", first, last, size)
	}
	out := filepath.Join(t.TempDir(), "fetched")
	if _, err := Materialize(ctx, b.store, root, out, 1<<30); err != nil {
		t.Fatal(err)
	}
	if got, want := tree(t, out), tree(t, dir); len(want) != 4 || len(got) != 4 {
		t.Errorf("%d files, want %d", len(got), len(want))
	} else {
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%s differs", name)
			}
		}
	}

	if again, err := b.FetchDAG(ctx, root, roomy, nil); err != nil || again.MovedBlocks != 0 || again.Bytes != first.Bytes {
		t.Errorf("fetching again moved %+v, %v", again, err)
	}
	nextDir, next := writeCheckpoint(t, 3)
	_, _, err = Publish(ctx, a, nextDir)
	must(t, err)
	second, err := b.FetchDAG(ctx, next, roomy, nil)
	must(t, err)
	t.Logf("second: %+v", second)
	if second.MovedBytes < 600_000 || second.MovedBytes > 610_000 || second.MovedBlocks != 2 {
		t.Errorf("the experts' 600 KB and the root should move, not %+v", second)
	}
	if _, err := Materialize(ctx, b.store, next, filepath.Join(t.TempDir(), "fetched"), 1<<30); err != nil {
		t.Error(err)
	}
}

// TestWaiting: a fetch that began before the block was published ends when it is.
func TestWaiting(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, a.host, b.host)
	block := blockstoretest.Block(1, 70_000)
	got := make(chan error, 1)
	go func() {
		_, err := b.Fetch(within(t, time.Minute), []cid.Cid{block.Cid()}, roomy, nil)
		got <- err
	}()
	waitFor(t, "the want to arrive", func() bool { return len(a.swap.WantlistForPeer(b.host.ID())) > 0 })
	must(t, a.Put(t.Context(), block))
	must(t, <-got)
	// And one that waits for a block that then comes from inside.
	block = blockstoretest.Block(2, 70_000)
	go func() {
		_, err := b.Get(within(t, time.Minute), block.Cid())
		got <- err
	}()
	waitFor(t, "the want to arrive", func() bool { return len(a.swap.WantlistForPeer(b.host.ID())) > 0 })
	must(t, b.Put(t.Context(), block))
	must(t, <-got)
}

// waitFor polls, since neither bitswap nor the runtime tell.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 4000 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatalf("waited in vain for %s", what)
}

// TestWithheld: what nobody gives ends with the context, and nothing is left running.
func TestWithheld(t *testing.T) {
	held, withheld := blockstoretest.Block(1, 1000), blockstoretest.Block(2, 1000)
	a := newNode(t, Config{Serve: func(_ peer.ID, c cid.Cid) bool { return c != withheld.Cid() }})
	b := newNode(t, Config{})
	connect(t, b.host, a.host)
	must(t, a.PutMany(t.Context(), []blocks.Block{held, withheld}))
	_, err := b.Fetch(within(t, time.Minute), []cid.Cid{held.Cid()}, roomy, nil)
	must(t, err)
	before := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := b.Fetch(ctx, []cid.Cid{held.Cid(), withheld.Cid()}, roomy, nil)
		if !errors.Is(err, ErrMissing) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a withheld block: %v", err)
		}
		cancel()
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("the phase is over")
	cancel(reason)
	if _, err := b.Fetch(ctx, []cid.Cid{withheld.Cid()}, roomy, nil); !errors.Is(err, reason) {
		t.Errorf("a cancelled fetch: %v", err)
	}
	waitFor(t, "the goroutines of ended fetches", func() bool { return runtime.NumGoroutine() <= before+2 })
	waitFor(t, "the wants to be taken back", func() bool { return len(b.swap.GetWantlist()) == 0 })

	// Closing ends what goes on.
	done := make(chan error, 1)
	go func() {
		_, err := b.Fetch(t.Context(), []cid.Cid{withheld.Cid()}, roomy, nil)
		done <- err
	}()
	waitFor(t, "the fetch to begin", func() bool { return len(b.swap.GetWantlist()) > 0 })
	must(t, b.Close())
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("a fetch ended by Close: %v", err)
	}
	if _, err := b.Fetch(t.Context(), []cid.Cid{held.Cid()}, roomy, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a fetch after Close: %v", err)
	}
	if err := b.Put(t.Context(), held); !errors.Is(err, ErrClosed) {
		t.Errorf("a put after Close: %v", err)
	}
}

// TestFetchBounds: the bounds hold for blocks that move and for those that are there.
func TestFetchBounds(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	var cids []cid.Cid
	for i := range uint64(10) {
		block := blockstoretest.Block(i, 1000)
		cids = append(cids, block.Cid())
		must(t, a.Put(t.Context(), block))
	}
	large := blockstoretest.Block(99, MaxBlock+1)
	must(t, a.Put(t.Context(), large))
	ctx := within(t, time.Minute)
	if _, err := b.Fetch(ctx, cids, Bounds{MaxBytes: 9_999}, nil); !errors.Is(err, ErrBounds) {
		t.Errorf("a byte too many: %v", err)
	}
	if p, err := b.Fetch(ctx, append(cids, cids...), Bounds{MaxBytes: 10_000, MaxBlocks: 10}, nil); err != nil || p.Blocks != 10 {
		t.Errorf("exactly the bound, each asked for twice: %+v, %v", p, err)
	}
	if _, err := b.Fetch(ctx, cids, Bounds{MaxBytes: 9_999}, nil); !errors.Is(err, ErrBounds) {
		t.Errorf("a byte too many, all there: %v", err)
	}
	if _, err := b.Fetch(ctx, cids, Bounds{MaxBytes: 10_000, MaxBlocks: 9}, nil); !errors.Is(err, ErrBounds) {
		t.Errorf("a block too many: %v", err)
	}
	if _, err := b.Fetch(ctx, []cid.Cid{large.Cid()}, roomy, nil); !errors.Is(err, ErrBounds) {
		t.Errorf("a block too long: %v", err)
	}
	if ok, err := b.Has(ctx, append(cids, large.Cid())); ok || err != nil {
		t.Errorf("the block that is too long was kept: %t, %v", ok, err)
	}
	if ok, err := b.Has(ctx, cids); !ok || err != nil {
		t.Errorf("what was fetched: %t, %v", ok, err)
	}
	if p, err := b.Fetch(ctx, nil, Bounds{}, nil); err != nil || p != (Progress{}) {
		t.Errorf("fetching nothing: %+v, %v", p, err)
	}
}

// TestManySmall fetches more blocks than a window, from three peers of which each has some.
func TestManySmall(t *testing.T) {
	b := newNode(t, Config{InFlight: 1 << 20})
	peers := []node{newNode(t, Config{}), newNode(t, Config{}), newNode(t, Config{})}
	var cids []cid.Cid
	for i := range uint64(300) {
		block := blockstoretest.Block(i, int(100+i))
		cids = append(cids, block.Cid())
		must(t, peers[i%3].store.Put(t.Context(), block))
	}
	for _, p := range peers {
		connect(t, b.host, p.host)
	}
	w, err := b.walk(within(t, time.Minute), roomy, nil)
	must(t, err)
	defer w.end()
	if err := w.bring(cids, 20_000); err != nil {
		t.Fatalf("%+v: %v", w.done, err)
	}
	if w.done.MovedBlocks != 300 {
		t.Errorf("%+v", w.done)
	}
}

// fullStore has no room.
type fullStore struct{ boxo.Blockstore }

func (fullStore) PutMany(context.Context, []blocks.Block) error { return blockstore.ErrDiskFull }

// TestDiskFull: a fetch fails with the store's error at once instead of waiting.
func TestDiskFull(t *testing.T) {
	a := newNode(t, Config{})
	h := newHost(t)
	b := New(h, fullStore{newStore(t, blockstore.Options{})}, Config{})
	defer func() { must(t, b.Close()) }()
	connect(t, h, a.host)
	block := blockstoretest.Block(1, 1000)
	must(t, a.Put(t.Context(), block))
	if _, err := b.Fetch(within(t, time.Minute), []cid.Cid{block.Cid()}, roomy, nil); !errors.Is(err, blockstore.ErrDiskFull) {
		t.Errorf("fetch to a full disk: %v", err)
	}
}

// TestConcurrent: fetches of the same blocks share them.
func TestConcurrent(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	dir, root := writeCheckpoint(t, 2)
	_, _, err := Publish(t.Context(), a, dir)
	must(t, err)
	ctx := within(t, time.Minute)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := b.FetchDAG(ctx, root, roomy, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	block, err := b.Get(ctx, root)
	want, werr := a.store.Get(ctx, root)
	if err != nil || werr != nil || !bytes.Equal(block.RawData(), want.RawData()) {
		t.Error(err, werr)
	}
}
