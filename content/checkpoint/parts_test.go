package checkpoint

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// TestParts: the parts of the root block are those of the directory, and make the same root again.
func TestParts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "phi")
	mustWrite(t, dir, sample())
	var last blocks.Block
	root, parts, err := Blocks(dir, nil, func(b blocks.Block) error { last = b; return nil })
	if err != nil {
		t.Fatal(err)
	}
	got, err := PartsOf(last)
	if err != nil || !maps.Equal(got, parts) || len(parts) != len(tree(t, dir)) {
		t.Errorf("the root has %v, the directory %v: %v", got, parts, err)
	}
	if b, err := parts.root(); err != nil || b.Cid() != root {
		t.Errorf("the parts have root %v, %v", b, err)
	}
	other := maps.Clone(parts)
	delete(other, "config.json")
	other["router.safetensors"] = Part{root, 1}
	if same := parts.Same(other); len(same) != len(parts)-2 || same["config.json"].CID.Defined() || same["router.safetensors"].CID.Defined() {
		t.Errorf("in common: %v", same)
	}
	if _, err := PartsOf(blocks.NewBlock([]byte("no node"))); err == nil {
		t.Error("a block that is no directory has parts")
	}
}

// TestKnown: a file whose part is known is linked, not copied; only the other files' blocks are handed out; and the CID
// is that of a checkpoint written from its tensors.
func TestKnown(t *testing.T) {
	parent := t.TempDir()
	before, after, plain := filepath.Join(parent, "before"), filepath.Join(parent, "after"), filepath.Join(parent, "plain")
	mustWrite(t, before, sample())
	next := sample()
	next.Files[len(next.Files)-1].Tensors[0].Data = []float32{1, 2, 3, 4}
	want := mustWrite(t, plain, next)
	for i := range len(next.Files) - 1 {
		known(t, &next, before, i)
	}
	have, handed := map[cid.Cid]bool{}, map[cid.Cid]bool{}
	if _, _, err := Blocks(before, nil, func(b blocks.Block) error { have[b.Cid()] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	root, parts, err := WriteBlocks(after, next, func(b blocks.Block) error { handed[b.Cid()] = true; return nil })
	if err != nil || root.String() != want {
		t.Fatalf("CID %s, %v, want %s", root, err, want)
	}
	if _, all, err := Blocks(after, nil, func(b blocks.Block) error { have[b.Cid()] = have[b.Cid()] || handed[b.Cid()]; return nil }); err != nil || !maps.Equal(all, parts) {
		t.Errorf("parts %v, read again %v, %v", parts, all, err)
	}
	for c, ok := range have {
		if !ok {
			t.Errorf("block %s is neither in the checkpoint before nor handed out", c)
		}
	}
	for _, f := range next.Files {
		a, err := os.Stat(filepath.Join(after, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.Stat(filepath.Join(before, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		if linked := f.From != ""; os.SameFile(a, b) != linked {
			t.Errorf("%s: linked is %t, want %t", f.Name, !linked, linked)
		}
		if f.From != "" && handed[f.Known.CID] {
			t.Errorf("%s was handed out", f.Name)
		}
	}
}

// TestKnownWithoutLinks: a disk that has no links gets a copy.
func TestKnownWithoutLinks(t *testing.T) {
	parent := t.TempDir()
	before := filepath.Join(parent, "before")
	want := mustWrite(t, before, sample())
	c := sample()
	known(t, &c, before, 0)
	f := &faultFS{fail: func(_ int, op string) error {
		if strings.HasPrefix(op, "link") {
			return errors.ErrUnsupported
		}
		return nil
	}}
	root, err := writeTo(f, filepath.Join(parent, "after"), c)
	if err != nil || root.String() != want || !slices.Contains(f.log, "create "+c.Files[0].Name) {
		t.Errorf("%s, %v, want %s; %q", root, err, want, f.log)
	}
	if got, err := RootCID(filepath.Join(parent, "after")); err != nil || got != root {
		t.Errorf("read again: %s, %v", got, err)
	}
}
