package noderpc

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"

	"baton/internal/wire/agentapi"
)

// One direction's end leaves the other open, and what was said before it arrives.
func TestDialHalfClose(t *testing.T) {
	both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
		c, err := n.Dial(t.Context(), taskID, 7)
		if err != nil {
			t.Fatal(err)
		}
		sent := bytes.Repeat([]byte("0123456789"), 3*chunkSize/10)
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			if err == nil {
				err = c.CloseWrite()
			}
			wrote <- err
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes came back, want %d: %v", len(got), len(sent), err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		_ = c.Close()
		isClosed(t, f)
	})
}

// A caller that is gone must not leave a connection to the task, also when neither side says anything.
func TestDialEndsWithItsCaller(t *testing.T) {
	for name, end := range map[string]func(agentapi.Conn, context.CancelFunc){
		"close":  func(c agentapi.Conn, _ context.CancelFunc) { _ = c.Close() },
		"cancel": func(_ agentapi.Conn, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, f *fake, n agentapi.NodeServices) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c, err := n.Dial(ctx, taskID, 7)
				if err != nil {
					t.Fatal(err)
				}
				end(c, cancel)
				if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("a broken connection reads as %v", err)
				}
				isClosed(t, f)
			})
		})
	}
}

func TestDialTellsWhatTheNodeSaid(t *testing.T) {
	both(t, func(t *testing.T, _ *fake, n agentapi.NodeServices) {
		if _, err := n.Dial(t.Context(), taskID, 8); err == nil || err.Error() != errFew.Error() {
			t.Errorf("got %v, want %v", err, errFew)
		}
	})
}

func isClosed(t *testing.T, f *fake) {
	t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed == 0 {
		t.Error("the connection of the node is left open")
	}
}

func TestFilesOptionsArrive(t *testing.T) {
	both(t, func(t *testing.T, _ *fake, n agentapi.NodeServices) {
		c, err := n.Files(t.Context(), taskID, agentapi.FilesOptions{Path: "/echo", Write: true, Owners: true})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if _, err := n.Files(t.Context(), taskID, agentapi.FilesOptions{Path: "/echo"}); err == nil || err.Error() != errFew.Error() {
			t.Errorf("got %v, want %v", err, errFew)
		}
	})
}
