package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memory is the Store and the Counter of these tests, with the promises of the interfaces kept.
type memory struct {
	mu     sync.Mutex
	orders map[string]Order
	hits   int64
	down   error
}

func (m *memory) catalogue() []Product {
	return []Product{{1, "a", "Product A", "", 100}, {2, "b", "Product B", "", 250}}
}

func (m *memory) Products(context.Context) ([]Product, error) { return m.catalogue(), m.down }

func (m *memory) Product(_ context.Context, slug string) (Product, error) {
	for _, p := range m.catalogue() {
		if p.Slug == slug {
			return p, nil
		}
	}
	return Product{}, fmt.Errorf("read product: %w", ErrNotFound)
}

func (m *memory) PlaceOrder(_ context.Context, key, customer string, items []Item) (Order, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o, ok := m.orders[key]; ok {
		return o, nil
	}
	o := Order{ID: int64(len(m.orders) + 1), Customer: customer, Items: items}
	for _, it := range items {
		i := slices.IndexFunc(m.catalogue(), func(p Product) bool { return p.ID == it.ProductID })
		if i < 0 {
			return Order{}, fmt.Errorf("%w %d", ErrUnknownProduct, it.ProductID)
		}
		o.TotalCents += m.catalogue()[i].PriceCents * int64(it.Quantity)
	}
	m.orders[key] = o
	return o, nil
}

func (m *memory) Orders(_ context.Context, limit int) ([]Order, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Collect(maps.Values(m.orders))
	slices.SortFunc(all, func(a, b Order) int { return int(b.ID - a.ID) })
	return all[:min(limit, len(all))], nil
}

func (m *memory) Order(_ context.Context, id int64) (Order, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range m.orders {
		if o.ID == id {
			return o, nil
		}
	}
	return Order{}, ErrNotFound
}

func (m *memory) Ping(context.Context) error { return m.down }

func (m *memory) Hit(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hits++
	return m.hits, m.down
}

func (m *memory) Hits(context.Context) (int64, error) { return m.hits, m.down }

func newAPI() (*API, *memory) {
	m := &memory{orders: map[string]Order{}}
	return &API{Store: m, Counter: m, App: App{Title: "T"}, Instance: "i1", Log: slog.New(slog.DiscardHandler)}, m
}

func ask(t *testing.T, a *API, method, path, key, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	w := httptest.NewRecorder()
	a.Handler().ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestRequests(t *testing.T) {
	order := `{"customer":" Clara ","items":[{"productId":2,"quantity":1},{"productId":1,"quantity":2},{"productId":2,"quantity":1}]}`
	for _, tc := range []struct {
		name, method, path, key, body string
		status                        int
		want                          string
	}{
		{"products", "GET", "/api/products", "", "", 200, `"slug":"b"`},
		{"product", "GET", "/api/products/a", "", "", 200, `"name":"Product A"`},
		{"unknown product", "GET", "/api/products/x", "", "", 404, `{"error":"not found"}`},
		{"info", "GET", "/api/info", "", "", 200, `"instance":"i1"`},
		{"order adds up and merges", "POST", "/api/orders", "k", order, 200,
			`"customer":"Clara","totalCents":700,"created":"0001-01-01T00:00:00Z","items":[{"productId":1,"quantity":2},{"productId":2,"quantity":2}]`},
		{"order without key", "POST", "/api/orders", "", order, 400, "Idempotency-Key"},
		{"order without customer", "POST", "/api/orders", "k", `{"customer":" ","items":[{"productId":1,"quantity":1}]}`, 400, "customer"},
		{"order with a zero byte", "POST", "/api/orders", "k", `{"customer":"a\u0000b","items":[{"productId":1,"quantity":1}]}`, 400, "customer"},
		{"order without items", "POST", "/api/orders", "k", `{"customer":"C"}`, 400, "items"},
		{"order with quantity 0", "POST", "/api/orders", "k", `{"customer":"C","items":[{"productId":1,"quantity":0}]}`, 400, "items[0].quantity"},
		{"order of nothing known", "POST", "/api/orders", "k", `{"customer":"C","items":[{"productId":9,"quantity":1}]}`, 400, "unknown product 9"},
		{"order with a misspelt field", "POST", "/api/orders", "k", `{"costumer":"C"}`, 400, "costumer"},
		{"order too large", "POST", "/api/orders", "k", `{"customer":"` + strings.Repeat("x", bodyBytesMax) + `"}`, 400, "too large"},
		{"unknown order", "GET", "/api/orders/7", "", "", 404, "not found"},
		{"order id that is no number", "GET", "/api/orders/seven", "", "", 404, "not found"},
		{"limit out of range", "GET", "/api/orders?limit=1000", "", "", 400, "limit"},
		{"live", "GET", "/live", "", "", 200, "live"},
		{"ready", "GET", "/ready", "", "", 200, "ready"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, _ := newAPI()
			a.SetPrepared()
			status, body := ask(t, a, tc.method, tc.path, tc.key, tc.body)
			if status != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("got %d %s\nwant %d with %s", status, body, tc.status, tc.want)
			}
		})
	}
}

