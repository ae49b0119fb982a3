package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/content/checkpoint"
)

// contentBench measures how checkpoints get into stores and from one to another.
type contentBench struct {
	*common
	size   size
	rounds int
	kubo   string
	tmp    string
	brief  bool
	fill   bool
	asJSON bool

	self string   // this program
	made int      // directories made below tmp
	hole *os.File // a file of nothing, read up to where settle got
}

// contentReport is what bench content measured. Rates are bytes (10⁶) a second, medians over the rounds; every round
// measures everything once, in turn.
type contentReport struct {
	Bytes  uint64 `json:"bytes"`
	Rounds int    `json:"rounds"`
	Kubo   string `json:"kubo,omitempty"` // its version

	Hash       float64 `json:"hash_mb_s"`   // SHA-256, one core
	Write      float64 `json:"write_mb_s"`  // a file, flushed
	Stream     float64 `json:"stream_mb_s"` // a raw libp2p stream between two processes: TCP, TLS, yamux
	Import     float64 `json:"import_mb_s"` // of a checkpoint directory, durable, with the start of the process
	KuboImport float64 `json:"kubo_import_mb_s,omitempty"`
	Fetch      float64 `json:"fetch_mb_s"` // between two processes, durable
	KuboFetch  float64 `json:"kubo_fetch_mb_s,omitempty"`
	KuboServed float64 `json:"kubo_fetch_from_bzd_mb_s,omitempty"`
	KuboGave   float64 `json:"fetch_from_kubo_mb_s,omitempty"`

	ImportRatio float64 `json:"import_to_kubo,omitempty"` // medians of the ratios of each round
	FetchRatio  float64 `json:"fetch_to_kubo,omitempty"`
	StreamRatio float64 `json:"fetch_to_stream"`

	Hostile       float64 `json:"hostile_time_ratio,omitempty"` // a fetch from five peers and one that never answers, to one without it
	HostileWasted float64 `json:"hostile_bytes_ratio"`          // bytes that came twice, to those of the fetch
	Sync          float64 `json:"sync_to_group,omitempty"`      // bytes that move when one of four groups has changed, to its bytes
	Resumed       float64 `json:"resumed_to_all,omitempty"`     // bytes that move in a fetch after one that was killed at half

	Idle  uint64 `json:"idle_peak_bytes"`  // most memory of a process that does nothing with a store and a host
	Peaks peaks  `json:"peak_bytes"`       // most memory of the others
	Above uint64 `json:"above_idle_bytes"` // the largest of them, less idle
	Cid   string `json:"checkpoint"`       // of the first round; kubo's too
}

type peaks struct {
	Import uint64 `json:"import"`
	Fetch  uint64 `json:"fetch"`
	Serve  uint64 `json:"serve"`
}

