package spec

import (
	"strings"

	"github.com/distribution/reference"
)

// RegistryHost is the registry that an image name asks, as image names write it: "docker.io", "registry.example:5000". It is
// empty when the name is not valid.
func RegistryHost(image string) string {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}

// CleanRegistryHost brings what people call a registry into the form of RegistryHost: an address with a scheme and a path is
// accepted as docker does. It is empty when it names no registry.
func CleanRegistryHost(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
	name, _, _ = strings.Cut(name, "/")
	switch name {
	case "index.docker.io", "registry-1.docker.io", "docker.io":
		return "docker.io"
	}
	if RegistryHost(name+"/image") != name {
		return ""
	}
	return name
}
