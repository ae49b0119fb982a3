package local_test

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
)

// The transcripts below are a promise: every machine, instruction set, number of threads and version of Go computes
// these bits. A change of any line is another protocol, in which old and new nodes do not agree.

const goldenTiny = `base d790a1122178979b4f562f59d3ba7807a67e07c8504114315c6cd50cd2e986ae
checkpoint bafybeigunpzxx5vupmiw3vauw2roountwehpk2s6nztj4qkh2vmykkfxna
delta ledger 6272 779372b201d99afa4c78ba22288d7722bf4ae18e28bee53162caf2195fc15d99
delta ledger 6272 51cc3ea39496f9cab24857f6d6fac449cc3959dc4e55adace8c54cd74bea04a0
delta math 6272 ca99cbfd829dd11cffd6dd89cdda458f4abdf642c6e6304db4db453dc14db516
row 52432914 2671067 16 ok part 2196381374 weight 1098190687
row 50098301 2728438 16 ok part 2098585922 weight 1049292961
row 22234026 4576119 16 ok part 4294967296 weight 2147483648
scale 1/2 ledger -35487285 2210939 8
scale 1/2 math -18821207 4540070 8
scale 1/2 prose -662733 601959 8
scale 1 ledger -68798298 4191240 8
scale 1 math -38446903 8447284 8
scale 1 prose -771600 700840 8
merged 1 bafybeihvy2bojjuu5qa3yb37bytocsei2uzebvqvkg362jodbiumopbcjy
probe map[ledger:5.73321047575 math:5.254910089875 prose:3.769733117125]
`

const goldenEmbedded = `checkpoint bafybeidjbz3ry5eh44zy32qsztdhlflcnfqfcon55o6asbjz4eykefg4lm
delta ledger 886272 8ab49486dc4d7d48f9dc553af9f915d231faa62457d5bd4302b5ba0635df6c6d
delta ledger 886272 ee457399b11ced85351e2f02551f5d2f039eeabae9918627f45113f076d89994
delta math 886272 86af9d88139d959e1d26b266bb0fcdf117b03d463fba42b651b4d7efb17bb76e
row 2000828547 41364957 16 ok part 2152688519 weight 1076344260
row 1991153153 41916061 16 ok part 2142278777 weight 1071139388
row 806259761 32054356 16 ok part 4294967296 weight 2147483648
scale 1/2 ledger -2082205224 82464740 8
scale 1/2 math -787192447 98203393 8
scale 1/2 prose -785868 611151 8
scale 1 ledger -2791453704 113775177 8
scale 1 math -925206726 115067219 8
scale 1 prose -565905 2447651 8
merged 1 bafybeibino7wmcqexlhlzoasiwbkjycewkewoogdq5o5vowt24t5h5t3iq
probe map[ledger:2.33314484875 math:2.390487920125 prose:2.16024796975]
`

// transcript runs a whole cycle on base with three miners and writes down everything that others must agree on. The
// genesis document comes back beside it: its own encoding is a promise of package protocol.
func transcript(t *testing.T, b *cpu.Backend, base *model.Model, sets []*data.Dataset, workers int) (text, document string) {
	var s strings.Builder
	dir := t.TempDir()
	w := newWorld(t, b, base, sets, filepath.Join(dir, "genesis"))
	genesis, err := protocol.Encode(w.n.Genesis)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&s, "checkpoint %s\n", w.p.Link)

	var subs []local.Submission
	for i, o := range []local.TrainOptions{brief(ledger, "one"), brief(ledger, "two"), brief(maths, "three")} {
		d := w.train(t, o)
		subs = append(subs, submission(byte(i+1), d))
		fmt.Fprintf(&s, "delta %s %d %x\n", o.Group, len(payload(t, d)), sha256.Sum256(payload(t, d)))
	}
	beacons := local.Beacons("golden", 3)
	judged, err := w.n.Judge(t.Context(), w.p, 3, beacons, subs, workers)
	if err != nil {
		t.Fatal(err)
	}
	var in []local.Accepted
	for i, j := range judged {
		fmt.Fprintf(&s, "row %d %d %d %s part %d weight %d\n", j.Row.Gain, j.Row.StdErr, j.Row.N, j.Status, j.Part, j.Weight)
		in = append(in, accepted(byte(i+1), subs[i].Delta, j.Part))
	}
	m, err := w.n.Merge(t.Context(), w.p, 3, beacons, in, filepath.Join(dir, "next"), workers)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.Measure.Rows {
		fmt.Fprintf(&s, "scale %s %s %d %d %d\n", w.n.Genesis.Params.AlphaGrid[r.Alpha], r.Domain, r.Change, r.StdErr, r.N)
	}
	fmt.Fprintf(&s, "merged %s %s\n", m.Alpha, m.Next)
	after, err := local.LoadPhi(b, filepath.Join(dir, "next"))
	if err != nil {
		t.Fatal(err)
	}
	probe, err := w.n.Probe(t.Context(), after, workers)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&s, "probe %v\n", probe)
	return s.String(), string(genesis)
}

