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

// round imports a checkpoint directory and fetches it from one daemon to another. It returns the seconds of each.
func (k *kuboBench) round(ctx context.Context, b *contentBench, src string) (imported, fetched float64, root string, err error) {
	a, c := b.dir(), b.dir()
	defer func() { err = errors.Join(err, os.RemoveAll(a), os.RemoveAll(c)) }()
	if err := errors.Join(k.init(ctx, a), k.init(ctx, c)); err != nil {
		return 0, 0, "", err
	}
	start := b.env.now()
	if root, err = k.run(ctx, a, "add", "-r", "-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-1048576",
		"--max-file-links=174", "--progress=false", src); err != nil {
		return 0, 0, "", err
	}
	imported = b.env.now().Sub(start).Seconds()
	var daemons []*exec.Cmd
	defer func() {
		for _, d := range daemons {
			err = errors.Join(err, d.Process.Signal(os.Interrupt), d.Wait())
		}
	}()
	for _, repo := range []string{a, c} {
		d := k.command(ctx, repo, "daemon")
		out, err := d.StdoutPipe()
		if err != nil {
			return 0, 0, "", err
		}
		if err := d.Start(); err != nil {
			return 0, 0, "", err
		}
		daemons = append(daemons, d)
		ready := make([]byte, 0, 1<<12)
		for !bytes.Contains(ready, []byte("Daemon is ready")) {
			buf := make([]byte, 1<<10)
			n, err := out.Read(buf)
			if err != nil {
				return 0, 0, "", fmt.Errorf("ipfs daemon: %w: %s", err, ready)
			}
			ready = append(ready, buf[:n]...)
		}
	}
	address, err := k.run(ctx, a, "id", "-f", "<addrs>")
	if err != nil {
		return 0, 0, "", err
	}
	if _, err := k.run(ctx, c, "swarm", "connect", strings.Fields(address)[0]); err != nil {
		return 0, 0, "", err
	}
	start = b.env.now()
	if _, err := k.run(ctx, c, "pin", "add", root); err != nil {
		return 0, 0, "", err
	}
	return imported, b.env.now().Sub(start).Seconds(), root, nil
}
