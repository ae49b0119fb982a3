// Package wire makes the messages of the agreement small on their way between validators. What one cycle's messages have in
// common, ids, names of fields, the network, is a dictionary that both sides make from the snapshot; DEFLATE does the rest.
// A table of scores becomes a quarter, a list a half, a vote three fifths.
//
// A [Codec] packs and unpacks. Records, digests and signatures are those of what is inside: packing is between two peers and
// may differ from one to the next. So whoever drops what it has seen before must look inside: the same message has many
// packings.
//
// The package imports consensus and internal/protocol.
package wire