func benchContent(ctx context.Context, env environment, args []string) (err error) {
	b := &contentBench{size: 1 << 30, common: newFlags(env, "bench content", `Usage: bzd bench content [flags]

Measures how fast a checkpoint of random bytes is imported into a block store and fetched from one process by another over
TCP, both durable when they end, beside what this machine's processor, disk and connections do at best, and beside kubo if
there is one: same chunks, same CID, and each fetches from the other. Then how much moves when one of four expert groups has
changed and after a fetch was killed at half, what a peer costs that never answers, and how much memory all of that takes.`)}
	b.set.Var(&b.size, "size", "of the checkpoint, such as 4GiB")
	b.set.IntVar(&b.rounds, "rounds", 3, "how often everything is measured, in turn")
	b.set.StringVar(&b.kubo, "kubo", "", "`PROGRAM` to compare with: kubo's ipfs")
	b.set.StringVar(&b.tmp, "tmp", "", "`DIR` for the data, about six times its size for each round and twice more; empty means a temporary one")
	b.set.BoolVar(&b.brief, "brief", false, "measure imports and fetches only, not what moves where something is here already")
	b.set.BoolVar(&b.fill, "fill", false, "have a cache take all free memory before anything is measured: a virtual machine pays for memory that it uses first, or again after its host has taken it back, several times what a transfer costs otherwise, but not for what its cache gives up")
	b.set.BoolVar(&b.asJSON, "json", false, "print one JSON object")
	if err := b.parse(args, false); err != nil {
		return err
	}
	if b.size < 8<<20 || b.rounds < 1 {
		return usageError("--size at least 8MiB, --rounds at least 1")
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.tmp, err = os.MkdirTemp(b.tmp, "bzd-bench-"); err != nil {
		return err
	}
	defer func() {
		if b.hole != nil {
			err = errors.Join(err, b.hole.Close())
		}
		err = errors.Join(err, os.RemoveAll(b.tmp))
	}()
	r, err := b.run(ctx)
	if err != nil {
		return err
	}
	if b.asJSON {
		return writeJSON(env.out, r)
	}
	return r.print(env)
}

// dir is a new directory for data.
func (b *contentBench) dir() string {
	b.made++
	return filepath.Join(b.tmp, fmt.Sprint(b.made))
}

// settle has the system write what it has not written yet, so that nobody pays for what was done before, and with fill makes
// all free memory the cache of an empty file.
func (b *contentBench) settle(ctx context.Context) error {
	_ = exec.CommandContext(ctx, "sync").Run()
	if !b.fill {
		return nil
	}
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	var free int64
	for line := range strings.Lines(string(memory)) {
		if rest, ok := strings.CutPrefix(line, "MemFree:"); ok {
			_, _ = fmt.Sscan(rest, &free)
		}
	}
	if b.hole == nil {
		if b.hole, err = os.Create(filepath.Join(b.tmp, "hole")); err == nil {
			err = b.hole.Truncate(1 << 42)
		}
		if err != nil {
			return err
		}
	}
	buf := make([]byte, 1<<20)
	for ; free >= 1<<10 && ctx.Err() == nil; free -= 1 << 10 {
		if _, err := b.hole.Read(buf); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// randomCheckpoint writes a checkpoint of random bytes: a hub, and four groups, of which the last is one of several. All are
// windows of the same numbers, so that not all of them are in memory at a time; chunks of two windows have nothing in common.
func (b *contentBench) randomCheckpoint(total int64, last int) (dir string, group uint64, err error) {
	dir = b.dir()
	n := int(total / 4 / 5)
	data := make([]float32, n+16)
	rng := rand.New(rand.NewPCG(1, uint64(total)))
	for i := range data {
		data[i] = rng.Float32()
	}
	window := func(name string, shift int) checkpoint.File {
		return checkpoint.File{Name: name + ".safetensors", Tensors: []checkpoint.Tensor{
			{Name: name, DType: checkpoint.F32, Shape: []int64{int64(n)}, Data: data[shift : shift+n]}}}
	}
	_, err = checkpoint.Write(dir, checkpoint.Contents{
		Documents: map[string][]byte{"config.json": []byte(`{"model_type":"qwen3_moe"}`)},
		Files: []checkpoint.File{window("hub-00001", 0), window("experts-a", 1), window("experts-b", 2), window("experts-c", 3),
			window("experts-d", last)},
	})
	return dir, 4 * uint64(n), err
}

// run deletes nothing before all rounds are over: for minutes ext4 searches long for the number of a new file where others
// were deleted, so that whatever is measured next would pay for it.
func (b *contentBench) run(ctx context.Context) (r contentReport, err error) {
	r.Rounds = b.rounds
	src, group, err := b.randomCheckpoint(int64(b.size), 4)
	if err != nil {
		return r, err
	}
	idle := &process{}
	if err := b.start(ctx, idle, "idle", b.dir()); err != nil {
		return r, err
	}
	r.Idle = idle.last.Peak
	if err := idle.wait(); err != nil {
		return r, err
	}
	var k *kuboBench
	if b.kubo != "" {
		k = &kuboBench{program: b.kubo}
		if r.Kubo, err = k.version(ctx); err != nil {
			return r, err
		}
	}
	var all struct{ stream, imp, fetch, kimp, kfetch, served, given, rimp, rfetch, rstream []float64 }
	if r.Hash, r.Write, err = b.limits(ctx); err != nil {
		return r, err
	}
	for round := range b.rounds {
		var own ownRound
		var theirs kuboRound
		steps := []func() (err error){
			func() (err error) { own, err = b.own(ctx, src); return err },
			func() (err error) {
				if k != nil {
					theirs, err = k.alone(ctx, b, src)
				}
				return err
			},
		}
		if round%2 == 1 { // who goes first finds another machine
			slices.Reverse(steps)
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return r, err
			}
		}
		if r.Cid = cmp.Or(r.Cid, own.root); r.Cid != own.root {
			return r, fmt.Errorf("one directory gave two CIDs, %s and %s", r.Cid, own.root)
		}
		r.Bytes = own.bytes
		r.Peaks = peaks{max(r.Peaks.Import, own.peaks.Import), max(r.Peaks.Fetch, own.peaks.Fetch), max(r.Peaks.Serve, own.peaks.Serve)}
		rate := func(seconds float64) float64 { return float64(r.Bytes) / 1e6 / seconds }
		all.imp, all.fetch = append(all.imp, rate(own.imported)), append(all.fetch, rate(own.fetched))
		all.stream, all.rstream = append(all.stream, rate(own.streamed)), append(all.rstream, own.streamed/own.fetched)
		said := fmt.Sprintf("import %.0f MB/s, stream %.0f, fetch %.0f", rate(own.imported), rate(own.streamed), rate(own.fetched))
		if k != nil {
			if theirs.root != own.root {
				return r, fmt.Errorf("kubo calls it %s, bzd %s", theirs.root, own.root)
			}
			if err := k.both(ctx, b, &theirs, own.store); err != nil {
				return r, err
			}
			said += fmt.Sprintf("; kubo imports %.0f, fetches %.0f", rate(theirs.imported), rate(theirs.fetched))
			all.kimp, all.kfetch = append(all.kimp, rate(theirs.imported)), append(all.kfetch, rate(theirs.fetched))
			all.served, all.given = append(all.served, rate(theirs.served)), append(all.given, rate(theirs.given))
			all.rimp, all.rfetch = append(all.rimp, theirs.imported/own.imported), append(all.rfetch, theirs.fetched/own.fetched)
		}
		fmt.Fprintf(b.env.err, "bzd: round %d of %d: %s\n", round+1, b.rounds, said)
	}
	r.Stream, r.Import, r.Fetch = middle(all.stream), middle(all.imp), middle(all.fetch)
	r.KuboImport, r.KuboFetch = middle(all.kimp), middle(all.kfetch)
	r.KuboServed, r.KuboGave = middle(all.served), middle(all.given)
	r.ImportRatio, r.FetchRatio, r.StreamRatio = middle(all.rimp), middle(all.rfetch), middle(all.rstream)
	if !b.brief {
		if err := b.moves(ctx, &r, src, group); err != nil {
			return r, err
		}
	}
	r.Above = max(r.Peaks.Import, r.Peaks.Fetch, r.Peaks.Serve) - r.Idle
	return r, nil
}

// ownRound is what one round without kubo took, in seconds.
type ownRound struct {
	root, store                 string
	bytes                       uint64
	imported, streamed, fetched float64
	peaks                       peaks
}

// own imports a checkpoint directory into a store, serves that, and fetches from there.
func (b *contentBench) own(ctx context.Context, src string) (r ownRound, err error) {
	r.store = b.dir()
	if err := b.settle(ctx); err != nil {
		return r, err
	}
	start := b.env.now()
	imported, err := b.task(ctx, "import", src, r.store)
	if err != nil {
		return r, err
	}
	r.imported = b.env.now().Sub(start).Seconds()
	r.root, r.bytes, r.peaks.Import = imported.Root, imported.Bytes, imported.Peak
	server := &process{}
	if err := b.start(ctx, server, "serve", r.store); err != nil {
		return r, err
	}
	streamed, err := b.task(ctx, "stream", server.first.Address, fmt.Sprint(r.bytes))
	if err != nil {
		return r, err
	}
	if err := b.settle(ctx); err != nil {
		return r, err
	}
	fetched, err := b.task(ctx, "fetch", b.dir(), r.root, server.first.Address)
	if err != nil {
		return r, err
	}
	err = server.stop()
	r.streamed, r.fetched, r.peaks.Fetch, r.peaks.Serve = streamed.Seconds, fetched.Seconds, fetched.Peak, server.peak
	return r, err
}

// moves measures how much moves where something is here already, and what a silent peer costs.
func (b *contentBench) moves(ctx context.Context, r *contentReport, src string, group uint64) (err error) {
	next, _, err := b.randomCheckpoint(int64(b.size), 5)
	if err != nil {
		return err
	}
	store := b.dir()
	if _, err := b.task(ctx, "import", src, store); err != nil {
		return err
	}
	changed, err := b.task(ctx, "import", next, store)
	if err != nil {
		return err
	}
	// Five honest peers are five processes, and a store belongs to one. Nobody has it open yet.
	stores := []string{store}
	for range 4 {
		stores = append(stores, b.dir())
		if err := linkTree(store, stores[len(stores)-1]); err != nil {
			return err
		}
	}
	server, silent := &process{}, &process{}
	if err := b.start(ctx, server, "serve", store); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	into := b.dir()
	killed := &process{until: r.Bytes / 2}
	if err := b.start(ctx, killed, "fetch", into, r.Cid, server.first.Address); err != nil {
		return err
	}
	if err := killed.kill(); err != nil {
		return err
	}
	again, err := b.task(ctx, "fetch", into, r.Cid, server.first.Address)
	if err != nil {
		return err
	}
	r.Resumed = float64(again.Moved) / float64(r.Bytes)
	synced, err := b.task(ctx, "fetch", into, changed.Root, server.first.Address)
	if err != nil {
		return err
	}
	r.Sync = float64(synced.Moved) / float64(group)
	if err := os.RemoveAll(into); err != nil {
		return err
	}

	addresses := []string{server.first.Address}
	var others []*process
	defer func() {
		for _, p := range others {
			err = errors.Join(err, p.stop())
		}
	}()
	for _, store := range stores[1:] {
		p := &process{}
		if err := b.start(ctx, p, "serve", store); err != nil {
			return err
		}
		others = append(others, p)
		addresses = append(addresses, p.first.Address)
	}
	if err := b.start(ctx, silent, "serve", b.dir(), "silent"); err != nil {
		return err
	}
	others = append(others, silent)
	var ratios []float64
	for range b.rounds {
		var seconds [2]float64
		for i, from := range [][]string{addresses, append([]string{silent.first.Address}, addresses...)} {
			into := b.dir()
			got, err := b.task(ctx, append([]string{"fetch", into, r.Cid}, from...)...)
			if err != nil {
				return err
			}
			seconds[i] = got.Seconds
			if i == 1 {
				r.HostileWasted = max(r.HostileWasted, float64(got.Wasted)/float64(r.Bytes))
			}
			if err := os.RemoveAll(into); err != nil {
				return err
			}
		}
		ratios = append(ratios, seconds[1]/seconds[0])
	}
	r.Hostile = middle(ratios)
	return nil
}

// linkTree copies a store that nobody writes to: its large files are linked.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, rest), 0o755)
		case e.Name() == "LOCK":
			return nil
		case strings.HasPrefix(rest, "large"):
			return os.Link(path, filepath.Join(to, rest))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rest), data, 0o600)
	})
}

