package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p/discovery"
)

// fetching are the flags of checkpoint get.
type fetching struct {
	*common
	out         string
	peers       list
	network     string
	gateway     string
	certificate string
	snapshot    string
	limit       size
	timeout     time.Duration
	asJSON      bool
}

// fetched is what checkpoint get did.
type fetched struct {
	Checkpoint  cid.Cid `json:"checkpoint"`
	Bytes       uint64  `json:"bytes"`
	Moved       uint64  `json:"moved_bytes"`
	Wasted      uint64  `json:"wasted_bytes"`
	Sources     int     `json:"sources"`
	Seconds     float64 `json:"seconds"`
	Out         string  `json:"out,omitempty"`
	Certificate string  `json:"certificate"`
}

func checkpointGet(ctx context.Context, env environment, args []string) (err error) {
	f := &fetching{limit: 64 << 30, common: newFlags(env, "checkpoint get", `Usage: bzd checkpoint get [flags] CID

Fetches a checkpoint from peers of a network, several at a time, or from a trustless gateway, into the block store of a
directory; with --out it is then written as a directory that transformers loads. Every block is hashed, so it does not
matter whom they come from. What is here does not move: an interrupted fetch goes on where it was, and the next checkpoint
costs what it changed. A certificate, given or found in the directory, must name this checkpoint.`).nodeDir()}
	f.set.StringVar(&f.out, "out", "", "`DIR` to write the checkpoint to, which must not exist or be empty")
	f.set.Var(&f.peers, "peer", "`ADDRESS` of a peer: a multiaddress that ends in /p2p/ID; repeatable")
	f.set.StringVar(&f.network, "network", "", "`CID` of the network's genesis: where the peers given are too few, others are looked for in its DHT")
	f.set.StringVar(&f.gateway, "gateway", "", "`URL` of a gateway, such as http://127.0.0.1:8080, in place of peers")
	f.set.StringVar(&f.certificate, "certificate", "", "`FILE` of the certificate that must name this checkpoint")
	f.set.StringVar(&f.snapshot, "snapshot", "",
		"`FILE` of the chain's snapshot of the certificate's cycle, to verify its signatures")
	f.set.Var(&f.limit, "limit", "the most that the checkpoint may have, such as 8GiB")
	f.set.DurationVar(&f.timeout, "timeout", time.Hour, "how long it may take")
	f.set.BoolVar(&f.asJSON, "json", false, "print one JSON object")
	if err := f.dirs(args, "CID"); err != nil {
		return err
	}
	l, err := protocol.ParseLink(f.set.Arg(0))
	switch {
	case err != nil:
		return usageError("%v", err)
	case (f.gateway == "") == (len(f.peers) == 0):
		return usageError("give --peer, once or more, or --gateway")
	case f.network != "" && f.gateway != "":
		return usageError("--network is for --peer: a gateway has no DHT")
	case f.snapshot != "" && f.certificate == "":
		return usageError("--snapshot is for a --certificate")
	}
	if f.out != "" {
		if err := newDir(f.out); err != nil {
			return err
		}
	}
	infos, err := addresses(f.peers)
	if err != nil {
		return err
	}
	var network protocol.Link
	if f.network != "" {
		if network, err = protocol.ParseLink(f.network); err != nil {
			return usageError("--network: %v", err)
		}
	}
	s, dir, err := f.openStore(true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	done := fetched{Checkpoint: l.Cid(), Out: f.out}
	if done.Certificate, err = f.certified(dir, l); err != nil {
		return err
	}
	if err := s.Pin(ctx, userPin(l.Cid())); err != nil {
		return err
	}
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	start := env.now()
	p, err := f.fetch(ctx, s, infos, network, l.Cid())
	if err != nil {
		if outer.Err() != nil {
			return resumable{context.Canceled, "what has come stays; the same command goes on"}
		}
		return fmt.Errorf("%w; what has come stays, the same command goes on", err)
	}
	done.Bytes, done.Moved, done.Wasted, done.Sources = p.Bytes, p.MovedBytes, p.Wasted, p.Sources
	done.Seconds = env.now().Sub(start).Seconds()
	if f.out != "" {
		if _, err := exchange.Materialize(ctx, s, l.Cid(), f.out, uint64(f.limit)); err != nil {
			return err
		}
	}
	if f.asJSON {
		return writeJSON(env.out, done)
	}
	fmt.Fprintf(env.out, "checkpoint   %s\ncertificate  %s\nbytes        %s, of which %s moved in %.1f s\n",
		l, done.Certificate, bytesText(done.Bytes), bytesText(done.Moved), done.Seconds)
	if f.out != "" {
		fmt.Fprintf(env.out, "written to   %s\n", f.out)
	}
	return nil
}

// userPin keeps a checkpoint that the user asked for.
func userPin(root cid.Cid) blockstore.Pin {
	return blockstore.Pin{Owner: blockstore.Owner{Kind: "user", Name: root.String()}, Roots: []cid.Cid{root}}
}

// fetch brings the checkpoint into the store and shows how it goes on.
func (f *fetching) fetch(
	ctx context.Context, s *blockstore.Store, infos []peer.AddrInfo, network protocol.Link, root cid.Cid,
) (exchange.Progress, error) {
	bounds := exchange.Bounds{MaxBytes: uint64(f.limit)}
	if p, err := exchange.Complete(ctx, s, root, bounds); err == nil && ctx.Err() == nil {
		return p, nil // nobody need be asked
	}
	m := newTransfer(f.env, "fetched")
	defer m.end()
	report := func(p exchange.Progress) {
		more := ""
		if p.Sources > 0 {
			more = fmt.Sprintf("from %d peers", p.Sources)
		}
		m.report(p.Bytes, p.Total, more)
	}
	if f.gateway != "" {
		return exchange.FetchHTTP(ctx, http.DefaultClient, f.gateway, s, root, bounds, report)
	}
	h, err := dial(ctx, f.env, infos)
	if err != nil {
		return exchange.Progress{}, err
	}
	defer h.Close()
	var config exchange.Config
	if network.Defined() {
		d, err := discovery.New(h, discovery.Config{Network: network, Clock: dhtClock{f.env.now}})
		if err != nil {
			return exchange.Progress{}, err
		}
		defer d.Close()
		config.Finder = d
	}
	x := exchange.New(h, s, config)
	defer x.Close()
	return x.FetchDAG(ctx, root, bounds, report)
}

// dhtClock is the real time for the DHT.
type dhtClock struct{ now func() time.Time }

func (c dhtClock) Now() time.Time                         { return c.now() }
func (c dhtClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// dial makes a host that listens to nobody and connects it to peers, at least one of which must answer.
func dial(ctx context.Context, env environment, infos []peer.AddrInfo) (host.Host, error) {
	h, err := plainHost(false)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, info := range infos {
		if err := h.Connect(ctx, info); err != nil {
			failed = append(failed, fmt.Errorf("peer %s: %w", info.ID, err))
			fmt.Fprintf(env.err, "bzd: going on without %s\n", oneLine(failed[len(failed)-1]))
		}
	}
	if len(failed) == len(infos) {
		return nil, errors.Join(append([]error{errors.New("no peer can be reached"), h.Close()}, failed...)...)
	}
	return h, nil
}

// addresses parses --peer flags.
func addresses(peers list) (infos []peer.AddrInfo, err error) {
	for _, p := range peers {
		info, err := peer.AddrInfoFromString(p)
		if err != nil {
			return nil, usageError("--peer %s: want a multiaddress that ends in /p2p/ID", p)
		}
		infos = append(infos, *info)
	}
	return infos, nil
}

// certified checks the certificate that is given, or says which one the directory has.
func (f *fetching) certified(dir string, l protocol.Link) (string, error) {
	if f.certificate == "" {
		all, err := readCertificates(dir)
		if err != nil {
			return "", err
		}
		if c, ok := all[l]; ok {
			return describe(c, "verified by the node of this directory"), nil
		}
		return "none", nil
	}
	raw, err := os.ReadFile(f.certificate)
	if err != nil {
		return "", err
	}
	c, err := protocol.DecodeCertificate(raw)
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.certificate, err)
	}
	if next, ok := merged(c); !ok || next != l {
		return "", fmt.Errorf("%s does not name %s; fetch the checkpoint that it names, or find this one's certificate", f.certificate, l)
	}
	if f.snapshot == "" {
		return describe(c, "its signatures were not verified: that takes --snapshot"), nil
	}
	if raw, err = os.ReadFile(f.snapshot); err != nil {
		return "", err
	}
	s, err := protocol.DecodeSnapshot(raw)
	if err == nil {
		err = c.Verify(s)
	}
	if err != nil {
		return "", fmt.Errorf("%s under %s: %w", f.certificate, f.snapshot, err)
	}
	return describe(c, "verified"), nil
}

func describe(c protocol.Certificate, how string) string {
	return fmt.Sprintf("cycle %d, %d signatures, %s", c.Cycle, len(c.Signatures), how)
}

// merged is the checkpoint that a certificate names.
func merged(c protocol.Certificate) (protocol.Link, bool) {
	if c.Null() || c.Instance != protocol.InstanceM || c.Proposal.Value.Merge == nil {
		return protocol.Link{}, false
	}
	return c.Proposal.Value.Merge.Next, true
}

// readCertificates reads the certificates that a node keeps, by the checkpoints they name: of each the first.
func readCertificates(dir string) (map[protocol.Link]protocol.Certificate, error) {
	files, err := filepath.Glob(filepath.Join(dir, "certificates", "*.cbor"))
	if err != nil {
		return nil, err
	}
	all := map[protocol.Link]protocol.Certificate{}
	for _, file := range files { // by cycle
		if !strings.HasSuffix(file, "-"+protocol.InstanceM.String()+".cbor") {
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		c, err := protocol.DecodeCertificate(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if l, ok := merged(c); ok {
			if _, before := all[l]; !before {
				all[l] = c
			}
		}
	}
	return all, nil
}
