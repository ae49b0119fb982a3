package data

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHTMLText(t *testing.T) {
	page, err := os.Open(filepath.Join("testdata", "page.html"))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	want, err := os.ReadFile(filepath.Join("testdata", "page.txt"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := htmlText(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestHTMLTextOddPages(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "",
		"<p></p>":                              "",
		"plain":                                "plain\n",
		"<head><title>x</title><body>a":        "a\n",
		"a<script>if (a<b) {}</script>b":       "ab\n",
		"</pre></head></p>a":                   "a\n",
		"<pre>\n  a\n\n\n\tb  \n</pre>c":       "  a\n\n\tb\n\nc\n",
		"a <b>b</b>\n <i>c</i>":                "a b\nc\n",
		"a<br>b<br/>c":                         "a\nb\nc\n",
		"&lt;p&gt; &amp;c. &hellip;":           "<p> &c. …\n",
		"<!-- a --><p>b<!-- c --></p>":         "b\n",
		"<script>never closed <p>a</p>":        "",
		strings.Repeat("<div>", 5000) + "deep": "deep\n",
	} {
		got, err := htmlText(strings.NewReader(in))
		if err != nil || string(got) != want {
			t.Errorf("%.60q: %q, %v, want %q", in, got, err, want)
		}
	}
	if _, err := htmlText(strings.NewReader(strings.Repeat("<p>a</p>", maxHTML/8+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a page over the bound: %v", err)
	}
}

func FuzzHTMLText(f *testing.F) {
	f.Add([]byte("<p>a<pre> b\n</pre><script>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := htmlText(bytes.NewReader(b))
		if err == nil && len(out) > 0 && out[len(out)-1] != '\n' {
			t.Fatalf("%q does not end a line", out)
		}
	})
}
