package server

import (
	"net/http/httptest"
	"strings"
	"testing"

	"baton/build/images/regtest"
	"baton/client/api"
)

func TestLoginIsCheckedByTheRegistry(t *testing.T) {
	for _, login := range []regtest.Login{regtest.Open, regtest.Basic, regtest.Token} {
		t.Run(string(login), func(t *testing.T) {
			reg := &regtest.Registry{Login: login, Username: "me", Password: "hunter2"}
			srv := httptest.NewServer(reg)
			defer srv.Close()
			host := strings.TrimPrefix(srv.URL, "http://")
			if err := checkRegistry(t.Context(), host, api.RegistryRequest{Username: "me", Password: "hunter2"}); err != nil {
				t.Errorf("the right password: %v", err)
			}
			err := checkRegistry(t.Context(), host, api.RegistryRequest{Username: "me", Password: "hunter3"})
			if refused := codeOf(err) == api.CodeRefused; refused != (login != regtest.Open) {
				t.Errorf("a wrong password: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter3") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
	const host = "127.0.0.1:1" // below the ephemeral ports: no other test can get it
	if err := checkRegistry(t.Context(), host, api.RegistryRequest{Username: "me", Password: "p"}); codeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), host) {
		t.Errorf("nobody there: got %v", err)
	}
}

func codeOf(err error) api.Code {
	if e, ok := err.(*api.Error); ok {
		return e.Code
	}
	return ""
}
