//! The TPM as tss-esapi reaches it.
//! Side: both. Touches the TPM device, or a software TPM over TCP.

use std::fmt;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::handles::{AuthHandle, KeyHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    CapabilityData, Data, EccPoint, EccScheme, HashScheme, PcrSelectionList, Public, PublicBuilder,
    PublicEccParameters, PublicEccParametersBuilder, SignatureScheme, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::{DeviceConfig, NetworkTPMConfig, TctiNameConf};

use super::answer::{TPM2_CLEAR, classify, in_words, is_transient, response_code};
use super::{Tpm, TpmError, TpmProperties};

/// How long the TPM may take to answer one question. The kernel gives up on a device by itself after
/// two minutes (five for making a key), and its error says more than ours: so this is longer.
pub const DEADLINE: Duration = Duration::from_secs(330);

/// A TPM that is busy with itself says so, and is asked again.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Closing sends the TPM nothing but what an answer that made no sense has left behind, so it does not
/// take long; but it must not hang either.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Answer<T> = Result<T, tss_esapi::Error>;
type Job = Box<dyn FnOnce(&mut Context) + Send>;

/// The TPM as tss-esapi reaches it. All calls run on a thread of their own: reading from a TPM device
/// can't be interrupted, and a TPM that never answers must not hold the boot for ever.
#[derive(Debug)]
pub struct EsysTpm {
    /// `None` once the TPM has not answered in time: what it would answer later belongs to nobody.
    jobs: Option<Sender<Job>>,
    /// Hangs up when the thread has closed the TPM.
    closed: Receiver<()>,
    deadline: Duration,
}

impl EsysTpm {
    /// Opens `device:PATH` or `swtpm:host=HOST,port=PORT`. Sends no command.
    pub fn open(tcti: &str) -> Result<Self, TpmError> {
        Self::with_deadline(tcti, DEADLINE)
    }

    /// The same, with another limit for each answer.
    pub fn with_deadline(tcti: &str, deadline: Duration) -> Result<Self, TpmError> {
        const OPEN: &str = "opening the TPM";
        let name_conf = parse_tcti(tcti)?;
        if let Some(path) = tcti.strip_prefix("device:") {
            probe_device(Path::new(path))?;
        }
        let is_network = matches!(name_conf, TctiNameConf::Swtpm(_));
        let (jobs, work) = mpsc::channel::<Job>();
        let (opened, open_result) = mpsc::channel();
        let (closing, closed) = mpsc::channel();
        thread::Builder::new()
            .name("tpm".to_owned())
            .spawn(move || serve(name_conf, &opened, &work, closing))
            .map_err(|error| TpmError::failed(OPEN, format!("cannot start a thread: {error}")))?;
        match open_result.recv_timeout(deadline) {
            Ok(Ok(())) => Ok(Self { jobs: Some(jobs), closed, deadline }),
            Ok(Err(error)) => {
                let detail = format!("{tcti}: {}", in_words(error));
                Err(if is_network {
                    TpmError::no_device(OPEN, detail)
                } else {
                    TpmError::failed(OPEN, detail)
                })
            }
            Err(RecvTimeoutError::Timeout) => Err(TpmError::failed(OPEN, no_answer(deadline))),
            Err(RecvTimeoutError::Disconnected) => {
                Err(TpmError::failed(OPEN, "the TPM thread has ended"))
            }
        }
    }

    fn ask<T: Send + 'static>(
        &mut self,
        command: &'static str,
        question: fn(&mut Context) -> Answer<T>,
    ) -> Result<T, TpmError> {
        let Some(jobs) = &self.jobs else {
            return Err(TpmError::failed(command, "an earlier command is still unanswered"));
        };
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move |context| {
            // Nobody listens any more after the deadline, and that is all that can go wrong here.
            let _ = reply.send(question(context));
        });
        if jobs.send(job).is_err() {
            return Err(TpmError::failed(command, "the TPM thread has ended"));
        }
        match answer.recv_timeout(self.deadline) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(classify(command, error)),
            Err(RecvTimeoutError::Timeout) => {
                self.jobs = None;
                Err(TpmError::failed(command, no_answer(self.deadline)))
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.jobs = None;
                Err(TpmError::failed(command, "the TPM thread has ended"))
            }
        }
    }
}

