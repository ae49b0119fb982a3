package beacon

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// source answers from a function and counts.
type source struct {
	mu    sync.Mutex
	calls int
	sign  func(ctx context.Context, round uint64) ([]byte, error)
}

func (s *source) Signature(ctx context.Context, round uint64) ([]byte, error) {
	s.mu.Lock()
	s.calls++
	s.mu.Unlock()
	return s.sign(ctx, round)
}

// honest signs rounds from their time on.
func honest(k Key, c Clock) *source {
	return &source{sign: func(_ context.Context, round uint64) ([]byte, error) {
		if time.Now().Before(c.TimeOf(round)) {
			return nil, ErrTooEarly
		}
		return k.Sign(round)
	}}
}

func TestCache(t *testing.T) {
	k := testKey(t)
	wrong := sign(t, k, 999)
	run := func(name string, test func(t *testing.T, c Clock, cache func(...Source) *Cache)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := Clock{time.Now(), 3 * time.Second}
				test(t, clock, func(sources ...Source) *Cache {
					c, err := NewCache(CacheConfig{Public: k.Public(), Clock: clock, Now: time.Now, Keep: 2}, sources...)
					if err != nil {
						t.Fatal(err)
					}
					return c
				})
			})
		})
	}
	need := func(t *testing.T, c *Cache, round uint64) {
		t.Helper()
		sig, err := c.Signature(t.Context(), round)
		if err == nil {
			err = k.Public().Verify(round, sig)
		}
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}

	run("waits until the round is due", func(t *testing.T, clock Clock, cache func(...Source) *Cache) {
		s := honest(k, clock)
		c := cache(s)
		need(t, c, 41)
		if got := time.Since(clock.Genesis); got != 120*time.Second || s.calls != 1 {
			t.Errorf("round 41 after %v and %d calls", got, s.calls)
		}
	})
	run("one fetch for all", func(t *testing.T, clock Clock, cache func(...Source) *Cache) {
		s := honest(k, clock)
		c := cache(s)
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() { need(t, c, 2) })
		}
		all.Wait()
		if s.calls != 1 || len(c.turns) != 0 {
			t.Errorf("%d calls, %d turns left", s.calls, len(c.turns))
		}
	})
	run("remembers the last two", func(t *testing.T, clock Clock, cache func(...Source) *Cache) {
		s := honest(k, clock)
		c := cache(s)
		for _, round := range []uint64{1, 2, 3, 3, 2, 1} {
			need(t, c, round)
		}
		if s.calls != 4 || len(c.known) != 2 || len(c.order) != 2 {
			t.Errorf("%d calls, %d rounds kept", s.calls, len(c.known))
		}
	})
	run("a returned slice is the caller's", func(t *testing.T, clock Clock, cache func(...Source) *Cache) {
		c := cache(honest(k, clock))
		sig, err := c.Signature(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		sig[5] ^= 1
		need(t, c, 1)
	})
	run("liars, silence and late sources are passed over", func(t *testing.T, clock Clock, cache func(...Source) *Cache) {
		liar := &source{sign: func(context.Context, uint64) ([]byte, error) { return wrong, nil }}
		hangs := &source{sign: func(ctx context.Context, _ uint64) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }}
		down := &source{sign: func(context.Context, uint64) ([]byte, error) { return nil, errors.New("connection refused") }}
		c := cache(liar, down, hangs, honest(k, Clock{clock.Genesis.Add(7 * time.Second), clock.Period}))
		need(t, c, 1)
		if got := time.Since(clock.Genesis); got < 10*time.Second || got > 11*time.Second {
			t.Errorf("after %v; the source that hangs costs 5 s a pass and the late one comes at 7 s", got)
		}
	})
	run("gives up with its context", func(t *testing.T, clock Clock, cache func(...Source) *Cache) {
		liar := &source{sign: func(context.Context, uint64) ([]byte, error) { return wrong, nil }}
		c := cache(liar)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.Signature(ctx, 1)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrSignature) {
			t.Errorf("error %v", err)
		}
		if liar.calls > 12 {
			t.Errorf("%d attempts in 10 s: the pause does not grow", liar.calls)
		}
		if _, err := c.Signature(ctx, 1<<60); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a round in 292 years: %v", err)
		}
	})
	run("who waits for a turn can leave, and another takes over", func(t *testing.T, clock Clock, cache func(...Source) *Cache) {
		c := cache(honest(k, clock))
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if _, err := c.Signature(short, 9); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("left with %v", err)
				}
			})
		}
		synctest.Wait()
		all.Go(func() { need(t, c, 9) })
		all.Wait()
		if len(c.turns) != 0 {
			t.Error("a turn is left")
		}
	})
	run("a clock set back costs a minute", func(t *testing.T, clock Clock, _ func(...Source) *Cache) {
		var back atomic.Int64
		back.Store(int64(10 * time.Hour))
		s := &source{sign: func(context.Context, uint64) ([]byte, error) { return k.Sign(2) }}
		c, err := NewCache(CacheConfig{Public: k.Public(), Clock: clock, Now: func() time.Time { return time.Now().Add(-time.Duration(back.Load())) }}, s)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(30*time.Second, func() { back.Store(0) })
		need(t, c, 2)
		if got := time.Since(clock.Genesis); got != time.Minute {
			t.Errorf("after %v", got)
		}
	})
	if c, err := NewCache(CacheConfig{}); err == nil || c != nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("an empty configuration: %v", err)
	}
	if _, err := NewCache(CacheConfig{Keep: -1}, nil); err == nil {
		t.Error("keeps -1 rounds")
	}
}