func TestRepeatedOrderIsOneOrder(t *testing.T) {
	a, _ := newAPI()
	a.SetPrepared()
	body := `{"customer":"Clara","items":[{"productId":1,"quantity":1}]}`
	_, first := ask(t, a, "POST", "/api/orders", "same", body)
	_, second := ask(t, a, "POST", "/api/orders", "same", body)
	if first != second {
		t.Errorf("repeated order: got %s, want %s", second, first)
	}
	_, list := ask(t, a, "GET", "/api/orders", "", "")
	var orders []Order
	if err := json.Unmarshal([]byte(list), &orders); err != nil {
		t.Fatal(err)
	}
	if len(orders) != 1 {
		t.Errorf("got %d orders, want 1", len(orders))
	}
}

func TestHits(t *testing.T) {
	a, _ := newAPI()
	a.SetPrepared()
	ask(t, a, "POST", "/api/hits", "", "")
	ask(t, a, "POST", "/api/hits", "", "")
	if _, got := ask(t, a, "GET", "/api/hits", "", ""); got != `{"hits":2,"instance":"i1"}` {
		t.Errorf("got %s", got)
	}
}

// The three health addresses differ on purpose; this is the table of the package documentation.
func TestHealth(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		prepared, down       bool
		live, healthz, ready int
	}{
		{"starting", false, false, 200, 503, 503},
		{"up", true, false, 200, 200, 200},
		{"database down", true, true, 200, 200, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, m := newAPI()
			if tc.prepared {
				a.SetPrepared()
			}
			if tc.down {
				m.down = errors.New("connection refused")
			}
			for path, want := range map[string]int{"/live": tc.live, "/healthz": tc.healthz, "/ready": tc.ready} {
				if got, body := ask(t, a, "GET", path, "", ""); got != want {
					t.Errorf("%s: got %d %s, want %d", path, got, body, want)
				}
			}
			want := http.StatusOK
			if !tc.prepared || tc.down {
				want = http.StatusServiceUnavailable
			}
			if got, body := ask(t, a, "GET", "/api/products", "", ""); got != want || strings.Contains(body, "refused") {
				t.Errorf("products: got %d %s, want %d and no inner error", got, body, want)
			}
		})
	}
}

func TestUntilDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, calls := time.Now(), 0
		ok := untilDone(t.Context(), slog.New(slog.DiscardHandler), func(context.Context) error {
			if calls++; calls < 4 {
				return errors.New("not yet")
			}
			return nil
		})
		if want := 7 * retryFirst; !ok || time.Since(start) != want {
			t.Errorf("got %v after %v, want true after %v", ok, time.Since(start), want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if untilDone(ctx, slog.New(slog.DiscardHandler), func(context.Context) error { return errors.New("never") }) {
			t.Error("ended context: got true, want false")
		}
	})
}

func TestLoadSettings(t *testing.T) {
	files := func(m map[string]string) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			if s, ok := m[name]; ok {
				return []byte(s), nil
			}
			return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
		}
	}
	secret := map[string]string{"/run/secrets/db_password": "pw\n"}
	for _, tc := range []struct {
		name       string
		env, files map[string]string
		check      func(Settings) bool
		err        string
	}{
		{"defaults, newline of the secret dropped", nil, secret, func(s Settings) bool {
			return s.DBPassword == "pw" && s.DBPort == 5432 && s.App == appDefault
		}, ""},
		{"config file", nil, map[string]string{"/run/secrets/db_password": "pw", "/etc/app/config.json": `{"title":"X"}`},
			func(s Settings) bool { return s.App.Title == "X" && s.App.Currency == "EUR" }, ""},
		{"no secret", nil, nil, nil, "db_password"},
		{"empty secret", nil, map[string]string{"/run/secrets/db_password": "\n"}, nil, "empty"},
		{"bad port", map[string]string{"DB_PORT": "x"}, secret, nil, "DB_PORT"},
		{"named config missing", map[string]string{"APP_CONFIG": "/x"}, secret, nil, "/x"},
		{"bad config", nil, map[string]string{"/run/secrets/db_password": "pw", "/etc/app/config.json": `{`}, nil, "config.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := LoadSettings(func(k string) string { return tc.env[k] }, files(tc.files))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, want an error with %q", err, tc.err)
				}
				return
			}
			if err != nil || !tc.check(s) {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
}
