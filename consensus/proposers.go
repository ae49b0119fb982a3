package consensus

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// MaxProposers is the most ranks an instance can have.
const MaxProposers = 64

// Proposers draws the ranked proposers of an instance: n validators with stake, or all if there are fewer, without
// replacement, each with the probability of its stake among those left. seed must come from a beacon round that nobody
// knew when the snapshot was taken. Draw i is the first of SHA-256("bzd/proposers/1" ‖ 0x00 ‖ seed ‖ instance ‖ i ‖ try),
// i and try as 32 bits big endian, try from 0, whose first 8 bytes, big endian, are below the largest multiple of the
// stake left; modulo that stake it is a place on the line of stakes, validators in the order of their ids.
func Proposers(seed protocol.Hash, instance protocol.Instance, s protocol.Snapshot, n int) []protocol.ID {
	left := s.Validators()
	total := s.TotalStake()
	var drawn []protocol.ID
	for i := uint32(0); len(drawn) < min(n, MaxProposers) && total > 0; i++ {
		place := draw(seed, instance, i, total)
		for j, v := range left {
			if place >= v.Stake {
				place -= v.Stake
				continue
			}
			drawn = append(drawn, v.ID)
			total -= v.Stake
			left = append(left[:j:j], left[j+1:]...)
			break
		}
	}
	return drawn
}

func draw(seed protocol.Hash, instance protocol.Instance, i uint32, below uint64) uint64 {
	excess := -below % below // 2⁶⁴ mod below
	for try := uint32(0); ; try++ {
		b := append([]byte("bzd/proposers/1\x00"), seed[:]...)
		b = append(b, byte(instance))
		b = binary.BigEndian.AppendUint32(b, i)
		b = binary.BigEndian.AppendUint32(b, try)
		sum := sha256.Sum256(b)
		if x := binary.BigEndian.Uint64(sum[:]); excess == 0 || x < -excess {
			return x % below
		}
	}
}
