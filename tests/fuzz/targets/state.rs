//! The state file of a backup and of this system.

use restage::format::state::{NEWEST, StateFile, weakness};
use zeroize::Zeroizing;

use crate::bytes::{Bytes, told};
use crate::fixtures::files;

pub const WORDS: &[&str] = &[
    "#Version: 0\n",
    "#Version: 1\n",
    "#Version: 4\n",
    "#Version: 8\n",
    "System.Encryption.Config.RecoveryKeys[0]: ",
    "System.Security.Config.EncryptionRecoveryKeys[0]: ",
    "System.Network.Config.Interfaces[0].Hwaddr: 10:66:6a:00:00:01\n",
    "System.Network.Config.Interfaces[0].Name: e\n",
    "System.Network.Config.Bonds[1].Hwaddr:\n",
    "System.Network.Config.Proxy.HTTPProxy: http://u:p@h:1/\n",
    "System.Network.Config.Proxy.HTTPSProxy: h\n",
    "System.Network.Config.Proxy.NoProxy: a,b\n",
    "System.Network.Config.NTP.Timeservers[0]: x\n",
    "System.Update.Config.CheckFrequency: 21600000000000\n",
    "System.Update.Config.UpdateFrequency: -1\n",
    "Applications[incus].Version: 1\n",
    "Applications[incus].State.Version: 1\n",
    "Applications.Incus.State.Version: 1\n",
];

/// The first byte cuts the rest in two files: this system's, and the backup's.
pub fn file(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let part = usize::from(bytes.byte());
    let Some(here) = read(bytes.take(bytes.0.len() - bytes.0.len() * part / 512)) else { return };
    let mut here = here;
    if upgraded(&mut here).is_none() {
        return;
    }
    keys(&here);
    macs(&here);
    let Some(mut backup) = read(bytes.0) else { return };
    if upgraded(&mut backup).is_some() {
        composed(&here, &backup);
    }
}

fn read(bytes: &[u8]) -> Option<StateFile> {
    match StateFile::parse(bytes) {
        Ok(file) => {
            // The first line is written anew, for `00` is a zero as well.
            let lines = |bytes: &[u8]| {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                bytes.get(end.map_or(bytes.len(), |end| end + 1)..).unwrap_or_default().to_vec()
            };
            assert_eq!(lines(&file.encode()), lines(bytes), "a line that is taken over is changed");
            Some(file)
        }
        Err(why) => {
            told(&why.to_string());
            None
        }
    }
}

fn upgraded(file: &mut StateFile) -> Option<()> {
    let applications = file.applications();
    let passphrases =
        |file: &StateFile| -> Vec<String> { file.recovery_keys().map(str::to_owned).collect() };
    let before = passphrases(file);
    if let Err(why) = file.upgrade(NEWEST) {
        told(&why.to_string());
        return None;
    }
    assert_eq!(file.version(), NEWEST);
    let missing = before.iter().find(|key| !passphrases(file).contains(key));
    assert_eq!(missing, None, "a passphrase is lost in the upgrade");
    let now = file.applications();
    let missing = applications.iter().find(|name| is_known(name) && !now.contains(name));
    assert_eq!(missing, None, "an application is lost in the upgrade");
    reads_again(file);
    Some(())
}

/// Others have no name yet in version 8.
fn is_known(application: &str) -> bool {
    matches!(application, "Incus" | "MigrationManager" | "OperationsCenter")
}

fn reads_again(file: &StateFile) {
    let again = StateFile::parse(&file.encode()).expect("what is written can be read");
    assert!(again.entries().eq(file.entries()));
}

fn keys(file: &StateFile) {
    for key in file.recovery_keys() {
        if let Some(why) = weakness(key) {
            told(&why);
        }
    }
    let new = ["one-passphrase-0123", "two: [0] #", ""].map(|key| Zeroizing::new(key.to_owned()));
    let mut changed = file.clone();
    changed.set_recovery_keys(&new);
    assert!(changed.recovery_keys().eq(new.iter().map(|key| key.as_str())));
    assert_eq!(changed.applications(), file.applications());
    reads_again(&changed);
}

fn macs(file: &StateFile) {
    let mut changed = file.clone();
    let count = match changed.forget_hardware_addresses() {
        Ok(count) => count,
        Err(why) => return told(&why.to_string()),
    };
    let once = changed.encode();
    assert_eq!(changed.forget_hardware_addresses(), Ok(count));
    assert_eq!(*changed.encode(), *once, "a name becomes something else");
    reads_again(&changed);
}

fn composed(here: &StateFile, backup: &StateFile) {
    let prefixes = ["System.".to_owned(), "Services.".to_owned()];
    let is_taken = |(key, _): &(&str, &str)| prefixes.iter().any(|p| key.starts_with(p));
    let both = here.composed(backup, &prefixes);
    assert!(both.entries().filter(is_taken).eq(backup.entries().filter(is_taken)));
    let others = |file: &StateFile| -> Vec<(String, String)> {
        let others = file.entries().filter(|entry| !is_taken(entry));
        others.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    assert_eq!(others(&both), others(here));
    assert_eq!(*both.composed(backup, &prefixes).encode(), *both.encode());
    reads_again(&both);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let good = "#Version: 8\nApplications.Incus.State.Version: 202611230000\nOS.Name: here\n\
         System.Network.Config.Interfaces[0].Hwaddr: 10:66:6a:00:00:01\n\
         System.Network.Config.Interfaces[0].Name: enp0s3\n\
         System.Security.Config.EncryptionRecoveryKeys[0]: old-passphrase-0123\n";
    let old = "#Version: 0\n\n# old\nSystem.Encryption.Config.RecoveryKeys[0]: abc-def-0123456789\nApplications[incus].Version: 1\n\
         System.Network.Config.Proxy.HTTPProxy: http://u:p@h.x:3128/\nSystem.Network.Config.Proxy.NoProxy: a, b\n\
         System.Update.Config.UpdateFrequency: 21600000000000\nSystem.Network.Config.NTP.Timeservers[0]: pool\n";
    let hostile = files::states(good, "old-passphrase-0123").into_iter().map(|h| h.bytes);
    let mut all = vec![[&[255], good.as_bytes(), good.as_bytes()].concat()];
    all.push([&[0], old.as_bytes()].concat());
    all.extend(hostile.filter(|bytes| bytes.len() < 3000).map(|b| [&[0], b.as_slice()].concat()));
    all
}
