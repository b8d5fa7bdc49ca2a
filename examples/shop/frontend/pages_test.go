package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// backend answers like the shop's backend and remembers the orders it got.
type backend struct {
	mu     sync.Mutex
	keys   []string
	orders []string
	hits   int
	noHits bool
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	write := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	products := []Product{{1, "fork", "Tuning <fork>", "Always right.", 1890}, {2, "bell", "Bell", "Rings.", 7405}}
	switch r.Method + " " + r.URL.Path {
	case "GET /api/info":
		write(Info{Title: "Supply", Banner: "Free delivery", Currency: "EUR", Instance: "b1"})
	case "GET /api/products":
		write(products)
	case "GET /api/products/fork":
		write(products[0])
	case "GET /api/orders":
		write([]Order{{ID: 7, Customer: "Clara", TotalCents: 100}})
	case "GET /api/orders/7":
		write(Order{ID: 7, Customer: "Clara", TotalCents: 100, Items: []Item{{1, "Fork", 1, 100}}})
	case "POST /api/hits":
		if b.noHits {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		b.hits++
		write(map[string]int{"hits": b.hits})
	case "POST /api/orders":
		body, _ := io.ReadAll(r.Body)
		b.orders, b.keys = append(b.orders, string(body)), append(b.keys, r.Header.Get("Idempotency-Key"))
		if strings.Contains(string(body), `"customer":""`) {
			w.WriteHeader(http.StatusBadRequest)
			write(map[string]string{"error": "customer: want a name"})
			return
		}
		write(Order{ID: 7})
	default:
		w.WriteHeader(http.StatusNotFound)
		write(map[string]string{"error": "not found"})
	}
}

func newShop(t *testing.T, h http.Handler) http.Handler {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPages(&Client{Base: base, HTTP: srv.Client()}, "f1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p.Handler()
}

func ask(shop http.Handler, method, target, cart string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(form.Encode()))
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if cart != "" {
		r.AddCookie(&http.Cookie{Name: cartCookie, Value: cart})
	}
	w := httptest.NewRecorder()
	shop.ServeHTTP(w, r)
	return w
}

func TestPages(t *testing.T) {
	for _, tc := range []struct {
		name, target, cart string
		status             int
		want               []string
	}{
		{"products", "/", "", 200, []string{"Tuning &lt;fork&gt;", "18.90 EUR", "74.05 EUR", "Free delivery", "1 visits", "frontend f1", "backend b1"}},
		{"product", "/products/fork", "", 200, []string{"Always right.", `name="product" value="1"`}},
		{"unknown product", "/products/none", "", 404, []string{"Not found"}},
		{"empty cart", "/cart", "", 200, []string{"It is empty"}},
		{"cart", "/cart", "1x2.2x1", 200, []string{"Cart <b>3</b>", "111.85 EUR", `name="key"`}},
		{"cart with a product that is gone", "/cart", "9x2", 200, []string{"It is empty"}},
		{"orders", "/orders", "", 200, []string{`href="/orders/7"`, "Clara"}},
		{"order", "/orders/7", "", 200, []string{"Thank you, Clara", "1.00 EUR"}},
		{"style", "/style.css", "", 200, []string{"--accent"}},
		{"health", "/healthz", "", 200, []string{"healthy"}},
		{"api goes through", "/api/products/fork", "", 200, []string{`"slug":"fork"`}},
		{"unknown page", "/nothing", "", 404, []string{"not found"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := ask(newShop(t, &backend{}), "GET", tc.target, tc.cart, nil)
			if w.Code != tc.status {
				t.Errorf("status: got %d, want %d", w.Code, tc.status)
			}
			for _, want := range tc.want {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("want %q in\n%s", want, w.Body)
				}
			}
		})
	}
}

func TestOrdering(t *testing.T) {
	b := &backend{}
	shop := newShop(t, b)
	w := ask(shop, "POST", "/cart/add", "1x1", url.Values{"product": {"2"}, "quantity": {"3"}})
	if got := w.Header().Get("Set-Cookie"); w.Code != http.StatusSeeOther || !strings.HasPrefix(got, "cart=1x1.2x3;") {
		t.Fatalf("add: got %d, cookie %q", w.Code, got)
	}
	w = ask(shop, "POST", "/cart/remove", "1x1.2x3", url.Values{"product": {"1"}})
	if got := w.Header().Get("Set-Cookie"); !strings.HasPrefix(got, "cart=2x3;") {
		t.Fatalf("remove: got cookie %q", got)
	}
	w = ask(shop, "POST", "/orders", "2x3", url.Values{"customer": {"Clara"}, "key": {"K"}})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/orders/7" || !strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("order: got %d %v", w.Code, w.Header())
	}
	if want := `{"customer":"Clara","items":[{"productId":2,"quantity":3}]}`; len(b.orders) != 1 || b.orders[0] != want || b.keys[0] != "K" {
		t.Errorf("the backend got %q with keys %q, want %q with K", b.orders, b.keys, want)
	}
	w = ask(shop, "POST", "/orders", "2x3", url.Values{"customer": {""}, "key": {"K2"}})
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "want a name") {
		t.Errorf("refused order: got %d %s", w.Code, w.Body)
	}
	for _, q := range []string{"0", "-1", "x", "1000"} {
		if w = ask(shop, "POST", "/cart/add", "", url.Values{"product": {"2"}, "quantity": {q}}); w.Code != http.StatusBadRequest {
			t.Errorf("quantity %s: got %d, want 400", q, w.Code)
		}
	}
}

func TestShopWithoutParts(t *testing.T) {
	w := ask(newShop(t, &backend{noHits: true}), "GET", "/", "", nil)
	if w.Code != 200 || strings.Contains(w.Body.String(), "visits") {
		t.Errorf("without Redis: got %d and a counter, want 200 and none", w.Code)
	}
	down := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "pgx: secret detail", http.StatusServiceUnavailable)
	})
	w = ask(newShop(t, down), "GET", "/", "", nil)
	if w.Code != http.StatusBadGateway || strings.Contains(w.Body.String(), "secret detail") {
		t.Errorf("without backend: got %d %s", w.Code, w.Body)
	}
}

func TestCartIgnoresNonsense(t *testing.T) {
	for _, v := range []string{"x", "1x", "ax2", "1x-2", "1x99999999999", "..."} {
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: cartCookie, Value: v})
		if got := ReadCart(r); len(got) != 0 {
			t.Errorf("cart %q: got %v, want empty", v, got)
		}
	}
	var c Cart
	for i := range int64(2 * cartMax) {
		c = c.Add(i, quantityMax).Add(i, 1)
	}
	if len(c) != cartMax || c.Count() != cartMax*quantityMax {
		t.Errorf("limits: got %d products, %d pieces", len(c), c.Count())
	}
}
