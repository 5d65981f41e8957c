use proptest::prelude::*;

use super::*;

fn state(text: &str) -> StateFile {
    StateFile::parse(text.as_bytes()).unwrap()
}

fn text(file: &StateFile) -> String {
    String::from_utf8(file.encode().to_vec()).unwrap()
}

/// Upgrades the lines by one version, without the version line.
fn upgraded(from: u32, lines: &str) -> String {
    let mut file = state(&format!("#Version: {from}\n{lines}"));
    file.upgrade(from + 1).unwrap();
    text(&file).strip_prefix(&format!("#Version: {}\n", from + 1)).unwrap().to_owned()
}

fn refusal(text: &str) -> String {
    StateFile::parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn what_is_no_state_file_is_named() {
    for text in ["", "\n", "System.A: 1\n", "#Version: \n", "#Version: x\n", "#Version: +1\n"] {
        assert_eq!(refusal(text), "the first line is not `#Version: N`", "{text:?}");
    }
    assert_eq!(refusal("#Version: 9\n"), "version 9 is newer than 8, the newest known here");
    assert_eq!(refusal("#Version: 8\nA: 1\nsecret\n"), "line 3 is no `Key: value`");
    assert_eq!(StateFile::parse(b"#Version: 8\n\xff: 1\n").unwrap_err().to_string(), "not UTF-8");
}

#[test]
fn from_0_to_1_encryption_becomes_security() {
    assert_eq!(
        upgraded(
            0,
            "System.Encryption.Config.RecoveryKeys[0]: a: b\n\
             System.Encryption.State.RecoveryKeysRetrieved: true\n\
             System.Encryption.State.Other: 1\nSystem.EncryptionX: 2\n"
        ),
        "System.Security.Config.EncryptionRecoveryKeys[0]: a: b\n\
         System.Security.State.EncryptionRecoveryKeysRetrieved: true\n\
         System.Security.State.Other: 1\nSystem.EncryptionX: 2\n"
    );
}

#[test]
fn from_1_to_2_proxies_become_servers_and_rules() {
    assert_eq!(
        upgraded(
            1,
            "System.Network.Config.Proxy.HTTPProxy: http://u:p@proxy.example.org:8080\n\
             System.Network.Config.Proxy.HTTPSProxy: cache.lan\n\
             System.Network.Config.Proxy.NoProxy: a.lan,b.lan\nServices.X: 1\n"
        ),
        "System.Network.Config.Proxy.Servers[proxy_example_org_8080].Host: proxy.example.org:8080\n\
         System.Network.Config.Proxy.Servers[proxy_example_org_8080].Auth: basic\n\
         System.Network.Config.Proxy.Servers[proxy_example_org_8080].Username: u\n\
         System.Network.Config.Proxy.Servers[proxy_example_org_8080].Password: p\n\
         System.Network.Config.Proxy.Rules[0].Destination: http://*\n\
         System.Network.Config.Proxy.Rules[0].Target: proxy_example_org_8080\n\
         System.Network.Config.Proxy.Servers[cache_lan].Host: cache.lan\n\
         System.Network.Config.Proxy.Servers[cache_lan].Auth: anonymous\n\
         System.Network.Config.Proxy.Rules[1].Destination: https://*\n\
         System.Network.Config.Proxy.Rules[1].Target: cache_lan\n\
         System.Network.Config.Proxy.Rules[2].Destination: a.lan|b.lan\n\
         System.Network.Config.Proxy.Rules[2].Target: direct\nServices.X: 1\n"
    );
}

#[test]
fn from_1_to_2_one_server_for_both_protocols_is_there_once() {
    let out = upgraded(
        1,
        "System.Network.Config.Proxy.HTTPProxy: p:1\nSystem.Network.Config.Proxy.HTTPSProxy: p:1\n",
    );
    assert_eq!(out.matches("Servers[p_1].Host").count(), 1);
    assert_eq!(out.matches(".Target: p_1").count(), 2);
    let mut bad = state("#Version: 1\nSystem.Network.Config.Proxy.HTTPProxy: http://\n");
    assert!(bad.upgrade(2).unwrap_err().to_string().contains("names no host"));
}

#[test]
fn from_2_to_3_application_fields_move_under_state() {
    assert_eq!(
        upgraded(
            2,
            "Applications[incus].Initialized: true\nApplications[incus].Version: 7\n\
             Applications[incus].Other: 1\n"
        ),
        "Applications[incus].State.Initialized: true\nApplications[incus].State.Version: 7\n\
         Applications[incus].Other: 1\n"
    );
}

#[test]
fn from_3_to_4_update_fields_are_renamed_and_there_is_a_channel() {
    assert_eq!(
        upgraded(
            3,
            "System.Update.Config.UpdateFrequency: 1\nSystem.Update.State.UpdateStatus: ok"
        ),
        "System.Update.Config.CheckFrequency: 1\nSystem.Update.State.Status: ok\n\
         System.Update.Config.Channel: stable\n"
    );
}

#[test]
fn from_4_to_5_nanoseconds_become_a_duration() {
    assert_eq!(
        upgraded(4, "System.Update.Config.CheckFrequency: 21600000000000\n"),
        "System.Update.Config.CheckFrequency: 6h0m0s\n"
    );
    let mut bad = state("#Version: 4\nSystem.Update.Config.CheckFrequency: 6h\n");
    assert!(bad.upgrade(5).unwrap_err().to_string().starts_with("line 2: "));
}

#[test]
fn from_5_to_6_time_servers_move() {
    assert_eq!(
        upgraded(5, "System.Network.Config.NTP.Timeservers[0]: pool\n"),
        "System.Network.Config.Time.NTPServers[0]: pool\n"
    );
}

#[test]
fn from_6_to_7_there_is_a_scrub_schedule() {
    assert_eq!(upgraded(6, ""), "System.Storage.Config.ScrubSchedule: 0 4 * * 0\n");
}

#[test]
fn from_7_to_8_known_applications_have_fields() {
    assert_eq!(
        upgraded(
            7,
            "Applications[gpu-support].State.Version: 1\nApplications[operations-center].X: 1\n\
             Applications[mine].State.Version: 2\n"
        ),
        "Applications.GPUSupport.State.Version: 1\nApplications.OperationsCenter.X: 1\n\
         Applications[mine].State.Version: 2\n"
    );
}

#[test]
fn applications_and_recovery_keys_are_found_in_every_version() {
    for version in 0..=NEWEST {
        let mut file = state(
            "#Version: 0\nApplications[incus].Version: 202601010000\nApplications[debug].Version: \n\
             System.Encryption.Config.RecoveryKeys[0]: one\n\
             System.Encryption.Config.RecoveryKeys[1]: two\n",
        );
        file.upgrade(version).unwrap();
        assert_eq!(file.applications(), ["Incus"], "version {version}");
        assert_eq!(file.recovery_keys().collect::<Vec<_>>(), ["one", "two"], "version {version}");
    }
    // What was no name of an application does not become one.
    let mut odd =
        state("#Version: 0\nApplications[Incus].Version: 1\nApplications[mine].Version: 1\n");
    assert_eq!(odd.applications(), ["mine"]);
    odd.upgrade(NEWEST).unwrap();
    assert!(!odd.applications().contains(&"Incus".to_owned()));
    let mut newer = state("#Version: 8\n");
    assert!(newer.upgrade(7).unwrap_err().to_string().contains("newer than 7"));
}

#[test]
fn a_composed_state_has_each_line_from_where_it_should_be() {
    let present = state(
        "#Version: 8\n# here\nApplications.Incus.State.Version: 2\nSystem.A: old\nOS.Name: here\n\
         Services.S: old\nUnknown.X: here\n",
    );
    let backup = state(
        "#Version: 8\nApplications.Incus.State.Version: 1\nOS.Name: there\nServices.S: new\n\
         System.A: new\nSystem.New[0]:  odd  \n",
    );
    let prefixes = ["System.".to_owned(), "Services.".to_owned()];
    assert_eq!(
        text(&present.composed(&backup, &prefixes)),
        "#Version: 8\n# here\nApplications.Incus.State.Version: 2\nServices.S: new\nSystem.A: new\n\
         System.New[0]:  odd  \nOS.Name: here\nUnknown.X: here\n"
    );
}

#[test]
fn recovery_keys_are_replaced_in_their_place() {
    let mut file = state(
        "#Version: 8\nA: 1\nSystem.Security.Config.EncryptionRecoveryKeys[0]: a\n\
         System.Security.Config.EncryptionRecoveryKeys[1]: b\nZ: 1\n",
    );
    file.set_recovery_keys(&[Zeroizing::new("c".to_owned())]);
    assert_eq!(
        text(&file),
        "#Version: 8\nA: 1\nSystem.Security.Config.EncryptionRecoveryKeys[0]: c\nZ: 1\n"
    );
}

#[test]
fn weak_passphrases_are_named() {
    let why = |passphrase: &str| weakness(passphrase).unwrap_or_default();
    assert!(why("short-1").contains("15"));
    assert!(why("abcdefghijklmnop").contains("special"));
    assert!(why("a-a-a-a-a-a-a-a-a").contains("different"));
    assert!(why(&"0123-4567-89ab-cdef".repeat(40)).contains("longer than 512 bytes"));
    assert!(why("0123-4567-89ab\\ncdef").contains("a line break"));
    assert!(why("0123-4567-89ab\tcdef").contains("control character"));
    assert_eq!(weakness("0123-4567-89ab-cdef"), None);
}

proptest! {
    #[test]
    fn any_state_file_passes_through_byte_for_byte(
        version in 0..=NEWEST,
        lines in prop::collection::vec("(#.{0,9}|[A-Za-z.\\[\\]0-9]{1,20}: [^\n]{0,20}|)", 0..20),
        ended in any::<bool>(),
    ) {
        let mut all = format!("#Version: {version}\n{}", lines.join("\n"));
        if ended && !lines.is_empty() { all.push('\n'); }
        prop_assert_eq!(text(&state(&all)), all);
    }

    #[test]
    fn forgetting_hardware_addresses_changes_those_lines_and_no_other(
        nics in prop::collection::vec((any::<bool>(), "[a-z0-9]{1,8}", any::<bool>()), 0..6),
        others in prop::collection::vec("[A-Z][a-z.]{1,12}: [^\n]{0,20}", 0..8),
    ) {
        let mut lines: Vec<String> = others.clone();
        let mut wanted = others;
        for (index, (is_bond, name, has_address)) in nics.iter().enumerate() {
            let list = if *is_bond { "Bonds" } else { "Interfaces" };
            let owner = format!("System.Network.Config.{list}[{index}]");
            let name_line = format!("{owner}.Name: {name}");
            if *has_address {
                lines.push(format!("{owner}.Hwaddr: 00:11:22:33:44:55"));
                wanted.push(format!("{owner}.Hwaddr: {name}"));
            }
            lines.push(name_line.clone());
            wanted.push(name_line);
            // What only looks like one.
            let other = format!("System.Network.State.{list}[{index}].Hwaddr: 66:77");
            lines.push(other.clone());
            wanted.push(other);
        }
        let mut file = state(&format!("#Version: 8\n{}\n", lines.join("\n")));
        let changed = file.forget_hardware_addresses().unwrap();
        prop_assert_eq!(changed, nics.iter().filter(|nic| nic.2).count());
        prop_assert_eq!(text(&file), format!("#Version: 8\n{}\n", wanted.join("\n")));
    }
}
