package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/content/checkpoint"
)

// TestKubo: a checkpoint goes from a bzd to a kubo, to another kubo and back to two empty bzds, over bitswap and over kubo's
// gateway. It is the same everywhere, and kubo computes its CID. BZD_KUBO is kubo's program, ipfs; BZD_KUBO_PEER the address
// of a node that runs and BZD_KUBO_CHECKPOINT what it has, in place of a peer of the test's own. It is part of make interop.
func TestKubo(t *testing.T) {
	k := &kuboBench{program: os.Getenv("BZD_KUBO")}
	if k.program == "" {
		t.Skip("BZD_KUBO names no ipfs program; make interop builds one, out/ipfs")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ipfs := func(repo string, args ...string) string {
		t.Helper()
		out, err := k.run(ctx, repo, args...)
		must(err)
		return out
	}
	bzd := func(args ...string) {
		t.Helper()
		var errs bytes.Buffer
		env := testEnvironment(nil)
		env.err = &errs
		if code := run(ctx, env, args); code != 0 {
			t.Fatalf("bzd %s: exit code %d: %s", strings.Join(args, " "), code, errs.String())
		}
	}
	peer, root := os.Getenv("BZD_KUBO_PEER"), os.Getenv("BZD_KUBO_CHECKPOINT")
	if peer == "" {
		dir, c := smallCheckpoint(t, 5)
		peer, _ = serving(t, dir)
		root = c.String()
	}
	top := t.TempDir()
	var repos []string
	var kubos []*kuboDaemon
	for _, name := range []string{"first", "second"} {
		repo := filepath.Join(top, name)
		must(k.init(ctx, repo))
		ipfs(repo, "config", "Addresses.Gateway", "/ip4/127.0.0.1/tcp/0")
		d, err := k.daemon(context.WithoutCancel(t.Context()), repo) // it is stopped, not killed, at the end
		must(err)
		t.Cleanup(func() { must(d.stop()) })
		repos, kubos = append(repos, repo), append(kubos, d)
	}
	var copies []string
	into := func(name string) string {
		copies = append(copies, filepath.Join(top, name))
		return copies[len(copies)-1]
	}

	must(k.connect(ctx, repos[0], peer))
	must(k.pin(ctx, repos[0], root))
	if peers := ipfs(repos[0], "swarm", "peers"); peers != peer {
		t.Fatalf("the first kubo is connected to %q, want %s and nobody else", peers, peer)
	}
	ipfs(repos[0], "swarm", "disconnect", peer)
	ipfs(repos[0], "get", "--progress=false", "-o", into("by kubo from bzd"), root)
	must(k.connect(ctx, repos[1], kubos[0].address))
	must(k.pin(ctx, repos[1], root))
	ipfs(repos[1], "get", "--progress=false", "-o", into("by kubo from kubo"), root)
	bzd("checkpoint", "get", "--dir", filepath.Join(top, "third"), "--peer", kubos[1].address, "--out", into("by bzd from kubo"), root)
	url, err := os.ReadFile(filepath.Join(repos[1], "gateway"))
	must(err)
	bzd("checkpoint", "get", "--dir", filepath.Join(top, "fourth"), "--gateway", strings.TrimSpace(string(url)), "--out", into("by bzd from kubo's gateway"), root)

	adds := filepath.Join(top, "adds")
	must(k.init(ctx, adds))
	for _, dir := range copies {
		if have, err := checkpoint.RootCID(dir); err != nil || have.String() != root {
			t.Errorf("fetched %s: %s, %v, want %s", filepath.Base(dir), have, err, root)
		}
		have, err := k.add(ctx, adds, dir)
		if must(err); have != root {
			t.Errorf("kubo calls what was fetched %s %s, want %s", filepath.Base(dir), have, root)
		}
		if out, err := exec.Command("diff", "-r", copies[0], dir).CombinedOutput(); err != nil {
			t.Errorf("fetched %s: %v\n%s", filepath.Base(dir), err, out)
		}
	}
}
