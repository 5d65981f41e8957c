//! What a response code means: done, ask again, a definite no, or nothing certain.
//! Side: both. Pure.

use tss_esapi::constants::response_code::Tss2ResponseCode;

use super::{Refusal, TpmError};

/// Response codes (TCG TPM 2.0 Part 2, 6.6.3), without the parameter or session that they name.
const RC_INITIALIZE: u32 = 0x100;
const RC_FAILURE: u32 = 0x101;
const RC_DISABLED: u32 = 0x120;
const RC_UPGRADE: u32 = 0x12d;
const RC_REBOOT: u32 = 0x130;
const RC_AUTH_FAIL: u32 = 0x08e;
const RC_BAD_AUTH: u32 = 0x0a2;
const RC_YIELDED: u32 = 0x908;
const RC_CANCELED: u32 = 0x909;
const RC_TESTING: u32 = 0x90a;
const RC_NV_RATE: u32 = 0x920;
const RC_LOCKOUT: u32 = 0x921;
const RC_RETRY: u32 = 0x922;
const RC_NV_UNAVAILABLE: u32 = 0x923;

/// A TPM's own codes have no other bits.
const RC_BITS: u32 = 0xfff;
/// The kernel's resource manager answers in the TPM's place, with a code of the TPM's or of its own.
const RESMGR_LAYERS: [u32; 2] = [11, 12];
/// Codes of the software stack that say that the bytes did not come through, without their layer.
const TCTI_LAYER: u32 = 10;
const TSS_GENERAL_FAILURE: u32 = 1;
const TSS_NO_CONNECTION: u32 = 8;
const TSS_IO_ERROR: u32 = 10;

/// Bits 16 to 23 say which layer made the code: zero is the TPM, anything else is software on our side.
const RC_LAYER_MASK: u32 = 0x00ff_0000;
const RC_FORMAT_ONE: u32 = 0x080;
const RC_FORMAT_ONE_BASE: u32 = 0x0bf;
const RC_WARNING: u32 = 0x900;

/// The code without its layer, and without the parameter, handle or session that it is about.
fn rc_base(code: u32) -> u32 {
    if code & RC_FORMAT_ONE != 0 { code & RC_FORMAT_ONE_BASE } else { code & RC_BITS }
}

pub(super) fn rc_name(code: u32) -> &'static str {
    if code & RC_LAYER_MASK != 0 {
        return "an error of the TPM software stack";
    }
    if code & !RC_BITS != 0 {
        return "no response code of a TPM";
    }
    match rc_base(code) {
        RC_INITIALIZE => "TPM_RC_INITIALIZE",
        RC_FAILURE => "TPM_RC_FAILURE",
        RC_DISABLED => "TPM_RC_DISABLED",
        RC_UPGRADE => "TPM_RC_UPGRADE",
        RC_REBOOT => "TPM_RC_REBOOT",
        RC_AUTH_FAIL => "TPM_RC_AUTH_FAIL",
        RC_BAD_AUTH => "TPM_RC_BAD_AUTH",
        RC_YIELDED => "TPM_RC_YIELDED",
        RC_CANCELED => "TPM_RC_CANCELED",
        RC_TESTING => "TPM_RC_TESTING",
        RC_NV_RATE => "TPM_RC_NV_RATE",
        RC_LOCKOUT => "TPM_RC_LOCKOUT",
        RC_RETRY => "TPM_RC_RETRY",
        RC_NV_UNAVAILABLE => "TPM_RC_NV_UNAVAILABLE",
        0x081 => "TPM_RC_ATTRIBUTES",
        0x084 => "TPM_RC_VALUE",
        0x085 => "TPM_RC_HIERARCHY",
        0x09d => "TPM_RC_POLICY_FAIL",
        0x119 => "TPM_RC_NV_AUTHORIZATION",
        0x121 => "TPM_RC_EXCLUSIVE",
        0x124 => "TPM_RC_AUTH_TYPE",
        0x125 => "TPM_RC_AUTH_MISSING",
        0x126 => "TPM_RC_POLICY",
        0x12f => "TPM_RC_AUTH_UNAVAILABLE",
        0x143 => "TPM_RC_COMMAND_CODE",
        0x902 => "TPM_RC_OBJECT_MEMORY",
        0x903 => "TPM_RC_SESSION_MEMORY",
        _ => "a response code without a name here",
    }
}

