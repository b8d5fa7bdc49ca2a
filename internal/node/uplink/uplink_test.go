package uplink

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"baton/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// line is a session whose other end is the test.
type line struct {
	mu     sync.Mutex
	sent   []agentapi.Report
	at     []time.Time
	stuck  bool // nothing can be sent any more: what was sent before fills the way
	out    chan agentapi.Update
	closed chan struct{}
	once   sync.Once
	hello  agentapi.Hello
}

func newLine() *line { return &line{out: make(chan agentapi.Update, 64), closed: make(chan struct{})} }

var (
	errEnded                    = errors.New("session ended")
	_        agentapi.Connector = (*line)(nil)
)

func (l *line) Connect(_ context.Context, h agentapi.Hello) (agentapi.Session, error) {
	l.hello = h
	return l, nil
}

// Send waits for nobody but Close, as that of a stream whose way is full.
func (l *line) Send(_ context.Context, r agentapi.Report) error {
	l.mu.Lock()
	stuck := l.stuck
	if !stuck {
		l.sent, l.at = append(l.sent, r), append(l.at, time.Now())
	}
	l.mu.Unlock()
	if stuck {
		<-l.closed
		return errEnded
	}
	return nil
}

func (l *line) Recv(ctx context.Context) (agentapi.Update, error) {
	select {
	case u := <-l.out:
		return u, nil
	case <-ctx.Done():
		return agentapi.Update{}, ctx.Err()
	case <-l.closed:
		return agentapi.Update{}, errEnded
	}
}

func (l *line) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

// last is the newest heartbeat and when it was sent.
func (l *line) last() (uint64, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent[len(l.sent)-1].Beat, l.at[len(l.at)-1]
}

func open(t *testing.T, l *line, m func(agentapi.Membership)) agentapi.Session {
	t.Helper()
	s, err := Beating{Inner: l, Membership: m}.Connect(t.Context(), agentapi.Hello{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// silence takes what a session receives until it ends, and returns why and after how long without an answer.
func silence(t *testing.T, s agentapi.Session) (time.Duration, error) {
	t.Helper()
	quiet := time.Now()
	for {
		if _, err := s.Recv(t.Context()); err != nil {
			return time.Since(quiet), err
		}
		quiet = time.Now()
	}
}

// A session ends once the manager has been silent for SilentMax, soon after and not before; what is stuck on its way out
// changes nothing of that.
func TestSilenceEndsASession(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine()
			s := open(t, l, nil)
			defer s.Close()
			for range 5 { // a manager that answers just in time
				go func() { time.Sleep(SilentMax - 100*time.Millisecond); l.out <- agentapi.Update{Echo: 1} }()
				if _, err := s.Recv(t.Context()); err != nil {
					t.Fatalf("while it answers: %v", err)
				}
			}
			l.mu.Lock()
			l.stuck = stuck
			l.mu.Unlock()
			took, err := silence(t, s)
			if !errors.Is(err, errSilent) || took < SilentMax || took > SilentMax+2*BeatEvery/10 {
				t.Errorf("stuck %v: ended after %s: %v", stuck, took, err)
			}
		})
	}
}

// A heartbeat that the leader has confirmed is told with the time at which it was sent, not with that of the answer.
func TestConfirmedIsTheTimeOfSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine()
		s := open(t, l, nil)
		defer s.Close()
		for i := range 5 {
			time.Sleep(BeatEvery / 2)
			synctest.Wait()
			number, sent := l.last()
			time.Sleep(300 * time.Millisecond)
			l.out <- agentapi.Update{Beat: number}
			u, err := s.Recv(t.Context())
			if err != nil || !u.Confirmed.Equal(sent) {
				t.Fatalf("round %d: confirmed %v, want %v, %v", i, u.Confirmed, sent, err)
			}
		}
		// A heartbeat that nobody sent, or so long ago that it is forgotten, confirms nothing.
		l.out <- agentapi.Update{Beat: 1 << 40}
		if u, err := s.Recv(t.Context()); err != nil || !u.Confirmed.IsZero() {
			t.Errorf("a heartbeat of nobody confirms %v, %v", u.Confirmed, err)
		}
		l.out <- agentapi.Update{Echo: 3}
		if u, err := s.Recv(t.Context()); err != nil || !u.Confirmed.IsZero() {
			t.Errorf("an echo confirms %v, %v", u.Confirmed, err)
		}
	})
}

