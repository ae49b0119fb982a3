package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/exchange"
)

const storeHelp = `Usage: bzd store stat|gc|verify|import [flags]

  stat      what the block store of a node holds, and for whom
  gc        delete the blocks that nobody has pinned
  verify    read and hash every block, and look whether what is pinned is here
  import    bring the blocks of CAR files into the store, whatever they are

A store belongs to one process at a time: stop the node first. A node that runs collects by itself.`

// openStore opens the block store of the node's directory. Unless it may be made, it must be there.
func (c *common) openStore(make bool) (*blockstore.Store, string, error) {
	return c.openStoreOf(make, 0)
}

// openStoreOf is openStore with a bound on the bytes of all blocks, 0 for none.
func (c *common) openStoreOf(make bool, quota uint64) (*blockstore.Store, string, error) {
	dir, err := c.networkDir()
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, "blocks")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if !make {
			return nil, "", fmt.Errorf("there is no block store in %s; give the directory of a node with --dir", dir)
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, "", err
		}
	}
	o := blockstore.DefaultOptions()
	o.Links, o.Quota = exchange.Links, quota
	s, err := blockstore.Open(path, o)
	return s, dir, err
}

// nodeDir is the flag for the directory of a node.
func (c *common) nodeDir() *common {
	c.set.StringVar(&c.dir, "dir", "", "directory of the node; empty means $BZD_DIR, else bzd below the user's cache directory")
	return c
}

// writeJSON prints a result for programs.
func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func storeStat(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "store stat", `Usage: bzd store stat [flags]

Says what the block store of a node holds, what of it is pinned and by whom. Blocks that several pins keep count for
each.`).nodeDir()
	asJSON := c.set.Bool("json", false, "print one JSON object")
	if err := c.parse(args, false); err != nil {
		return err
	}
	s, dir, err := c.openStore(false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	stat, err := s.Stat(ctx)
	if err != nil {
		return err
	}
	if *asJSON {
		return writeJSON(env.out, stat)
	}
	fmt.Fprintf(env.out, "store       %s\n", filepath.Join(dir, "blocks"))
	fmt.Fprintf(env.out, "blocks      %d, %s\n", stat.Blocks, bytesText(stat.Bytes))
	garbage := stat.Bytes - min(stat.Bytes, stat.PinnedBytes)
	fmt.Fprintf(env.out, "pinned      %s; bzd store gc would delete %s\n", bytesText(stat.PinnedBytes), bytesText(garbage))
	fmt.Fprintf(env.out, "on disk     %s, %s are free\n\n", bytesText(stat.Disk), bytesText(stat.Free))
	return pinTable(env.out, stat.Pins)
}

