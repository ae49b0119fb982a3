// Package node is one participant of a network: miner, validator, bootstrap node, gateway, or several of these.
//
// [Node] puts the parts together by plain constructors in visible order and stops them in reverse: block store, p2p host,
// exchange, gossip, then what it computes with, fetched by CID ([Node.Start]), then cycle after cycle ([Node.Run]). A
// cycle is driven by the beacon's rounds alone: timeline.go says when its phases end, miner.go and validator.go what is
// done in them, custody.go what is known of commitments, agree.go how messages reach the agreement, derive.go what it
// decides, head.go and history.go what a node tells and keeps of what was decided, sync.go how one that missed something
// catches up.
//
// Whatever fails costs this node its part of a cycle and nobody else anything; it is said as an [Event]. Only composition
// roots import this package.
package node
