// Command backend is the shop's API: products and orders in PostgreSQL, a hit counter in Redis.
//
// It owns the shop's schema: on start every replica brings it up to date, one at a time under an advisory lock, and is not
// healthy before that. It keeps no state of its own, so replicas may come and go.
//
// Health: /live says that the process serves, /healthz also that the schema is there, /ready also that the database answers now.
// Only /ready follows a database that is down for a while: such a replica must leave the rotation but must not be killed.
//
// Concurrency: one goroutine prepares the schema while the server already answers; main waits for both.
package main

import (
	"context"
	"errors"
	"time"
)

// Product is something that the shop sells.
type Product struct {
	ID          int64  `json:"id"`
	Slug        string `json:"slug"`
	Name        string `json:"name"`
	Description string `json:"description"`
	PriceCents  int64  `json:"priceCents"`
}

// Item is one line of an order. Name and PriceCents are the shop's to fill.
type Item struct {
	ProductID  int64  `json:"productId"`
	Name       string `json:"name,omitempty"`
	Quantity   int    `json:"quantity"`
	PriceCents int64  `json:"priceCents,omitempty"`
}

// Order is what a customer bought.
type Order struct {
	ID         int64     `json:"id"`
	Customer   string    `json:"customer"`
	TotalCents int64     `json:"totalCents"`
	Created    time.Time `json:"created"`
	Items      []Item    `json:"items,omitempty"` // not in lists
}

// The errors of a Store that are the caller's to mend.
var (
	ErrNotFound       = errors.New("not found")
	ErrUnknownProduct = errors.New("unknown product")
)

// Store keeps products and orders.
type Store interface {
	Products(ctx context.Context) ([]Product, error)
	// Product returns ErrNotFound for an unknown slug.
	Product(ctx context.Context, slug string) (Product, error)
	// PlaceOrder stores an order once per key: with a known key it returns that order and changes nothing. Items are
	// distinct products; ErrUnknownProduct names one that does not exist.
	PlaceOrder(ctx context.Context, key, customer string, items []Item) (Order, error)
	// Orders returns the newest first, without items.
	Orders(ctx context.Context, limit int) ([]Order, error)
	// Order returns ErrNotFound for an unknown id.
	Order(ctx context.Context, id int64) (Order, error)
	Ping(ctx context.Context) error
}

// Counter counts hits.
type Counter interface {
	Hit(ctx context.Context) (int64, error)  // counts one and returns the sum
	Hits(ctx context.Context) (int64, error) // returns the sum
}
