//! The CLI's side of the API: one request, one answer, over a unix or TCP socket.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::cli::ApiAddress;
use crate::fail::{Failure, chain, one_line};

/// The longest an answer may take: the node's own deadlines are shorter.
const DEADLINE: Duration = Duration::from_secs(40);
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// The API of one node.
pub struct Client<'a> {
    address: &'a ApiAddress,
}

impl<'a> Client<'a> {
    /// A client of the node at `address`; nothing is connected yet.
    pub fn new(address: &'a ApiAddress) -> Client<'a> {
        Client { address }
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None)
    }

    /// `POST path` without a body.
    pub fn post(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::POST, path, None)
    }

    /// `PUT path` with a JSON body.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PUT, path, Some(body))
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, None)
    }

    /// Runs one request to its end. An empty answer is `null`.
    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::failed(format!("can't start: {e}")))?;
        let work = self.exchange(method, path, body);
        let late = |_| Failure::unreachable(format!("the node at {} does not answer", self.address));
        let (status, bytes) =
            runtime.block_on(async { tokio::time::timeout(DEADLINE, work).await }).map_err(late)??;
        read_answer(status, &bytes)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let host = match self.address {
            ApiAddress::Unix(_) => "localhost".to_owned(),
            ApiAddress::Tcp(address) => address.to_string(),
        };
        let request = Request::builder().method(method).uri(path).header(header::HOST, host);
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(bytes));
        let request = request.map_err(|e| Failure::failed(format!("{path} can't be asked for: {e}")))?;
        match self.address {
            ApiAddress::Unix(path) => self.send(UnixStream::connect(path).await, request).await,
            ApiAddress::Tcp(address) => self.send(TcpStream::connect(address).await, request).await,
        }
    }

    async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: std::io::Result<S>,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let lost = |e: &dyn std::error::Error| {
            Failure::unreachable(format!("the node at {} hung up: {}", self.address, chain(e)))
        };
        let stream = stream.map_err(|e| self.no_connection(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(&e))?;
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| lost(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|e| Failure::failed(format!("the node's answer can't be read: {e}")))?;
        driver.abort();
        Ok((status, body.to_bytes()))
    }

    fn no_connection(&self, error: &std::io::Error) -> Failure {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "run as the user the node runs as",
            _ => "is `spp run` running, and with this --api?",
        };
        Failure::unreachable(format!("can't reach the node at {}: {error} ({remedy})", self.address))
    }
}

fn read_answer(status: StatusCode, bytes: &[u8]) -> Result<Value, Failure> {
    let text = String::from_utf8_lossy(bytes);
    match status {
        s if s.is_success() && bytes.is_empty() => Ok(Value::Null),
        s if s.is_success() => serde_json::from_slice(bytes)
            .map_err(|_| Failure::failed("the answer is not JSON: is that address a spp node?")),
        s if s.is_client_error() => Err(Failure::refused(one_line(&text))),
        StatusCode::SERVICE_UNAVAILABLE => Err(Failure::failed(one_line(&text))),
        s => Err(Failure::failed(format!("the node failed ({s}): {}", one_line(&text)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fail::Exit;

    #[test]
    fn answers_become_values_or_failures_with_the_right_exit_code() {
        assert_eq!(read_answer(StatusCode::NO_CONTENT, b"").unwrap(), Value::Null);
        assert_eq!(read_answer(StatusCode::OK, b"{\"a\":1}").unwrap()["a"], 1);
        let refused = read_answer(StatusCode::BAD_REQUEST, b"no\nsuch vhost").unwrap_err();
        assert_eq!((refused.exit, refused.message.as_str()), (Exit::Refused, "no such vhost"));
        assert_eq!(read_answer(StatusCode::SERVICE_UNAVAILABLE, b"x").unwrap_err().exit, Exit::Failed);
        assert_eq!(read_answer(StatusCode::OK, b"<html>").unwrap_err().exit, Exit::Failed);
    }

    #[test]
    fn absent_node_is_unreachable_and_the_message_says_where() {
        let address: ApiAddress = "unix:/nonexistent/api.sock".parse().unwrap();
        let failure = Client::new(&address).get("/v1/node").unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("unix:/nonexistent/api.sock"), "{}", failure.message);
    }
}
