package data

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// hexBytes is a hex string in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

type sampleVector struct {
	At       int64
	Piece    int64
	Document hexBytes
	Offset   int
	ID       hexBytes
}

type vectors struct {
	Seed           hexBytes
	Words          []string
	Below          map[string][]string
	Permutations   map[string][]uint64
	Permutation40  []uint64
	Cuts           []cutVector
	Finite         finiteVector
	Math           mathVector
	seed           [32]byte
	finite, maths  *Dataset
	finiteTempRoot string
}

type cutVector struct {
	Hex     hexBytes
	Limit   int
	Lengths []int
}

type finiteVector struct {
	Files                                []string
	Name, CID                            string
	HeldOut, PieceSize, MaxBytes, Window int
	Record                               hexBytes
	TrainWindows, HeldOutWindows         int64
	HeldOutBeforeUnique                  int
	Draw, DrawExcludingThose, Order      []sampleVector
}

type mathVector struct {
	Record hexBytes
	CID    string
	Window int
	Piece0 string
	Pieces []struct {
		Number uint64
		SHA256 hexBytes
	}
	Draw, Order []sampleVector
}

func readVectors(t testing.TB) *vectors {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	v := &vectors{}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	v.seed = [32]byte(v.Seed)
	v.finiteTempRoot = t.TempDir()
	for i, f := range v.Finite.Files {
		writeFile(t, filepath.Join(v.finiteTempRoot, fmt.Sprintf("%02d.txt", i)), f)
	}
	v.finite = mustDir(t, v.Finite.Name, v.finiteTempRoot, Options{HeldOut: v.Finite.HeldOut, MaxBytes: int64(v.Finite.MaxBytes), PieceSize: v.Finite.PieceSize})
	if v.maths, err = BuiltinOne("", Maths); err != nil {
		t.Fatal(err)
	}
	return v
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustDir(t testing.TB, name, dir string, opts Options) *Dataset {
	t.Helper()
	d, err := FromDir(name, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func checkSample(t *testing.T, what string, got Sample, want sampleVector) {
	t.Helper()
	id := got.ID()
	if !bytes.Equal(got.Document[:], want.Document) || got.Offset != want.Offset || !bytes.Equal(id[:], want.ID) {
		t.Errorf("%s: got document %x offset %d id %x, want %x %d %x", what, got.Document, got.Offset, id, want.Document, want.Offset, want.ID)
	}
}

func TestVectorsArithmetic(t *testing.T) {
	v := readVectors(t)
	for c, want := range v.Words {
		if got := strconv.FormatUint(word(&v.seed, uint64(c)), 10); got != want {
			t.Errorf("word %d is %s, want %s", c, got, want)
		}
	}
	for text, want := range v.Below {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s := stream{key: v.seed}
		for i, w := range want {
			if got := strconv.FormatUint(s.below(n), 10); got != w {
				t.Errorf("below(%d) number %d is %s, want %s", n, i, got, w)
			}
		}
	}
	for text, want := range v.Permutations {
		p := newPermutation(v.seed, uint64(len(want)))
		for x, w := range want {
			if got := p.at(uint64(x)); got != w {
				t.Errorf("permutation of %s at %d is %d, want %d", text, x, got, w)
			}
		}
	}
	p := newPermutation(v.seed, endlessPieces)
	for i, x := range []uint64{0, 1, 2, endlessPieces - 1} {
		if got := p.at(x); got != v.Permutation40[i] {
			t.Errorf("permutation of 2^40 at %d is %d, want %d", x, got, v.Permutation40[i])
		}
	}
	for _, c := range v.Cuts {
		rest := []byte(c.Hex)
		for i, want := range c.Lengths {
			if got := Cut(rest, c.Limit); got != want {
				t.Fatalf("%x cut at %d: piece %d has %d bytes, want %d", []byte(c.Hex), c.Limit, i, got, want)
			}
			rest = rest[want:]
		}
		if len(rest) != 0 {
			t.Errorf("%x cut at %d: %d bytes left", []byte(c.Hex), c.Limit, len(rest))
		}
	}
}

func TestVectorsFinite(t *testing.T) {
	v := readVectors(t)
	f, d := v.Finite, v.finite
	if !bytes.Equal(d.Record(), f.Record) {
		t.Fatalf("record\n%x, want\n%x", d.Record(), []byte(f.Record))
	}
	if d.CID().String() != f.CID {
		t.Errorf("CID %s, want %s", d.CID(), f.CID)
	}
	if got := d.Windows(Train, f.Window); got != f.TrainWindows {
		t.Errorf("%d train windows, want %d", got, f.TrainWindows)
	}
	if got := d.Windows(HeldOut, f.Window); got != f.HeldOutWindows {
		t.Errorf("%d held-out windows, want %d", got, f.HeldOutWindows)
	}
	if got := d.plan(f.Window).shared; got != f.HeldOutBeforeUnique-int(f.HeldOutWindows) || got == 0 {
		t.Errorf("%d held-out windows left out, want %d and more than none", got, f.HeldOutBeforeUnique-int(f.HeldOutWindows))
	}
	exclude := Set{}
	for _, want := range [][]sampleVector{f.Draw, f.DrawExcludingThose} {
		got, err := d.Draw(v.seed, len(want), f.Window, exclude)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			checkSample(t, fmt.Sprintf("draw %d", i), got[i], want[i])
		}
		exclude.Add(got...)
	}
	o, err := d.TrainOrder(v.seed, f.Window)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range f.Order {
		checkSample(t, fmt.Sprintf("order at %d", want.At), o.At(want.At), want)
	}
}

func TestVectorsMath(t *testing.T) {
	v := readVectors(t)
	m, d := v.Math, v.maths
	if !bytes.Equal(d.Record(), m.Record) || d.CID().String() != m.CID {
		t.Fatalf("record %x CID %s, want %x %s", d.Record(), d.CID(), []byte(m.Record), m.CID)
	}
	if got := string(d.gen.piece(0).text); got != m.Piece0 {
		t.Errorf("piece 0 is\n%s\nwant\n%s", got, m.Piece0)
	}
	for _, p := range m.Pieces {
		if got := d.gen.piece(p.Number).hash; !bytes.Equal(got[:], p.SHA256) {
			t.Errorf("piece %d has hash %x, want %x", p.Number, got, []byte(p.SHA256))
		}
	}
	got, err := d.Draw(v.seed, len(m.Draw), m.Window, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range m.Draw {
		checkSample(t, fmt.Sprintf("draw %d", i), got[i], want)
		if got[i].Piece != want.Piece {
			t.Errorf("draw %d is in piece %d, want %d", i, got[i].Piece, want.Piece)
		}
	}
	o, err := d.TrainOrder(v.seed, m.Window)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range m.Order {
		x := o.At(want.At)
		checkSample(t, fmt.Sprintf("order at %d", want.At), x, want)
		if x.Piece != want.Piece {
			t.Errorf("order at %d is in piece %d, want %d", want.At, x.Piece, want.Piece)
		}
	}
}
