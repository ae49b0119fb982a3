package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/blockzero-net/bzd/node/local/localtest"
)

// scriptCommands are the commands that scripts have beside those of testscript.
var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"refuse":     refuse,
	"interrupt":  interrupt,
	"copydir":    copyDir,
	"text":       generateText,
	"poke":       poke,
	"cut":        cut,
	"replace":    replace,
	"keep":       keep,
	"scores":     scores,
	"rehearsal":  rehearsal,
	"family":     writeFamily,
	"rootof":     rootOf,
	"damage":     damage,
	"equivocate": equivocate,
}

// refuse CODE PROGRAM ARGS... runs a program that must fail as a user should see it: with that exit code, nothing on
// standard output, and one line on standard error that begins with bzd.
func refuse(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: refuse CODE PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		ts.Fatalf("%s succeeded", strings.Join(args[1:], " "))
	case !errors.As(err, &exit):
		ts.Check(err)
	}
	if code := strconv.Itoa(exit.ExitCode()); code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("standard output: %q", out)
	}
	text := ts.ReadFile("stderr")
	if strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") || !strings.HasPrefix(text, "bzd") {
		ts.Fatalf("standard error is not one line that begins with bzd")
	}
}

// interrupt PATTERN PROGRAM ARGS... sends SIGINT as soon as a line of standard error matches, and wants exit code 130.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: interrupt PATTERN PROGRAM ARGS...")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	path := ""
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if p := filepath.Join(dir, args[1]); path == "" {
			if _, err := os.Stat(p); err == nil {
				path = p
			}
		}
	}
	cmd := exec.Command(path, args[2:]...)
	cmd.Args[0], cmd.Dir = args[1], ts.MkAbs(".")
	for _, k := range []string{"PATH", "HOME", "TMPDIR", "GOROOT", "BZD_DIR", "GOCOVERDIR"} {
		if v := ts.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	pipe, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	var text strings.Builder
	sent := false
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		fmt.Fprintln(&text, lines.Text())
		if !sent && pattern.MatchString(lines.Text()) {
			sent = true
			ts.Check(cmd.Process.Signal(os.Interrupt))
		}
	}
	err = cmd.Wait()
	fmt.Fprint(ts.Stderr(), text.String())
	fmt.Fprint(ts.Stdout(), out.String())
	if !sent {
		ts.Fatalf("no line matched %q:\n%s", args[0], text.String())
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 130 {
		ts.Fatalf("ended with %v, want exit code 130:\n%s", err, text.String())
	}
}

// copydir FROM TO copies a directory.
func copyDir(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: copydir FROM TO")
	}
	ts.Check(os.CopyFS(ts.MkAbs(args[1]), os.DirFS(ts.MkAbs(args[0]))))
}

// text DIR KIB SEED writes that much text to a new directory, a sentence a line, the same on every machine.
func generateText(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: text DIR KIB SEED")
	}
	kib, err := strconv.Atoi(args[1])
	ts.Check(err)
	seed, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	g := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 300)
	for i := range words {
		for range 1 + g.IntN(3) {
			words[i] += string("bdfgklmnprstvz"[g.IntN(14)]) + string("aeiou"[g.IntN(5)])
		}
	}
	const size = 4 // KiB of a file
	for i := 0; i*size < kib; i++ {
		var b strings.Builder
		for b.Len() < min(size, kib-i*size)<<10 {
			for range 4 + g.IntN(8) {
				b.WriteString(words[g.IntN(len(words))] + " ")
			}
			b.WriteString("- " + strconv.Itoa(g.IntN(1000)) + ".\n")
		}
		ts.Check(os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.txt", i)), []byte(b.String()), 0o644))
	}
}

// family NAME DIR [fused] writes a small Hugging Face model of that family.
func writeFamily(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: family NAME DIR [fused]")
	}
	for _, f := range localtest.Families() {
		if f.String() == args[0] {
			ts.Check(localtest.Write(ts.MkAbs(args[1]), localtest.Config(f), len(args) == 3, 0))
			return
		}
	}
	ts.Fatalf("no family %s", args[0])
}

// edit rewrites a file.
func edit(ts *testscript.TestScript, file string, change func([]byte) []byte) {
	path := ts.MkAbs(file)
	b, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(os.WriteFile(path, change(b), 0o644))
}

// poke FILE OFFSET HEX overwrites bytes of a file; a negative offset counts from its end.
func poke(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: poke FILE OFFSET HEX")
	}
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	what, err := hex.DecodeString(args[2])
	ts.Check(err)
	edit(ts, args[0], func(b []byte) []byte {
		if at < 0 {
			at += len(b)
		}
		copy(b[at:at+len(what)], what)
		return b
	})
}

// cut FILE N leaves the first N bytes of a file.
func cut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: cut FILE N")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	edit(ts, args[0], func(b []byte) []byte { return b[:n] })
}

// replace FILE OLD NEW replaces every occurrence of a text in a file; there must be one.
func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	edit(ts, args[0], func(b []byte) []byte {
		if !bytes.Contains(b, []byte(args[1])) {
			ts.Fatalf("%s does not hold %q", args[0], args[1])
		}
		return bytes.ReplaceAll(b, []byte(args[1]), []byte(args[2]))
	})
}

