package images

import (
	"io/fs"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Program images hold one static program of ours and what such a program may
// look for: /tmp and a user to be.

func scratchFiles() []File {
	return []File{
		{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "/etc/passwd", Content: passwd("app", "65532", "/")},
		{Path: "/etc/group", Content: group("app", "65532")},
	}
}

// web is the HTTP server of the end-to-end tests; see test/apps/web.
func web(name, version string) Recipe {
	return Recipe{
		Name:       name,
		Tags:       []string{"baton.test/web:" + version},
		Programs:   []Program{{Package: "./test/apps/web", Path: "/web"}},
		Files:      scratchFiles(),
		Entrypoint: []string{"/web"},
		Env:        []string{"PORT=8080", "VERSION=" + version},
		User:       "65532:65532",
		Ports:      []string{"8080/tcp", "7777/tcp"},
		Labels:     map[string]string{"org.opencontainers.image.version": version},
		Health: &v1.HealthConfig{
			Test:     []string{"CMD", "/web", "-health", "http://127.0.0.1:8080/healthz"},
			Interval: 5 * time.Second, Timeout: 2 * time.Second, Retries: 3,
		},
	}
}

// example is a program below examples/, as /app/NAME of an image called image.
// Its Compose file says how to check its health.
func example(image, pkg, name, port string) Recipe {
	return Recipe{
		Name:       image,
		Tags:       []string{"baton.test/" + image + ":v1"},
		Programs:   []Program{{Package: pkg, Path: "/app/" + name}},
		Files:      scratchFiles(),
		Entrypoint: []string{"/app/" + name},
		User:       "65532:65532",
		Ports:      []string{port},
	}
}
