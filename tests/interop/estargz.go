// Read and write eStargz layers with the library of stargz-snapshotter.
//
// "read BLOB DIGEST ..." reads layers as its filesystem does: the table of contents, verified by its digest, then each
// file chunk by chunk, each verified. One JSON document a layer comes out.
//
// "write TAR BLOB [PATH ...]" writes the layer of a tar, with files to prefetch; the digest of the table comes out.
package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
)

type file struct {
	Type    string            `json:"type"`
	Mode    int64             `json:"mode"`
	UID     int               `json:"uid"`
	GID     int               `json:"gid"`
	Size    int64             `json:"size"`
	Time    int64             `json:"time"`
	Link    string            `json:"link"`
	Device  [2]int            `json:"device"`
	Xattrs  map[string][]byte `json:"xattrs"`
	Content string            `json:"content"`
	Chunks  int               `json:"chunks"`
	Offset  int64             `json:"offset"`
}

func read(path, toc string) (map[string]file, error) {
	blob, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	info, err := blob.Stat()
	if err != nil {
		return nil, err
	}
	reader, err := estargz.Open(io.NewSectionReader(blob, 0, info.Size()))
	if err != nil {
		return nil, err
	}
	verifier, err := reader.VerifyTOC(digest.Digest(toc))
	if err != nil {
		return nil, err
	}
	root, ok := reader.Lookup("")
	if !ok {
		return nil, fmt.Errorf("no root")
	}
	found := map[string]file{}
	return found, walk(reader, verifier, "", root, found)
}

func walk(r *estargz.Reader, v estargz.TOCEntryVerifier, at string, dir *estargz.TOCEntry, found map[string]file) (err error) {
	dir.ForeachChild(func(base string, e *estargz.TOCEntry) bool {
		path := at + base
		one := file{e.Type, e.Mode, e.UID, e.GID, e.Size, e.ModTime().UnixNano(), e.LinkName,
			[2]int{e.DevMajor, e.DevMinor}, e.Xattrs, "", 0, e.Offset}
		if e.Type == "reg" {
			one.Content, one.Chunks, err = content(r, v, e)
		}
		found[path] = one
		if err == nil && e.Type == "dir" {
			err = walk(r, v, path+"/", e, found)
		}
		return err == nil
	})
	return err
}

func content(r *estargz.Reader, v estargz.TOCEntryVerifier, e *estargz.TOCEntry) (string, int, error) {
	whole := digest.Canonical.Digester()
	data, err := r.OpenFile(e.Name)
	if err != nil {
		return "", 0, err
	}
	chunks := 0
	for at := int64(0); at < e.Size; chunks++ {
		chunk, ok := r.ChunkEntryForOffset(e.Name, at)
		if !ok {
			return "", 0, fmt.Errorf("no chunk of %q at %d", e.Name, at)
		}
		part := make([]byte, chunk.ChunkSize)
		if _, err := data.ReadAt(part, at); err != nil {
			return "", 0, fmt.Errorf("%q at %d: %w", e.Name, at, err)
		}
		check, err := v.Verifier(chunk)
		if err != nil {
			return "", 0, err
		}
		check.Write(part)
		if !check.Verified() {
			return "", 0, fmt.Errorf("%q at %d has another digest", e.Name, at)
		}
		whole.Hash().Write(part)
		at += int64(len(part))
	}
	return whole.Digest().String(), chunks, nil
}

func write(source, target string, first []string) error {
	tar, err := os.Open(source)
	if err != nil {
		return err
	}
	defer tar.Close()
	info, err := tar.Stat()
	if err != nil {
		return err
	}
	blob, err := estargz.Build(io.NewSectionReader(tar, 0, info.Size()),
		estargz.WithPrioritizedFiles(first), estargz.WithCompressionLevel(gzip.BestCompression))
	if err != nil {
		return err
	}
	defer blob.Close()
	out, err := os.Create(target)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, blob); err != nil {
		return err
	}
	fmt.Println(blob.TOCDigest())
	return out.Close()
}

func run(arguments []string) error {
	if arguments[0] == "write" {
		return write(arguments[1], arguments[2], arguments[3:])
	}
	for at := 1; at+1 < len(arguments); at += 2 {
		found, err := read(arguments[at], arguments[at+1])
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
