package beacon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Source fetches signatures of rounds from somewhere.
type Source interface {
	// Signature returns what is said to be the signature of a round; the caller owns the slice and must verify it. It
	// fails with [ErrTooEarly] while the round is not published, with an error that wraps ctx.Err() when ctx is done, and
	// with anything else when the source cannot be reached. It may block for as long as ctx allows and may be called
	// concurrently.
	Signature(ctx context.Context, round uint64) ([]byte, error)
}

// CacheConfig is what a [Cache] needs.
type CacheConfig struct {
	Public Public           // verifies what the sources bring
	Clock  Clock            // when rounds are published
	Now    func() time.Time // the time
	// Wait waits for a duration or until its context is done, whose error it then returns; nil means [Sleep].
	Wait func(context.Context, time.Duration) error
	Keep int // rounds to remember; 0 means 256
	// Retry is the pause after the first failed attempt of every source; it doubles up to 16 times itself. 0 means a
	// tenth of the period.
	Retry time.Duration
	// Attempt bounds one question to one source, so that one that hangs does not keep the others from being asked. 0 means
	// 5 s.
	Attempt time.Duration
}

// Validate reports every fault.
func (c CacheConfig) Validate() error {
	var errs []error
	if c.Public.point == nil {
		errs = append(errs, fmt.Errorf("%w: none given; nothing could be verified", ErrPublic))
	}
	if err := c.Clock.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Now == nil {
		errs = append(errs, errors.New("beacon: no clock function; rounds would never be due"))
	}
	if c.Keep < 0 || c.Retry < 0 || c.Attempt < 0 {
		errs = append(errs, fmt.Errorf("beacon: keep %d rounds, retry after %v, ask for %v; none may be negative", c.Keep, c.Retry,
			c.Attempt))
	}
	return errors.Join(errs...)
}

// maxWait is the longest sleep until the clock is read again, so that a clock set meanwhile does no more harm than that.
const maxWait = time.Minute

// Cache is a [Source] of verified signatures: it waits until a round is due, asks its sources in turn until one brings a
// signature that verifies, and remembers the last rounds. Any number of callers may wait for one round; one of them
// fetches.
type Cache struct {
	cfg     CacheConfig
	sources []Source

	mu    sync.Mutex
	known map[uint64][]byte
	order []uint64 // keys of known, the oldest first
	turns map[uint64]*turn
}

// turn is held by the caller that fetches a round.
type turn struct {
	held    chan struct{} // full while held
	callers int           // under Cache.mu
}

// NewCache checks the configuration. At least one source is needed.
func NewCache(cfg CacheConfig, sources ...Source) (*Cache, error) {
	err := cfg.Validate()
	if len(sources) == 0 {
		err = errors.Join(err, errors.New("beacon: no source; no round would ever arrive"))
	}
	if err != nil {
		return nil, err
	}
	if cfg.Wait == nil {
		cfg.Wait = Sleep
	}
	if cfg.Keep == 0 {
		cfg.Keep = 256
	}
	if cfg.Retry == 0 {
		cfg.Retry = max(cfg.Clock.Period/10, time.Millisecond)
	}
	if cfg.Attempt == 0 {
		cfg.Attempt = 5 * time.Second
	}
	return &Cache{cfg: cfg, sources: sources, known: make(map[uint64][]byte), turns: make(map[uint64]*turn)}, nil
}

// Signature returns the verified signature of a round, waiting for its time and retrying until ctx is done; the error
// then wraps ctx.Err() and what failed last. A caller that takes round numbers from others bounds ctx: a round of the far
// future waits that long. The caller owns the slice.
func (c *Cache) Signature(ctx context.Context, round uint64) ([]byte, error) {
	if round == 0 {
		return nil, ErrRound
	}
	if sig := c.lookup(round); sig != nil {
		return sig, nil
	}
	release, err := c.acquire(ctx, round)
	if err != nil {
		return nil, err
	}
	defer release()
	if sig := c.lookup(round); sig != nil { // fetched while this caller waited for its turn
		return sig, nil
	}
	if err := c.untilDue(ctx, round); err != nil {
		return nil, err
	}
	sig, err := c.fetch(ctx, round)
	if err != nil {
		return nil, err
	}
	c.remember(round, sig)
	return bytes.Clone(sig), nil
}

func (c *Cache) lookup(round uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.known[round])
}

func (c *Cache) remember(round uint64, sig []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.order) >= c.cfg.Keep {
		delete(c.known, c.order[0])
		c.order = append(c.order[:0], c.order[1:]...)
	}
	c.known[round] = sig
	c.order = append(c.order, round)
}

// acquire waits for the turn to fetch a round.
func (c *Cache) acquire(ctx context.Context, round uint64) (release func(), err error) {
	c.mu.Lock()
	t := c.turns[round]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1)}
		c.turns[round] = t
	}
	t.callers++
	c.mu.Unlock()

	leave := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if t.callers--; t.callers == 0 {
			delete(c.turns, round)
		}
	}
	select {
	case t.held <- struct{}{}:
		return func() { <-t.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("beacon: round %d: %w", round, ctx.Err())
	}
}

func (c *Cache) untilDue(ctx context.Context, round uint64) error {
	due := c.cfg.Clock.TimeOf(round)
	for {
		left := due.Sub(c.cfg.Now())
		if left <= 0 {
			return nil
		}
		if err := c.cfg.Wait(ctx, min(left, maxWait)); err != nil {
			return fmt.Errorf("beacon: round %d is due in %v: %w", round, left, err)
		}
	}
}

func (c *Cache) fetch(ctx context.Context, round uint64) ([]byte, error) {
	pause := c.cfg.Retry
	for {
		var failed []error
		for i, source := range c.sources {
			sig, err := c.ask(ctx, source, round)
			if err == nil {
				return sig, nil
			}
			failed = append(failed, fmt.Errorf("source %d: %w", i, err))
			if ctx.Err() != nil {
				break
			}
		}
		err := ctx.Err()
		if err == nil {
			err = c.cfg.Wait(ctx, pause)
		}
		if err != nil {
			return nil, fmt.Errorf("beacon: round %d: %w; last failure: %w", round, err, errors.Join(failed...))
		}
		pause = min(2*pause, 16*c.cfg.Retry)
	}
}

func (c *Cache) ask(ctx context.Context, source Source, round uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Attempt)
	defer cancel()
	sig, err := source.Signature(ctx, round)
	if err != nil {
		return nil, err
	}
	return sig, c.cfg.Public.Verify(round, sig)
}
