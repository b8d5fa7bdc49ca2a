package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
)

// backedUp is what the server of the tests gives as a backup.
const backedUp = "the whole state, with its key"

// restore runs `baton cluster restore` and returns what reached its hook.
func restore(t *testing.T, stdin string, args ...string) (got, errOut string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	a := newApp(strings.NewReader(stdin), &o, &e, Hooks{Restore: func(_ context.Context, r RestoreOptions) (Recovered, error) {
		data, err := io.ReadAll(r.Backup)
		got = string(data)
		return Recovered{Cluster: "test", Node: "n9", Nodes: []string{"n1"}}, err
	}})
	code = a.run(t.Context(), append([]string{"cluster", "restore"}, args...))
	return got, e.String(), code
}

func TestBackupIsEncryptedAndOpened(t *testing.T) {
	c := newCluster(t, false)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	keyFile, pass, other := file("key", key.String()+"\n"), file("pass", "correct horse\n"), file("other", "wrong horse!\n")
	for name, b := range map[string]struct {
		stdin  string
		backup []string
		good   []string // opens it
		bad    []string // does not
		says   string
	}{
		"passphrase in a file":    {"", []string{"--passphrase-file", pass}, []string{"--passphrase-file", pass}, []string{"--passphrase-file", other}, "the passphrase does not open"},
		"passphrase of the input": {"correct horse\n", []string{"--passphrase-stdin"}, []string{"--passphrase-file", pass}, []string{"--identity", keyFile}, "the key does not open"},
		"recipient":               {"", []string{"--recipient", key.Recipient().String()}, []string{"--identity", keyFile}, []string{"--passphrase-file", pass}, "--identity FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			out, errOut, code := c.run(b.stdin, append([]string{"cluster", "backup"}, b.backup...)...)
			if code != 0 || strings.Contains(out, backedUp) || !strings.HasPrefix(out, ageHeader) {
				t.Fatalf("exit %d, %d bytes\n%s", code, len(out), errOut)
			}
			from := file("backup", out)
			if got, errOut, code := restore(t, "", append(b.good, from)...); got != backedUp || code != 0 {
				t.Errorf("got %q, exit %d\n%s", got, code, errOut)
			}
			if got, errOut, code := restore(t, "", append(b.bad, from)...); got != "" || code == 0 || !strings.Contains(errOut, b.says) {
				t.Errorf("with what is not its key: got %q, exit %d\n%s", got, code, errOut)
			}
			if _, _, code := restore(t, "", append(b.good, file("cut", out[:len(out)-1]))...); code == 0 {
				t.Error("a backup that was cut off was taken for a whole one")
			}
		})
	}
	if out, _, code := c.run("", "cluster", "backup", "--unencrypted"); out != backedUp || code != 0 {
		t.Errorf("in clear: got %q, exit %d", out, code)
	}
	if _, errOut, code := c.run("short\n", "cluster", "backup", "--passphrase-stdin"); code == 0 || !strings.Contains(errOut, "at least 8") {
		t.Errorf("a short passphrase: exit %d\n%s", code, errOut)
	}
	c.backupFault = io.ErrUnexpectedEOF
	for _, way := range [][]string{{"--unencrypted"}, {"--passphrase-file", pass}} {
		if _, errOut, code := c.run("", append([]string{"cluster", "backup"}, way...)...); code == 0 || errOut == "" {
			t.Errorf("%v, and the server fails in its middle: exit %d\n%s", way, code, errOut)
		}
	}
}

func TestRecoverAsksFirst(t *testing.T) {
	for _, yes := range []bool{false, true} {
		done := false
		var o, e bytes.Buffer
		a := newApp(strings.NewReader(""), &o, &e, Hooks{Recover: func(_ context.Context, r RecoverOptions) (Recovered, error) {
			found := Recovered{Cluster: "test", Node: "n1", Nodes: []string{"n2", "n3"}}
			if err := r.Confirm(found); err != nil {
				return found, err
			}
			done = true
			return found, nil
		}})
		args := []string{"cluster", "recover", "--data-dir", "/d"}
		if yes {
			args = append(args, "-y")
		}
		code := a.run(t.Context(), args)
		if done != yes || (code == 0) != yes || !strings.Contains(e.String(), "reset and join anew: n2, n3") {
			t.Errorf("-y %v: exit %d, done %v\n%s%s", yes, code, done, &o, &e)
		}
	}
}
