//! A machine of IncusOS whose state is another one than in its backup.

use std::path::Path;

use crate::machine::copy;
use crate::support::state::{OLD, System, run, state_text};

/// Makes it in `directory`. The recovery passphrase is the same in both, for a restore of the
/// passphrases takes seconds in systemd-cryptenroll, each time.
pub fn make(directory: &Path) {
    let system = System::new("before", OLD);
    let backup = system.file("backup.tar.gz").display().to_string();
    run(&mut system.command(&["backup", &backup]));
    system.write("state.txt", &state_text("after", OLD));
    system.write("zpool.local.key", "another local key");
    system.write("zpool.mine.key", "a pool made after the backup");
    system.write("notes.txt", "not in the backup");
    copy(system.root().parent().unwrap(), directory);
}
