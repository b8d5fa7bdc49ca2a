package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed schema.sql
var schemaSQL string

const (
	// schemaLock is the advisory lock that replicas take in turn to prepare the schema; any number that nothing else in this
	// database uses.
	schemaLock = 0x5_4f9_0001
	// connsMax bounds a replica's connections: three replicas, and three more during an update, stay far below
	// PostgreSQL's default of 100.
	connsMax       = 8
	connectTimeout = 3 * time.Second
)

// Postgres is the Store on PostgreSQL.
type Postgres struct {
	pool *pgxpool.Pool
}

var _ Store = (*Postgres)(nil)

// NewPostgres prepares a pool; it connects only when first used, so a database that is still starting is no error here.
func NewPostgres(ctx context.Context, s Settings) (*Postgres, error) {
	c, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	c.ConnConfig.Host, c.ConnConfig.Port = s.DBHost, s.DBPort
	c.ConnConfig.User, c.ConnConfig.Password, c.ConnConfig.Database = s.DBUser, s.DBPassword, s.DBName
	c.ConnConfig.TLSConfig, c.ConnConfig.Fallbacks = nil, nil // the cluster's network is encrypted between nodes
	c.ConnConfig.ConnectTimeout = connectTimeout
	c.ConnConfig.RuntimeParams["application_name"] = "shop-backend"
	c.MaxConns = connsMax
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return &Postgres{pool: pool}, nil
}

// Close ends all connections and waits for those in use.
func (p *Postgres) Close() { p.pool.Close() }

// Prepare creates the schema and its first rows. It is idempotent, and replicas that start together take turns: without the
// lock, two concurrent CREATE TABLE IF NOT EXISTS may both find nothing and one of them then fails.
func (p *Postgres) Prepare(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(schemaLock)); err != nil {
			return fmt.Errorf("take the schema lock: %w", err)
		}
		_, err := tx.Exec(ctx, schemaSQL)
		return err
	})
	if err != nil {
		return fmt.Errorf("prepare the schema: %w", err)
	}
	return nil
}

// Ping implements Store.
func (p *Postgres) Ping(ctx context.Context) error { return p.pool.Ping(ctx) }

const productColumns = "id, slug, name, description, price_cents"

// Products implements Store.
func (p *Postgres) Products(ctx context.Context) ([]Product, error) {
	rows, err := p.pool.Query(ctx, "SELECT "+productColumns+" FROM products ORDER BY id")
	if err != nil {
		return nil, fmt.Errorf("list products: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Product])
	if err != nil {
		return nil, fmt.Errorf("list products: %w", err)
	}
	return list, nil
}

// Product implements Store.
func (p *Postgres) Product(ctx context.Context, slug string) (Product, error) {
	rows, err := p.pool.Query(ctx, "SELECT "+productColumns+" FROM products WHERE slug = $1", slug)
	if err != nil {
		return Product{}, fmt.Errorf("read product %q: %w", slug, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Product])
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Product{}, fmt.Errorf("read product %q: %w", slug, err)
	}
	return v, nil
}

// PlaceOrder implements Store.
func (p *Postgres) PlaceOrder(ctx context.Context, key, customer string, items []Item) (Order, error) {
	var id int64
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		items, total, err := price(ctx, tx, items)
		if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `INSERT INTO orders (key, customer, total_cents) VALUES ($1, $2, $3)
			ON CONFLICT (key) DO NOTHING RETURNING id`, key, customer, total).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) { // placed before
			return tx.QueryRow(ctx, "SELECT id FROM orders WHERE key = $1", key).Scan(&id)
		}
		if err != nil {
			return err
		}
		for _, it := range items {
			if _, err := tx.Exec(ctx, "INSERT INTO order_items (order_id, product_id, quantity, price_cents) VALUES ($1, $2, $3, $4)",
				id, it.ProductID, it.Quantity, it.PriceCents); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Order{}, fmt.Errorf("place order: %w", err)
	}
	return p.Order(ctx, id)
}

// price gives each item its present price and returns them with their sum.
func price(ctx context.Context, tx pgx.Tx, items []Item) ([]Item, int64, error) {
	items = slices.Clone(items)
	var total int64
	for i := range items {
		it := &items[i]
		err := tx.QueryRow(ctx, "SELECT price_cents FROM products WHERE id = $1", it.ProductID).Scan(&it.PriceCents)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, 0, fmt.Errorf("%w %d", ErrUnknownProduct, it.ProductID)
		}
		if err != nil {
			return nil, 0, err
		}
		total += it.PriceCents * int64(it.Quantity)
	}
	return items, total, nil
}

// Orders implements Store.
func (p *Postgres) Orders(ctx context.Context, limit int) ([]Order, error) {
	rows, err := p.pool.Query(ctx, "SELECT id, customer, total_cents, created_at FROM orders ORDER BY created_at DESC, id DESC LIMIT $1", limit)
	if err != nil {
		return nil, fmt.Errorf("list orders: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o Order, err error) {
		err = row.Scan(&o.ID, &o.Customer, &o.TotalCents, &o.Created)
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("list orders: %w", err)
	}
	return list, nil
}

// Order implements Store.
func (p *Postgres) Order(ctx context.Context, id int64) (Order, error) {
	o := Order{ID: id}
	err := p.pool.QueryRow(ctx, "SELECT customer, total_cents, created_at FROM orders WHERE id = $1", id).
		Scan(&o.Customer, &o.TotalCents, &o.Created)
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Order{}, fmt.Errorf("read order %d: %w", id, err)
	}
	rows, err := p.pool.Query(ctx, `SELECT i.product_id, p.name, i.quantity, i.price_cents
		FROM order_items i JOIN products p ON p.id = i.product_id WHERE i.order_id = $1 ORDER BY i.product_id`, id)
	if err != nil {
		return Order{}, fmt.Errorf("read order %d: %w", id, err)
	}
	if o.Items, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Item]); err != nil {
		return Order{}, fmt.Errorf("read order %d: %w", id, err)
	}
	return o, nil
}
