package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/go-cid"
)

func TestAssembleGivesTheSameDataset(t *testing.T) {
	v := readVectors(t)
	for _, d := range []*Dataset{v.finite, v.maths} {
		blocks := map[cid.Cid][]byte{}
		for c, b := range d.Pieces() {
			if got, err := c.Prefix().Sum(b); err != nil || got != c {
				t.Fatalf("%s: piece %s has CID %s, %v", d.Name(), c, got, err)
			}
			blocks[c] = b
		}
		if (len(blocks) == 0) != d.Endless() {
			t.Errorf("%s: %d pieces, endless %v", d.Name(), len(blocks), d.Endless())
		}
		again, err := Assemble(d.Record(), func(c cid.Cid) ([]byte, error) { return blocks[c], nil })
		if err != nil {
			t.Fatal(err)
		}
		if again.CID() != d.CID() || again.Name() != d.Name() || again.HeldOutPermille() != d.HeldOutPermille() {
			t.Errorf("%s: assembled %s, want %s", d.Name(), again.CID(), d.CID())
		}
		a, err := d.Draw(v.seed, 10, 17, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := again.Draw(v.seed, 10, 17, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range a {
			if a[i].ID() != b[i].ID() || !bytes.Equal(a[i].Text, b[i].Text) {
				t.Errorf("%s: draw %d differs", d.Name(), i)
			}
		}
		if c, err := d.CID().Prefix().Sum(d.Record()); err != nil || c != d.CID() {
			t.Errorf("%s: CID %s is not that of the record, %s, %v", d.Name(), d.CID(), c, err)
		}
	}
}

func TestAssembleRefuses(t *testing.T) {
	text := func(s string) piece { return piece{sha256.Sum256([]byte(s)), []byte(s)} }
	pieces := []piece{text("one\n"), text("two\n"), text("three\n")}
	slices.SortFunc(pieces, func(a, b piece) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	d, err := newDataset("small", 500, pieces)
	if err != nil {
		t.Fatal(err)
	}
	lost := errors.New("nobody has it")
	good := map[cid.Cid][]byte{}
	for c, b := range d.Pieces() {
		good[c] = b
	}
	short := d.rec
	short.Bytes--
	shortRecord, err := short.Encode()
	if err != nil {
		t.Fatal(err)
	}
	long := d.rec
	long.Bytes++
	longRecord, err := long.Encode()
	if err != nil {
		t.Fatal(err)
	}
	other := Record{Name: "x", Kind: KindGenerator, HeldOut: 100, Generator: GeneratorRef{Name: "sonnets", Version: 1}}
	otherRecord, err := other.Encode()
	if err != nil {
		t.Fatal(err)
	}
	honest := func(c cid.Cid) ([]byte, error) { return good[c], nil }
	for _, c := range []struct {
		name   string
		record []byte
		fetch  func(cid.Cid) ([]byte, error)
		want   error
	}{
		{"fetch fails", d.Record(), func(cid.Cid) ([]byte, error) { return nil, lost }, lost},
		{"empty", d.Record(), func(cid.Cid) ([]byte, error) { return nil, nil }, ErrPiece},
		{"too large", d.Record(), func(cid.Cid) ([]byte, error) { return make([]byte, MaxPiece+1), nil }, ErrPiece},
		{"another text", d.Record(), func(cid.Cid) ([]byte, error) { return []byte("four\n"), nil }, ErrPiece},
		{"fewer bytes stated", shortRecord, honest, ErrPiece},
		{"more bytes stated", longRecord, honest, ErrPiece},
		{"no such generator", otherRecord, honest, ErrGenerator},
		{"not a record", []byte("{}"), honest, ErrRecord},
	} {
		if _, err := Assemble(c.record, c.fetch); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// encodeWire encodes without the checks of Record.Encode.
func encodeWire(t *testing.T, w any) []byte {
	t.Helper()
	mode, err := encMode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := mode.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseRecordRefuses(t *testing.T) {
	one, two := wireLink{1}, wireLink{2}
	seed := make([]byte, 32)
	ok := wireRecord{Kind: KindPieces, Name: "a", Bytes: 2, Pieces: []wireLink{one, two}, HeldOut: 100, Version: 1}
	gen := wireRecord{Kind: KindGenerator, Name: "a", HeldOut: 100, Version: 1, Generator: &wireGenerator{"math", seed, 1}}
	for _, w := range []wireRecord{ok, gen} {
		if _, err := ParseRecord(encodeWire(t, &w)); err != nil {
			t.Fatal(err)
		}
	}
	change := func(w wireRecord, f func(*wireRecord)) []byte { f(&w); return encodeWire(t, &w) }
	indefinite, err := hex.DecodeString("bf646b696e64667069656365736fff")
	if err != nil {
		t.Fatal(err)
	}
	type extended struct {
		wireRecord
		Extra int `cbor:"extra"`
	}
	for _, c := range []struct {
		name, field string
		b           []byte
	}{
		{"nothing", "", nil},
		{"not cbor", "", []byte("hello")},
		{"another type", "", encodeWire(t, []int{1})},
		{"too long", "", make([]byte, MaxRecord+1)},
		{"trailing byte", "", append(encodeWire(t, &ok), 0)},
		{"cut off", "", encodeWire(t, &ok)[:40]},
		{"unknown field", "", encodeWire(t, &extended{ok, 1})},
		{"indefinite length", "", indefinite},
		{"keys in another order", "", func() []byte {
			mode, err := cbor.EncOptions{Sort: cbor.SortBytewiseLexical}.EncMode()
			if err != nil {
				t.Fatal(err)
			}
			b, err := mode.Marshal(map[string]any{"kind": "pieces", "name": "a", "bytes": 1, "pieces": []wireLink{one}, "heldOut": 100, "version": 1, "generator": nil})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}()},
		{"version", "version", change(ok, func(w *wireRecord) { w.Version = 2 })},
		{"kind", "kind", change(ok, func(w *wireRecord) { w.Kind = "magic" })},
		{"no name", "name", change(ok, func(w *wireRecord) { w.Name = "" })},
		{"name with slash", "name", change(ok, func(w *wireRecord) { w.Name = "../a" })},
		{"permille", "heldOut", change(ok, func(w *wireRecord) { w.HeldOut = 1 << 63 })},
		{"no pieces", "pieces", change(ok, func(w *wireRecord) { w.Pieces = nil })},
		{"equal pieces", "pieces", change(ok, func(w *wireRecord) { w.Pieces = []wireLink{one, one} })},
		{"descending pieces", "pieces", change(ok, func(w *wireRecord) { w.Pieces = []wireLink{two, one} })},
		{"too few bytes", "bytes", change(ok, func(w *wireRecord) { w.Bytes = 1 })},
		{"too many bytes", "bytes", change(ok, func(w *wireRecord) { w.Bytes = 2*MaxPiece + 1 })},
		{"absurd bytes", "bytes", change(ok, func(w *wireRecord) { w.Bytes = 1 << 63 })},
		{"both kinds", "generator", change(ok, func(w *wireRecord) { w.Generator = gen.Generator })},
		{"generator with pieces", "pieces", change(gen, func(w *wireRecord) { w.Pieces = ok.Pieces })},
		{"generator without held-out", "heldOut", change(gen, func(w *wireRecord) { w.HeldOut = 0 })},
		{"generator mostly held out", "heldOut", change(gen, func(w *wireRecord) { w.HeldOut = 501 })},
		{"generator without name", "generator.name", change(gen, func(w *wireRecord) { w.Generator = &wireGenerator{"", seed, 1} })},
		{"short seed", "generator.seed", change(gen, func(w *wireRecord) { w.Generator = &wireGenerator{"math", seed[1:], 1} })},
		{"identity link", "", bytes.Replace(encodeWire(t, &ok), []byte{0x55, 0x12, 0x20}, []byte{0x55, 0x00, 0x20}, 1)},
		{"dag-pb link", "", bytes.Replace(encodeWire(t, &ok), []byte{0x55, 0x12, 0x20}, []byte{0x70, 0x12, 0x20}, 1)},
	} {
		_, err := ParseRecord(c.b)
		var re *RecordError
		if !errors.As(err, &re) || !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v, want a RecordError", c.name, err)
		} else if c.field != "" && re.Field != c.field {
			t.Errorf("%s: field %q (%v), want %q", c.name, re.Field, err, c.field)
		}
	}
}

func TestRecordAtItsLargestFits(t *testing.T) {
	r := Record{Name: string(bytes.Repeat([]byte("a"), maxName)), Kind: KindPieces, HeldOut: 1000, Bytes: maxMaxBytes}
	for i := range MaxPieces {
		r.Pieces = append(r.Pieces, [32]byte{byte(i >> 8), byte(i)})
	}
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRecord(b); err != nil {
		t.Errorf("%d bytes: %v", len(b), err)
	}
	r.Pieces = append(r.Pieces, [32]byte{255})
	if _, err := r.Encode(); !errors.Is(err, ErrRecord) {
		t.Errorf("one piece more: %v", err)
	}
}

func FuzzParseRecord(f *testing.F) {
	v := readVectors(f)
	f.Add(v.finite.Record())
	f.Add(v.maths.Record())
	f.Add([]byte{0xa0})
	f.Add([]byte{0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %x but encodes as %x, %v", b, again, err)
		}
		_, err = Assemble(b, func(cid.Cid) ([]byte, error) { return []byte("x"), nil })
		if err != nil && !errors.Is(err, ErrPiece) && !errors.Is(err, ErrGenerator) {
			t.Fatalf("assemble: %v", err)
		}
	})
}
