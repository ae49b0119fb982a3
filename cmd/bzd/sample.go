package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"unicode/utf8"

	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

func sample(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "sample", `Usage: bzd sample --prompt TEXT [--checkpoint DIR] [flags]

Continues a prompt, the most probable token at a time, or at random with --temperature.`).compute()
	from := c.set.String("checkpoint", "", "checkpoint directory; empty means the genesis of the network in $BZD_DIR or the user's cache")
	prompt := c.set.String("prompt", "", "text to continue")
	n := c.set.Int("n", 200, "tokens to add")
	temperature := c.set.Float64("temperature", 0, "0 takes the most probable token; higher is more random")
	seed := c.set.Uint64("seed", 1, "seed of the random choice")
	if err := c.parse(args, false); err != nil {
		return err
	}
	if err := c.require("prompt"); err != nil {
		return err
	}
	if *n < 1 {
		return usageError("--n %d: at least 1", *n)
	}
	if !(*temperature >= 0 && *temperature <= math.MaxFloat32) {
		return usageError("--temperature %v: a number from 0 up", *temperature)
	}
	b, err := c.backend(c.workers())
	if err != nil {
		return err
	}
	if *from == "" {
		dir, err := c.networkDir()
		if err != nil {
			return err
		}
		*from = filepath.Join(dir, genesisDir)
	}
	p, err := local.LoadPhi(b, *from)
	if err != nil {
		return err
	}
	fmt.Fprint(env.out, *prompt)
	ids := p.Tokens.Prompt([]byte(*prompt))
	before, err := p.Tokens.Decode(ids)
	if err != nil {
		return err
	}
	written := len(before)
	err = p.Model.Generate(ctx, ids, *n, *temperature, *seed, func(id int32) error {
		text, err := p.Tokens.Decode(append(ids, id)) // whole: a token's text may depend on those before it
		switch {
		case errors.Is(err, tokenizer.ErrToken):
			return nil // a row of the embedding that stands for nothing
		case err != nil:
			return err
		}
		ids = append(ids, id)
		if written >= len(text) || !utf8.FullRune(text[written:]) {
			return nil // a character that is not whole yet
		}
		_, err = env.out.Write(text[written:])
		written = len(text)
		return err
	})
	fmt.Fprintln(env.out)
	return err
}
