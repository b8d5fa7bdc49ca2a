package spec

import "testing"

func TestRegistryHost(t *testing.T) {
	for image, want := range map[string]string{
		"redis": "docker.io", "team/app:1": "docker.io", "registry.example/app": "registry.example", "localhost:5000/a/b@sha256:" + sum: "localhost:5000",
		"127.0.0.1:5000/app:2": "127.0.0.1:5000", "UPPER": "", "": "",
	} {
		if got := RegistryHost(image); got != want {
			t.Errorf("RegistryHost(%q) = %q, want %q", image, got, want)
		}
	}
	for name, want := range map[string]string{
		"https://index.docker.io/v1/": "docker.io", "docker.io": "docker.io", "ghcr.io": "ghcr.io", "https://ghcr.io/": "ghcr.io", "r.example:5000": "r.example:5000",
		"localhost": "localhost", "team": "", "": "", "a b": "", "r.example:x": "",
	} {
		if got := CleanRegistryHost(name); got != want {
			t.Errorf("CleanRegistryHost(%q) = %q, want %q", name, got, want)
		}
	}
}

const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
