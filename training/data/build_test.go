package data

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFromDirTakesText(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.txt"), "alpha\n")
	writeFile(t, filepath.Join(dir, "sub", "b"), "beta\n")
	writeFile(t, filepath.Join(dir, "sub", "again"), "alpha\n")
	writeFile(t, filepath.Join(dir, "empty"), "")
	writeFile(t, filepath.Join(dir, "nul"), "a\x00b\n")
	writeFile(t, filepath.Join(dir, "latin1"), "caf\xe9\n")
	// The second piece of this file is not text, so neither is the first.
	writeFile(t, filepath.Join(dir, "late"), strings.Repeat("x", MaxPiece)+"\xff")
	writeFile(t, filepath.Join(dir, ".git", "config"), "secret\n")
	writeFile(t, filepath.Join(dir, ".env"), "secret\n")
	outside := filepath.Join(t.TempDir(), "outside")
	writeFile(t, outside, "outside\n")
	link := os.Symlink(outside, filepath.Join(dir, "link")) == nil
	d := mustDir(t, "mine", dir, Options{})
	var got []string
	for _, b := range d.Pieces() {
		got = append(got, string(b))
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"alpha\n", "beta\n"}) {
		t.Errorf("pieces %q", got)
	}
	if link {
		root := filepath.Join(t.TempDir(), "root")
		if err := os.Symlink(dir, root); err != nil {
			t.Fatal(err)
		}
		if other := mustDir(t, "mine", root, Options{}); other.CID() != d.CID() {
			t.Error("the directory through a symbolic link is another dataset")
		}
	}
}

func TestFromDirRefuses(t *testing.T) {
	full := t.TempDir()
	writeFile(t, filepath.Join(full, "a.txt"), strings.Repeat("text\n", 100))
	binary := t.TempDir()
	writeFile(t, filepath.Join(binary, "a.bin"), "\x00\x01")
	writeFile(t, filepath.Join(binary, "b"), "")
	for _, c := range []struct {
		what, name, dir string
		opts            Options
		want            error
		says            []string
	}{
		{"missing", "x", filepath.Join(full, "nowhere"), Options{}, fs.ErrNotExist, []string{"nowhere", `"x"`}},
		{"a file", "x", filepath.Join(full, "a.txt"), Options{}, ErrOption, []string{"a.txt", "not a directory"}},
		{"empty", "x", t.TempDir(), Options{}, ErrNoText, []string{"there are no files"}},
		{"no text", "x", binary, Options{}, ErrNoText, []string{binary, "looked at 2 files", "1 empty", "1 not UTF-8"}},
		{"too much", "x", full, Options{MaxRead: 100}, ErrTooLarge, []string{"a.txt", "100 bytes"}},
		{"bad name", "X Y", full, Options{}, ErrOption, []string{"X Y"}},
		{"bad options", "x", full, Options{HeldOut: 1000, MaxBytes: -1, PieceSize: MaxPiece + 1, Workers: -1, MaxRead: -1}, ErrOption, []string{"HeldOut", "MaxBytes", "PieceSize", "Workers", "MaxRead"}},
	} {
		_, err := FromDir(c.name, c.dir, c.opts)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not say %q", c.what, err, s)
			}
		}
	}
	if os.Getuid() != 0 {
		secret := filepath.Join(full, "secret")
		writeFile(t, secret, "x")
		if err := os.Chmod(secret, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := FromDir("x", full, Options{}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("unreadable file: %v", err)
		}
	}
}

func TestCapKeepsTheSmallestHashes(t *testing.T) {
	all := words(t, 8000, Options{PieceSize: 256})
	const limit = 20_000
	var first []string
	for _, workers := range []int{1, 2, 7} {
		dir := t.TempDir()
		// The same pieces, one file each, in other files than all's.
		n := 0
		for _, b := range all.Pieces() {
			writeFile(t, filepath.Join(dir, fmt.Sprintf("%05d", n*7919%100_003)), string(b))
			n++
		}
		d := mustDir(t, "words", dir, Options{MaxBytes: limit, PieceSize: 256, Workers: workers})
		first = append(first, d.CID().String())
		kept := d.Bytes(Train) + d.Bytes(HeldOut)
		if kept > limit || kept < limit-256 {
			t.Errorf("%d bytes kept, the cap is %d", kept, limit)
		}
		for i := range d.pieces {
			if d.pieces[i].hash != all.pieces[i].hash {
				t.Fatalf("piece %d is not the one with the next smallest hash", i)
			}
		}
	}
	if first[0] != first[1] || first[1] != first[2] {
		t.Errorf("the number of workers changes the dataset: %v", first)
	}
}

