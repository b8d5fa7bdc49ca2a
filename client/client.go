package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"baton/client/api"
)

// Limits of a client.
const (
	answerMax   = 256 << 20 // bytes of one document
	lineMax     = 16 << 20  // bytes of one line of a stream
	dialTimeout = 5 * time.Second
	readTries   = 3 // of a read whose connection failed
	retryDelay  = 100 * time.Millisecond
)

// Config says where the API is.
type Config struct {
	// Address is unix:///path/to.sock, https://host:port, or http://host:port with a loopback host. An https address may name
	// several managers, as in https://h1:7701,h2:7701: the first one that answers is used.
	Address string
	// TLS says who the cluster and the caller are; nil: as the system decides, and no certificate.
	TLS *TLS
	// UserAgent is sent with each request; default "baton-client".
	UserAgent string
}

// TLS is what an https address needs to reach a cluster: whom to trust, and the caller's certificate (all PEM).
type TLS struct {
	Roots       []byte `json:"roots"`
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
}

// managerName is in the certificate of every manager.
const managerName = "manager.baton.internal"

// config makes what crypto/tls needs.
func (t *TLS) config() (*tls.Config, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(t.Roots) {
		return nil, api.Errorf(api.CodeInvalid, "there is no certificate to trust")
	}
	cert, err := tls.X509KeyPair(t.Certificate, t.Key)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "the certificate and its key cannot be used: %s", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}, ServerName: managerName}, nil
}

// Client speaks to a cluster through one of its managers at a time. It never gets an answer that is older than what it was
// answered before. Make one with New.
type Client struct {
	base  string // scheme and host of the URLs
	shown string // the address as the user knows it
	agent string
	http  *http.Client
	// seen is the highest version of the store that any answer told: no later answer may be older, whichever manager gives it.
	seen atomic.Uint64
	// upgrade is for WebSockets, which need HTTP/1.1.
	upgrade *http.Client
}

// New checks the address; it does not connect.
func New(cfg Config) (*Client, error) {
	c := &Client{shown: cfg.Address, agent: cfg.UserAgent}
	if c.agent == "" {
		c.agent = "baton-client"
	}
	u, hosts, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, badAddress(cfg.Address, "it cannot be read")
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	transport := &http.Transport{
		DialContext: dialer.DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: dialTimeout, ForceAttemptHTTP2: true,
	}
	switch u.Scheme {
	case "unix":
		path := u.Path
		if path == "" || u.Host != "" {
			return nil, badAddress(cfg.Address, "a socket's path starts with a slash: unix:///run/baton/baton.sock")
		}
		c.base = "http://baton"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
	case "https", "http":
		if u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
			return nil, badAddress(cfg.Address, "it must be scheme, host and port only")
		}
		if len(hosts) > 1 {
			if u.Scheme == "http" {
				return nil, badAddress(cfg.Address, "several managers are reached by https:// only")
			}
			transport.DialContext = anyOf(dialer, hosts)
			u.Host = managerName
		}
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			return nil, badAddress(cfg.Address, "http:// is for this machine only, since anybody on the way could read and change what is sent: use https://")
		}
		c.base = u.Scheme + "://" + u.Host
		transport.Proxy = http.ProxyFromEnvironment
	default:
		return nil, badAddress(cfg.Address, "it must start with unix:// or https://")
	}
	if cfg.TLS != nil {
		if transport.TLSClientConfig, err = cfg.TLS.config(); err != nil {
			return nil, err
		}
		transport.Proxy = nil
	}
	upgrade := transport.Clone()
	upgrade.ForceAttemptHTTP2, upgrade.Protocols = false, new(http.Protocols)
	upgrade.Protocols.SetHTTP1(true)
	c.http, c.upgrade = &http.Client{Transport: transport}, &http.Client{Transport: upgrade}
	return c, nil
}

