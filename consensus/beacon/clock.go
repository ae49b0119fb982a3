package beacon

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// Clock says when rounds are published: round 1 at Genesis, then one per Period.
type Clock struct {
	Genesis time.Time
	Period  time.Duration
}

// QuicknetClock is the clock of drand's quicknet.
func QuicknetClock() Clock { return Clock{time.Unix(1692803367, 0), 3 * time.Second} }

// QuicknetPublic is the public key of drand's quicknet, chain
// 52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971, in hex.
const QuicknetPublic = "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451" +
	"0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a"

// Validate reports every fault.
func (c Clock) Validate() error {
	var errs []error
	if c.Genesis.IsZero() {
		errs = append(errs, errors.New("beacon: no genesis time; no round would have a time"))
	}
	if c.Period <= 0 {
		errs = append(errs, fmt.Errorf("beacon: period %v; rounds must follow each other", c.Period))
	}
	return errors.Join(errs...)
}

// RoundAt returns the latest round published at t, 0 before the first.
func (c Clock) RoundAt(t time.Time) uint64 {
	if t.Before(c.Genesis) || c.Period <= 0 {
		return 0
	}
	return uint64(t.Sub(c.Genesis)/c.Period) + 1
}

// RoundAfter returns the first round published strictly after t: the anchor of a cycle whose block has that time.
func (c Clock) RoundAfter(t time.Time) uint64 { return c.RoundAt(t) + 1 }

// TimeOf returns when a round is published. Rounds past the range of time.Duration (292 years) have the last moment of
// that range; round 0 has the time of round 1.
func (c Clock) TimeOf(round uint64) time.Time {
	n := max(round, 1) - 1
	if c.Period <= 0 || n > uint64(math.MaxInt64/c.Period) {
		return c.Genesis.Add(math.MaxInt64)
	}
	return c.Genesis.Add(time.Duration(n) * c.Period)
}

// Sleep waits for d or until ctx is done, whose error it then returns. It is what waits where nothing else is configured.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
