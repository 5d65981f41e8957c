//! Connections: each request to `restage`, and its answer back; then the reboot.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{self, Seek, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use super::answer::{Refusal, success};
use super::body::{self, Place};
use super::child::Restage;
use super::route::{Route, route};
use crate::error::{Doing, Result};

/// So long may a client take for the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// So long may a client read nothing of an answer, in a service.
pub const STALLED: Duration = Duration::from_secs(60);
/// So long may a client take to read the answer to what is followed by a reboot.
const READ: Duration = Duration::from_secs(10);
/// So long the answer has to get from who asked here to who asked there.
const GRACE: Duration = Duration::from_secs(1);
/// So many are talked with at once; others wait.
const MAX_CONNECTIONS: usize = 32;
/// What follows: the next boot does what was staged.
const REBOOT: [&str; 2] = ["systemctl", "reboot"];

/// The options of a reset, with its seeds; restage has a limit of its own.
const MAX_OPTIONS_BYTES: u64 = 16 << 20;

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// What answers are made with.
#[derive(Clone, Debug)]
pub struct Server {
    /// The program.
    pub restage: Restage,
    /// Where a backup lies until it has come whole.
    pub spool: Place,
    /// The largest that is taken in, in bytes.
    pub max_backup_bytes: u64,
    /// So long may a client read nothing of an answer.
    pub stalled: Duration,
}

/// What is being staged by the requests of one connection.
#[derive(Default)]
struct Staging {
    /// So many have not ended.
    running: Cell<usize>,
    /// One is staged: a reboot follows.
    is_done: Cell<bool>,
}

/// Serves for ever.
pub fn serve(listener: UnixListener, server: &Server) -> Result<()> {
    let what = || "cannot serve".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(what)?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = tokio::net::UnixListener::from_std(listener).doing(what)?;
        let turns = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let turn = turns.clone().acquire_owned().await.doing(what)?;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = server.clone();
                    tokio::task::spawn_local(async move {
                        connection(stream, server).await;
                        drop(turn);
                    });
                }
                // Too many open files, and the like: it passes.
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(GRACE).await;
                }
            }
        }
    })
}

async fn connection(stream: UnixStream, server: Server) {
    let (server, staging) = (Rc::new(server), Rc::new(Staging::default()));
    let service = service_fn(|request| {
        let (server, staging) = (server.clone(), staging.clone());
        async move { Ok::<_, Infallible>(answer(request, server, staging).await) }
    });
    let mut http = http1::Builder::new();
    // A client that has said all may shut its side, and one that goes away has said all as well: what it
    // asked for is done, and not left half way.
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).half_close(true);
    // A backup that nobody reads would keep one of the few turns.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(server.stalled));
    let talk = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
    let too_slow = async {
        while !staging.is_done.get() {
            tokio::time::sleep(GRACE).await;
        }
        tokio::time::sleep(READ).await;
    };
    tokio::select! {
        ended = talk => match ended {
            Err(error) if !error.is_timeout() => log::info!("a connection ended: {error}"),
            _ => {}
        },
        () = too_slow => log::warn!("nobody reads the answer"),
    }
    while staging.running.get() > 0 {
        tokio::time::sleep(GRACE / 10).await;
    }
    // It is delivered, or nobody wants it.
    if staging.is_done.get() {
        tokio::time::sleep(GRACE).await;
        reboot().await;
    }
}

async fn reboot() {
    let [program, argument] = REBOOT;
    log::info!("staged: rebooting");
    match tokio::process::Command::new(program).arg(argument).status().await {
        Ok(status) if status.success() => {}
        Ok(status) => log::error!("staged, but `{program} {argument}` ended with {status}"),
        Err(error) => log::error!("staged, but `{program} {argument}` failed: {error}"),
    }
}

