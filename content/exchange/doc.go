// Package exchange moves blocks between peers, and knows what the things made of blocks look like.
//
// An [Exchange] serves a block store to the peers of a libp2p host and fetches into it: single blocks ([Exchange.Fetch]),
// checkpoints ([Exchange.FetchDAG]) and datasets ([Exchange.FetchDataset]). What is in the store does not move again, so
// a checkpoint that differs from the last in one expert group costs that group. Every fetch has [Bounds] and tells what
// moved ([Progress]); it ends with its context, for no peer owes anybody an answer. Nothing reaches the store but blocks
// that were asked for and have their CID's hash.
//
// Blocks are asked for in two ways. Many at once, by the list that a record or a node of a DAG has, go over the bulk
// protocol of docs/spec/blocks.md: one request and one answer for up to a thousand, disjoint parts from several peers. What
// no peer has yet, and what peers have that do not speak it, goes over bitswap, which tells all peers what is wanted and
// waits.
//
// Peers that lie are shunned until they disconnect, peers that fall behind are left for others and asked last the next time;
// what a fetch finds in a store that collects stays while it lasts, and a checkpoint that was fetched is durable.
// [Config].Finder is where a network that has provider records comes in.
//
// [FetchHTTP] fetches from a trustless gateway instead of peers, [ImportCAR] from a file, and [ExportCAR] writes one.
// [Links] and [Complete] say what belongs to what.
//
// [Publish] turns a checkpoint directory into blocks and [Materialize] turns blocks into the directory again. They need
// a store only: given an Exchange instead of one, Publish also wakes the peers that wait.
//
// Which peers there are and which of them are worth a connection is decided in p2p. This package must never import
// another domain. It reads no clock, but for timers and the rate at which a peer is served.
package exchange
