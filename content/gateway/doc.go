// Package gateway shows the blocks of a store over HTTP: the path gateway and the trustless gateway of IPFS for /ipfs, by
// boxo's handler. Boxo does the protocol (files and ranges, directory listings, tar, raw blocks, CARs with their
// parameters, ETag and immutable caching, conditional requests); this package says what is shown and to which bounds.
//
// [New] gives an http.Handler, [Server] an http.Server with limits around it. A [Catalogue] is what a node shows of its
// store: checkpoints and certificates, not the updates, texts and records of others that lie in the same store. Without a
// catalogue everything is shown, and with an exchange also what peers have: a public gateway. There are no names (IPNS,
// DNSLink) and no subdomains.
//
// What others published is shown under this host's name, so browsers are told to give it no rights of its origin.
//
// The package must not import another domain.
package gateway