async fn answer(request: Request<Incoming>, server: Rc<Server>, staging: Rc<Staging>) -> Answer {
    let route = route(request.method(), request.uri());
    log::info!("{} {}", request.method(), request.uri().path().escape_debug());
    let mut body = request.into_body();
    let result = match route {
        Ok(Route::Backup) => backup(&server.restage).await,
        Ok(Route::Status) => {
            let said = server.restage.run(&words(&["status", "--json"]), Stdio::null()).await;
            said.map(|said| json(StatusCode::OK, &success(&said)))
        }
        Ok(route @ (Route::Restore { .. } | Route::FactoryReset)) => {
            // A task of its own: whatever becomes of the connection, it goes to its end.
            staging.running.update(|running| running + 1);
            let task = tokio::task::spawn_local(async move {
                let staged = stage(route, &mut body, &server).await;
                if staged.is_ok() {
                    staging.is_done.set(true);
                } else {
                    body::drain(&mut body).await;
                }
                staging.running.update(|running| running - 1);
                staged
            });
            match task.await {
                Ok(staged) => staged.map(|said| {
                    let mut answer = json(StatusCode::OK, &success(&said));
                    // The end of the connection is what the reboot waits for.
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    answer
                }),
                Err(error) => Err(Refusal::failure(error.to_string())),
            }
        }
        Err(refusal) => {
            body::drain(&mut body).await;
            Err(refusal)
        }
    };
    result.unwrap_or_else(|refusal| {
        // incusd asks at each start for what only some systems have.
        let level = match refusal.status {
            StatusCode::NOT_FOUND => log::Level::Info,
            status if status.is_server_error() => log::Level::Error,
            _ => log::Level::Warn,
        };
        log::log!(level, "{}: {}", refusal.status, refusal.why);
        json(refusal.status, &refusal.body())
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

async fn backup(restage: &Restage) -> Result<Answer, Refusal> {
    let backup = restage.stream(&words(&["backup", "-"])).await?;
    let mut answer = Response::new(backup.boxed_unsync());
    let kind = HeaderValue::from_static("application/gzip");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(answer)
}

async fn stage(route: Route, body: &mut Incoming, server: &Server) -> Result<Value, Refusal> {
    if let Route::Restore { skip } = route {
        let file = body::take_in(body, &server.spool, server.max_backup_bytes).await?;
        let mut arguments = words(&["restore", "-", "--force", "--json"]);
        arguments.extend(skip.iter().map(|item| format!("--skip={item}")));
        return server.restage.run(&arguments, file.into()).await;
    }
    let mut file = body::take_in(body, &Place::Memory, MAX_OPTIONS_BYTES).await?;
    let failed = |error: io::Error| Refusal::failure(format!("cannot keep the body: {error}"));
    // As a client of IncusOS may ask for a reset without options.
    if file.metadata().map_err(failed)?.len() == 0 {
        file.write_all(b"{}").and_then(|()| file.rewind()).map_err(failed)?;
    }
    // Seeds are no arguments: everybody sees those.
    let arguments = words(&["factory-reset", "--force", "--json", "-d", "@/dev/stdin"]);
    server.restage.run(&arguments, file.into()).await
}

fn json(status: StatusCode, body: &Value) -> Answer {
    let body = Full::from(format!("{body}\n")).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Who asks for a backup and does not read it has no turn for ever.
    #[test]
    fn a_client_that_does_not_read_is_left() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = Server {
            // It writes without end.
            restage: Restage { program: "yes".into() },
            spool: Place::Memory,
            max_backup_bytes: 0,
            stalled: Duration::from_millis(500),
        };
        // It ends with the test.
        std::thread::spawn(move || serve(listener, &server).map_err(|error| error.chain()));
        let ask = |what: &str| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(format!("{what} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
            stream
        };
        let silent: Vec<_> =
            (0..MAX_CONNECTIONS).map(|_| ask("POST /1.0/system/:backup")).collect();
        let mut late = ask("GET /1.0/nothing");
        late.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut said = [0; 12];
        late.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"HTTP/1.1 404");
        drop(silent);
    }
}
