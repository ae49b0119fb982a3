// Package blockstore keeps blocks on disk: a boxo Blockstore written directly on badger, with a file for each block of
// 256 KiB or more. BenchmarkLayout measures what that rests on.
//
// [Open] gives a [Store]. Its keys are multihashes, so one block is kept once whatever codec a CID names it by. Nothing
// gets in that is not what its CID says, and with [Options].VerifyReads nothing comes out but by [Store.Read], which looks at
// checksums only: a block that the disk lost or changed is deleted and reported as not found ([ErrCorrupt]), so that the next
// fetch brings it back.
//
// What must stay is pinned by its owners ([Store.Pin]) or, while work is under way, held ([Store.Hold]); [Store.Collect]
// deletes the rest, beside puts and fetches. A pin is durable when Pin returns, and so is what was stored before it: a node
// pins, or calls [Store.Sync], before it promises anybody to have a block. A full disk or quota is first answered by
// collecting, then by giving up spare pins, then by an error. [Store.Verify] tells whether all of that has held.
//
// Many stores can be open in one process, each with a few MiB of heap; only small blocks stay mapped. Nothing runs by
// itself: whoever writes also tidies up, and the caller decides when to reclaim the space of deleted blocks ([Store.GC])
// and when blocks must have reached the disk ([Store.Sync]).
//
// The package must not import another domain, and of this one it needs nothing. Package blockstoretest is the suite that
// every block store here has to pass.
package blockstore
