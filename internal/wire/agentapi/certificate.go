package agentapi

// HostCertificate is what the edge serves a host with.
type HostCertificate struct {
	Host  string `json:"host"`  // as in rules
	Chain []byte `json:"chain"` // PEM, the host's own first
	Key   []byte `json:"key"`   // PEM, PKCS 8
}

// String keeps the key out of logs.
func (c HostCertificate) String() string { return "certificate of " + c.Host }

// GoString keeps the key out of logs.
func (c HostCertificate) GoString() string { return c.String() }

// Challenge is what an ACME authority wants to be answered over plain HTTP as proof that a host is the cluster's (HTTP-01).
type Challenge struct {
	Host   string `json:"host"`
	Token  string `json:"token"`
	Answer string `json:"answer"`
}