// limits are what one core hashes and the disk writes, in bytes (10⁶) a second.
func (b *contentBench) limits(ctx context.Context) (hash, write float64, err error) {
	buf := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(buf)
	start := b.env.now()
	for range 256 {
		sum := sha256.Sum256(buf)
		copy(buf, sum[:])
	}
	hash = 256 << 20 / 1e6 / b.env.now().Sub(start).Seconds()
	f, err := os.Create(b.dir())
	if err != nil {
		return 0, 0, err
	}
	start = b.env.now()
	for n := int64(0); n < int64(b.size) && err == nil; n += 1 << 20 {
		if err = ctx.Err(); err == nil {
			_, err = f.Write(buf)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	write = float64(b.size) / 1e6 / b.env.now().Sub(start).Seconds()
	return hash, write, errors.Join(err, f.Close())
}

// process is a process of the benchmark.
type process struct {
	cmd         *exec.Cmd
	lines       *bufio.Scanner
	first, last peerReport
	peak        uint64
	until       uint64 // a fetch is left running when it has moved as much
}

// start starts a process and reads what it says, up to its first line that is not of progress.
func (b *contentBench) start(ctx context.Context, p *process, args ...string) error {
	p.cmd = exec.CommandContext(ctx, b.self, append([]string{"bench", "peer"}, args...)...)
	p.cmd.Args[0], p.cmd.Stderr = os.Args[0], b.env.err
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.lines = bufio.NewScanner(out)
	for p.lines.Scan() {
		if err := json.Unmarshal(p.lines.Bytes(), &p.last); err != nil {
			return err
		}
		if !p.last.Partial || p.until > 0 && p.last.Moved >= p.until {
			p.first = p.last
			return nil
		}
		p.last = peerReport{}
	}
	return fmt.Errorf("bench peer %s: it said nothing: %w", args[0], errors.Join(p.lines.Err(), p.cmd.Wait()))
}

func (p *process) wait() error { return p.cmd.Wait() }

// stop asks a process that serves to end. Its most memory is known then.
func (p *process) stop() error {
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid)); err == nil {
		p.peak = peakOf(status)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return p.cmd.Wait()
}

// kill ends a process at once.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = p.cmd.Wait()
	return nil
}

