package consensus

// Rules are the rules that can be left out.
type Rules = rules

// SetRules leaves rules out of a machine's configuration.
func SetRules(c *Config, r Rules) { c.rules = r }
