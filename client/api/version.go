package api

// The headers that keep a client from going back in time when it changes from one manager to another.
const (
	// HeaderVersion comes with every answer: the version of the manager's store, at least that of what is answered.
	HeaderVersion = "Baton-Version"
	// HeaderVersionMin goes with a request: the manager answers once its store has that version, or with 503 after a while.
	HeaderVersionMin = "Baton-Version-Min"
)
