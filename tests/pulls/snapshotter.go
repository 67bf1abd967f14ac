// stargz-snapshotter's daemon, of its library: Debian packages the library and ctr-remote, but not containerd-stargz-grpc.
// Usage: snapshotter DIRECTORY SOCKET. Registries on loopback have no TLS; nothing is fetched before it is read.
package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/reference"
	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/containerd/stargz-snapshotter/snapshot"
	"google.golang.org/grpc"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	directory, socket := os.Args[1], os.Args[2]
	client := &http.Client{Transport: http.DefaultTransport}
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost), docker.WithClient(client))
	sources := source.FromDefaultLabels(func(name reference.Spec) ([]docker.RegistryHost, error) {
		return hosts(name.Hostname())
	})
	lazily := config.Config{NoBackgroundFetch: true, NoPrefetch: true}
	files := must(fs.NewFilesystem(filepath.Join(directory, "files"), lazily, fs.WithGetSources(sources)))
	snapshots := must(snapshot.NewSnapshotter(context.Background(), filepath.Join(directory, "snapshots"), files))
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshots))
	log.Fatal(server.Serve(must(net.Listen("unix", socket))))
}
