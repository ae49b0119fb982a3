package exchange

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// link is a link of a node that is made by hand.
type link struct {
	name string
	to   cid.Cid
	size uint64
}

// node makes a dag-pb block and stores it.
func makeNode(t *testing.T, store Putter, data []byte, links ...link) cid.Cid {
	t.Helper()
	n := merkledag.NodeWithData(data)
	must(t, n.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256}))
	for _, l := range links {
		must(t, n.AddRawLink(l.name, &format.Link{Name: l.name, Size: l.size, Cid: l.to}))
	}
	must(t, store.PutMany(t.Context(), []blocks.Block{n}))
	return n.Cid()
}

func leaf(t *testing.T, store Putter, b blocks.Block) cid.Cid {
	t.Helper()
	must(t, store.PutMany(t.Context(), []blocks.Block{b}))
	return b.Cid()
}

func fileData(t *testing.T, sizes ...uint64) []byte {
	t.Helper()
	f := unixfs.NewFSNode(unixfs.TFile)
	for _, n := range sizes {
		f.AddBlockSize(n)
	}
	b, err := f.GetBytes()
	must(t, err)
	return b
}

// TestHostileDAGs: whatever shape a root has, a fetch of it ends with an error that blames its publisher.
func TestHostileDAGs(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	small := leaf(t, a, blockstoretest.Block(1, 100))
	deep := small
	for range 12 {
		deep = makeNode(t, a, fileData(t, 100), link{to: deep})
	}
	var wide []link
	for i := range uint64(50) {
		wide = append(wide, link{to: leaf(t, a, blockstoretest.Block(i, 10))})
	}
	identity, err := mh.Sum([]byte("carried in the name"), mh.IDENTITY, -1)
	must(t, err)
	garbage := []byte("this is no protobuf")
	broken, err := blocks.NewBlockWithCid(garbage, protocol.LinkTo(protocol.DagPB, garbage).Cid())
	must(t, err)

	for _, test := range []struct {
		name   string
		root   cid.Cid
		bounds Bounds
		want   error
	}{
		{"deeper than allowed", deep, roomy, ErrBounds},
		{"exactly as deep as allowed", deep, Bounds{MaxBytes: 1 << 20, MaxDepth: 12}, nil},
		{"more links than allowed", makeNode(t, a, fileData(t), wide...), Bounds{MaxBytes: 1 << 20, MaxBlocks: 50}, ErrBounds},
		{"as many as allowed", makeNode(t, a, fileData(t), wide...), Bounds{MaxBytes: 1 << 20, MaxBlocks: 51}, nil},
		{"more bytes than allowed", makeNode(t, a, fileData(t), wide...), Bounds{MaxBytes: 400}, ErrBounds},
		{"identity link", makeNode(t, a, fileData(t), link{to: cid.NewCidV1(cid.Raw, identity)}), roomy, ErrContent},
		{"CIDv0 link", makeNode(t, a, fileData(t), link{to: cid.NewCidV0(small.Hash())}), roomy, ErrContent},
		{"link to a record", makeNode(t, a, fileData(t), link{to: cid.NewCidV1(cid.DagCBOR, small.Hash())}), roomy, ErrContent},
		{"no protobuf", leaf(t, a, broken), roomy, ErrContent},
		{"CIDv0 root", cid.NewCidV0(small.Hash()), roomy, ErrContent},
		{"record as root", cid.NewCidV1(cid.DagCBOR, small.Hash()), roomy, ErrContent},
		{"no root", cid.Undef, roomy, ErrContent},
		{"a leaf as root", small, roomy, nil},
	} {
		_, err := b.FetchDAG(within(t, time.Minute), test.root, test.bounds, nil)
		if !errors.Is(err, test.want) || test.want == nil && err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestBomb: a DAG of few blocks that unfolds to 174¹⁰ leaves costs what its blocks cost.
func TestBomb(t *testing.T) {
	store := newStore(t, blockstore.DefaultOptions())
	empty := leaf(t, store, blockstoretest.Raw(nil))
	level := empty
	for range 10 {
		var links []link
		for range checkpoint.FileLinks {
			links = append(links, link{to: level})
		}
		level = makeNode(t, store, fileData(t), links...)
	}
	a := New(newHost(t), store, Config{})
	defer func() { must(t, a.Close()) }()
	if p, err := a.FetchDAG(t.Context(), level, Bounds{MaxBytes: 1 << 20, MaxDepth: 20}, nil); err != nil || p.Blocks != 11 {
		t.Errorf("fetch: %+v, %v", p, err)
	}
	root := makeNode(t, store, unixfs.FolderPBData(), link{name: "model.safetensors", to: level})
	if _, err := Materialize(t.Context(), store, root, filepath.Join(t.TempDir(), "x"), 1<<40); !errors.Is(err, ErrContent) {
		t.Errorf("materialize: %v", err)
	}
}

func TestMaterialize(t *testing.T) {
	store := newStore(t, blockstore.DefaultOptions())
	src, root := writeCheckpoint(t, 2)
	_, _, err := Publish(t.Context(), store, src)
	must(t, err)
	parent := t.TempDir()
	dir := filepath.Join(parent, "phi")
	nothingElse := func() {
		t.Helper()
		entries, err := os.ReadDir(parent)
		must(t, err)
		for _, e := range entries {
			if strings.Contains(e.Name(), "partial") {
				t.Errorf("%s is left", e.Name())
			}
		}
	}
	total := uint64(0)
	for _, data := range tree(t, src) {
		total += uint64(len(data))
	}
	if _, err := Materialize(t.Context(), store, root, dir, total-1); !errors.Is(err, ErrBounds) {
		t.Errorf("a byte less than it has: %v", err)
	}
	nothingElse()
	if n, err := Materialize(t.Context(), store, root, dir, total); err != nil || n != total {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n, err := Materialize(t.Context(), store, root, dir, total); err != nil || n != 0 {
		t.Errorf("once more: %d bytes, %v", n, err)
	}
	nothingElse()
	if !maps.Equal(tree(t, src), tree(t, dir)) {
		t.Error("the directories differ")
	}
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o600))
	if _, err := Materialize(t.Context(), store, root, dir, total); !errors.Is(err, checkpoint.ErrExists) {
		t.Errorf("over another checkpoint: %v", err)
	}
	file := filepath.Join(parent, "file")
	must(t, os.WriteFile(file, []byte("mine"), 0o600))
	if _, err := Materialize(t.Context(), store, root, file, total); !errors.Is(err, checkpoint.ErrExists) {
		t.Errorf("over a file: %v", err)
	}
	empty := filepath.Join(parent, "empty")
	must(t, os.Mkdir(empty, 0o755))
	if _, err := Materialize(t.Context(), store, root, empty, total); err != nil {
		t.Errorf("in an empty directory: %v", err)
	}
	// A block is missing: nothing appears, and after it has come everything does.
	var leaves []cid.Cid
	_, _, err = checkpoint.Blocks(src, nil, func(b blocks.Block) error {
		leaves = append(leaves, b.Cid())
		return nil
	})
	must(t, err)
	lost, err := store.Get(t.Context(), leaves[len(leaves)/2])
	must(t, err)
	must(t, store.DeleteBlock(t.Context(), lost.Cid()))
	late := filepath.Join(parent, "late")
	if _, err := Materialize(t.Context(), store, root, late, total); !format.IsNotFound(err) {
		t.Errorf("without a block: %v", err)
	}
	nothingElse()
	if _, err := os.Stat(late); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a checkpoint appeared: %v", err)
	}
	must(t, store.Put(t.Context(), lost))
	if _, err := Materialize(t.Context(), store, root, late, total); err != nil {
		t.Error(err)
	}
	if removed, err := checkpoint.RemovePartials(parent); err != nil || len(removed) != 0 {
		t.Errorf("partials %q, %v", removed, err)
	}
}

