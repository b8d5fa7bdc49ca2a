package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"
)

//go:embed pages/*.html pages/style.css
var files embed.FS

const (
	requestTimeout = 6 * time.Second // a little more than the backend gives itself
	hitTimeout     = 2 * time.Second // a page is not worth waiting longer for its counter
	formBytesMax   = 16 << 10
)

// Pages serves the shop's pages.
type Pages struct {
	API      *Client
	Instance string
	Log      *slog.Logger

	sets map[string]*template.Template // by page
}

// NewPages parses the templates.
func NewPages(api *Client, instance string, log *slog.Logger) (*Pages, error) {
	p := &Pages{API: api, Instance: instance, Log: log, sets: map[string]*template.Template{}}
	for _, name := range []string{"products", "product", "cart", "order", "orders", "error"} {
		t, err := template.New("layout.html").Funcs(template.FuncMap{"money": money, "hue": hue, "initial": initial}).
			ParseFS(files, "pages/layout.html", "pages/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("page %s: %w", name, err)
		}
		p.sets[name] = t
	}
	return p, nil
}

func money(cents int64, currency string) string {
	return fmt.Sprintf("%d.%02d %s", cents/100, cents%100, currency)
}

// hue gives each product a colour of its own, far from its neighbours'.
func hue(id int64) int64 { return id * 137 % 360 }

func initial(name string) string {
	for _, r := range name {
		return string(r)
	}
	return ""
}

// Handler returns the routes. Requests under /api/ go to the backend as they are.
func (p *Pages) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("healthy\n")) })
	mux.HandleFunc("GET /style.css", func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "pages/style.css") })
	mux.HandleFunc("GET /{$}", p.page(p.products))
	mux.HandleFunc("GET /products/{slug}", p.page(p.product))
	mux.HandleFunc("GET /cart", p.page(p.cart))
	mux.HandleFunc("GET /orders", p.page(p.orders))
	mux.HandleFunc("GET /orders/{id}", p.page(p.order))
	mux.HandleFunc("POST /cart/add", p.cartAdd)
	mux.HandleFunc("POST /cart/remove", p.cartRemove)
	mux.HandleFunc("POST /orders", p.placeOrder)
	mux.Handle("/api/", &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(p.API.Base); r.SetXForwarded() },
		Transport: p.API.HTTP.Transport,
		ErrorLog:  slog.NewLogLogger(p.Log.Handler(), slog.LevelWarn),
	})
	return mux
}

// view is what every page gets. Data is the page's own.
type view struct {
	Info     Info
	Title    string
	CartSize int
	Hits     int64 // zero: the counter does not answer
	Instance string
	Data     any
}

type pageFunc func(ctx context.Context, r *http.Request) (name, title string, data any, err error)

// page asks for what the layout shows, runs f and renders, or shows the error page. Nothing is written before the page is
// complete, so a page is either whole or an error.
func (p *Pages) page(f pageFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		v := view{Instance: p.Instance, CartSize: ReadCart(r).Count()}
		if err := p.API.Get(ctx, "/api/info", &v.Info); err != nil {
			p.fail(w, v, err)
			return
		}
		name, title, data, err := f(ctx, r)
		if err != nil {
			p.fail(w, v, err)
			return
		}
		hitCtx, cancel := context.WithTimeout(ctx, hitTimeout)
		defer cancel()
		if v.Hits, err = p.API.Hit(hitCtx); err != nil {
			p.Log.Warn("the hit counter does not answer", "error", err) // the shop goes on without it
		}
		v.Title, v.Data = title, data
		p.render(w, http.StatusOK, name, v)
	}
}

