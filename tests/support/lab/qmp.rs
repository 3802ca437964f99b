//! QEMU's own control socket (QMP): one command, one answer; what it says unasked is passed over.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// One connection.
pub struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and says hello; the error is why not (yet).
    pub fn connect(path: &Path) -> Result<Qmp, String> {
        let socket = UnixStream::connect(path).map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(Duration::from_secs(60))).map_err(|error| error.to_string())?;
        let mut qmp = Qmp { lines: BufReader::new(socket) };
        qmp.next()?;
        qmp.try_run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn next(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err("QEMU has closed its control socket".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs a command; its answer, or QEMU's error.
    pub fn try_run(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let message = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.lines.get_mut().write_all(message.as_bytes()).map_err(|error| error.to_string())?;
        loop {
            let answer = self.next()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(error.to_string());
            }
        }
    }

    /// Runs a command that must succeed.
    ///
    /// # Panics
    /// With QEMU's error.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        self.try_run(command, arguments).unwrap_or_else(|error| panic!("QMP {command}: {error}"))
    }
}
