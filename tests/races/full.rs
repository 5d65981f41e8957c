//! A full file system, at each place where it can be met: whatever was begun is taken back, what was
//! there stays, and with room again it works.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::rig::{Mount, Rig, ended, expect, tree};
use crate::support::state::run;

/// The rig with its ESP on a small file system, until this is dropped.
struct Small {
    rig: Rig,
    _room: Mount,
}

impl Small {
    fn new(options: &str) -> Self {
        let rig = Rig::new();
        fs::remove_dir_all(rig.disk.esp()).unwrap();
        fs::create_dir(rig.disk.esp()).unwrap();
        let room = Mount::tmpfs_at(&rig.disk.esp(), options);
        Self { rig, _room: room }
    }
}

/// A page is taken for each file, and an inode for each file and directory.
#[test]
fn an_esp_that_is_full_at_each_file() {
    let (mut failed, mut done) = (0, 0);
    for left in 1..7 {
        for options in [format!("nr_blocks={left}"), format!("size=1m,nr_inodes={}", left + 1)] {
            let small = Small::new(&options);
            let rig = &small.rig;
            for command in [rig.stage_reset(), rig.stage_restore()] {
                let (code, said) = ended(command);
                if code == 0 {
                    done += 1;
                    // Also where the report of it has no room.
                    expect(rig.cancel(), 0, "cancelled");
                } else {
                    failed += 1;
                    assert_eq!(code, 1, "{options}: {said}");
                    assert!(said.contains("os error 28"), "{options}: {said}");
                }
                assert!(rig.pending().is_empty(), "{options}: {:?}: {said}", rig.pending());
                let _ = fs::remove_dir_all(rig.on_esp());
            }
        }
    }
    assert!(failed > 3 && done > 10, "{failed} failed, {done} were staged");
}

/// Copies the state to a file system of its own, and leaves so many bytes there.
fn crowded(rig: &Rig, left: usize) -> (Mount, std::path::PathBuf) {
    let room = Mount::tmpfs("size=48m");
    let root = room.path().join("fs");
    run(Command::new("cp").arg("-a").arg(rig.system.root()).arg(&root));
    let mut filler = fs::File::create(room.path().join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0x55; 65536]).is_ok() {}
    let length = filler.metadata().unwrap().len();
    filler.set_len(length.saturating_sub(left as u64)).unwrap();
    (room, root)
}

/// The same command on another root.
fn on(command: &Command, old: &Path, new: &Path) -> Command {
    let mut moved = Command::new(command.get_program());
    moved.args(command.get_args().map(|word| if word == old { new.as_os_str() } else { word }));
    moved.stdin(std::process::Stdio::null());
    moved
}

#[test]
fn an_archive_that_the_state_has_no_room_for() {
    let rig = Rig::new();
    let (mut failed, mut done) = (0, 0);
    for pages in [0, 1, 2, 3, 4, 8, 8192] {
        let (_room, root) = crowded(&rig, pages * 4096);
        let before = tree(&root);
        let (code, said) = ended(on(&rig.stage_restore(), &rig.system.root(), &root));
        let mut left = tree(&root);
        if code == 0 {
            done += 1;
            continue;
        }
        failed += 1;
        // Preflight sees that there is no room for the new state, or taking it in fails.
        assert!(matches!(code, 1 | 3), "{pages}: {said}");
        left.retain(|name, _| name != "var/lib/restage");
        assert_eq!(left.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{said}");
        assert!(rig.pending().is_empty(), "{pages}: {:?}", rig.pending());
    }
    assert!(failed > 0 && done > 0, "{failed} failed, {done} were staged");
}

#[test]
fn a_backup_that_does_not_fit() {
    let rig = Rig::new();
    let mut noise = vec![0; 200_000];
    for piece in noise.chunks_mut(256) {
        rustix::rand::getrandom(piece, rustix::rand::GetRandomFlags::empty()).unwrap();
    }
    let file = rig.system.state().join("noise");
    fs::write(&file, noise).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    let place = Mount::tmpfs("size=64k");
    let out = place.path().join("out.tar.gz");
    expect(rig.back_up(&out, false), 1, "os error 28");
    assert!(tree(place.path()).is_empty(), "{:?}", tree(place.path()).keys());
    fs::write(&out, "the last one").unwrap();
    expect(rig.back_up(&out, true), 1, "os error 28");
    assert_eq!(tree(place.path()).len(), 1);
    assert_eq!(fs::read_to_string(&out).unwrap(), "the last one");
}