func TestCollectorMergesLikeOne(t *testing.T) {
	pieces := words(t, 3000, Options{PieceSize: 128}).pieces
	one := &collector{maxBytes: 9000}
	parts := []*collector{{maxBytes: 9000}, {maxBytes: 9000}, {maxBytes: 9000}}
	for i, p := range pieces {
		one.add(p.text)
		one.add(p.text) // repeats take no room
		parts[i%2].add(p.text)
		parts[2].add(p.text)
	}
	one.prune()
	merged := &collector{maxBytes: 9000}
	for _, p := range parts {
		merged.merge(p)
	}
	merged.prune()
	if !slices.EqualFunc(one.pieces, merged.pieces, func(a, b piece) bool { return a.hash == b.hash }) || len(one.pieces) < 50 {
		t.Errorf("%d pieces alone, %d merged", len(one.pieces), len(merged.pieces))
	}
}

func TestSharesAreNearThePermille(t *testing.T) {
	for _, permille := range []int{50, 100, 250, 500} {
		d := words(t, 40_000, Options{PieceSize: 256, HeldOut: permille})
		held, all := float64(d.Documents(HeldOut)), float64(d.Documents(HeldOut)+d.Documents(Train))
		want := float64(permille) / 1000
		// Four standard deviations of a binomial share.
		margin := 4 * 0.5 / 63
		if all < 4000 || held/all < want-margin || held/all > want+margin {
			t.Errorf("permille %d: %.0f of %.0f pieces held out", permille, held, all)
		}
	}
}

func TestCutReaderIsCut(t *testing.T) {
	text := []byte(strings.Repeat("ab\ncdé日本\n\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞", 50))
	for _, limit := range []int{4, 16, 33, 200} {
		var want []string
		for rest := text; len(rest) > 0; {
			n := Cut(rest, limit)
			want = append(want, string(rest[:n]))
			rest = rest[n:]
		}
		if strings.Join(want, "") != string(text) {
			t.Fatal("cutting lost text")
		}
		for _, buf := range []int{limit + 1, 2 * limit, 100_000} {
			for _, r := range []io.Reader{bytes.NewReader(text), iotest.OneByteReader(bytes.NewReader(text)), iotest.DataErrReader(bytes.NewReader(text))} {
				var got []string
				if err := cutReader(r, make([]byte, buf), limit, func(p []byte) bool { got = append(got, string(p)); return true }); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, want) {
					t.Errorf("limit %d, buffer %d: other pieces than Cut gives", limit, buf)
				}
			}
		}
	}
	broken := errors.New("broken")
	if err := cutReader(iotest.ErrReader(broken), make([]byte, 10), 4, func([]byte) bool { return true }); !errors.Is(err, broken) {
		t.Errorf("a read error came out as %v", err)
	}
}

func TestGeneratedMark(t *testing.T) {
	for text, want := range map[string]bool{
		"// Code generated by x. DO NOT EDIT.\npackage a\n":       true,
		"package a\n// Code generated by x. DO NOT EDIT.":         true,
		"// Code generated by x. DO NOT EDIT.\r\npackage a\r\n":   true,
		"// Code generated DO NOT EDIT.\n":                        true,
		" // Code generated by x. DO NOT EDIT.\n":                 false,
		"// Code generated by x. DO NOT EDIT. Really.\n":          false,
		"// Code generated by x.\n// DO NOT EDIT.\n":              false,
		"// Code generated by x.\n// Code generated DO NOT EDIT.": true,
		"": false,
	} {
		if got := saysGenerated([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
