package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"baton/client/api"
)

const (
	passphraseMin = 8 // characters
	ageHeader     = "age-encryption.org/"
	identityMax   = 1 << 20
)

// secretFlags are the ways to a passphrase or key. It is never an argument: those can be seen by everyone on the machine.
type secretFlags struct {
	what  string // "passphrase" or "key"
	flag  string // start of its flags
	file  string
	stdin bool
}

func (s *secretFlags) add(cmd *cobra.Command, what, flag string) {
	s.what, s.flag = what, flag
	cmd.Flags().StringVar(&s.file, flag+"-file", "", "file whose first line is the "+what)
	cmd.Flags().BoolVar(&s.stdin, flag+"-stdin", false, "read the "+what+" from standard input")
}

func (s *secretFlags) given() bool { return s.file != "" || s.stdin }

// secret reads a passphrase or key from where the flags say, else asks for it.
func (a *app) secret(s *secretFlags) (string, error) {
	if s.file != "" && s.stdin {
		return "", usageError("--%s-file and --%s-stdin exclude each other", s.flag, s.flag)
	}
	if !s.given() {
		return a.askSecret(s, "")
	}
	name := s.file
	if s.stdin {
		name = "-"
	}
	data, err := a.readSource(name, passwordMax)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", api.Errorf(api.CodeInvalid, "the %s is empty", s.what).At(name)
	}
	return line, nil
}

// askSecret asks for it on the terminal, without showing it.
func (a *app) askSecret(s *secretFlags, again string) (string, error) {
	tty, ok := terminal(a.in)
	if !ok {
		return "", api.Errorf(api.CodeInvalid, "no %s", s.what).WithMend("give --%s-file FILE or --%s-stdin", s.flag, s.flag)
	}
	fmt.Fprintf(a.err, "%s%s: ", s.what, again)
	line, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(a.err)
	return string(line), err
}

// freshPassphrase reads a passphrase that is to be used from now on; typed in, it is typed twice.
func (a *app) freshPassphrase(s *secretFlags) (string, error) {
	text, err := a.secret(s)
	if err != nil {
		return "", err
	}
	if len(text) < passphraseMin {
		return "", api.Errorf(api.CodeInvalid, "a passphrase of %d characters", len(text)).WithMend("use at least %d", passphraseMin)
	}
	if !s.given() {
		again, err := a.askSecret(s, ", again")
		if err != nil {
			return "", err
		}
		if again != text {
			return "", api.Errorf(api.CodeInvalid, "the two are not the same")
		}
	}
	return text, nil
}

func (a *app) backupCmd() *cobra.Command {
	var req api.BackupRequest
	var secret secretFlags
	cmd := &cobra.Command{
		Use: "backup > FILE", Args: cobra.NoArgs, Short: "Write the cluster's state and keys, encrypted, to standard output",
		Long: `Write the cluster's state, with its keys and all secrets, to standard output: one consistent moment, while everything goes on.
It is encrypted with a passphrase, or to age public keys (--recipient), so that it can lie anywhere; a backup in clear needs
--unencrypted. What volumes hold, and images, are not in it. "baton cluster restore" makes a cluster of it.`,
		Example: `  baton cluster backup --passphrase-file /root/backup.pass > cluster.age
  baton cluster backup --recipient age1… > cluster.age`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, ok := terminal(a.out); ok {
				return usageError("a backup is not written to a terminal: redirect it to a file")
			}
			ways := 0
			for _, given := range []bool{secret.given(), len(req.Recipients) > 0, req.Unencrypted} {
				if given {
					ways++
				}
			}
			if _, tty := terminal(a.in); ways > 1 || ways == 0 && !tty {
				return api.Errorf(api.CodeInvalid, "a backup holds the cluster's keys and all its secrets: say how it is encrypted").
					WithMend("give one of --passphrase-file FILE, --passphrase-stdin, --recipient age1…; --unencrypted leaves it in clear")
			}
			if len(req.Recipients) > 0 || req.Unencrypted {
				c, err := a.dial()
				if err != nil {
					return err
				}
				return c.Backup(cmd.Context(), req, a.out)
			}
			text, err := a.freshPassphrase(&secret)
			if err != nil {
				return err
			}
			return a.backupWith(cmd.Context(), text)
		},
	}
	secret.add(cmd, "passphrase", "passphrase")
	cmd.Flags().StringSliceVar(&req.Recipients, "recipient", nil, "age public key that can open it; may be given more than once")
	cmd.Flags().BoolVar(&req.Unencrypted, "unencrypted", false, "write it in clear: whoever reads it has the cluster's keys")
	return cmd
}

