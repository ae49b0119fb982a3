package delta

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// sparseWant is a group with chunks of all kinds: a whole tensor shorter than one, and one of two and a rest.
var sparseWant = Expect{
	Base:    protocol.LinkTo(protocol.DagPB, []byte("checkpoint")),
	Group:   testGroup.Name,
	Tensors: Layout(protocol.Group{Name: "go", Experts: []protocol.ExpertRef{{Layer: 0, Index: 1}}}, 10, 900),
	TopK:    41,
}

// sparseUnits codes seeded values of different size, some chunks all zeros.
func sparseUnits(t testing.TB, want Expect, seed uint64) (units [][]int32, x, rest [][]float32) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 9))
	for _, tensor := range want.Tensors {
		n, _ := protocol.Elements(tensor.Shape)
		v := make([]float32, n)
		for lo := 0; lo < len(v); lo += TopKChunk {
			size := math.Ldexp(1, -r.IntN(34))
			if r.IntN(4) == 0 {
				size = 0
			}
			for i := lo; i < min(lo+TopKChunk, len(v)); i++ {
				v[i] = float32(min(2, max(-2, r.NormFloat64()*size)))
			}
		}
		left, u := slices.Clone(v), make([]int32, n)
		at, err := Choose(v, nil, want.TopK)
		if err == nil {
			err = Send(u, left, at, want.TopK)
		}
		if err != nil {
			t.Fatal(err)
		}
		units, x, rest = append(units, u), append(x, v), append(rest, left)
	}
	return units, x, rest
}

func sparseSample(t testing.TB, want Expect, seed uint64) *Delta {
	t.Helper()
	units, _, _ := sparseUnits(t, want, seed)
	d, err := New(want, units)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSparseRoundTrip(t *testing.T) {
	for _, k := range []int{1, 41, 64, 1000, 4096} {
		want := sparseWant
		want.TopK = k
		most, err := want.MaxPayload()
		if err != nil {
			t.Fatal(err)
		}
		for seed := range uint64(20) {
			units, x, rest := sparseUnits(t, want, seed)
			d, err := New(want, units)
			if err != nil {
				t.Fatal(err)
			}
			b := encode(t, d)
			back, err := Decode(b, want)
			if err != nil {
				t.Fatal(err)
			}
			if d.Header().Codec != CodecTopK || d.Header().Size > most || !reflect.DeepEqual(back.Header(), d.Header()) {
				t.Fatalf("header %+v, at most %d bytes", d.Header(), most)
			}
			if again := encode(t, back); !bytes.Equal(again, b) {
				t.Fatal("encodes to other bytes")
			}
			for i, e := range d.Header().Tensors {
				if !slices.Equal(back.Units(i), units[i]) {
					t.Fatalf("tensor %d decodes to other units", i)
				}
				for j, u := range units[i] {
					if float32(float64(x[i][j])-Value(u)) != rest[i][j] {
						t.Fatalf("tensor %d, element %d: %v, sent %d, left %v", i, j, x[i][j], u, rest[i][j])
					}
				}
				// One tensor opens from its own bytes.
				alone, err := DecodeTensor(d.Header(), i, d.Payload()[e.Offset:e.Offset+e.Size], want)
				if err != nil || !slices.Equal(alone, units[i]) {
					t.Fatalf("tensor %d by itself: %v", i, err)
				}
			}
			if again, err := New(want, slices.Clone(units)); err != nil || !bytes.Equal(encode(t, again), b) {
				t.Fatal("the same units encode to other bytes")
			}
		}
	}
}

// TestSparseAgreesWithTopK: a tensor is what the chunks of docs/spec/topk.md are.
func TestSparseAgreesWithTopK(t *testing.T) {
	for name, x := range chunks() {
		for _, k := range []int{1, 41, 4096} {
			left := slices.Clone(x)
			code, err := TopK(left, k)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]int32, len(x))
			if err := code.Units(want, k); err != nil {
				t.Fatal(err)
			}
			rest, units := slices.Clone(x), make([]int32, len(x))
			at, err := Choose(x, nil, k)
			if err == nil {
				err = Send(units, rest, at, k)
			}
			if err != nil || !slices.Equal(units, want) || !slices.Equal(rest, left) {
				t.Fatalf("%s, top %d: other units or residual, %v", name, k, err)
			}
			b, _, err := appendTopK(nil, sparsify(units), uint64(len(x)), k)
			if err != nil {
				t.Fatalf("%s, top %d: %v", name, k, err)
			}
			least, most := topKSizes(uint64(len(x)), k)
			if n := uint64(len(b)); n < least || n > most {
				t.Errorf("%s, top %d: %d bytes, want %d to %d", name, k, n, least, most)
			}
		}
	}
}

