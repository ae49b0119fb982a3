// Package content turns a miner's payload into sealed blocks and a manifest, and a manifest back into the payload.
//
// [Seal] cuts a payload into segments, one per leaf block, and encrypts each for itself under a key that comes from a
// 16-byte seed and the [Slot] it is for: network, cycle, base, group, miner. Ciphertext copied into another slot does
// not open there. [Build] does the same and makes the [protocol.Manifest], with the seed locked to a beacon round by a
// function it is given; [Sealed.Publish] puts everything into a store. After that round [Open] gives the payload back,
// and [OpenTensor] the bytes of one tensor from the segments that hold it. docs/spec/sealing.md is the exact format.
//
// Errors say whose fault they are: [ErrManifest] and [ErrSealed] the miner's, [ErrBlock] of whoever gave the block,
// [ErrUnavailable] nobody's. A [*SegmentError] names the segment.
//
// Blocks are kept by content/blockstore, moved by content/exchange, shown by content/gateway; directories of tensors are
// content/checkpoint's. This package does no I/O, knows neither the beacon nor codecs, draws no randomness and reads no
// clock. It must never import another domain.
package content
