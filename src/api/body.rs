//! Request bodies: JSON whatever the content type says, keys checked in spp-ctl's order.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde_json::Value;

use super::error::{ApiError, ApiResult};

/// Longest body accepted; the longest sensible one has a few hundred bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// A parsed body.
#[derive(Debug, Clone)]
pub struct Body(Value);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Body> {
        let refused = |e: axum::extract::rejection::BytesRejection| ApiError::new(e.status(), e.body_text());
        let bytes = Bytes::from_request(request, state).await.map_err(refused)?;
        Body::parse(&bytes)
    }
}

impl Body {
    /// Parses the bytes of a request.
    pub fn parse(bytes: &[u8]) -> ApiResult<Body> {
        serde_json::from_slice(bytes).map(Body).map_err(|_| ApiError::not_json())
    }

    /// Refuses the first key of `keys` that is missing.
    pub fn require(&self, keys: &[&str]) -> ApiResult<()> {
        match keys.iter().find(|key| self.get(key).is_none()) {
            Some(key) => Err(ApiError::key_required(key)),
            None => Ok(()),
        }
    }

    /// A value, if the key is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// A value that `read` understands; an absent key is "required", any other value "invalid".
    pub fn read<'a, T>(&'a self, key: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> ApiResult<T> {
        let value = self.get(key).ok_or_else(|| ApiError::key_required(key))?;
        read(value).ok_or_else(|| ApiError::key_invalid(key, value))
    }

    /// A text.
    pub fn text(&self, key: &str) -> ApiResult<&str> {
        self.read(key, Value::as_str)
    }

    /// One word of a fixed list, as the value it stands for.
    pub fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> ApiResult<T> {
        self.read(key, |value| {
            let text = value.as_str()?;
            words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_keys_are_reported_in_the_order_asked() {
        let body = Body::parse(br#"{"core": 1}"#).unwrap();
        let error = body.require(&["name", "core", "type"]).unwrap_err();
        assert_eq!(error.text, "key(name) required.");
        let list = Body::parse(b"[1]").unwrap();
        assert_eq!(list.require(&["action"]).unwrap_err().text, "key(action) required.");
    }

    #[test]
    fn what_is_not_json_is_called_that() {
        for bytes in [&b""[..], b"name=x", b"{", b"\xff\xfe", b"{} {}"] {
            assert_eq!(Body::parse(bytes).unwrap_err().text, "Not in json format.");
        }
    }

    #[test]
    fn words_outside_the_list_are_invalid() {
        let body = Body::parse(br#"{"dir": "up", "action": 7}"#).unwrap();
        assert_eq!(body.word("dir", &[("rx", 0), ("tx", 1)]).unwrap_err().text, "invalid key(dir): up.");
        assert_eq!(body.word("action", &[("attach", 0)]).unwrap_err().text, "invalid key(action): 7.");
    }
}