// TestSparseLimits: the longest gaps reach the largest size, exactly for a whole chunk.
func TestSparseLimits(t *testing.T) {
	for _, k := range []int{1, 41, 64, 4096} {
		var s sparse
		for i := range k {
			s.at, s.units = append(s.at, uint32(TopKChunk-k+i)), append(s.units, 2)
		}
		b, _, err := appendTopK(nil, s, TopKChunk, k)
		if err != nil {
			t.Fatal(err)
		}
		_, most := topKSizes(TopKChunk, k)
		if uint64(len(b)) > most || uint64(len(b))+1 < most-uint64(k)/8 {
			t.Errorf("top %d: %d bytes, at most %d", k, len(b), most)
		}
		back, _, err := decodeTopK(b, TopKChunk, k)
		if err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("top %d: decodes to something else, %v", k, err)
		}
	}
}

// TestChooseByMoments: of equal values those with the larger second moment are sent, about as |x|·v^¼ orders them.
func TestChooseByMoments(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	x, v := make([]float32, TopKChunk), make([]float32, TopKChunk)
	for i := range x {
		x[i], v[i] = float32(r.NormFloat64()*1e-3), float32(math.Exp(3*r.NormFloat64())*1e-9)
	}
	at, err := Choose(x, v, 41)
	if err != nil || len(at) != 41 || !slices.IsSorted(at) {
		t.Fatalf("chose %v, %v", at, err)
	}
	score := func(i uint32) float64 { return math.Abs(float64(x[i])) * math.Pow(float64(v[i]), 0.25) }
	all := make([]uint32, len(x))
	for i := range all {
		all[i] = uint32(i)
	}
	slices.SortFunc(all, func(a, b uint32) int { return -int(math.Copysign(1, score(a)-score(b))) })
	shared := 0
	for _, i := range all[:41] {
		if slices.Contains(at, i) {
			shared++
		}
	}
	if shared < 35 {
		t.Errorf("%d of the 41 largest products are chosen", shared)
	}
	if _, err := Choose(x, v[1:], 41); err == nil {
		t.Error("moments of another tensor are accepted")
	}
	x[7] = float32(math.NaN())
	if _, err := Choose(x, v, 41); !errors.Is(err, ErrRange) {
		t.Errorf("a NaN: %v", err)
	}
}

