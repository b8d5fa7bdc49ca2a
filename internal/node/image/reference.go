package image

import (
	"fmt"
	"net"
	"strings"

	"github.com/distribution/reference"
)

// Normalize completes an image name as docker does: "redis" becomes "docker.io/library/redis:latest".
func Normalize(ref string) (string, error) {
	n, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", ref, err)
	}
	return n.String(), nil
}

// localOnly reports whether a name is never asked of a registry: those of tests, and those that live in the cluster itself.
func localOnly(ref string) bool {
	return strings.HasPrefix(ref, "baton.test/") || strings.HasPrefix(ref, "cluster/") || strings.HasPrefix(ref, "docker.io/cluster/")
}

// plainHTTP reports whether a registry is spoken to without TLS: only one on this machine, as nobody can listen in there.
func plainHTTP(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "localhost" || ip != nil && ip.IsLoopback()
}
