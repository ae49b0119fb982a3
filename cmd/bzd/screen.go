package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// screen keeps some lines at the bottom of a terminal up to date, below what is printed for good. It changes no mode of
// the terminal and hides nothing, so whatever ends the process, there is nothing to restore; Clear takes the lines away.
// Every change is one write. Methods may not be called concurrently.
type screen struct {
	out   io.Writer
	size  func() (width, height int) // of the terminal, now
	drawn []int                      // columns of the lines that stand there
}

// Draw replaces the lines. What does not fit the terminal is cut: columns at the right, lines at the end.
func (s *screen) Draw(lines []string) {
	var b bytes.Buffer
	s.erase(&b)
	width, height := s.size()
	if most := max(1, height-1); len(lines) > most {
		lines = lines[:most]
	}
	for _, l := range lines {
		l = clip(l, width-1) // a full line may wrap
		s.drawn = append(s.drawn, utf8.RuneCountInString(l))
		b.WriteString(l)
		b.WriteByte('\n')
	}
	s.out.Write(b.Bytes())
}

// Clear takes the lines away, before something is printed for good and at the end.
func (s *screen) Clear() {
	if len(s.drawn) > 0 {
		var b bytes.Buffer
		s.erase(&b)
		s.out.Write(b.Bytes())
	}
}

// erase goes back to the first line and clears everything below. A terminal that became narrower has wrapped the lines.
func (s *screen) erase(b *bytes.Buffer) {
	width, _ := s.size()
	rows := 0
	for _, n := range s.drawn {
		rows += 1 + max(0, n-1)/max(1, width)
	}
	b.WriteByte('\r')
	if rows > 0 {
		fmt.Fprintf(b, "\x1b[%dA", rows)
	}
	b.WriteString("\x1b[J")
	s.drawn = s.drawn[:0]
}

// clip cuts a line to so many columns and drops control characters, which text from elsewhere might hold.
func clip(s string, width int) string {
	n := 0
	return strings.Map(func(r rune) rune {
		if n++; n > width || r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// bar is a bar of so many columns. Without a total it only shows that something goes on: a mark that wanders with tick.
func bar(done, total, width, tick int) string {
	if total <= 0 {
		at := tick % width
		return strings.Repeat("░", at) + "█" + strings.Repeat("░", width-at-1)
	}
	full := min(max(width*done/total, 0), width)
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}
