package local

import (
	"context"
	"runtime/pprof"
)

// Label is the label of CPU profiles that says what work a sample belongs to: [Training] or [Evaluation]. Protocol work
// has none. Goroutines inherit it from the one that starts them.
const Label = "work"

// Values of Label.
const (
	Training   = "train"    // Train
	Evaluation = "evaluate" // Score, NewSearch, Measure, Probe, Plan: drawing samples, composing what is measured, forward passes
)

// labelled runs f as that work.
func labelled[T any](ctx context.Context, work string, f func(context.Context) (T, error)) (out T, err error) {
	pprof.Do(ctx, pprof.Labels(Label, work), func(ctx context.Context) { out, err = f(ctx) })
	return out, err
}