// parseAddress reads an address that may name several hosts. Each is read on its own: a URL has one, and net/url refuses what looks like
// several ports.
func parseAddress(address string) (first *url.URL, hosts []string, err error) {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok || !strings.Contains(rest, ",") || scheme == "unix" {
		first, err = url.Parse(address)
		return first, nil, err
	}
	for host := range strings.SplitSeq(rest, ",") {
		u, err := url.Parse(scheme + "://" + host)
		if err != nil {
			return nil, nil, err
		}
		if u.Port() == "" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
			return nil, nil, fmt.Errorf("%q is not host and port", host)
		}
		if first == nil {
			first = u
		}
		hosts = append(hosts, u.Host)
	}
	return first, hosts, nil
}

// anyOf dials the first of several managers that answers, beginning with the one that did last.
func anyOf(d *net.Dialer, hosts []string) func(context.Context, string, string) (net.Conn, error) {
	var last atomic.Int32
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var errs error
		first := int(last.Load())
		for i := range hosts {
			at := (first + i) % len(hosts)
			c, err := d.DialContext(ctx, network, hosts[at])
			if err == nil {
				last.Store(int32(at))
				return c, nil
			}
			errs = errors.Join(errs, err)
		}
		return nil, errs
	}
}

func badAddress(address, why string) error {
	return api.Errorf(api.CodeInvalid, "address %q: %s", address, why).WithMend("give it as --host unix:///run/baton/baton.sock or https://HOST:7701, or in BATON_HOST")
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// Close closes idle connections.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.upgrade.CloseIdleConnections()
}

// Address is where the client sends its requests, as it was given.
func (c *Client) Address() string { return c.shown }

// query builds the parameters of a request, leaving out empty ones.
type query url.Values

func (q query) set(name string, value any) query {
	s := ""
	switch v := value.(type) {
	case string:
		s = v
	case bool:
		if v {
			s = "true"
		}
	case int:
		if v != 0 {
			s = fmt.Sprint(v)
		}
	case uint16:
		if v != 0 {
			s = fmt.Sprint(v)
		}
	case time.Time:
		if !v.IsZero() {
			s = v.UTC().Format(time.RFC3339Nano)
		}
	}
	if s != "" {
		url.Values(q).Set(name, s)
	}
	return q
}

// path escapes each part, slashes too, and puts them behind /v1.
func path(parts ...string) string {
	var b strings.Builder
	b.WriteString("/v1")
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

func (c *Client) request(ctx context.Context, method, path string, q query, body io.Reader) (*http.Request, error) {
	u := c.base + path
	if len(q) > 0 {
		u += "?" + url.Values(q).Encode()
	}
	r, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "the request cannot be written: %s", err)
	}
	r.Header.Set("User-Agent", c.agent)
	r.Header.Set("Accept", "application/json, application/x-ndjson")
	c.askCurrent(r.Header)
	return r, nil
}

// askCurrent makes a manager answer with nothing older than what was seen.
func (c *Client) askCurrent(h http.Header) {
	if v := c.seen.Load(); v > 0 {
		h.Set(api.HeaderVersionMin, strconv.FormatUint(v, 10))
	}
}

// note remembers the version that came with an answer.
func (c *Client) note(resp *http.Response) {
	v, err := strconv.ParseUint(resp.Header.Get(api.HeaderVersion), 10, 64)
	if err != nil {
		return // not from a manager, or from one of an older version
	}
	for {
		old := c.seen.Load()
		if v <= old || c.seen.CompareAndSwap(old, v) {
			return
		}
	}
}

// do sends a request and returns an answer with status 2xx, or an *api.Error, or ctx's error.
func (c *Client) do(r *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(r)
	if err != nil {
		if cerr := r.Context().Err(); cerr != nil {
			return nil, cerr
		}
		return nil, c.unreachable(err)
	}
	c.note(resp)
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, decodeError(resp)
}

