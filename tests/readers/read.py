"""Prints what Python's tarfile finds in each archive of a folder, a line of JSON an archive."""

import hashlib
import json
import os
import sys
import tarfile


def about(entry):
    return [entry.mode, entry.uid, entry.gid, int(entry.mtime)]


def entries(path):
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            if entry.isreg():
                content = archive.extractfile(entry).read()
                assert len(content) == entry.size, "a file that is not as long as it says"
                yield ["file", entry.name, entry.size, hashlib.sha256(content).hexdigest(), about(entry)]
            elif entry.isdir():
                yield ["directory", entry.name, 0, "", about(entry)]
            elif entry.issym():
                yield ["link", entry.name, 0, entry.linkname, about(entry)]
            else:
                yield ["other", entry.name, entry.size, "", about(entry)]


for name in sorted(os.listdir(sys.argv[1])):
    try:
        found = list(entries(os.path.join(sys.argv[1], name)))
        print(json.dumps({"archive": name, "entries": found, "error": ""}))
    except Exception as error:
        print(json.dumps({"archive": name, "entries": [], "error": repr(error)}))
