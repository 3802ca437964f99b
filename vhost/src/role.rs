//! Which end of the socket listens.

/// What one side of a vhost-user connection does with the socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It connects; the peer listens.
    Client,
    /// It listens.
    Server,
}