func (p *Pages) render(w http.ResponseWriter, status int, name string, v view) {
	var b bytes.Buffer
	if err := p.sets[name].Execute(&b, v); err != nil {
		p.Log.Error("render", "page", name, "error", err)
		http.Error(w, "this page is broken", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self' 'unsafe-inline'; form-action 'self'")
	w.Header().Set("X-Instance", p.Instance)
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // a browser that left is no error of ours
}

func (p *Pages) fail(w http.ResponseWriter, v view, err error) {
	if v.Info.Title == "" {
		v.Info.Title = "The Shop"
	}
	switch {
	case isStatus(err, http.StatusNotFound):
		v.Title, v.Data = "Not found", "There is nothing at this address. Perhaps it was sold."
		p.render(w, http.StatusNotFound, "error", v)
	case isStatus(err, http.StatusBadRequest):
		v.Title, v.Data = "Please check your order", err.(*StatusError).Message
		p.render(w, http.StatusBadRequest, "error", v)
	default:
		p.Log.Error("page failed", "error", err)
		v.Title, v.Data = "One moment", "The shop's backend does not answer. Please try again."
		w.Header().Set("Retry-After", "2")
		p.render(w, http.StatusBadGateway, "error", v)
	}
}

func (p *Pages) products(ctx context.Context, _ *http.Request) (string, string, any, error) {
	var list []Product
	err := p.API.Get(ctx, "/api/products", &list)
	return "products", "Products", list, err
}

func (p *Pages) product(ctx context.Context, r *http.Request) (string, string, any, error) {
	var v Product
	err := p.API.Get(ctx, "/api/products/"+r.PathValue("slug"), &v)
	return "product", v.Name, v, err
}

type cartData struct {
	Items      []Item
	TotalCents int64
	Key        string // of the order that this form places: sending the form twice orders once
}

func (p *Pages) cart(ctx context.Context, r *http.Request) (string, string, any, error) {
	var list []Product
	if err := p.API.Get(ctx, "/api/products", &list); err != nil {
		return "", "", nil, err
	}
	byID := make(map[int64]Product, len(list))
	for _, v := range list {
		byID[v.ID] = v
	}
	d := cartData{Key: rand.Text()}
	for _, it := range ReadCart(r) {
		v, ok := byID[it.ProductID]
		if !ok {
			continue
		}
		it.Name, it.PriceCents = v.Name, v.PriceCents
		d.Items = append(d.Items, it)
		d.TotalCents += it.PriceCents * int64(it.Quantity)
	}
	return "cart", "Your cart", d, nil
}

func (p *Pages) orders(ctx context.Context, _ *http.Request) (string, string, any, error) {
	var list []Order
	err := p.API.Get(ctx, "/api/orders", &list)
	return "orders", "Latest orders", list, err
}

func (p *Pages) order(ctx context.Context, r *http.Request) (string, string, any, error) {
	var o Order
	err := p.API.Get(ctx, "/api/orders/"+r.PathValue("id"), &o)
	return "order", fmt.Sprintf("Order %d", o.ID), o, err
}

func (p *Pages) cartAdd(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, formBytesMax)
	id, err1 := strconv.ParseInt(r.FormValue("product"), 10, 64)
	q, err2 := strconv.Atoi(r.FormValue("quantity"))
	if err1 != nil || err2 != nil || q < 1 || q > quantityMax {
		http.Error(w, "want a product and a quantity", http.StatusBadRequest)
		return
	}
	ReadCart(r).Add(id, q).Write(w)
	http.Redirect(w, r, "/cart", http.StatusSeeOther)
}

func (p *Pages) cartRemove(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, formBytesMax)
	id, err := strconv.ParseInt(r.FormValue("product"), 10, 64)
	if err != nil {
		http.Error(w, "want a product", http.StatusBadRequest)
		return
	}
	ReadCart(r).Remove(id).Write(w)
	http.Redirect(w, r, "/cart", http.StatusSeeOther)
}

func (p *Pages) placeOrder(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, formBytesMax)
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	cart := ReadCart(r)
	o, err := p.API.PlaceOrder(ctx, r.FormValue("key"), r.FormValue("customer"), cart)
	if err != nil {
		p.fail(w, view{Instance: p.Instance, CartSize: cart.Count()}, err)
		return
	}
	Cart{}.Write(w)
	http.Redirect(w, r, fmt.Sprintf("/orders/%d", o.ID), http.StatusSeeOther)
}
