package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/blockzero-net/bzd/internal/protocol"
)

const paramsHelp = `Usage: bzd params check [flags] [FILE]

  check    say whether every phase of a cycle fits, and what to change if not`

// paramsDocument is what params check reads and writes: a network's parameters, and what it asks of them.
type paramsDocument struct {
	Params protocol.Params
	Load   protocol.Load
}

func paramsCheck(_ context.Context, env environment, args []string) error {
	c := newFlags(env, "params check", `Usage: bzd params check [flags] [FILE]

Computes, without any network, whether every phase of a cycle fits with margin: from the parameters of a genesis and the
load that is expected of it. FILE is a genesis.cbor, or JSON as --json prints it: {"params": {...}, "load": {...}}, of which
any part may be left out. Exit code 1 if a phase does not fit.`)
	production := c.set.Bool("production", false, "the parameters and the load of a real network; this is the default")
	demo := c.set.Bool("demo", false, "those of bzd devnet")
	asJSON := c.set.Bool("json", false, "print one JSON object")
	var changes list
	c.set.Var(&changes, "set", "`NAME=VALUE`: a change, as load.validators=128, params.schedule.rounds=3, load.stakes=[60,30,10]; repeatable")
	if err := c.parse(args, true); err != nil {
		return err
	}
	if c.set.NArg() > 1 || *production && *demo {
		return usageError("one FILE, and --production or --demo")
	}
	d := paramsDocument{protocol.ProductionParams(), protocol.ProductionLoad()}
	if *demo {
		d = paramsDocument{protocol.DemoParams(), protocol.DemoLoad()}
	}
	if file := c.set.Arg(0); file != "" {
		if err := d.read(file); err != nil {
			return err
		}
	}
	for _, change := range changes {
		if err := d.change(change); err != nil {
			return usageError("--set %s: %v", change, err)
		}
	}
	fit, err := protocol.Feasible(d.Params, d.Load)
	if err != nil {
		return err
	}
	if *asJSON {
		if err := d.print(env.out, fit); err != nil {
			return err
		}
	} else {
		printFit(env.out, d, fit)
	}
	return misfit(fit)
}

// misfit is the error of parameters that do not fit: what to change.
func misfit(fit protocol.Feasibility) error {
	if fit.Fits {
		return nil
	}
	var what []string
	for i, f := range fit.Phases {
		later := slices.ContainsFunc(fit.Phases[i+1:], func(g protocol.Fit) bool { return g.Parameter == f.Parameter })
		if f.From != f.To && !later {
			what = append(what, fmt.Sprintf("%s from %d to %d", f.Parameter, f.From, f.To))
		}
	}
	return fmt.Errorf("not every phase fits: raise %s, or lower the load", strings.Join(what, ", "))
}

