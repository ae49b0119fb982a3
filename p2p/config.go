package p2p

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Clock gives the time and the timers of redialling, peer exchange and rate limits. Both methods are called from many
// goroutines.
type Clock interface {
	Now() time.Time
	// After returns a channel that receives once, d after now. A channel nobody reads any more must cost nothing.
	After(d time.Duration) <-chan time.Time
}

// Config says what a host is. Network, Clock and one of Key and KeyFile must be set; everything else has a default.
type Config struct {
	Network protocol.Link // the genesis document; it is part of every protocol and topic name

	Key     crypto.PrivKey // libp2p identity, ed25519
	KeyFile string         // where the identity is kept when Key is nil; see LoadKey

	Listen    []string // multiaddresses such as /ip4/0.0.0.0/tcp/4001; none: the host only dials
	Announce  []string // addresses told to others in place of those listened on, for hosts behind a mapped port
	Bootstrap []string // multiaddresses that end in /p2p/<peer id>; dialled again for ever

	// Registry returns the protocol key of an id, false if the id is unknown. It is called under a lock: it must not
	// block and must not call the host. After its answers changed, call [Host.Refresh]. Nil knows nobody.
	Registry func(protocol.ID) (protocol.Key, bool)
	Binding  *protocol.Binding // shown to peers; nil for an observer. See NewBinding and Host.SetBinding

	Clock  Clock
	Log    *slog.Logger // nil: nothing is logged
	Events func(Event)  // called in order by one goroutine; must return quickly and must not call Close. May be nil
	Limits Limits       // zero fields get the values of DefaultLimits
	NAT    NAT
	QUIC   bool // dial and listen on QUIC too, with /udp/<port>/quic-v1 addresses
	// Transport takes the place of TCP and QUIC, for hosts that meet in a simulated network. Nil: those.
	Transport libp2p.Option

	UserAgent string // shown to peers by identify; "bzd" if empty
}

// NAT turns on what a public node, or one behind a home router, needs. All of it is off by default: each service costs
// goroutines, sockets and traffic that a network in one process or one data centre has no use for.
type NAT struct {
	PortMap      bool     // ask the router for a port, by UPnP or NAT-PMP
	AutoNAT      bool     // find out which addresses others can reach (AutoNAT v2)
	HolePunching bool     // direct connections through NATs; needs relays or a public peer
	Relays       []string // static relays to be reachable through, multiaddresses that end in /p2p/<peer id>
	RelayService bool     // relay for others, when publicly reachable
}

// Limits bound what peers can make a host do.
type Limits struct {
	Peers           int           // below this number of peers the host looks for more; bootstrap peers are always dialled
	MaxPeers        int           // above it the least useful connections are closed
	Memory          int64         // bytes that libp2p may reserve for connections and streams; below 128 MiB counts as that
	FileDescriptors int           // sockets that libp2p may hold
	Requests        int           // requests served at once
	PeerRequests    int           // requests served at once for one peer
	PeerRate        float64       // requests a second from one peer, with bursts of twice as many
	RequestTimeout  time.Duration // for a whole request, either side
	DialTimeout     time.Duration // for one attempt to reach a peer
	RedialMin       time.Duration // before the first new attempt; doubled by each failure
	RedialMax       time.Duration
	ExchangeMin     time.Duration // between two questions for more peers; doubled while nothing new is learnt
	ExchangeMax     time.Duration
}

// DefaultLimits are for a node in a network of up to some hundred peers, ten of which may share one machine.
func DefaultLimits() Limits {
	return Limits{
		Peers:           16,
		MaxPeers:        64,
		Memory:          128 << 20,
		FileDescriptors: 256,
		Requests:        64,
		PeerRequests:    8,
		PeerRate:        50,
		RequestTimeout:  10 * time.Second,
		DialTimeout:     10 * time.Second,
		RedialMin:       time.Second,
		RedialMax:       time.Minute,
		ExchangeMin:     time.Second,
		ExchangeMax:     30 * time.Second,
	}
}

