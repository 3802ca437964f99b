//! Passwords: where they come from, and that they are never printed.

use std::fmt;
use std::path::{Path, PathBuf};

/// Longest password file worth reading, in bytes.
const FILE_MAX_BYTES: u64 = 4096;

/// A text that no `Debug` or `Display` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a password file is no use.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The OS refuses.
    #[error("can't read the password file {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the OS says.
        source: std::io::Error,
    },
    /// Not one line of text.
    #[error("the password file {} must hold the password on one line, and nothing else", .0.display())]
    NotOneLine(PathBuf),
}

impl Secret {
    /// Takes the text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The first and only line of a file, without its end.
    pub fn read(path: &Path) -> Result<Secret, SecretError> {
        use std::io::Read;
        let fail = |source| SecretError::Read { path: path.into(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(fail)?;
        file.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(fail)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() || line.contains(['\n', '\r', '\0']) {
            return Err(SecretError::NotOneLine(path.into()));
        }
        Ok(Secret::new(line))
    }

    /// The text itself, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some((secret))");
    }

    #[test]
    fn a_password_file_holds_one_line() {
        let path = std::env::temp_dir().join(format!("spp-secret-{}", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Secret::read(&path).map(|secret| secret.reveal().to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(read("pa ss\n"), Ok("pa ss".into()));
        assert_eq!(read("pass"), Ok("pass".into()));
        for bad in ["", "\n", "a\nb\n"] {
            assert!(read(bad).unwrap_err().contains("on one line"), "{bad:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Secret::read(&path).unwrap_err().to_string().contains("can't read the password file"));
    }
}
