//! Links the static tpm2-tss into the release binary; development builds take the system's.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RESTAGE_TSS_LIB");
    // Unset for a target without features.
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if !features.split(',').any(|feature| feature == "crt-static") {
        return; // tss-esapi-sys has found the shared libraries with pkg-config
    }
    let Ok(directory) = std::env::var("RESTAGE_TSS_LIB") else {
        println!(
            "cargo::error=a static build needs the static tpm2-tss: run scripts/tss and source .cache/tss/env"
        );
        return;
    };
    println!("cargo::rerun-if-changed={directory}");
    println!("cargo::rustc-link-search=native={directory}");
    // One group, because the libraries need one another in circles. -Bstatic, because what is left to
    // -Bdynamic is quietly taken from a shared library of the same name where there is one, and such
    // a static-pie crashes in its own relocation. -Bstatic also holds for what rustc adds after it,
    // which in a static program is what we want.
    println!("cargo::rustc-link-arg-bins=-Wl,-Bstatic,--gc-sections,--start-group");
    for library in [
        "tss2-esys",
        "tss2-sys",
        "tss2-tctildr",
        "tss2-tcti-device",
        "tss2-tcti-swtpm",
        "tss2-mu",
        "tss2-rc",
        "mbedcrypto",
        "c",
    ] {
        println!("cargo::rustc-link-arg-bins=-l{library}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,--end-group");
}
