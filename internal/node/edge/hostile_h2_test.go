package edge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2 is a client of HTTP/2 that writes whatever frames it likes.
type h2 struct {
	c net.Conn
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func dialH2(t *testing.T, at string) *h2 {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(waitMax)); err != nil {
		t.Fatal(err)
	}
	h := &h2{c: c, Framer: http2.NewFramer(c, c)}
	h.AllowIllegalWrites = true
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.enc = hpack.NewEncoder(&h.block)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

// headers encodes pairs of name and value.
func (h *h2) headers(fields ...string) []byte {
	h.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = h.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(h.block.Bytes())
}

// answer is what became of stream 1: a status, how it was reset, or how the connection ended.
func (h *h2) answer() string {
	for {
		f, err := h.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return f.ErrCode.String()
		case *http2.GoAwayFrame:
			return f.ErrCode.String()
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.WriteSettingsAck()
			}
		}
	}
}

// TestSmugglingByHTTP2 sends what would be another request, or another header, if it were written out as HTTP/1.
func TestSmugglingByHTTP2(t *testing.T) {
	const next = "GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n"
	get := []string{":method", "GET", ":scheme", "http", ":authority", "a.example", ":path", "/first"}
	with := func(name, value string) []string { return append(append([]string{}, get...), name, value) }
	instead := func(name, value string) []string {
		out := append([]string{}, get...)
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = value
			}
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		fields []string
		body   string
		want   string // one of these
	}{
		{"plain", get, "", "200"},
		{"shorter body than said", append(instead(":method", "POST"), "content-length", "90"), next, "PROTOCOL_ERROR 502 closed"},
		{"longer body than said", append(instead(":method", "POST"), "content-length", "0"), next, "PROTOCOL_ERROR 200 STREAM_CLOSED"},
		{"transfer-encoding", append(instead(":method", "POST"), "transfer-encoding", "chunked"), "0\r\n\r\n" + next, "PROTOCOL_ERROR 400"},
		{"te", with("te", "chunked"), "", "PROTOCOL_ERROR 400"},
		{"connection", with("connection", "transfer-encoding"), "", "PROTOCOL_ERROR 400"},
		{"line end in a value", with("x-a", "b\r\n\r\n"+next), "", "PROTOCOL_ERROR 400"},
		{"line end in a name", with("x-a: b\r\nx-c", "d"), "", "PROTOCOL_ERROR 400"},
		{"name with a colon", with("x-a:b", "d"), "", "PROTOCOL_ERROR 400"},
		{"name in upper case", with("X-A", "b"), "", "PROTOCOL_ERROR 400"},
		{"NUL in a value", with("x-a", "b\x00"), "", "PROTOCOL_ERROR 400"},
		{"line end in the path", instead(":path", "/first HTTP/1.1\r\nHost: a.example\r\n\r\n"+next), "", "PROTOCOL_ERROR 400"},
		{"space in the path", instead(":path", "/first HTTP/1.1 /next"), "", "PROTOCOL_ERROR 400 200"},
		{"path that is a URL", instead(":path", "http://evil.example/"), "", "200"},
		{"empty path", instead(":path", ""), "", "PROTOCOL_ERROR 400"},
		{"method with a request in it", instead(":method", "GET /next HTTP/1.1\r\n"), "", "PROTOCOL_ERROR 400"},
		{"authority with a line end", instead(":authority", "a.example\r\nX: y"), "", "PROTOCOL_ERROR 400"},
		{"authority with a user", instead(":authority", "a.example@evil.example"), "", "PROTOCOL_ERROR 400 404"},
		{"authority with a path", instead(":authority", "a.example/x"), "", "PROTOCOL_ERROR 400 404"},
		{"host that differs", with("host", "evil.example"), "", "PROTOCOL_ERROR 400 200"},
		{"two paths", with(":path", "/next"), "", "PROTOCOL_ERROR 400"},
		{"unknown pseudo header", with(":next", "/next"), "", "PROTOCOL_ERROR 400"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := startWitness(t)
			e := newEdge(t)
			e.Apply(w.state())
			at, _ := serve(t, e)
			h := dialH2(t, at)
			err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.headers(tc.fields...), EndHeaders: true, EndStream: tc.body == ""})
			if err == nil && tc.body != "" {
				err = h.WriteData(1, true, []byte(tc.body))
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := h.answer(); !strings.Contains(" "+tc.want+" ", " "+got+" ") {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			w.unmoved(t)
		})
	}
}

// unmoved holds that no request for /next, and none for another host, came out of a client's fields.
func (w *witness) unmoved(t *testing.T) {
	t.Helper()
	for _, line := range w.check(t) {
		if strings.HasPrefix(line, "GET /next") || strings.Count(line, " ") != 2 {
			t.Errorf("the task got %q", line)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.all {
		if strings.Contains(b.String(), "evil.example") {
			t.Errorf("the task got %q", b)
		}
	}
}

// TestFloods sends frames that cost a server more than the client. The edge ends the connection, or bears it, and serves others meanwhile.
func TestFloods(t *testing.T) {
	const many = 20_000
	get := []string{":method", "GET", ":scheme", "http", ":authority", "a.example", ":path", "/"}
	for _, tc := range []struct {
		name   string
		closes bool
		flood  func(h *h2, i int) error
	}{
		{"rapid reset", false, func(h *h2, i int) error {
			id := uint32(2*i + 1)
			return errors.Join(h.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.headers(get...), EndHeaders: true, EndStream: true}),
				h.WriteRSTStream(id, http2.ErrCodeCancel))
		}},
		{"continuation", true, func(h *h2, i int) error {
			if i == 0 {
				return h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.headers(get...)})
			}
			return h.WriteContinuation(1, false, h.headers("x-a", strings.Repeat("b", 100)))
		}},
		{"settings", true, func(h *h2, _ int) error {
			return h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		}},
		{"ping", true, func(h *h2, i int) error { return h.WritePing(false, [8]byte{byte(i)}) }},
		{"empty data", false, func(h *h2, i int) error {
			if i == 0 {
				return h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.headers(get...), EndHeaders: true})
			}
			return h.WriteData(1, false, nil)
		}},
		{"window beyond its bound", true, func(h *h2, _ int) error { return h.WriteWindowUpdate(0, 1<<31-1) }},
		{"streams without end", false, func(h *h2, i int) error {
			return h.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: h.headers(get...), EndHeaders: true})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := startWitness(t)
			e := newEdge(t)
			e.Apply(w.state())
			at, _ := serve(t, e)
			before := runtime.NumGoroutine()
			h := dialH2(t, at)
			if err := h.c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil { // nothing is read: at some point the edge takes no more
				t.Fatal(err)
			}
			var err error
			most := 0
			for i := 0; i < many && err == nil; i++ {
				err = tc.flood(h, i)
				most = max(most, runtime.NumGoroutine())
			}
			if tc.closes && err == nil {
				until(t, "the edge to close the connection", func() bool { _, err = h.ReadFrame(); return err != nil })
			}
			// A request takes a handler and three goroutines of the connection to the task, there and back.
			if most-before > 10*streamsMax {
				t.Errorf("%d goroutines for one connection", most-before)
			}
			if got := fmt.Sprint(sendRaw(t, at, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 1)); got != "[200]" {
				t.Errorf("another client got %s", got)
			}
			_ = h.c.Close()
			until(t, "the requests of the flood to end", func() bool { return e.Connections(netip.MustParseAddr(w.at)) == 0 })
		})
	}
}
