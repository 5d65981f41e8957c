//! Connections: each request to `restage`, and its answer back; then the reboot.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
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

use super::answer::{Refusal, success};
use super::child::Restage;
use super::route::{Route, route};
use crate::error::{Doing, Result};

/// So long may a client take for the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// So long may a client take to read the answer to what is followed by a reboot.
const READ: Duration = Duration::from_secs(10);
/// So long the answer has to get from who asked here to who asked there.
const GRACE: Duration = Duration::from_secs(1);
/// What follows: the next boot does what was staged.
const REBOOT: [&str; 2] = ["systemctl", "reboot"];

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Serves for ever.
pub fn serve(listener: UnixListener, restage: &Restage) -> Result<()> {
    let what = || "cannot serve".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(what)?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = tokio::net::UnixListener::from_std(listener).doing(what)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::task::spawn_local(connection(stream, restage.clone()));
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

async fn connection(stream: UnixStream, restage: Restage) {
    let is_staged = Rc::new(Cell::new(false));
    let service = service_fn(|request| {
        let (restage, is_staged) = (restage.clone(), is_staged.clone());
        async move { Ok::<_, Infallible>(answer(request, &restage, &is_staged).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let served = http.serve_connection(TokioIo::new(stream), service);
    let too_slow = async {
        while !is_staged.get() {
            tokio::time::sleep(GRACE).await;
        }
        tokio::time::sleep(READ).await;
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            log::info!("a connection ended: {error}");
        },
        () = too_slow => log::warn!("nobody reads the answer"),
    }
    // It is delivered, or nobody wants it.
    if is_staged.get() {
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

async fn answer(request: Request<Incoming>, restage: &Restage, is_staged: &Cell<bool>) -> Answer {
    let route = route(request.method(), request.uri());
    log::info!("{} {}", request.method(), request.uri().path().escape_debug());
    let staging = matches!(route, Ok(Route::Restore { .. } | Route::FactoryReset));
    let result = match route {
        Ok(route) => perform(route, request.into_body(), restage).await,
        Err(refusal) => Err(refusal),
    };
    let mut answer = result.unwrap_or_else(|refusal| {
        log::warn!("{}: {}", refusal.status, refusal.why);
        json(refusal.status, &refusal.body())
    });
    if staging && answer.status().is_success() {
        // The end of the connection is what the reboot waits for.
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        is_staged.set(true);
    }
    answer
}

async fn perform(route: Route, body: Incoming, restage: &Restage) -> Result<Answer, Refusal> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let said = match route {
        Route::Backup => {
            let backup = restage.stream(&words(&["backup", "-"])).await?;
            let mut answer = Response::new(backup.boxed_unsync());
            let kind = HeaderValue::from_static("application/gzip");
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            return Ok(answer);
        }
        Route::Status => restage.ask(&words(&["status", "--json"])).await?,
        Route::Restore { skip } => {
            let mut arguments = words(&["restore", "-", "--force", "--json"]);
            arguments.extend(skip.iter().map(|item| format!("--skip={item}")));
            restage.feed(&arguments, body).await?
        }
        // Seeds are no arguments: everybody sees those.
        Route::FactoryReset => {
            let arguments = words(&["factory-reset", "--force", "--json", "-d", "@/dev/stdin"]);
            restage.feed_options(&arguments, body).await?
        }
    };
    Ok(json(StatusCode::OK, &success(&said)))
}

fn json(status: StatusCode, body: &Value) -> Answer {
    let body = Full::from(format!("{body}\n")).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
