package p2p

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// pair is two connected hosts.
func pair(t *testing.T, server func(*Config)) (w *world, s, c *Host) {
	w = newWorld(t)
	s, c = w.host(server), w.host(nil)
	connect(t, c, s)
	w.await("settled", func() bool { return standing(s, c.ID()) != Pending && standing(c, s.ID()) != Pending })
	return w, s, c
}

func TestRequest(t *testing.T) {
	w, server, client := pair(t, nil)
	echo := Protocol{Name: "echo", MaxRequest: 1 << 16, MaxResponse: 1 << 16}
	server.Handle(echo, func(_ context.Context, from peer.ID, b []byte) ([]byte, error) {
		switch {
		case from != client.ID():
			return nil, fmt.Errorf("asked by %s", from)
		case string(b) == "missing":
			return nil, fmt.Errorf("no such head: %w", ErrNotFound)
		case string(b) == "broken":
			return nil, errors.New("secret details")
		case string(b) == "long":
			return make([]byte, echo.MaxResponse+1), nil
		}
		return b, nil
	})
	ask := func(p Protocol, b []byte) ([]byte, error) { return client.Request(t.Context(), server.ID(), p, b) }

	big := make([]byte, echo.MaxRequest)
	if _, err := rand.Read(big); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{nil, []byte("x"), big} {
		if got, err := ask(echo, b); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back as %d, %v", len(b), len(got), err)
		}
	}
	liar := echo // believes in other bounds than the server
	liar.MaxRequest++
	short := echo
	short.MaxResponse = 10
	for name, c := range map[string]struct {
		p    Protocol
		b    []byte
		want error
	}{
		"not found":           {echo, []byte("missing"), ErrNotFound},
		"failed":              {echo, []byte("broken"), ErrFailed},
		"response too large":  {echo, []byte("long"), ErrFailed},
		"request too large":   {echo, make([]byte, echo.MaxRequest+1), ErrTooLarge},
		"sent too large":      {liar, make([]byte, liar.MaxRequest), ErrTooLarge},
		"more than we accept": {short, make([]byte, 11), ErrTooLarge},
		"unknown protocol":    {Protocol{Name: "other"}, nil, ErrUnsupported},
	} {
		_, err := ask(c.p, c.b)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: told too much: %v", name, err)
		}
	}

	bound := Protocol{Name: "bound", Bound: true}
	server.Handle(bound, func(context.Context, peer.ID, []byte) ([]byte, error) { return nil, nil })
	if _, err := ask(bound, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("unbound: %v", err)
	}
	p := w.register()
	if err := client.SetBinding(*p.bind(t, testNetwork, client.ID())); err != nil {
		t.Fatal(err)
	}
	w.await("bound", func() bool { return standing(server, client.ID()) == Bound })
	if _, err := ask(bound, nil); err != nil {
		t.Errorf("bound: %v", err)
	}
}

func TestOtherNetworkIsNotUnderstood(t *testing.T) {
	w := newWorld(t)
	p := w.register()
	server := w.host(nil)
	client := w.host(func(c *Config) { c.Network = otherNetwork })
	if err := client.SetBinding(*p.bind(t, otherNetwork, client.ID())); err != nil {
		t.Fatal(err)
	}
	connect(t, client, server)
	w.await("settled", func() bool {
		return standing(server, client.ID()) == Unbound && standing(client, server.ID()) == Unbound
	})
	w.await("told", func() bool { return len(w.seen(server, PeerUnbound, client.ID())) == 1 })
	if e := w.seen(server, PeerUnbound, client.ID())[0]; !errors.Is(e.Err, ErrUnsupported) {
		t.Errorf("because %v", e.Err)
	}
}

