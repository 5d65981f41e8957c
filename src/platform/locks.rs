//! Who has the lock on a directory. Side: both. Reads only.

use super::directory::Node;
use super::read_bounded;

/// Locks of everybody, one a line.
const LOCKS: &str = "/proc/locks";
const MAX_BYTES: u64 = 1 << 20;

/// The process that has the lock, as people know it; none when it cannot be told, as on file systems
/// whose numbers the kernel shows otherwise, and for processes that are not seen from here.
pub fn holder(node: &Node) -> Option<String> {
    let text = String::from_utf8(read_bounded(LOCKS.as_ref(), MAX_BYTES).ok()?).ok()?;
    let process = process(&text, node)?;
    let name =
        read_bounded(format!("/proc/{process}/comm").as_ref(), MAX_BYTES).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    Some(format!("process {process} ({})", name.trim()))
}

/// The lines of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF`. Who waits has an arrow before it.
fn process(locks: &str, node: &Node) -> Option<u32> {
    let (major, minor) = (libc::major(node.device), libc::minor(node.device));
    let place = format!("{major:02x}:{minor:02x}:{}", node.number);
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, process, at, ..] if *at == place => {
                process.parse().ok().filter(|process| *process > 0)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::directory;

    #[test]
    fn the_one_that_has_it_is_told_from_those_that_wait() {
        let root = tempfile::tempdir().unwrap();
        let node = directory::open(root.path()).unwrap().node().unwrap();
        let node = Node { device: libc::makedev(254, 1), number: 77, ..node };
        let text = "1: POSIX  ADVISORY  WRITE 9 fe:01:77 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 12 fe:01:78 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 34 fe:01:77 0 EOF\n\
                    3: -> FLOCK  ADVISORY  WRITE 56 fe:01:77 0 EOF\n";
        assert_eq!(process(text, &node), Some(34));
        assert_eq!(process(&text.replace(" 34 ", " -1 "), &node), None);
        assert_eq!(process("", &node), None);
    }
}
