package data

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// solve recomputes the answer of one exercise from its question.
func solve(line string) error {
	bad := fmt.Errorf("wrong: %q", line)
	f := strings.Fields(line)
	ints := func(f []string) []int {
		var out []int
		for _, s := range f {
			n, err := strconv.Atoi(s)
			if err != nil || strconv.Itoa(n) != s {
				return nil
			}
			out = append(out, n)
		}
		return out
	}
	check := func(ok bool) error {
		if !ok {
			return bad
		}
		return nil
	}
	series := func(n []int, want int, next func(i int) int) error {
		if len(n) != want {
			return bad
		}
		for i := 1; i < len(n); i++ {
			if n[i] != next(i) {
				return bad
			}
		}
		return nil
	}
	switch f[0] {
	case "add":
		step, n := ints([]string{strings.TrimSuffix(f[1], ":")}), ints(f[2:])
		return series(n, 6, func(i int) int { return n[i-1] + step[0] })
	case "times":
		ratio, n := ints([]string{strings.TrimSuffix(f[1], ":")}), ints(f[2:])
		return series(n, 5, func(i int) int { return n[i-1] * ratio[0] })
	case "count:":
		n := ints(f[1:])
		return series(n, 8, func(i int) int { return n[i-1] + 1 })
	case "fib:":
		n := ints(f[1:])
		return series(n, 7, func(i int) int {
			if i == 1 {
				return n[1]
			}
			return n[i-1] + n[i-2]
		})
	case "sort", "max":
		eq := slices.Index(f, "=")
		if eq < 4 {
			return bad
		}
		n, got := ints(f[1:eq]), ints(f[eq+1:])
		if f[0] == "max" {
			return check(len(got) == 1 && got[0] == slices.Max(n))
		}
		return check(slices.Equal(slices.Sorted(slices.Values(n)), got))
	}
	var a, b, c, d int
	sign := f[1]
	if strings.HasSuffix(f[0], "x") {
		if _, err := fmt.Sscanf(line, "%dx + %d = %d, x = %d", &a, &b, &c, &d); err != nil {
			return bad
		}
		return check(a*d+b == c)
	}
	switch sign {
	case "<", ">", "=":
		n := ints([]string{f[0], f[2]})
		return check(len(f) == 3 && n != nil && (sign == "<") == (n[0] < n[1]) && (sign == ">") == (n[0] > n[1]))
	case "/":
		if _, err := fmt.Sscanf(line, "%d / %d = %d r %d", &a, &b, &c, &d); err != nil {
			return bad
		}
		return check(c == a/b && d == a%b)
	}
	n := ints([]string{f[0], f[2], f[4]})
	if len(f) != 5 || n == nil || f[3] != "=" {
		return bad
	}
	want := map[string]int{"+": n[0] + n[1], "-": n[0] - n[1], "*": n[0] * n[1]}
	got, known := want[sign]
	return check(known && got == n[2] && got >= 0)
}

func TestMathAnswersAreCorrect(t *testing.T) {
	d := readVectors(t).maths
	kinds := map[string]int{}
	lines, shortest, longest := 0, MaxPiece, 0
	for i := range uint64(300) {
		p := d.gen.piece(i * 7919)
		if !strings.HasSuffix(string(p.text), "\n") {
			t.Fatalf("piece %d does not end with a line", i)
		}
		shortest, longest = min(shortest, len(p.text)), max(longest, len(p.text))
		for l := range strings.Lines(string(p.text)) {
			l = strings.TrimSuffix(l, "\n")
			if err := solve(l); err != nil {
				t.Fatal(err)
			}
			if f := strings.Fields(l); f[0][0] >= 'a' {
				kinds[f[0]]++
			} else {
				kinds[f[1]]++
			}
			lines++
			for _, c := range []byte(l) {
				if c < ' ' || c > '~' {
					t.Fatalf("%q is not plain ASCII", l)
				}
			}
		}
	}
	if shortest < mathMinPiece || longest > 2048 {
		t.Errorf("pieces of %d to %d bytes, want %d to 2048", shortest, longest, mathMinPiece)
	}
	for _, k := range []string{"+", "-", "*", "/", "<", ">", "=", "add", "times", "fib:", "sort", "count:", "max"} {
		if kinds[k] == 0 {
			t.Errorf("no exercise of kind %q in %d lines", k, lines)
		}
	}
	t.Logf("%d lines: %v", lines, kinds)
}

func TestSolveFindsWrongAnswers(t *testing.T) {
	for _, l := range []string{
		"1 + 2 = 4", "3 - 1 = 1", "2 * 2 = 5", "7 / 2 = 3 r 2", "1 > 2", "2 = 1", "2x + 1 = 5, x = 3",
		"add 2: 1 3 5 7 9 12", "times 2: 1 2 4 8 15", "fib: 1 1 2 3 5 8 12", "sort 3 1 2 = 1 3 2",
		"count: 1 2 3 4 5 6 7 9", "max 1 2 3 = 2", "1 ? 2 = 3",
	} {
		if solve(l) == nil {
			t.Errorf("%q passes", l)
		}
	}
}

func TestMathPoolsAreDisjoint(t *testing.T) {
	d := readVectors(t).maths
	o, err := d.TrainOrder([32]byte{3}, 129)
	if err != nil {
		t.Fatal(err)
	}
	pieces := map[int64]bool{}
	for i := range int64(400) {
		x := o.At(i * 1_000_003)
		if PoolOf(x.Document, d.HeldOutPermille()) != Train {
			t.Fatalf("order at %d is held out", i)
		}
		if pieces[x.Piece] {
			t.Fatalf("order at %d: piece %d again", i, x.Piece)
		}
		pieces[x.Piece] = true
	}
	held, err := d.Draw([32]byte{3}, 100, 129, nil)
	if err != nil {
		t.Fatal(err)
	}
	used := Set{}
	used.Add(held...)
	if len(used) != 100 {
		t.Errorf("%d distinct samples of 100", len(used))
	}
	for i, x := range held {
		if PoolOf(x.Document, d.HeldOutPermille()) != HeldOut {
			t.Errorf("draw %d is in the train pool", i)
		}
		if got, p, err := d.Sample(x.Piece, x.Offset, 129); err != nil || p != HeldOut || got.ID() != x.ID() {
			t.Errorf("draw %d looked up: %v, %v", i, p, err)
		}
	}
	next, err := d.Draw([32]byte{3}, 10, 129, used)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range next {
		if _, again := used[x.ID()]; again {
			t.Error("drew an excluded sample")
		}
	}
	heldPieces := 0
	const looked = 2000
	for i := range uint64(looked) {
		if PoolOf(d.gen.piece(i).hash, d.HeldOutPermille()) == HeldOut {
			heldPieces++
		}
	}
	if heldPieces < looked*7/100 || heldPieces > looked*13/100 {
		t.Errorf("%d of %d pieces are held out, want about 100 permille", heldPieces, looked)
	}
}
