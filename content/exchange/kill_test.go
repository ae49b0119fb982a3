package exchange

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/checkpoint"
)

// killEnv tells the test binary what to do as a child: import DIR or fetch ADDRESS ROOT, into STORE.
const killEnv = "EXCHANGE_KILL"

var killRoomy = Bounds{MaxBytes: 1 << 30}

func pinOf(root cid.Cid) blockstore.Pin {
	return blockstore.Pin{Owner: blockstore.Owner{Kind: "checkpoint", Name: root.String()}, Roots: []cid.Cid{root}}
}

func collecting() blockstore.Options {
	o := blockstore.DefaultOptions()
	o.Links = Links
	return o
}

// told is a store that says how many bytes it has stored.
type told struct {
	*blockstore.Store
	bytes int
}

func (s *told) PutHashed(ctx context.Context, bs []blocks.Block) error {
	err := s.Store.PutHashed(ctx, bs)
	for _, b := range bs {
		s.bytes += len(b.RawData())
	}
	fmt.Println("moved", s.bytes)
	return err
}

// TestKillChild is the child of the tests below.
func TestKillChild(t *testing.T) {
	args := strings.Fields(os.Getenv(killEnv))
	if len(args) == 0 {
		t.Skip("the child of other tests")
	}
	ctx := context.Background()
	s, err := blockstore.Open(args[1], collecting())
	must(t, err)
	switch args[0] {
	case "import":
		release := s.Hold()
		root, _, err := Publish(ctx, &told{Store: s}, args[2])
		must(t, err)
		must(t, s.Pin(ctx, pinOf(root)))
		release()
	case "fetch":
		root, err := cid.Decode(args[3])
		must(t, err)
		info, err := peer.AddrInfoFromString(args[2])
		must(t, err)
		h := newHost(t)
		e := New(h, s, Config{})
		must(t, h.Connect(ctx, *info))
		must(t, s.Pin(ctx, pinOf(root)))
		_, err = e.FetchDAG(ctx, root, killRoomy, func(p Progress) { fmt.Println("moved", p.MovedBytes) })
		must(t, err)
	}
	fmt.Println("done 0")
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
}

// runAndKill runs a child until it has moved as many bytes, or is done, and kills it. It reports whether the child said
// that it was done.
func runAndKill(t *testing.T, task string, bytes int) (done bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
	cmd.Env = append(os.Environ(), killEnv+"="+task)
	out, err := cmd.StdoutPipe()
	must(t, err)
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var what string
		var n int
		if _, err := fmt.Sscan(lines.Text(), &what, &n); err != nil {
			t.Errorf("the child says %q", lines.Text())
		}
		if done = what == "done"; done || n >= bytes {
			break
		}
	}
	must(t, cmd.Process.Kill())
	for lines.Scan() {
		done = done || lines.Text() == "done 0"
	}
	_ = cmd.Wait()
	return done
}

// largeCheckpoint writes a checkpoint of 24 MiB.
func largeCheckpoint(t *testing.T) (dir string, root cid.Cid) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "phi")
	const n = 6 << 20
	root, err := checkpoint.Write(dir, checkpoint.Contents{
		Documents: map[string][]byte{"config.json": []byte(`{"model_type":"qwen3_moe"}`)},
		Files: []checkpoint.File{{Name: "hub-00001.safetensors", Tensors: []checkpoint.Tensor{
			{Name: "hub", DType: checkpoint.F32, Shape: []int64{n}, Data: values(1, n)}}}},
	})
	must(t, err)
	return dir, root
}

// sound opens a store that a killed child had open. Every block in it must be sound.
func sound(t *testing.T, dir string) *blockstore.Store {
	t.Helper()
	s, err := blockstore.Open(dir, collecting())
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	v, err := s.Verify(t.Context(), false, nil)
	must(t, err)
	if len(v.Damaged) > 0 {
		t.Errorf("damaged after the kill: %v", v.Damaged)
	}
	return s
}

// TestKilledImport kills an import in the middle, which leaves sound blocks that the next one need not write, and one that
// has said it is done, of which nothing may be missing.
func TestKilledImport(t *testing.T) {
	dir, root := largeCheckpoint(t)
	store := t.TempDir()
	if runAndKill(t, "import "+store+" "+dir, 10<<20) {
		t.Error("the import was over before it was killed")
	}
	s := sound(t, store)
	stat, err := s.Stat(t.Context())
	must(t, err)
	if stat.Bytes < 10<<20 {
		t.Errorf("%d bytes are left", stat.Bytes)
	}
	must(t, s.Close())
	if !runAndKill(t, "import "+store+" "+dir, 1<<30) {
		t.Error("the import did not end")
	}
	s = sound(t, store)
	if _, err := s.Collect(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if p, err := Complete(t.Context(), s, root, killRoomy); err != nil || p.Bytes < 24<<20 {
		t.Errorf("after a kill, an import and a collection: %+v, %v", p, err)
	}
}

// TestKilledFetch kills a fetch at half: what had come does not come again. Then it kills one that has said it is done.
func TestKilledFetch(t *testing.T) {
	a := newNode(t, Config{})
	dir, root := largeCheckpoint(t)
	_, size, err := Publish(t.Context(), a, dir)
	must(t, err)
	store := t.TempDir()
	task := fmt.Sprintf("fetch %s %s/p2p/%s %s", store, a.host.Addrs()[0], a.host.ID(), root)
	if runAndKill(t, task, int(size/2)) {
		t.Error("the fetch was over before it was killed")
	}
	s := sound(t, store)
	if _, err := s.Collect(t.Context(), nil); err != nil { // the root is pinned: nothing of it is garbage
		t.Error(err)
	}
	h := newHost(t)
	e := New(h, s, Config{})
	connect(t, h, a.host)
	p, err := e.FetchDAG(t.Context(), root, killRoomy, nil)
	must(t, err)
	must(t, e.Close())
	t.Logf("the second fetch moved %d of %d bytes", p.MovedBytes, size)
	if p.Bytes != size || p.MovedBytes > size*52/100 {
		t.Errorf("the second fetch moved %d of %d bytes", p.MovedBytes, size)
	}
	store = t.TempDir()
	if !runAndKill(t, strings.Replace(task, strings.Fields(task)[1], store, 1), 1<<30) {
		t.Error("the fetch did not end")
	}
	if p, err := Complete(t.Context(), sound(t, store), root, killRoomy); err != nil || p.Bytes != size {
		t.Errorf("a fetch that was done: %+v, %v", p, err)
	}
}
