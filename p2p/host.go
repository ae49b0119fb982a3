package p2p

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// ErrPortInUse: another program, or another node, listens on a configured address.
var ErrPortInUse = errors.New("p2p: address already in use")

// Host is a peer of the network. All methods may be called from many goroutines.
type Host struct {
	cfg    Config
	clock  Clock
	log    *slog.Logger
	libp2p host.Host
	table  *table
	gate   *gate

	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // guards the next three; work.Add happens under it
	closed  bool
	binding *protocol.Binding
	hellos  map[peer.ID]bool // under way; true: to be said again
	work    sync.WaitGroup

	dialled chan dialled
	learnt  chan []peer.AddrInfo
}

type dialled struct {
	peer peer.ID
	err  error
}

// New starts a host: it listens when New returns, and dials from then on. Close ends it.
func New(cfg Config) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Key == nil {
		var err error
		if cfg.Key, err = LoadKey(cfg.KeyFile); err != nil {
			return nil, err
		}
	}
	lib, err := newLibp2p(cfg)
	if err != nil {
		return nil, err
	}
	h := &Host{
		cfg:     cfg,
		clock:   cfg.Clock,
		log:     cfg.Log,
		libp2p:  lib,
		table:   newTable(cfg.Registry),
		gate:    newGate(cfg.Limits),
		hellos:  make(map[peer.ID]bool),
		dialled: make(chan dialled),
		learnt:  make(chan []peer.AddrInfo),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if err := h.start(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) start() error {
	if h.cfg.Binding != nil {
		if err := h.setBinding(*h.cfg.Binding); err != nil {
			return err
		}
	}
	events, err := h.libp2p.EventBus().Subscribe([]any{new(event.EvtPeerConnectednessChanged), new(event.EvtPeerIdentificationCompleted)},
		eventbus.Name("bzd"), eventbus.BufSize(256))
	if err != nil {
		return fmt.Errorf("p2p: %w", err)
	}
	h.Handle(helloProtocol, h.serveHello)
	h.Handle(peersProtocol, h.servePeers)
	h.work.Add(1) // nobody can Close yet
	go func() {
		defer h.work.Done()
		defer events.Close()
		h.run(events.Out())
	}()
	return h.listen()
}

// newLibp2p makes a libp2p host that does not listen yet.
func newLibp2p(cfg Config) (host.Host, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	resources, err := rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(limits.Scale(cfg.Limits.Memory, cfg.Limits.FileDescriptors)), rcmgr.WithMetricsDisabled())
	if err != nil {
		return nil, fmt.Errorf("p2p: limits: %w", err)
	}
	conns, err := connmgr.NewConnManager(cfg.Limits.MaxPeers*3/4, cfg.Limits.MaxPeers, connmgr.WithGracePeriod(20*time.Second))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("p2p: limits: %w", err), resources.Close())
	}
	options := []libp2p.Option{
		libp2p.Identity(cfg.Key),
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(conns),
		libp2p.NoListenAddrs, // listen does it, so that its errors can be told apart
		libp2p.NoTransports,
		Security(),
		libp2p.UserAgent(orDefault(cfg.UserAgent, "bzd")),
		libp2p.WithDialTimeout(cfg.Limits.DialTimeout),
		libp2p.Ping(false),
		libp2p.DisableMetrics(), // libp2p's collectors are one per process
	}
	options = append(options, transports(cfg)...)
	if len(cfg.Announce) > 0 {
		announce := make([]ma.Multiaddr, len(cfg.Announce))
		for i, s := range cfg.Announce {
			announce[i] = ma.StringCast(s) // Validate parsed it
		}
		options = append(options, libp2p.AddrsFactory(func([]ma.Multiaddr) []ma.Multiaddr { return announce }))
	}
	lib, err := libp2p.New(append(options, natOptions(cfg)...)...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("p2p: start libp2p: %w", err), conns.Close(), resources.Close())
	}
	return lib, nil
}

func transports(cfg Config) []libp2p.Option {
	if cfg.Transport != nil {
		return []libp2p.Option{cfg.Transport}
	}
	// With SO_REUSEPORT a second node could listen on the same port, and each would get half of the connections.
	options := []libp2p.Option{libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport())}
	if cfg.NAT.HolePunching {
		options[0] = libp2p.Transport(tcp.NewTCPTransport) // dials from the port it listens on
	}
	if cfg.QUIC {
		options = append(options, libp2p.Transport(quic.NewTransport))
	}
	return options
}

