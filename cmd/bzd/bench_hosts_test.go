package main

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/marcopolo/simnet"
	"github.com/quic-go/quic-go"

	"github.com/blockzero-net/bzd/consensus/sim"
)

// TestSimulatedHosts is bench agreement's part about real hosts with a simulated network beneath them, in virtual time: ten
// regions, lines of 200 Mbit/s, libp2p over QUIC. Processors take no time in it. Beside it stands what the simulation, which
// has no libp2p, says of the same network.
func TestSimulatedHosts(t *testing.T) {
	sizes := []int{8}
	if os.Getenv("BZD_NIGHTLY") != "" {
		sizes = []int{16, 64}
	}
	for _, n := range sizes {
		synctest.Test(t, func(t *testing.T) {
			w := newWires()
			h, done, err := newHostsBench(n, n, 1000, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			defer done()
			h.attach = w.attach
			w.net.Start()
			f, err := h.run(context.Background())
			w.close()
			if err != nil {
				t.Fatal(err)
			}
			if f.Simulated, err = h.simulate(w.same()); err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			(&agreementReport{Hosts: []hostsFigures{f}}).print(environment{out: &text})
			t.Log(text.String())
			if f.Certified != f.Instances {
				t.Errorf("%d of %d certified by the deadline", f.Certified, f.Instances)
			}
			for i, simulated := range f.Simulated {
				if real := f.Decision[i].P99; real > 2*simulated.P99 {
					t.Errorf("instance %d is decided in %d ms, in the simulation in %d", i+1, real, simulated.P99)
				}
			}
		})
	}
}

// wires are a simulated network of ten regions.
type wires struct {
	net     *simnet.Simnet
	regions *sim.Regions
	hosts   []net.IP
	opened  []*quicreuse.ConnManager
}

const wireMbits = 200

func newWires() *wires {
	w := &wires{regions: sim.TenRegions()}
	w.net = &simnet.Simnet{LatencyFunc: func(p *simnet.Packet) time.Duration {
		return time.Duration(w.regions.OneWay[w.region(p.From)][w.region(p.To)]) * time.Microsecond
	}}
	return w
}

// same is the network as the simulation has it.
func (w *wires) same() sim.Net {
	n := sim.Loopback()
	n.Regions, n.Bandwidth, n.Copy, n.Verify, n.Processors = w.regions, wireMbits*1000/8, 0, 0, 0
	return n
}

func (w *wires) region(a net.Addr) int {
	return slices.IndexFunc(w.hosts, a.(*net.UDPAddr).IP.Equal) % len(w.regions.OneWay)
}

// attach is hostsBench's.
func (w *wires) attach(host int) (listen string, transport libp2p.Option) {
	ip := simnet.IntToPublicIPv4(host)
	w.hosts = append(w.hosts, ip)
	link := simnet.LinkSettings{BitsPerSecond: wireMbits * 1e6}
	open := func(reset quic.StatelessResetKey, token quic.TokenGeneratorKey) (*quicreuse.ConnManager, error) {
		m, err := quicreuse.NewConnManager(reset, token,
			quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return source(ip), nil }),
			quicreuse.OverrideListenUDP(func(_ string, a *net.UDPAddr) (net.PacketConn, error) {
				return w.net.NewEndpoint(a, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}), nil
			}))
		if err == nil {
			w.opened = append(w.opened, m) // libp2p closes only what it opened itself
		}
		return m, err
	}
	return "/ip4/" + ip.String() + "/udp/8000/quic-v1", libp2p.ChainOptions(libp2p.QUICReuse(open), libp2p.Transport(libp2pquic.NewTransport))
}

func (w *wires) close() {
	for _, m := range w.opened {
		m.Close()
	}
	w.net.Close()
}

// source is the address that a host sends from.
type source net.IP

func (s source) PreferredSourceIPForDestination(*net.UDPAddr) (net.IP, error) { return net.IP(s), nil }
