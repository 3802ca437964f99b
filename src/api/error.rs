//! What a refused request is answered with: a status and one line of plain text, as spp-ctl has it.

use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};

/// A refused request. Texts of spp-ctl's own paths are those of `spp-ctl/spp_webapi.py`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// The body.
    pub text: String,
}

/// The result of every handler.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// Any status with any text.
    pub fn new(status: StatusCode, text: impl Into<String>) -> ApiError {
        ApiError { status, text: text.into() }
    }

    /// The body is not JSON.
    pub fn not_json() -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "Not in json format.")
    }

    /// A key of the body is missing.
    pub fn key_required(key: &str) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, format!("key({key}) required."))
    }

    /// A key of the body has a value that can't be. spp-ctl meant to say this and answered 500.
    pub fn key_invalid(key: &str, value: &serde_json::Value) -> ApiError {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        ApiError::new(StatusCode::BAD_REQUEST, format!("invalid key({key}): {value}."))
    }

    /// The data plane refused; `what` is SPP's word for the operand it did not like.
    pub fn command_invalid(what: &str) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, format!("command error: Invalid value ({what})"))
    }

    /// No such secondary process.
    pub fn no_process(id: &str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, format!("sec_id {id} not found."))
    }

    /// No such path.
    pub fn no_path(uri: &Uri) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, format!("Not found: '{}'", relative_path(uri.path())))
    }

    /// Known path, wrong method.
    pub fn wrong_method() -> ApiError {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed.")
    }

    /// Something this node does not do, with the reason.
    pub fn refused(reason: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, reason)
    }

    /// The node's control thread does not answer.
    pub fn node_gone(error: &dyn std::error::Error) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, crate::fail::chain(error))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, self.text).into_response()
    }
}

/// Paths in error texts are relative to spp-ctl's mount: `/v1/vfs/x` is `/x`.
fn relative_path(path: &str) -> &str {
    const MOUNTS: [&str; 5] = ["/vfs", "/nfvs", "/mirrors", "/primary", "/pcaps"];
    let under = |path: &'_ str, mount: &str| {
        let rest = path.strip_prefix(mount)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest.len())
    };
    let mut rest = path;
    if let Some(n) = under(rest, "/v1") {
        rest = &rest[rest.len() - n..];
        if let Some(n) = MOUNTS.iter().find_map(|mount| under(rest, mount)) {
            rest = &rest[rest.len() - n..];
        }
    }
    if rest.is_empty() { "/" } else { rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_paths_are_named_relative_to_their_mount() {
        let cases = [
            ("/v1/vfs", "/"),
            ("/v1/vfs/x", "/x"),
            ("/v1/vfs/1/nothing", "/1/nothing"),
            ("/v1/vfsx", "/vfsx"),
            ("/v1/nothing", "/nothing"),
            ("/v1", "/"),
            ("/v2/vfs", "/v2/vfs"),
        ];
        for (path, text) in cases {
            assert_eq!(relative_path(path), text, "{path}");
        }
    }

    #[test]
    fn invalid_values_are_shown_as_they_were_written() {
        let text = |value| ApiError::key_invalid("dir", &value).text;
        assert_eq!(text(serde_json::json!("up")), "invalid key(dir): up.");
        assert_eq!(text(serde_json::json!({"a": 1})), "invalid key(dir): {\"a\":1}.");
    }
}
