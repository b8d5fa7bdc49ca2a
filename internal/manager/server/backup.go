package server

import (
	"context"
	"io"
	"net/http"
	"time"

	"filippo.io/age"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// recipientsMax is how many keys can open one backup.
const recipientsMax = 20

func (s *Server) backupRoute() {
	op := s.operation(operation{
		method: http.MethodPost, path: "/v1/cluster/backup", id: "backupCluster", tag: "cluster", stream: "application/octet-stream",
		summary: "Write the cluster's state with its keys, encrypted with age to the recipients",
	})
	huma.Register(s.api, op, func(ctx context.Context, in *struct{ Body api.BackupRequest }) (*huma.StreamResponse, error) {
		recipients, err := backupRecipients(in.Body)
		if err == nil {
			err = s.mayBackUp(ctx, in.Body)
		}
		if err != nil {
			return nil, s.problem(err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			_, w := humago.Unwrap(hc)
			s.writeBackup(w, recipients)
		}}, nil
	})
}

// backupRecipients are who can open a backup; none when it is to be in clear.
func backupRecipients(req api.BackupRequest) ([]age.Recipient, error) {
	switch {
	case req.Unencrypted && len(req.Recipients) > 0:
		return nil, api.Errorf(api.CodeInvalid, "a backup is encrypted to recipients or it is not").At("unencrypted").WithMend("give one of the two")
	case len(req.Recipients) == 0 && !req.Unencrypted:
		return nil, api.Errorf(api.CodeInvalid, "a backup holds the cluster's keys and all its secrets: it is not written in clear unless that is asked for").
			At("recipients").WithMend("give an age recipient (age1…)")
	case len(req.Recipients) > recipientsMax:
		return nil, api.Errorf(api.CodeInvalid, "%d recipients", len(req.Recipients)).At("recipients").WithMend("give at most %d", recipientsMax)
	}
	var out []age.Recipient
	for _, text := range req.Recipients {
		r, err := ageRecipient(text)
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "%q is not an age recipient: %s", text, err).At("recipients").WithMend("`age-keygen` makes one; it begins with age1")
		}
		out = append(out, r)
	}
	if len(out) > 0 {
		if _, err := age.Encrypt(io.Discard, out...); err != nil { // not all kinds of them go together
			return nil, api.Errorf(api.CodeInvalid, "%s", err).At("recipients").WithMend("give recipients of one kind")
		}
	}
	return out, nil
}

// ageRecipient reads a public key, of the usual kind or a post-quantum one.
func ageRecipient(text string) (age.Recipient, error) {
	if r, err := age.ParseHybridRecipient(text); err == nil {
		return r, nil
	}
	return age.ParseX25519Recipient(text)
}

// mayBackUp waits until this manager has everything that was committed, and writes down that a backup is made.
func (s *Server) mayBackUp(ctx context.Context, req api.BackupRequest) error {
	if s.cfg.Backup == nil {
		return api.Errorf(api.CodeUnsupported, "this server keeps no cluster")
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.cfg.Log.Barrier(ctx); err != nil {
		return err
	}
	said := "a backup of the cluster was made, encrypted"
	if req.Unencrypted {
		said = "a backup of the cluster was made in clear, with its keys"
	}
	first := true
	return s.retry(ctx, func(_ store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		if first {
			first = false
			s.event(&txn, now, "cluster.backup", said, func(*cluster.Event) {})
		}
		return txn, nil
	}, func(store.Version) {})
}

// writeBackup writes the backup itself. After an error in its middle the connection is cut, so that nobody takes a part for
// the whole.
func (s *Server) writeBackup(w http.ResponseWriter, recipients []age.Recipient) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	if err := encrypted(w, recipients, s.cfg.Backup); err != nil {
		s.log.Warn("a backup was not written to its end", "err", err)
		panic(http.ErrAbortHandler)
	}
}

func encrypted(w io.Writer, recipients []age.Recipient, write func(io.Writer) error) error {
	if len(recipients) == 0 {
		return write(w)
	}
	sealed, err := age.Encrypt(w, recipients...)
	if err != nil {
		return err
	}
	if err := write(sealed); err != nil {
		return err
	}
	return sealed.Close()
}
