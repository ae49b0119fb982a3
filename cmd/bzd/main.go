package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/blockzero-net/bzd/training/data"
)

const help = `bzd trains one mixture-of-experts language model together with others.

Usage: bzd COMMAND [flags]

A network:
  devnet       a whole network on this machine, over real sockets

The jobs of a cycle, on this machine:
  rehearse     several whole cycles: train, score, merge, again (make demo)
  train        train one expert group and write the update, a delta
  eval         score deltas by Proof-of-Loss on held-out text
  merge        merge scored deltas into the next checkpoint

Models and text:
  genesis      train the base model, plan a network or import one, verify what is embedded
  checkpoint   show, list, fetch, compare, import, export
  store        what a node's block store holds: stat, gc, verify, import
  gateway      serve a node's checkpoints over HTTP, as IPFS gateways do
  sample       continue a prompt
  data         list the domains on this machine
  params       say whether a network's parameters can work

  verify       check what the network says: an equivocation proof

  bench        how fast this machine trains, evaluates, codes deltas and moves checkpoints, and a network agrees
  version      what this binary is and what it computes with

bzd COMMAND --help says more. A network lives in a directory: --dir, $BZD_DIR, or bzd below the user's cache directory;
if there is none yet, the embedded genesis is set up there.
`

// environment is what a command may touch of the process.
type environment struct {
	out, err io.Writer
	terminal bool // err is a terminal
	getenv   func(string) string
	now      func() time.Time
	goroot   func() (root string, looked []string) // the Go installation, or "" and where it was looked for
}

type command func(ctx context.Context, env environment, args []string) error

var commands = map[string]command{
	"devnet":   devnetCommand,
	"gateway":  gatewayCommand,
	"rehearse": rehearse,
	"train":    train,
	"eval":     eval,
	"merge":    mergeDeltas,
	"sample":   sample,
	"data":     datasets,
	"version":  version,

	"bench":           family(benchHelp, "step, engine, delta, frontier, content or agreement"),
	"bench step":      benchStep,
	"bench engine":    benchEngine,
	"bench delta":     benchDelta,
	"bench frontier":  benchFrontier,
	"bench content":   benchContent,
	"bench peer":      benchPeer, // a process of bench content
	"bench agreement": benchAgreement,

	"genesis":        family(genesisHelp, "train, plan, import, verify or show"),
	"genesis train":  genesisTrain,
	"genesis plan":   genesisPlan,
	"genesis import": genesisImport,
	"genesis verify": genesisVerify,
	"genesis show":   genesisShow,

	"params":       family(paramsHelp, "check"),
	"params check": paramsCheck,

	"verify":       family(verifyHelp, "proof"),
	"verify proof": verifyProof,

	"checkpoint":        family(checkpointHelp, "show, ls, get, diff, import or export"),
	"checkpoint show":   checkpointShow,
	"checkpoint ls":     checkpointList,
	"checkpoint get":    checkpointGet,
	"checkpoint diff":   checkpointDiff,
	"checkpoint import": checkpointImport,
	"checkpoint export": checkpointExport,

	"store":        family(storeHelp, "stat, gc, verify or import"),
	"store stat":   storeStat,
	"store gc":     storeGC,
	"store verify": storeVerify,
	"store import": storeImport,
}

// family answers the first word of two-word commands by itself.
func family(help, names string) command {
	return func(_ context.Context, env environment, args []string) error {
		switch {
		case len(args) == 0:
			return usageError("which one? %s", names)
		case slices.Contains([]string{"-h", "-help", "--help", "help"}, args[0]):
			fmt.Fprintln(env.out, help)
			return nil
		}
		return usageError("no command %q: %s", args[0], names)
	}
}

func main() { serve(findGOROOT) }

// serve is the program with its way of finding a Go installation.
func serve(goroot func() (string, []string)) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second Ctrl-C ends the process at once
	}()
	env := environment{out: os.Stdout, err: os.Stderr, terminal: term.IsTerminal(int(os.Stderr.Fd())), getenv: os.Getenv, now: time.Now, goroot: goroot}
	os.Exit(run(ctx, env, os.Args[1:]))
}

func findGOROOT() (string, []string) {
	return data.FindGOROOT(os.Getenv, func() (string, error) {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		return strings.TrimSpace(string(out)), err
	})
}

// usage is an error in the caller's words.
type usage string

func (u usage) Error() string { return string(u) }

func usageError(format string, a ...any) error { return usage(fmt.Sprintf(format, a...)) }

// run executes one command and returns the exit code.
func run(ctx context.Context, env environment, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(env.err, help)
		return 2
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		fmt.Fprint(env.out, help)
		return 0
	}
	words := min(2, len(args))
	if commands[strings.Join(args[:words], " ")] == nil {
		words = 1
	}
	name := strings.Join(args[:words], " ")
	c, ok := commands[name]
	if !ok {
		fmt.Fprintf(env.err, "bzd: no command %q; bzd help lists them\n", name)
		return 2
	}
	err := c(ctx, env, args[words:])
	var wrong usage
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(env.err, "bzd: interrupted")
		if msg := afterInterrupt(err); msg != "" {
			fmt.Fprintln(env.err, "bzd:", msg)
		}
		return 130
	case errors.As(err, &wrong):
		fmt.Fprintf(env.err, "bzd %s: %s; bzd %[1]s --help says more\n", name, oneLine(err))
		return 2
	}
	fmt.Fprintf(env.err, "bzd %s: %s\n", name, oneLine(err))
	return 1
}

// oneLine is an error's text without line ends: several errors joined stand one after another.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

// resumable says how to go on after an interruption.
type resumable struct {
	error
	hint string
}

func (r resumable) Unwrap() error { return r.error }

// afterInterrupt says how to go on, or why that is not possible.
func afterInterrupt(err error) string {
	var r resumable
	switch {
	case !errors.As(err, &r):
		return ""
	case r.error.Error() != context.Canceled.Error():
		return "nothing is saved: " + oneLine(err)
	}
	return r.hint
}