func natOptions(cfg Config) []libp2p.Option {
	var options []libp2p.Option
	if cfg.NAT.HolePunching || cfg.NAT.RelayService || len(cfg.NAT.Relays) > 0 {
		options = append(options, libp2p.EnableRelay())
	} else {
		options = append(options, libp2p.DisableRelay())
	}
	if cfg.NAT.PortMap {
		options = append(options, libp2p.NATPortMap())
	}
	if cfg.NAT.AutoNAT {
		options = append(options, libp2p.EnableAutoNATv2())
	} else {
		options = append(options, libp2p.DisableIdentifyAddressDiscovery())
	}
	if cfg.NAT.HolePunching {
		options = append(options, libp2p.EnableHolePunching())
	}
	if cfg.NAT.RelayService {
		options = append(options, libp2p.EnableRelayService())
	}
	if relays := addrInfos(cfg.NAT.Relays); len(relays) > 0 {
		options = append(options, libp2p.EnableAutoRelayWithStaticRelays(relays))
	}
	return options
}

// addrInfos parses addresses that Validate has parsed before.
func addrInfos(list []string) []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, s := range list {
		if info, err := peer.AddrInfoFromString(s); err == nil {
			out = append(out, *info)
		}
	}
	return out
}

// listen listens on every configured address or none: libp2p itself would be content with one.
func (h *Host) listen() error {
	for _, s := range h.cfg.Listen {
		addr := ma.StringCast(s) // Validate parsed it
		err := h.probe(addr)
		if sw, ok := h.libp2p.Network().(*swarm.Swarm); err == nil && ok {
			err = sw.AddListenAddr(addr) // Listen would flatten the error into text
		} else if err == nil {
			err = h.libp2p.Network().Listen(addr)
		}
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("%w: %s; stop the program that listens there, or choose another address", ErrPortInUse, s)
		case err != nil:
			return fmt.Errorf("p2p: listen on %s: %w", s, err)
		}
	}
	return nil
}

// probe finds a used port where SO_REUSEPORT would hide it.
func (h *Host) probe(addr ma.Multiaddr) error {
	netw, hostport, err := manet.DialArgs(addr)
	if !h.cfg.NAT.HolePunching || err != nil || len(netw) < 3 || netw[:3] != "tcp" {
		return nil
	}
	l, err := net.Listen(netw, hostport)
	if err != nil {
		return err
	}
	return l.Close()
}

// enter counts a goroutine in, unless the host is closing. work.Done counts it out.
func (h *Host) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.work.Add(1)
	return true
}

// spawn runs f in a goroutine that Close waits for.
func (h *Host) spawn(f func()) {
	if h.enter() {
		go func() {
			defer h.work.Done()
			f()
		}()
	}
}

// Close ends every connection and goroutine of the host and waits for them.
func (h *Host) Close() error {
	h.mu.Lock()
	again := h.closed
	h.closed = true
	h.mu.Unlock()
	if again {
		return nil
	}
	h.cancel()
	err := h.libp2p.Close()
	h.work.Wait()
	return err
}

// Libp2p returns the host underneath, for block exchange and gossip. Closing it is Close's task.
func (h *Host) Libp2p() host.Host { return h.libp2p }

// ID returns the host's own peer id.
func (h *Host) ID() peer.ID { return h.libp2p.ID() }

// Clock returns the clock the host was made with.
func (h *Host) Clock() Clock { return h.clock }

// Network returns the genesis document's CID.
func (h *Host) Network() protocol.Link { return h.cfg.Network }

// Addrs returns where the host can be reached, each with its peer id, as others may put it into their Bootstrap.
func (h *Host) Addrs() []string {
	var out []string
	for _, a := range h.libp2p.Addrs() {
		out = append(out, a.String()+"/p2p/"+h.ID().String())
	}
	return out
}

// Peers returns the connected peers, sorted by peer id.
func (h *Host) Peers() []Peer { return h.table.list() }

// Standing returns whether a peer speaks for a participant, and for whom if it is Bound.
func (h *Host) Standing(p peer.ID) (Standing, protocol.ID) { return h.table.standing(p) }

// PeerOf returns the connected peer that speaks for id.
func (h *Host) PeerOf(id protocol.ID) (peer.ID, bool) { return h.table.peerOf(id) }

// Refresh weighs every peer's binding again; to be called when the registry changed.
func (h *Host) Refresh() { h.table.refresh() }

// Disconnect closes the connections to a peer. Either side may connect again.
func (h *Host) Disconnect(p peer.ID) error { return h.libp2p.Network().ClosePeer(p) }

// Connect dials a peer now, beside what the host does by itself. It remembers the peer once it is connected.
func (h *Host) Connect(ctx context.Context, addr string) error {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return fmt.Errorf("p2p: %q: %w", addr, err)
	}
	return h.libp2p.Connect(ctx, *info)
}

// newRand returns a generator for choices that only need to differ: between hosts, and between salts.
func (h *Host) newRand(salt uint64, s string) *rand.Rand {
	var seed [16]byte
	for i, c := range []byte(string(h.ID()) + s) {
		seed[i%16] = seed[i%16]*31 + c
	}
	return rand.New(rand.NewPCG(binary.LittleEndian.Uint64(seed[:])^salt, binary.LittleEndian.Uint64(seed[8:])))
}
