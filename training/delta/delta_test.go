package delta

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

var (
	testGroup = protocol.Group{
		Name: "go", Domain: "go", Share: protocol.ShareTotal,
		Experts: []protocol.ExpertRef{{Layer: 0, Index: 1}, {Layer: 2, Index: 0}, {Layer: 2, Index: 3}},
	}
	testWant = Expect{
		Base:    protocol.LinkTo(protocol.DagPB, []byte("checkpoint")),
		Group:   testGroup.Name,
		Tensors: Layout(testGroup, 2, 3),
	}
)

// sample returns a delta with values over the whole range.
func sample(t testing.TB, seed uint64) *Delta {
	rng := rand.New(rand.NewPCG(seed, 0))
	units := make([][]int32, len(testWant.Tensors))
	for i, tensor := range testWant.Tensors {
		n, _ := protocol.Elements(tensor.Shape)
		units[i] = make([]int32, n)
		for j := range units[i] {
			units[i][j] = roundBF16((rng.Int32N(2*MaxUnit+1) - MaxUnit) >> rng.IntN(26))
		}
	}
	d, err := New(testWant, units)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func encode(t testing.TB, d *Delta) []byte {
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLayout(t *testing.T) {
	var got []string
	for _, tensor := range testWant.Tensors {
		got = append(got, tensor.Name)
	}
	want := strings.Fields(`
		model.layers.0.mlp.gate.weight#rows
		model.layers.0.mlp.experts.1.gate_proj.weight
		model.layers.0.mlp.experts.1.up_proj.weight
		model.layers.0.mlp.experts.1.down_proj.weight
		model.layers.2.mlp.gate.weight#rows
		model.layers.2.mlp.experts.0.gate_proj.weight
		model.layers.2.mlp.experts.0.up_proj.weight
		model.layers.2.mlp.experts.0.down_proj.weight
		model.layers.2.mlp.experts.3.gate_proj.weight
		model.layers.2.mlp.experts.3.up_proj.weight
		model.layers.2.mlp.experts.3.down_proj.weight`)
	if !slices.Equal(got, want) {
		t.Fatalf("order\n%s", strings.Join(got, "\n"))
	}
	router := testWant.Tensors[4]
	if router.CheckpointName() != "model.layers.2.mlp.gate.weight" || !slices.Equal(router.Rows, []uint32{0, 3}) || !slices.Equal(router.Shape, []uint64{2, 2}) {
		t.Errorf("router entry %+v", router)
	}
	if down := testWant.Tensors[3]; !slices.Equal(down.Shape, []uint64{2, 3}) || down.Rows != nil || down.CheckpointName() != down.Name {
		t.Errorf("down_proj entry %+v", down)
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(50) {
		d := sample(t, seed)
		b := encode(t, d)
		back, err := Decode(b, testWant)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(back, d) {
			t.Fatal("decoded another delta")
		}
		if again := encode(t, back); !bytes.Equal(again, b) {
			t.Fatal("encodes to other bytes")
		}
		payload := d.Payload()
		if !bytes.HasSuffix(b, payload) || uint64(len(payload)) != d.Header().Size {
			t.Fatalf("payload of %d bytes", len(payload))
		}
		if back, err := DecodePayload(d.Header(), payload, testWant); err != nil || !reflect.DeepEqual(back, d) {
			t.Fatalf("from the payload: %v", err)
		}
		norm := new(big.Int)
		for i := range d.dense {
			for at, u := range d.Codes(i) {
				if u == 0 || u != d.Units(i)[at] {
					t.Fatalf("code %d at %d", u, at)
				}
				norm.Add(norm, big.NewInt(int64(u)*int64(u)))
			}
		}
		if d.SquaredNorm().Cmp(norm) != 0 {
			t.Fatalf("squared norm %d, want %d", d.SquaredNorm(), norm)
		}
	}
}

func TestSquaredNormWide(t *testing.T) {
	units := make([]int32, 1<<15)
	for i := range units {
		units[i] = -MaxUnit
	}
	d := &Delta{header: protocol.DeltaHeader{Tensors: make([]protocol.TensorEntry, 2)}, dense: [][]int32{units, units}} // 2¹⁶ · 2⁵⁰ needs 67 bits
	if got := d.SquaredNorm(); got.Cmp(new(big.Int).Lsh(big.NewInt(1), 66)) != 0 {
		t.Errorf("squared norm %d", got)
	}
}

func TestNewRefuses(t *testing.T) {
	good := sample(t, 1).dense
	for name, change := range map[string]func(units [][]int32, want *Expect) [][]int32{
		"tensor missing": func(u [][]int32, _ *Expect) [][]int32 { return u[1:] },
		"short tensor":   func(u [][]int32, _ *Expect) [][]int32 { u[2] = u[2][1:]; return u },
		"nine bits":      func(u [][]int32, _ *Expect) [][]int32 { u[3][1] = 257; return u },
		"too large":      func(u [][]int32, _ *Expect) [][]int32 { u[3][1] = MaxUnit + 1<<18; return u },
		"no base":        func(u [][]int32, w *Expect) [][]int32 { w.Base = protocol.Link{}; return u },
		"empty shape":    func(u [][]int32, w *Expect) [][]int32 { w.Tensors[0].Shape = []uint64{0}; return u },
	} {
		units, want := make([][]int32, len(good)), testWant
		for i := range good {
			units[i] = slices.Clone(good[i])
		}
		want.Tensors = slices.Clone(want.Tensors)
		units = change(units, &want)
		if _, err := New(want, units); !errors.Is(err, ErrUnits) && !errors.Is(err, protocol.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// reframe returns a file with a changed header over the sample's payload.
func reframe(t *testing.T, change func(h *protocol.DeltaHeader)) []byte {
	d := sample(t, 1)
	h := d.Header()
	h.Tensors = slices.Clone(h.Tensors)
	for i := range h.Tensors {
		h.Tensors[i].Shape = slices.Clone(h.Tensors[i].Shape)
	}
	change(&h)
	header, err := protocol.Encode(h)
	if err != nil {
		t.Fatal(err)
	}
	b := binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(header)))
	return append(append(b, header...), d.Payload()...)
}

func TestDecodeRefuses(t *testing.T) {
	good := encode(t, sample(t, 1))
	payload := len(good) - int(sample(t, 1).header.Size)
	// value overwrites one bfloat16: element 2 of the entry for expert 1's gate_proj.
	value := func(code uint16) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint16(b[payload+int(sample(t, 1).header.Tensors[1].Offset)+4:], code)
		return b
	}
	const where = "tensor model.layers.0.mlp.experts.1.gate_proj.weight, element 2"
	headerLength := func(n uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[len(magic):], n)
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want error
		says string
	}{
		{"NaN", value(0x7fc0), ErrValue, where + ": bfloat16 0x7fc0 is not finite"},
		{"+Inf", value(0x7f80), ErrValue, where},
		{"-Inf", value(0xff80), ErrValue, where},
		{"-0", value(0x8000), ErrValue, "negative zero"},
		{"2.015625", value(0x4001), ErrValue, "above 2"},
		{"-256", value(0xc380), ErrValue, "above 2"},
		{"2⁻²⁵", value(0x3300), ErrValue, "multiple"},
		{"1.5·2⁻²⁴", value(0x33c0), ErrValue, "multiple"},
		{"subnormal", value(0x0001), ErrValue, "multiple"},
		{"empty", nil, ErrTruncated, ""},
		{"other magic", append([]byte("bzdelta\x02"), good[8:]...), ErrMagic, ""},
		{"cut in the frame", good[:frame-1], ErrTruncated, ""},
		{"cut in the header", good[:frame+10], ErrTruncated, ""},
		{"cut in the payload", good[:len(good)-1], ErrTruncated, ""},
		{"a byte more", append(bytes.Clone(good), 0), ErrTrailing, ""},
		{"huge header length", headerLength(1<<32 - 1), ErrHeader, "at most"},
		{"header length 0", headerLength(0), ErrHeader, ""},
		{"header length off by one", headerLength(binary.LittleEndian.Uint32(good[len(magic):]) - 1), ErrHeader, ""},
		{"other base", reframe(t, func(h *protocol.DeltaHeader) { h.Base = protocol.LinkTo(protocol.DagPB, nil) }), ErrBase, ""},
		{"other group", reframe(t, func(h *protocol.DeltaHeader) { h.Group = "asm" }), ErrGroup, "asm"},
		{"other codec", reframe(t, func(h *protocol.DeltaHeader) { h.Codec = "top-k" }), ErrCodec, "top-k"},
		{"extra tensor", reframe(t, func(h *protocol.DeltaHeader) {
			h.Tensors = append(h.Tensors, protocol.TensorEntry{Name: "lm_head.weight", Shape: []uint64{2}, Offset: h.Size, Size: 4})
			h.Size += 4
		}), ErrTensor, "12 tensors, want 11"},
		{"other tensor", reframe(t, func(h *protocol.DeltaHeader) { h.Tensors[2].Name = "lm_head.weight" }), ErrTensor, "lm_head"},
		{"other shape, same size", reframe(t, func(h *protocol.DeltaHeader) { slices.Reverse(h.Tensors[2].Shape) }), ErrTensor, "shape [2 3], want [3 2]"},
		{"other sizes, same sum", reframe(t, func(h *protocol.DeltaHeader) {
			h.Tensors[1].Size++
			h.Tensors[2].Offset++
			h.Tensors[2].Size--
		}), ErrTensor, "bytes"},
	} {
		_, err := Decode(c.b, testWant)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v with %q", c.name, err, c.want, c.says)
		}
	}
	// Every prefix is refused, with a typed error.
	for n := range good {
		if _, err := Decode(good[:n], testWant); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	// A header that no decoder has checked.
	h := sample(t, 1).Header()
	h.Size = 1 << 62
	if _, err := DecodePayload(h, nil, testWant); !errors.Is(err, ErrHeader) {
		t.Errorf("unchecked header: %v", err)
	}
}

func TestVector(t *testing.T) {
	text, err := os.ReadFile("testdata/dense-bf16.hex")
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	group := protocol.Group{Name: "go", Experts: []protocol.ExpertRef{{Layer: 0, Index: 1}}}
	expect := Expect{Base: protocol.LinkTo(protocol.DagPB, []byte("checkpoint 0")), Group: "go", Tensors: Layout(group, 2, 1)}
	units := [][]int32{{1, -1}, {MaxUnit, -MaxUnit}, {0, 255}, {1 << 24, -3 << 8}}
	d, err := New(expect, units)
	if err != nil {
		t.Fatal(err)
	}
	if got := encode(t, d); !bytes.Equal(got, want) {
		t.Fatalf("the file format changed\n got %x\nwant %x", got, want)
	}
	if back, err := Decode(want, expect); err != nil || !reflect.DeepEqual(back.dense, units) {
		t.Fatalf("the vector decodes to %v: %v", back, err)
	}
}

// FuzzDecode: whatever is accepted is canonical and in range.
func FuzzDecode(f *testing.F) {
	for seed := range uint64(3) {
		f.Add(encode(f, sample(f, seed)))
	}
	f.Add([]byte(magic))
	typed := []error{ErrMagic, ErrTruncated, ErrTrailing, ErrHeader, ErrBase, ErrGroup, ErrCodec, ErrTensor, ErrValue}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Decode(b, testWant)
		if err != nil {
			if !slices.ContainsFunc(typed, func(want error) bool { return errors.Is(err, want) }) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if again := encode(t, d); !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, which encodes to %x", b, again)
		}
	})
}