impl Drop for EsysTpm {
    /// Waits until the TPM is closed: `/dev/tpm0` and swtpm take one client at a time, and the next
    /// one may come at once. Not for a TPM that still owes an answer.
    fn drop(&mut self) {
        if self.jobs.take().is_some() {
            let _ = self.closed.recv_timeout(CLOSE_TIMEOUT);
        }
    }
}

impl Tpm for EsysTpm {
    fn properties(&mut self) -> Result<TpmProperties, TpmError> {
        self.ask("TPM2_GetCapability", |context| {
            let permanent = property(context, PropertyTag::Permanent)?;
            let lockout_counter = property(context, PropertyTag::LockoutCounter)?;
            Ok(TpmProperties::from_values(permanent, lockout_counter))
        })
    }

    fn owner_primary_name(&mut self) -> Result<String, TpmError> {
        self.ask("TPM2_CreatePrimary", |context| {
            let template = owner_primary_template()?;
            let key = create_primary(context, Hierarchy::Owner, &template)?;
            let name = context.tr_get_name(key.into());
            // Flushed first, whatever came of the name: a TPM has room for three such objects.
            flush(context, key)?;
            Ok(hex(name?.value()))
        })
    }

    fn clear(&mut self) -> Result<(), TpmError> {
        self.ask(TPM2_CLEAR, |context| authorized(context, |c| c.clear(AuthHandle::Lockout)))
    }

    fn reset_count(&mut self) -> Result<u32, TpmError> {
        // tss-esapi 7 lacks TPM2_ReadClock. What a TPM attests carries the same clock; the key is of the
        // endorsement hierarchy, because under any other the TPM garbles the counts.
        self.ask("TPM2_Quote", |context| {
            let template = endorsement_signer_template()?;
            let key = create_primary(context, Hierarchy::Endorsement, &template)?;
            let quote = authorized(context, |context| {
                let nothing = PcrSelectionList::default();
                context.quote(key, Data::default(), SignatureScheme::Null, nothing)
            });
            flush(context, key)?;
            let (attest, _signature) = quote?;
            Ok(attest.clock_info().reset_count())
        })
    }
}

/// The life of the TPM thread: open, answer, close.
fn serve(
    name_conf: TctiNameConf,
    opened: &Sender<Answer<()>>,
    work: &Receiver<Job>,
    closing: Sender<()>,
) {
    let mut context = match Context::new(name_conf) {
        Ok(context) => context,
        Err(error) => {
            // Whoever asked may have given up; there is nobody else to tell.
            let _ = opened.send(Err(error));
            return;
        }
    };
    if opened.send(Ok(())).is_err() {
        return;
    }
    while let Ok(job) = work.recv() {
        job(&mut context);
    }
    drop(context);
    // By hanging up, and only now, it says that the TPM is closed.
    drop(closing);
}

