package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Settings is what the environment, the secret and the config file say.
type Settings struct {
	Addr       string
	DBHost     string
	DBPort     uint16
	DBUser     string
	DBName     string
	DBPassword string
	RedisURL   string
	Instance   string // this replica, for people who look at balancing
	App        App
}

// App is the content of the config file: what the shop calls itself. A change of the file makes a new release.
type App struct {
	Title    string `json:"title"`
	Tagline  string `json:"tagline"`
	Banner   string `json:"banner"`
	Currency string `json:"currency"`
}

var appDefault = App{Title: "The Shop", Currency: "EUR"}

// LoadSettings reads the variables through getenv and the files they name through readFile.
func LoadSettings(getenv func(string) string, readFile func(string) ([]byte, error)) (Settings, error) {
	get := func(key, def string) string {
		if v := getenv(key); v != "" {
			return v
		}
		return def
	}
	s := Settings{
		Addr:     get("ADDR", ":8080"),
		DBHost:   get("DB_HOST", "localhost"),
		DBUser:   get("DB_USER", "postgres"),
		DBName:   get("DB_NAME", "postgres"),
		RedisURL: get("REDIS_URL", "redis://localhost:6379"),
		Instance: get("INSTANCE", hostname()),
		App:      appDefault,
	}
	port, err := strconv.ParseUint(get("DB_PORT", "5432"), 10, 16)
	if err != nil || port == 0 {
		return s, fmt.Errorf("DB_PORT %q: want a port from 1 to 65535", getenv("DB_PORT"))
	}
	s.DBPort = uint16(port)

	secret := get("DB_PASSWORD_FILE", "/run/secrets/db_password")
	b, err := readFile(secret)
	if err != nil {
		return s, fmt.Errorf("read the database password: %w (give the service the secret db_password, or set DB_PASSWORD_FILE)", err)
	}
	if s.DBPassword = strings.TrimRight(string(b), "\r\n"); s.DBPassword == "" {
		return s, fmt.Errorf("the database password in %s is empty: set the secret again", secret)
	}

	file := get("APP_CONFIG", "/etc/app/config.json")
	b, err = readFile(file)
	if errors.Is(err, fs.ErrNotExist) && getenv("APP_CONFIG") == "" {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the config: %w", err)
	}
	if err := json.Unmarshal(b, &s.App); err != nil {
		return s, fmt.Errorf("config %s: %w", file, err)
	}
	return s, nil
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return h
}