/// The TPM is busy, with itself or with its memory, and wants to be asked again.
pub(super) fn is_transient(code: u32) -> bool {
    code & !RC_BITS == 0
        && matches!(
            rc_base(code),
            RC_RETRY | RC_YIELDED | RC_CANCELED | RC_TESTING | RC_NV_RATE | RC_NV_UNAVAILABLE
        )
}

pub(super) const TPM2_CLEAR: &str = "TPM2_Clear";

/// What an error is about, in words that no other trouble has: whoever reads them does something else
/// about each.
fn trouble(code: u32) -> &'static str {
    let (layer, base) = ((code & RC_LAYER_MASK) >> 16, code & !RC_LAYER_MASK);
    match layer {
        0 if code <= RC_BITS => {}
        layer if RESMGR_LAYERS.contains(&layer) => return "the kernel did not pass it on: ",
        TCTI_LAYER if matches!(base, TSS_IO_ERROR | TSS_NO_CONNECTION | TSS_GENERAL_FAILURE) => {
            return "the connection to it broke: ";
        }
        // All that we say ourselves is always the same: so it is about what the TPM has said.
        _ => return "its answer makes no sense: ",
    }
    match rc_base(code) {
        _ if is_transient(code) => "it is busy, and stays so: ",
        RC_INITIALIZE => "it was not started up: ",
        RC_FAILURE => "it is in failure mode: ",
        RC_UPGRADE => "its firmware is being upgraded: ",
        RC_REBOOT => "it wants a reboot first: ",
        _ => "",
    }
}

/// An error, in words, with its code where it has one.
pub(super) fn in_words(error: tss_esapi::Error) -> String {
    match response_code(error) {
        Some(code) => format!("{}{} ({code:#x})", trouble(code), rc_name(code)),
        None => format!("its answer makes no sense: {error}"),
    }
}

/// Sorts an error: what is not certainly a refusal is a failure, because a refusal may end a request.
pub(super) fn classify(command: &'static str, error: tss_esapi::Error) -> TpmError {
    let Some(code) = response_code(error) else {
        return TpmError::failed(command, in_words(error));
    };
    let base = rc_base(code);
    let not_definite = code & !RC_BITS != 0
        // Warnings are about now, except that the lockout lasts longer than we do.
        || (code & RC_FORMAT_ONE == 0 && base & RC_WARNING == RC_WARNING && base != RC_LOCKOUT)
        // The TPM is not working at all; a power cycle may bring it back.
        || matches!(base, RC_INITIALIZE | RC_FAILURE | RC_UPGRADE | RC_REBOOT);
    if not_definite {
        return TpmError::failed(command, in_words(error));
    }
    let reason = match base {
        RC_LOCKOUT => Refusal::Lockout,
        // The password that another command lacks is not the lockout hierarchy's.
        RC_AUTH_FAIL | RC_BAD_AUTH if command == TPM2_CLEAR => Refusal::LockoutAuthSet,
        RC_DISABLED if command == TPM2_CLEAR => Refusal::ClearDisabled,
        _ => Refusal::Other,
    };
    TpmError::Refused { command, code, reason }
}

