package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
)

// savedContext is a cluster as this user reaches it. Its file holds a private key.
type savedContext struct {
	Name    string     `json:"name"`
	Address string     `json:"address"`
	TLS     client.TLS `json:"tls"`
}

// contextForm is what a context may be called.
var contextForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

// contextBytesMax bounds the file of a context.
const contextBytesMax = 1 << 20

// contextDir is where contexts are kept: $BATON_CONFIG, else baton below the user's configuration directory.
func contextDir() (string, error) {
	if dir := os.Getenv("BATON_CONFIG"); dir != "" {
		return filepath.Join(dir, "contexts"), nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", api.Errorf(api.CodeInvalid, "there is no place for contexts: %s", err).WithMend("set BATON_CONFIG to a directory")
	}
	return filepath.Join(dir, "baton", "contexts"), nil
}

// currentFile names the context that is used without --context.
const currentFile = "current"

func contextPath(name string) (string, error) {
	if !contextForm.MatchString(name) || name == currentFile {
		return "", api.Errorf(api.CodeInvalid, "%q is not a name for a context", name).WithMend("use letters, digits, dots and dashes")
	}
	dir, err := contextDir()
	return filepath.Join(dir, name+".json"), err
}

func loadContext(name string) (savedContext, error) {
	var c savedContext
	path, err := contextPath(name)
	if err != nil {
		return c, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, api.Errorf(api.CodeNotFound, "no context %q", name).WithMend("see `baton context ls`, or make one on a manager with `baton context export`")
	}
	if err != nil {
		return c, err
	}
	return parseContext(data)
}

func parseContext(data []byte) (savedContext, error) {
	var c savedContext
	if err := json.Unmarshal(data, &c); err != nil || c.Address == "" || len(c.TLS.Key) == 0 {
		return c, api.Errorf(api.CodeInvalid, "this is not a context: `baton context export` writes one")
	}
	return c, nil
}

func saveContext(c savedContext) error {
	path, err := contextPath(c.Name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return writePrivate(path, data)
}

// writePrivate replaces a file that only its owner may read.
func writePrivate(path string, data []byte) error {
	t, err := os.CreateTemp(filepath.Dir(path), ".new-") // made with mode 0600
	if err != nil {
		return err
	}
	_, err = t.Write(data)
	if err = errors.Join(err, t.Close()); err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		_ = os.Remove(t.Name()) // what could not be renamed is of no use
	}
	return err
}

// currentContext is the context in use: --context, BATON_CONTEXT, or the one chosen last; empty: none.
func (a *app) currentContext() string {
	if a.context != "" {
		return a.context
	}
	if name := os.Getenv("BATON_CONTEXT"); name != "" {
		return name
	}
	dir, err := contextDir()
	if err != nil {
		return ""
	}
	name, err := os.ReadFile(filepath.Join(dir, currentFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}

func (a *app) contextCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "context", Short: "Manage the clusters that you reach from here",
		Long: "A context is a cluster's address with a certificate of yours. Make one on a manager, and import it on your machine:\n" +
			"  ssh m1 sudo baton context export prod --user ann | baton context import -",
	}
	cmd.AddCommand(a.contextExportCmd(), a.contextImportCmd(), a.contextLsCmd(), a.contextUseCmd(), a.contextRmCmd())
	return cmd
}

func (a *app) contextExportCmd() *cobra.Command {
	var user, address string
	var ttl time.Duration
	export := &cobra.Command{
		Use: "export NAME", Args: cobra.ExactArgs(1), Short: "Print a new context for this cluster, with a certificate that has all rights",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := contextPath(args[0]); err != nil {
				return err
			}
			if _, tty := terminal(a.out); tty && !a.yes {
				return api.Errorf(api.CodeInvalid, "a context holds a private key").WithMend("redirect it into a file or a pipe, or add -y to print it here")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			key, csr, err := newUserKey(user)
			if err != nil {
				return err
			}
			cert, err := c.SignCertificate(cmd.Context(), api.CertificateRequest{Name: user, CSR: csr, TTL: ttl.String()})
			if err != nil {
				return err
			}
			if address == "" {
				address = "https://" + strings.Join(cert.Managers, ",")
			}
			enc := json.NewEncoder(a.out)
			enc.SetIndent("", "  ")
			return enc.Encode(savedContext{Name: args[0], Address: address, TLS: client.TLS{Roots: cert.Roots, Certificate: cert.Certificate, Key: key}})
		},
	}
	export.Flags().StringVar(&user, "user", "admin", "name of the user, which stands in events")
	export.Flags().StringVar(&address, "address", "", "https://HOST:PORT[,HOST:PORT…] by which the user reaches the managers (default: as they reach each other)")
	export.Flags().DurationVar(&ttl, "ttl", 90*24*time.Hour, "how long the certificate is good")
	return export
}

// newUserKey makes a private key (PEM) and a request for its certificate (DER).
func newUserKey(user string) (key, csr []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user}}, k)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), csr, err
}

func (a *app) contextImportCmd() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE", Args: cobra.ExactArgs(1), Short: "Keep a context; - reads it from standard input", Example: "  baton context import prod.json",
		RunE: func(_ *cobra.Command, args []string) error {
			in := a.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return api.Errorf(api.CodeNotFound, "%s", err)
				}
				defer f.Close()
				in = f
			}
			data, err := io.ReadAll(io.LimitReader(in, contextBytesMax))
			if err != nil {
				return err
			}
			c, err := parseContext(data)
			if err != nil {
				return err
			}
			if err := saveContext(c); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "context %s: kept; use it with --context %s, or always with `baton context use %s`\n", c.Name, c.Name, c.Name)
			return nil
		},
	}
}

func (a *app) contextLsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List contexts",
		RunE: func(*cobra.Command, []string) error {
			dir, err := contextDir()
			if err != nil {
				return err
			}
			files, err := filepath.Glob(filepath.Join(dir, "*.json"))
			if err != nil {
				return err
			}
			slices.Sort(files)
			type shown struct {
				Name    string `json:"name"`
				Address string `json:"address"`
				Current bool   `json:"current,omitempty"`
			}
			var all []shown
			t := &table{head: []string{"NAME", "ADDRESS", "CURRENT"}}
			for _, f := range files {
				c, err := loadContext(strings.TrimSuffix(filepath.Base(f), ".json"))
				if err != nil {
					a.warn("%s: %s", f, err)
					continue
				}
				s := shown{Name: c.Name, Address: c.Address, Current: c.Name == a.currentContext()}
				all = append(all, s)
				t.add(s.Name, s.Address, yes(s.Current))
			}
			return list(a, all, t, func(s shown) string { return s.Name })
		},
	}
}

func (a *app) contextUseCmd() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Args: cobra.ExactArgs(1), Short: "Use a context from now on; - goes back to this machine's own node",
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := contextDir()
			if err != nil {
				return err
			}
			path := filepath.Join(dir, currentFile)
			if args[0] == "-" {
				if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				return nil
			}
			if _, err := loadContext(args[0]); err != nil {
				return err
			}
			return writePrivate(path, []byte(args[0]+"\n"))
		},
	}
}

func (a *app) contextRmCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Args: cobra.ExactArgs(1), Short: "Forget a context, with its key",
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := loadContext(args[0]); err != nil {
				return err
			}
			path, err := contextPath(args[0])
			if err != nil {
				return err
			}
			return os.Remove(path)
		},
	}
}