// backupWith encrypts a backup with a passphrase, which stays here: the server encrypts to a key that is made for this once.
func (a *app) backupWith(ctx context.Context, passphrase string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	once, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := c.Backup(ctx, api.BackupRequest{Recipients: []string{once.Recipient().String()}}, w)
		written <- errors.Join(err, w.CloseWithError(err))
	}()
	copied := a.reseal(r, once, to)
	_ = r.CloseWithError(copied) // ends the other side, which may have an error that says more
	if err := <-written; err != nil && !errors.Is(err, copied) {
		return err
	}
	return copied
}

func (a *app) reseal(r io.Reader, from age.Identity, to age.Recipient) error {
	plain, err := age.Decrypt(r, from)
	if err != nil {
		return err
	}
	sealed, err := age.Encrypt(a.out, to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sealed, plain); err != nil {
		return err
	}
	return sealed.Close()
}

// RestoreOptions are what `baton cluster restore` was given; Backup is in clear.
type RestoreOptions struct {
	DataDir, Name string
	Backup        io.Reader
}

// RecoverOptions are what `baton cluster recover` was given. Confirm is asked once it is known what would be done.
type RecoverOptions struct {
	DataDir   string
	UnlockKey string // of a locked cluster
	Confirm   func(Recovered) error
}

// Recovered is what a restore or a recovery came to.
type Recovered struct {
	Cluster, Node string
	Created       time.Time // of the backup, or of the last entry
	Version       string    // of the program that wrote the backup
	Nodes         []string  // names of those that must come back or be removed
	Kept          string    // where the state as it was is
}

func (a *app) restoreCmd() *cobra.Command {
	if a.hooks.Restore == nil {
		return nil
	}
	var o RestoreOptions
	var secret secretFlags
	var identity string
	cmd := &cobra.Command{
		Use: "restore FILE|-", Args: cobra.ExactArgs(1), Short: "Make an empty data directory the only manager of the cluster in a backup",
		Long: `Make an empty data directory that of a new node, the only manager of the cluster in a backup; then start it with "baton server".
The nodes of the backup are kept as workers that are down: their tasks start again elsewhere, unless their volumes are there.
A worker comes back with "baton join TOKEN@HOST:PORT" on it; any other machine is reset and joins anew, after "baton node rm".
Machines of the old cluster that still run must not go on beside the restored one: stop them first.`,
		Example: `  sudo baton cluster restore cluster.age --passphrase-file /root/backup.pass && sudo baton server
  sudo baton cluster restore cluster.age --identity key.txt --data-dir /srv/baton`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-" && secret.stdin {
				return usageError("standard input is either the backup or the passphrase")
			}
			file := a.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return api.Errorf(api.CodeInvalid, "%s", errors.Unwrap(err)).At(args[0]).WithMend("give the file, or - for standard input")
				}
				defer func() { _ = f.Close() }()
				file = f
			}
			var err error
			if o.Backup, err = a.openBackup(file, &secret, identity); err != nil {
				return err
			}
			done, err := a.hooks.Restore(cmd.Context(), o)
			if err != nil {
				return err
			}
			a.printRestored(done, o.DataDir)
			return nil
		},
	}
	secret.add(cmd, "passphrase", "passphrase")
	cmd.Flags().StringVar(&identity, "identity", "", "file with the age secret key that opens the backup")
	cmd.Flags().StringVar(&o.DataDir, "data-dir", dataDir(), "the directory, empty or not there yet (BATON_DATA_DIR)")
	cmd.Flags().StringVar(&o.Name, "name", "", "name of the new node (default: the host's)")
	return cmd
}

