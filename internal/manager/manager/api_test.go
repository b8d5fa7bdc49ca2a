package manager

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"testing"

	"baton/internal/wire/transport"
)

// Who reaches into containers needs a right to the API, before anything of the request is looked at.
func TestOnlyAdministratorsReachTasks(t *testing.T) {
	passed := 0
	h := authenticated(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ }))
	of := func(units ...string) *tls.ConnectionState {
		cert := &x509.Certificate{Subject: pkix.Name{OrganizationalUnit: units}}
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
	}
	unverified := of(transport.RoleAdmin)
	unverified.VerifiedChains = nil
	for _, path := range []string{"exec?command=sh", "connect?port=80", "files?path=/etc/passwd", "files?path=/&write=true"} {
		for _, who := range []struct {
			name string
			tls  *tls.ConnectionState
			want int
		}{
			{"in clear", nil, 401},
			{"without a certificate", &tls.ConnectionState{}, 401},
			{"with a certificate of another authority", unverified, 401},
			{"as a worker", of(transport.RoleWorker), 401},
			{"as a manager", of(transport.RoleManager), 401},
			{"with a further role", of(transport.RoleWorker, transport.RoleAdmin), 401},
			{"as an administrator", of(transport.RoleAdmin), 200},
		} {
			r := httptest.NewRequest(http.MethodGet, "/v1/tasks/web/"+path, nil)
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
			r.TLS = who.tls
			w := httptest.NewRecorder()
			before := passed
			h.ServeHTTP(w, r)
			if w.Code != who.want || (passed > before) != (who.want == 200) {
				t.Errorf("%s %s: status %d, want %d", path, who.name, w.Code, who.want)
			}
		}
	}
}
