package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
)

// pattern is a stream whose chunk i is filled with the byte i mod 251.
type pattern struct{ at, size int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.size {
		return 0, io.EOF
	}
	n := min(int64(len(b)), p.size-p.at, ChunkSize-p.at%ChunkSize)
	fill := byte(p.at / ChunkSize % 251)
	for i := range b[:n] {
		b[i] = fill
	}
	p.at += n
	return int(n), nil
}

// TestStreamVectors compares files around every boundary of the layout with CIDs from another implementation.
func TestStreamVectors(t *testing.T) {
	var vector struct {
		Streams []struct {
			Size  int64
			CID   string
			Tsize uint64
		}
	}
	data, err := os.ReadFile("testdata/vector.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &vector); err != nil {
		t.Fatal(err)
	}
	deepest := int64(0)
	for _, s := range vector.Streams {
		var bytes, largest int
		node, err := readerDAG(&pattern{size: s.Size}, emitter{emit: func(b blocks.Block) error {
			bytes += len(b.RawData())
			largest = max(largest, len(b.RawData()))
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		tsize, err := node.Size()
		if node.Cid().String() != s.CID || err != nil || tsize != s.Tsize {
			t.Errorf("%d bytes: %s, size %d, %v; want %s, size %d", s.Size, node.Cid(), tsize, err, s.CID, s.Tsize)
		}
		if uint64(bytes) != s.Tsize || largest > ChunkSize {
			t.Errorf("%d bytes: blocks of %d bytes in all, the largest %d", s.Size, bytes, largest)
		}
		deepest = max(deepest, s.Size)
	}
	if deepest <= FileLinks*ChunkSize {
		t.Error("no vector has inner nodes on two levels")
	}
}

// TestBlocks rebuilds the directory from the blocks alone.
func TestBlocks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "phi")
	c := sample()
	c.Files = append(c.Files, File{Name: "hub-00003.safetensors", Tensors: []Tensor{tensor("w", BF16, formula(1_200_000, 7), 1_200_000)}})
	want := mustWrite(t, dir, c)

	store := make(map[cid.Cid]blocks.Block)
	var last cid.Cid
	root, _, err := Blocks(dir, nil, func(b blocks.Block) error {
		p := b.Cid().Prefix()
		if p.Version != 1 || p.MhType != mh.SHA2_256 || p.MhLength != 32 || p.Codec != cid.Raw && p.Codec != cid.DagProtobuf {
			t.Errorf("%s has prefix %+v", b.Cid(), p)
		}
		if sum, err := p.Sum(b.RawData()); err != nil || sum != b.Cid() {
			t.Errorf("%s: the bytes have CID %s, %v", b.Cid(), sum, err)
		}
		if p.Codec == cid.DagProtobuf {
			node, err := merkledag.DecodeProtobuf(b.RawData())
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range node.Links() {
				if _, ok := store[l.Cid]; !ok {
					t.Errorf("%s came before its child %s", b.Cid(), l.Cid)
				}
			}
		}
		store[b.Cid()] = b
		last = b.Cid()
		return nil
	})
	if err != nil || root.String() != want || last != root {
		t.Fatalf("root %s, last block %s, %v, want %s", root, last, err, want)
	}

	var read func(c cid.Cid) string
	read = func(c cid.Cid) string {
		if c.Prefix().Codec == cid.Raw {
			return string(store[c].RawData())
		}
		node, err := merkledag.DecodeProtobuf(store[c].RawData())
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, l := range node.Links() {
			b.WriteString(read(l.Cid))
		}
		return b.String()
	}
	top, err := merkledag.DecodeProtobuf(store[root].RawData())
	if err != nil {
		t.Fatal(err)
	}
	if dirNode, err := unixfs.FSNodeFromBytes(top.Data()); err != nil || dirNode.Type() != unixfs.TDirectory {
		t.Fatalf("the root is no directory: %v", err)
	}
	got := make(map[string]string)
	var names []string
	for _, l := range top.Links() {
		got[l.Name] = read(l.Cid)
		names = append(names, l.Name)
	}
	if !maps.Equal(got, tree(t, dir)) || !slices.IsSorted(names) {
		t.Errorf("the blocks hold %q", names)
	}

	// A consumer that fails ends the walk, at every block.
	stop := errors.New("stop")
	for n := 0; ; n++ {
		left := n
		_, _, err := Blocks(dir, nil, func(blocks.Block) error {
			if left--; left < 0 {
				return stop
			}
			return nil
		})
		if err == nil {
			if n < len(store) {
				t.Errorf("%d blocks were enough, want %d", n, len(store))
			}
			break
		}
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
	}
}

// TestStreaming: the CID of a file is computed without holding the file.
func TestStreaming(t *testing.T) {
	var peak uint64
	_, err := readerDAG(&pattern{size: 200 * ChunkSize}, emitter{emit: func(blocks.Block) error {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapAlloc)
		return nil
	}})
	if err != nil || peak > 64<<20 {
		t.Errorf("a file of 200 MiB held %d bytes, %v", peak, err)
	}
}

// TestDirectoryBlock: the largest directory stays below the size at which others would shard it.
func TestDirectoryBlock(t *testing.T) {
	node := unixfs.EmptyDirNode()
	if err := node.SetCidBuilder(cidBuilder); err != nil {
		t.Fatal(err)
	}
	names := append(DocumentNames(), IndexName)
	for i := range MaxFiles {
		names = append(names, fmt.Sprintf("%0*d%s", maxFileName-len(tensorSuffix), i, tensorSuffix))
	}
	leaf := merkledag.NewRawNode(nil).Cid()
	for _, name := range names {
		if len(name) > maxFileName || !isDocument(name) && name != IndexName && checkFileName(name) != nil {
			t.Fatalf("%q is no name", name)
		}
		if err := node.AddRawLink(name, &format.Link{Cid: leaf, Size: math.MaxInt64}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(node.RawData()); n >= 256<<10 {
		t.Errorf("%d bytes", n)
	}
}
