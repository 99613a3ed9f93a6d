//! `insula`: the service (`insula serve`) and its command line in one program.
//!
//! Everything but `serve`, `check` and `migrate` is a client of the public API: it holds a credential and nothing else, so what it can do is
//! what anybody with that credential can do. A command is one function: settings in, one or two requests, a table out.
//!
//! ```text
//! INSULA_TOKEN=… insula data put biopsies biopsies.csv
//! insula train start --dataset biopsies --target diagnosis --task classification --name screening --watch
//! insula deploy put screening --model screening --version 1
//! insula predict screening --data new.csv
//! ```
//!
//! Results go to standard output, everything else to standard error. A failure is `error: …`, what to do about it is `help: …`, and
//! the exit status says which kind it was ([`failure::Class`]).

mod args;
mod client;
mod commands;
mod failure;
mod output;
mod profile;
mod progress;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::{Class, Failure, Result};
use output::Output;

/// A prediction allocates some dozens of small things on one thread and frees them on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Two providers are compiled in through dependencies; without a choice TLS would panic at its first use.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return ExitCode::from(Class::Failed.status());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let status = if error.use_stderr() { Class::Usage.status() } else { 0 };
            return if error.print().is_ok() { ExitCode::from(status) } else { ExitCode::from(Class::Failed.status()) };
        }
    };
    let output = Output::new(cli.globals.json, cli.globals.quiet);
    match run(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.class().status())
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<()> {
    match cli.command {
        // The service makes its own runtime: its first child process is started while there is one thread.
        Command::Serve(start) => commands::serve::serve(start, output),
        Command::Check(start) => commands::serve::check(start, output),
        Command::Migrate(args) => commands::serve::migrate(args, output),
        Command::Completion { shell } => commands::completion(shell, output),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::new(Class::Failed, format!("cannot start: {error}")))?;
            runtime.block_on(commands::run(command, &cli.globals, output))
        }
    }
}
