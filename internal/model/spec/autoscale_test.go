package spec

import (
	"testing"
	"time"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestBounds checks which bounds a schedule gives, and when it is to be asked again. Fridays are 2026-03-27 and 2026-04-03;
// London puts its clocks forward on 2026-03-29, and back on 2026-10-25.
func TestBounds(t *testing.T) {
	six, ten, one := 6, 10, 1
	friday := ScaleWindow{Cron: "0 18 * * 5", TZ: "Europe/London", For: 5 * time.Hour, Min: &six}
	for _, tc := range []struct {
		name, now string
		windows   []ScaleWindow
		min, max  int
		until     string
	}{
		{"no schedule", "2026-03-27T12:00:00Z", nil, 2, 8, ""},
		{"before", "2026-03-27T17:59:59Z", []ScaleWindow{friday}, 2, 8, "2026-03-27T18:00:00Z"},
		{"at its time", "2026-03-27T18:00:00Z", []ScaleWindow{friday}, 6, 8, "2026-03-27T23:00:00Z"},
		{"within", "2026-03-27T22:59:59Z", []ScaleWindow{friday}, 6, 8, "2026-03-27T23:00:00Z"},
		{"after", "2026-03-27T23:00:00Z", []ScaleWindow{friday}, 2, 8, "2026-04-03T17:00:00Z"}, // 18:00 in summer
		{"in summer", "2026-04-03T17:00:00Z", []ScaleWindow{friday}, 6, 8, "2026-04-03T22:00:00Z"},
		{"the highest counts", "2026-03-27T18:30:00Z", []ScaleWindow{friday, {Cron: "30 18 * * *", For: time.Hour, Min: &ten, Max: &ten}}, 10, 10, "2026-03-27T19:30:00Z"},
		{"lower than always", "2026-03-27T18:30:00Z", []ScaleWindow{{Cron: "30 18 * * *", For: time.Hour, Min: &one, Max: &one}}, 1, 1, "2026-03-27T19:30:00Z"},
		{"a night that is cut short", "2026-03-29T00:30:00Z", []ScaleWindow{{Cron: "30 1 * * 0", TZ: "Europe/London", For: time.Hour, Min: &six}}, 2, 8, "2026-04-05T00:30:00Z"},
		{"the hour that comes twice", "2026-10-25T00:30:00Z", []ScaleWindow{{Cron: "30 1 * * 0", TZ: "Europe/London", For: time.Hour, Min: &six}}, 6, 8, "2026-10-25T01:30:00Z"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &Autoscale{Min: 2, Max: 8, Schedule: tc.windows}
			b := a.Bounds(at(t, tc.now))
			if b.Min != tc.min || b.Max != tc.max {
				t.Errorf("bounds %d to %d, want %d to %d", b.Min, b.Max, tc.min, tc.max)
			}
			if tc.until == "" != b.Until.IsZero() || tc.until != "" && !b.Until.Equal(at(t, tc.until)) {
				t.Errorf("until %v, want %s", b.Until.UTC(), tc.until)
			}
		})
	}
}

func TestAutoscaleDefaults(t *testing.T) {
	s := web(func(s *Stack) {
		s.Services[0].Replicas = 1
		s.Services[0].Autoscale = &Autoscale{Min: 3, Max: 9, Target: ScaleTarget{RPS: 1}}
	})
	v := s.Services[0]
	if v.Replicas != 3 {
		t.Errorf("a new service begins with %d tasks, want the least, 3", v.Replicas)
	}
	want := Autoscale{
		Min: 3, Max: 9, Target: ScaleTarget{RPS: 1}, Tolerance: 0.1,
		Up:   ScaleUp{Window: 6 * time.Second, Step: ScaleStep{Percent: 300, Count: 4}},
		Down: ScaleDown{After: 5 * time.Minute, Step: ScaleStep{Percent: 50}},
	}
	if got := *v.Autoscale; got.Up != want.Up || got.Down != want.Down || got.Tolerance != want.Tolerance || got.Hold != want.Hold {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := s.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
}

func TestScaleStep(t *testing.T) {
	for _, tc := range []struct {
		step ScaleStep
		n    int
		want int
	}{
		{ScaleStep{Percent: 300, Count: 4}, 1, 4}, {ScaleStep{Percent: 300, Count: 4}, 2, 6}, {ScaleStep{Percent: 50}, 5, 2},
		{ScaleStep{Percent: 50}, 1, 1}, {ScaleStep{Count: 3}, 100, 3}, {ScaleStep{Percent: 300, Count: 4}, 0, 4},
	} {
		if got := tc.step.Of(tc.n); got != tc.want {
			t.Errorf("%+v of %d is %d, want %d", tc.step, tc.n, got, tc.want)
		}
	}
}
