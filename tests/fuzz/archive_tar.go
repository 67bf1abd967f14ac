// Reads tar archives with Go's archive/tar, the reader of most builders and runtimes, and says what it found.
//
// Stdin holds archives, each behind its length (4 bytes, big endian). Each is answered with one line of JSON on
// stdout: the entries whose header and content could be read, and why reading ended early ("" at the end of the
// archive). Bytes are given as the characters U+0000 to U+00FF. The argument is how many bytes of one file's
// content are read at most: holes cost no input.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

type entry struct {
	Name, Link, Type string
	Mode, Size       int64
	Uid, Gid         int
	Major, Minor     int64
	Mtime, Atime     []int64 // seconds and nanoseconds; null: none
	Xattrs           map[string]string
	Sha256           string
	Toc              toc
}

// What containers/storage writes into a table of contents, and compares it with, beyond the fields above.
type toc struct {
	Mtime, Atime, Ctime string
	Xattrs              map[string]string
}

type answer struct {
	Entries []entry
	Error   string
}

func main() {
	most, err := strconv.ParseInt(os.Args[1], 10, 64)
	check(err)
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for {
		var size uint32
		if binary.Read(in, binary.BigEndian, &size) == io.EOF {
			return
		}
		archive := make([]byte, size)
		_, err := io.ReadFull(in, archive)
		check(err)
		check(encoder.Encode(read(archive, most)))
		check(out.Flush())
	}
}

func read(archive []byte, most int64) answer {
	found := answer{Entries: []entry{}}
	// A layer is a stream: a reader that can seek would skip what it should find missing.
	reader := tar.NewReader(io.MultiReader(bytes.NewReader(archive)))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return found
		}
		digest := sha256.New()
		var read int64
		if err == nil {
			read, err = io.Copy(digest, io.LimitReader(reader, most+1))
		}
		if err == nil && read > most {
			found.Error = "more content than is read"
			return found
		}
		if err != nil {
			found.Error = err.Error()
			return found
		}
		if header.Typeflag != tar.TypeXGlobalHeader { // containerd, Docker and BuildKit ignore these
			found.Entries = append(found.Entries, describe(header, hex.EncodeToString(digest.Sum(nil))))
		}
	}
}

func describe(header *tar.Header, digest string) entry {
	made := entry{
		Name: latin1(header.Name), Link: latin1(header.Linkname), Type: latin1(string([]byte{header.Typeflag})),
		Mode: header.Mode, Size: header.Size, Uid: header.Uid, Gid: header.Gid,
		Major: header.Devmajor, Minor: header.Devminor, Sha256: digest,
		Mtime:  []int64{header.ModTime.Unix(), int64(header.ModTime.Nanosecond())},
		Xattrs: map[string]string{},
		Toc: toc{
			Mtime: rfc3339(header.ModTime), Atime: rfc3339(header.AccessTime), Ctime: rfc3339(header.ChangeTime),
			Xattrs: map[string]string{},
		},
	}
	if !header.AccessTime.IsZero() {
		made.Atime = []int64{header.AccessTime.Unix(), int64(header.AccessTime.Nanosecond())}
	}
	for key, value := range header.Xattrs { //nolint:staticcheck // as umoci reads them
		made.Xattrs[latin1(key)] = latin1(value)
	}
	for key, value := range header.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") {
			made.Toc.Xattrs[latin1(key[len("SCHILY.xattr."):])] = base64.StdEncoding.EncodeToString([]byte(value))
		}
	}
	return made
}

func rfc3339(moment time.Time) string {
	if moment.IsZero() {
		return ""
	}
	return moment.UTC().Format(time.RFC3339Nano)
}

func latin1(text string) string {
	characters := make([]rune, len(text))
	for at := 0; at < len(text); at++ {
		characters[at] = rune(text[at])
	}
	return string(characters)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