// orDefault returns v, or the default if v is zero.
func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		Peers:           orDefault(l.Peers, d.Peers),
		MaxPeers:        orDefault(l.MaxPeers, d.MaxPeers),
		Memory:          orDefault(l.Memory, d.Memory),
		FileDescriptors: orDefault(l.FileDescriptors, d.FileDescriptors),
		Requests:        orDefault(l.Requests, d.Requests),
		PeerRequests:    orDefault(l.PeerRequests, d.PeerRequests),
		PeerRate:        orDefault(l.PeerRate, d.PeerRate),
		RequestTimeout:  orDefault(l.RequestTimeout, d.RequestTimeout),
		DialTimeout:     orDefault(l.DialTimeout, d.DialTimeout),
		RedialMin:       orDefault(l.RedialMin, d.RedialMin),
		RedialMax:       orDefault(l.RedialMax, d.RedialMax),
		ExchangeMin:     orDefault(l.ExchangeMin, d.ExchangeMin),
		ExchangeMax:     orDefault(l.ExchangeMax, d.ExchangeMax),
	}
}

// faults reports what is wrong with limits whose defaults are filled in.
func (l Limits) faults(add func(format string, args ...any)) {
	for _, f := range []struct {
		name string
		ok   bool
	}{
		{"peers", l.Peers > 0},
		{"max peers", l.MaxPeers > 0},
		{"memory", l.Memory > 0},
		{"file descriptors", l.FileDescriptors > 0},
		{"requests", l.Requests > 0},
		{"requests of a peer", l.PeerRequests > 0},
		{"request rate of a peer", l.PeerRate > 0},
		{"request timeout", l.RequestTimeout > 0},
		{"dial timeout", l.DialTimeout > 0},
		{"redial times", l.RedialMin > 0 && l.RedialMax > 0},
		{"exchange times", l.ExchangeMin > 0 && l.ExchangeMax > 0},
	} {
		if !f.ok {
			add("limits: %s must be positive; leave it zero for the default", f.name)
		}
	}
	if l.MaxPeers < l.Peers {
		add("limits: at most %d peers, but %d are wanted; connections would be opened and closed for ever", l.MaxPeers, l.Peers)
	}
	if l.RedialMax < l.RedialMin {
		add("limits: the longest time between dials, %s, is below the shortest, %s", l.RedialMax, l.RedialMin)
	}
	if l.ExchangeMax < l.ExchangeMin {
		add("limits: the longest time between exchanges, %s, is below the shortest, %s", l.ExchangeMax, l.ExchangeMin)
	}
}

// Validate reports every fault at once.
func (c Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf("p2p: "+format, args...)) }
	if !c.Network.Defined() {
		add("no network: peers of different networks would talk to each other; give the CID of the genesis document")
	}
	if c.Clock == nil {
		add("no clock: nobody would be dialled again")
	}
	switch {
	case c.Key == nil && c.KeyFile == "":
		add("no identity: give a key or the file that keeps one")
	case c.Key != nil && c.Key.Type() != crypto.Ed25519:
		add("the identity is not an ed25519 key")
	}
	for _, s := range c.Listen {
		if _, err := ma.NewMultiaddr(s); err != nil {
			add("listen address %q: %w; write it as /ip4/0.0.0.0/tcp/4001", s, err)
		}
	}
	for _, s := range c.Announce {
		if _, err := ma.NewMultiaddr(s); err != nil {
			add("announced address %q: %w", s, err)
		}
	}
	for i, s := range slices.Concat(c.Bootstrap, c.NAT.Relays) {
		if _, err := peer.AddrInfoFromString(s); err != nil {
			what := "bootstrap peer"
			if i >= len(c.Bootstrap) {
				what = "relay"
			}
			add("%s %q: %w; write it as /ip4/192.0.2.1/tcp/4001/p2p/<peer id>", what, s, err)
		}
	}
	c.Limits.withDefaults().faults(add)
	return errors.Join(errs...)
}
