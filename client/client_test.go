package client

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"baton/client/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAddresses(t *testing.T) {
	for addr, ok := range map[string]bool{
		"unix:///run/baton/baton.sock": true, "https://n1:7701": true, "http://127.0.0.1:7701": true, "http://localhost:1": true, "http://[::1]:1": true,
		"http://10.0.0.1:7701": false, "http://localhost.example.org": false, "unix://run/baton.sock": false, "n1:7701": false, "": false, "https://": false,
		"https://n1/path": false, "tcp://n1:1": false,
		"https://n1:7701,n2:7701,10.0.0.3:7701": true, "https://[fd00::1]:7701,[fd00::2]:7701": true, "https://n1:7701,": false,
		"https://n1:7701,n2": false, "https://n1:7701,n2:7701/path": false, "http://127.0.0.1:1,127.0.0.1:2": false,
	} {
		_, err := New(Config{Address: addr})
		var e *api.Error
		if ok != (err == nil) || err != nil && (!errors.As(err, &e) || e.Mend == "") {
			t.Errorf("%q: %v, want success: %v", addr, err, ok)
		}
	}
}

// Reads are tried again when the connection fails; what changes something is sent once.
func TestRetries(t *testing.T) {
	var calls atomic.Int32
	ts := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	}))
	defer ts.Close()
	c, err := New(Config{Address: ts.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var e *api.Error
	if _, err := c.Stacks(context.Background()); !errors.As(err, &e) || e.Code != api.CodeUnreachable {
		t.Errorf("error: %v", err)
	}
	// net/http itself repeats a request whose idle connection was closed under it, so that there may be more.
	if n := calls.Load(); n < readTries {
		t.Errorf("a read was sent %d times, want %d", n, readTries)
	}
	calls.Store(0)
	if _, err := c.Scale(context.Background(), "", "web", 2); err == nil {
		t.Error("no error")
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("a change was sent %d times", n)
	}
}

func FuzzStream(f *testing.F) {
	f.Add("{}\n{\"item\":{\"text\":\"a\"}}\n{\"error\":{\"code\":\"x\",\"detail\":\"y\"}}\n")
	f.Add("{\"item\":1}\n")
	f.Fuzz(func(t *testing.T, body string) {
		lines := strings.Count(body, "\n") + 1
		n := 0
		_ = readStream(strings.NewReader(body), func(api.LogLine, error) bool { n++; return true })
		if n > lines {
			t.Errorf("%d items of %d lines", n, lines)
		}
	})
}

func FuzzExecFrame(f *testing.F) {
	f.Add([]byte{api.ExecStdin})
	f.Add([]byte("\x03{\"width\":80,\"height\":24}"))
	f.Add([]byte("\x04{\"code\":1}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := api.ParseExecFrame(b)
		if (err == nil) != (err == nil && frame.Channel <= api.ExecExit) || err != nil && !errors.Is(err, api.ErrFrame) {
			t.Errorf("%x: %+v, %v", b, frame, err)
		}
	})
}
