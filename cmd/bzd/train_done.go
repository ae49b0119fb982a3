package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// next is where a result waits until all results are there.
func next(path string) string { return path + ".next" }

// doneFile is what a training that is done leaves until its results are in place, so that it is not done again with the
// moments of its own end.
type doneFile struct {
	Run   string   // names the command
	Files []string // results that wait
	Says  string
}

func donePath(out string) string { return out + ".done" }

// finish puts the results of a training that was done in place. It returns nil if none was.
func finish(out string) (*doneFile, error) {
	raw, err := os.ReadFile(donePath(out))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var d doneFile
	if err == nil {
		err = json.Unmarshal(raw, &d)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", donePath(out), err)
	}
	for _, path := range d.Files {
		if err := os.Rename(next(path), path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return &d, nil
}

// runOf names a command by its flags, but for those that change no result, and the checkpoint it starts from.
func (c *common) runOf(from protocol.Link) string {
	h := sha256.New()
	fmt.Fprintln(h, from)
	c.set.VisitAll(func(f *flag.Flag) {
		switch f.Name {
		case "threads", "isa", "save-every", "checkpoint":
		default:
			fmt.Fprintf(h, "%s=%q\n", f.Name, f.Value)
		}
	})
	return hex.EncodeToString(h.Sum(nil))
}