// openBackup decrypts a backup unless it is in clear.
func (a *app) openBackup(file io.Reader, secret *secretFlags, identity string) (io.Reader, error) {
	r := bufio.NewReader(file)
	if head, err := r.Peek(len(ageHeader)); err != nil || string(head) != ageHeader {
		return r, nil // what it is instead, its reader says
	}
	var who []age.Identity
	if identity != "" {
		data, err := a.readSource(identity, identityMax)
		if err != nil {
			return nil, err
		}
		if who, err = age.ParseIdentities(bytes.NewReader(data)); err != nil {
			return nil, api.Errorf(api.CodeInvalid, "%s", err).At(identity).WithMend("give the file that `age-keygen` made")
		}
	} else {
		text, err := a.secret(secret)
		if err != nil {
			return nil, err
		}
		s, err := age.NewScryptIdentity(text)
		if err != nil {
			return nil, err
		}
		who = append(who, s)
	}
	plain, err := age.Decrypt(r, who...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none) && identity == "":
		return nil, api.Errorf(api.CodeInvalid, "the passphrase does not open this backup").WithMend("give another one, or --identity FILE if it was made with --recipient")
	case errors.As(err, &none):
		return nil, api.Errorf(api.CodeInvalid, "the key does not open this backup").At(identity).WithMend("give the secret key of one of its recipients")
	case err != nil:
		return nil, api.Errorf(api.CodeInvalid, "the backup is damaged: %s", err).WithMend("use another copy of it")
	}
	return plain, nil
}

func (a *app) printRestored(r Recovered, dir string) {
	fmt.Fprintf(a.out, "cluster %s: restored on node %s, as it was at %s\n", r.Cluster, r.Node, r.Created.UTC().Format(time.RFC3339))
	fmt.Fprintf(a.out, "  start it with `baton server --data-dir %s`\n", dir)
	if len(r.Nodes) > 0 {
		fmt.Fprintf(a.out, "  nodes of the backup, down until they are back: %s\n", strings.Join(r.Nodes, ", "))
		fmt.Fprint(a.out, "  a worker comes back with `baton join`; remove the others with `baton node rm NAME`\n")
	}
}

func (a *app) recoverCmd() *cobra.Command {
	if a.hooks.Recover == nil {
		return nil
	}
	var o RecoverOptions
	var key secretFlags
	cmd := &cobra.Command{
		Use: "recover", Args: cobra.NoArgs, Short: "Let a stopped manager go on alone when most managers are lost for good",
		Long: `Let a stopped manager go on alone when most of the managers are lost for good and the cluster takes no changes any more.
Its state becomes that of a cluster of one manager; the other managers count as workers that are down. They must not come back
with their old state: reset them and let them join anew. Tasks go on meanwhile. Nothing is lost but what only lost managers had.
With several managers left, take the one that "baton cluster status" showed as the leader last.`,
		Example: `  sudo systemctl stop baton; sudo baton cluster recover && sudo systemctl start baton`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Confirm = func(r Recovered) error {
				fmt.Fprintf(a.err, "The state of %s ends with an entry of %s. What other managers wrote after that is lost.\n", r.Node, r.Created.UTC().Format(time.RFC3339))
				if len(r.Nodes) > 0 {
					fmt.Fprintf(a.err, "These are no managers any more and must be reset and join anew: %s\n", strings.Join(r.Nodes, ", "))
				}
				return a.confirm(cmd.Context(), fmt.Sprintf("Let %s go on as the only manager of cluster %s?", r.Node, r.Cluster))
			}
			var err error
			if key.given() {
				if o.UnlockKey, err = a.secret(&key); err != nil {
					return err
				}
			}
			done, err := a.hooks.Recover(cmd.Context(), o)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "cluster %s: node %s is its only manager\n  start it with `baton server --data-dir %s`; the log as it was is in %s\n", done.Cluster, done.Node, o.DataDir, done.Kept)
			return nil
		},
	}
	key.add(cmd, "unlock key", "unlock-key")
	cmd.Flags().StringVar(&o.DataDir, "data-dir", dataDir(), "the manager's directory (BATON_DATA_DIR)")
	return cmd
}
