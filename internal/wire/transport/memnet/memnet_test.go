package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pair connects a to b.
func pair(t *testing.T, n *Network) (near, far net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen(t.Context(), ":1")
	if err != nil {
		t.Fatal(err)
	}
	near, err = n.Host("a").Dial(t.Context(), "b:1")
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

func fixed(d time.Duration) func(string, string) time.Duration {
	return func(string, string) time.Duration { return d }
}

func TestBytesArriveInOrderAfterTheLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t, New(fixed(3*time.Millisecond)))
		sent := bytes.Repeat([]byte("0123456789"), 300_000) // more than fits under way
		begin := time.Now()
		go func() {
			if _, err := near.Write(sent); err != nil {
				t.Error(err)
			}
			near.Close()
		}()
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("got %d bytes, %v; want the %d that were sent", len(got), err, len(sent))
		}
		if took := time.Since(begin); took < 3*time.Millisecond || took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestACutHoldsBackAndHealingDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(fixed(time.Millisecond))
		near, far := pair(t, n)
		n.Cut("a", "b")
		if _, err := near.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := far.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		if _, err := far.Read(buf); err == nil {
			t.Error("the byte came through")
		}
		n.Heal()
		if err := far.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(far, buf); err != nil || buf[0] != 'x' {
			t.Errorf("after healing: got %q, %v", buf, err)
		}
	})
}

func TestALongCutInEitherDirectionResetsTheSender(t *testing.T) {
	for _, way := range [][2]string{{"a", "b"}, {"b", "a"}} {
		synctest.Test(t, func(t *testing.T) {
			n := New(fixed(time.Millisecond))
			near, far := pair(t, n)
			n.Cut(way[0], way[1])
			if _, err := near.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			_, err := near.Read(make([]byte, 1))
			took := time.Since(begin)
			if !errors.Is(err, errReset) || took < DeadAfter || took > DeadAfter+2*deadLook {
				t.Errorf("cut from %s: got %v after %s", way[0], err, took)
			}
			far.Close()
			near.Close()
		})
	}
}

func TestStoppedAndResetHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(fixed(time.Millisecond))
		near, _ := pair(t, n)
		n.Reset("b")
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, errReset) {
			t.Errorf("the other process was killed: got %v", err)
		}
		if _, err := n.Host("a").Dial(t.Context(), "b:1"); !errors.Is(err, errRefused) {
			t.Errorf("nobody listens: got %v", err)
		}
		near, _ = pair(t, n)
		n.Stop("b")
		if err := near.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := near.Read(make([]byte, 1)); errors.Is(err, errReset) {
			t.Error("a machine without power was heard")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Host("a").Dial(ctx, "b:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a machine without power answered: %v", err)
		}
		n.Start("b")
		if err := near.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, errReset) {
			t.Errorf("the machine is back and knows nothing: got %v", err)
		}
	})
}