func TestHeartbeatsAreRegularAndNumbered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine()
		s := open(t, l, nil)
		go func() {
			for range 100 {
				l.out <- agentapi.Update{}
				time.Sleep(BeatEvery)
			}
		}()
		go func() {
			for {
				if _, err := s.Recv(t.Context()); err != nil {
					return
				}
			}
		}()
		time.Sleep(90*BeatEvery + BeatEvery/2)
		l.mu.Lock()
		for i, r := range l.sent {
			if r.Beat != uint64(i+1) || !r.Empty() {
				t.Errorf("report %d: %+v", i, r)
			}
		}
		if n := len(l.sent); n != 91 {
			t.Errorf("%d heartbeats in 90 s", n)
		}
		l.mu.Unlock()
		b := s.(*beating)
		b.mu.Lock()
		if n := len(b.sent); n > beatsKept {
			t.Errorf("%d heartbeats are remembered, at most %d may", n, beatsKept)
		}
		b.mu.Unlock()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		n := len(l.sent)
		time.Sleep(10 * BeatEvery)
		if len(l.sent) != n {
			t.Error("heartbeats go on after Close")
		}
		time.Sleep(10 * BeatEvery) // lets the manager of this test end
	})
}

// What a manager says of the membership is passed on before the update.
func TestMembershipComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine()
		var got []string
		s := open(t, l, func(m agentapi.Membership) { got = append(got, m.Role) })
		defer s.Close()
		l.out <- agentapi.Update{Membership: &agentapi.Membership{Role: "worker"}}
		l.out <- agentapi.Update{}
		for range 2 {
			if _, err := s.Recv(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0] != "worker" {
				t.Errorf("told: %v", got)
			}
		}
	})
}

// Sessions are numbered so that the newer of two is known.
func TestSessionsAreNumbered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last uint64
		for range 3 {
			l := newLine()
			s := open(t, l, nil)
			if l.hello.Session <= last {
				t.Errorf("session %d after %d", l.hello.Session, last)
			}
			last = l.hello.Session
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// The end of the session, or of the caller, is told as it is.
func TestOtherEndsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine()
		s := open(t, l, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Recv(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		_ = l.Close()
		if _, err := s.Recv(t.Context()); !errors.Is(err, errEnded) {
			t.Errorf("got %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The load is told at once and then regularly, until the session ends; a node that takes its time to measure keeps its heartbeats.
func TestLoadIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine()
		var asked []int
		s, err := Beating{Inner: l, Membership: func(agentapi.Membership) {}, Measure: func(ctx context.Context, i int) (agentapi.Measures, bool) {
			asked = append(asked, i)
			if i == 3 {
				<-ctx.Done() // it hangs
			}
			return agentapi.Measures{Full: true, At: time.Now()}, i != 1
		}}.Connect(t.Context(), agentapi.Hello{})
		if err != nil {
			t.Fatal(err)
		}
		var echo sync.WaitGroup // it may sleep when the session ends
		echo.Go(func() {
			for range 40 {
				l.out <- agentapi.Update{Echo: 1}
				if _, err := s.Recv(t.Context()); err != nil {
					return
				}
				time.Sleep(BeatEvery / 2)
			}
		})
		began := time.Now()
		time.Sleep(14900 * time.Millisecond) // not when anything else happens
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		echo.Wait()
		var told []time.Duration
		beats := 0
		for i, r := range l.sent {
			if r.Measures != nil {
				told = append(told, l.at[i].Sub(began))
			} else {
				beats++
			}
		}
		if len(asked) != 4 || len(told) < 2 || told[0] != 0 || told[1] != 2*agentapi.MeasureEvery || beats < 14 {
			t.Errorf("asked %v, told after %v, %d heartbeats", asked, told, beats)
		}
	})
}
