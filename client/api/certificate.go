package api

import "time"

// HostCertificate is what a host of ingress rules is served with.
type HostCertificate struct {
	Host      string    `json:"host"`
	Source    string    `json:"source" enum:"auto,internal,secret"`
	State     string    `json:"state" enum:"pending,failed,valid,renewing,expired"`
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial,omitempty" doc:"hexadecimal"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	Error     string    `json:"error,omitempty" doc:"why the last try gave no certificate"`
	Retry     time.Time `json:"retry,omitzero" doc:"when it is tried again"`
}

// ServiceAuthority is the cluster's own authority for services.
type ServiceAuthority struct {
	Certificate string    `json:"certificate" doc:"PEM; who trusts it trusts all hosts with tls: internal"`
	NotAfter    time.Time `json:"notAfter"`
}

// ACME says where certificates of tls: auto come from.
type ACME struct {
	Directory string `json:"directory,omitempty" doc:"address of the authority's directory; default: Let's Encrypt's"`
	Email     string `json:"email,omitempty" doc:"where the authority writes to"`
	Roots     string `json:"roots,omitempty" doc:"PEM; to trust in place of the system's authorities when the directory is asked"`
}
