//! Requests that are not for this machine, or are none at all: made from a good
//! one by fixtures, all on the ESP at once, so that one boot shows them all.

use super::end;
use crate::bench::{Bench, Boot};
use crate::failure::{Doing, Outcome};
use crate::hunt::{self, Hunt};
use crate::request::{Staged, sealed, stem};
use serde_json::json;

/// Seeds of a request that is refused.
const SECRET: &str = "a-seed-of-the-refused-0c5e41d7";

/// One boot: every bad request is set aside with a report of its own, and the
/// system comes up as it was; the seeds of one of them are nowhere any more.
pub fn refused(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let good = bench.base()?.request("default")?;
    let id = |number: u32| format!("{number:08x}{}", "5".repeat(24));

    let other_disk = good.altered(&id(0xA1), |body| {
        if let Some(disk) = body.pointer_mut("/machine/disk") {
            *disk = json!("11111111-2222-4333-8444-555555555555");
        }
    })?;
    let other_disk =
        other_disk.with_seeds(&format!("{{\"hunted\":{{\"token\":\"{SECRET}\"}}}}"))?;
    let unknown_field = good.altered(&id(0xA2), |body| {
        if let Some(body) = body.as_object_mut() {
            body.insert("erase_everything".to_owned(), json!(true));
        }
    })?;
    let newer = good.altered(&id(0xA3), |_| ())?;
    let newer = newer.with_request(sealed("restage-request", 2, &newer.body()?.to_string()));
    let whole = good.altered(&id(0xA4), |_| ())?;
    let half = whole.request()?.len() / 2;
    let truncated = whole.with_request(whole.request()?.get(..half).doing("a half")?.to_vec());
    let flipped = good.altered(&id(0xA5), |_| ())?;
    let mut bytes = flipped.request()?.to_vec();
    // In the text of the body, where JSON stays JSON: a digit of the id.
    let at = crate::seeds::find(&bytes, b"5555").doing("a digit to change")?;
    if let Some(byte) = bytes.get_mut(at) {
        *byte = b'4';
    }
    let damaged = flipped.with_request(bytes);

    let cases: [(&Staged, &[&str]); 5] = [
        (&other_disk, &["disk"]),
        (&unknown_field, &["erase_everything"]),
        (&newer, &["version"]),
        (&truncated, &[]),
        (&damaged, &["sha256"]),
    ];
    for (staged, _) in &cases {
        bench.put_request(staged)?;
    }

    bench.power_on()?;
    let facts = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &facts)?;
    let status = bench.status()?;
    bench.equal("staged", status.staged().len(), 0)?;
    bench.equal("running", status.running(), 0)?;
    bench.equal("reports", status.reports().len(), cases.len())?;
    for (staged, words) in &cases {
        let report = status.report(&staged.id)?;
        bench.equal("outcome", report.outcome(), "refused")?;
        bench.check("there is a reason", !report.reason().is_empty())?;
        bench.tells(&format!("the reason of {}", staged.stem()), report.reason(), words)?;
        bench.note(format!("{}: {}", staged.stem(), report.reason()));
    }
    let told = bench.exits("restage status", 0)?;
    bench.tells("restage status", &told.out, &["refused", "disk", "erase_everything"])?;
    bench.power_off()?;
    let files = bench.restage_files()?;
    for (staged, _) in &cases {
        let stem = stem(&staged.id);
        bench.check("no request is left", !files.contains_key(&format!("{stem}.REQ")))?;
        bench.check("it was set aside", files.contains_key(&format!("{stem}.BAD")))?;
    }
    end::nothing_erased(bench)?;
    let mut hunt = Hunt::default();
    hunt.add("the refused seed", SECRET.as_bytes())?;
    hunt::outside(bench, &hunt, &[])
}