/// The response code of an error. tss-esapi 7 keeps the number to itself and gives it out as text only.
pub(super) fn response_code(error: tss_esapi::Error) -> Option<u32> {
    let text = match error {
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::FormatZero(code)) => code.to_string(),
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::FormatOne(code)) => code.to_string(),
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::Success)
        | tss_esapi::Error::WrapperError(_) => return None,
    };
    let (_, digits) = text.rsplit_once("0x")?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tss_esapi::WrapperErrorKind;

    fn classify(command: &'static str, code: u32) -> TpmError {
        super::classify(command, tss_esapi::Error::Tss2Error(code.into()))
    }

    #[test]
    fn only_a_definite_no_is_a_refusal() {
        let reason = |code| match classify(TPM2_CLEAR, code) {
            TpmError::Refused { reason, .. } => Some(reason),
            TpmError::Failed { no_device, .. } => {
                assert!(!no_device);
                None
            }
        };
        assert_eq!(reason(0x98e), Some(Refusal::LockoutAuthSet));
        assert_eq!(reason(0x9a2), Some(Refusal::LockoutAuthSet));
        assert_eq!(reason(0x120), Some(Refusal::ClearDisabled));
        assert_eq!(reason(0x921), Some(Refusal::Lockout));
        assert_eq!(reason(0x143), Some(Refusal::Other));
        for transient in [0x922, 0x908, 0x909, 0x90a, 0x920, 0x923] {
            assert!(is_transient(transient), "{transient:#x}");
            assert_eq!(reason(transient), None, "{transient:#x}");
        }
        for unclear in
            [0x100, 0x101, 0x902, 0xa_000a, 0x7_0001, 0xa_098e, 0x8800_098e, 0x1120, 0x8000_0922]
        {
            assert!(!is_transient(unclear), "{unclear:#x}");
            assert_eq!(reason(unclear), None, "{unclear:#x}");
        }
    }

    #[test]
    fn another_commands_password_is_not_the_lockout_password() {
        assert_eq!(
            classify("TPM2_CreatePrimary", 0x9a2),
            TpmError::Refused {
                command: "TPM2_CreatePrimary",
                code: 0x9a2,
                reason: Refusal::Other
            }
        );
    }

    #[test]
    fn a_refusal_names_code_and_way_out() {
        let text = classify(TPM2_CLEAR, 0x98e).to_string();
        assert!(
            text.starts_with("the TPM refused TPM2_Clear with TPM_RC_AUTH_FAIL (0x98e): "),
            "{text}"
        );
        assert!(text.contains("tpm2_changeauth -c lockout"), "{text}");
        assert!(!text.ends_with('.'), "{text}");
    }

    #[test]
    fn each_trouble_has_words_of_its_own() {
        let said = |code| classify("TPM2_GetCapability", code).to_string();
        for (code, words) in [
            (0x922, "it is busy"),
            (0x920, "it is busy"),
            (0x100, "it was not started up"),
            (0x101, "it is in failure mode"),
            (0xa_000a, "the connection to it broke"),
            (0xa_0008, "the connection to it broke"),
            (0x8_0011, "its answer makes no sense"),
            (0xa_0006, "its answer makes no sense"),
            (0x8800_0000, "its answer makes no sense"),
            (0xb_0143, "the kernel did not pass it on"),
        ] {
            let text = said(code);
            assert!(
                text.starts_with(&format!("TPM2_GetCapability failed: {words}: "))
                    || text.starts_with(&format!("TPM2_GetCapability failed: {words}, ")),
                "{text}"
            );
            assert!(text.ends_with(&format!("({code:#x})")), "{text}");
        }
        let odd = tss_esapi::Error::WrapperError(WrapperErrorKind::WrongValueFromTpm);
        assert!(super::classify("TPM2_Quote", odd).to_string().contains("makes no sense"));
    }

    #[test]
    fn tss_esapi_gives_the_whole_code() {
        for code in [0x98e, 0x120, 0x922, 0xa_000a, 0xb_0143] {
            let error = tss_esapi::Error::Tss2Error(code.into());
            assert_eq!(response_code(error), Some(code), "{code:#x}");
        }
    }
}
