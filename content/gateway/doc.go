// Package gateway shows the blocks of a store over HTTP: the IPFS path gateway, for what this node has and nothing else.
//
// [New] gives an http.Handler, [Server] an http.Server with limits around it. `GET /ipfs/<CID>/config.json` is a file of a
// checkpoint, with ranges and HEAD; `?format=raw` and `?format=car`, or the Accept headers of the same meaning, are the
// blocks themselves, for whoever verifies. A directory is a list in plain text, never a page: index.html means nothing
// here. There are no names (IPNS, DNSLink), no redirects to other hosts and no fetching: what is not in the store is 404.
//
// What others published is shown under this host's name, so browsers are told to run and load nothing of it.
//
// The package must not import another domain.
package gateway
