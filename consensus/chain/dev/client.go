package dev

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// ClientConfig is what a [Client] needs.
type ClientConfig struct {
	// Endpoints are addresses of one chain's servers, as 127.0.0.1:9944 or http://127.0.0.1:9944. The first that answers
	// is used until it fails.
	Endpoints []string
	// Chain is the hash of the chain that is meant; zero means that of the first answer. An endpoint of another chain
	// counts as down.
	Chain protocol.Hash

	Attempt time.Duration // for one request to one endpoint; 0 means 5 s
	Passes  int           // over all endpoints until a call gives up; 0 means 4
	// Backoff is the pause after the first pass; it doubles up to 2 s. 0 means 100 ms.
	Backoff time.Duration
	// Wait waits for a duration or until its context is done, whose error it then returns; nil means beacon.Sleep.
	Wait func(context.Context, time.Duration) error
}

// maxBackoff is the longest pause between passes.
const maxBackoff = 2 * time.Second

// Client is a [chain.Client] and a [beacon.Source] of a development chain. Its methods may be called concurrently; all of
// them retry as [ClientConfig] says, and fail as [chain.Client] does.
type Client struct {
	cfg       ClientConfig
	endpoints []string
	http      *http.Client

	mu    sync.Mutex
	first int           // the endpoint to ask first
	chain protocol.Hash // zero until the first answer
	head  chain.Block   // the highest seen
}

var (
	_ chain.Client  = (*Client)(nil)
	_ beacon.Source = (*Client)(nil)
)

// NewClient checks the configuration. It connects to nothing yet.
func NewClient(cfg ClientConfig) (*Client, error) {
	var errs []error
	if len(cfg.Endpoints) == 0 {
		errs = append(errs, fmt.Errorf("%w: no endpoint; give the address that the chain's server prints", ErrConfig))
	}
	c := &Client{chain: cfg.Chain}
	for _, e := range cfg.Endpoints {
		base, err := endpoint(e)
		if err != nil {
			errs = append(errs, err)
		}
		c.endpoints = append(c.endpoints, base)
	}
	if cfg.Attempt < 0 || cfg.Passes < 0 || cfg.Backoff < 0 {
		errs = append(errs, fmt.Errorf("%w: %v an attempt, %d passes, backoff %v; none may be negative", ErrConfig, cfg.Attempt, cfg.Passes,
			cfg.Backoff))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Attempt == 0 {
		cfg.Attempt = 5 * time.Second
	}
	if cfg.Passes == 0 {
		cfg.Passes = 4
	}
	if cfg.Backoff == 0 {
		cfg.Backoff = 100 * time.Millisecond
	}
	if cfg.Wait == nil {
		cfg.Wait = beacon.Sleep
	}
	c.cfg = cfg
	c.http = &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: 5 * time.Second, DisableCompression: true,
			MaxResponseHeaderBytes: 16 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("a chain does not redirect") },
	}
	return c, nil
}

// Close closes idle connections. Calls under way finish.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Info returns what the chain says of itself.
func (c *Client) Info(ctx context.Context) (i Info, err error) {
	err = c.do(ctx, request{path: "/v1/chain"}, func(b []byte) error {
		i = Info{}
		if err := json.Unmarshal(b, &i); err != nil {
			return err
		}
		return i.Clock().Validate()
	})
	return i, err
}

