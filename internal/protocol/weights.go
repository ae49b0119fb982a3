package protocol

import (
	"crypto/ed25519"
	"math"
	"math/bits"
	"slices"
)

// MinerWeight16 is one miner's weight as chains take it.
type MinerWeight16 struct {
	Miner  ID     `cbor:"miner"`
	Weight uint16 `cbor:"weight"`
}

// ScaleU16 returns the weights of a cycle as the chain takes them, sorted by miner: the largest becomes 65535 and each
// other round(65535·w/largest), halves up. A miner listed more than once has the sum of its weights, which must be below
// 2⁶⁴; one whose weight rounds to zero is left out. The order of the argument does not matter.
func ScaleU16(weights []MinerWeight) []MinerWeight16 {
	sums := make(map[ID]uint64, len(weights))
	var largest uint64
	for _, w := range weights {
		sums[w.Miner] += w.Weight
		largest = max(largest, sums[w.Miner])
	}
	var scaled []MinerWeight16
	for miner, w := range sums {
		if w == 0 {
			continue
		}
		// w ≤ largest, so the quotient is at most 65535 and hi is below largest.
		hi, lo := bits.Mul64(w, math.MaxUint16)
		lo, carry := bits.Add64(lo, largest/2, 0)
		quotient, _ := bits.Div64(hi+carry, lo, largest)
		if quotient > 0 {
			scaled = append(scaled, MinerWeight16{miner, uint16(quotient)})
		}
	}
	slices.SortFunc(scaled, func(a, b MinerWeight16) int { return a.Miner.Compare(b.Miner) })
	return scaled
}

// Submission is one validator's weights of a cycle on their way to a chain that takes records of the protocol.
type Submission struct {
	Version   uint32          `cbor:"version"`
	Network   Link            `cbor:"network"` // dag-cbor: the genesis document
	Cycle     uint64          `cbor:"cycle"`
	Validator ID              `cbor:"validator"`
	Weights   []MinerWeight16 `cbor:"weights"` // sorted by miner, no duplicates, none zero; the largest is 65535
	Sig       Sig             `cbor:"sig"`
}

// maxSubmission is above the encoding of a weight for everybody.
const maxSubmission = 256 << 10

// DecodeSubmission decodes and checks a submission; the signature is not verified.
func DecodeSubmission(b []byte) (Submission, error) {
	return decode[Submission]("submission", maxSubmission, b)
}

// SigningBytes implements [Signed].
func (s Submission) SigningBytes() []byte {
	s.Sig = Sig{}
	return signingBytes("submission", s)
}

// Sign signs the submission. The error is not nil if the key has a wrong length or the record has no encoding.
func (s *Submission) Sign(key ed25519.PrivateKey) error { return sign(key, s.SigningBytes(), &s.Sig) }

// VerifySig implements [Signed].
func (s Submission) VerifySig(key Key) bool { return verify(key, s.SigningBytes(), s.Sig) }

// Signer implements [Signed].
func (s Submission) Signer() ID { return s.Validator }

// Validate implements [Record].
func (s Submission) Validate() error { return validate("submission", s) }

func (s Submission) faults(f faults) {
	f.version(s.Version)
	f.link("network", s.Network, DagCBOR)
	if n := len(s.Weights); n > maxParticipants {
		f.add("weights", "%d weights, at most %d", n, maxParticipants)
	}
	var largest uint16
	for i, w := range s.Weights {
		if f.full() {
			return
		}
		if w.Weight == 0 {
			f.add(index("weights", i)+".weight", "a weight of zero is left out")
		}
		if i > 0 && s.Weights[i-1].Miner.Compare(w.Miner) >= 0 {
			f.add(index("weights", i)+".miner", "%s is not above the one before it; sort them, each once", w.Miner)
		}
		largest = max(largest, w.Weight)
	}
	if len(s.Weights) > 0 && largest != math.MaxUint16 {
		f.add("weights", "the largest is %d, not %d", largest, math.MaxUint16)
	}
	f.signed(s.Sig)
}
