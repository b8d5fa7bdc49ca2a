package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
)

func TestNormalize(t *testing.T) {
	digest := "sha256:" + fmt.Sprintf("%064d", 1)
	for in, want := range map[string]string{
		"redis":                      "docker.io/library/redis:latest",
		"redis:7":                    "docker.io/library/redis:7",
		"team/app":                   "docker.io/team/app:latest",
		"registry.example:5000/a/b":  "registry.example:5000/a/b:latest",
		"localhost/app:1":            "localhost/app:1",
		"baton.test/probe:1":         "baton.test/probe:1",
		"redis:7@" + digest:          "docker.io/library/redis@" + digest,
		"UPPER":                      "",
		"":                           "",
		"a b":                        "",
		"docker.io/library/redis:\n": "",
	} {
		got, err := Normalize(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("Normalize(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestPlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1:5000": true, "localhost": true, "localhost:80": true, "[::1]:5000": true, "127.9.9.9": true,
		"docker.io": false, "10.0.0.1:5000": false, "localhost.example.com": false, "0.0.0.0": false,
	} {
		if got := plainHTTP(host); got != want {
			t.Errorf("plainHTTP(%q) = %v, want %v", host, got, want)
		}
	}
}

func TestHealthcheck(t *testing.T) {
	for name, tt := range map[string]struct {
		config string
		want   *spec.Probe
		fails  bool
	}{
		"none":     {config: `{"config":{}}`},
		"disabled": {config: `{"config":{"Healthcheck":{"Test":["NONE"]}}}`},
		"shell": {config: `{"config":{"Healthcheck":{"Test":["CMD-SHELL","pg_isready"],"Interval":5000000000,"Timeout":1000000000,"Retries":9,"StartPeriod":2000000000}}}`,
			want: &spec.Probe{Exec: []string{"/bin/sh", "-c", "pg_isready"}, Interval: 5 * time.Second, Timeout: time.Second, Failures: 9,
				Successes: 1, StartPeriod: 2 * time.Second, StartInterval: time.Second}},
		"defaults": {config: `{"config":{"Healthcheck":{"Test":["CMD","/check"]}}}`,
			want: &spec.Probe{Exec: []string{"/check"}, Interval: 30 * time.Second, Timeout: 30 * time.Second, Failures: 3, Successes: 1, StartInterval: time.Second}},
		"unknown": {config: `{"config":{"Healthcheck":{"Test":["RUN","x"]}}}`, fails: true},
		"damaged": {config: `{`, fails: true},
	} {
		got, err := healthcheck([]byte(tt.config))
		if !reflect.DeepEqual(got, tt.want) || (err != nil) != tt.fails {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tt.want)
		}
	}
}

// What a user reads of an unreachable registry is its name and what the system said, and not a chain of calls.
func TestExplainUnreachable(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	err := fmt.Errorf("resolve reference: %w", &url.Error{Op: "Head", URL: "https://registry.test:5000/v2/web/manifests/1?token=hush", Err: refused})
	got := New(Config{}).explain("registry.test:5000/web:1", err).Error()
	want := "image registry.test:5000/web:1 is not on this node and could not be pulled: registry registry.test:5000 cannot be reached: connection refused; " +
		"load it with `baton image load FILE`"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestExplain(t *testing.T) {
	s := New(Config{})
	for name, tt := range map[string]struct {
		err       error
		permanent bool
	}{
		"not found":    {fmt.Errorf("resolve: %w", errdefs.ErrNotFound), true},
		"denied":       {docker.ErrInvalidAuthorization, true},
		"forbidden":    {remoteerrors.ErrUnexpectedStatus{StatusCode: http.StatusForbidden}, true},
		"server error": {remoteerrors.ErrUnexpectedStatus{StatusCode: http.StatusBadGateway}, false},
		"too many":     {remoteerrors.ErrUnexpectedStatus{StatusCode: http.StatusTooManyRequests}, false},
		"no network":   {&net.OpError{Op: "dial", Err: errors.New("network is unreachable")}, false},
		"no name":      {&net.DNSError{Name: "docker.io", IsNotFound: true}, false},
		"timeout":      {context.DeadlineExceeded, false},
	} {
		var re *agent.RejectError
		if err := s.explain("redis", tt.err); errors.As(err, &re) != tt.permanent {
			t.Errorf("%s: %v permanent: want %v", name, err, tt.permanent)
		}
	}
}
