package tokenizer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var families = []string{"neox", "qwen", "llama3", "gpt2", "mixtral", "llama2", "unk"}

func unzipped(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "hf", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func family(t testing.TB, name string) *Tokenizer {
	t.Helper()
	tok, err := Read(name, unzipped(t, name+".json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func digest(b []byte) [4]byte {
	s := sha256.Sum256(b)
	return [4]byte(s[:])
}

func digestIDs(ids []int32) [4]byte {
	var b []byte
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, uint32(id))
	}
	return digest(b)
}

// digests are 4 bytes for each of many outputs of the reference library.
type digests []byte

func (d *digests) UnmarshalText(b []byte) (err error) {
	*d, err = base64.StdEncoding.AppendDecode(nil, b)
	return err
}

func (d digests) at(i int) [4]byte { return [4]byte(d[4*i:]) }

type vectors struct {
	Full       [][2]any
	IDs        digests
	Added      digests
	Text       digests
	Random     [][]int32
	RandomText digests `json:"random_text"`
	RandomSkip digests `json:"random_skip"`
}

func readStrings(t testing.TB) (out []string) {
	if err := json.Unmarshal(unzipped(t, "strings.json.gz"), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestVectorsOfTheLibrary compares with what Hugging Face's tokenizers made of
// 5,000 strings for each family; make_vectors.py records them.
func TestVectorsOfTheLibrary(t *testing.T) {
	texts := readStrings(t)
	if len(texts) != 5000 {
		t.Fatalf("%d strings", len(texts))
	}
	for _, name := range families {
		t.Run(name, func(t *testing.T) {
			tok := family(t, name)
			var v vectors
			if err := json.Unmarshal(unzipped(t, name+".vec.gz"), &v); err != nil {
				t.Fatal(err)
			}
			if len(v.IDs) != 4*len(texts) || len(v.Added) != len(v.IDs) || len(v.Text) != len(v.IDs) || len(v.Full) < 100 || len(v.Random) < 500 || len(v.RandomText) != 4*len(v.Random) || len(v.RandomSkip) != 4*len(v.Random) {
				t.Fatal("vectors are missing")
			}
			bad := 0
			fail := func(format string, args ...any) {
				if bad++; bad <= 5 {
					t.Errorf(format, args...)
				}
			}
			for i, text := range texts {
				ids := tok.Encode([]byte(text))
				back, err := tok.Text(ids, false)
				if err != nil {
					t.Fatal(err)
				}
				if i < len(v.Full) {
					var want []int32
					for _, x := range v.Full[i][0].([]any) {
						want = append(want, int32(x.(float64)))
					}
					if !slices.Equal(ids, want) {
						fail("%q: %v, want %v", text, ids, want)
					}
					if back != v.Full[i][1] {
						fail("%q comes back as %q, want %q", text, back, v.Full[i][1])
					}
				}
				if digestIDs(ids) != v.IDs.at(i) {
					fail("%d %q: other ids: %v", i, text, ids)
				}
				if digestIDs(tok.Wrap(ids)) != v.Added.at(i) {
					fail("%d %q: other ids with special tokens", i, text)
				}
				if digest([]byte(back)) != v.Text.at(i) {
					fail("%d %q comes back as %q", i, text, back)
				}
			}
			for i, ids := range v.Random {
				all, err := tok.Text(ids, false)
				if err != nil {
					t.Fatal(err)
				}
				skip, _ := tok.Text(ids, true)
				if digest([]byte(all)) != v.RandomText.at(i) || digest([]byte(skip)) != v.RandomSkip.at(i) {
					fail("%v decode as %q and %q", ids, all, skip)
				}
			}
			if bad > 0 {
				t.Errorf("%d differ", bad)
			}
		})
	}
}

// TestReadOwnFile reads the demo model's tokenizer the general way.
func TestReadOwnFile(t *testing.T) {
	tok, err := Read(JSONFile, Files()[JSONFile])
	if err != nil {
		t.Fatal(err)
	}
	if tok.Size() != VocabSize {
		t.Errorf("size %d", tok.Size())
	}
	for _, s := range append(readStrings(t)[:500], "\xff\x00\xe2\x82") {
		ids := tok.Encode([]byte(s))
		if !slices.Equal(ids, Encode([]byte(s))) {
			t.Errorf("%q: %v", s, ids)
		}
		if back, err := tok.Decode(ids); err != nil || string(back) != s {
			t.Errorf("%q comes back as %q, %v", s, back, err)
		}
	}
}

// TestWaysToMerge: long words, the queue, words without cuts and short ones
// give the same tokens, whatever is in the cache.
func TestWaysToMerge(t *testing.T) {
	texts := readStrings(t)[:1500]
	for _, name := range families {
		tok := family(t, name)
		plain := family(t, name)
		plain.model.cut = 0
		s := newScratch()
		for _, text := range texts {
			if !bytes.Equal([]byte(text), plain.tables.nfc([]byte(text))) {
				continue
			}
			if got, want := tok.Encode([]byte(text)), plain.Encode([]byte(text)); !slices.Equal(got, want) {
				t.Fatalf("%s: %q: %v, without cuts %v", name, text, got, want)
			}
			if text == "" {
				continue
			}
			s.sym = s.sym[:0]
			symbols := func() {
				s.sym = s.sym[:0]
				if plain.model.byteLevel {
					for _, b := range []byte(text) {
						s.sym = append(s.sym, plain.model.byteIDs[b])
					}
				} else {
					plain.model.symbols(s, []byte(text))
				}
			}
			symbols()
			short := plain.model.mergeShort(s, nil)
			symbols()
			if long := plain.model.mergeLong(s, nil); !slices.Equal(short, long) {
				t.Fatalf("%s: %q: %v, with the queue %v", name, text, short, long)
			}
		}
	}
}

func source(b testing.TB) []byte {
	b.Helper()
	files, err := filepath.Glob("../../training/cpu/*.go")
	if err != nil || len(files) == 0 {
		b.Fatal("no source text", err)
	}
	var out []byte
	for _, f := range files {
		x, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, x...)
	}
	return out[:min(len(out), 1<<20)]
}

func BenchmarkEncode(b *testing.B) {
	text := source(b)
	for _, name := range families {
		b.Run(name, func(b *testing.B) {
			tok := family(b, name)
			b.SetBytes(int64(len(text)))
			var ids []int32
			for b.Loop() {
				ids = tok.Append(ids[:0], text)
			}
		})
	}
}
