package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"baton/build/images/regtest"
)

// registryEnv makes this binary an image registry.
const registryEnv = "BATON_E2E_REGISTRY"

const registryHost = "127.0.0.1:5000"

// stock is what a registry has and how it behaves.
type stock struct {
	Login              regtest.Login
	Username, Password string
	Images             map[string]string // name with tag → archive
	Slow               string            // part of the paths that are held back until the file Gate is there
	Gate               string
}

// registryMain serves a registry until standard input closes.
func registryMain(spec string) int {
	var s stock
	err := json.Unmarshal([]byte(spec), &s)
	if err == nil {
		err = s.serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		return 1
	}
	return 0
}

func (s stock) serve() error {
	l, err := net.Listen("tcp", registryHost)
	if err != nil {
		return err
	}
	reg := &regtest.Registry{Login: s.Login, Username: s.Username, Password: s.Password}
	if s.Slow != "" {
		reg.Hold = func(r *http.Request) {
			for strings.Contains(r.URL.Path, s.Slow) && r.Context().Err() == nil {
				if _, err := os.Stat(s.Gate); err == nil {
					return
				}
				time.Sleep(20 * time.Millisecond) // another process makes the file
			}
		}
	}
	srv := &http.Server{Handler: reg}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	for ref, archive := range s.Images {
		if err := reg.Push(archive, registryHost+"/"+ref); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return errors.Join(srv.Close(), ignore(<-failed))
}

func ignore(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// registry starts a registry on the machine's loopback.
func (m *machine) registry(s stock) {
	m.t.Helper()
	for ref, name := range s.Images {
		s.Images[ref] = filepath.Join(images, name+".tar")
	}
	spec, err := json.Marshal(s)
	if err != nil {
		m.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), registryEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // closes with this process, however it ends
	if err != nil {
		m.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := startIn(m.ns, cmd); err != nil {
		m.t.Fatal("start registry: ", err)
	}
	m.t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		m.t.Fatalf("the registry says %q, %v", line, err)
	}
}

// registryFile is a stack of one web service with a host port, which can only be updated stop-first.
func (m *machine) registryFile(image, more string) string {
	return m.write("compose.yaml", "name: site\nservices:\n  web:\n    image: "+registryHost+"/team/"+image+"\n"+
		"    ports: [{target: 8080, published: 8080, mode: host}]\n"+probed+more)
}

// TestStopFirstUpdateHasItsImageFirst: what runs goes on while the next image comes slowly, and when it does not come at all.
func TestStopFirstUpdateHasItsImageFirst(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	gate := filepath.Join(m.dir, "gate")
	m.registry(stock{Images: map[string]string{"team/web:v1": "web-v1", "team/slow:v2": "web-v2"}, Slow: "/team/slow/", Gate: gate})
	m.baton("up", "-y", "-f", m.registryFile("web:v1", ""))
	first := m.live("web")[0]

	// An image that does not exist: rolled back, with nothing stopped.
	clients := startLoad(t, m.outside, request{URL: url("/"), Workers: 2, Pause: 10 * time.Millisecond})
	r := m.try("up", "-y", "-f", m.registryFile("web:v9", ""))
	if r.code != 3 || !strings.Contains(r.stdout+r.stderr, "registry does not have it") {
		t.Errorf("up with a missing image: exit code %d, want 3 with the reason\n%s%s", r.code, r.stdout, r.stderr)
	}
	if now := m.live("web"); len(now) != 1 || now[0].ID != first.ID {
		t.Errorf("after it %+v runs, want the task before", now)
	}
	// One that comes slowly: nothing stops before it is there.
	m.baton("up", "-y", "--detach", "-f", m.registryFile("slow:v2", ""))
	eventually(t, time.Minute, "it says that it waits for the image", func() error {
		if ls := m.baton("ls", "-o", "wide"); !strings.Contains(ls, "waits for image") {
			return errors.New(ls)
		}
		return nil
	})
	if why := m.baton("why", "web"); !strings.Contains(why, "waits for image "+registryHost+"/team/slow:v2 on node n1") {
		t.Errorf("why does not tell what it waits for:\n%s", why)
	}
	if now := m.live("web"); len(now) != 1 || now[0].ID != first.ID {
		t.Errorf("while it waits %+v runs, want the task before", now)
	}
	if got := clients.end(); got.Failures > 0 || got.Requests < 20 {
		t.Errorf("%d of %d requests failed before the image was there: %v", got.Failures, got.Requests, got.Errors)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the update goes on", func() error {
		if now := m.live("web"); len(now) != 1 || now[0].ID == first.ID || !now[0].Ready {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	if past := m.tasks("web", true); len(past) != 2 {
		t.Errorf("%d tasks, want the first one and its successor: a task must not have been made for an image that was not there", len(past))
	}
}

// TestPrivateImages deploys from registries that want a login: with each request, or for a token.
func TestPrivateImages(t *testing.T) {
	t.Parallel()
	for _, login := range []regtest.Login{regtest.Basic, regtest.Token} {
		t.Run(string(login), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			const password = "hunter2-hunter2"
			m.registry(stock{Login: login, Username: "me", Password: password, Images: map[string]string{"team/web:v1": "web-v1", "team/web:v2": "web-v2"}})
			r := m.try("up", "-y", "-f", m.registryFile("web:v1", ""))
			if r.code == 0 || !strings.Contains(r.stdout+r.stderr, "baton registry login "+registryHost) {
				t.Fatalf("without a login: exit code %d, want an error with the mend\n%s%s", r.code, r.stdout, r.stderr)
			}
			for _, wrong := range []string{"hunter3", ""} {
				if r := m.tryIn([]byte(wrong), "registry", "login", registryHost, "-u", "me", "--password-stdin"); r.code == 0 {
					t.Errorf("login with password %q: %s", wrong, r.stdout)
				}
			}
			if r := m.tryIn([]byte(password+"\n"), "registry", "login", registryHost, "-u", "me", "--password-stdin"); r.code != 0 {
				t.Fatal(r.stderr)
			}
			for _, tag := range []string{"v1", "v2"} { // the second one is pulled before the first is stopped
				m.baton("up", "-y", "-f", m.registryFile("web:"+tag, "    pull_policy: always\n"))
			}
			if body, err := m.ask(m.outside, url("/")); err != nil || body == "" {
				t.Errorf("got %q, %v", body, err)
			}
			shown := m.baton("registry", "ls", "-o", "json") + m.baton("events", "-o", "json") + m.baton("why", "web") + m.baton("ps", "-a", "-o", "json") + m.baton("node", "inspect", "n1", "-o", "json")
			if strings.Contains(shown, password) {
				t.Error("the password is shown")
			}
			if !strings.Contains(shown, registryHost) {
				t.Error("the registry is not listed")
			}
			if found := filesWith(t, m.dir, password); len(found) > 0 {
				t.Errorf("the password lies in clear in %v", found)
			}
			before := m.live("web")[0].ID
			m.baton("restart", "web")
			running := m.live("web")[0].ID
			if running == before {
				t.Error("the restart replaced nothing")
			}
			// With pull_policy always the registry is asked for each restart: it refuses, and nothing is stopped for it.
			m.baton("registry", "logout", registryHost)
			if r := m.try("restart", "web"); r.code == 0 {
				t.Errorf("restart without credentials: exit code 0\n%s", r.stdout)
			}
			if now := m.live("web"); len(now) != 1 || now[0].ID != running {
				t.Errorf("after it %+v runs, want task %s as before", now, running)
			}
		})
	}
}
