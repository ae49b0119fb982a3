package data

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// maxHTML bounds one page; its text is held in memory.
const maxHTML = 16 << 20

// htmlText turns a page into plain text: tags, comments, scripts, styles and
// the head go, entities are decoded, blocks are parted by an empty line, list
// items and table rows by a line end. Runs of white space become one line end
// if they hold one outside a table row, else one space; preformatted text
// keeps its own.
func htmlText(r io.Reader) ([]byte, error) {
	z := html.NewTokenizer(io.LimitReader(r, maxHTML+1))
	z.SetMaxBuf(maxHTML)
	w := &textWriter{}
	read, drop, pre := 0, 0, 0
	for {
		kind := z.Next()
		if read += len(z.Raw()); read > maxHTML {
			return nil, fmt.Errorf("%w: a page of more than %d bytes", ErrTooLarge, maxHTML)
		}
		switch kind {
		case html.ErrorToken:
			if err := z.Err(); err != io.EOF {
				return nil, err
			}
			return w.done(), nil
		case html.TextToken:
			if drop > 0 {
				continue
			}
			if pre > 0 {
				w.verbatim(string(z.Text()))
			} else {
				w.words(string(z.Text()))
			}
		case html.StartTagToken, html.EndTagToken, html.SelfClosingTagToken:
			name, _ := z.TagName()
			step := 1
			if kind == html.EndTagToken {
				step = -1
			}
			switch a := atom.Lookup(name); layout[a] {
			case dropped:
				if kind != html.SelfClosingTagToken {
					drop = max(drop+step, 0)
				}
			case preformatted:
				w.gap(2)
				pre = max(pre+step, 0)
			case block:
				w.gap(2)
				if a == atom.Table {
					w.row = false
				}
				if a == atom.Body {
					drop = 0 // the end tag of the head may be left out
				}
			case line:
				w.gap(1)
				if a == atom.Tr {
					w.row = step > 0
				}
			case cell:
				if kind == html.StartTagToken {
					w.space()
				}
			}
		}
	}
}

type role uint8

const (
	inline role = iota
	dropped
	preformatted
	block
	line
	cell
)

var layout = map[atom.Atom]role{
	atom.Head: dropped, atom.Script: dropped, atom.Style: dropped, atom.Template: dropped,
	atom.Noscript: dropped, atom.Svg: dropped, atom.Textarea: dropped, atom.Title: dropped,
	atom.Pre: preformatted,
	atom.P:   block, atom.Div: block, atom.H1: block, atom.H2: block, atom.H3: block, atom.H4: block,
	atom.H5: block, atom.H6: block, atom.Ul: block, atom.Ol: block, atom.Dl: block, atom.Table: block,
	atom.Blockquote: block, atom.Section: block, atom.Article: block, atom.Hr: block, atom.Body: block,
	atom.Li: line, atom.Dt: line, atom.Dd: line, atom.Tr: line, atom.Br: line,
	atom.Td: cell, atom.Th: cell,
}

// textWriter lays out text: white space is held back until a word follows.
type textWriter struct {
	out   bytes.Buffer
	lines int  // line ends due before the next text
	blank bool // a space is due before the next text
	row   bool // in a table row, where a line end is a space
}

func (w *textWriter) gap(lines int) {
	w.lines, w.blank = max(w.lines, lines), false
}

func (w *textWriter) space() { w.blank = w.lines == 0 }

func (w *textWriter) flush() {
	switch {
	case w.out.Len() == 0:
	case w.lines > 0:
		for range w.lines {
			w.out.WriteByte('\n')
		}
	case w.blank:
		w.out.WriteByte(' ')
	}
	w.lines, w.blank = 0, false
}

const htmlSpace = " \t\n\r\f"

func (w *textWriter) words(s string) {
	for s != "" {
		i := strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(htmlSpace, r) })
		if i < 0 {
			i = len(s)
		}
		if i > 0 {
			if !w.row && strings.Contains(s[:i], "\n") {
				w.gap(1)
			} else {
				w.space()
			}
			s = s[i:]
			continue
		}
		if i = strings.IndexAny(s, htmlSpace); i < 0 {
			i = len(s)
		}
		w.flush()
		w.out.WriteString(s[:i])
		s = s[i:]
	}
}

// verbatim keeps white space.
func (w *textWriter) verbatim(s string) {
	for i, l := range strings.Split(s, "\n") {
		if i > 0 {
			w.lines++
			w.blank = false
		}
		if l != "" {
			w.flush()
			w.out.WriteString(l)
		}
	}
}

// done returns the text, each line ended and without white space at its end,
// several empty lines made one.
func (w *textWriter) done() []byte {
	var out []byte
	empty := true
	for l := range bytes.SplitSeq(w.out.Bytes(), []byte("\n")) {
		l = bytes.TrimRight(l, htmlSpace)
		if len(l) == 0 {
			empty = true
			continue
		}
		if empty && len(out) > 0 {
			out = append(out, '\n')
		}
		out = append(append(out, l...), '\n')
		empty = false
	}
	return out
}