// keep NAME PATTERN sets the variable to what the pattern's group, or the whole of it, matches in the last standard
// output.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keep NAME PATTERN")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	found := pattern.FindStringSubmatch(ts.ReadFile("stdout"))
	if found == nil {
		ts.Fatalf("%q does not match standard output", args[1])
	}
	ts.Setenv(args[0], found[len(found)-1])
}

// decode reads JSON with exactly the fields of v.
func decode(ts *testscript.TestScript, file string, v any) {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		ts.Fatalf("%s: %v", file, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		ts.Fatalf("%s: something follows the JSON value", file)
	}
}

// scores FILE reads what eval --json printed and prints a line for every delta: file, group, status, whether the gain is
// above zero, whether it is paid, and the reason.
func scores(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: scores FILE")
	}
	var rows []struct {
		File, Group, Status, Reason string
		Part, Weight                uint64
		Row                         struct {
			Miner        string
			Shard, N     uint32
			Gain, StdErr int64
			Screen       int64
			Status       string
		}
	}
	decode(ts, args[0], &rows)
	for _, r := range rows {
		gain := "no-gain"
		if r.Row.Gain > 0 {
			gain = "gain"
		}
		paid := "unpaid"
		if r.Weight > 0 {
			paid = "paid"
		}
		if r.Status == "ok" && (r.Row.N == 0 || r.Row.StdErr <= 0) {
			ts.Fatalf("%s is ok with %d samples and standard error %d", r.File, r.Row.N, r.Row.StdErr)
		}
		fmt.Fprintln(ts.Stdout(), r.File, r.Group, r.Status, gain, paid, r.Reason)
	}
}

// rehearsal FILE CYCLES GROUPS MINERS reads what rehearse --json printed, checks its shape and sums, and prints it
// without the time it took.
func rehearsal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: rehearsal FILE CYCLES GROUPS MINERS")
	}
	var want [3]int
	for i := range want {
		var err error
		want[i], err = strconv.Atoi(args[1+i])
		ts.Check(err)
	}
	var r struct {
		Seed       string
		Miners     int
		Values     uint64
		TopK       int
		LR, Lead   float64
		Checkpoint string
		Seconds    float64
		Cycles     []struct {
			Cycle              int
			Base, Next         string
			Alpha              json.RawMessage
			CanaryBefore       float64 `json:"canary_before"`
			CanaryAfter        float64 `json:"canary_after"`
			Excluded, Verdicts []string
			Groups             []struct {
				Group  string
				Before float64 `json:"loss_before"`
				After  float64 `json:"loss_after"`
			}
			Submissions []struct {
				Miner, Group, Status, Reason string
				Gain, StdErr, Weight         float64
				Bytes                        int64
			}
		}
	}
	decode(ts, args[0], &r)
	if len(r.Cycles) != want[0] || r.Seconds < 0 {
		ts.Fatalf("%d cycles in %v seconds, want %d cycles", len(r.Cycles), r.Seconds, want[0])
	}
	next := ""
	for i, c := range r.Cycles {
		if c.Cycle != i || i > 0 && c.Base != next {
			ts.Fatalf("cycle %d starts from %s: not what was before it", c.Cycle, c.Base)
		}
		next = c.Next
		if len(c.Groups) != want[1] || len(c.Submissions) != want[1]*want[2] {
			ts.Fatalf("cycle %d: %d groups, %d submissions", i, len(c.Groups), len(c.Submissions))
		}
		sum := 0.0
		for _, s := range c.Submissions {
			sum += s.Weight
			if s.Status == "" || s.Bytes <= 0 || s.Weight > 0 && s.Gain <= 0 {
				ts.Fatalf("cycle %d: submission %+v", i, s)
			}
		}
		if sum != 0 && math.Abs(sum-1) > 1e-6 {
			ts.Fatalf("cycle %d: weights sum to %v, want 1, or 0 if nobody is paid", i, sum)
		}
	}
	if r.Checkpoint != next {
		ts.Fatalf("ends at %s, the last cycle at %s", r.Checkpoint, next)
	}
	seconds := regexp.MustCompile(`(?m)^ *"seconds":.*\n`)
	fmt.Fprint(ts.Stdout(), seconds.ReplaceAllString(ts.ReadFile(args[0]), ""))
}

// rootof NAME DIR sets a variable to the CID of the one checkpoint that a node's directory has.
func rootOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: rootof NAME DIR")
	}
	ts.Check(ts.Exec("bzd", "checkpoint", "ls", "--json", "--dir", args[1]))
	var list []held
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &list))
	if len(list) != 1 {
		ts.Fatalf("%d checkpoints", len(list))
	}
	ts.Setenv(args[0], list[0].Checkpoint)
}

// damage DIR flips a bit in one of the files that a node's block store keeps large blocks in.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage DIR")
	}
	files, err := filepath.Glob(ts.MkAbs(filepath.Join(args[0], "blocks", "large", "*", "*")))
	ts.Check(err)
	if len(files) == 0 {
		ts.Fatalf("no large block in %s", args[0])
	}
	data, err := os.ReadFile(files[0])
	ts.Check(err)
	data[len(data)/2] ^= 8
	ts.Check(os.WriteFile(files[0], data, 0o644))
}
