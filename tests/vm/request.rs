//! Requests as they lie on the ESP, and what fixtures make of them: for another
//! disk, of a newer version, cut off. The product has no flag for any of it.

use crate::esp::Files;
use crate::failure::{Doing, Outcome};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// A request of this base machine as the running OS staged it: the files of
/// restage's directory on the ESP, and the id.
#[derive(Debug, Clone)]
pub struct Staged {
    pub id: String,
    pub files: Files,
}

/// The first eight digits, upper case: what the files of an operation are called.
pub fn stem(id: &str) -> String {
    id.chars().take(8).collect::<String>().to_uppercase()
}

impl Staged {
    pub fn stem(&self) -> String {
        stem(&self.id)
    }

    /// The same request under another id, its body changed, its checksum right.
    pub fn altered(&self, id: &str, change: impl FnOnce(&mut Value)) -> Outcome<Self> {
        let mut body = self.body()?;
        *body.pointer_mut("/id").doing("finding the request's id")? = id.into();
        change(&mut body);
        let mut files = Files::new();
        for (name, bytes) in &self.files {
            let (old, new) = (self.stem(), stem(id));
            let renamed = name.strip_prefix(&old).map_or(name.clone(), |end| new + end);
            files.insert(renamed, bytes.clone());
        }
        files.insert(format!("{}.REQ", stem(id)), sealed("restage-request", 1, &body.to_string()));
        Ok(Self { id: id.to_owned(), files })
    }

    /// The same request with these seeds, under its own id.
    pub fn with_seeds(&self, seeds: &str) -> Outcome<Self> {
        let mut staged = self.altered(&self.id, |body| {
            let names: Vec<&str> = Vec::new();
            body["seeds"] = json!({
                "sha256": digest(seeds.as_bytes()), "bytes": seeds.len(), "names": names,
            });
        })?;
        staged.files.insert(format!("{}.SED", self.stem()), seeds.into());
        Ok(staged)
    }

    pub fn body(&self) -> Outcome<Value> {
        body(self.request()?)
    }

    pub fn request(&self) -> Outcome<&[u8]> {
        let name = format!("{}.REQ", self.stem());
        Ok(self.files.get(&name).doing(format!("looking for {name}"))?)
    }

    /// The same files, with the request's own replaced.
    pub fn with_request(&self, bytes: Vec<u8>) -> Self {
        let mut staged = self.clone();
        staged.files.insert(format!("{}.REQ", self.stem()), bytes);
        staged
    }
}

/// The body of a sealed file, its checksum checked.
pub fn body(file: &[u8]) -> Outcome<Value> {
    let sealed: Value = serde_json::from_slice(file).doing("reading a sealed file")?;
    Ok(sealed.get("body").doing("a sealed file's body")?.clone())
}

/// A file as restage writes it: the digest is over the body's text.
pub fn sealed(format: &str, version: u32, body: &str) -> Vec<u8> {
    let digest = digest(body.as_bytes());
    format!(
        "{{\"format\":\"{format}\",\"version\":{version},\"sha256\":\"{digest}\",\"body\":{body}}}"
    )
    .into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
