package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/content/gateway"
)

func gatewayCommand(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "gateway", `Usage: bzd gateway [flags]

Serves the block store of a node's directory over HTTP, by the IPFS path gateway and the trustless gateway: /ipfs/CID/PATH,
with ?format=raw, car and tar. It shows the checkpoints that are pinned there and their certificates, nothing else; with
--public everything in the store, and with --peer what those peers have too. A node that runs has a gateway of its own.`).nodeDir()
	listen := c.set.String("listen", "127.0.0.1:8080", "`ADDRESS` to listen on")
	public := c.set.Bool("public", false, "show every block, of whatever kind")
	var peers list
	c.set.Var(&peers, "peer", "with --public, the `ADDRESS` of a peer to fetch from: a multiaddress that ends in /p2p/ID; repeatable")
	quota, largest := size(16<<30), size(0)
	c.set.Var(&quota, "quota", "with --peer, how large the store may grow; what nobody pinned goes first")
	c.set.Var(&largest, "largest", "the largest file or directory that is answered for; 0 means any")
	config := gateway.Config{}
	c.set.IntVar(&config.Requests, "requests", 64, "how many requests are answered at a time")
	c.set.DurationVar(&config.Stall, "stall", 30*time.Second, "how long a request may go without a byte being written")
	c.set.DurationVar(&config.Duration, "duration", time.Hour, "how long a request may take in all")
	if err := c.parse(args, false); err != nil {
		return err
	}
	infos, err := addresses(peers)
	switch {
	case err != nil:
		return err
	case len(infos) > 0 && !*public:
		return usageError("--peer is for --public: what others have is not this node's own")
	case config.Requests < 1 || config.Stall <= 0 || config.Duration <= 0:
		return usageError("--requests, --stall and --duration must be above zero")
	}
	config.Size = int64(largest)
	s, dir, err := c.openStoreOf(*public, uint64(quota))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	shown := "everything in the store"
	if !*public {
		if config.Only, shown, err = ownContent(ctx, s, dir); err != nil {
			return err
		}
	}
	if len(infos) > 0 {
		h, err := dial(ctx, env, infos)
		if err != nil {
			return err
		}
		defer h.Close()
		x := exchange.New(h, s, exchange.Config{})
		defer x.Close()
		config.Fetch = remote{x}
		shown += " and what peers have"
	}
	h, err := gateway.New(s, config)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("%w; choose another address with --listen", err)
	}
	fmt.Fprintf(env.out, "gateway: http://%s/ipfs/ shows %s; Ctrl-C ends it\n", l.Addr(), shown)
	server := gateway.Server(h)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err = <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if server.Shutdown(grace) != nil {
		err = server.Close() // who has not ended by now is cut off
	}
	if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// ownContent lists the checkpoints that are pinned, and the certificates that name them.
func ownContent(ctx context.Context, s *blockstore.Store, dir string) (*gateway.Catalogue, string, error) {
	pins, err := s.Pins()
	if err != nil {
		return nil, "", err
	}
	own, checkpoints := gateway.NewCatalogue(s), 0
	for _, p := range pins {
		if p.Owner.Kind != "checkpoint" && p.Owner.Kind != "user" {
			continue
		}
		for _, root := range p.Roots {
			switch err := own.Add(ctx, root); {
			case format.IsNotFound(err): // not all of it has come
			case err != nil:
				return nil, "", err
			default:
				checkpoints++
			}
		}
	}
	certificates, err := readCertificates(dir)
	if err != nil {
		return nil, "", err
	}
	for _, c := range certificates {
		if err := own.Add(ctx, c.Digest().Link().Cid()); err != nil && !format.IsNotFound(err) {
			return nil, "", err
		}
	}
	return own, fmt.Sprintf("%d checkpoints and %d certificates", checkpoints, len(certificates)), nil
}

// remote is the exchange as boxo's gateway sees it.
type remote struct{ x *exchange.Exchange }

func (r remote) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return r.x.Get(ctx, c)
}

func (r remote) GetBlocks(ctx context.Context, list []cid.Cid) (<-chan blocks.Block, error) {
	out := make(chan blocks.Block)
	go func() {
		defer close(out)
		for _, c := range list {
			b, err := r.x.Get(ctx, c)
			if err != nil {
				return
			}
			select {
			case out <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (r remote) NotifyNewBlocks(context.Context, ...blocks.Block) error { return nil }
func (r remote) Close() error                                           { return nil }
