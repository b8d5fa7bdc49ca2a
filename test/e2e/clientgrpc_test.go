package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
)

// plain is a codec for messages that are bytes.
type plain struct{}

var _ encoding.Codec = plain{}

func (plain) Name() string { return "plain" }

func (plain) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (plain) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// caller returns what makes a worker's next stream, and what ends its connection.
func (r request) caller() (send func() (string, error), hangUp func()) {
	fail := func(err error) (func() (string, error), func()) {
		return func() (string, error) { return "", err }, func() {}
	}
	address, method, _ := strings.Cut(strings.TrimPrefix(r.URL, "http://"), "/")
	if !strings.Contains(address, ":") {
		address += ":80"
	}
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(r.Host),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plain{})))
	if err != nil {
		return fail(err)
	}
	return func() (string, error) { return r.stream(c, "/"+method) }, func() { _ = c.Close() }
}

// stream exchanges the messages of one stream. It is not asked for again by the library: each failure counts.
func (r request) stream(c *grpc.ClientConn, method string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return "", fmt.Errorf("open the stream: %w", err)
	}
	for i := range r.GRPC {
		text, got := fmt.Appendf(nil, "message %d", i), []byte(nil)
		if err := s.SendMsg(&text); err != nil && !errors.Is(err, io.EOF) { // EOF: the next one says why
			return "", fmt.Errorf("send message %d: %w", i, err)
		}
		if err := s.RecvMsg(&got); err != nil {
			return "", fmt.Errorf("the echo of message %d: %w", i, err)
		}
		if string(got) != string(text) {
			return "", fmt.Errorf("the echo of %q is %q", text, got)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := s.CloseSend(); err != nil {
		return "", err
	}
	if err := s.RecvMsg(new([]byte)); !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("the end of the stream: %w", err)
	}
	return "stream", nil
}
