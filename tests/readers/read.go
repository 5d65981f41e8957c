// Prints what Go's archive/tar finds in each archive of a folder, a line of JSON an archive.
package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
)

type found struct {
	Archive string  `json:"archive"`
	Entries [][]any `json:"entries"`
	Error   string  `json:"error"`
}

func about(header *tar.Header) []int64 {
	return []int64{header.Mode, int64(header.Uid), int64(header.Gid), header.ModTime.Unix()}
}

func entries(path string) ([][]any, error) {
	all := [][]any{}
	file, err := os.Open(path)
	if err != nil {
		return all, err
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return all, err
	}
	archive := tar.NewReader(unzipped)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		switch header.Typeflag {
		case tar.TypeReg, tar.TypeRegA:
			content, err := io.ReadAll(archive)
			if err != nil {
				return all, err
			}
			if int64(len(content)) != header.Size {
				return all, errors.New("a file that is not as long as it says")
			}
			sum := sha256.Sum256(content)
			all = append(all, []any{"file", header.Name, header.Size, hex.EncodeToString(sum[:]), about(header)})
		case tar.TypeDir:
			all = append(all, []any{"directory", header.Name, 0, "", about(header)})
		case tar.TypeSymlink:
			all = append(all, []any{"link", header.Name, 0, header.Linkname, about(header)})
		default:
			all = append(all, []any{"other", header.Name, header.Size, "", about(header)})
		}
	}
}

func main() {
	names, err := filepath.Glob(filepath.Join(os.Args[1], "*"))
	if err != nil {
		panic(err)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for _, name := range names {
		all, err := entries(name)
		one := found{filepath.Base(name), all, ""}
		if err != nil {
			one.Error = err.Error()
		}
		if err := out.Encode(one); err != nil {
			panic(err)
		}
	}
}
