//! The shape of an answer, as the clients of IncusOS and Incus read it. Pure.

use hyper::StatusCode;
use serde_json::{Value, json};

/// A request that was not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// Why, in a line that the client shows.
    pub why: String,
}

impl Refusal {
    /// One with this status, for this reason.
    pub fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    /// One for a failure of this program or of what it runs.
    pub fn failure(why: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> Value {
        json!({ "type": "error", "error_code": self.status.as_u16(), "error": self.why })
    }
}

/// The body of a success.
#[must_use]
pub fn success(metadata: &Value) -> Value {
    json!({
        "type": "sync", "status": "Success", "status_code": 200,
        "operation": "", "error_code": 0, "error": "", "metadata": metadata,
    })
}

/// What `restage` said when it ended with this exit status: the JSON that it printed, or a refusal.
/// `printed` and `told` are its standard output and standard error.
pub fn of_child(status: Option<i32>, printed: &[u8], told: &[u8]) -> Result<Value, Refusal> {
    let said: Option<Value> = serde_json::from_slice(printed).ok();
    let reason = said.as_ref().and_then(|said| said.get("refused")).and_then(Value::as_str);
    match status {
        Some(0) => said.ok_or_else(|| Refusal::failure("restage printed no JSON")),
        // Refused, or not understood.
        Some(2 | 3) => {
            let why = reason.map_or_else(|| last_line(told), str::to_owned);
            Err(Refusal::new(StatusCode::BAD_REQUEST, why))
        }
        Some(_) => Err(Refusal::failure(last_line(told))),
        None => Err(Refusal::failure("restage was killed")),
    }
}

/// The last line of what a program said, without its own name.
fn last_line(told: &[u8]) -> String {
    let told = String::from_utf8_lossy(told);
    let line = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("restage said nothing");
    let line = line.trim().strip_prefix("restage: ").unwrap_or(line);
    line.strip_prefix("refused: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_restage_says_is_what_the_client_gets() {
        let staged = br#"{"staged":"0123"}"#;
        assert_eq!(of_child(Some(0), staged, b""), Ok(json!({ "staged": "0123" })));
        let refused = of_child(Some(3), br#"{"refused":"no TPM"}"#, b"restage: refused: no TPM\n");
        assert_eq!(refused, Err(Refusal::new(StatusCode::BAD_REQUEST, "no TPM")));
        let without_json = of_child(Some(3), b"", b"a\nrestage: refused: no room\n\n");
        assert_eq!(without_json, Err(Refusal::new(StatusCode::BAD_REQUEST, "no room")));
        let usage = of_child(Some(2), b"", b"error: unexpected argument\n");
        assert_eq!(usage.map_err(|refusal| refusal.status.as_u16()), Err(400));
        let failed = of_child(Some(1), b"", b"restage: cannot open the ESP: EIO\n");
        assert_eq!(failed, Err(Refusal::failure("cannot open the ESP: EIO")));
        assert_eq!(of_child(None, b"", b""), Err(Refusal::failure("restage was killed")));
        assert_eq!(of_child(Some(1), b"", b""), Err(Refusal::failure("restage said nothing")));
        assert_eq!(of_child(Some(0), b"", b""), Err(Refusal::failure("restage printed no JSON")));
    }
}
