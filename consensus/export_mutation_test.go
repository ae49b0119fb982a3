package consensus

// Mutations are rules left out, by name.
var Mutations = map[string]func(*Config){
	"no lock":           func(c *Config) { c.rules.noLock = true },
	"weak quorum":       func(c *Config) { c.rules.weakQuorum = true },
	"null all the same": func(c *Config) { c.rules.nullAfterCommit = true },
	"commit behind":     func(c *Config) { c.rules.commitBehind = true },
	"type unsigned":     func(c *Config) { c.rules.typeUnsigned = true },
	"round unsigned":    func(c *Config) { c.rules.roundUnsigned = true },
	"timing":            func(c *Config) { c.rules.timing = true },
	"no commit":         func(c *Config) { c.rules.noCommit = true },
	"no parent":         func(c *Config) { c.rules.noParent = true },
}
