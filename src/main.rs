//! The `spp` binary: reads the command line, runs one command, turns its end into an exit code.
#![forbid(unsafe_code)]

mod access;
mod agent_cmd;
mod api;
mod bind;
mod cli;
mod client;
mod config_cmd;
mod cores_cmd;
mod demo;
mod fail;
mod glue;
mod logging;
mod nic;
mod output;
mod plug;
mod run;
mod status;
mod systemd;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};
use fail::{Exit, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return command_line_ended(&error),
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Bind(args) => bind::bind(&args),
        Command::Unbind(args) => bind::unbind(&args),
        Command::Config(command) => config_cmd::run(&command),
        Command::Nic(command) => nic::run(&command),
        Command::Cores(args) => cores_cmd::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Agent(command) => agent_cmd::run(&command),
        Command::Status(args) => status::run(&args),
        Command::Plug(args) => plug::plug(&args),
        Command::Unplug(args) => plug::unplug(&args),
        Command::Demo(args) => demo::run(&args),
    }
}

/// Help and version are printed and are no failure; anything else is one line.
fn command_line_ended(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed pipe (`spp --help | head -1`) is nobody's failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    output::complain(&cli::usage_line(error));
    ExitCode::from(Exit::Usage as u8)
}
