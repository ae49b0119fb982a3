// Package wire makes the messages of the agreement small on their way between validators. A [Codec] leaves out what
// both sides know of a cycle: its network and number, the names of fields, and the ids of the snapshot, of which the
// number is sent. A table of scores becomes a ninth, a list of known manifests a fourteenth, a vote half;
// docs/spec/wire.md has every byte.
//
// Records, digests and signatures are those of what is inside. A message has one packing under a codec and a codec
// packs the messages of one cycle only, so the bytes of a packing name a message as well as its own do.
//
// The package imports consensus and internal/protocol.
package wire
