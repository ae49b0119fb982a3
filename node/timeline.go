package node

import (
	"context"
	"fmt"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// timeline is when the phases of one cycle end, on this node's clock.
type timeline struct {
	cycle    uint64
	anchor   uint64 // beacon round
	clock    beacon.Clock
	schedule protocol.Schedule
	protocol.Deadlines
}

// startHeight is the block that starts a cycle.
func startHeight(s protocol.Schedule, cycle uint64) uint64 { return cycle * uint64(s.CycleBlocks) }

// cycleAt is the cycle that a block lies in.
func cycleAt(s protocol.Schedule, height uint64) uint64 { return height / uint64(s.CycleBlocks) }

// newTimeline places a cycle on the clock: its anchor is the first round after the time of the block that starts it.
func newTimeline(s protocol.Schedule, cycle uint64, block time.Time, c beacon.Clock) (timeline, error) {
	d, err := s.Deadlines(uint32(c.Period.Milliseconds()))
	return timeline{cycle: cycle, anchor: c.RoundAfter(block), clock: c, schedule: s, Deadlines: d}, err
}

// at is the time of a deadline, given in milliseconds since the anchor.
func (t timeline) at(millis uint64) time.Time {
	return t.clock.TimeOf(t.anchor).Add(time.Duration(millis) * time.Millisecond)
}

// since is now in milliseconds since the anchor.
func (t timeline) since(now time.Time) int64 { return now.Sub(t.clock.TimeOf(t.anchor)).Milliseconds() }

// openRound opens the seals of the cycle, drawRound draws its samples.
func (t timeline) openRound() uint64 { return t.anchor + uint64(t.schedule.Open) }
func (t timeline) drawRound() uint64 { return t.openRound() + 1 }

// until waits for a time or the end of ctx.
func (n *Node) until(ctx context.Context, at time.Time) error {
	return beacon.Sleep(ctx, at.Sub(n.cfg.Now()))
}

// waitCycle waits for the block that starts a cycle and returns its timeline and snapshot.
func (n *Node) waitCycle(ctx context.Context, cycle uint64) (timeline, protocol.Snapshot, error) {
	height := startHeight(n.schedule(), cycle)
	for {
		head, err := n.on.Client.Head(ctx)
		if ctx.Err() != nil {
			return timeline{}, protocol.Snapshot{}, ctx.Err()
		}
		if err == nil && head.Height >= height {
			block := head.Time.Add(-time.Duration(head.Height-height) * n.on.BlockPeriod)
			t, err := newTimeline(n.schedule(), cycle, block, n.on.Clock)
			if err != nil {
				return t, protocol.Snapshot{}, err
			}
			s, err := n.on.Client.Snapshot(ctx, height)
			if err == nil {
				return t, s, nil
			}
			n.trouble(cycle, fmt.Errorf("snapshot at block %d: %w", height, err))
		} else if err != nil {
			n.trouble(cycle, fmt.Errorf("chain: %w", err))
		}
		wait := n.on.BlockPeriod / 8
		if err == nil && head.Height < height {
			next := head.Time.Add(time.Duration(height-head.Height) * n.on.BlockPeriod)
			wait = max(wait, next.Sub(n.cfg.Now()))
		}
		if err := beacon.Sleep(ctx, wait); err != nil {
			return timeline{}, protocol.Snapshot{}, err
		}
	}
}