func TestSendRefuses(t *testing.T) {
	x := make([]float32, 5000)
	at, err := Choose(x, nil, 41)
	if err != nil {
		t.Fatal(err)
	}
	units := make([]int32, len(x))
	for name, at := range map[string][]uint32{
		"too few":       at[1:],
		"descending":    append([]uint32{at[1], at[0]}, at[2:]...),
		"other chunk":   append(slices.Clone(at[1:42]), at[41:]...),
		"past the end":  append(slices.Clone(at[:len(at)-1]), 5000),
		"the same once": append([]uint32{at[1]}, at[1:]...),
	} {
		if err := Send(units, x, at, 41); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSparseNewRefuses(t *testing.T) {
	good, _, _ := sparseUnits(t, sparseWant, 3)
	big := 1 // a tensor of several chunks
	first := slices.IndexFunc(good[big], func(u int32) bool { return u != 0 })
	for name, change := range map[string]func(u []int32){
		"one too many": func(u []int32) { u[slices.Index(u, 0)] = u[first] },
		"one too few":  func(u []int32) { u[first] = 0 },
		"other level":  func(u []int32) { u[first] *= 5 },
		"odd":          func(u []int32) { u[first]++ },
		"too large":    func(u []int32) { u[first] = MaxUnit + 2 },
	} {
		units := [][]int32{}
		for _, u := range good {
			units = append(units, slices.Clone(u))
		}
		change(units[big])
		if _, err := New(sparseWant, units); !errors.Is(err, ErrUnits) {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := sparseWant
	want.TopK = 4097
	if _, err := New(want, good); !errors.Is(err, ErrUnits) {
		t.Errorf("too dense: %v", err)
	}
}

// TestSparseRefuses spoils the bytes of a chunk of eight values, two of them sent.
func TestSparseRefuses(t *testing.T) {
	const n, k = 8, 1024
	good := func() []byte { // scale 2, codes +2s −3s, gaps 1 and 2 with p = 1
		return []byte{2, 0, 0b1100, 0b01011}
	}
	s, _, err := decodeTopK(good(), n, k)
	if err != nil || !slices.Equal(s.at, []uint32{1, 4}) || !slices.Equal(s.units, []int32{4, -6}) {
		b, _, _ := appendTopK(nil, sparse{[]uint32{1, 4}, []int32{4, -6}}, n, k)
		t.Fatalf("decodes to %v, %v; wants %08b", s, err, b)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"no scales":         {[]byte{2}, ErrTruncated},
		"no codes":          {[]byte{2, 0}, errShortCode},
		"no gaps":           {[]byte{2, 0, 0b1100}, errShort},
		"a byte more":       {append(good(), 0), errEnd},
		"bits more":         {[]byte{2, 0, 0b1100, 0b101011}, errEnd},
		"codes left over":   {[]byte{2, 0, 0b11100, 0b01011}, errLeftOver},
		"gap too long":      {[]byte{2, 0, 0b1100, 0b10010000}, errGap},
		"only zeros":        {[]byte{2, 0, 0b1100, 0}, errGap},
		"scale too large":   {[]byte{0x56, 0x39, 0b1100, 0b01011}, errScale},
		"negative scale":    {[]byte{2, 0x80, 0b1100, 0b01011}, errScale},
		"level 3 alone":     {[]byte{2, 0, 0b1101, 0b01011}, errLevel},
		"nothing and codes": {[]byte{0, 0, 0b1100}, errEnd},
	} {
		if s, _, err := decodeTopK(c.b, n, k); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, s, err, c.want)
		}
	}
	// Level 3 alone is right where no scale of level 2 says the same.
	if s, _, err := decodeTopK([]byte{1, 0, 0b1101, 0b01011}, n, k); err != nil || !slices.Equal(s.units, []int32{3, -3}) {
		t.Errorf("three units: %v, %v", s, err)
	}
}

// TestAlike goes through all scales: of two codes with the same values exactly one is accepted.
func TestAlike(t *testing.T) {
	for scale := 1; scale <= maxScale; scale++ {
		u := int32(3 * scaleUnits(uint16(scale)))
		other, ok := alike(uint16(scale))
		fitted, err := fitScale([]int32{u, -u})
		if err != nil {
			t.Fatalf("scale %04x: %v", scale, err)
		}
		if ok && (fitted != other || 2*scaleUnits(other) != uint64(u)) || !ok && fitted != uint16(scale) {
			t.Fatalf("scale %04x, three of it are %d units: fitted %04x, alike %04x", scale, u, fitted, other)
		}
		if back, ok := scaleFrom(scaleUnits(uint16(scale))); !ok || back != uint16(scale) {
			t.Fatalf("scale %04x comes back as %04x", scale, back)
		}
	}
}

func TestSparseDecodeRefuses(t *testing.T) {
	d := sparseSample(t, sparseWant, 1)
	h, payload := d.Header(), d.Payload()
	other := sparseWant
	other.TopK = 0
	if _, err := DecodePayload(h, payload, other); !errors.Is(err, ErrCodec) {
		t.Errorf("a dense network: %v", err)
	}
	huge := h
	huge.Tensors = slices.Clone(h.Tensors)
	huge.Tensors[0].Size = 1 << 60
	if _, err := DecodePayload(huge, payload, sparseWant); !errors.Is(err, ErrTensor) {
		t.Errorf("a tensor that claims too much: %v", err)
	}
	if _, err := DecodeTensor(huge, 0, payload, sparseWant); !errors.Is(err, ErrTensor) {
		t.Errorf("likewise by itself: %v", err)
	}
	for i, e := range h.Tensors {
		b := payload[e.Offset : e.Offset+e.Size]
		if _, err := DecodeTensor(h, i, b[:len(b)-1], sparseWant); !errors.Is(err, ErrTruncated) {
			t.Errorf("tensor %d cut short: %v", i, err)
		}
		if _, err := DecodeTensor(h, i, append(slices.Clone(b), 0), sparseWant); !errors.Is(err, ErrTrailing) {
			t.Errorf("tensor %d with a byte more: %v", i, err)
		}
	}
	if _, err := DecodeTensor(h, len(h.Tensors), nil, sparseWant); !errors.Is(err, ErrTensor) {
		t.Errorf("a tensor that is not there: %v", err)
	}
}

func TestSparseVector(t *testing.T) {
	text, err := os.ReadFile("testdata/topk-2bit.hex")
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	expect := Expect{Base: protocol.LinkTo(protocol.DagPB, []byte("checkpoint 0")), Group: "go", TopK: 600,
		Tensors: Layout(protocol.Group{Name: "go", Experts: []protocol.ExpertRef{{Layer: 0, Index: 1}}}, 4, 3)}
	units := [][]int32{
		{0, 0, -6, 0},
		{4, 0, 0, 0, 0, 0, 0, 0, 0, 0, -6, 0},
		make([]int32, 12),
		{0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 9},
	}
	d, err := New(expect, units)
	if err != nil {
		t.Fatal(err)
	}
	if got := encode(t, d); !bytes.Equal(got, want) {
		t.Fatalf("the file format changed\n got %x\nwant %x", got, want)
	}
	if _, err := Decode(want, expect); err != nil {
		t.Fatal(err)
	}
}

// FuzzSparse: arbitrary bytes of a tensor are refused, or are the one encoding of what they decode to. The first byte and the
// two after it choose density and size.
func FuzzSparse(f *testing.F) {
	for seed := range uint64(4) {
		d := sparseSample(f, sparseWant, seed)
		for i, e := range d.Header().Tensors {
			n, _ := e.Elements()
			b := []byte{40, byte(n), byte(n >> 8)}
			f.Add(append(b, d.coded[i]...))
		}
	}
	f.Add([]byte{254, 7, 0, 2, 0, 0b1100, 0b01011})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 3 {
			return
		}
		k, n := int(b[0])+1, uint64(binary.LittleEndian.Uint16(b[1:]))+1
		if k > 128 {
			k *= 16
		}
		b = b[3:]
		s, _, err := decodeTopK(b, n, k)
		if err != nil {
			return
		}
		least, most := topKSizes(n, k)
		if size := uint64(len(b)); size < least || size > most {
			t.Fatalf("accepted %d bytes, a tensor has %d to %d", size, least, most)
		}
		again, _, err := appendTopK(nil, s, n, k)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %x of %d values, top %d, which encodes to %x, %v", b, n, k, again, err)
		}
	})
}

