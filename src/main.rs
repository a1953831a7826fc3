//! The `stillframe` command.

use std::process::exit;

use stillframe::cli::{parse, run};

fn main() {
    match run(&parse()) {
        Ok(status) => exit(status),
        Err(error) => {
            eprintln!("stillframe: {error}");
            exit(1);
        }
    }
}
