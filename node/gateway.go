package node

func (n *Node) serveGateway() error { return nil }