func TestRequestDeadlines(t *testing.T) {
	_, server, client := pair(t, func(c *Config) { c.Limits.RequestTimeout = 300 * time.Millisecond })
	slow := Protocol{Name: "slow", MaxRequest: 10, MaxResponse: 10}
	left := make(chan error, 1)
	server.Handle(slow, func(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
		<-ctx.Done()
		left <- ctx.Err()
		return nil, ctx.Err()
	})
	t.Run("handler", func(t *testing.T) {
		if _, err := client.Request(t.Context(), server.ID(), slow, nil); err == nil {
			t.Error("answered")
		}
		if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("asker", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := client.Request(ctx, server.ID(), slow, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		<-left
	})
	t.Run("a request that never ends", func(t *testing.T) {
		s, err := client.Libp2p().NewStream(t.Context(), server.ID(), client.id(slow))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		// Whether the server says so or resets the stream: it ends.
		if b, err := io.ReadAll(s); err == nil && !bytes.Equal(b, []byte{statusFailed}) {
			t.Errorf("read %x", b)
		}
	})
}

func TestRequestLimits(t *testing.T) {
	const each = 2
	_, server, client := pair(t, func(c *Config) { c.Limits.PeerRequests, c.Limits.Requests = each, 2*each })
	wait := Protocol{Name: "wait", MaxResponse: 10}
	inside, release := make(chan struct{}), make(chan struct{})
	server.Handle(wait, func(context.Context, peer.ID, []byte) ([]byte, error) {
		inside <- struct{}{}
		<-release
		return nil, nil
	})
	var wg sync.WaitGroup
	for range each {
		wg.Go(func() {
			if _, err := client.Request(t.Context(), server.ID(), wait, nil); err != nil {
				t.Error(err)
			}
		})
		<-inside
	}
	if _, err := client.Request(t.Context(), server.ID(), wait, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	close(release)
	wg.Wait()
}

type frozenClock struct{ systemClock }

func (frozenClock) Now() time.Time { return time.Unix(1000, 0) }

func TestGate(t *testing.T) {
	g := newGate(Limits{Requests: 10, PeerRequests: 5, PeerRate: 10}.withDefaults())
	served := func(p peer.ID) int {
		for n := range 1000 {
			if !g.enter(p, frozenClock{}) {
				return n
			}
			g.leave(p)
		}
		return 1000
	}
	if n := served("flood"); n != 20 {
		t.Errorf("%d requests at once from a peer that may send 10 a second", n)
	}
	if n := served("honest"); n != 20 {
		t.Errorf("a flood left %d requests to another peer", n)
	}
	g.sweep(frozenClock{})
	if len(g.peers) != 2 {
		t.Error("a sweep forgave a flood")
	}
	g.sweep(systemClock{})
	if len(g.peers) != 0 || g.total != 0 {
		t.Errorf("%d peers, %d requests left", len(g.peers), g.total)
	}
}

func TestLoadKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "identity")
	first, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if again, err := LoadKey(path); err != nil || !again.Equals(first) {
		t.Errorf("another key the second time: %v", err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("%d files left behind, %v", len(files), err)
	}

	t.Run("at once", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "identity")
		keys := make([]crypto.PrivKey, 8)
		var wg sync.WaitGroup
		for i := range keys {
			wg.Go(func() {
				var err error
				if keys[i], err = LoadKey(path); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, k := range keys[1:] {
			if k == nil || !k.Equals(keys[0]) {
				t.Error("two processes, two identities")
			}
		}
	})

	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte { b := bytes.Clone(good); b[i] ^= 1; return b }
	ec, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := crypto.MarshalPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)-1], "text": []byte("not a key\n"), "bit of the seed": flip(10),
		"bit of the public half": flip(len(good) - 1), "another kind of key": other, "far too long": make([]byte, 1<<20),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadKey(path)
		if !errors.Is(err, ErrDamagedKey) || !strings.Contains(fmt.Sprint(err), path) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
			t.Errorf("%s: the file was changed, %v", name, err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that everybody can read: %v", err)
	}
	if _, err := LoadKey(filepath.Join(path, "below a file")); err == nil {
		t.Error("made a key in a file")
	}
}

// TestHelloIsRepeated: a peer that is busy when a hello comes hears it a little later.
func TestHelloIsRepeated(t *testing.T) {
	w := newWorld(t)
	p := w.register()
	server, client := w.host(nil), w.host(nil)
	if err := client.SetBinding(*p.bind(t, testNetwork, client.ID())); err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{})
	first := true
	var mu sync.Mutex
	server.Handle(helloProtocol, func(ctx context.Context, from peer.ID, b []byte) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if first {
			first = false
			close(refused)
			return nil, ErrBusy
		}
		return server.serveHello(ctx, from, b)
	})
	client.Handle(helloProtocol, func(context.Context, peer.ID, []byte) ([]byte, error) { return nil, ErrFailed }) // says nothing when asked
	connect(t, client, server)
	<-refused
	w.await("bound by the second hello", func() bool { return standing(server, client.ID()) == Bound })
}
