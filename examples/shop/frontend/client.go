package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Product, Item, Order and Info are what the backend sends, as far as the pages show it.
type (
	Product struct {
		ID          int64  `json:"id"`
		Slug        string `json:"slug"`
		Name        string `json:"name"`
		Description string `json:"description"`
		PriceCents  int64  `json:"priceCents"`
	}
	Item struct {
		ProductID  int64  `json:"productId"`
		Name       string `json:"name,omitempty"`
		Quantity   int    `json:"quantity"`
		PriceCents int64  `json:"priceCents,omitempty"`
	}
	Order struct {
		ID         int64     `json:"id"`
		Customer   string    `json:"customer"`
		TotalCents int64     `json:"totalCents"`
		Created    time.Time `json:"created"`
		Items      []Item    `json:"items"`
	}
	Info struct {
		Title    string `json:"title"`
		Tagline  string `json:"tagline"`
		Banner   string `json:"banner"`
		Currency string `json:"currency"`
		Instance string `json:"instance"`
	}
)

// Client asks the backend.
type Client struct {
	Base *url.URL
	HTTP *http.Client
}

const answerBytesMax = 1 << 20

// StatusError is an answer of the backend other than 200.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("backend: %d: %s", e.Status, e.Message) }

func isStatus(err error, status int) bool {
	var e *StatusError
	return errors.As(err, &e) && e.Status == status
}

// Get reads path into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, "", nil, v)
}

// Hit counts a look at a page and returns how many there were.
func (c *Client) Hit(ctx context.Context) (int64, error) {
	var v struct {
		Hits int64 `json:"hits"`
	}
	// With a key, a hit that met a connection which the backend was just closing is sent again. In the worst case it counts twice.
	err := c.do(ctx, http.MethodPost, "/api/hits", rand.Text(), nil, &v)
	return v.Hits, err
}

// PlaceOrder orders once per key, however often it is repeated.
func (c *Client) PlaceOrder(ctx context.Context, key, customer string, items []Item) (Order, error) {
	var o Order
	body, err := json.Marshal(map[string]any{"customer": customer, "items": items})
	if err != nil {
		return o, fmt.Errorf("encode the order: %w", err)
	}
	err = c.do(ctx, http.MethodPost, "/api/orders", key, body, &o)
	return o, err
}

func (c *Client) do(ctx context.Context, method, path, key string, body []byte, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.Base.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		// With this header net/http also repeats a POST that met a connection which the backend was just closing.
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return fmt.Errorf("ask the backend: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = strings.TrimSpace(string(b))
		}
		return &StatusError{resp.StatusCode, e.Error}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s %s: decode the answer: %w", method, path, err)
	}
	return nil
}
