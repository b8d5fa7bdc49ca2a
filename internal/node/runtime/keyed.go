package runtime

import (
	"context"
	"sync"
)

// keyed lets one holder at a time in per key. Unlike a mutex it may be held over I/O, and waiting for it can be given up.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when its holder leaves
}

func (k *keyed) init() { k.held = map[string]chan struct{}{} }

// enter waits until nobody holds key. The caller must call leave.
func (k *keyed) enter(ctx context.Context, key string) (leave func(), err error) {
	for {
		k.mu.Lock()
		busy, ok := k.held[key]
		if !ok {
			mine := make(chan struct{})
			k.held[key] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
