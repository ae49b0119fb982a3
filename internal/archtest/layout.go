package archtest

import "strings"

// The places of the tree, as directories below the module's root.
var (
	// roots put the parts together; they may import everything.
	roots = []string{"cmd/bzd", "node", "node/devnet", "node/local", "internal/arena"}
	// domains do not know each other. Within one, packages may import each other.
	domains = []string{"p2p", "content", "training", "validation", "consensus"}
	// others have a place but no freedom.
	others = []string{"node/api", "internal/protocol", "internal/archtest"}
	// pure packages compute: the same input gives the same output, and nothing else happens.
	pure = []string{"internal/protocol", "consensus", "validation/reward", "validation/merge"}
	// integral packages decide in integers, save in the files named.
	integral = map[string]string{"consensus": "", "validation/reward": "", "validation/merge": "step.go"}
)

// leaf is the package that everyone may import, and what it may import beside the standard library.
const leaf = "internal/protocol"

var leafImports = []string{"github.com/ipfs/go-cid", "github.com/multiformats/go-multihash", "github.com/fxamacker/cbor/v2"}

// within reports whether dir is place or below it.
func within(dir, place string) bool {
	return dir == place || strings.HasPrefix(dir, place+"/")
}

// isRoot reports whether dir is a composition root. What lies below node is none, but node/devnet.
func isRoot(dir string) bool {
	for _, r := range roots {
		if dir == r || r != "node" && within(dir, r) {
			return true
		}
	}
	return false
}

// domainOf returns the domain dir belongs to, "" for none.
func domainOf(dir string) string {
	for _, d := range domains {
		if within(dir, d) {
			return d
		}
	}
	return ""
}

// hasPlace reports whether the design has a place for a package in dir.
func hasPlace(dir string) bool {
	if isRoot(dir) || domainOf(dir) != "" {
		return true
	}
	for _, o := range others {
		if within(dir, o) {
			return true
		}
	}
	return false
}
