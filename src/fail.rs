//! How a command ends: one line on stderr and an exit code scripts can rely on.

use std::fmt;

/// The exit codes of `spp`. Part of the interface: documented in `docs/cli.md`, never renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It was tried and did not work.
    Failed = 1,
    /// The command line itself is wrong.
    Usage = 2,
    /// The node or etcd can't be reached.
    Unreachable = 3,
    /// The node was reached and said no; it runs on as it was.
    Refused = 4,
    /// The configuration (file, etcd value, mappings, core masks) can't be used.
    BadConfig = 5,
}

/// Why a command ends without success.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    /// What is printed behind `spp: `; one line that says what to do.
    pub message: String,
}

impl Failure {
    /// It was tried and did not work.
    pub fn failed(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Failed, message: message.to_string() }
    }

    /// The command line is wrong.
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Usage, message: message.to_string() }
    }

    /// Nobody answers.
    pub fn unreachable(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Unreachable, message: message.to_string() }
    }

    /// The node said no.
    pub fn refused(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Refused, message: message.to_string() }
    }

    /// The configuration can't be used.
    pub fn bad_config(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::BadConfig, message: message.to_string() }
    }
}

/// The message and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    one_line(&text)
}

/// Line breaks become blanks: an error is one line, whatever it quotes.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_appended_once_and_on_one_line() {
        let error = Outer(std::io::Error::other("inner\nsecond line"));
        assert_eq!(chain(&error), "outer: inner second line");
    }
}
