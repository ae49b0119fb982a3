package blockstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"

	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// killEnv names the directory in which the test binary writes as a child.
const killEnv = "BLOCKSTORE_KILL_DIR"

// generation is what a child writes and pins at a time.
func generation(n uint64) []blocks.Block {
	var bs []blocks.Block
	for i := range uint64(6) {
		bs = append(bs, blockstoretest.Block(n<<8|i, []int{500, 3000, 40_000, 70_000, 120_000, 300_000}[i]))
	}
	return append(bs, listOf(n, cids(bs...)...))
}

func generationOwner(n uint64) Owner { return Owner{"checkpoint", fmt.Sprint(n)} }

// TestKillChild is the child of TestKill: it writes and pins generations, gives old ones up and collects, and says so.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(killEnv)
	if dir == "" {
		t.Skip("the child of TestKill")
	}
	o := linked()
	o.FileSize = 4 << 20
	s, err := Open(dir, o)
	must(t, err)
	ctx := context.Background()
	pins, err := s.Pins()
	must(t, err)
	first := uint64(1)
	for _, p := range pins {
		var n uint64
		_, err := fmt.Sscan(p.Owner.Name, &n)
		must(t, err)
		first = max(first, n+1)
	}
	fmt.Println("open")
	go func() {
		for ctx.Err() == nil {
			if _, err := s.Collect(ctx, nil); err != nil && len(pins) > 0 {
				panic(err)
			}
		}
	}()
	for n := first; ; n++ {
		bs := generation(n)
		release := s.Hold()
		must(t, s.PutMany(ctx, bs))
		must(t, s.Pin(ctx, Pin{Owner: generationOwner(n), Roots: cids(bs[6])}))
		release()
		fmt.Println("pinned", n)
		if n > 4 {
			fmt.Println("unpinning", n-4)
			must(t, s.Unpin(ctx, generationOwner(n-4)))
		}
	}
}

// TestKill kills a process that puts, pins and collects, at moments that a seed draws, again and again in one directory:
// what it said is pinned is there afterwards, and every block is sound.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	acknowledged := map[uint64]bool{}
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
		cmd.Env = append(os.Environ(), killEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines, left := bufio.NewScanner(out), 4+rng.IntN(24)
		for ; left > 0 && lines.Scan(); left-- {
			var n uint64
			switch what, rest, _ := strings.Cut(lines.Text(), " "); what {
			case "pinned":
				fmt.Sscan(rest, &n)
				acknowledged[n] = true
			case "unpinning":
				fmt.Sscan(rest, &n)
				delete(acknowledged, n)
			case "open":
			default:
				t.Fatalf("the child says %q", lines.Text())
			}
		}
		must(t, cmd.Process.Kill())
		for lines.Scan() { // what it said before it died
			var n uint64
			if rest, ok := strings.CutPrefix(lines.Text(), "unpinning "); ok {
				fmt.Sscan(rest, &n)
				delete(acknowledged, n)
			} else if rest, ok := strings.CutPrefix(lines.Text(), "pinned "); ok {
				fmt.Sscan(rest, &n)
				acknowledged[n] = true
			}
		}
		_ = cmd.Wait()

		s, err := Open(dir, linked())
		must(t, err)
		v, err := s.Verify(t.Context(), false, nil)
		must(t, err)
		if !v.Sound() || v.Blocks == 0 {
			t.Errorf("round %d: %+v", round, v)
		}
		for n := range acknowledged {
			holdsExactly(t, s, generation(n), nil)
		}
		pins, err := s.Pins()
		must(t, err)
		for n := range acknowledged {
			if !slices.ContainsFunc(pins, func(p Pin) bool { return p.Owner == generationOwner(n) }) {
				t.Errorf("round %d: pin %d is gone", round, n)
			}
		}
		c, err := s.Collect(t.Context(), nil)
		must(t, err)
		t.Logf("round %d: %d generations, %d blocks verified, %d garbage", round, len(acknowledged), v.Blocks, c.Removed)
		must(t, s.Close())
	}
}

// TestVerify finds what the disk changed, in both kinds of storage, and what is missing; with repair it takes the damaged
// blocks out and changes nothing else.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, linked())
	bs := generation(1)
	must(t, s.PutMany(t.Context(), bs))
	must(t, s.Pin(t.Context(), Pin{Owner: generationOwner(1), Roots: cids(bs[6])}))
	v, err := s.Verify(t.Context(), false, nil)
	must(t, err)
	if !v.Sound() || v.Blocks != 7 || v.Total != 7 {
		t.Errorf("untouched: %+v", v)
	}
	must(t, edit(fileOf(s, bs[5]), func(d []byte) []byte { d[100] ^= 1; return d }))
	wrong, err := blocks.NewBlockWithCid(bs[2].RawData(), blockstoretest.Block(77, 40_000).Cid())
	must(t, err)
	must(t, s.PutHashed(t.Context(), []blocks.Block{wrong}))
	must(t, s.DeleteBlock(t.Context(), bs[1].Cid()))
	reports := 0
	for range 2 { // looking changes nothing
		v, err = s.Verify(t.Context(), false, func(Verified) { reports++ })
		must(t, err)
		if len(v.Damaged) != 2 || v.Repaired != 0 || len(v.Pins) != 1 || v.Pins[0].Absent != 1 || v.Sound() {
			t.Errorf("damaged: %+v", v)
		}
	}
	if reports != 14 {
		t.Errorf("%d reports", reports)
	}
	v, err = s.Verify(t.Context(), true, nil)
	must(t, err)
	if v.Repaired != 2 || v.Pins[0].Absent != 2 || v.Sound() {
		t.Errorf("repaired: %+v", v)
	}
	must(t, s.PutMany(t.Context(), bs))
	if v, err = s.Verify(t.Context(), false, nil); err != nil || !v.Sound() || v.Blocks != 7 {
		t.Errorf("put anew: %+v, %v", v, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = s.Verify(ctx, false, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
