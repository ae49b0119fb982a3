package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"
)

const usage = `bzd trains one mixture-of-experts language model together with others.

Usage: bzd COMMAND [flags]

The jobs of a cycle, on this machine:
  rehearse     several whole cycles: train, score, merge, again (make demo)
  train        train one expert group and write the update, a delta
  eval         score deltas by Proof-of-Loss on held-out text
  merge        merge scored deltas into the next checkpoint

Models and text:
  genesis      train the base model, plan a network, verify what is embedded
  checkpoint   show, import, export
  sample       continue a prompt
  data         list the domains on this machine

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
}

type command func(ctx context.Context, env environment, args []string) error

var commands = map[string]command{
	"rehearse":   rehearse,
	"train":      train,
	"eval":       eval,
	"merge":      mergeDeltas,
	"genesis":    genesis,
	"checkpoint": checkpoints,
	"sample":     sample,
	"data":       datasets,
	"version":    version,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second Ctrl-C ends the process at once
	}()
	env := environment{out: os.Stdout, err: os.Stderr, terminal: term.IsTerminal(int(os.Stderr.Fd())), getenv: os.Getenv, now: time.Now}
	os.Exit(run(ctx, env, os.Args[1:]))
}

// errUsage marks an error of the caller's words; the command has said what is wrong.
var errUsage = errors.New("usage")

func usageError(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errUsage}, a...)...)
}

// run executes one command and returns the exit code.
func run(ctx context.Context, env environment, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(env.err, usage)
		return 2
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		fmt.Fprint(env.out, usage)
		return 0
	}
	c, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(env.err, "bzd: no command %q; bzd help lists them\n", args[0])
		return 2
	}
	err := c(ctx, env, args[1:])
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(env.err, "bzd: interrupted")
		if msg := afterInterrupt(err); msg != "" {
			fmt.Fprintln(env.err, "bzd:", msg)
		}
		return 130
	case errors.Is(err, errUsage):
		fmt.Fprintf(env.err, "bzd %s: %v\n", args[0], err)
		return 2
	}
	fmt.Fprintf(env.err, "bzd %s: %v\n", args[0], err)
	return 1
}

// resumable says how to go on after an interruption.
type resumable struct {
	error
	hint string
}

func (r resumable) Unwrap() error { return r.error }

func afterInterrupt(err error) string {
	var r resumable
	if errors.As(err, &r) {
		return r.hint
	}
	return ""
}
