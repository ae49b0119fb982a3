package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/blockzero-net/bzd/training/cpu"
)

func version(_ context.Context, env environment, args []string) error {
	c := newFlags(env, "version", "Usage: bzd version")
	if err := c.parse(args, false); err != nil {
		return err
	}
	v, revision := "(devel)", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	fmt.Fprintf(env.out, "bzd %s\nrevision  %s\nplatform  %s/%s %s\nbackends  cpu, instruction sets %v\n",
		v, revision, runtime.GOOS, runtime.GOARCH, runtime.Version(), cpu.Available())
	for _, line := range cards() {
		fmt.Fprintf(env.out, "          cuda, %s\n", line)
	}
	return nil
}