// FuzzSparseDecode: whatever file is accepted is canonical.
func FuzzSparseDecode(f *testing.F) {
	small := sparseWant
	small.Tensors = Layout(testGroup, 2, 3)
	small.TopK = 1000
	for seed := range uint64(3) {
		f.Add(encode(f, sparseSample(f, small, seed)))
	}
	typed := []error{ErrMagic, ErrTruncated, ErrTrailing, ErrHeader, ErrBase, ErrGroup, ErrCodec, ErrTensor, ErrValue}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Decode(b, small)
		if err != nil {
			if !slices.ContainsFunc(typed, func(want error) bool { return errors.Is(err, want) }) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		var units [][]int32
		for i := range small.Tensors {
			units = append(units, d.Units(i))
		}
		again, err := New(small, units)
		if err != nil || !bytes.Equal(encode(t, again), b) {
			t.Fatalf("accepted %x, which encodes otherwise, %v", b, err)
		}
	})
}

// FuzzSparseRoundTrip: any values that a miner may have come back as their units, and what is left is the difference.
func FuzzSparseRoundTrip(f *testing.F) {
	f.Add([]byte{40}, []byte("0123456789abcdef"))
	f.Add([]byte{255}, []byte{0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0x40})
	f.Fuzz(func(t *testing.T, density, raw []byte) {
		if len(density) == 0 || len(raw) < 4 {
			return
		}
		k := 1 + int(density[0])*16
		x := make([]float32, len(raw)/4)
		for i := range x {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
		at, err := Choose(x, nil, k)
		if err != nil {
			if !errors.Is(err, ErrRange) {
				t.Fatal(err)
			}
			return
		}
		rest, units := slices.Clone(x), make([]int32, len(x))
		if err := Send(units, rest, at, k); err != nil {
			t.Fatal(err)
		}
		b, _, err := appendTopK(nil, sparsify(units), uint64(len(x)), k)
		if err != nil {
			t.Fatalf("what Send made cannot be sent: %v", err)
		}
		s, _, err := decodeTopK(b, uint64(len(x)), k)
		if err != nil || !reflect.DeepEqual(s.at, sparsify(units).at) && len(s.at) > 0 {
			t.Fatalf("decodes to %v, %v", s, err)
		}
		for i := range x {
			if float32(float64(x[i])-Value(units[i])) != rest[i] {
				t.Fatalf("element %d: %v, sent %d, left %v", i, x[i], units[i], rest[i])
			}
		}
	})
}