func pinTable(out io.Writer, pins []blockstore.PinStat) error {
	w := table(out)
	fmt.Fprintln(w, "pin\tblocks\tbytes\tmissing\tgiven up for space\t")
	for _, p := range pins {
		spare := ""
		if p.Spare {
			spare = "yes"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t\n", p.Owner, p.Blocks, bytesText(p.Bytes), p.Absent, spare)
	}
	return w.Flush()
}

func storeImport(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "store import", `Usage: bzd store import [flags] FILE...

Brings the blocks of CAR files into the store, each hashed, of any codec and with any roots, for bzd gateway --public to show.
Nobody pins them: they stay until bzd store gc, or until a quota needs their space. For checkpoints use bzd checkpoint
import --car.`).nodeDir()
	limit := size(64 << 30)
	c.set.Var(&limit, "limit", "the most that one file may have, such as 8GiB")
	if err := c.parse(args, true); err != nil {
		return err
	}
	if c.set.NArg() == 0 {
		return usageError("no FILE")
	}
	s, _, err := c.openStore(true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, name := range c.set.Args() {
		if err := importBlocks(ctx, env, s, name, uint64(limit)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func importBlocks(ctx context.Context, env environment, s *blockstore.Store, name string, limit uint64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	m := newTransfer(env, "imported")
	p, skipped, err := exchange.ImportBlocks(ctx, s, f, exchange.Bounds{MaxBytes: limit, MaxBlocks: 1 << 26},
		func(p exchange.Progress) { m.report(p.Bytes, 0, "") })
	m.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(env.out, "%s: %d blocks, %s", name, p.Blocks, bytesText(p.Bytes))
	if skipped > 0 {
		fmt.Fprintf(env.out, "; left out %d that are not named by sha2-256", skipped)
	}
	fmt.Fprintln(env.out)
	return nil
}

func storeGC(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "store gc", `Usage: bzd store gc [flags]

Deletes the blocks that no pin keeps and gives their space back. Interrupted, it has deleted some of them and harmed
nothing.`).nodeDir()
	asJSON := c.set.Bool("json", false, "print one JSON object")
	if err := c.parse(args, false); err != nil {
		return err
	}
	s, _, err := c.openStore(false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	m := newTransfer(env, "deleted")
	got, err := s.Collect(ctx, func(p blockstore.Collected) { m.report(p.RemovedBytes, 0, "") })
	m.end()
	if err != nil {
		return err
	}
	if *asJSON {
		return writeJSON(env.out, got)
	}
	fmt.Fprintf(env.out, "deleted %d blocks, %s; kept %d, %s\n", got.Removed, bytesText(got.RemovedBytes),
		got.Kept, bytesText(got.KeptBytes))
	return nil
}

func storeVerify(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "store verify", `Usage: bzd store verify [flags]

Reads and hashes every block, and looks whether everything that is pinned is here. Exit code 1 says that something is not
as it should be. A node fetches again what --repair deletes.`).nodeDir()
	asJSON := c.set.Bool("json", false, "print one JSON object")
	repair := c.set.Bool("repair", false, "delete damaged blocks")
	if err := c.parse(args, false); err != nil {
		return err
	}
	s, dir, err := c.openStore(false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	m := newTransfer(env, "verified")
	v, err := s.Verify(ctx, *repair, func(p blockstore.Verified) {
		m.report(p.Bytes, 0, fmt.Sprintf("block %d of %d", p.Blocks, p.Total))
	})
	m.end()
	if err != nil {
		return err
	}
	if *asJSON {
		err = writeJSON(env.out, v)
	} else {
		err = showVerified(env.out, v)
	}
	if err == nil && !v.Sound() {
		err = fmt.Errorf("%d of %d blocks in %s are damaged, %d of these deleted; %d pins lack blocks%s",
			len(v.Damaged), v.Blocks, filepath.Join(dir, "blocks"), v.Repaired, len(v.Pins), verifyHint(v))
	}
	return err
}

func verifyHint(v blockstore.Verified) string {
	if len(v.Damaged) > v.Repaired {
		return "; --repair deletes what is damaged"
	}
	return "; the node fetches them again when it needs them"
}

func showVerified(out io.Writer, v blockstore.Verified) error {
	fmt.Fprintf(out, "verified %d blocks, %s\n", v.Blocks, bytesText(v.Bytes))
	for _, c := range v.Damaged {
		fmt.Fprintf(out, "damaged  %s\n", c)
	}
	if len(v.Pins) == 0 {
		return nil
	}
	return pinTable(out, v.Pins)
}

// transfer shows how bytes move: a line that is rewritten on a terminal, one now and then elsewhere.
type transfer struct {
	env         environment
	what        string
	start, last time.Time
	shown       bool
}

func newTransfer(env environment, what string) *transfer {
	return &transfer{env: env, what: what, start: env.now(), last: env.now()}
}

// report says how many bytes are done, of how many if that is known, and what else there is to say.
func (t *transfer) report(done, total uint64, more string) {
	now, interval := t.env.now(), 5*time.Second
	if t.env.terminal {
		interval = 100 * time.Millisecond
	}
	if now.Sub(t.last) < interval {
		return
	}
	t.last, t.shown = now, true
	rate := float64(done) / max(now.Sub(t.start).Seconds(), 1e-3)
	line := t.what + "  " + bytesText(done)
	if total > 0 {
		line += " of " + bytesText(total)
	}
	line += "  " + bytesText(uint64(rate)) + "/s"
	if total > done && rate > 0 {
		line += "  " + time.Duration(float64(total-done)/rate*float64(time.Second)).Round(time.Second).String() + " left"
	}
	if more != "" {
		line += "  " + more
	}
	if t.env.terminal {
		fmt.Fprintf(t.env.err, "\r\x1b[K%s", line)
		return
	}
	fmt.Fprintln(t.env.err, line)
}

// end leaves the line.
func (t *transfer) end() {
	if t.shown && t.env.terminal {
		fmt.Fprintln(t.env.err)
	}
}

// bytesText is a number of bytes for people.
func bytesText(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 10<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 10<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
