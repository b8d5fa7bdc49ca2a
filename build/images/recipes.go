package images

import (
	_ "embed"
	"io/fs"
	"strings"
)

var (
	//go:embed assets/postgres-entrypoint
	postgresEntrypoint string
	//go:embed assets/redis-entrypoint
	redisEntrypoint string
	//go:embed assets/nginx.conf
	nginxConf string
	//go:embed assets/nginx-default.conf
	nginxDefaultConf string
)

// defaultPath is where Debian has its programs.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Recipes returns every image that `make images` builds.
func Recipes() []Recipe {
	return []Recipe{
		busybox(),
		nginx(),
		postgres(),
		redis(),
		example("shop-backend", "./examples/shop/backend", "backend", "8080/tcp"),
		example("shop-frontend", "./examples/shop/frontend", "frontend", "3000/tcp"),
		example("svc", "./examples/microservices/svc", "svc", "8080/tcp"),
		web("web-v1", "v1"),
		web("web-v2", "v2"),
	}
}

// busybox is a shell with the usual tools, at the paths where scripts look.
func busybox() Recipe {
	files := []File{
		{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "/root", Mode: fs.ModeDir | 0o700},
		{Path: "/etc/passwd", Content: passwd("nobody", "65534", "/")},
		{Path: "/etc/group", Content: group("nobody", "65534")},
	}
	for applet := range strings.FieldsSeq(applets) {
		files = append(files, File{Path: "/bin/" + applet, Link: "/bin/busybox"})
	}
	return Recipe{
		Name:     "busybox",
		Tags:     []string{"docker.io/library/busybox:1", "docker.io/library/busybox:latest"},
		Packages: []string{"busybox-static"},
		Drop:     append(commonDrop(), "usr/share", "var"),
		Files:    files,
		Cmd:      []string{"sh"},
		Env:      []string{defaultPath},
	}
}

const applets = `[ arping ash awk base64 basename bc cat chgrp chmod chown chroot clear cmp cp cut date dd df diff dirname
	dmesg du echo egrep env expr factor fallocate false fgrep find fold free getopt grep groups gunzip gzip head hexdump
	hostid hostname httpd id ifconfig ionice ip ipcalc kill killall less ln logger login ls md5sum mkdir mkfifo mknod
	mktemp more mount mv nc netstat nl nohup nologin nproc nsenter nslookup od paste pidof ping ping6 printf ps pwd
	readlink realpath renice rev rm rmdir route sed seq setpriv setsid sh sha1sum sha256sum sha512sum shuf sleep sort
	stat strings stty su sync sysctl tac tail tar tee telnet test tftp time timeout top touch tr traceroute true
	truncate tty umount uname uniq unlink unshare uptime usleep uudecode uuencode vi watch wc wget which who whoami
	xargs xxd yes zcat`

// The three below behave like the official images of the same name: entrypoint,
// user, volume, stop signal and the variables that they read.

func postgres() Recipe {
	files := append(debianFiles("postgres", "999", "/var/lib/postgresql"),
		File{Path: "/usr/local/bin/docker-entrypoint.sh", Content: postgresEntrypoint, Mode: 0o755},
		File{Path: "/docker-entrypoint-initdb.d", Mode: fs.ModeDir | 0o755},
		File{Path: "/var/lib/postgresql", Mode: fs.ModeDir | 0o755, UID: 999, GID: 999},
		File{Path: "/var/lib/postgresql/data", Mode: fs.ModeDir | 0o700, UID: 999, GID: 999},
		File{Path: "/run/postgresql", Mode: fs.ModeDir | 0o775, UID: 999, GID: 999},
	)
	return Recipe{
		Name:     "postgres",
		Tags:     []string{"docker.io/library/postgres:15", "docker.io/library/postgres:latest"},
		Packages: append([]string{"postgresql-15", "gzip"}, shellPackages()...),
		// Just-in-time compilation needs 170 MB of LLVM; the server runs
		// without when its module is absent. The Perl wrappers in /usr/bin
		// go with Perl: PATH leads to the real programs.
		Drop: append(commonDrop(), "usr/lib/*/libLLVM*", "usr/lib/*/libz3*", "usr/lib/llvm*", "usr/lib/postgresql/15/lib/llvmjit*",
			"usr/lib/postgresql/15/lib/bitcode", "usr/share/i18n", "usr/bin/p[gs]_*", "usr/bin/psql", "usr/bin/perl*",
			"usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/share/perl*"),
		Files:      files,
		Entrypoint: []string{"docker-entrypoint.sh"},
		Cmd:        []string{"postgres"},
		Env: []string{
			"PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"LANG=C.UTF-8", "PG_MAJOR=15", "PGDATA=/var/lib/postgresql/data",
		},
		Ports:   []string{"5432/tcp"},
		Volumes: []string{"/var/lib/postgresql/data"},
		// Fast shutdown: SIGTERM would wait for clients to leave.
		StopSignal: "SIGINT",
	}
}

