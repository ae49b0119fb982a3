package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/internal/protocol"
	"golang.org/x/net/netutil"
)

// maxConnections is how many clients are served at once; others wait in the kernel's queue.
const maxConnections = 512

// Server is a development chain. Its methods may be called concurrently.
type Server struct {
	cfg  Config
	key  beacon.Key
	http *http.Server

	mu      sync.Mutex
	state   *state
	journal *journal
	closed  bool
}

// Info describes a chain.
type Info struct {
	Chain       protocol.Hash `json:"chain"` // names the chain
	Network     protocol.Link `json:"network"`
	Genesis     time.Time     `json:"genesis"` // of block 0
	BlockMillis uint64        `json:"block_ms"`
	CycleBlocks uint32        `json:"cycle_blocks"`
	Beacon      struct {
		Public  beacon.Public `json:"public"`
		Genesis time.Time     `json:"genesis"` // of round 1
		Millis  uint64        `json:"period_ms"`
	} `json:"beacon"`
}

// Clock returns when the beacon's rounds are published.
func (i Info) Clock() beacon.Clock {
	return beacon.Clock{Genesis: i.Beacon.Genesis, Period: time.Duration(i.Beacon.Millis) * time.Millisecond}
}

// New starts a chain in a directory or continues the one that is there. Errors: [ErrConfig], [ErrCorrupt], or the
// environment's.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.MaxStake == 0 {
		cfg.MaxStake = 1 << 40
	}
	if cfg.MaxJournal == 0 {
		cfg.MaxJournal = 1 << 30
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	key, err := beacon.NewKey(cfg.BeaconSeed)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, key: key}
	err = s.open()
	if errors.Is(err, os.ErrNotExist) {
		first, encodeErr := protocol.Encode(cfg.header(key.Public()))
		if encodeErr != nil {
			return nil, encodeErr
		}
		if err = createJournal(cfg.Dir, first); err == nil {
			err = s.open()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("dev chain: open %s: %w", cfg.Dir, err)
	}
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: cfg.Timeout,
		ReadTimeout:       cfg.Timeout,
		WriteTimeout:      cfg.Timeout,
		IdleTimeout:       2 * cfg.Timeout,
		MaxHeaderBytes:    16 << 10,
	}
	return s, nil
}

func (s *Server) open() error {
	var st *state
	j, err := openJournal(s.cfg.Dir, s.cfg.MaxJournal, func(b []byte) error {
		if st == nil {
			h, err := decode[header](b)
			if err != nil {
				return err
			}
			st, err = newState(h, s.cfg.MaxStake)
			return err
		}
		e, err := decode[entry](b)
		if err != nil {
			return err
		}
		return st.apply(e)
	})
	if err != nil {
		return err
	}
	if err := st.matches(s.cfg, s.key.Public()); err != nil {
		return errors.Join(err, j.close())
	}
	s.state, s.journal = st, j
	return nil
}

// Info describes the chain.
func (s *Server) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := Info{
		Chain: s.state.hash, Network: s.state.Network, Genesis: time.UnixMilli(int64(s.state.Genesis)).UTC(),
		BlockMillis: s.state.BlockMillis, CycleBlocks: s.state.CycleBlocks,
	}
	i.Beacon.Public, i.Beacon.Genesis, i.Beacon.Millis = s.key.Public(), s.state.clock().Genesis, s.state.BeaconMillis
	return i
}

// Serve answers on l, which it closes, until Close. It returns nil after Close and otherwise why it stopped.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(netutil.LimitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("dev chain: %w", err)
	}
	return nil
}

// Close ends Serve, gives requests under way a second, and closes the journal. Closing again does nothing.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close() // who did not finish in a second is cut off
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.journal.close()
}

// errNotStarted: the chain's genesis lies ahead, or it was closed.
var errNotStarted = errors.New("dev chain: not running")

// now brings the state to the present. The caller holds mu.
func (s *Server) now() error {
	if s.closed {
		return fmt.Errorf("%w: closed", errNotStarted)
	}
	if _, ok := s.state.head(s.cfg.Now()); !ok {
		return fmt.Errorf("%w: genesis is at %v", errNotStarted, time.UnixMilli(int64(s.state.Genesis)).UTC())
	}
	return nil
}

func (s *Server) head() (chain.Block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.now(); err != nil {
		return chain.Block{}, err
	}
	return s.state.block(s.state.top), nil
}

func (s *Server) snapshot(height uint64) (protocol.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.now(); err != nil {
		return protocol.Snapshot{}, err
	}
	return s.state.snapshot(height)
}

// write makes an entry durable and then true. The caller holds mu.
func (s *Server) write(e entry) error {
	b, err := protocol.Encode(e)
	if err != nil {
		return err
	}
	if err := s.journal.append(b); err != nil {
		return err
	}
	return s.state.apply(e)
}

func (s *Server) register(body []byte) (height uint64, err error) {
	r, err := decode[Registration](body)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", chain.ErrRefused, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.now(); err != nil {
		return 0, err
	}
	height, fresh, err := s.state.register(r, body)
	if err != nil || !fresh {
		return height, err
	}
	return height, s.write(entry{kindRegistration, height, body})
}

func (s *Server) submit(body []byte) error {
	w, err := protocol.DecodeSubmission(body)
	if err != nil {
		return fmt.Errorf("%w: %w", chain.ErrRefused, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.now(); err != nil {
		return err
	}
	fresh, err := s.state.submit(w, body)
	if err != nil || !fresh {
		return err
	}
	return s.write(entry{kindSubmission, s.state.top, body})
}

// registration returns the last registration of a participant, false if it never registered.
func (s *Server) registration(id protocol.ID) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.state.latest[id]
	return r.body, ok
}

func (s *Server) weights(cycle uint64, validator protocol.ID) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.state.weights[slot{cycle, validator}]
	return b, ok
}

// signature signs a round from its time on.
func (s *Server) signature(round uint64) ([]byte, error) {
	s.mu.Lock()
	clock := s.state.clock()
	s.mu.Unlock()
	if at := s.cfg.Now(); round != 0 && clock.RoundAt(at) < round {
		return nil, fmt.Errorf("%w: round %d comes at %v", beacon.ErrTooEarly, round, clock.TimeOf(round))
	}
	return s.key.Sign(round)
}
