package control

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"baton/internal/model/spec"
)

func TestQuery(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		want       float64
		err        string
	}{
		{"vector", `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"41.5"]}]}}`, 41.5, ""},
		{"scalar", `{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}`, 3, ""},
		{"none", `{"status":"success","data":{"resultType":"vector","result":[]}}`, 0, "0 results"},
		{"two", `{"status":"success","data":{"resultType":"vector","result":[{"value":[1,"1"]},{"value":[1,"2"]}]}}`, 0, "use sum()"},
		{"matrix", `{"status":"success","data":{"resultType":"matrix","result":[]}}`, 0, "for an instant"},
		{"not a number", `{"status":"success","data":{"resultType":"scalar","result":[1,"NaN"]}}`, 0, "no number"},
		{"negative", `{"status":"success","data":{"resultType":"scalar","result":[1,"-1"]}}`, 0, "no number from zero"},
		{"something else", `<html>secret</html>`, 0, "none of a Prometheus server"},
		{"too much", strings.Repeat(" ", answerSize+1), 0, "larger than"},
		{"another place", "", 0, "status 302"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/prom/api/v1/query" || r.URL.Query().Get("query") != `sum(x{a="b c"})` {
					t.Errorf("asked for %s", r.URL)
				}
				if tc.body == "" {
					http.Redirect(w, r, "/elsewhere", http.StatusFound)
					return
				}
				fmt.Fprint(w, tc.body)
			}))
			defer srv.Close()
			q := NewQueries(nil, slog.New(slog.DiscardHandler))
			defer q.client.CloseIdleConnections()
			got, err := q.query(t.Context(), &spec.PrometheusTarget{URL: srv.URL + "/prom/", Query: `sum(x{a="b c"})`})
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %v, %v; want %v, %q", got, err, tc.want, tc.err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows what the server said: %v", err)
			}
		})
	}
}
