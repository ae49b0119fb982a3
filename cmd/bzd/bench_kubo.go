package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// kuboBench runs kubo for bench content.
type kuboBench struct{ program string }

// run runs ipfs on a repository and returns what it printed.
func (k *kuboBench) run(ctx context.Context, repo string, args ...string) (string, error) {
	cmd := k.command(ctx, repo, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ipfs %s: %w: %s", strings.Join(args, " "), err, oneLine(errors.New(errs.String())))
	}
	return strings.TrimSpace(out.String()), nil
}

func (k *kuboBench) command(ctx context.Context, repo string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.program, args...)
	cmd.Env = append(os.Environ(), "IPFS_PATH="+repo, "IPFS_TELEMETRY=off", "LIBP2P_FORCE_PNET=0")
	return cmd
}

func (k *kuboBench) version(ctx context.Context) (string, error) {
	return k.run(ctx, os.TempDir(), "version", "-n")
}

// init makes a repository that talks to nobody by itself: TCP on loopback only.
func (k *kuboBench) init(ctx context.Context, repo string) error {
	for _, args := range [][]string{
		{"init", "--profile=test", "--empty-repo"},
		{"bootstrap", "rm", "--all"},
		{"config", "--json", "Addresses.Swarm", `["/ip4/127.0.0.1/tcp/0"]`},
		{"config", "Addresses.API", "/ip4/127.0.0.1/tcp/0"},
		{"config", "Addresses.Gateway", ""},
		{"config", "Routing.Type", "none"},
		{"config", "--json", "AutoConf.Enabled", "false"},
		{"config", "--json", "AutoTLS.Enabled", "false"},
		{"config", "--json", "Swarm.Transports.Network",
			`{"QUIC": false, "WebTransport": false, "Websocket": false, "WebRTCDirect": false, "Relay": false}`},
		{"config", "--json", "Provide.Enabled", "false"},
		{"config", "--json", "DNS.Resolvers", "{}"},
		{"config", "--json", "Ipns.DelegatedPublishers", "[]"},
		{"config", "--json", "Routing.DelegatedRouters", "[]"},
	} {
		if _, err := k.run(ctx, repo, args...); err != nil {
			return err
		}
	}
	return nil
}

// add imports a directory with the choices of a checkpoint, into a repository that no daemon has open, and returns its CID.
func (k *kuboBench) add(ctx context.Context, repo, dir string) (string, error) {
	return k.run(ctx, repo, "add", "-r", "-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=174",
		"--progress=false", dir)
}

// connect connects a daemon to a peer.
func (k *kuboBench) connect(ctx context.Context, repo, address string) error {
	_, err := k.run(ctx, repo, "swarm", "connect", address)
	return err
}

// pin fetches a checkpoint over bitswap from the peers that a daemon is connected to.
func (k *kuboBench) pin(ctx context.Context, repo, root string) error {
	_, err := k.run(ctx, repo, "pin", "add", root)
	return err
}

// kuboDaemon is a kubo that runs.
type kuboDaemon struct {
	cmd     *exec.Cmd
	address string // a multiaddress with its peer id
}

// daemon starts one on a repository.
func (k *kuboBench) daemon(ctx context.Context, repo string) (_ *kuboDaemon, err error) {
	d := &kuboDaemon{cmd: k.command(ctx, repo, "daemon")}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make([]byte, 0, 1<<12)
	for !bytes.Contains(ready, []byte("Daemon is ready")) {
		buf := make([]byte, 1<<10)
		n, err := out.Read(buf)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ipfs daemon: %w: %s", err, ready), d.stop())
		}
		ready = append(ready, buf[:n]...)
	}
	addresses, err := k.run(ctx, repo, "id", "-f", "<addrs>")
	if err != nil {
		return nil, errors.Join(err, d.stop())
	}
	d.address, _, _ = strings.Cut(addresses, "\n")
	return d, nil
}

func (d *kuboDaemon) stop() error {
	return errors.Join(d.cmd.Process.Signal(os.Interrupt), d.cmd.Wait())
}

// kuboRound is what one round with kubo took, in seconds.
type kuboRound struct {
	root              string
	repos             []string // the first has the checkpoint
	imported, fetched float64  // by kubo alone
	served, given     float64  // kubo fetching from bzd, bzd from kubo
}

// alone imports a checkpoint directory and fetches it from one daemon by another.
func (k *kuboBench) alone(ctx context.Context, b *contentBench, src string) (r kuboRound, err error) {
	r.repos = []string{b.dir(), b.dir(), b.dir()}
	for _, repo := range r.repos {
		if err := k.init(ctx, repo); err != nil {
			return r, err
		}
	}
	if err := b.settle(ctx); err != nil {
		return r, err
	}
	if r.imported, err = b.timed(func() error { r.root, err = k.add(ctx, r.repos[0], src); return err }); err != nil {
		return r, err
	}
	err = k.with(ctx, r.repos[:2], func(daemons []*kuboDaemon) error {
		if err := k.connect(ctx, r.repos[1], daemons[0].address); err != nil {
			return err
		}
		if err := b.settle(ctx); err != nil {
			return err
		}
		r.fetched, err = b.timed(func() error { return k.pin(ctx, r.repos[1], r.root) })
		return err
	})
	return r, err
}

// both fetches from bzd by a daemon, and from a daemon by bzd.
func (k *kuboBench) both(ctx context.Context, b *contentBench, r *kuboRound, store string) error {
	return k.with(ctx, []string{r.repos[0], r.repos[2]}, func(daemons []*kuboDaemon) error {
		server := &process{}
		if err := b.start(ctx, server, "serve", store); err != nil {
			return err
		}
		err := errors.Join(k.connect(ctx, r.repos[2], server.first.Address), b.settle(ctx))
		if err == nil {
			r.served, err = b.timed(func() error { return k.pin(ctx, r.repos[2], r.root) })
		}
		if err = errors.Join(err, server.stop()); err != nil {
			return err
		}
		if err := b.settle(ctx); err != nil {
			return err
		}
		fetched, err := b.task(ctx, "fetch", b.dir(), r.root, daemons[0].address)
		r.given = fetched.Seconds
		return err
	})
}

// with runs a daemon on each repository while do runs.
func (k *kuboBench) with(ctx context.Context, repos []string, do func([]*kuboDaemon) error) (err error) {
	var daemons []*kuboDaemon
	defer func() {
		for _, d := range daemons {
			err = errors.Join(err, d.stop())
		}
	}()
	for _, repo := range repos {
		d, err := k.daemon(ctx, repo)
		if err != nil {
			return err
		}
		daemons = append(daemons, d)
	}
	return do(daemons)
}

// timed returns how many seconds do takes.
func (b *contentBench) timed(do func() error) (float64, error) {
	start := b.env.now()
	err := do()
	return b.env.now().Sub(start).Seconds(), err
}
