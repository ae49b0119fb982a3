package data

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// words is a dataset of about n lines of distinct text.
func words(t testing.TB, n int, opts Options) *Dataset {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d bottles, %x more\n", i, uint32(i)*2654435761)
	}
	writeFile(t, filepath.Join(dir, "a.txt"), b.String())
	return mustDir(t, "words", dir, opts)
}

func TestPoolsAreDisjointAndTile(t *testing.T) {
	d := words(t, 4000, Options{PieceSize: 256, HeldOut: 200})
	const window = 33
	all := map[SampleID]Pool{}
	o, err := d.TrainOrder([32]byte{1}, window)
	if err != nil {
		t.Fatal(err)
	}
	if o.Epoch() != d.Windows(Train, window) {
		t.Errorf("an epoch of %d samples, the pool has %d", o.Epoch(), d.Windows(Train, window))
	}
	for i := range o.Epoch() {
		x := o.At(i)
		if _, again := all[x.ID()]; again {
			t.Fatalf("sample %d came before in the epoch", i)
		}
		all[x.ID()] = Train
	}
	n := int(d.Windows(HeldOut, window))
	held, err := d.Draw([32]byte{1}, n, window, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range held {
		if p, again := all[x.ID()]; again {
			t.Fatalf("draw %d is in the %s pool too", i, p)
		}
		all[x.ID()] = HeldOut
		if got, p, err := d.Sample(x.Piece, x.Offset, window); err != nil || p != HeldOut || got.ID() != x.ID() || !bytes.Equal(got.Text, x.Text) {
			t.Fatalf("draw %d looked up: %v %v %v", i, got, p, err)
		}
		if j, ok := d.PieceNumber(x.Document); !ok || j != x.Piece {
			t.Fatalf("piece of draw %d is number %d, %v, want %d", i, j, ok, x.Piece)
		}
	}
	if _, ok := d.PieceNumber([32]byte{}); ok {
		t.Error("found a piece that is not there")
	}
	var total int
	for _, p := range d.pieces {
		total += windowsIn(len(p.text), window)
	}
	if len(all)+d.plan(window).shared != total {
		t.Errorf("%d samples and %d left out, want %d", len(all), d.plan(window).shared, total)
	}
	// The second epoch visits the same windows in another order.
	same := 0
	for i := range o.Epoch() {
		x := o.At(o.Epoch() + i)
		if all[x.ID()] != Train {
			t.Fatalf("sample %d of epoch 2 is not in the train pool", i)
		}
		if x.ID() == o.At(i).ID() {
			same++
		}
	}
	if same > 10 {
		t.Errorf("%d of %d samples are where they were in epoch 1", same, o.Epoch())
	}
}

func TestWindowsTileAPiece(t *testing.T) {
	for _, c := range []struct{ size, window, want int }{
		{0, 2, 0}, {1, 2, 0}, {2, 2, 1}, {3, 2, 2}, {128, 129, 0}, {129, 129, 1}, {256, 129, 1}, {257, 129, 2}, {MaxPiece, 129, 127},
	} {
		if got := windowsIn(c.size, c.window); got != c.want {
			t.Errorf("%d windows of %d in %d bytes, want %d", got, c.window, c.size, c.want)
		}
	}
}

func TestHeldOutTextIsNotInTrain(t *testing.T) {
	const window = 65
	head := strings.Repeat("Permission is granted to anybody to do anything with this.\n", 4)
	dir := t.TempDir()
	for i := range 200 {
		body := ""
		for j := range 10 {
			body += fmt.Sprintf("file %d says %x\n", i, uint32(i*10+j)*2654435761)
		}
		// Every third file has the common text off the grid.
		writeFile(t, filepath.Join(dir, fmt.Sprint(i)), strings.Repeat("#", i%3*7)+head+body)
	}
	d := mustDir(t, "licensed", dir, Options{HeldOut: 300})
	var train []byte
	for _, p := range d.pieces {
		if PoolOf(p.hash, 300) == Train {
			train = append(append(train, p.text...), 0)
		}
	}
	held, err := d.Draw([32]byte{}, int(d.Windows(HeldOut, window)), window, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, x := range held {
		if bytes.Contains(train, x.Text) {
			t.Fatalf("held-out %q occurs in the train pool", x.Text)
		}
		if seen[string(x.Text)] {
			t.Fatalf("held-out %q is drawn twice", x.Text)
		}
		seen[string(x.Text)] = true
	}
	if left := d.plan(window).shared; left < 50 || len(held) < 50 {
		t.Errorf("%d left out, %d kept: the corpus does not test this", left, len(held))
	}
}

func TestDrawExcludesAndExhausts(t *testing.T) {
	d := words(t, 800, Options{PieceSize: 256, HeldOut: 200})
	const window = 33
	size := int(d.Windows(HeldOut, window))
	used := Set{}
	const per = 20
	for cycle := 0; ; cycle++ {
		got, err := d.Draw([32]byte{byte(cycle)}, per, window, used)
		if err != nil {
			var e *PoolError
			if !errors.As(err, &e) || !errors.Is(err, ErrPoolExhausted) {
				t.Fatalf("%v, want a PoolError", err)
			}
			if e.Domain != "words" || e.Size != int64(size) || e.Excluded != int64(len(used)) || e.Wanted != per || size-len(used) >= per {
				t.Errorf("%+v after %d of %d", e, len(used), size)
			}
			break
		}
		before := len(used)
		used.Add(got...)
		if len(got) != per || len(used) != before+per {
			t.Fatalf("cycle %d drew %d samples, %d new", cycle, len(got), len(used)-before)
		}
	}
	rest := size - len(used)
	if got, err := d.Draw([32]byte{9}, rest, window, used); err != nil || len(got) != rest {
		t.Errorf("the last %d: %d, %v", rest, len(got), err)
	}
	// Samples of other datasets or windows in the set do not count.
	for i := range 1000 {
		used[SampleID{byte(i), byte(i >> 8), 7}] = struct{}{}
	}
	if got, err := d.Draw([32]byte{9}, rest, window, used); err != nil || len(got) != rest {
		t.Errorf("with foreign samples excluded: %d, %v", len(got), err)
	}
}

func TestDrawIsAPrefixOfALargerOne(t *testing.T) {
	v := readVectors(t)
	for _, d := range []*Dataset{words(t, 2000, Options{PieceSize: 512}), v.maths} {
		few, err := d.Draw([32]byte{5}, 10, 65, nil)
		if err != nil {
			t.Fatal(err)
		}
		many, err := d.Draw([32]byte{5}, 40, 65, nil)
		if err != nil {
			t.Fatal(err)
		}
		other, err := d.Draw([32]byte{6}, 10, 65, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range few {
			if few[i].ID() != many[i].ID() {
				t.Errorf("%s: sample %d depends on how many are drawn", d.Name(), i)
			}
			if few[i].ID() == other[i].ID() {
				t.Errorf("%s: sample %d does not depend on the seed", d.Name(), i)
			}
		}
	}
}

// chiSquare bounds: the mean of the statistic is the degrees of freedom k, its
// deviation √2k; five of those either way.
func checkChiSquare(t *testing.T, what string, counts []int, expected float64) {
	t.Helper()
	var x float64
	for _, c := range counts {
		x += (float64(c) - expected) * (float64(c) - expected) / expected
	}
	k := float64(len(counts) - 1)
	if math.Abs(x-k) > 5*math.Sqrt(2*k) {
		t.Errorf("%s: chi-square %.1f with %.0f degrees of freedom", what, x, k)
	}
}

func TestDrawIsUniform(t *testing.T) {
	d := words(t, 400, Options{PieceSize: 256, HeldOut: 200})
	const window, draws, per = 33, 2000, 5
	size := int(d.Windows(HeldOut, window))
	index := map[SampleID]int{}
	counts := make([]int, size)
	for i := range draws {
		got, err := d.Draw([32]byte{byte(i), byte(i >> 8)}, per, window, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range got {
			j, ok := index[x.ID()]
			if !ok {
				j = len(index)
				index[x.ID()] = j
			}
			counts[j]++
		}
	}
	if len(index) != size {
		t.Errorf("%d of %d samples were ever drawn", len(index), size)
	}
	// Drawing without replacement within five of some hundred lowers the
	// variance by less than the margin.
	checkChiSquare(t, "draws", counts, float64(draws*per)/float64(size))
}

func TestOrderIsUniform(t *testing.T) {
	const n, keys = 37, 3000
	first := make([]int, n)
	pair := make([]int, 4)
	for i := range keys {
		p := newPermutation(deriveKey("test", nil, uint64(i)), n)
		first[p.at(0)]++
		a, b := p.at(1), p.at(2)
		quadrant := 0
		if a < b {
			quadrant = 1
		}
		pair[quadrant+2*int(p.at(3)%2)]++
	}
	checkChiSquare(t, "first place", first, float64(keys)/n)
	if got := pair[0] + pair[2]; got < keys/2-150 || got > keys/2+150 {
		t.Errorf("two places are in descending order %d times of %d", got, keys)
	}
}

func TestPermutationIsOne(t *testing.T) {
	for _, n := range []uint64{1, 2, 3, 4, 5, 63, 64, 65, 255, 257, 1000, 4097} {
		p := newPermutation([32]byte{byte(n)}, n)
		seen := make([]bool, n)
		for x := range n {
			y := p.at(x)
			if y >= n || seen[y] {
				t.Fatalf("n %d: %d goes to %d", n, x, y)
			}
			seen[y] = true
		}
	}
}

func TestRollingHashAgrees(t *testing.T) {
	text, err := os.ReadFile("unique.go")
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, 0, 255, 255, 0)
	for _, window := range []int{2, 7, 129} {
		r := newRoller([32]byte{255, 255, 255, 255, 255, 255, 255, 255}, window)
		visited := 0
		r.scan(text, &filter{bits: []uint64{^uint64(0)}, mask: 63}, func(at int, h uint64) {
			if at != visited || h != r.sum(text[at:at+window]) {
				t.Fatalf("window %d at %d", window, at)
			}
			visited++
		})
		if visited != len(text)-window+1 {
			t.Errorf("window %d: %d visited", window, visited)
		}
	}
}

func TestBadArguments(t *testing.T) {
	v := readVectors(t)
	d := words(t, 100, Options{})
	for _, err := range []error{
		second(d.Draw(v.seed, 1, 1, nil)), second(d.Draw(v.seed, -1, 9, nil)), second(d.Draw(v.seed, maxDraw+1, 9, nil)),
		second(d.Draw(v.seed, 1, MaxPiece+1, nil)), second(d.TrainOrder(v.seed, 0)),
		second(v.maths.Draw(v.seed, 1, mathMinPiece+1, nil)), second(v.maths.TrainOrder(v.seed, mathMinPiece+1)),
	} {
		if !errors.Is(err, ErrOption) {
			t.Errorf("%v, want ErrOption", err)
		}
	}
	if d.Windows(Train, 1) != 0 || d.Windows(HeldOut, MaxPiece+1) != 0 {
		t.Error("windows of an impossible size")
	}
	small := words(t, 1, Options{})
	for _, err := range []error{second(small.TrainOrder(v.seed, 129)), second(small.Draw(v.seed, 1, 129, nil))} {
		if !errors.Is(err, ErrPoolExhausted) {
			t.Errorf("%v, want ErrPoolExhausted", err)
		}
	}
	for _, c := range []struct{ piece, offset, window int64 }{
		{-1, 0, 9}, {1 << 41, 0, 9}, {0, -8, 9}, {0, 1, 9}, {0, 8 << 20, 9}, {0, math.MaxInt64 - 7, 9},
	} {
		for _, d := range []*Dataset{d, v.maths} {
			if _, _, err := d.Sample(c.piece, int(c.offset), int(c.window)); !errors.Is(err, ErrNoSample) {
				t.Errorf("%s: sample %v: %v, want ErrNoSample", d.Name(), c, err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestUseFromManyGoroutines(t *testing.T) {
	d := words(t, 500, Options{PieceSize: 256})
	errs := make(chan error)
	for i := range 8 {
		go func() {
			_, err := d.Draw([32]byte{}, 5, 17+i%3, nil)
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
