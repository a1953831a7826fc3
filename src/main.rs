//! The `stillframe` command.

use std::process::exit;

use clap::Parser;
use stillframe::cli::{run, Cli};

fn main() {
    match run(&Cli::parse()) {
        Ok(status) => exit(status),
        Err(error) => {
            eprintln!("stillframe: {error}");
            exit(1);
        }
    }
}
