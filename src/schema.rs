//! The JSON Schemas in `docs/schema/` are those of the types: `UPDATE_SCHEMA=1 cargo test schema` writes
//! them anew, and without it this fails when they differ.

use schemars::{JsonSchema, schema_for};

fn check<T: JsonSchema>(name: &str) {
    let path = format!("{}/docs/schema/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = serde_json::to_string_pretty(&schema_for!(T)).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    // Not both of them: they fill screens.
    let differs = written.lines().zip(text.lines()).find(|(written, new)| written != new);
    let what = format!("docs/schema/{name}.json: UPDATE_SCHEMA=1 cargo test schema");
    assert!(written == text, "{what}; the first difference: {differs:?}");
}

#[test]
fn documented_schemas_are_those_of_the_types() {
    check::<crate::profile::Profile>("profile");
    check::<crate::request::Request>("request");
    check::<crate::apply::journal::Committed>("journal");
    check::<crate::report::Report>("report");
    check::<crate::request::restore::RestoreRequest>("restore-request");
    check::<crate::apply::restore::Committed>("restore-journal");
}