// variants runs f for instruction sets and threads, the datasets in another order each time.
func variants(t *testing.T, isas []cpu.ISA, f func(t *testing.T, b *cpu.Backend, sets []*data.Dataset, workers int)) {
	if testing.Short() { // the race detector makes the scalar kernels ten times slower
		isas = fast(isas)
	}
	sets := datasets(t)
	for _, isa := range isas {
		for threads := 1; threads <= 2; threads++ {
			t.Run(fmt.Sprintf("%s×%d", isa, threads), func(t *testing.T) {
				f(t, newBackend(t, cpu.Options{ISA: isa, Threads: threads}), slices.Clone(sets), 3-threads)
			})
			sets = append(sets[1:], sets[0])
		}
	}
}

// fast leaves out the scalar kernels where there are others.
func fast(isas []cpu.ISA) []cpu.ISA {
	if len(isas) == 1 {
		return isas
	}
	return slices.DeleteFunc(slices.Clone(isas), func(i cpu.ISA) bool { return i == cpu.Scalar })
}

// same compares transcripts line by line.
func same(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Errorf("line %d: got %q, the promise is %q", i+1, g[i], w[i])
			break
		}
	}
	t.Errorf("whole transcript:\n%s", got)
}

func find(t *testing.T, sets []*data.Dataset, name string) *data.Dataset {
	t.Helper()
	i := slices.IndexFunc(sets, func(d *data.Dataset) bool { return d.Name() == name })
	if i < 0 {
		t.Fatalf("no dataset %s", name)
	}
	return sets[i]
}

// TestGoldenTiny trains a base, founds a network on it and runs a cycle, on every instruction set.
func TestGoldenTiny(t *testing.T) {
	genesis := ""
	variants(t, cpu.Available(), func(t *testing.T, b *cpu.Backend, sets []*data.Dataset, workers int) {
		base, file := tiny(t, b, find(t, sets, prose))
		text, document := transcript(t, b, base, sets, workers)
		same(t, fmt.Sprintf("base %x\n%s", sha256.Sum256(file), text), goldenTiny)
		genesis = cmp.Or(genesis, document)
		if document != genesis {
			t.Error("another genesis document")
		}
	})
}

// TestGoldenEmbedded is the same on the embedded base. The scalar kernels of a processor that has faster ones are left
// to TestGoldenProbe: they would take minutes.
func TestGoldenEmbedded(t *testing.T) {
	genesis := ""
	variants(t, fast(cpu.Available()), func(t *testing.T, b *cpu.Backend, sets []*data.Dataset, workers int) {
		text, document := transcript(t, b, embedded(t, b), sets, workers)
		same(t, text, goldenEmbedded)
		genesis = cmp.Or(genesis, document)
		if document != genesis {
			t.Error("another genesis document")
		}
	})
}

// goldenProbe is what the embedded base loses on the probe, in nats per byte.
const goldenProbe = `map[ledger:4.895253781 math:3.329281691 prose:2.060606387]`

// TestGoldenProbe measures a few sequences of the embedded base on every instruction set.
func TestGoldenProbe(t *testing.T) {
	w := shared(t)
	g := w.n.Genesis
	g.Params.ProbeSamples = 2
	n, err := local.NewNetwork(g, w.sets)
	if err != nil {
		t.Fatal(err)
	}
	variants(t, cpu.Available(), func(t *testing.T, b *cpu.Backend, _ []*data.Dataset, workers int) {
		probe, err := n.Probe(t.Context(), &local.Phi{Model: embedded(t, b)}, workers)
		if err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprint(probe), goldenProbe)
	})
}
