package dev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// maxAnswer is above the largest snapshot.
const maxAnswer = 1<<20 + 1

// request is one question to the chain; a body makes it a POST.
type request struct {
	path string
	body []byte
}

func endpoint(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%w: endpoint: %w", ErrConfig, err)
	}
	if u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return "", fmt.Errorf("%w: endpoint %q is not like http://127.0.0.1:9944", ErrConfig, s)
	}
	return "http://" + u.Host, nil
}

// do asks the endpoints in turn, from the one that answered last on, until one answers or refuses. parse may be called
// again after it failed: an answer that it does not take counts as none.
func (c *Client) do(ctx context.Context, r request, parse func([]byte) error) error {
	c.mu.Lock()
	first := c.first
	c.mu.Unlock()
	pause := c.cfg.Backoff
	for pass := 1; ; pass++ {
		var down []error
		for i := range c.endpoints {
			at := (first + i) % len(c.endpoints)
			answer, refusal, err := c.ask(ctx, c.endpoints[at], r)
			if err == nil && refusal == nil && parse != nil {
				err = parse(answer)
			}
			if err == nil {
				c.mu.Lock()
				c.first = at
				c.mu.Unlock()
				return refusal
			}
			if ctx.Err() != nil {
				return fmt.Errorf("dev chain: %s: %w", r.path, ctx.Err())
			}
			down = append(down, fmt.Errorf("%s: %w", c.endpoints[at], err))
		}
		if pass >= c.cfg.Passes {
			return fmt.Errorf("%w: %w", chain.ErrUnavailable, errors.Join(down...))
		}
		if err := c.cfg.Wait(ctx, pause); err != nil {
			return fmt.Errorf("dev chain: %s: %w; last failure: %w", r.path, err, errors.Join(down...))
		}
		pause = min(2*pause, maxBackoff)
	}
}

// ask asks one endpoint: an answer, a refusal that no endpoint would change, or why the endpoint is of no use now.
func (c *Client) ask(ctx context.Context, base string, r request) (answer []byte, refusal, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Attempt)
	defer cancel()
	method := http.MethodGet
	var body io.Reader
	if r.body != nil {
		method, body = http.MethodPost, bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+r.path, body)
	if err != nil {
		return nil, nil, err
	}
	if r.body != nil {
		req.Header.Set("Content-Type", typeCBOR)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, nil, err
	}
	if len(b) == maxAnswer {
		return nil, nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer-1)
	}
	if err := c.sameChain(resp.Header.Get(chainHeader)); err != nil {
		return nil, nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return b, nil, nil
	}
	var f failure
	if json.Unmarshal(b, &f) == nil && resp.StatusCode < 500 {
		for _, known := range failures {
			if f.Code == known.code {
				return nil, refused{known.err, f.Error}, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("status %s: %.200q", resp.Status, f.Error)
}

// refused is a server's message, which names its sentinel already.
type refused struct {
	err     error
	message string
}

func (r refused) Error() string {
	return fmt.Sprintf("%.500s", strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, r.message))
}
func (r refused) Unwrap() error { return r.err }

// sameChain remembers the chain of the first answer and holds every later one to it.
func (c *Client) sameChain(text string) error {
	var hash protocol.Hash
	if err := hash.UnmarshalText([]byte(text)); err != nil {
		return fmt.Errorf("not a development chain: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chain.IsZero() {
		c.chain = hash
	}
	if c.chain != hash {
		return fmt.Errorf("serves chain %s, not %s", hash, c.chain)
	}
	return nil
}
