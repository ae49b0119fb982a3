package local

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/validation"
	"github.com/blockzero-net/bzd/validation/reward"
)

// Judged is what a submission came to.
type Judged struct {
	Row    protocol.Row
	Status protocol.Status
	Part   uint64 // of its group, of reward.Total: its claim to the group's step
	Weight uint64 // of the cycle, of reward.Total
}

// Judge scores all submissions of a cycle as the only validator and pays them. Results are in the order of subs.
func (n *Network) Judge(ctx context.Context, p *Phi, cycle uint64, beacons []validation.Beacon, subs []Submission, workers int) ([]Judged, error) {
	out := make([]Judged, len(subs))
	at := map[protocol.ID]int{}
	var groups []reward.Group
	for _, g := range n.Genesis.Groups {
		var mine []Submission
		for i, s := range subs {
			if s.Group == g.Name {
				mine = append(mine, s)
				at[s.Miner] = i
			}
		}
		rows, err := n.Score(ctx, p, g.Name, cycle, beacons, mine, workers)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			out[at[r.Miner]].Row = r
		}
		scores, err := reward.Aggregate([]reward.Report{{Stake: 1, Rows: rows}}, 1)
		if err != nil {
			return nil, err
		}
		groups = append(groups, reward.Group{Name: g.Name, Share: g.Share, Scores: scores})
	}
	paid, err := reward.Pay(groups, reward.RulesOf(n.Genesis.Params))
	if err != nil {
		return nil, err
	}
	for i := range out {
		out[i].Status = subs[i].Status
	}
	for _, x := range paid {
		j := &out[at[x.Miner]]
		j.Status, j.Part, j.Weight = x.Status, x.Part, x.Weight
	}
	return out, nil
}

// lookBack is how many past cycles the largest Params.ExcludeCycles excludes.
const lookBack = 1 << 16

// Beacons derives the randomness of a cycle and of those before it, as many as any genesis looks back on, from a text,
// for work without a network: the beacon of cycle t is SHA-256("bzd/beacon" ‖ 0 ‖ text ‖ t as 8 bytes little endian).
func Beacons(text string, cycle uint64) []validation.Beacon {
	var out []validation.Beacon
	for k := range min(cycle, lookBack) + 1 {
		h := append([]byte("bzd/beacon\x00"), text...)
		out = append(out, sha256.Sum256(binary.LittleEndian.AppendUint64(h, cycle-k)))
	}
	return out
}

// RemoveState removes a training state that is not needed any more; a missing one is fine.
func RemoveState(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