// task runs a process to its end.
func (b *contentBench) task(ctx context.Context, args ...string) (peerReport, error) {
	p := &process{}
	if err := b.start(ctx, p, args...); err != nil {
		return peerReport{}, err
	}
	return p.last, p.wait()
}

// middle is the median, 0 of nothing.
func middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func (r contentReport) print(env environment) error {
	w := table(env.out)
	fmt.Fprintf(w, "bytes of the checkpoint\t%d\t\n", r.Bytes)
	for _, x := range []struct {
		name string
		rate float64
	}{{"SHA-256, one core", r.Hash}, {"writing a file, flushed", r.Write}, {"libp2p stream", r.Stream}, {"import", r.Import},
		{"import by kubo", r.KuboImport}, {"fetch", r.Fetch}, {"fetch from kubo by kubo", r.KuboFetch},
		{"fetch from bzd by kubo", r.KuboServed}, {"fetch from kubo", r.KuboGave}} {
		if x.rate > 0 {
			fmt.Fprintf(w, "%s\t%.0f MB/s\t\n", x.name, x.rate)
		}
	}
	for _, x := range []struct {
		name  string
		ratio float64
	}{{"import, to kubo", r.ImportRatio}, {"fetch, to kubo", r.FetchRatio}, {"fetch, to a stream", r.StreamRatio},
		{"time with a silent peer among six", r.Hostile}, {"bytes that it costs", r.HostileWasted},
		{"sync, to the group that changed", r.Sync}, {"fetch after one killed at half", r.Resumed}} {
		if x.ratio > 0 {
			fmt.Fprintf(w, "%s\t%.3f\t\n", x.name, x.ratio)
		}
	}
	fmt.Fprintf(w, "memory above idle\t%s\t\n", bytesText(r.Above))
	return w.Flush()
}
