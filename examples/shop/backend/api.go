package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// The limits of what a client may send and get.
const (
	bodyBytesMax   = 64 << 10
	itemsMax       = 50
	quantityMax    = 999
	customerMax    = 100 // characters
	keyBytesMax    = 200
	ordersMax      = 50
	requestTimeout = 5 * time.Second
	readyTimeout   = time.Second
)

// API answers the shop's requests.
type API struct {
	Store    Store
	Counter  Counter
	App      App
	Instance string
	Log      *slog.Logger

	prepared atomic.Bool
}

// SetPrepared says that the schema is there: from now on the replica is healthy.
func (a *API) SetPrepared() { a.prepared.Store(true) }

// Handler returns the routes.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /live", a.live)
	mux.HandleFunc("GET /healthz", a.healthz)
	mux.HandleFunc("GET /ready", a.ready)
	mux.HandleFunc("GET /api/info", a.wrap(a.info))
	mux.HandleFunc("GET /api/products", a.wrap(a.products))
	mux.HandleFunc("GET /api/products/{slug}", a.wrap(a.product))
	mux.HandleFunc("GET /api/orders", a.wrap(a.orders))
	mux.HandleFunc("GET /api/orders/{id}", a.wrap(a.order))
	mux.HandleFunc("POST /api/orders", a.wrap(a.placeOrder))
	mux.HandleFunc("GET /api/hits", a.wrap(a.hits))
	mux.HandleFunc("POST /api/hits", a.wrap(a.hit))
	return mux
}

// badRequest is an error whose text is meant for the client.
type badRequest string

func (e badRequest) Error() string { return string(e) }

// wrap gives a handler its deadline and turns what it returns into JSON.
func (a *API) wrap(h func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Instance", a.Instance)
		if !a.prepared.Load() {
			writeJSON(w, http.StatusServiceUnavailable, errorBody{"starting: the database is not prepared yet"})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, bodyBytesMax)
		v, err := h(r.WithContext(ctx))
		if err == nil {
			writeJSON(w, http.StatusOK, v)
			return
		}
		var bad badRequest
		switch {
		case errors.As(err, &bad), errors.Is(err, ErrUnknownProduct):
			writeJSON(w, http.StatusBadRequest, errorBody{err.Error()})
		case errors.Is(err, ErrNotFound):
			writeJSON(w, http.StatusNotFound, errorBody{"not found"})
		default:
			a.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			writeJSON(w, http.StatusServiceUnavailable, errorBody{"a service behind the shop does not answer; try again"})
		}
	}
}

type errorBody struct {
	Error string `json:"error"`
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that left is no error of ours
}

func (a *API) live(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "live"})
}

func (a *API) healthz(w http.ResponseWriter, _ *http.Request) {
	if !a.prepared.Load() {
		writeJSON(w, http.StatusServiceUnavailable, errorBody{"the database is not prepared yet"})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "healthy"})
}

func (a *API) ready(w http.ResponseWriter, r *http.Request) {
	if !a.prepared.Load() {
		writeJSON(w, http.StatusServiceUnavailable, errorBody{"the database is not prepared yet"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if err := a.Store.Ping(ctx); err != nil {
		a.Log.Warn("not ready: the database does not answer", "error", err)
		writeJSON(w, http.StatusServiceUnavailable, errorBody{"the database does not answer"})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

// Info is what the shop says of itself.
type Info struct {
	App
	Instance string `json:"instance"`
}

func (a *API) info(*http.Request) (any, error) { return Info{a.App, a.Instance}, nil }

func (a *API) products(r *http.Request) (any, error) { return a.Store.Products(r.Context()) }

func (a *API) product(r *http.Request) (any, error) {
	return a.Store.Product(r.Context(), r.PathValue("slug"))
}

func (a *API) orders(r *http.Request) (any, error) {
	limit := 20
	if v := r.FormValue("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > ordersMax {
			return nil, badRequest(fmt.Sprintf("limit: want a number from 1 to %d", ordersMax))
		}
		limit = n
	}
	return a.Store.Orders(r.Context(), limit)
}

func (a *API) order(r *http.Request) (any, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return nil, ErrNotFound
	}
	return a.Store.Order(r.Context(), id)
}

// OrderRequest is the body of POST /api/orders. The Idempotency-Key header is required with it.
type OrderRequest struct {
	Customer string `json:"customer"`
	Items    []Item `json:"items"`
}

func (a *API) placeOrder(r *http.Request) (any, error) {
	key := r.Header.Get("Idempotency-Key")
	if key == "" || len(key) > keyBytesMax {
		return nil, badRequest(fmt.Sprintf("header Idempotency-Key: want 1 to %d bytes, new for each order", keyBytesMax))
	}
	var req OrderRequest
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return nil, badRequest("body: " + err.Error())
	}
	items, err := req.check()
	if err != nil {
		return nil, err
	}
	return a.Store.PlaceOrder(r.Context(), key, strings.TrimSpace(req.Customer), items)
}

// check validates the order and returns its items, one per product, sorted by product.
func (o OrderRequest) check() ([]Item, error) {
	customer := strings.TrimSpace(o.Customer)
	// PostgreSQL refuses the zero byte in text: that is the client's error, not the database's.
	if n := utf8.RuneCountInString(customer); n == 0 || n > customerMax || strings.ContainsRune(customer, 0) {
		return nil, badRequest(fmt.Sprintf("customer: want a name of 1 to %d characters", customerMax))
	}
	if len(o.Items) == 0 || len(o.Items) > itemsMax {
		return nil, badRequest(fmt.Sprintf("items: want 1 to %d", itemsMax))
	}
	sum := make(map[int64]int)
	for i, it := range o.Items {
		if it.Quantity < 1 || it.Quantity > quantityMax {
			return nil, badRequest(fmt.Sprintf("items[%d].quantity: want 1 to %d", i, quantityMax))
		}
		sum[it.ProductID] += it.Quantity
	}
	items := make([]Item, 0, len(sum))
	for id, q := range sum {
		items = append(items, Item{ProductID: id, Quantity: q})
	}
	slices.SortFunc(items, func(a, b Item) int { return cmp.Compare(a.ProductID, b.ProductID) })
	return items, nil
}

// HitCount is how often the shop's pages were looked at, by all replicas together.
type HitCount struct {
	Hits     int64  `json:"hits"`
	Instance string `json:"instance"`
}

func (a *API) hits(r *http.Request) (any, error) {
	n, err := a.Counter.Hits(r.Context())
	return HitCount{n, a.Instance}, err
}

func (a *API) hit(r *http.Request) (any, error) {
	n, err := a.Counter.Hit(r.Context())
	return HitCount{n, a.Instance}, err
}
