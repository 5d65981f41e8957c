//! What is not tried.

use crate::mutation::{DIRECTORY, DISK, EFFECTS, ESP, ROOM, STATE_FS};

/// What nothing here can see: in this file this line, as it stands there, which of several equal ones, or the
/// change with this name; and why.
pub const UNSEEN: [(&str, &str, usize, &str); 13] = [
    (
        DISK,
        "a disk is not flushed",
        0,
        "the record that follows is an empty file, whose own sync flushes the same disk; it is seen without both",
    ),
    (
        "src/request/stage.rs",
        "what is left is cleared away as a cache has it",
        0,
        "a boot has settled what lies there before the OS stages; a shell in the initrd may stage as well",
    ),
    ("src/request/stage_restore.rs", "flags are tidied as a cache has them", 0, "the same"),
    (STATE_FS, "        made.sync()", 0, "attributes of directories: the model has none"),
    (
        STATE_FS,
        "        directory::open_at(parent.as_ref(), name)?.ok_or_else(missing)?.sync()",
        0,
        "attributes of directories: the model has none",
    ),
    (
        STATE_FS,
        "                directory::open_at(directory, &temporary)?.ok_or_else(missing)?.sync()?;",
        0,
        "attributes of directories: the model has none",
    ),
    (
        STATE_FS,
        "        if place == Place::New { Ok(()) } else { directory.sync() }",
        0,
        "directories and links in a state: the model's is flat",
    ),
    (
        ROOM,
        "    filled.and(cleared).and(directory.sync())",
        0,
        "what was in a cluster before, beside a journal: no directory lies in the free clusters there",
    ),
    (
        DIRECTORY,
        "    directory.sync()?;",
        0,
        "what is made in a directory brings it as well, and one that was cut before is passed over",
    ),
    (
        DIRECTORY,
        "    directory.any_file(name.as_ref())?.sync()?;",
        0,
        "of an empty file there is only the name, which the directory's sync brings",
    ),
    (
        ESP,
        "        settled.and(self.root.sync())",
        0,
        "who writes in the directory first syncs its name; another program may not have: the model has none",
    ),
    (
        ESP,
        "            None => self.root.sync(),",
        0,
        "nothing in the model removes a directory that is on the way to another path",
    ),
    (
        EFFECTS,
        "            disk.flush()?;",
        0,
        "it bounds how much is unflushed; the flush behind the loop is the one that makes durable",
    ),
];
