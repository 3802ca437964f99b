//! The log: one line per event on stderr, for people.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::cli::LogLevel;

/// Starts logging at `level`. Libraries below spp are heard from `warn` on only, unless at `trace`.
/// Under systemd the journal knows the time of each line.
pub fn start(level: LogLevel) {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let theirs = if level == LogLevel::Trace { ours } else { ours.min(LevelFilter::WARN) };
    // These write passwords and logins at `trace`, and lines a peer can bring about without end.
    let filter = Targets::new().with_default(theirs).with_target("spp", ours);
    let filter = ["lapin", "amq_protocol", "tcp_stream", "h2", "hyper", "tonic", "tower"]
        .iter()
        .fold(filter, |filter, library| filter.with_target(*library, LevelFilter::OFF));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = lines.with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        tracing_subscriber::registry().with(lines.without_time().with_filter(filter)).init();
    } else {
        tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    }
}
