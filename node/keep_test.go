package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
)

// TestTidy: after a cycle a node keeps its network, certificates, the checkpoint and its predecessor, a few older ones as
// long as there is space, and the custody of this cycle. The rest is deleted, from the store and the disk.
func TestTidy(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	o := blockstore.DefaultOptions()
	o.Links = exchange.Links
	store, err := blockstore.Open(filepath.Join(dir, "blocks"), o)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	n := &Node{store: store, content: &files{dir: filepath.Join(dir, "checkpoints")}}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(seed uint64) blocks.Block {
		b := blockstoretest.Block(seed, 1000)
		check(store.Put(ctx, b))
		return b
	}
	pin := func(o blockstore.Owner, b blocks.Block) {
		check(store.Pin(ctx, blockstore.Pin{Owner: o, Roots: []cid.Cid{b.Cid()}}))
	}
	genesis, garbage := put(1), put(2)
	pin(owner(pinNetwork, "genesis"), genesis)
	var phis []protocol.Link
	for i := range uint64(9) {
		b := put(100 + i)
		l, err := protocol.NewLink(b.Cid())
		check(err)
		phis = append(phis, l)
		check(n.pinCheckpoint(ctx, l))
		check(os.MkdirAll(n.content.checkpointDir(l), 0o755))
	}
	n.phi = &local.Phi{Link: phis[8]}
	n.phi.State.Previous = &phis[1]
	certificate, old, now := put(3), put(4), put(5)
	pin(owner(pinCertificate, "1"), certificate)
	pin(owner(pinCycle, "%d/%s", collectEvery-2, "miner"), old)
	pin(owner(pinCycle, "%d/%s", collectEvery-1, "miner"), now)
	check(n.tidy(ctx, collectEvery-1))
	n.background.Wait()

	for b, want := range map[blocks.Block]bool{genesis: true, garbage: false, certificate: true, old: false, now: true} {
		if _, err := store.Get(ctx, b.Cid()); format.IsNotFound(err) == want {
			t.Errorf("%s: %v, want it here: %t", b.Cid(), err, want)
		}
	}
	pins, err := store.Pins()
	check(err)
	var spare []string
	for i, l := range phis {
		want := i == 8 || i == 1 || i >= 8-keepCheckpoints
		_, err := store.Get(ctx, l.Cid())
		_, there := os.Stat(n.content.checkpointDir(l))
		if (err == nil) != want || (there == nil) != want {
			t.Errorf("checkpoint %d: %v, %v, want it here: %t", i, err, there, want)
		}
	}
	for _, p := range pins {
		if p.Spare {
			spare = append(spare, p.Owner.Name)
		}
	}
	want := []string{}
	for _, l := range phis[8-keepCheckpoints : 8] {
		want = append(want, l.String())
	}
	if !slices.Equal(spare, want) {
		t.Errorf("given up first, in this order: %v, want %v", spare, want)
	}
}
