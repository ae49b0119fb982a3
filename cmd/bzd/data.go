package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/blockzero-net/bzd/training/data"
)

func datasets(_ context.Context, env environment, args []string) error {
	c := newFlags(env, "data", `Usage: bzd data [flags]

Lists the domains whose text is on this machine: pools are split by the hash of each document.`).text()
	window := c.set.Int("window", 129, "bytes of a sample")
	if err := c.parse(args, false); err != nil {
		return err
	}
	if *window < data.MinWindow || *window > data.MaxPiece {
		return usageError("--window %d: %d to %d", *window, data.MinWindow, data.MaxPiece)
	}
	sets, err := c.datasets(nil)
	if err != nil {
		return err
	}
	return listDatasets(env, sets, *window)
}

func listDatasets(env environment, sets []*data.Dataset, window int) error {
	count := func(n int64) string {
		if n < 0 {
			return "endless"
		}
		return strconv.FormatInt(n, 10)
	}
	w := table(env.out)
	fmt.Fprintln(w, "domain\ttrain bytes\ttrain samples\theld-out bytes\theld-out samples\tdataset\t")
	for _, d := range sets {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", d.Name(), count(d.Bytes(data.Train)), count(d.Windows(data.Train, window)),
			count(d.Bytes(data.HeldOut)), count(d.Windows(data.HeldOut, window)), d.CID())
	}
	return w.Flush()
}
