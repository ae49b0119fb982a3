package discovery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
)

// The DHT of a network of some hundred peers: a record lies at its replicas closest peers.
const (
	replicas   = 8
	concurrent = 3 // requests of one lookup under way
)

// When records are made and forgotten.
const (
	validity     = 6 * time.Hour    // of a record at those who keep it
	again        = 2 * time.Hour    // after which one is made anew
	pause        = 10 * time.Minute // between two announcements at least
	firstRetry   = time.Second      // after one that reached nobody; doubled up to pause
	announceTime = time.Minute      // that one may take
)

// maxAddrs is how many addresses of a provider are believed.
const maxAddrs = 8

// Config says what a Discovery is. Network and Clock must be set.
type Config struct {
	Network protocol.Link // the genesis document: peers of other networks speak another protocol
	// Server lets this host answer others whatever is known of its reachability. Without, it does as long as AutoNAT has
	// found it public, which hosts without AutoNAT never are.
	Server bool
	// Participant returns whom a peer speaks for, false for nobody. Nil knows nobody. It must not block.
	Participant func(peer.ID) (protocol.ID, bool)
	Clock       p2p.Clock
}

// Discovery announces what this host has and finds who else has it. Its methods may be called at the same time.
type Discovery struct {
	dht     *dht.IpfsDHT
	guard   *guard
	clock   p2p.Clock
	provide func(context.Context, cid.Cid, bool) error // of dht

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	roots  chan []cid.Cid // the last announcement that was not taken up yet
	work   sync.WaitGroup
}

// New starts a DHT on a host, which must outlive it and stays the caller's. There is one to a host and network.
func New(h host.Host, cfg Config) (*Discovery, error) {
	if !cfg.Network.Defined() || cfg.Clock == nil {
		return nil, errors.New("discovery: no network or no clock; give the CID of the genesis document and a clock")
	}
	if cfg.Participant == nil {
		cfg.Participant = func(peer.ID) (protocol.ID, bool) { return protocol.ID{}, false }
	}
	d := &Discovery{clock: cfg.Clock, roots: make(chan []cid.Cid, 1), guard: newGuard(h, cfg)}
	mode := dht.ModeAuto
	if cfg.Server {
		mode = dht.ModeServer
	}
	var err error
	d.dht, err = dht.New(d.guard,
		dht.ProtocolPrefix(libprotocol.ID("/bzd/"+cfg.Network.String())),
		dht.Mode(mode),
		dht.DisableValues(),
		dht.BucketSize(replicas), dht.Concurrency(concurrent), dht.LookupCheckConcurrency(4*concurrent),
		dht.ProviderManagerOpts(records.ProvideValidity(validity), records.ProviderAddrTTL(validity)),
		dht.AddressFilter(func(list []ma.Multiaddr) []ma.Multiaddr { return reachable(h.Network(), list) }),
		dht.OnRequestHook(d.guard.judge),
	)
	if err != nil {
		d.guard.close()
		return nil, err
	}
	d.provide = d.dht.Provide
	d.start()
	return d, nil
}

func (d *Discovery) start() {
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.work.Go(d.run)
}

// Close ends everything that New started and waits for it.
func (d *Discovery) Close() error {
	d.cancel()
	err := d.dht.Close()
	d.guard.close()
	d.work.Wait()
	return err
}

// Announce says that this host has what is below these roots, and nothing else: soon, and again for as long as the host
// runs. Calls in short order are one, the last. It does not wait.
func (d *Discovery) Announce(roots ...cid.Cid) {
	roots = slices.Clone(roots)
	for {
		select {
		case d.roots <- roots:
			return
		case <-d.roots: // an older one that nobody has taken up
		case <-d.ctx.Done():
			return
		}
	}
}

// FindProvidersAsync returns peers that say they have a root, at most limit (0: all), as they are found. The channel is
// closed when nobody is left to ask, or with ctx. To connect to them is the caller's.
func (d *Discovery) FindProvidersAsync(ctx context.Context, root cid.Cid, limit int) <-chan peer.AddrInfo {
	return d.dht.FindProvidersAsync(ctx, root, limit)
}

// run announces.
func (d *Discovery) run() {
	var roots []cid.Cid
	var due <-chan time.Time  // when to announce
	var rest <-chan time.Time // before which not, after an announcement
	fresh, retry := false, firstRetry
	for {
		select {
		case <-d.ctx.Done():
			return
		case roots = <-d.roots:
			fresh = true
		case <-due:
			fresh = true
		case <-rest:
			rest = nil
		}
		if !fresh || rest != nil {
			continue
		}
		fresh = false
		if d.announce(roots) {
			retry, due, rest = firstRetry, d.clock.After(again), d.clock.After(pause)
		} else {
			due = d.clock.After(retry)
			retry = min(2*retry, pause)
		}
	}
}

// announce makes the records, and reports whether there was anybody to take them.
func (d *Discovery) announce(roots []cid.Cid) bool {
	ok := true
	for _, c := range roots {
		ctx, cancel := context.WithTimeout(d.ctx, announceTime)
		ok = d.provide(ctx, c, true) == nil && ok
		cancel()
	}
	return ok
}

// reachable leaves of a peer's addresses, which others may have made up, those that make sense here: a host with public
// peers dials no private network, and one with peers elsewhere not itself.
func reachable(n network.Network, list []ma.Multiaddr) []ma.Multiaddr {
	public, elsewhere := false, false
	for _, c := range n.Conns() {
		a := c.RemoteMultiaddr()
		public = public || manet.IsPublicAddr(a)
		elsewhere = elsewhere || !manet.IsIPLoopback(a)
	}
	list = ma.FilterAddrs(list, func(a ma.Multiaddr) bool {
		return (!public || manet.IsPublicAddr(a)) && (!elsewhere || !manet.IsIPLoopback(a))
	})
	return list[:min(len(list), maxAddrs)]
}