func redis() Recipe {
	files := append(debianFiles("redis", "999", "/data"),
		File{Path: "/usr/local/bin/docker-entrypoint.sh", Content: redisEntrypoint, Mode: 0o755},
		File{Path: "/data", Mode: fs.ModeDir | 0o755, UID: 999, GID: 999},
	)
	return Recipe{
		Name: "redis",
		Tags: []string{
			"docker.io/library/redis:7", "docker.io/library/redis:7-alpine", "docker.io/library/redis:latest",
		},
		Packages:   append([]string{"redis-server"}, shellPackages()...),
		Drop:       append(commonDrop(), "usr/bin/perl*", "usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/share/perl*"),
		Files:      files,
		Entrypoint: []string{"docker-entrypoint.sh"},
		Cmd:        []string{"redis-server"},
		Env:        []string{defaultPath},
		WorkingDir: "/data",
		Ports:      []string{"6379/tcp"},
		Volumes:    []string{"/data"},
	}
}

func nginx() Recipe {
	files := append(debianFiles("nginx", "101", "/nonexistent"),
		File{Path: "/etc/nginx/nginx.conf", Content: nginxConf},
		File{Path: "/etc/nginx/conf.d/default.conf", Content: nginxDefaultConf},
		File{Path: "/var/lib/nginx", Mode: fs.ModeDir | 0o755},
		File{Path: "/var/log/nginx", Mode: fs.ModeDir | 0o755},
	)
	return Recipe{
		Name:       "nginx",
		Tags:       []string{"docker.io/library/nginx:1", "docker.io/library/nginx:latest"},
		Packages:   append([]string{"nginx"}, shellPackages()...),
		Drop:       append(commonDrop(), "usr/bin/perl*", "usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/share/perl*"),
		Files:      files,
		Cmd:        []string{"nginx", "-g", "daemon off;"},
		Env:        []string{defaultPath},
		Ports:      []string{"80/tcp"},
		StopSignal: "SIGQUIT", // finishes requests in flight
	}
}

// shellPackages are what entrypoint scripts and health checks are written with.
func shellPackages() []string {
	return []string{"dash", "coreutils", "findutils", "grep", "sed", "util-linux", "tzdata"}
}

// commonDrop is what no container needs of a Debian system, and what differs
// from one download to the next.
func commonDrop() []string {
	return []string{
		"dev/*", "boot", "etc/apt", "etc/dpkg", "etc/fstab", "etc/hostname", "etc/resolv.conf", "etc/machine-id",
		"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/bug",
		"usr/share/initramfs-tools", "lib/systemd", "usr/lib/systemd",
		"var/cache", "var/lib/apt", "var/lib/dpkg", "var/log", "var/run",
	}
}

// debianFiles completes unpacked packages, whose install scripts never ran: the
// accounts, the directories that base-files would make, and name lookup.
func debianFiles(user, id, home string) []File {
	return []File{
		{Path: "/etc/passwd", Content: passwd(user, id, home)},
		{Path: "/etc/group", Content: group(user, id)},
		{Path: "/etc/nsswitch.conf", Content: "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"},
		{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "/var/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "/root", Mode: fs.ModeDir | 0o700},
		{Path: "/run", Mode: fs.ModeDir | 0o755},
		{Path: "/var/run", Link: "/run"},
	}
}

func passwd(user, id, home string) string {
	return "root:x:0:0:root:/root:/bin/sh\n" + user + ":x:" + id + ":" + id + "::" + home + ":/bin/sh\n"
}

func group(name, id string) string {
	return "root:x:0:\ntty:x:5:\n" + name + ":x:" + id + ":\n"
}
