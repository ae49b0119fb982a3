package exchange

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// httpRequests is how many blocks are asked of a gateway at the same time.
const httpRequests = 8

// FetchHTTP brings a DAG into a store from a [trustless gateway]: it asks for every block that is not there, hashes it, and
// trusts the gateway in nothing else. base is the gateway's address without the path. As with [Exchange.FetchDAG] an
// interrupted fetch goes on where it was. A block that the gateway does not have is [ErrMissing], other bytes are [ErrLied].
//
// [trustless gateway]: https://specs.ipfs.tech/http-gateways/trustless-gateway/
func FetchHTTP(
	ctx context.Context, client *http.Client, base string, store blockStore, root cid.Cid, bounds Bounds, report func(Progress),
) (Progress, error) {
	if err := checkLink(root, protocol.DagPB, protocol.Raw); err != nil {
		return Progress{}, err
	}
	if u, err := url.Parse(base); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return Progress{}, fmt.Errorf("exchange: gateway %q: want an address such as http://127.0.0.1:8080", base)
	}
	if s, ok := store.(holder); ok {
		defer s.Hold()()
	}
	g := &gatewayFetch{client: client, base: base, store: store, bounds: bounds.withDefaults(), report: report}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	seen, level := cid.NewSet(), []cid.Cid{root}
	for depth := 0; len(level) > 0; depth++ {
		if depth > g.bounds.MaxDepth {
			return g.done, fmt.Errorf("%w: deeper than %d", ErrBounds, g.bounds.MaxDepth)
		}
		var below []cid.Cid
		var mu sync.Mutex
		todo := make(chan cid.Cid)
		var work sync.WaitGroup
		for range httpRequests {
			work.Go(func() {
				for c := range todo {
					links, err := g.bring(ctx, c)
					if err != nil {
						cancel(err)
					}
					mu.Lock()
					if below = append(below, links...); len(below) > 2*g.bounds.MaxBlocks {
						cancel(fmt.Errorf("%w: more than %d links", ErrBounds, 2*g.bounds.MaxBlocks))
						below = nil
					}
					mu.Unlock()
				}
			})
		}
		for _, c := range level {
			if !seen.Visit(c) {
				continue
			}
			select {
			case todo <- c:
				continue
			case <-ctx.Done():
			}
			break
		}
		close(todo)
		work.Wait()
		if err := context.Cause(ctx); err != nil {
			return g.done, err
		}
		level = below
	}
	if s, ok := store.(syncer); ok {
		return g.done, s.Sync()
	}
	return g.done, nil
}

type gatewayFetch struct {
	client *http.Client
	base   string
	store  blockStore
	bounds Bounds
	report func(Progress)

	mu   sync.Mutex
	done Progress
}

// bring makes sure that a block is here and returns what it links to.
func (g *gatewayFetch) bring(ctx context.Context, c cid.Cid) ([]cid.Cid, error) {
	n, links, err := lengthAndLinks(ctx, g.store, c)
	moved := format.IsNotFound(err)
	if moved {
		var b blocks.Block
		if b, err = g.ask(ctx, c); err != nil {
			return nil, err
		}
		if err = g.store.PutMany(ctx, []blocks.Block{b}); err != nil {
			return nil, err
		}
		n = len(b.RawData())
		if c.Prefix().Codec == protocol.DagPB {
			links, err = nodeLinks(b)
		}
	}
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done.Blocks++
	g.done.Bytes += uint64(n)
	if moved {
		g.done.MovedBlocks++
		g.done.MovedBytes += uint64(n)
	}
	if g.done.Blocks > g.bounds.MaxBlocks || g.done.Bytes > g.bounds.MaxBytes {
		return nil, fmt.Errorf("%w: more than %d blocks or %d bytes", ErrBounds, g.bounds.MaxBlocks, g.bounds.MaxBytes)
	}
	if g.report != nil {
		g.report(g.done)
	}
	return links, nil
}

// ask asks the gateway for one block.
func (g *gatewayFetch) ask(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	address, err := url.JoinPath(g.base, "ipfs", c.String())
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"?format=raw", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/vnd.ipld.raw")
	answer, err := g.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: %s: the gateway says %s", ErrMissing, c, answer.Status)
	}
	data, err := io.ReadAll(io.LimitReader(answer.Body, MaxBlock+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMissing, c, err)
	}
	b, err := blocks.NewBlockWithCid(data, c)
	if err == nil && checkBlock(b) != nil {
		err = fmt.Errorf("%w in place of %s: %d bytes", ErrLied, c, len(data))
	}
	return b, err
}
