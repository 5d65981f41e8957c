//! What a request asks for. Pure: a method, a path and a query become a route, or an answer that says why
//! not.

use hyper::{Method, StatusCode, Uri};

use super::answer::Refusal;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A backup of the OS.
    Backup,
    /// To stage a restore of the backup in the body, leaving these out.
    Restore {
        /// The items as they were given, and checked by `restage`.
        skip: Vec<String>,
    },
    /// To stage a factory reset with the options in the body.
    FactoryReset,
    /// What is staged, what is running, and what happened.
    Status,
}

/// Reads what a request asks for. A path that is not known is answered as IncusOS answers for what it
/// does not have; a method that a path does not have as well.
pub fn route(method: &Method, uri: &Uri) -> Result<Route, Refusal> {
    let (wanted, route) = match uri.path() {
        "/1.0/system/:backup" => (Method::POST, Route::Backup),
        "/1.0/system/:restore" => (Method::POST, Route::Restore { skip: Vec::new() }),
        "/1.0/system/:factory-reset" => (Method::POST, Route::FactoryReset),
        "/1.0/restage/status" => (Method::GET, Route::Status),
        _ => return Err(Refusal::new(StatusCode::NOT_FOUND, "not found")),
    };
    if *method != wanted {
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "not implemented"));
    }
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).try_fold(route, |route, (name, value)| {
        match (route, name.as_ref()) {
            // Which member of a cluster: incusd has seen to it, and it is this one.
            (route, "target") => Ok(route),
            (Route::Restore { mut skip }, "skip") => {
                let items = value.split(',').filter(|item| !item.is_empty());
                skip.extend(items.map(str::to_owned));
                Ok(Route::Restore { skip })
            }
            (_, name) => {
                let why = format!("unknown parameter `{}`", name.escape_debug());
                Err(Refusal::new(StatusCode::BAD_REQUEST, why))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &Method, uri: &str) -> Result<Route, u16> {
        route(method, &uri.parse().unwrap()).map_err(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn the_paths_are_those_of_incusos() {
        assert_eq!(ask(&Method::POST, "/1.0/system/:backup"), Ok(Route::Backup));
        assert_eq!(ask(&Method::POST, "/1.0/system/:factory-reset"), Ok(Route::FactoryReset));
        assert_eq!(ask(&Method::GET, "/1.0/restage/status"), Ok(Route::Status));
        let restore = |skip: &[&str]| {
            Ok(Route::Restore { skip: skip.iter().map(|item| (*item).to_owned()).collect() })
        };
        assert_eq!(ask(&Method::POST, "/1.0/system/:restore"), restore(&[]));
        assert_eq!(ask(&Method::POST, "/1.0/system/:restore?skip="), restore(&[]));
        assert_eq!(ask(&Method::POST, "/1.0/system/:restore?target=one&skip=a"), restore(&["a"]));
        assert_eq!(ask(&Method::POST, "/1.0/system/:backup?target=one"), Ok(Route::Backup));
        assert_eq!(ask(&Method::POST, "http://host/1.0/system/:backup"), Ok(Route::Backup));
        assert_eq!(
            ask(&Method::POST, "/1.0/system/:restore?skip=network-macs,a%2Cb&skip=c"),
            restore(&["network-macs", "a", "b", "c"])
        );
    }

    #[test]
    fn what_is_not_there_is_not_found_and_no_word_is_passed_over() {
        for path in ["/", "/1.0", "/1.0/services/ceph", "/1.0/system", "/1.0/system/:restore/"] {
            assert_eq!(ask(&Method::GET, path), Err(404), "{path}");
        }
        assert_eq!(ask(&Method::GET, "/1.0/system/:backup"), Err(501));
        assert_eq!(ask(&Method::PUT, "/1.0/system/:factory-reset"), Err(501));
        assert_eq!(ask(&Method::POST, "/1.0/system/:factory-reset?force=1"), Err(400));
        assert_eq!(ask(&Method::POST, "/1.0/system/:restore?skipp=network-macs"), Err(400));
    }
}
