package consensus

// Faults gives tests a hand on the disk: before is called before each write of entries, and its error is the write's.
func (c *Config) Faults(before func() error) {
	c.hook = func(d *diskLog) { d.before = before }
}

// FinishRotation is finishRotation.
var FinishRotation = finishRotation