// Head implements [chain.Client].
func (c *Client) Head(ctx context.Context) (chain.Block, error) {
	var wire wireBlock
	err := c.do(ctx, request{path: "/v1/head"}, func(b []byte) error {
		wire = wireBlock{}
		return json.Unmarshal(b, &wire)
	})
	if err != nil {
		return chain.Block{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if wire.Height > c.head.Height || c.head.Hash.IsZero() {
		c.head = chain.Block{Height: wire.Height, Hash: wire.Hash, Time: time.UnixMilli(wire.Millis).UTC()}
	}
	return c.head, nil
}

// Snapshot implements [chain.Client].
func (c *Client) Snapshot(ctx context.Context, height uint64) (s protocol.Snapshot, err error) {
	err = c.do(ctx, request{path: "/v1/snapshots/" + strconv.FormatUint(height, 10)}, func(b []byte) (err error) {
		if s, err = protocol.DecodeSnapshot(b); err == nil && s.Height != height {
			err = fmt.Errorf("a snapshot of block %d, not %d", s.Height, height)
		}
		return err
	})
	if err != nil {
		return protocol.Snapshot{}, err
	}
	return s, nil
}

// Submit implements [chain.Client]. Nothing that is no valid record is sent.
func (c *Client) Submit(ctx context.Context, s protocol.Submission) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("dev chain: %w", err)
	}
	b, err := protocol.Encode(s)
	if err != nil {
		return fmt.Errorf("%w: %w", chain.ErrRefused, err)
	}
	if err := c.do(ctx, request{path: "/v1/weights", body: b}, nil); err != nil {
		return err
	}
	stands, ok, err := c.Weights(ctx, s.Cycle, s.Validator)
	if err != nil {
		return err
	}
	if !ok || stands.Sig != s.Sig || !slices.Equal(stands.Weights, s.Weights) {
		return fmt.Errorf("%w: the chain took the weights of cycle %d and does not have them", chain.ErrConflict, s.Cycle)
	}
	return nil
}

// Weights returns what a validator submitted for a cycle, false if nothing.
func (c *Client) Weights(ctx context.Context, cycle uint64, validator protocol.ID) (s protocol.Submission, ok bool, err error) {
	path := fmt.Sprintf("/v1/weights/%d/%s", cycle, validator)
	err = c.do(ctx, request{path: path}, func(b []byte) (err error) {
		if s, err = protocol.DecodeSubmission(b); err == nil && (s.Cycle != cycle || s.Validator != validator) {
			err = fmt.Errorf("weights of cycle %d of %s", s.Cycle, s.Validator)
		}
		return err
	})
	return found(s, err)
}

// Registration returns the last registration of a participant, false if it never registered.
func (c *Client) Registration(ctx context.Context, id protocol.ID) (r Registration, ok bool, err error) {
	err = c.do(ctx, request{path: "/v1/registrations/" + id.String()}, func(b []byte) (err error) {
		if r, err = decode[Registration](b); err == nil && r.Participant.ID != id {
			err = fmt.Errorf("a registration of %s", r.Participant.ID)
		}
		return err
	})
	return found(r, err)
}

func found[T any](v T, err error) (T, bool, error) {
	var none T
	if errors.Is(err, errNotFound) {
		return none, false, nil
	}
	if err != nil {
		return none, false, err
	}
	return v, true, nil
}

// Register puts a participant into the registry or changes its entry; without roles it leaves. key is its chain key. It
// returns the first block that has the change. An entry that stands already is not registered again.
func (c *Client) Register(ctx context.Context, network protocol.Link, p protocol.Participant, key ed25519.PrivateKey) (height uint64, err error) {
	old, ok, err := c.Registration(ctx, p.ID)
	if err != nil {
		return 0, err
	}
	r := old
	if !ok || old.Participant != p || old.Network != network {
		r = Registration{Version: protocol.Version, Network: network, Sequence: old.Sequence + 1, Participant: p}
		if err := r.Sign(key); err != nil {
			return 0, fmt.Errorf("%w: %w", chain.ErrRefused, err)
		}
	}
	b, err := protocol.Encode(r)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", chain.ErrRefused, err)
	}
	var wire wireHeight
	err = c.do(ctx, request{path: "/v1/registrations", body: b}, func(b []byte) error { return json.Unmarshal(b, &wire) })
	return wire.Height, err
}

// Signature implements [beacon.Source]: the signature is not verified.
func (c *Client) Signature(ctx context.Context, n uint64) (sig []byte, err error) {
	err = c.do(ctx, request{path: "/v1/beacon/" + strconv.FormatUint(n, 10)}, func(b []byte) error {
		var wire round
		if err := json.Unmarshal(b, &wire); err != nil {
			return err
		}
		if wire.Round != n || len(wire.Signature) != 2*beacon.SignatureSize {
			return fmt.Errorf("a signature of %d digits of round %d", len(wire.Signature), wire.Round)
		}
		sig, err = hex.DecodeString(wire.Signature)
		return err
	})
	return sig, err
}
