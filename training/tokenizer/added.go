package tokenizer

import "unicode/utf8"

// addedToken is a token that is found in the text before the model sees it.
type addedToken struct {
	id                         int32
	content                    string
	singleWord, lstrip, rstrip bool
	normalized, special        bool
}

// matcher finds added tokens in a text: the leftmost, of those the longest.
type matcher struct {
	nodes []trieNode
	first [256]bool
	added []addedToken
}

type trieNode struct {
	keys  []byte
	next  []int32
	token int32 // index into added, or -1
}

func (m *matcher) add(pattern []byte, a addedToken) (fresh bool) {
	if m.nodes == nil {
		m.nodes = []trieNode{{token: -1}}
	}
	m.first[pattern[0]] = true
	at := int32(0)
	for _, b := range pattern {
		to := m.nodes[at].to(b)
		if to < 0 {
			to = int32(len(m.nodes))
			m.nodes = append(m.nodes, trieNode{token: -1})
			m.nodes[at].keys = append(m.nodes[at].keys, b)
			m.nodes[at].next = append(m.nodes[at].next, to)
		}
		at = to
	}
	if m.nodes[at].token >= 0 {
		return false
	}
	m.nodes[at].token = int32(len(m.added))
	m.added = append(m.added, a)
	return true
}

func (n *trieNode) to(b byte) int32 {
	for i, k := range n.keys {
		if k == b {
			return n.next[i]
		}
	}
	return -1
}

// find returns the next token in text at or after i, nil if there is none.
func (m *matcher) find(text []byte, i int) (a *addedToken, start, end int) {
	for ; i < len(text); i++ {
		if !m.first[text[i]] {
			continue
		}
		at, best := int32(0), int32(-1)
		for j := i; j < len(text); j++ {
			if at = m.nodes[at].to(text[j]); at < 0 {
				break
			}
			if k := m.nodes[at].token; k >= 0 {
				best, end = k, j+1
			}
		}
		if best >= 0 {
			return &m.added[best], i, end
		}
	}
	return nil, 0, 0
}

// split calls text with every stretch without added tokens, which may be
// empty, and where it begins, and token with every added token, in order.
func (m *matcher) split(u *tables, s []byte, text func(piece []byte, at int), token func(id int32)) {
	if m.nodes == nil {
		text(s, 0)
		return
	}
	done := 0
	for from := 0; ; {
		a, start, end := m.find(s, from)
		if a == nil {
			break
		}
		from = end
		if a.singleWord && (endsInWord(u, s[:start]) || beginsWithWord(u, s[end:])) {
			continue
		}
		if a.lstrip {
			for start > 0 {
				r, n := utf8.DecodeLastRune(s[:start])
				if u.ofRune(r)&space == 0 {
					break
				}
				start -= n
			}
			start = max(start, done)
		}
		if a.rstrip {
			end = u.run(s, end, space, space, unlimited)
		}
		if done < start {
			text(s[done:start], done)
		}
		token(a.id)
		done = end
	}
	if done < len(s) {
		text(s[done:], done)
	}
}

func endsInWord(u *tables, s []byte) bool {
	r, n := utf8.DecodeLastRune(s)
	return n > 0 && u.ofRune(r)&word != 0
}

func beginsWithWord(u *tables, s []byte) bool {
	r, n := utf8.DecodeRune(s)
	return n > 0 && u.ofRune(r)&word != 0
}
