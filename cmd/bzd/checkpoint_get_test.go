package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/content/gateway"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p/discovery"
)

// smallCheckpoint writes a checkpoint of four expert groups, of which one has the given value in all places.
func smallCheckpoint(t *testing.T, value float32) (string, cid.Cid) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "phi")
	tensor := func(name string, x float32) checkpoint.File {
		data := make([]float32, 1<<19)
		for i := range data {
			data[i] = x + float32(i)
		}
		return checkpoint.File{Name: name + ".safetensors", Tensors: []checkpoint.Tensor{
			{Name: name, DType: checkpoint.F32, Shape: []int64{int64(len(data))}, Data: data}}}
	}
	root, err := checkpoint.Write(dir, checkpoint.Contents{
		Documents: map[string][]byte{"config.json": []byte(`{"model_type":"qwen3_moe"}`)},
		Files: []checkpoint.File{tensor("hub-00001", 1), tensor("experts-a", 2), tensor("experts-b", 3), tensor("experts-c", 4),
			tensor("experts-d", value)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir, root
}

// serving starts a peer and a gateway that have checkpoints.
func serving(t *testing.T, dirs ...string) (address, url string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := blockstore.Open(t.TempDir(), blockstore.DefaultOptions())
	check(err)
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(), libp2p.DisableRelay())
	check(err)
	x := exchange.New(h, s, exchange.Config{})
	for _, d := range dirs {
		_, _, err := exchange.Publish(t.Context(), x, d)
		check(err)
	}
	g, err := gateway.New(s, gateway.Config{})
	check(err)
	web := httptest.NewServer(g)
	t.Cleanup(func() {
		web.Close()
		check(x.Close())
		check(h.Close())
		check(s.Close())
	})
	return h.Addrs()[0].String() + "/p2p/" + h.ID().String(), web.URL
}

// TestCheckpointGet fetches a checkpoint from a peer and the next one from a gateway: what moves is what diff says, the
// group that changed and hardly more. A peer that cannot be reached costs a line, none that can costs the fetch.
func TestCheckpointGet(t *testing.T) {
	first, root := smallCheckpoint(t, 5)
	second, next := smallCheckpoint(t, 6)
	address, url := serving(t, first, second)
	node, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	bzd := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var a, b bytes.Buffer
		env := testEnvironment(map[string]string{"BZD_DIR": node})
		env.out, env.err = &a, &b
		if code := run(t.Context(), env, args); code != want {
			t.Errorf("bzd %s: exit code %d\n%s", strings.Join(args, " "), code, b.String())
		}
		return a.String(), b.String()
	}
	nobody := "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
	if _, errs := bzd(1, "checkpoint", "get", "--peer", nobody, root.String()); !strings.Contains(errs, "no peer can be reached") {
		t.Error(errs)
	}
	text, errs := bzd(0, "checkpoint", "get", "--peer", nobody, "--peer", address, "--out", out, root.String())
	if !strings.Contains(errs, "going on without") || !strings.Contains(text, "certificate  none") || !strings.Contains(text, "written to") {
		t.Error(text, errs)
	}
	if have, err := checkpoint.RootCID(out); err != nil || have != root {
		t.Error(have, err)
	}
	text, _ = bzd(0, "checkpoint", "diff", "--json", first, second)
	var d difference
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	group := uint64(4 << 19)
	for _, f := range d.Files {
		if changed := f.Group == "d"; changed != (f.Moved > 0) || changed && f.Moved > group*105/100 {
			t.Errorf("%+v", f)
		}
	}
	text, _ = bzd(0, "checkpoint", "get", "--gateway", url, "--json", next.String())
	var got fetched
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.Moved != d.Moved || got.Moved > group*105/100 || got.Bytes != d.Bytes {
		t.Errorf("%+v, but diff says %+v", got, d)
	}
	text, _ = bzd(0, "checkpoint", "get", "--peer", address, "--json", next.String())
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Moved != 0 {
		t.Errorf("again: %+v, %v", got, err)
	}
	if _, errs := bzd(1, "checkpoint", "get", "--gateway", url, "--limit", "1MiB", next.String()); !strings.Contains(errs, "exceeds its bounds") {
		t.Error(errs)
	}
	if _, errs := bzd(1, "checkpoint", "get", "--gateway", url, "bafybeifa3benqzyq65bc5fpmkufqrsk5liqg35672iwyarmymrim6onubi"); !strings.Contains(errs, "the same command goes on") {
		t.Error(errs)
	}
	bad := filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(bad, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	bzd(1, "checkpoint", "get", "--gateway", url, "--certificate", bad, next.String())
	bzd(2, "checkpoint", "get", "--gateway", url, "--snapshot", bad, next.String())
}

// TestCheckpointGetElsewhere: with the network's CID, a peer that has nothing is enough to find one that does.
func TestCheckpointGetElsewhere(t *testing.T) {
	dir, root := smallCheckpoint(t, 5)
	network := protocol.LinkTo(protocol.DagCBOR, []byte("a network"))
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node := func() (host.Host, *discovery.Discovery) {
		h, err := plainHost(true)
		check(err)
		t.Cleanup(func() { check(h.Close()) })
		d, err := discovery.New(h, discovery.Config{Network: network, Server: true, Clock: dhtClock{time.Now}})
		check(err)
		t.Cleanup(func() { check(d.Close()) })
		return h, d
	}
	holder, d := node()
	known, _ := node()
	check(holder.Connect(t.Context(), peer.AddrInfo{ID: known.ID(), Addrs: known.Addrs()}))
	s, err := blockstore.Open(t.TempDir(), blockstore.DefaultOptions())
	check(err)
	defer s.Close()
	x := exchange.New(holder, s, exchange.Config{})
	defer x.Close()
	_, _, err = exchange.Publish(t.Context(), x, dir)
	check(err)
	d.Announce(root)
	var errs bytes.Buffer
	env := testEnvironment(map[string]string{"BZD_DIR": t.TempDir()})
	env.err = &errs
	address := known.Addrs()[0].String() + "/p2p/" + known.ID().String()
	if code := run(t.Context(), env, []string{"checkpoint", "get", "--timeout", "1m", "--peer", address, "--network", network.String(), root.String()}); code != 0 {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
}

// TestInterrupted: commands that are interrupted say so, and leave a sound store.
func TestInterrupted(t *testing.T) {
	dir, root := smallCheckpoint(t, 5)
	address, url := serving(t, dir)
	node := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	env := testEnvironment(map[string]string{"BZD_DIR": node})
	if code := run(ctx, env, []string{"checkpoint", "get", "--peer", address, root.String()}); code != 0 {
		t.Fatal(code)
	}
	cancel()
	for _, args := range [][]string{
		{"checkpoint", "get", "--peer", address, root.String()}, {"checkpoint", "get", "--gateway", url, root.String()},
		{"store", "verify"}, {"store", "gc"}, {"store", "stat"},
		{"checkpoint", "export", "--car", filepath.Join(t.TempDir(), "x.car"), root.String()},
	} {
		var errs bytes.Buffer
		env.err = &errs
		if code := run(ctx, env, args); code != 130 || !strings.HasPrefix(errs.String(), "bzd: interrupted\n") {
			t.Errorf("%v: exit code %d, %s", args, code, errs.String())
		}
	}
	if code := run(t.Context(), env, []string{"store", "verify"}); code != 0 {
		t.Errorf("verify afterwards: exit code %d", code)
	}
}

// TestCertified: a certificate must name the checkpoint, and its signatures must be of the snapshot that is given.
func TestCertified(t *testing.T) {
	_, root := smallCheckpoint(t, 5)
	next, err := protocol.NewLink(root)
	if err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	by := protocol.Participant{ID: protocol.ID{1}, Key: protocol.KeyOf(key), Stake: 1, Roles: protocol.RoleValidator}
	snapshot := protocol.Snapshot{Version: protocol.Version, Hash: protocol.Hash{9}, Participants: []protocol.Participant{by}}
	network := protocol.LinkTo(protocol.DagCBOR, []byte("network"))
	p := protocol.Proposal{Version: protocol.Version, Network: network, Cycle: 7, Instance: protocol.InstanceM, Parent: protocol.Hash{2},
		Proposer: by.ID, Vectors: []protocol.Hash{{1}}, Value: protocol.Value{Merge: &protocol.MergeValue{Alpha: 1, Next: next}}}
	if err := p.Sign(key); err != nil {
		t.Fatal(err)
	}
	c := protocol.Certificate{Version: p.Version, Network: network, Cycle: 7, Instance: p.Instance, Parent: p.Parent, Proposal: &p, Snapshot: snapshot.Digest()}
	v := protocol.Vote{Version: c.Version, Network: network, Cycle: 7, Instance: c.Instance, Type: protocol.VoteCommit, Parent: c.Parent, Digest: c.Decision(), Validator: by.ID}
	if err := v.Sign(key); err != nil {
		t.Fatal(err)
	}
	c.Signatures = []protocol.VoteSig{{Validator: by.ID, Sig: v.Sig}}
	dir := t.TempDir()
	write := func(name string, r protocol.Record) string {
		raw, err := protocol.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file, registry := write("certificate", c), write("snapshot", snapshot)
	snapshot.Participants[0].Stake = 2
	another := write("another", snapshot)
	other := protocol.LinkTo(protocol.DagPB, []byte("another checkpoint"))
	kept := t.TempDir()
	if err := os.CopyFS(filepath.Join(kept, "certificates"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(kept, "certificates", "certificate"), filepath.Join(kept, "certificates", "00000007-"+c.Instance.String()+".cbor")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		f      fetching
		dir    string
		of     protocol.Link
		says   string
		refuse bool
	}{
		{fetching{certificate: file, snapshot: registry}, dir, next, "cycle 7, 1 signatures, verified", false},
		{fetching{certificate: file}, dir, next, "were not verified", false},
		{fetching{certificate: file, snapshot: another}, dir, next, "", true},
		{fetching{certificate: file, snapshot: file}, dir, next, "", true},
		{fetching{certificate: file}, dir, other, "", true},
		{fetching{certificate: registry}, dir, next, "", true},
		{fetching{}, kept, next, "verified by the node", false},
		{fetching{}, kept, other, "none", false},
		{fetching{}, dir, next, "none", false},
	} {
		got, err := test.f.certified(test.dir, test.of)
		if (err != nil) != test.refuse || !strings.Contains(got, test.says) {
			t.Errorf("%+v of %s: %q, %v", test.f, test.of, got, err)
		}
	}
}
