package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Feedback is what a miner has learnt and the checkpoint does not hold yet: the rest of what its deltas could not say, and
// the last delta until it is known what became of it. The zero value holds nothing.
type Feedback struct {
	Base  protocol.Link // the checkpoint that the last delta was made for
	Group string
	Cycle uint64      // of the last delta
	Rest  [][]float32 // per tensor, without the last delta
	Sent  []Sent      // per tensor, the last delta
}

// Sent is what was sent of a tensor: ascending elements, their units and their values in the base.
type Sent struct {
	At     []uint32
	Units  []int32
	Before []float32
}

// NewFeedback is the state after d was made from a base of the given values, with rest left over. It keeps rest.
func NewFeedback(d *Delta, cycle uint64, base func(tensor int) []float32, rest [][]float32) *Feedback {
	f := &Feedback{Base: d.header.Base, Group: d.header.Group, Cycle: cycle, Rest: rest, Sent: make([]Sent, len(rest))}
	for i := range rest {
		before := base(i)
		s := &f.Sent[i]
		for at, u := range d.Codes(i) {
			s.At, s.Units, s.Before = append(s.At, uint32(at)), append(s.Units, u), append(s.Before, before[at])
		}
	}
	return f
}

// Settle returns, per tensor, what is still to be sent, given the checkpoint that follows: its link, the one that it was
// merged from, and its values. Of every value that was sent, what the checkpoint did not move that way returns to the rest,
// whatever the cause: left out, scaled, or merged with others'. A checkpoint that is neither the base nor its successor, or
// another group or shape, settles nothing: the result is nil, and the miner starts afresh. The feedback stays as it is.
func (f *Feedback) Settle(want Expect, previous *protocol.Link, values func(tensor int) []float32) [][]float32 {
	if f == nil || f.Group != want.Group || len(f.Rest) != len(want.Tensors) || want.Base != f.Base && (previous == nil || *previous != f.Base) {
		return nil
	}
	for i, t := range want.Tensors {
		if n, _ := protocol.Elements(t.Shape); uint64(len(f.Rest[i])) != n {
			return nil
		}
	}
	rest := make([][]float32, len(f.Rest))
	for i, r := range f.Rest {
		rest[i] = slices.Clone(r)
		after := values(i)
		s := f.Sent[i]
		for j, at := range s.At {
			sent, moved := float64(Value(s.Units[j])), float64(after[at])-float64(s.Before[j])
			rest[i][at] = float32(float64(rest[i][at]) + (sent - clampTo(moved, sent)))
		}
	}
	return rest
}

// A feedback file is, little endian: the magic, the SHA-256 of what follows, the cycle (8 bytes), the base's CID as text and the group,
// each with its length (1 byte), then per tensor the number of values and of those sent (8 bytes each), the values, and the
// elements, units and base values of those sent (4 bytes each).
const feedbackMagic = "bzdrest\x01"

// ErrFeedback is wrapped when a feedback file is damaged or another group's.
var ErrFeedback = errors.New("saved error feedback not usable")

// WriteFile replaces the file at path, so that a crash leaves the old or the new one.
func (f *Feedback) WriteFile(path string) error {
	b := make([]byte, len(feedbackMagic)+sha256.Size)
	b = binary.LittleEndian.AppendUint64(b, f.Cycle)
	for _, s := range []string{f.Base.String(), f.Group} {
		b = append(append(b, byte(len(s))), s...)
	}
	for i, rest := range f.Rest {
		s := f.Sent[i]
		b = binary.LittleEndian.AppendUint64(b, uint64(len(rest)))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s.At)))
		for _, v := range rest {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
		for j, at := range s.At {
			b = binary.LittleEndian.AppendUint32(b, at)
			b = binary.LittleEndian.AppendUint32(b, uint32(s.Units[j]))
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(s.Before[j]))
		}
	}
	copy(b, feedbackMagic)
	sum := sha256.Sum256(b[len(feedbackMagic)+sha256.Size:])
	copy(b[len(feedbackMagic):], sum[:])
	return writeFile(disk{}, path, b)
}

// ReadFeedback reads what WriteFile wrote for the tensors of a group. A file that is larger than such a one is not read.
func ReadFeedback(path string, group string, tensors []Tensor) (*Feedback, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	fail := func(why string) (*Feedback, error) {
		return nil, fmt.Errorf("%s: %w: %s; delete it to start without", path, ErrFeedback, why)
	}
	limit := uint64(len(feedbackMagic)+sha256.Size+8) + 2*256
	for _, t := range tensors {
		n, ok := protocol.Elements(t.Shape)
		if !ok || n > maxSparse {
			return fail("tensor " + t.Name + " has no such size")
		}
		limit += 16 + 16*n
	}
	b, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	const start = len(feedbackMagic) + sha256.Size
	if uint64(len(b)) > limit || len(b) < start || string(b[:len(feedbackMagic)]) != feedbackMagic {
		return fail("it is not one of this group")
	}
	if sum := sha256.Sum256(b[start:]); !bytes.Equal(sum[:], b[len(feedbackMagic):start]) {
		return fail("its checksum is wrong")
	}
	f, ok := parseFeedback(b[start:], group, tensors)
	if !ok {
		return fail("it is of another group or shape")
	}
	return f, nil
}

// parseFeedback parses what the checksum covers; ok is false if it is not of that group and those tensors.
func parseFeedback(b []byte, group string, tensors []Tensor) (f *Feedback, ok bool) {
	take := func(n uint64) []byte {
		if uint64(len(b)) < n {
			ok = false
			return make([]byte, min(n, 8))
		}
		var head []byte
		head, b = b[:n], b[n:]
		return head
	}
	ok = true
	f = &Feedback{Cycle: binary.LittleEndian.Uint64(take(8))}
	base := string(take(uint64(take(1)[0])))
	f.Group = string(take(uint64(take(1)[0])))
	link, err := protocol.ParseLink(base)
	if err != nil || f.Group != group || !ok {
		return nil, false
	}
	f.Base = link
	for _, t := range tensors {
		n, _ := protocol.Elements(t.Shape)
		values, sent := binary.LittleEndian.Uint64(take(8)), binary.LittleEndian.Uint64(take(8))
		if !ok || values != n || sent > n || uint64(len(b)) < 4*values+12*sent {
			return nil, false
		}
		rest, s := make([]float32, n), Sent{}
		for i := range rest {
			rest[i] = math.Float32frombits(binary.LittleEndian.Uint32(take(4)))
		}
		for range sent {
			at := binary.LittleEndian.Uint32(take(4))
			if uint64(at) >= n {
				return nil, false
			}
			s.At = append(s.At, at)
			s.Units = append(s.Units, int32(binary.LittleEndian.Uint32(take(4))))
			s.Before = append(s.Before, math.Float32frombits(binary.LittleEndian.Uint32(take(4))))
		}
		f.Rest, f.Sent = append(f.Rest, rest), append(f.Sent, s)
	}
	return f, len(b) == 0
}