func decodeError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, lineMax))
	e := new(api.Error)
	if json.Unmarshal(b, e) != nil || e.Code == "" || e.Message == "" {
		return api.Errorf(api.CodeInternal, "the server answered %s without saying why", resp.Status).WithMend("is it Baton that answers at this address?")
	}
	return e
}

// unreachable tells why nobody answered, in words that help.
func (c *Client) unreachable(err error) error {
	e := api.Errorf(api.CodeUnreachable, "cannot reach the server at %s", c.shown)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Message += ": there is no such socket"
		return e.WithMend("start a node with `baton server`, or choose another with --host or BATON_HOST")
	case errors.Is(err, fs.ErrPermission):
		e.Message += ": you may not open its socket"
		return e.WithMend("run it as root, or join the group baton: `sudo usermod -aG baton $USER`, then log in again")
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Message += ": nobody listens there"
		return e.WithMend("start a node with `baton server`, or choose another with --host or BATON_HOST")
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		e.Message += ": it does not answer"
		return e.WithMend("check the address and the network")
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF) {
		e.Message += ": it closed the connection"
		return e.WithMend("look at the server's log")
	}
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	e.Message += ": " + err.Error()
	return e.WithMend("check the address and the network")
}

// get reads a document, trying again when the connection fails.
func get[T any](ctx context.Context, c *Client, path string, q query) (T, error) {
	var out T
	for try := 1; ; try++ {
		err := c.call(ctx, http.MethodGet, path, q, nil, &out)
		var e *api.Error
		if err == nil || !errors.As(err, &e) || e.Code != api.CodeUnreachable || try == readTries {
			return out, err
		}
		select {
		case <-ctx.Done():
			return out, ctx.Err()
		case <-time.After(retryDelay):
		}
	}
}

// send makes a change and reads what came of it.
func send[T any](ctx context.Context, c *Client, method, path string, q query, in any) (T, error) {
	var out T
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return out, api.Errorf(api.CodeInvalid, "the request cannot be written: %s", err)
		}
		body = bytes.NewReader(b)
	}
	return out, c.call(ctx, method, path, q, body, &out)
}

func (c *Client) call(ctx context.Context, method, path string, q query, body io.Reader, out any) error {
	r, err := c.request(ctx, method, path, q, body)
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, answerMax)).Decode(out); err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		return api.Errorf(api.CodeUnreachable, "the answer of %s was cut short or is not one", c.shown).WithMend("is it Baton that answers at this address?")
	}
	return nil
}

// stream yields the items of an NDJSON stream. The last pair may carry an error; leaving the loop closes the connection.
func stream[T any](ctx context.Context, c *Client, path string, q query) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		r, err := c.request(ctx, http.MethodGet, path, q, nil)
		if err != nil {
			yield(zero, err)
			return
		}
		resp, err := c.do(r)
		if err != nil {
			yield(zero, err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		if err := readStream(resp.Body, yield); err != nil {
			if cerr := ctx.Err(); cerr != nil {
				err = cerr
			} else if !errors.As(err, new(*api.Error)) {
				err = c.unreachable(err)
			}
			yield(zero, err)
		}
	}
}

// readStream decodes lines until the end. It returns nil at the end and when yield wants no more.
func readStream[T any](body io.Reader, yield func(T, error) bool) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 64<<10), lineMax)
	for lines.Scan() {
		var l api.StreamLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return api.Errorf(api.CodeUnreachable, "a line of the stream cannot be read").WithMend("is it Baton that answers at this address?")
		}
		switch {
		case l.Error != nil:
			return l.Error
		case l.Item == nil:
			continue // keeps the connection alive
		}
		var item T
		if err := json.Unmarshal(l.Item, &item); err != nil {
			return api.Errorf(api.CodeUnreachable, "an item of the stream cannot be read").WithMend("use the same version of client and server")
		}
		if !yield(item, nil) {
			return nil
		}
	}
	return lines.Err()
}
