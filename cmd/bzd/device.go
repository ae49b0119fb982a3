package main

import (
	"fmt"

	"github.com/blockzero-net/bzd/training/backend"
)

// device adds the flags that choose what computes.
func (c *common) device() *common {
	c.set.StringVar(&c.on, "backend", defaultBackend, "what computes: cpu, cuda (an NVIDIA card), or auto: cuda if there is such a card, else cpu")
	c.set.IntVar(&c.card, "device", 0, "number of the card, as nvidia-smi -L lists them")
	return c
}

// hardware opens what the flags choose; threads are for the CPU, fast is for a card. The function, never nil, gives a card
// back.
func (c *common) hardware(threads int, fast bool) (backend.Backend, func() error, error) {
	none := func() error { return nil }
	switch c.on {
	case "cpu", "":
		b, err := c.backend(threads)
		return b, none, err
	case "cuda", "auto":
		b, done, err := openCard(c.card, fast, c.limits)
		switch {
		case err == nil:
			return b, done, nil
		case c.on == "cuda":
			return nil, none, err
		}
		fmt.Fprintf(c.env.err, "bzd: computing on the CPU: %s\n", oneLine(err))
		host, err := c.backend(threads)
		return host, none, err
	}
	return nil, none, usageError("--backend %q: cpu, cuda or auto", c.on)
}