func printFit(out io.Writer, d paramsDocument, fit protocol.Feasibility) {
	l := d.Load
	fmt.Fprintf(out, "%d validators, %d miners, %d groups; beacon rounds of %s, δ %d ms, R %d\n\n",
		l.Validators, l.Miners, l.Groups, span(uint64(l.PeriodMillis)), d.Params.Schedule.DeltaMillis, d.Params.Schedule.Rounds)
	w := table(out)
	fmt.Fprintln(w, "phase\thas\tneeds\tfits\tfor")
	for _, f := range fit.Phases {
		says := "yes"
		if !f.Fits {
			says = "NO"
		}
		if f.From != f.To {
			says += fmt.Sprintf(": %s %d → %d", f.Parameter, f.From, f.To)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", f.Phase, span(f.Have), span(f.Need), says, f.Needs)
	}
	w.Flush()
	fmt.Fprintf(out, "\na margin of %d.%d%% is asked of all but the last two; with %d.%d%% of the stake faulty,"+
		" at most %s of the instances have no certificate\n",
		l.MarginPermille/10, l.MarginPermille%10, l.FaultyPermille/10, l.FaultyPermille%10, ppm(fit.NoCertificate))
	for _, warning := range fit.Warnings {
		fmt.Fprintf(out, "warning: %s\n", warning)
	}
}

// span is a time in milliseconds as people read it.
func span(millis uint64) string {
	if millis > 1<<40 {
		return "for ever"
	}
	d := time.Duration(millis) * time.Millisecond
	if d > time.Minute {
		d = d.Round(time.Second)
	}
	return d.String()
}

func ppm(millionths uint64) string {
	return fmt.Sprintf("%d.%02d%%", millionths/10_000, millionths/100%100)
}

// read takes what a file says over what d says.
func (d *paramsDocument) read(file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if g, err := protocol.DecodeGenesis(raw); err == nil {
		d.Params, d.Load.Groups = g.Params, uint32(len(g.Groups))
		return nil
	} else if !json.Valid(raw) {
		return fmt.Errorf("%s is neither JSON nor a genesis: %w", file, err)
	}
	var in struct {
		Params, Load map[string]any
	}
	if err := numbers(raw, &in); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	parts := map[string]any{}
	for name, part := range map[string]map[string]any{"params": in.Params, "load": in.Load} {
		if part != nil {
			parts[name] = part
		}
	}
	if err := d.merge(parts); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// change takes one NAME=VALUE.
func (d *paramsDocument) change(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("want NAME=VALUE")
	}
	var v any
	if err := numbers([]byte(value), &v); err != nil {
		return fmt.Errorf("%q is not a number or a list", value)
	}
	words := strings.Split(name, ".")
	for i := len(words) - 1; i >= 0; i-- {
		v = map[string]any{words[i]: v}
	}
	return d.merge(v.(map[string]any))
}

// merge takes what is set in a document. Names are those of the records; what nothing is called is an error.
func (d *paramsDocument) merge(in map[string]any) error {
	merged, err := d.generic()
	if err != nil {
		return err
	}
	if err := overlay(merged, in); err != nil {
		return err
	}
	load, err := json.Marshal(merged["load"])
	if err != nil {
		return err
	}
	var read paramsDocument
	if err := json.Unmarshal(load, &read.Load); err != nil {
		return err
	}
	raw, err := cbor.Marshal(integers(merged["params"]))
	if err != nil {
		return err
	}
	if err := cbor.Unmarshal(raw, &read.Params); err != nil {
		return fmt.Errorf("params are whole numbers: %w", err)
	}
	*d = read
	return nil
}

// generic is the document as JSON has it: params by the names of the wire.
func (d *paramsDocument) generic() (map[string]any, error) {
	params, err := named(d.Params)
	if err != nil {
		return nil, err
	}
	load, err := json.Marshal(d.Load)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"params": params}
	var l any
	err = numbers(load, &l)
	out["load"] = l
	return out, err
}

// named is a record as maps with the names of its encoding.
func named(record any) (out map[string]any, err error) {
	raw, err := cbor.Marshal(record)
	if err != nil {
		return nil, err
	}
	mode, err := cbor.DecOptions{DefaultMapType: reflect.TypeFor[map[string]any]()}.DecMode()
	if err != nil {
		return nil, err
	}
	return out, mode.Unmarshal(raw, &out)
}

func (d *paramsDocument) print(out io.Writer, fit protocol.Feasibility) error {
	doc, err := d.generic()
	if err != nil {
		return err
	}
	proposed, err := named(fit.Schedule)
	if err != nil {
		return err
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Params any `json:"params"`
		Load   any `json:"load"`
		protocol.Feasibility
		Schedule any `json:"schedule"` // the one proposed
	}{doc["params"], doc["load"], fit, proposed})
}

// overlay sets in dst what src sets.
func overlay(dst, src map[string]any) error {
	for k, v := range src {
		inner, ok := v.(map[string]any)
		there, known := dst[k]
		have, also := there.(map[string]any)
		switch {
		case !known:
			return fmt.Errorf("nothing is called %q", k)
		case ok && also:
			if err := overlay(have, inner); err != nil {
				return err
			}
		case ok != also:
			return fmt.Errorf("%q is a value where parts are expected, or the other way round", k)
		default:
			dst[k] = v
		}
	}
	return nil
}

// numbers decodes JSON and keeps numbers exact.
func numbers(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}

// integers turns JSON's numbers into those of CBOR; what is no integer stays what no integer field takes.
func integers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		return v.String()
	case map[string]any:
		for k, x := range v {
			v[k] = integers(x)
		}
	case []any:
		for i, x := range v {
			v[i] = integers(x)
		}
	}
	return v
}
