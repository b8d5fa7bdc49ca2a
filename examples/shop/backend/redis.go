package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

const hitsKey = "shop:hits"

// RedisCounter is the Counter on Redis.
type RedisCounter struct {
	client *redis.Client
}

var _ Counter = (*RedisCounter)(nil)

// NewRedisCounter reads a URL such as redis://cache:6379; it connects when first used.
func NewRedisCounter(url string) (*RedisCounter, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", err)
	}
	o.ClientName = "shop-backend"
	return &RedisCounter{client: redis.NewClient(o)}, nil
}

// Close ends all connections.
func (c *RedisCounter) Close() error { return c.client.Close() }

// Hit implements Counter.
func (c *RedisCounter) Hit(ctx context.Context) (int64, error) {
	n, err := c.client.Incr(ctx, hitsKey).Result()
	if err != nil {
		return 0, fmt.Errorf("count a hit: %w", err)
	}
	return n, nil
}

// Hits implements Counter.
func (c *RedisCounter) Hits(ctx context.Context) (int64, error) {
	n, err := c.client.Get(ctx, hitsKey).Int64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the hits: %w", err)
	}
	return n, nil
}
