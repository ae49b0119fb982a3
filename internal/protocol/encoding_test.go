package protocol

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// TestNotCanonical: one record, {"num": 1, "den": 2}, and everything that is nearly it.
func TestNotCanonical(t *testing.T) {
	decodeRational := func(b []byte) (Rational, error) { return decode[Rational]("rational", 64, b) }
	const num, den = "636e756d", "6364656e" // text keys "num", "den"
	for _, c := range []struct {
		name, hex string
		want      error
	}{
		{"canonical", "a2" + den + "02" + num + "01", nil},
		{"keys out of order", "a2" + num + "01" + den + "02", ErrNotCanonical},
		{"duplicate key", "a3" + den + "02" + den + "02" + num + "01", ErrNotCanonical},
		{"unknown key", "a3" + den + "02" + num + "01" + "647a7a7a7a01", ErrNotCanonical},
		{"missing key", "a1" + den + "02", ErrNotCanonical},
		{"other case", "a2" + den + "02" + "634e756d01", ErrNotCanonical},
		{"key as bytes", "a2" + den + "02" + "436e756d01", ErrNotCanonical},
		{"long integer", "a2" + den + "1802" + num + "01", ErrNotCanonical},
		{"long key head", "a2" + den + "02" + "78036e756d" + "01", ErrNotCanonical},
		{"indefinite map", "bf" + den + "02" + num + "01ff", ErrNotCanonical},
		{"float", "a2" + den + "02" + num + "f93c00", ErrNotCanonical},
		{"null", "a2" + den + "02" + num + "f6", ErrNotCanonical},
		{"undefined", "a2" + den + "02" + num + "f7", ErrNotCanonical},
		{"bool", "a2" + den + "02" + num + "f5", ErrNotCanonical},
		{"bignum", "a2" + den + "02" + num + "c24101", ErrNotCanonical},
		{"tagged", "a2" + den + "02" + num + "d90100" + "01", ErrNotCanonical},
		{"negative", "a2" + den + "02" + num + "20", ErrNotCanonical},
		{"past 32 bits", "a2" + den + "02" + num + "1b0000000100000000", ErrNotCanonical},
		{"array", "820102", ErrNotCanonical},
		{"trailing byte", "a2" + den + "02" + num + "0100", ErrNotCanonical},
		{"self-described", "d9d9f7a2" + den + "02" + num + "01", ErrNotCanonical},
		{"empty", "", ErrNotCanonical},
		{"only null", "f6", ErrNotCanonical},
		{"not lowest terms", "a2" + den + "04" + num + "02", ErrInvalid},
		{"zero denominator", "a2" + den + "00" + num + "01", ErrInvalid},
		{"too long", strings.Repeat("00", 65), ErrTooLarge},
	} {
		b, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRational(b); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestListForms(t *testing.T) {
	empty := MergeMeasure{Version: Version, Groups: []string{"go"}}
	b, err := Encode(empty)
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range []struct{ name, hex string }{{"null", "f6"}, {"indefinite", "9fff"}, {"long head", "9800"}} {
		other := bytes.Replace(b, append([]byte("drows"), 0x80), append([]byte("drows"), unhex(t, list.hex)...), 1)
		if bytes.Equal(other, b) {
			t.Fatal("the test no longer finds the list")
		}
		if _, err := DecodeMergeMeasure(other); !errors.Is(err, ErrNotCanonical) {
			t.Errorf("%s list: %v", list.name, err)
		}
	}
	// A head that promises 2³² elements costs nothing.
	bomb := bytes.Replace(b, append([]byte("drows"), 0x80), append([]byte("drows"), 0x9a, 0xff, 0xff, 0xff, 0xff), 1)
	if allocs := testing.AllocsPerRun(10, func() { _, _ = DecodeMergeMeasure(bomb) }); allocs > 50 {
		t.Errorf("%v allocations for a bad list head", allocs)
	}
}

func TestIDForms(t *testing.T) {
	b, err := Encode(sampleRow())
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte{0x58, 32, 1, 2, 3})
	if at < 0 {
		t.Fatal("an id is not a 32-byte byte string")
	}
	splice := func(id []byte) []byte {
		return append(append(bytes.Clone(b[:at]), id...), b[at+34:]...)
	}
	for name, id := range map[string][]byte{
		"31 bytes":  append([]byte{0x58, 31}, make([]byte, 31)...),
		"33 bytes":  append([]byte{0x58, 33}, make([]byte, 33)...),
		"ints":      append([]byte{0x98, 32}, make([]byte, 32)...),
		"text":      append([]byte{0x78, 32}, make([]byte, 32)...),
		"null":      {0xf6},
		"no string": {0x40},
	} {
		if _, err := DecodeRow(splice(id)); !errors.Is(err, ErrNotCanonical) {
			t.Errorf("%s as an id: %v", name, err)
		}
	}
	if _, err := DecodeRow(splice(b[at : at+34])); err != nil {
		t.Error(err)
	}
}

func TestLinks(t *testing.T) {
	data := []byte("block")
	good := LinkTo(Raw, data)
	if want := "bafkreicjnlfibzgy6kp3r2gnqfwdv62i2pyqhfylhixocyambdfgomtn5y"; good.String() != want {
		t.Fatalf("link %s, want %s", good, want)
	}
	sum := func(code uint64, length int) multihash.Multihash {
		h, err := multihash.Sum(data, code, length)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	sha := sum(multihash.SHA2_256, -1)
	for name, c := range map[string]cid.Cid{
		"undefined": cid.Undef,
		"CIDv0":     cid.NewCidV0(sha),
		"identity":  cid.NewCidV1(Raw, sum(multihash.IDENTITY, -1)),
		"sha2-512":  cid.NewCidV1(Raw, sum(multihash.SHA2_512, 32)),
		"truncated": cid.NewCidV1(Raw, sum(multihash.SHA2_256, 20)),
		"dag-json":  cid.NewCidV1(cid.DagJSON, sha),
	} {
		if _, err := NewLink(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if !c.Defined() {
			continue
		}
		raw := append([]byte{0xd8, 42, 0x58, byte(1 + c.ByteLen()), 0}, c.Bytes()...)
		var l Link
		if err := l.UnmarshalCBOR(raw); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
	if LinkTo(cid.DagJSON, data).Defined() {
		t.Error("LinkTo took a codec outside the three")
	}

	// In a record: no multibase prefix, other tag, CID as text.
	g := sampleState()
	b, err := Encode(g)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte{0xd8, 42, 0x58, 37, 0})
	for name, link := range map[string][]byte{
		"no prefix": append([]byte{0xd8, 42, 0x58, 36}, b[at+5:at+41]...),
		"tag 43":    append([]byte{0xd8, 43}, b[at+2:at+41]...),
		"untagged":  b[at+2 : at+41],
		"undefined": {0xf7},
	} {
		other := append(append(bytes.Clone(b[:at]), link...), b[at+41:]...)
		if _, err := DecodeProtocolState(other); !errors.Is(err, ErrNotCanonical) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A null link is nil, at genesis only.
	g.Previous = nil
	b, err = Encode(g)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeProtocolState(b); err != nil || back.Previous != nil {
		t.Errorf("genesis state: %v, previous %v", err, back.Previous)
	}
	genesis := sampleGenesis()
	b, err = Encode(genesis)
	if err != nil {
		t.Fatal(err)
	}
	at = bytes.Index(b, []byte{0xd8, 42, 0x58, 37, 0})
	for _, simple := range []byte{0xf6, 0xf7} {
		other := append(append(bytes.Clone(b[:at]), simple), b[at+41:]...)
		if _, err := DecodeGenesis(other); !errors.Is(err, ErrNotCanonical) {
			t.Errorf("simple value %x as a required link: %v", simple, err)
		}
	}
}

func TestText(t *testing.T) {
	type all struct {
		ID     ID
		Link   Link
		Status Status
	}
	in := all{ID{1, 31: 2}, LinkTo(DagPB, []byte("x")), StatusNoCustody}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out all
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Fatalf("%s came back as %+v: %v", b, out, err)
	}
	for _, bad := range []string{
		`{"ID":"01"}`, `{"ID":"` + strings.Repeat("zz", 32) + `"}`, `{"Link":"nonsense"}`,
		`{"Link":"QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"}`, `{"Status":"fine"}`, `{"Status":""}`,
	} {
		if err := json.Unmarshal([]byte(bad), &out); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
