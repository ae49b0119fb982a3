// Package blockstore keeps blocks on disk: a boxo Blockstore written directly on badger, with a file for each block of
// 64 KiB or more.
//
// [Open] gives a [Store]. Its keys are multihashes, so one block is kept once whatever codec a CID names it by. Nothing
// gets in that is not what its CID says, and with [Options].VerifyReads nothing comes out: a block that the disk lost or
// changed is deleted and reported as not found ([ErrCorrupt]), so that the next fetch brings it back.
//
// Many stores can be open in one process, each with a few MiB of heap; only small blocks stay mapped. Nothing runs by
// itself: whoever writes also tidies up, and the caller decides when to reclaim the space of deleted blocks ([Store.GC])
// and when blocks must have reached the disk ([Store.Sync]).
//
// The package must not import another domain, and of this one it needs nothing. Package blockstoretest is the suite that
// every block store here has to pass.
package blockstore