// TestMaterializeRefuses: no name gets out of the directory, and no tree that the rules do not cut gets in.
func TestMaterializeRefuses(t *testing.T) {
	store := newStore(t, blockstore.DefaultOptions())
	config := leaf(t, store, blockstoretest.Raw([]byte(`{}`)))
	full := leaf(t, store, blockstoretest.Block(1, checkpoint.ChunkSize))
	part := leaf(t, store, blockstoretest.Block(2, 100))
	dir := func(links ...link) cid.Cid { return makeNode(t, store, unixfs.FolderPBData(), links...) }
	file := func(sizes []uint64, leaves ...cid.Cid) cid.Cid {
		var links []link
		for _, c := range leaves {
			links = append(links, link{to: c})
		}
		return dir(link{name: "a.safetensors", to: makeNode(t, store, fileData(t, sizes...), links...)})
	}
	const chunk = checkpoint.ChunkSize
	roots := map[string]cid.Cid{
		"a file as root":      makeNode(t, store, fileData(t, chunk), link{to: full}),
		"no UnixFS":           makeNode(t, store, []byte{0xff}),
		"a shard":             makeNode(t, store, shardData(t)),
		"directory in it":     dir(link{name: "sub", to: dir()}),
		"record in it":        dir(link{name: "config.json", to: cid.NewCidV1(cid.DagCBOR, config.Hash())}),
		"short leaf first":    file([]uint64{100, chunk}, part, full),
		"fewer than its size": file([]uint64{chunk, chunk, 100}, full, full),
		"more than its size":  file([]uint64{chunk}, full, part),
		"size of nothing":     file(nil, full),
		"no links":            file([]uint64{chunk}),
	}
	for _, name := range []string{"", ".", "..", "../x", "/etc/passwd", "a/b", `a\b`, ".hidden", "x\x00", "con:", strings.Repeat("a", 200)} {
		roots[fmt.Sprintf("name %.20q", name)] = dir(link{name: name, to: config})
	}
	parent := t.TempDir()
	for name, root := range roots {
		if _, err := Materialize(t.Context(), store, root, filepath.Join(parent, "phi"), 1<<30); !errors.Is(err, ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Well-formed, but no checkpoint.
	for name, root := range map[string]cid.Cid{
		"no tensors": dir(link{name: "config.json", to: config}),
		"stray file": dir(link{name: "config.json", to: config}, link{name: "run.sh", to: config}),
	} {
		if _, err := Materialize(t.Context(), store, root, filepath.Join(parent, "phi"), 1<<30); !errors.Is(err, checkpoint.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	entries, err := os.ReadDir(parent)
	must(t, err)
	if len(entries) != 0 {
		t.Errorf("%v is left", entries)
	}
}

func shardData(t *testing.T) []byte {
	t.Helper()
	b, err := unixfs.HAMTShardData(nil, 256, 0x22)
	must(t, err)
	return b
}

// record is a dataset record of the form the network uses.
func record(t testing.TB, links ...cid.Cid) []byte {
	t.Helper()
	tags := []cbor.Tag{}
	for _, c := range links {
		tags = append(tags, cbor.Tag{Number: 42, Content: append([]byte{0}, c.Bytes()...)})
	}
	mode, err := cbor.CanonicalEncOptions().EncMode()
	must(t, err)
	b, err := mode.Marshal(map[string]any{"kind": "pieces", "name": "prose", "pieces": tags, "version": 1})
	must(t, err)
	return b
}

func pieces(bs []blocks.Block) iter.Seq2[cid.Cid, []byte] {
	return func(yield func(cid.Cid, []byte) bool) {
		for _, b := range bs {
			if !yield(b.Cid(), b.RawData()) {
				return
			}
		}
	}
}

func TestDatasets(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	var texts []blocks.Block
	var cids []cid.Cid
	size := uint64(0)
	for i := range uint64(200) {
		p := blockstoretest.Block(i, int(100+50*i))
		texts, cids = append(texts, p), append(cids, p.Cid())
		size += uint64(len(p.RawData()))
	}
	rec := record(t, cids...)
	root, published, err := PublishDataset(t.Context(), a, rec, pieces(texts))
	if err != nil || published != size+uint64(len(rec)) || root != protocol.LinkTo(protocol.DagCBOR, rec).Cid() {
		t.Fatal(root, published, err)
	}
	ctx := within(t, time.Minute)
	p, err := b.FetchDataset(ctx, root, Bounds{MaxBytes: published}, nil)
	if err != nil || p.MovedBytes != published || p.Blocks != 201 {
		t.Errorf("%+v, %v", p, err)
	}
	if ok, err := b.Has(ctx, append(slices.Clone(cids), root)); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
	if _, err := b.FetchDataset(ctx, root, Bounds{MaxBytes: published - 1}, nil); !errors.Is(err, ErrBounds) {
		t.Errorf("a byte too many: %v", err)
	}
	if _, _, err := PublishDataset(t.Context(), a, rec, pieces(texts[1:])); !errors.Is(err, ErrContent) {
		t.Errorf("a piece less: %v", err)
	}
	if _, _, err := PublishDataset(t.Context(), a, rec, pieces(append(texts, texts[0]))); !errors.Is(err, ErrContent) {
		t.Errorf("a piece more: %v", err)
	}
	// An endless dataset has no pieces.
	none := record(t)
	root, _, err = PublishDataset(t.Context(), a, none, pieces(nil))
	must(t, err)
	if p, err := b.FetchDataset(ctx, root, roomy, nil); err != nil || p.Blocks != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	for name, bad := range map[string][]byte{
		"no CBOR":        []byte("hello"),
		"link to record": record(t, root),
		"another tag":    {0xc1, 0x00},
		"broken link":    {0xd8, 0x2a, 0x43, 0, 1, 2},
		"endless list":   {0x9f, 0x01, 0xff},
	} {
		c := leaf(t, a, mustBlock(t, bad))
		if _, err := b.FetchDataset(ctx, c, roomy, nil); !errors.Is(err, ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.FetchDataset(ctx, cids[0], roomy, nil); !errors.Is(err, ErrContent) {
		t.Errorf("a piece as record: %v", err)
	}
}

func mustBlock(t *testing.T, record []byte) blocks.Block {
	t.Helper()
	b, err := blocks.NewBlockWithCid(record, protocol.LinkTo(protocol.DagCBOR, record).Cid())
	must(t, err)
	return b
}

// TestHeals: a node of a DAG that the disk damaged is fetched again by the next fetch of the DAG.
func TestHeals(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	src, root := writeCheckpoint(t, 2)
	_, _, err := Publish(t.Context(), a, src)
	must(t, err)
	ctx := within(t, time.Minute)
	_, err = b.FetchDAG(ctx, root, roomy, nil)
	must(t, err)
	w, err := b.walk(ctx, roomy, nil)
	must(t, err)
	defer w.end()
	links, err := w.links(root)
	must(t, err)
	// What the store does when it finds damage: the block is gone while a walk is under way.
	must(t, b.store.DeleteBlock(ctx, links[0]))
	if _, err := w.read(links[0]); err != nil {
		t.Error(err)
	}
	if ok, err := b.store.Has(ctx, links[0]); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}

// FuzzRecordLinks: whatever a peer calls a record, only raw links of the network come out of it.
func FuzzRecordLinks(f *testing.F) {
	text := blockstoretest.Raw([]byte("text")).Cid()
	tag := append([]byte{0xd8, 42, 0x58, 37, 0}, text.Bytes()...)
	f.Add(append([]byte{0x81}, tag...))
	f.Add(append([]byte{0xa1, 0x61, 'a'}, tag...))
	f.Add([]byte{0xa0})
	f.Add([]byte{0xc2, 0x41, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		links, err := recordLinks(data)
		if err != nil {
			if !errors.Is(err, ErrContent) {
				t.Errorf("error %v", err)
			}
			return
		}
		for _, c := range links {
			if l, err := protocol.NewLink(c); err != nil || l.Cid().Prefix().Codec != protocol.Raw {
				t.Errorf("link %s", c)
			}
		}
		if len(links)*37 > len(data) {
			t.Errorf("%d links of %d bytes", len(links), len(data))
		}
	})
}

// TestMaterializeFrom: files that a verified directory has are linked, so their blocks are not even asked for; all others
// come from blocks; and a base that has nothing in common, or lies, changes nothing about the result.
func TestMaterializeFrom(t *testing.T) {
	before, was := writeCheckpoint(t, 2)
	after, root := writeCheckpoint(t, 3)
	_, parts, err := checkpoint.Blocks(before, nil, nil)
	must(t, err)
	_, next, err := checkpoint.Blocks(after, nil, nil)
	must(t, err)
	store := newStore(t, blockstore.DefaultOptions())
	_, _, err = checkpoint.Blocks(after, next.Same(parts), func(b blocks.Block) error { return store.PutMany(t.Context(), []blocks.Block{b}) })
	must(t, err)
	parent := t.TempDir()
	dir := filepath.Join(parent, "phi")
	if _, err := Materialize(t.Context(), store, root, dir, 1<<30); !format.IsNotFound(err) {
		t.Fatalf("without a base the hub's blocks are missing: %v", err)
	}
	for name, base := range map[string]Base{
		"no such file": {Dir: t.TempDir(), Parts: parts}, "other parts": {Dir: before, Parts: checkpoint.Parts{"hub-00001.safetensors": {CID: was, Size: 1}}},
	} {
		if _, err := MaterializeFrom(t.Context(), store, root, dir, 1<<30, base); !format.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := MaterializeFrom(t.Context(), store, root, dir, 1<<30, Base{Dir: before, Parts: parts}); err != nil {
		t.Fatal(err)
	}
	if got, err := checkpoint.RootCID(dir); err != nil || got != root || !maps.Equal(tree(t, dir), tree(t, after)) {
		t.Errorf("made %s, %v, want %s", got, err, root)
	}
	for name := range next {
		a, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		b, err := os.Stat(filepath.Join(before, name))
		must(t, err)
		if linked := next[name] == parts[name]; os.SameFile(a, b) != linked {
			t.Errorf("%s: linked %t, want %t", name, !linked, linked)
		}
	}
	// A base that was changed behind our back: what is linked is believed, but what does not open is refused.
	must(t, os.Truncate(filepath.Join(before, "hub-00001.safetensors"), 100))
	if _, err := MaterializeFrom(t.Context(), store, root, filepath.Join(parent, "torn"), 1<<30, Base{Dir: before, Parts: parts}); !errors.Is(err, checkpoint.ErrFormat) {
		t.Errorf("a torn base: %v", err)
	}
}
