package client

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"

	"baton/client/api"
)

// A client tells each manager the highest version that any answer told, whatever came in between: an error, a lower one, none.
func TestClientAsksForNothingOlder(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	versions := []string{"7", "", "5", "x", "9", "8", "9"}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Header.Get(api.HeaderVersionMin))
		if v := versions[len(asked)-1]; v != "" {
			w.Header().Set(api.HeaderVersion, v)
		}
		if len(asked) == 5 { // an error tells of the version, too
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"code":"not_found","detail":"x"}`))
			return
		}
		_, _ = w.Write([]byte("{}"))
	}))
	defer ts.Close()
	c, err := New(Config{Address: ts.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range versions {
		_, _ = c.Version(t.Context())
	}
	if want := []string{"", "7", "7", "7", "7", "9", "9"}; !slices.Equal(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
	if got := c.seen.Load(); strconv.FormatUint(got, 10) != "9" {
		t.Errorf("seen %d", got)
	}
}
