// Package dev is a development chain: one process that plays the chain and the beacon of a small network, on loopback.
//
// A [Server] makes a block every so many milliseconds, by the clock alone. It keeps the registry, which participants change
// by signing with their chain key (here an ed25519 key, whose public half is the id), takes the weights that validators
// sign, and publishes the signatures of a one-key beacon, each from its time on. What it acknowledged is on disk, and a
// restart continues where it stopped. A [Client] is a chain.Client and a beacon.Source over HTTP, with several endpoints.
//
// It is for development: nothing stops a participant from claiming any stake up to the limit, and whoever runs the server
// holds the beacon's key and can open every locked seed early.
//
// docs/spec/devchain.md gives the requests and the file. The package imports beacon, chain and internal/protocol of bzd.
package dev