/// One command, given until the TPM is ready for it, within limits. Not a whole question: what its
/// first half has made in the TPM would be made once more.
fn insist<T>(context: &mut Context, command: impl Fn(&mut Context) -> Answer<T>) -> Answer<T> {
    let mut attempt = 1;
    loop {
        match command(context) {
            Err(error) if attempt < ATTEMPTS && response_code(error).is_some_and(is_transient) => {
                attempt += 1;
                thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}

/// The same for a command that an empty password authorises.
fn authorized<T>(context: &mut Context, command: impl Fn(&mut Context) -> Answer<T>) -> Answer<T> {
    context.execute_with_session(Some(AuthSession::Password), |context| insist(context, command))
}

fn flush(context: &mut Context, key: KeyHandle) -> Answer<()> {
    insist(context, |context| context.flush_context(key.into()))
}

fn no_answer(deadline: Duration) -> String {
    format!("it never answered: nothing within {} s", deadline.as_secs_f32())
}

/// Strict, because tss-esapi is not: what it doesn't understand becomes its default, which is another TPM.
pub fn parse_tcti(tcti: &str) -> Result<TctiNameConf, TpmError> {
    const PARSE: &str = "reading the TCTI string";
    let malformed = || {
        TpmError::failed(
            PARSE,
            format!("{tcti:?} is neither device:/PATH nor swtpm:host=HOST,port=PORT"),
        )
    };
    if let Some(path) = tcti.strip_prefix("device:").filter(|path| path.starts_with('/')) {
        return Ok(TctiNameConf::Device(DeviceConfig::from_str(path).map_err(|_| malformed())?));
    }
    let address = tcti.strip_prefix("swtpm:").ok_or_else(malformed)?;
    let (first, second) = address.split_once(',').ok_or_else(malformed)?;
    let (host, port) = if first.starts_with("host=") { (first, second) } else { (second, first) };
    let host = host.strip_prefix("host=").ok_or_else(malformed)?;
    let port: u16 =
        port.strip_prefix("port=").and_then(|port| port.parse().ok()).ok_or_else(malformed)?;
    if host.is_empty() || host.contains(',') || port == 0 {
        return Err(malformed());
    }
    NetworkTPMConfig::from_str(&format!("host={host},port={port}"))
        .map(TctiNameConf::Swtpm)
        .map_err(|_| malformed())
}

/// Opens the device once by ourselves, because the library reports every failure of it as the same one.
fn probe_device(path: &Path) -> Result<(), TpmError> {
    const OPEN: &str = "opening the TPM";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let detail = format!("{}: {error}", path.display());
            let is_absent = error.kind() == ErrorKind::NotFound
                || matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENOTDIR));
            Err(if is_absent {
                TpmError::no_device(OPEN, detail)
            } else {
                TpmError::failed(OPEN, detail)
            })
        }
    }
}

fn property(context: &mut Context, tag: PropertyTag) -> Answer<u32> {
    // One property at a time: a TPM may list some between two that this library does not know.
    let (data, _more) = insist(context, |context| {
        context.get_capability(CapabilityType::TpmProperties, tag.into(), 1)
    })?;
    if let CapabilityData::TpmProperties(list) = data
        && let Some(property) = list.find(tag)
    {
        return Ok(property.value());
    }
    Err(tss_esapi::Error::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm))
}

/// An ECC P-256 storage key. It must never change: the Name journaled before a clear by one version
/// may be compared after it by another.
fn owner_primary_template() -> Answer<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true) // or a TPM in lockout would not make it
        .with_decrypt(true)
        .with_restricted(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    )
    .build()?;
    ecc_template(attributes, parameters)
}

/// An ECC P-256 signing key.
fn endorsement_signer_template() -> Answer<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(true)
        .build()?;
    let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
    let parameters =
        PublicEccParametersBuilder::new_unrestricted_signing_key(scheme, EccCurve::NistP256)
            .build()?;
    ecc_template(attributes, parameters)
}

fn ecc_template(attributes: ObjectAttributes, parameters: PublicEccParameters) -> Answer<Public> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Makes a key that the caller flushes.
fn create_primary(
    context: &mut Context,
    hierarchy: Hierarchy,
    template: &Public,
) -> Answer<KeyHandle> {
    let created = authorized(context, |context| {
        context.create_primary(hierarchy, template.clone(), None, None, None, None)
    })?;
    Ok(created.key_handle)
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcti_string_is_understood_or_refused() {
        assert!(parse_tcti("device:/dev/tpmrm0").is_ok());
        assert!(parse_tcti("swtpm:host=127.0.0.1,port=2321").is_ok());
        assert!(parse_tcti("swtpm:port=2321,host=localhost").is_ok());
        for bad in [
            "",
            "none",
            "device",
            "device:",
            "device:dev/tpm0",
            "swtpm",
            "swtpm:",
            "swtpm:path=/run/s",
            "swtpm:port=2321",
            "swtpm:host=,port=2321",
            "swtpm:host=a,port=0",
            "swtpm:host=a,port=99999",
            "swtpm:host=a,port=1,port=2",
            "swtpm:host=a,host=b",
            "mssim:host=a,port=2",
        ] {
            assert!(parse_tcti(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_absent_device_is_told_from_a_broken_one() {
        let absent = EsysTpm::open("device:/nonexistent/tpm").unwrap_err();
        assert!(matches!(absent, TpmError::Failed { no_device: true, .. }), "{absent}");
        let other = EsysTpm::open("device:/").unwrap_err();
        assert!(matches!(other, TpmError::Failed { no_device: false, .. }), "{other}");
    }
}
