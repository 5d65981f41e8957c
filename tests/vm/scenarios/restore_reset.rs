//! A restore onto a machine that was reset meanwhile, or whose TPM no longer opens it.

use crate::bench::{Bench, Boot};
use crate::failure::{Doing, Outcome};
use crate::faults;
use crate::scenarios::restored::{
    BACKUP, DEVICE, SLOTS, VOLUMES, both, nothing_left, put, slots, staged, window,
};
use crate::tpm;
use crate::wire::from_base64;

/// Four boots. A backup of the base; a factory reset that leaves no seed of it; the new installation
/// takes the state, keeps its own machine keys, and the backup's passphrase opens its volumes.
pub fn after_reset(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let backup = bench.base()?.backup()?;
    let reset = bench.base()?.request("example")?;
    bench.put_request(&reset)?;
    bench.power_on()?;
    bench.line(&["restage: committed"], 90)?;
    bench.off_at_reboot(150)?;
    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    bench.differ("LUKS UUID of root", &old.luks_root, &new.luks_root)?;
    bench.differ("hostname", &old.hostname, &new.hostname)?;
    bench.differ("passphrase", &old.passphrase, &new.passphrase)?;
    // The window is looked at before it ends.
    bench.run("systemctl mask restage-confirm.service")?;
    put(bench, BACKUP, &backup)?;
    bench.exits(&format!("restage restore {BACKUP} --force"), 0)?;
    let id = staged(bench)?;
    let restored = window(bench)?;
    bench.equal("hostname", &restored.hostname, &old.hostname)?;
    bench.equal("timezone", &restored.timezone, &old.timezone)?;
    bench.equal("passphrase in the state", &restored.passphrase, &old.passphrase)?;
    bench.equal("key of the pool", &restored.key_pool, &old.key_pool)?;
    bench.equal("LUKS UUID of root", &restored.luks_root, &new.luks_root)?;
    bench.equal("machine key of root", &restored.key_root, &new.key_root)?;
    bench.equal("machine key of swap", &restored.key_swap, &new.key_swap)?;
    bench.equal("failed units", restored.failed_units.as_str(), "")?;
    both(bench, &old.passphrase, true)?;
    both(bench, &new.passphrase, true)?;
    bench.exits("restage confirm", 0)?;
    both(bench, &old.passphrase, true)?;
    both(bench, &new.passphrase, false)?;
    slots(bench, SLOTS)?;
    nothing_left(bench)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&id)?.outcome(), "done")?;
    let kept =
        bench.run(&format!("base64 -w0 /var/lib/restage/superseded/{id}/zpool.local.key"))?;
    bench.equal("the new installation's key of the pool, kept aside", kept.trim(), &new.key_pool)
}

/// Two boots. An archive as IncusOS's own code writes it is staged; then the TPM is another one, root
/// is unlocked by the passphrase, and the restore is applied all the same.
pub fn by_passphrase(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    let tar = as_incusos_writes_it(bench)?;
    put(bench, "/var/tmp/incusos.tar", &tar)?;
    // Go names no file, no time and no system in its header.
    bench.run(
        "cd /var/tmp && gzip -n -c incusos.tar >incusos.tar.gz && \
         printf '\\377' | dd of=incusos.tar.gz bs=1 seek=9 conv=notrunc status=none && \
         test $(od -An -tx1 -N10 incusos.tar.gz | tr -d ' ') = 1f8b08000000000000ff",
    )?;
    bench.exits("restage inspect /var/tmp/incusos.tar.gz", 0)?;
    for (name, label) in VOLUMES {
        let works = by_tpm(bench, label)?;
        bench.check(&format!("the TPM opens {name}"), works)?;
    }
    bench.run(
        "cd /var/lib/incus-os && sed -i 's/DNS.Hostname: .*/DNS.Hostname: changed/' state.txt",
    )?;
    bench.exits("restage restore /var/tmp/incusos.tar.gz --force", 0)?;
    bench.power_off()?;

    std::fs::remove_dir_all(&bench.machine.tpm).doing("taking the TPM away")?;
    tpm::make(&bench.machine.tpm)?;
    bench.machine.oem = vec![faults::passphrase(&old.passphrase)];
    bench.power_on()?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 250)?;
    let facts = bench.booted(Boot::First)?;
    for (name, label) in VOLUMES {
        let works = by_tpm(bench, label)?;
        bench.check(&format!("the TPM no longer opens {name}"), !works)?;
    }
    bench.equal("hostname", &facts.hostname, &old.hostname)?;
    bench.equal("machine key of root", &facts.key_root, &old.key_root)?;
    bench.exits("restage confirm", 0)?;
    both(bench, &old.passphrase, true)?;
    slots(bench, SLOTS)?;
    nothing_left(bench)
}

/// Whether a volume opens with what its header says about the TPM, and nothing else.
fn by_tpm(bench: &mut Bench<'_>, label: &str) -> Outcome<bool> {
    let ran = bench.sh(&format!(
        "cryptsetup open --test-passphrase --token-only {DEVICE}{label} </dev/null"
    ))?;
    Ok(ran.code == 0)
}

/// The state as a tar, byte for byte as Go's archive/tar makes it of a header with name, size, mode
/// 0600 and a time.
fn as_incusos_writes_it(bench: &mut Bench<'_>) -> Outcome<Vec<u8>> {
    const BLOCK: usize = 512;
    let mut tar = Vec::new();
    let listed = bench.run("ls /var/lib/incus-os")?;
    for name in listed.split_whitespace() {
        let text = bench.run(&format!("base64 -w0 /var/lib/incus-os/{name}"))?;
        let content = from_base64(&text)?;
        let mut block = [0_u8; BLOCK];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, b"0000600\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"15112537600\0");
        put(156, b"0");
        put(257, b"ustar\x0000");
        put(329, b"0000000\0");
        put(337, b"0000000\0");
        put(148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&block);
        tar.extend_from_slice(&content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    bench.check("the state has files", tar.len() > 4 * BLOCK)?;
    tar.resize(tar.len() + 2 * BLOCK, 0);
    Ok(tar)
}
